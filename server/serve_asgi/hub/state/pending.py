"""What has been asked of the shared state and not been answered yet, and until when it has to be."""

from __future__ import annotations

import collections
import dataclasses
import heapq
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from serve_asgi.errors import ChannelError
from serve_asgi.hub.core import Member

AT_STORE: Final = -1
MAX_PENDING: Final = 1_024
MAX_PENDING_BYTES: Final = 32 * 1024 * 1024
"""What one process has asked and has not been answered, and the bytes of the values that wait for it: four times the
window of `serve_asgi.app.shared`, and twice what that may hold of the largest values that are usual."""


@dataclasses.dataclass(slots=True, eq=False)
class PendingRequest:
    """A write or a reading. Times are the hub's clock."""

    number: int
    begun: float
    deadline: float
    member: Member | None = None  # who asked; None: the hub itself
    id: int = 0  # the asker's number for it
    then: Callable[[str], None] | None = None
    seq: int = AT_STORE  # wait until so many changes are applied
    version: int = 0
    value: bytes = b""  # of the answer


class PendingRequests:
    """Those that are open, by number. An ask is answered by whoever closes it."""

    def __init__(self) -> None:
        self._number = 0
        self._open: dict[int, PendingRequest] = {}
        self._by_member: collections.Counter[int] = collections.Counter()
        self._kept: collections.Counter[int] = collections.Counter()
        self._deadlines: list[tuple[float, int]] = []  # a heap; of closed ones as well

    def open(
        self,
        now: float,
        timeout: float,
        member: Member | None = None,
        id: int = 0,
        then: Callable[[str], None] | None = None,
    ) -> PendingRequest:
        """A new one, to be answered within `timeout` s. Raises ChannelError for a process that ignores its window."""
        self._number += 1
        ask = PendingRequest(self._number, now, now + max(0.0, timeout), member, id, then)
        self._add(ask)
        return ask

    def keep(self, ask: PendingRequest, value: bytes) -> None:
        """Its answer is to have this value. Raises ChannelError if too much waits for a process."""
        if ask.member is not None and ask.number in self._open:
            self._kept[ask.member.id] += len(value) - len(ask.value)
            if self._kept[ask.member.id] > MAX_PENDING_BYTES:
                raise ChannelError(f"writes of {MAX_PENDING_BYTES} bytes that are not answered: it ignores its window")
        ask.value = value

    def _add(self, ask: PendingRequest) -> None:
        self._open[ask.number] = ask
        if ask.member is not None:
            self._by_member[ask.member.id] += 1
            self._kept[ask.member.id] += len(ask.value)
            if self._by_member[ask.member.id] > MAX_PENDING:
                raise ChannelError(
                    f"{MAX_PENDING} questions about the state that are not answered: it ignores its window"
                )
        if len(self._deadlines) > 2 * len(self._open) + 64:
            self._deadlines = [(each.deadline, each.number) for each in self._open.values()]
            heapq.heapify(self._deadlines)
        else:
            heapq.heappush(self._deadlines, (ask.deadline, ask.number))

    def close(self, ask: PendingRequest) -> None:
        """It is answered."""
        del self._open[ask.number]
        if ask.member is not None:
            self._by_member[ask.member.id] -= 1
            self._kept[ask.member.id] -= len(ask.value)

    def get(self, number: int) -> PendingRequest | None:
        """An open one."""
        return self._open.get(number)

    def __contains__(self, ask: PendingRequest) -> bool:
        return ask.number in self._open

    def with_store(self) -> list[PendingRequest]:
        """Those that the store has to answer."""
        return [ask for ask in self._open.values() if ask.seq == AT_STORE]

    def forget(self, member: Member) -> None:
        """Nobody is there any more to be answered."""
        self._open = {number: ask for number, ask in self._open.items() if ask.member is not member}
        self._by_member.pop(member.id, None)
        self._kept.pop(member.id, None)

    def deadline(self) -> float:
        """The earliest, or infinity."""
        while self._deadlines and self._deadlines[0][1] not in self._open:
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else math.inf

    def due(self, now: float) -> Iterator[PendingRequest]:
        """Those whose deadlines have passed; the caller answers each."""
        while self.deadline() <= now:
            yield self._open[heapq.heappop(self._deadlines)[1]]

    def to_state(self) -> list[Any]:
        """All but the hub's own, as MessagePack can hold them."""
        asks = [
            [ask.number, ask.begun, ask.deadline, ask.member.id, ask.id, ask.seq, ask.version, ask.value]
            for ask in self._open.values()
            if ask.member is not None
        ]
        return [self._number, asks]

    def load(self, state: list[Any], members: dict[int, Member]) -> Iterable[PendingRequest]:
        """The reverse; returns those that wait for processes, in order of `seq`."""
        self._number, asks = state
        for number, begun, deadline, member, id, seq, version, value in asks:
            if member in members:
                self._add(PendingRequest(number, begun, deadline, members[member], id, None, seq, version, value))
        waiting = [ask for ask in self._open.values() if ask.seq != AT_STORE]
        return sorted(waiting, key=lambda ask: ask.seq)
