"""Frames of the store process as values, each made in one place, so that both kinds of store say the same."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from serve_asgi.hub.state.write import Change, Entry, Refused
from serve_asgi.ipc.frames import packed
from serve_asgi.ipc.store_frames import SNAPSHOT_PIECE, Taken, Trouble


class Answer(NamedTuple):
    """One frame to the hub."""

    kind: str
    head: dict[str, Any]
    body: bytes = b""


def written(id: Any, change: Change) -> Answer:
    """The hub's own write stands."""
    return Answer("store.written", {"id": id, **_of(change)}, change.value or b"")


def changed(change: Change) -> Answer:
    """A change that the hub did not ask for."""
    return Answer("store.change", _of(change), change.value or b"")


def refused(id: Any, why: Refused) -> Answer:
    """The write has changed nothing."""
    head = {"id": id, "code": why.code.value, "text": why.text, "version": why.version, "exists": why.version > 0}
    return Answer("store.refused", head, why.value)


def value(id: Any, key: str, entry: Entry | None) -> Answer:
    """What a key has."""
    version, body = entry if entry is not None else (0, b"")
    return Answer("store.value", {"id": id, "key": key, "version": version, "exists": entry is not None}, body)


def trouble(kind: str, head: dict[str, Any], why: Trouble, text: str) -> Answer | None:
    """The refusal of a frame of this kind; None if nobody waits for an answer to it."""
    match kind:
        case "store.write" | "store.read":
            return Answer("store.refused", {"id": head["id"], "code": why.value, "text": text, "version": 0})
        case "store.send":
            return Answer("store.unsent", {"id": head["id"], "code": why.value, "text": text})
        case "store.grant":
            return taken(head["id"], Taken.TROUBLE, text)
    return None


def taken(id: Any, why: Taken, text: str) -> Answer:
    """The tick is not granted."""
    return Answer("store.taken", {"id": id, "why": why.value, "text": text})


def granted(id: Any, token: int, renewed_until: float) -> Answer:
    """The tick is this server's."""
    return Answer("store.granted", {"id": id, "token": token, "renewed_until": renewed_until})


def renewed(name: str, token: int, renewed_until: float) -> Answer:
    """The lease goes on."""
    return Answer("store.renewed", {"name": name, "token": token, "renewed_until": renewed_until})


def lost(name: str, token: int, text: str) -> Answer:
    """The lease is over."""
    return Answer("store.lost", {"name": name, "token": token, "text": text})


def snapshot(entries: Iterable[tuple[str, Entry]]) -> Iterator[Answer]:
    """The whole state, in pieces, of which the first says that it is; one at least."""
    head: dict[str, Any] = {"first": True}
    piece: list[list[Any]] = []
    length = 0
    for key, entry in entries:
        if piece and length + len(entry.value) + len(key) > SNAPSHOT_PIECE:
            yield Answer("store.snapshot", head, packed(piece, "a snapshot"))
            head, piece, length = {}, [], 0
        piece.append([key, entry.version, entry.value])
        length += len(entry.value) + 4 * len(key) + 16
    yield Answer("store.snapshot", head, packed(piece, "a snapshot"))


def _of(change: Change) -> dict[str, Any]:
    return {"key": change.key, "version": change.version, "deleted": change.value is None}
