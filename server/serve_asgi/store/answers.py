"""Frames of the store process as values, each made in one place, so that both kinds of store say the same."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from serve_asgi.hub.state.write import AcceptedWrite, StateEntry, WriteRefusal
from serve_asgi.ipc.frames import pack_value
from serve_asgi.ipc.store_frames import SNAPSHOT_FRAME_SIZE, GrantRefusal, StoreFailure


class StoreReply(NamedTuple):
    """One frame to the hub."""

    kind: str
    head: dict[str, Any]
    body: bytes = b""


def written(id: Any, change: AcceptedWrite) -> StoreReply:
    """The hub's own write stands."""
    return StoreReply("store.written", {"id": id, **_of(change)}, change.value or b"")


def changed(change: AcceptedWrite) -> StoreReply:
    """A change that the hub did not ask for."""
    return StoreReply("store.change", _of(change), change.value or b"")


def refused(id: Any, why: WriteRefusal) -> StoreReply:
    """The write has changed nothing."""
    head = {"id": id, "code": why.code.value, "text": why.text, "version": why.version, "exists": why.version > 0}
    return StoreReply("store.refused", head, why.value)


def value(id: Any, key: str, entry: StateEntry | None) -> StoreReply:
    """What a key has."""
    version, body = entry if entry is not None else (0, b"")
    return StoreReply("store.value", {"id": id, "key": key, "version": version, "exists": entry is not None}, body)


def failed(kind: str, head: dict[str, Any], why: StoreFailure, text: str) -> StoreReply | None:
    """The refusal of a frame of this kind; None if nobody waits for an answer to it."""
    match kind:
        case "store.write" | "store.read":
            return StoreReply("store.refused", {"id": head["id"], "code": why.value, "text": text, "version": 0})
        case "store.send":
            return StoreReply("store.unsent", {"id": head["id"], "code": why.value, "text": text})
        case "store.grant":
            return taken(head["id"], GrantRefusal.TROUBLE, text)
    return None


def taken(id: Any, why: GrantRefusal, text: str) -> StoreReply:
    """The tick is not granted."""
    return StoreReply("store.taken", {"id": id, "why": why.value, "text": text})


def granted(id: Any, token: int, renewed_until: float) -> StoreReply:
    """The tick is this server's."""
    return StoreReply("store.granted", {"id": id, "token": token, "renewed_until": renewed_until})


def renewed(name: str, token: int, renewed_until: float) -> StoreReply:
    """The lease goes on."""
    return StoreReply("store.renewed", {"name": name, "token": token, "renewed_until": renewed_until})


def lost(name: str, token: int, text: str) -> StoreReply:
    """The lease is over."""
    return StoreReply("store.lost", {"name": name, "token": token, "text": text})


def snapshot(entries: Iterable[tuple[str, StateEntry]]) -> Iterator[StoreReply]:
    """The whole state, in pieces, of which the first says that it is; one at least."""
    head: dict[str, Any] = {"first": True}
    piece: list[list[Any]] = []
    length = 0
    for key, entry in entries:
        if piece and length + len(entry.value) + len(key) > SNAPSHOT_FRAME_SIZE:
            yield StoreReply("store.snapshot", head, pack_value(piece, "a snapshot"))
            head, piece, length = {}, [], 0
        piece.append([key, entry.version, entry.value])
        length += len(entry.value) + 4 * len(key) + 16
    yield StoreReply("store.snapshot", head, pack_value(piece, "a snapshot"))


def _of(change: AcceptedWrite) -> dict[str, Any]:
    return {"key": change.key, "version": change.version, "deleted": change.value is None}
