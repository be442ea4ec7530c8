"""Responses that are written together: those to requests that one poll of the sockets has brought.

A client that gets a response is woken by it, and waking a process on another core is most of what a small write costs
in the kernel. Clients of one server are few (a proxy in front of it, as a rule), so that responses that go out directly
after each other wake one of them once. Rules: a response to a request that came alone waits for nothing but the end of
the loop's turn; none waits for others longer than `PATIENCE` and the time of the request that is being served; where
requests take longer than that, responses do not wait for each other at all.
"""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import Final

PATIENCE: Final = 0.0005
"""Seconds that a response may wait while further ones are made."""

SLOW: Final = 1.0
"""Seconds for which responses are written at once after a request that kept the others waiting for longer."""

_PATIENCE: Final = PATIENCE
_SLOW: Final = SLOW


class Holder:
    """Something that holds bytes back."""

    __slots__ = ()

    def flush(self) -> None:
        """Write them."""
        raise NotImplementedError


class WriteBatch:
    """Who holds a response until the loop's turn ends. One object per worker."""

    __slots__ = ("_at_once_until", "_due", "_end", "_last", "_loop", "_waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: list[Holder] = []
        self._end = self.end  # a method is made anew each time that it is asked for
        self._due = 0.0  # times are time.perf_counter()'s, s
        self._last = 0.0
        self._at_once_until = 0.0

    def add(self, holder: Holder) -> None:
        """`flush` is called soon, or at once."""
        now = perf_counter()
        waiting = self._waiting
        if waiting:
            waiting.append(holder)
            if now - self._last > _PATIENCE:
                self._at_once_until = now + _SLOW
                self.end()
            elif now > self._due:
                self.end()
        elif now < self._at_once_until:
            holder.flush()
        else:
            waiting.append(holder)
            self._due = now + _PATIENCE
            self._loop.call_soon(self._end)
        self._last = now

    def end(self) -> None:
        """Write everything."""
        waiting, self._waiting = self._waiting, []
        for holder in waiting:
            holder.flush()
