"""The worker's second hand: everything that is done once per second for all connections, so that none needs a timer.

It keeps the date header, compares deadlines, writes the row's gauges, flushes the access log and notices when the
worker is due for replacement.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import random
import resource
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from typing import Final

import anyio

from serve_asgi.config.options import Config
from serve_asgi.http.worker_context import Connection, Phase, Service
from serve_asgi.ipc.scoreboard import Cell
from serve_asgi.logs.server_log import about
from serve_asgi.worker.malloc_tuning import MemoryTrimmer
from serve_asgi.worker.scoreboard_rows import RowWriter

PERIOD: Final = 1.0
"""Seconds between ticks: the resolution of every timeout of a connection."""
LOOK_ANYWAY: Final = 10
"""Quiet ticks after which all deadlines are compared nevertheless."""
AT_ONCE: Final = 8
"""Connections that are ended in one turn of the loop."""
MIB: Final = 1024 * 1024
log = logging.getLogger("serve")


class Housekeeping:
    """Ticks for one service."""

    def __init__(
        self, service: Service, config: Config, ticked: Callable[[], None], want_replacement: Callable[[str], None]
    ) -> None:
        """`ticked` is called at each tick, `want_replacement(reason)` at most once."""
        self._service = service
        self._config = config
        self._ticked = ticked
        self._want_replacement = want_replacement
        self._wanted = False
        self._soonest = 0.0  # the first deadline, when all connections were last looked at
        self._unseen = 0  # ticks since
        self._seen = (0, 0, 0, 0)
        self._max_requests = config.max_requests and config.max_requests + random.randint(0, config.max_requests_jitter)
        self._end_of_life = time.monotonic() + config.max_lifetime * random.uniform(0.9, 1.0)
        self._trimmer = MemoryTrimmer()
        self._row = RowWriter(service.cells)
        self.tick()

    async def run(self) -> None:
        """Tick until cancelled."""
        while True:
            due = time.monotonic() + PERIOD
            await anyio.sleep(PERIOD)
            self._row.write_lag(time.monotonic() - due)
            self.tick()

    def tick(self) -> None:
        """Do all that is due."""
        service, now = self._service, asyncio.get_running_loop().time()
        service.default_headers = self._headers()
        service.tick()
        self._write_row()
        self._trimmer.tick(now, service.cells[Cell.RSS])
        self._watch_drain()
        self._ticked()
        self._expire(now)
        if service.access_log is not None:
            service.access_log.flush()
        if not self._wanted and (reason := self._worn_out()):
            self._wanted = True
            self._want_replacement(reason)

    def _expire(self, now: float) -> None:
        """End what is due. All connections are looked at, unless nothing has happened that could change deadlines."""
        connections = self._service.connections
        if self._quiet() and now < self._soonest and self._unseen < LOOK_ANYWAY:
            self._unseen += 1
            return
        self._unseen = 0
        self._end(iter([each for each in connections if each.deadline <= now]))
        self._soonest = min([each.deadline for each in connections], default=math.inf)

    def _end(self, due: Iterator[Connection]) -> None:
        """End what is due, a few in each turn of the loop: thousands at once would keep everybody else waiting."""
        loop = asyncio.get_running_loop()
        some = list(itertools.islice(due, AT_ONCE))
        for connection in some:
            if connection.deadline > loop.time():
                continue  # something has happened to it meanwhile
            try:
                connection.expire()
            except Exception:
                log.exception("a connection could not be closed at its deadline", extra=about("internal_error"))
        if len(some) == AT_ONCE:
            loop.call_soon(self._end, due)

    def _quiet(self) -> bool:
        """Whether the loop has (as good as surely) done nothing since the last tick but wait for this one.

        A thread that has gone to sleep once has woken once (getrusage(2), ru_nvcsw). What came at the very moment of
        the tick is not seen like this, but at LOOK_ANYWAY.
        """
        cells, before = self._service.cells, self._seen
        sleeps = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
        self._seen = (sleeps, cells[Cell.ACCEPTED], cells[Cell.REQUESTS], cells[Cell.CONNECTIONS])
        return sleeps <= before[0] + 1 and self._seen[1:] == before[1:] and self._service.phase is Phase.SERVING

    def _headers(self) -> bytes:
        lines = []
        if self._config.date_header:
            lines.append(f"date: {formatdate(usegmt=True)}\r\n")
        if self._config.server_header:
            lines.append("server: serve\r\n")
        return "".join(lines).encode()

    def _write_row(self) -> None:
        cells = self._service.cells
        self._row.write()
        oldest = math.inf
        if cells[Cell.IN_FLIGHT]:
            oldest = min([each.asked_at() for each in self._service.connections], default=math.inf)
        cells[Cell.OLDEST] = int(oldest * 1e9) if oldest < math.inf else 0

    def _watch_drain(self) -> None:
        since = self._service.scoreboard.draining_since
        late = bool(since) and time.monotonic_ns() - since >= self._config.drain_close_after * 1e9
        self._service.close_answers = late or self._service.phase is Phase.CLOSING

    def _worn_out(self) -> str:
        """Why this worker should be replaced, or nothing."""
        config, cells = self._config, self._service.cells
        if self._max_requests and cells[Cell.REQUESTS] >= self._max_requests:
            return f"it has served {cells[Cell.REQUESTS]} requests (--max-requests)"
        if config.max_lifetime and time.monotonic() >= self._end_of_life:
            return f"its lifetime is over (--max-lifetime {config.max_lifetime:g})"
        if config.max_rss and cells[Cell.RSS] > config.max_rss * MIB:
            return f"it uses {cells[Cell.RSS] // MIB} MiB of memory (--max-rss {config.max_rss})"
        return ""
