"""Answers of a Redis that wait until the hub has been told all changes that they are about. Values alone."""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from serve_asgi.ipc.store_frames import StoreFailure
from serve_asgi.store import answers
from serve_asgi.store.answers import StoreReply


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

    def tells(self, version: int) -> bool:
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
    return answers.failed("store.write", answer.head, StoreFailure.UNKNOWN, text) or answer
