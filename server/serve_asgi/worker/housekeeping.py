"""Everything that a worker does once per second for all connections, so that none needs a timer.

It renews the Date header (`serve_asgi.http.response_head.default_headers`), writes the row's gauges, flushes the access
log, has the deadlines of connections checked (`serve_asgi.worker.deadline_sweep`) and checks whether the worker is due
for replacement (`serve_asgi.worker.recycling`).
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from typing import Final

import anyio

from serve_asgi.config.options import Config
from serve_asgi.http.response_head import default_headers
from serve_asgi.http.worker_context import WorkerContext, WorkerPhase
from serve_asgi.ipc.scoreboard import Cell
from serve_asgi.worker.deadline_sweep import DeadlineSweep
from serve_asgi.worker.malloc_tuning import MemoryTrimmer
from serve_asgi.worker.recycling import Recycling
from serve_asgi.worker.scoreboard_rows import RowWriter

PERIOD: Final = 1.0
"""Seconds between ticks: the resolution of all connection timeouts."""


class Housekeeping:
    """Ticks for one worker."""

    def __init__(
        self,
        context: WorkerContext,
        config: Config,
        ticked: Callable[[], None],
        want_replacement: Callable[[str, bool], None],
    ) -> None:
        """`ticked` is called at each tick, `want_replacement(reason, too_large)` at most once."""
        self._context = context
        self._config = config
        self._ticked = ticked
        self._want_replacement = want_replacement
        self._wanted = False
        name = config.canary_header
        self._generation_header = f"{name.lower()}: {context.generation}\r\n".encode() if name else b""
        self._deadlines = DeadlineSweep(context)
        self._recycling = Recycling(config, context.cells)
        self._trimmer = MemoryTrimmer()
        self._row = RowWriter(context.cells)
        self.tick()

    async def run(self) -> None:
        """Tick until cancelled."""
        while True:
            due = time.monotonic() + PERIOD
            await anyio.sleep(PERIOD)
            self._row.write_lag(time.monotonic() - due)
            self.tick()

    def tick(self) -> None:
        """Do what is due."""
        context, now = self._context, asyncio.get_running_loop().time()
        config = self._config
        context.default_headers = (
            default_headers(time.time(), config.date_header, config.server_header) + self._generation_header
        )
        context.tick()
        self._write_row()
        self._trimmer.tick(now, context.cells[Cell.RSS])
        self._watch_drain()
        self._ticked()
        self._deadlines.tick(now)
        if context.access_log is not None:
            context.access_log.flush()
        serves = not context.retiring.is_set()  # one that retires or stands by is not replaced
        if not self._wanted and serves and (reason := self._recycling.reason()):
            self._wanted = True
            self._want_replacement(reason, self._recycling.too_large())

    def _write_row(self) -> None:
        cells = self._context.cells
        self._row.write()
        oldest = math.inf
        if cells[Cell.IN_FLIGHT]:
            oldest = min([each.asked_at() for each in self._context.connections], default=math.inf)
        cells[Cell.OLDEST] = int(oldest * 1e9) if oldest < math.inf else 0

    def _watch_drain(self) -> None:
        since = self._context.scoreboard.draining_since
        late = bool(since) and time.monotonic_ns() - since >= self._config.drain_close_after * 1e9
        self._context.announce_close = late or self._context.phase is WorkerPhase.CLOSING
