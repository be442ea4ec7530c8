"""Frames of the store process as values, each made in one place, so that both kinds of store say the same.

Of a Redis, replies are held until the hub has been told all the changes that they are about.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from serve_asgi.hub.state.write_evaluation import AcceptedWrite, StateEntry, WriteRefusal
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


class HeldReplies:
    """By the version of the change that each waits for."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, StoreReply]] = []
        self._count = 0

    def add(self, version: int, answer: StoreReply) -> None:
        """Hold an answer until all changes up to this one have been told."""
        self._count += 1
        heapq.heappush(self._heap, (version, self._count, answer))

    def due(self, version: int) -> Iterator[StoreReply]:
        """All changes up to this one have been told: what may go out, in order; each is taken as it is asked for."""
        while self._heap and self._heap[0][0] <= version:
            yield heapq.heappop(self._heap)[2]

    def announces(self, version: int) -> bool:
        """Whether the change itself is told by an answer that is next."""
        return bool(self._heap) and self._heap[0][0] == version and self._heap[0][2].kind == "store.written"

    def broken_off(self, trouble: str) -> Iterator[StoreReply]:
        """The changes before do not come any more: the answers as they may go out all the same, in order."""
        found, self._heap = sorted(self._heap, key=lambda each: each[:2]), []
        for _, _, answer in found:
            yield _out_of_order(answer, trouble)


def _out_of_order(answer: StoreReply, trouble: str) -> StoreReply:
    """An answer before the changes that it is about: of a write it says no more than that the write may stand."""
    if answer.kind != "store.written":
        return answer
    text = f"Redis had it, but went away before this server had heard of all changes before it: {trouble}"
    return failed("store.write", answer.head, StoreFailure.UNKNOWN, text) or answer
