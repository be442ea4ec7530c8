"""Whether the client of a WebSocket takes what is written to it: back-pressure, the write timeout, pongs that wait.

It owns who waits until the transport takes more, and the deadline at which a client that takes nothing is cut. Rules: a
client that takes anything, be it slowly, is not cut; while the transport is full only the latest pongs are kept (RFC
6455 5.5.3). It must not know states or frames, nor how a connection ends. The transport is given with each call.
"""

from __future__ import annotations

import asyncio
import math

from serve_asgi.http.client_socket import unacknowledged
from serve_asgi.websocket.receive_queue import wait, wake


class WriteFlow:
    """Of one connection. While it is `paused`, who writes is to wait."""

    __slots__ = ("_loop", "_unsent", "_waiters", "deadline", "paused", "pongs")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.paused = False
        """The transport has more to write than it likes."""
        self.deadline = math.inf
        """While it is paused: the loop time (s) at which the client must have taken something."""
        self.pongs = b""
        """What waits to be written until the transport has caught up."""
        self._unsent = 0
        """What the client had not taken when it was last looked at."""
        self._waiters: list[asyncio.Future[None]] = []

    def watch(self, transport: asyncio.Transport, deadline: float) -> None:
        """From now on the client is watched: it must take something until the deadline."""
        self.look(transport)
        self.deadline = deadline

    def caught_up(self) -> None:
        """The transport has caught up, and nobody waits any more."""
        self.deadline = math.inf
        self.wake()

    def wake(self) -> None:
        """Let those who wait look again."""
        wake(self._waiters)

    async def wait(self) -> None:
        """Wait until `wake` is called."""
        await wait(self._loop, self._waiters)

    def look(self, transport: asyncio.Transport) -> None:
        """Remember what the client has not taken yet, to be compared with later."""
        self._unsent = unacknowledged(transport)

    def is_behind(self, transport: asyncio.Transport) -> bool:
        """Whether the client still takes what was written before the last look, and has taken some; looks."""
        unsent, before = unacknowledged(transport), self._unsent
        if not self.paused:
            self._unsent = unsent
        return 0 < unsent < before

    def has_changed(self, transport: asyncio.Transport) -> bool:
        """Whether some is not taken yet, and it is not what it was at the last look; looks."""
        unsent, before = unacknowledged(transport), self._unsent
        self._unsent = unsent
        return unsent != 0 and unsent != before

    def is_stalled(self, transport: asyncio.Transport, now: float, timeout: float) -> bool:
        """Whether the client has taken nothing for too long; if it has taken some, it has `timeout` (s) for more."""
        if now < self.deadline:
            return False
        unsent = unacknowledged(transport)
        if unsent < self._unsent:
            self._unsent = unsent
            self.deadline = now + timeout
            return False
        return True
