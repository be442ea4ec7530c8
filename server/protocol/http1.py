"""HTTP/1.1 on one client connection."""

from __future__ import annotations

import asyncio
import math

from server.protocol.service import Address, Service
from server.protocol.travel import TravelRecord


class Http1Connection(asyncio.Protocol):
    """One client connection; see `server.protocol.service.Connection` for what the worker asks of it.

    With a `record` it goes on where another worker left: addresses, deadline, number of requests and leftover bytes are the
    record's, and the leftover is processed as soon as the transport is attached.
    """

    __slots__ = ("client", "deadline", "requests", "server", "service")

    def __init__(self, service: Service, record: TravelRecord | None = None) -> None:
        self.service = service
        self.deadline = math.inf
        self.client: Address = None
        self.server: Address = None
        self.requests = 0

    def expire(self) -> None:
        """The deadline has passed."""
        raise NotImplementedError

    def retire(self) -> None:
        """The worker's phase has left SERVING: leave as soon as that loses nothing."""
        raise NotImplementedError

    def can_leave(self) -> bool:
        """Whether `leave()` is possible now: no request in progress, nothing unflushed, not closing."""
        raise NotImplementedError

    def leave(self) -> tuple[int, TravelRecord]:
        """Stop reading and writing and return a duplicate of the descriptor (the caller owns it) and the record.

        Only while `can_leave()`; the worker then calls `stay()` or `gone()`.
        """
        raise NotImplementedError

    def stay(self) -> None:
        """The hand-over failed: go on exactly as before."""
        raise NotImplementedError

    def gone(self) -> None:
        """The hand-over is committed: drop this end; the client sees nothing."""
        raise NotImplementedError

    def cut(self) -> bool:
        """The hammer: end at once, cancelling the application's task. True if something unfinished was cut."""
        raise NotImplementedError
