"""A reading of the scoreboard: all counts at one moment, summed over living and dead processes.

Rules: a counter is never less than in an earlier reading (a reading during which the listener folds a row is repeated),
and reading costs the same however busy the workers are. It must not know what the counts are for.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import Final

from serve_asgi.ipc.scoreboard import (
    COUNTERS,
    DURATION_BOUNDS,
    HEADER_WORDS,
    ROW_OWNER_WORDS,
    ROW_WORDS,
    STREAM_BOUNDS,
    WEBSOCKET_BOUNDS,
    Cell,
    Header,
    Row,
    Scoreboard,
    fitted,
)

TRIES: Final = 40
PAUSE: Final = 0.0005
"""Seconds between two attempts; folding a row takes some ten microseconds, unless the listener is stopped."""
STREAM_FIRST: Final = slice(Cell.STREAM_FIRST_0, Cell.STREAM_FIRST_0 + len(DURATION_BOUNDS) + 1)
STREAM_DURATIONS: Final = slice(Cell.STREAM_TIME_0, Cell.STREAM_TIME_0 + len(STREAM_BOUNDS) + 1)
WEBSOCKET_ACCEPTS: Final = slice(Cell.WEBSOCKET_ACCEPT_0, Cell.WEBSOCKET_ACCEPT_0 + len(DURATION_BOUNDS) + 1)
WEBSOCKET_DURATIONS: Final = slice(Cell.WEBSOCKET_TIME_0, Cell.WEBSOCKET_TIME_0 + len(WEBSOCKET_BOUNDS) + 1)
DURATIONS: Final = slice(Cell.DURATION_0, Cell.DURATION_0 + len(DURATION_BOUNDS) + 1)

Words = list[int]
"""The words of a row, or sums of them; indexed by `Cell`."""


@dataclasses.dataclass(frozen=True, slots=True)
class ScoreboardReading:
    """The contents of the scoreboard at one moment."""

    at: float
    """CLOCK_MONOTONIC, s."""
    time: float
    """Unix time, s."""
    rows: dict[int, Words]
    """The living processes, by the number of their row."""
    slots: dict[int, Words]
    """The counters of each slot that ever had a process, of dead and living ones; gauges are 0."""
    total: Words
    """The same for the whole server."""
    draining_since: int

    def gauge(self, cell: Cell) -> int:
        """The sum of a gauge over all living processes."""
        return sum(words[cell] for words in self.rows.values())


def read(scoreboard: Scoreboard, rows: Mapping[int, tuple[int, Row]]) -> ScoreboardReading | None:
    """Take a reading; None if the listener was folding a row all the time (it has been stopped meanwhile).

    `rows` are the readable rows by index, with their serials.
    """
    for _ in range(TRIES):
        at = time.monotonic()
        copied = scoreboard.copied(rows)
        if copied is not None:
            return _read(scoreboard, *copied, at)
        time.sleep(PAUSE)
    return None


def _read(scoreboard: Scoreboard, copy: memoryview, rows: dict[int, Words], at: float) -> ScoreboardReading:
    width, last = scoreboard.row_words, scoreboard.slots - 1
    totals = copy[HEADER_WORDS + scoreboard.rows * ROW_OWNER_WORDS :]
    slots: dict[int, Words] = {}
    signs = (Cell.CPU, Cell.ACCEPTED, Cell.TAKEN_OVER, Cell.REQUESTS)
    for slot, left in enumerate(zip(*(totals[cell::width].tolist() for cell in signs), strict=True)):
        if any(left):
            slots[slot] = fitted(totals[slot * width : (slot + 1) * width].tolist())
    for words in rows.values():
        own = slots.setdefault(min(words[Cell.SLOT], last), [0] * ROW_WORDS)
        for cell in COUNTERS:
            if cell < width:  # as `Scoreboard.lasting` has it
                own[cell] += words[cell]
    total = [sum(words) for words in zip(*slots.values(), strict=True)] or [0] * ROW_WORDS
    return ScoreboardReading(at, time.time(), rows, dict(sorted(slots.items())), total, copy[Header.DRAINING_SINCE])
