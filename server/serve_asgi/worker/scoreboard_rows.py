"""A worker's access to the scoreboard: its own row, which only it writes, and those of the others.

The listener introduces the others: to a worker that begins to serve all that already do, and it to those of its
generation. Missing rows, for example when descriptors have run out, only make the balance less even. The contents of
another's row are not trusted: a worker may write anything there.
"""

from __future__ import annotations

import collections
import contextlib
import os
import resource
import time
from collections.abc import Iterator
from typing import Final

from serve_asgi.ipc.scoreboard import MOST_AT_ONCE, Cell, RowOwner, Scoreboard, mapped
from serve_asgi.logs import nonblocking_sink

LAGS: Final = 10
"""Ticks of which the worst lag is reported."""
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


class RowWriter:
    """Writes what every process reports once per second."""

    def __init__(self, cells: memoryview) -> None:
        self._cells = cells
        self._lags: collections.deque[int] = collections.deque(maxlen=LAGS)
        try:
            self._statm = os.open(
                "/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC
            )  # kept open: there may be no descriptor left later
        except OSError:
            self._statm = -1  # there is no /proc

    def write(self) -> None:
        """Write the heartbeat, CPU time and memory."""
        cells = self._cells
        cells[Cell.HEARTBEAT] = time.monotonic_ns()
        cells[Cell.DROPPED_OUTPUT] = nonblocking_sink.dropped()
        cells[Cell.RSS] = self._resident()
        cells[Cell.CPU] = time.process_time_ns()

    def _resident(self) -> int:
        """Resident memory in bytes; without /proc the maximum so far (getrusage(2))."""
        if self._statm < 0:
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return int(os.pread(self._statm, 100, 0).split()[1]) * _PAGE

    def write_lag(self, seconds: float) -> None:
        """Write how late this tick was, which is how long everything else has waited, too."""
        cells, lag = self._cells, max(0, int(seconds * 1e9))
        self._lags.append(lag)
        cells[Cell.LAG], cells[Cell.LAG_WORST] = lag, max(self._lags)
        cells[Cell.LAG_TOTAL] += lag


class OtherWorkers:
    """This worker's row and those of the others."""

    __slots__ = ("_rows", "_scoreboard", "own")

    def __init__(self, scoreboard: Scoreboard, own: memoryview) -> None:
        """`own` is the row of this process."""
        self.own = own
        self._scoreboard = scoreboard
        self._rows: dict[int, tuple[int, memoryview]] = {}

    def add(self, index: int, serial: int, row: int) -> None:
        """Add the process `serial` at `index`; `row` is a descriptor of its row, and taken over."""
        self._forget_the_dead()
        with contextlib.suppress(OSError):  # EMFILE
            self._rows[index] = serial, mapped(row)

    def accepting(self, generation: int | None = None) -> list[int]:
        """The number of connections of each other worker (of this generation) that accepts clients."""
        return [
            min(row[Cell.CONNECTIONS], MOST_AT_ONCE)
            for place, row in self._living()
            if row[Cell.ACCEPTS] and generation in (None, place[RowOwner.GENERATION])
        ]

    def served(self, generation: int) -> list[int]:
        """The number of requests that each other worker of this generation has answered."""
        return [row[Cell.REQUESTS] for place, row in self._living() if place[RowOwner.GENERATION] == generation]

    def accepted(self) -> dict[int, int]:
        """How many connections each other worker has accepted, by the serial number of its process."""
        return {serial: row[Cell.ACCEPTED] for _, (serial, row) in self._living_rows()}

    def idle(self) -> Iterator[tuple[int, int, int]]:
        """The generation, slot and number of idle connections of each other worker."""
        for place, row in self._living():
            idle = row[Cell.CONNECTIONS] - row[Cell.WEBSOCKETS] - row[Cell.IN_FLIGHT]
            yield place[RowOwner.GENERATION], place[RowOwner.SLOT], min(max(0, idle), MOST_AT_ONCE)

    def _living(self) -> Iterator[tuple[memoryview, memoryview]]:
        """The entry and row of each other worker."""
        for index, (_, row) in self._living_rows():
            yield self._scoreboard.place(index), row

    def _living_rows(self) -> Iterator[tuple[int, tuple[int, memoryview]]]:
        return ((index, of) for index, of in self._rows.items() if self._scoreboard.serial(index) == of[0])

    def _forget_the_dead(self) -> None:
        for index in [each for each, (serial, _) in self._rows.items() if self._scoreboard.serial(each) != serial]:
            del self._rows[index]
