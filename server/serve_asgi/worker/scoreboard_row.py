"""What a process writes into its row of the scoreboard once per second, whatever else it does."""

from __future__ import annotations

import collections
import os
import resource
import time
from typing import Final

from serve_asgi.ipc.scoreboard import Cell
from serve_asgi.logs import sink

LAGS: Final = 10
"""Ticks of which the worst lag is told."""
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


class RowWriter:
    """The row's owner's hand on it."""

    def __init__(self, cells: memoryview) -> None:
        self._cells = cells
        self._lags: collections.deque[int] = collections.deque(maxlen=LAGS)
        try:
            self._statm = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)  # kept: there may be none left later
        except OSError:
            self._statm = -1  # /proc is not there

    def write(self) -> None:
        """That it lives, and what it uses."""
        cells = self._cells
        cells[Cell.HEARTBEAT] = time.monotonic_ns()
        cells[Cell.DROPPED_OUTPUT] = sink.dropped()
        cells[Cell.RSS] = self._resident()
        cells[Cell.CPU] = time.process_time_ns()

    def _resident(self) -> int:
        """Bytes of memory that it takes; without /proc the most that it has ever taken (getrusage(2))."""
        if self._statm < 0:
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return int(os.pread(self._statm, 100, 0).split()[1]) * _PAGE

    def write_lag(self, seconds: float) -> None:
        """How late the loop came to this tick: what everybody else has waited as well."""
        cells, lag = self._cells, max(0, int(seconds * 1e9))
        self._lags.append(lag)
        cells[Cell.LAG], cells[Cell.LAG_WORST] = lag, max(self._lags)
        cells[Cell.LAG_TOTAL] += lag
