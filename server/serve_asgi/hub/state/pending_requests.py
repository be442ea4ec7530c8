"""Requests to the shared state that have no reply yet: their deadlines, and the reply that ends each of them.

Which reply that is `serve_asgi.hub.state.shared_state` decides.
"""

from __future__ import annotations

import collections
import dataclasses
import heapq
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from serve_asgi.errors import ChannelError
from serve_asgi.hub.core import Hub, Member

AT_STORE: Final = -1
MAX_PENDING: Final = 1_024
MAX_PENDING_BYTES: Final = 32 * 1024 * 1024
"""Requests of one process that have no reply yet, and the bytes of the values in their replies: four times the window
of `serve_asgi.app.state_requests`, and twice what that holds of the largest usual values."""


@dataclasses.dataclass(slots=True, eq=False)
class PendingRequest:
    """A write or a read. Times are the hub's clock."""

    number: int
    started: float
    deadline: float
    member: Member | None = None  # the requester; None for the hub itself
    id: int = 0  # the requester's number for it
    on_done: Callable[[str], None] | None = None
    seq: int = AT_STORE  # the reply waits until this many changes are applied
    version: int = 0
    value: bytes = b""  # of the reply
    for_operator: bool = False  # it has no member, and its reply waits for the processes all the same


class PendingRequests:
    """Those of one hub, by number."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._last_number = 0
        self._open: dict[int, PendingRequest] = {}
        self._by_member: collections.Counter[int] = collections.Counter()
        self._value_bytes: collections.Counter[int] = collections.Counter()
        self._deadlines: list[tuple[float, int]] = []  # a heap; of closed ones as well

    def open(
        self,
        now: float,
        timeout: float,
        member: Member | None = None,
        id: int = 0,
        on_done: Callable[[str], None] | None = None,
    ) -> PendingRequest:
        """Open a request with a reply due within `timeout` s. Raises ChannelError if a process ignores its window."""
        self._last_number += 1
        request = PendingRequest(self._last_number, now, now + max(0.0, timeout), member, id, on_done)
        self._add(request)
        return request

    def set_value(self, request: PendingRequest, value: bytes) -> None:
        """Set the value of the reply. Raises ChannelError if too much waits for a process."""
        if request.member is not None and request.number in self._open:
            self._value_bytes[request.member.id] += len(value) - len(request.value)
            if self._value_bytes[request.member.id] > MAX_PENDING_BYTES:
                raise ChannelError(f"writes of {MAX_PENDING_BYTES} bytes that are not answered: it ignores its window")
        request.value = value

    def _add(self, request: PendingRequest) -> None:
        self._open[request.number] = request
        if request.member is not None:
            self._by_member[request.member.id] += 1
            self._value_bytes[request.member.id] += len(request.value)
            if self._by_member[request.member.id] > MAX_PENDING:
                raise ChannelError(
                    f"{MAX_PENDING} questions about the state that are not answered: it ignores its window"
                )
        if len(self._deadlines) > 2 * len(self._open) + 64:
            self._deadlines = [(each.deadline, each.number) for each in self._open.values()]
            heapq.heapify(self._deadlines)
        else:
            heapq.heappush(self._deadlines, (request.deadline, request.number))

    def succeed(self, request: PendingRequest) -> None:
        """Reply that it is done, with the version and value of the request."""
        self._close(request)
        if request.on_done is not None:
            request.on_done("")
        elif request.member is not None:
            self._hub.send(request.member, "state.done", {"id": request.id, "version": request.version}, request.value)

    def fail(
        self, request: PendingRequest, code: str, text: str, version: int = 0, value: bytes = b"", **more: Any
    ) -> None:
        """Reply with an error: a code, a sentence, and the present version and value of the key."""
        self._close(request)
        if request.on_done is not None:
            request.on_done(text)
        elif request.member is not None:
            head = {"id": request.id, "code": code, "text": text, "version": version, **more}
            self._hub.send(request.member, "state.failed", head, value)

    def _close(self, request: PendingRequest) -> None:
        del self._open[request.number]
        if request.member is not None:
            self._by_member[request.member.id] -= 1
            self._value_bytes[request.member.id] -= len(request.value)

    def get(self, number: int) -> PendingRequest | None:
        """An open request."""
        return self._open.get(number)

    def __contains__(self, request: PendingRequest) -> bool:
        return request.number in self._open

    def at_store(self) -> list[PendingRequest]:
        """The requests that wait for the store."""
        return [request for request in self._open.values() if request.seq == AT_STORE]

    def forget(self, member: Member) -> None:
        """A member is gone: nobody waits for its replies."""
        self._open = {number: request for number, request in self._open.items() if request.member is not member}
        self._by_member.pop(member.id, None)
        self._value_bytes.pop(member.id, None)

    def deadline(self) -> float:
        """The earliest, or infinity."""
        while self._deadlines and self._deadlines[0][1] not in self._open:
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else math.inf

    def due(self, now: float) -> Iterator[PendingRequest]:
        """The requests whose deadlines have passed; the caller must reply to each."""
        while self.deadline() <= now:
            yield self._open[heapq.heappop(self._deadlines)[1]]

    def to_state(self) -> list[Any]:
        """All but the hub's own requests."""
        requests = [
            [
                request.number,
                request.started,
                request.deadline,
                request.member.id,
                request.id,
                request.seq,
                request.version,
                request.value,
            ]
            for request in self._open.values()
            if request.member is not None
        ]
        return [self._last_number, requests]

    def load(self, state: list[Any], members: dict[int, Member]) -> Iterable[PendingRequest]:
        """The reverse; return those that wait for processes, in the order of `seq`."""
        self._last_number, requests = state
        for number, started, deadline, member, id, seq, version, value in requests:
            if member in members:
                self._add(PendingRequest(number, started, deadline, members[member], id, None, seq, version, value))
        waiting = [request for request in self._open.values() if request.seq != AT_STORE]
        return sorted(waiting, key=lambda request: request.seq)
