"""The values that this process counts for the application: in its memory of metrics, or its own until it has one.

A process of the server asks for a memory (`serve_asgi.ipc.metric_memory`) when its application first has a metric, so
that an application without metrics costs neither memory nor a descriptor. Elsewhere (another server, a test, the
template that workers are forked from) values are local; what has been counted by then goes along when there is a
memory. A value for which there is no room stays local: it works, and no other process sees it. In a forked child of the
application all are local again.

`inc` may be called from any thread, and from a finaliser that runs in the middle of one: so the lock is re-entrant.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
from collections.abc import Callable, Mapping
from typing import Final

from serve_asgi.ipc.metric_memory import RECORD_WORDS, MetricKey, MetricRecord, MetricWriter, RecordWord
from serve_asgi.ipc.metric_totals import MetricFamily, MetricTotals, families
from serve_asgi.ipc.scoreboard import read_only
from serve_asgi.logs.server_log import about

TIME: Final = RECORD_WORDS - RecordWord.TIME
"""How far a record's time is before its first value."""
OWN: Final = -1
"""The number of this process's own memory among those it reads; the listener's begin at 0."""

log = logging.getLogger("serve")


class MetricCells:
    """The values of one record: one, or a histogram's buckets and sum."""

    __slots__ = ("_base", "at", "key", "lock", "values")

    def __init__(self, key: MetricKey, lock: threading.RLock) -> None:
        self.key = key
        self.lock = lock
        self.values: memoryview[float] = memoryview(bytearray((RECORD_WORDS + key.cells) * 8)).cast("d")
        self.at = RECORD_WORDS
        """The index of the first value; both change together, under the lock."""
        self._base = [0.0] * key.cells
        """What earlier processes had counted."""

    def inc(self, amount: float = 1.0) -> None:
        """Add to the first value."""
        with self.lock:
            self.values[self.at] += amount

    def set(self, value: float, timestamp: float | None = None) -> None:
        """Set the first value; of a counter, what this process has counted."""
        with self.lock:
            self.values[self.at] = self._base[0] + value
            self.values[self.at - TIME] = timestamp or 0.0

    def observe(self, bucket: int, amount: float) -> None:
        """Count `amount` in a bucket of a histogram."""
        with self.lock:
            self.values[self.at + bucket] += 1.0
            self.values[self.at + len(self._base) - 1] += amount

    def get(self) -> float:
        """What this process has counted, or set."""
        with self.lock:
            return self.values[self.at] - self._base[0]

    def move(self, values: memoryview[float], at: int) -> None:
        """Go on in a record of a memory, with what has been counted so far; the lock is held."""
        count, kind = self.key.cells, self.key.kind
        ours, when = list(self.values[self.at : self.at + count]), self.values[self.at - TIME]
        if kind != "gauge":
            self._base = list(values[at : at + count])
            for index, value in enumerate(ours):
                values[at + index] += value
        elif self.key.mode != "last" or when:  # what was set last, by whichever process, stays until it is set anew
            values[at], values[at - TIME] = ours[0], when
        self.values, self.at = values, at


class MetricStore:
    """All values of this process."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._cells: dict[bytes, MetricCells] = {}
        self._writer: MetricWriter | None = None
        self._series = self._life = 0
        self._refused = False
        self._wanted = False
        """The application has metrics."""
        self._ask: Callable[[], object] | None = None
        """Asks the listener for a memory; None if it cannot be asked, or has been."""
        self.totals: MetricTotals | None = None
        """All memories of the server; None where there is none."""

    def cells(self, key: MetricKey) -> MetricCells:
        """The values of `key`, which are the same for every caller."""
        encoded = key.encode()
        with self._lock:
            if (there := self._cells.get(encoded)) is not None:
                return there
            cells = self._cells[encoded] = MetricCells(key, self._lock)
            if self._writer is not None:
                self._move(self._writer, encoded, cells)
            else:
                self.want()
            return cells

    def begin(self, series: int, life: int, living: Callable[[], Mapping[int, int]]) -> None:
        """This process belongs to a server, which lends a memory for `series` time series if it is asked.

        `life` is the serial of this process, `living` as for `MetricTotals`.
        """
        with self._lock:
            self._series, self._life = series, life
            self.totals = MetricTotals(living)

    def ask_in(self, loop: asyncio.AbstractEventLoop, ask: Callable[[], object]) -> None:
        """`ask`, called once in this loop, asks the listener for a memory and for those of the other processes."""

        def from_any_thread() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the process is about to exit
                loop.call_soon_threadsafe(ask)

        with self._lock:
            if self.totals is not None:
                self._ask = from_any_thread
                if self._wanted:
                    self.want()

    def want(self) -> None:
        """The application has a metric, or what makes one: have a memory by the time that it counts."""
        with self._lock:
            self._wanted = True
            if self._ask is not None:
                ask, self._ask = self._ask, None
                ask()

    def take(self, fd: int | None) -> None:
        """Count in this memory, which the listener has lent, from here on; the descriptor is taken over.

        Values stay local if it is None, since it was lost on its way, or cannot be mapped.
        """
        with self._lock:
            if self.totals is None or self._writer is not None:
                if fd is not None:
                    os.close(fd)
                return
            try:
                if fd is None:
                    raise OSError("this process has too many open files; raise the open-files limit (ulimit -Hn)")
                self.totals.add(OWN, read_only(fd))
                self._writer = writer = MetricWriter(fd, self._series)
            except OSError as error:
                text = "what this process counts is not in the application's metrics: it has no memory for them: %s"
                log.error(text, error, extra=about("metrics_refused"))
                self.totals = None
                return
            for encoded, cells in self._cells.items():
                self._move(writer, encoded, cells)

    def _move(self, writer: MetricWriter, encoded: bytes, cells: MetricCells) -> None:
        first = writer.record(encoded, cells.key.cells, self._life)
        if first is not None:
            cells.move(writer.values, first)
        elif not self._refused:
            self._refused = True
            text = (
                "the metric %s with the labels %s is not in the sums over all workers, nor are further ones: there is "
                "no room for more time series; use labels with fewer values, or raise --metrics-series"
            )
            log.error(text, cells.key.name, dict(cells.key.labels), extra=about("metrics_refused"))

    # What the others have counted

    def add_memory(self, number: int, fd: int) -> None:
        """Read the memory of another process from here on; the descriptor is taken over."""
        if self.totals is None:
            os.close(fd)
            return
        try:
            self.totals.add(number, fd)
        except OSError as error:
            log.warning("what another process has counted cannot be read: %s", error, extra=about("metrics_lost"))

    def families(self) -> list[MetricFamily]:
        """All metrics: of the whole server, or of this process where there is none."""
        if self.totals is not None and self._writer is not None:
            return self.totals.families()
        with self._lock:
            local = [
                MetricRecord(each.key, each.values, each.values.cast("B").cast("Q"), each.at)
                for each in self._cells.values()
            ]
        return families([local], {0: 0})

    def family(self, name: str) -> MetricFamily | None:
        """One metric of the whole server; None where there is none."""
        return self.totals.family(name) if self.totals is not None and self._writer is not None else None

    # In a forked child

    def let_go(self) -> None:
        """Count for this child alone from here on."""
        self._lock = threading.RLock()
        for cells in self._cells.values():
            cells.lock = self._lock
        if self._writer is not None:
            self._writer.let_go()
        self._writer = self.totals = self._ask = None


store: Final = MetricStore()
"""The one of this process."""
