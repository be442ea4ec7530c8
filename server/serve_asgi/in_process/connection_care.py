"""What a server in process does for its connections: once a second the checks that need no timer of their own, and at
its end the same as a worker that retires with nobody to hand over to.

It owns the deadlines of that end: requests finish within the graceful timeout, then they are cut. Rule: if the program
stood still (a breakpoint, a laptop asleep), nobody is punished for it: what has arrived meanwhile is read first.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Final

from serve_asgi.app.retiring import RetiringFlag
from serve_asgi.http.response_head import default_headers
from serve_asgi.http.worker_context import WorkerContext, WorkerPhase
from serve_asgi.logs.server_log import about
from serve_asgi.worker.deadline_sweep import DeadlineSweep

PERIOD: Final = 1.0
"""Seconds between two ticks: the resolution of all connection timeouts."""
ENDING_PERIOD: Final = 0.05
"""Seconds between two ticks while the connections end."""
STOOD_STILL: Final = 2.0
"""A tick that is later than this (s) checks no deadline: the next one does."""
LINGER: Final = 0.1
"""Seconds that a client has to end its side at the end: it is on this machine, and idle."""
LAST_CALL: Final = 0.8
"""The share of the graceful timeout after which connections that do not end are closed as soon as they are idle."""
CLOSE_TIME: Final = 1.0
"""Seconds for what was cut to be gone."""

log = logging.getLogger("serve")


class ConnectionCare:
    """Of one server."""

    def __init__(self, context: WorkerContext, retiring: RetiringFlag) -> None:
        self._context = context
        self._retiring = retiring
        self._deadlines = DeadlineSweep(context)
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._write_headers()

    def begin(self) -> None:
        """Tick from now on."""
        self._due = self._context.loop.time()
        self._tick()

    def end(self) -> None:
        """Tick no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tick(self) -> None:
        context, now = self._context, self._context.loop.time()
        self._write_headers()
        context.tick()
        if now - self._due < STOOD_STILL:
            self._deadlines.tick(now)
        if context.access_log is not None:
            context.access_log.flush()
        period = PERIOD if context.phase is WorkerPhase.SERVING else ENDING_PERIOD
        self._due = now + period
        self._timer = context.loop.call_at(self._due, self._tick)

    def _write_headers(self) -> None:
        config = self._context.config
        self._context.default_headers = default_headers(time.time(), config.date_header, config.server_header)

    async def end_connections(self) -> None:
        """Finish what is in progress within the graceful timeout, and cut what is left; no new client comes."""
        context, patience = self._context, self._context.config.graceful_timeout
        if self._timer is None:  # it has never served
            return
        context.retire_deadline = context.loop.time() + patience
        context.most_linger = LINGER
        context.phase = WorkerPhase.CLOSING
        context.announce_close = True
        self._retiring.begin("stop")
        self._retire()
        self.end()
        self.begin()
        if not await self._emptied(patience * LAST_CALL):
            context.last_call = True
            self._retire()
            if not await self._emptied(patience * (1 - LAST_CALL)):
                self.cut()
                await self._emptied(CLOSE_TIME)

    def _retire(self) -> None:
        for connection in list(self._context.connections):
            connection.retire()

    async def _emptied(self, patience: float) -> bool:
        """Wait until no connection and no call of the application is left, at most `patience` seconds."""
        try:
            async with asyncio.timeout(patience):
                while self._context.connections or self._context.tasks:
                    await self._changed()
        except TimeoutError:
            return not (self._context.connections or self._context.tasks)
        return True

    async def _changed(self) -> None:
        """Wait until the last connection has gone, or the last call of the application has ended."""
        context = self._context
        if context.connections:
            emptied = asyncio.Event()
            context.emptied = emptied.set
            await emptied.wait()
        else:
            await asyncio.wait(context.tasks)

    def cut(self) -> None:
        """Cut what has not ended, and say so."""
        cut = sum([connection.cut() for connection in list(self._context.connections)])
        behind = [task for task in self._context.tasks if not task.cancelling()]
        for task in behind:
            task.cancel()
        if cut or behind:
            log.warning(
                "cut %d requests that had not ended after %g s (graceful_timeout)",
                *(max(cut, len(behind)), self._context.config.graceful_timeout),
                extra=about("requests_cut", requests=max(cut, len(behind))),
            )
