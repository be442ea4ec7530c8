"""The worker's second hand: everything that is done once per second for all connections, so that none needs a timer.

It keeps the date header, compares deadlines, writes the row's gauges, flushes the access log and notices when the
worker is due for replacement.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from collections.abc import Callable
from email.utils import formatdate
from typing import Final

import anyio

from server import output
from server.config import Config
from server.protocol.service import Phase, Service
from server.scoreboard import Cell

PERIOD: Final = 1.0
"""Seconds between ticks: the resolution of every timeout of a connection."""
MIB: Final = 1024 * 1024
log = logging.getLogger("serve")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


class Ticker:
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
        self._max_requests = config.max_requests and config.max_requests + random.randint(0, config.max_requests_jitter)
        self._end_of_life = time.monotonic() + config.max_lifetime * random.uniform(0.9, 1.0)
        self._statm = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)  # kept: there may be none left later
        self.tick()

    async def run(self) -> None:
        """Tick until cancelled."""
        while True:
            await anyio.sleep(PERIOD)
            self.tick()

    def tick(self) -> None:
        """Do all that is due."""
        service, now = self._service, asyncio.get_running_loop().time()
        service.default_headers = self._headers()
        service.tick()
        self._write_gauges()
        self._watch_lame_duck()
        self._ticked()
        for connection in [each for each in service.connections if each.deadline <= now]:
            try:
                connection.expire()
            except Exception:
                log.exception("a connection could not be ended at its deadline")
        if service.access_log is not None:
            service.access_log.flush()
        if not self._wanted and (reason := self._worn_out()):
            self._wanted = True
            self._want_replacement(reason)

    def _headers(self) -> bytes:
        lines = []
        if self._config.date_header:
            lines.append(f"date: {formatdate(usegmt=True)}\r\n")
        if self._config.server_header:
            lines.append("server: serve\r\n")
        return "".join(lines).encode()

    def _write_gauges(self) -> None:
        cells = self._service.cells
        cells[Cell.HEARTBEAT] = time.monotonic_ns()
        cells[Cell.DROPPED_OUTPUT] = output.dropped()
        cells[Cell.RSS] = int(os.pread(self._statm, 100, 0).split()[1]) * _PAGE

    def _watch_lame_duck(self) -> None:
        since = self._service.scoreboard.lame_duck
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
