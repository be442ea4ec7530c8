"""The frames of the store process, each made in one place, so that both kinds of store send the same.

Replies of a Redis are held until all the changes that they depend on have gone to the hub.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from serve_asgi.hub.state.write_evaluation import AcceptedWrite, StateEntry, WriteRefusal
from serve_asgi.ipc.frames import pack_value, unpack_value
from serve_asgi.ipc.store_frames import SNAPSHOT_FRAME_SIZE, GrantRefusal, StoreFailure
from serve_asgi.ipc.work_frames import TOPICS_PER_FRAME, WorkOutcome


class StoreReply(NamedTuple):
    """One frame to the hub."""

    kind: str
    head: dict[str, Any]
    body: bytes = b""


def written(id: Any, change: AcceptedWrite) -> StoreReply:
    """A write of the hub stands."""
    return StoreReply("store.written", {"id": id, **_of(change)}, change.value or b"")


def changed(change: AcceptedWrite) -> StoreReply:
    """A change by another server."""
    return StoreReply("store.change", _of(change), change.value or b"")


def refused(id: Any, why: WriteRefusal) -> StoreReply:
    """A write was refused, and has changed nothing."""
    head = {"id": id, "code": why.code.value, "text": why.text, "version": why.version, "exists": why.version > 0}
    return StoreReply("store.refused", head, why.value)


def value(id: Any, key: str, entry: StateEntry | None) -> StoreReply:
    """The entry of a key."""
    version, body = entry if entry is not None else (0, b"")
    return StoreReply("store.value", {"id": id, "key": key, "version": version, "exists": entry is not None}, body)


def failed(kind: str, head: dict[str, Any], why: StoreFailure, text: str) -> StoreReply | None:
    """The failure reply to a frame; None if nobody waits for a reply to it."""
    match kind:
        case "store.write" | "store.read":
            return StoreReply("store.refused", {"id": head["id"], "code": why.value, "text": text, "version": 0})
        case "store.send" | "store.post":
            return StoreReply("store.unsent", {"id": head["id"], "code": why.value, "text": text})
        case "store.grant":
            return taken(head["id"], GrantRefusal.TROUBLE, text)
        case "store.withdraw":
            return StoreReply("store.withdrawn", {"id": head["id"], "found": False})
        case "store.settle":
            return StoreReply("store.unsettled", {"id": head["id"]})
    return None


def taken(id: Any, why: GrantRefusal, text: str) -> StoreReply:
    """A tick is not granted."""
    return StoreReply("store.taken", {"id": id, "why": why.value, "text": text})


def granted(id: Any, token: int, renewed_until: float) -> StoreReply:
    """A tick is granted to this server."""
    return StoreReply("store.granted", {"id": id, "token": token, "renewed_until": renewed_until})


def renewed(name: str, token: int, renewed_until: float) -> StoreReply:
    """A lease has been renewed."""
    return StoreReply("store.renewed", {"name": name, "token": token, "renewed_until": renewed_until})


def lost(name: str, token: int, text: str) -> StoreReply:
    """A lease is lost."""
    return StoreReply("store.lost", {"name": name, "token": token, "text": text})


def outcome(key: str, outcome: str, value: bytes) -> StoreReply:
    """What has become of work that this server has sent; `value` is packed."""
    name = "by" if outcome == WorkOutcome.HANDLED.value else "text"
    return StoreReply("store.outcome", {"id": key, "outcome": outcome, name: unpack_value(value)})


def queue_full(topic: str, waiting: int) -> str:
    """Why work is not queued."""
    return f"{waiting} messages of topic {topic!r} wait for a worker of the fleet already"


def topics(names: Sequence[str], *, fresh: bool) -> Iterator[StoreReply]:
    """Topics of the fleet; if `fresh`, there is at least one piece, and the first is marked."""
    for start in range(0, max(len(names), fresh), TOPICS_PER_FRAME):
        piece = list(names[start : start + TOPICS_PER_FRAME])
        yield StoreReply("store.topics", {"topics": piece, "fresh": fresh and not start})


def snapshot(entries: Iterable[tuple[str, StateEntry]]) -> Iterator[StoreReply]:
    """The whole state, in at least one piece; the first one is marked."""
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
    """Replies that wait for changes, by the version of the change."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, StoreReply]] = []
        self._count = 0

    def add(self, version: int, answer: StoreReply) -> None:
        """Hold a reply until all changes up to this one have gone to the hub."""
        self._count += 1
        heapq.heappush(self._heap, (version, self._count, answer))

    def due(self, version: int) -> Iterator[StoreReply]:
        """All changes up to this one have gone to the hub: yield the replies that are free now, in order."""
        while self._heap and self._heap[0][0] <= version:
            yield heapq.heappop(self._heap)[2]

    def announces(self, version: int) -> bool:
        """Whether the next reply contains the change itself."""
        return bool(self._heap) and self._heap[0][0] == version and self._heap[0][2].kind == "store.written"

    def broken_off(self, trouble: str) -> Iterator[StoreReply]:
        """The changes will not come: yield the replies in the form in which they may be sent without them, in order."""
        found, self._heap = sorted(self._heap, key=lambda each: each[:2]), []
        for _, _, answer in found:
            yield _out_of_order(answer, trouble)


def _out_of_order(answer: StoreReply, trouble: str) -> StoreReply:
    """A reply without the changes it depends on: for a write, that it is not known whether the write stands."""
    if answer.kind != "store.written":
        return answer
    text = f"Redis had it, but went away before this server had heard of all changes before it: {trouble}"
    return failed("store.write", answer.head, StoreFailure.UNKNOWN, text) or answer
