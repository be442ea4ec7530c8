"""Checks the deadlines of this worker's connections once per second, so that no connection needs a timer.

Each connection sets its own deadline (the keep-alive timeout, the time for a head or a body, a client that does not
read, pings); this module only checks them, and how long requests take in all (`--request-timeout`). Thousands that are
due at once do not block the loop.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import sys
from collections.abc import Iterator
from typing import Any, Final

if sys.platform == "linux":
    import resource
else:  # where nothing uses it
    resource: Any = None

from serve_asgi.http.request_timeouts import RequestTimeouts
from serve_asgi.http.worker_context import ClientConnection, WorkerContext, WorkerPhase
from serve_asgi.ipc.scoreboard import Cell
from serve_asgi.logs.server_log import about

LOOK_ANYWAY: Final = 10
"""Quiet ticks after which all deadlines are checked nevertheless."""
AT_ONCE: Final = 8
"""Connections that are closed in one turn of the loop."""
log = logging.getLogger("serve")


class DeadlineSweep:
    """The deadlines of one worker."""

    def __init__(self, context: WorkerContext) -> None:
        self._context = context
        rules = context.config.request_timeout
        self._request_timeouts = RequestTimeouts(rules) if rules else None
        self._soonest = 0.0  # the earliest deadline at the last full check
        self._unseen = 0  # ticks since then
        self._seen = (0, 0, 0, 0)

    def tick(self, now: float) -> None:
        """Close what is due. Checks all connections, unless nothing has happened that could have changed a deadline."""
        connections = self._context.connections
        if self._request_timeouts is not None:
            self._request_timeouts.sweep(connections)
        if self._quiet() and now < self._soonest and self._unseen < LOOK_ANYWAY:
            self._unseen += 1
            return
        self._unseen = 0
        self._end(iter([each for each in connections if each.deadline <= now]))
        self._soonest = min([each.deadline for each in connections], default=math.inf)

    def _end(self, due: Iterator[ClientConnection]) -> None:
        """Close what is due, a few in each turn of the loop: thousands at once would delay all others."""
        loop = asyncio.get_running_loop()
        some = list(itertools.islice(due, AT_ONCE))
        for connection in some:
            if connection.deadline > loop.time():
                continue  # its deadline has changed meanwhile
            try:
                connection.expire()
            except Exception:
                log.exception("a connection could not be closed at its deadline", extra=about("internal_error"))
        if len(some) == AT_ONCE:
            loop.call_soon(self._end, due)

    def _quiet(self) -> bool:
        """Whether the loop has (almost certainly) done nothing since the last tick but wait for this one.

        A thread that has slept once has been woken once (getrusage(2), ru_nvcsw). What arrives at the very moment of
        the tick goes unnoticed until LOOK_ANYWAY.
        """
        if sys.platform != "linux":
            return False
        cells, before = self._context.cells, self._seen
        sleeps = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
        self._seen = (sleeps, cells[Cell.ACCEPTED], cells[Cell.REQUESTS], cells[Cell.CONNECTIONS])
        return sleeps <= before[0] + 1 and self._seen[1:] == before[1:] and self._context.phase is WorkerPhase.SERVING
