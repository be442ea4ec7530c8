"""The values that this process counts for the application: in its memory of metrics, or its own until it has one.

A process of the server is offered a memory at its start (`serve_asgi.ipc.metric_memory`), which is taken when the first
value is created. Elsewhere (another server, a test, the template that workers are forked from) values are local; what
has been counted by then goes along when there is a memory. A value for which there is no room stays local: it works,
and no other process sees it. In a forked child of the application all are local again.

`inc` may be called from any thread, and from a finaliser that runs in the middle of one: so the lock is re-entrant.
"""

from __future__ import annotations

import dataclasses
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


@dataclasses.dataclass(slots=True)
class _Offer:
    """A memory that has not been taken yet."""

    fd: int
    series: int


class MetricStore:
    """All values of this process."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._cells: dict[bytes, MetricCells] = {}
        self._offer: _Offer | None = None
        self._writer: MetricWriter | None = None
        self._life = 0
        self._refused = False
        self._ask: Callable[[], object] | None = None
        self.totals: MetricTotals | None = None
        """All memories of the server; None where there is none."""

    def cells(self, key: MetricKey) -> MetricCells:
        """The values of `key`, which are the same for every caller."""
        encoded = key.encode()
        with self._lock:
            if (there := self._cells.get(encoded)) is not None:
                return there
            cells = self._cells[encoded] = MetricCells(key, self._lock)
            if self._offer is not None:
                self._take()
            elif self._writer is not None:
                self._move(self._writer, encoded, cells)
            return cells

    def offer(self, fd: int, series: int, life: int, living: Callable[[], Mapping[int, int]]) -> None:
        """Offer a memory for `series` time series; the descriptor is taken over.

        `life` is the serial of this process, `living` as for `MetricTotals`.
        """
        with self._lock:
            self._offer, self._life = _Offer(fd, series), life
            self.totals = MetricTotals(living)
            if self._cells:
                self._take()

    def _take(self) -> None:
        """Take the memory; values stay local if it cannot be mapped."""
        offer, self._offer = self._offer, None
        assert offer is not None
        assert self.totals is not None
        try:
            self.totals.add(OWN, read_only(offer.fd))
            self._writer = writer = MetricWriter(offer.fd, offer.series)
        except OSError as error:
            text = "the application's metrics are not counted: their memory cannot be mapped: %s"
            log.error(text, error, extra=about("metrics_refused"))
            self.totals = None
            return
        for encoded, cells in self._cells.items():
            self._move(writer, encoded, cells)
        self._ask_for_others()

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

    def ask_with(self, ask: Callable[[], object]) -> None:
        """`ask` asks the listener for the memories of the other processes; called once, by the first thread that needs
        them: when this process has taken a memory."""
        with self._lock:
            self._ask = ask
            if self._writer is not None:
                self._ask_for_others()

    def add_memory(self, number: int, fd: int) -> None:
        """Read the memory of another process from here on; the descriptor is taken over."""
        if self.totals is None:
            os.close(fd)
            return
        try:
            self.totals.add(number, fd)
        except OSError as error:
            log.warning("what another process has counted cannot be read: %s", error, extra=about("metrics_lost"))

    def _ask_for_others(self) -> None:
        if self._ask is not None:
            ask, self._ask = self._ask, None
            ask()

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
        self._offer = self._writer = self.totals = self._ask = None


store: Final = MetricStore()
"""The one of this process."""
