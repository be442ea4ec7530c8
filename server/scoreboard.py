"""The scoreboard: shared memory that every process of one server maps.

It owns one memfd, laid out as 64-bit words: the lame-duck word, the totals of each slot, and one row per living
process. Rules: a row is written by the process that it belongs to and by no other (two writers on one counter lost
half the counts when measured), so readers add up. The listener hands rows out, writes totals, and folds a row into
its slot's totals once the process has been reaped. An aligned 64-bit store is one instruction on the platforms
CPython runs on, so that a reader never sees half a word. This module knows nothing of processes, sockets or time.
"""

from __future__ import annotations

import enum
import mmap
import os
from typing import Final

MAGIC: Final = 0x5345525645303031  # "SERVE001"
WORD: Final = 8


class Header(enum.IntEnum):
    """Words at the start of the memory, written by the listener alone."""

    MAGIC = 0
    LAME_DUCK = 1  # 0, or the CLOCK_MONOTONIC time in ns at which the lame duck began
    ROWS = 2
    SLOTS = 3


HEADER_WORDS: Final = 8


class Cell(enum.IntEnum):
    """Words of one row. Gauges come first and last and die with their process; counters are folded into the totals.

    A word keeps its number for good: listener and workers may be of different versions.
    """

    PID = 0
    GENERATION = 1
    SLOT = 2
    HEARTBEAT = 3  # CLOCK_MONOTONIC ns, written once per tick: tells a blocked loop
    CONNECTIONS = 4  # open client connections
    IN_FLIGHT = 5  # requests whose application has not returned, WebSockets not counted
    WEBSOCKETS = 6  # open WebSockets
    RSS = 7  # bytes, written once per tick
    # counters from here on
    REQUESTS = 8  # requests answered (or cut), health checks not counted
    STATUS_1XX = 9
    STATUS_2XX = 10
    STATUS_3XX = 11
    STATUS_4XX = 12
    STATUS_5XX = 13
    ACCEPTED = 14  # connections accepted from the kernel
    HANDED_OVER = 15  # connections passed to another worker
    TAKEN_OVER = 16  # connections received from another worker
    CUT = 17  # requests and WebSockets ended by the hammer
    DROPPED_OUTPUT = 18  # bytes of log output that nobody read
    # gauges again, from the end of the row
    ACCEPTS = 31  # 1 while this worker accepts connections


ROW_WORDS: Final = 32
FIRST_COUNTER: Final = Cell.REQUESTS
LAST_GAUGES: Final = 28
"""Where the counters end."""


class Scoreboard:
    """A mapping of the shared memory. `words` is the whole of it; `row(i)` is the part that belongs to one process."""

    __slots__ = ("_mapping", "fd", "rows", "slots", "words")

    def __init__(self, fd: int) -> None:
        """Map the memfd `fd`, which the scoreboard owns from here on.

        Raises ValueError if the memory is not a scoreboard of this layout.
        """
        self.fd = fd
        self._mapping = mmap.mmap(fd, 0)
        self.words = memoryview(self._mapping).cast("Q")
        if self.words[Header.MAGIC] != MAGIC:
            raise ValueError("the shared memory is not a scoreboard of this version")
        self.rows = self.words[Header.ROWS]
        self.slots = self.words[Header.SLOTS]

    @classmethod
    def create(cls, rows: int, slots: int) -> Scoreboard:
        """Make a new scoreboard (memfd_create(2)) with room for `rows` processes and the totals of `slots` slots."""
        fd = os.memfd_create("serve-scoreboard", os.MFD_CLOEXEC)
        size = (HEADER_WORDS + (rows + slots) * ROW_WORDS) * WORD
        os.ftruncate(fd, size)
        header = memoryview(bytearray(HEADER_WORDS * WORD)).cast("Q")
        header[Header.MAGIC] = MAGIC
        header[Header.ROWS] = rows
        header[Header.SLOTS] = slots
        os.pwrite(fd, header.tobytes(), 0)
        return cls(fd)

    @property
    def lame_duck(self) -> int:
        """0, or the CLOCK_MONOTONIC time in ns at which the lame duck began."""
        return self.words[Header.LAME_DUCK]

    @lame_duck.setter
    def lame_duck(self, since: int) -> None:
        self.words[Header.LAME_DUCK] = since

    def row(self, index: int) -> memoryview:
        """The words of row `index`, to be read by anyone and written by its owner."""
        start = HEADER_WORDS + index * ROW_WORDS
        return self.words[start : start + ROW_WORDS]

    def column(self, cell: Cell) -> memoryview:
        """The same word of every row, by the rows' numbers; only to be read."""
        first = HEADER_WORDS + cell
        return self.words[first : first + self.rows * ROW_WORDS : ROW_WORDS]

    def totals(self, slot: int) -> memoryview:
        """The folded counters of `slot` (written by the listener); slots beyond the table share the last one."""
        return self.row(self.rows + min(slot, self.slots - 1))

    def fold(self, index: int, slot: int) -> None:
        """Add the counters of a reaped process's row to its slot's totals and clear the row for the next process."""
        row, totals = self.row(index), self.totals(slot)
        for cell in range(FIRST_COUNTER, LAST_GAUGES):
            totals[cell] += row[cell]
        for cell in range(ROW_WORDS):
            row[cell] = 0

    def total(self, cell: Cell) -> int:
        """The sum of a counter over all slots' totals and all living rows."""
        return sum(self.row(index)[cell] for index in range(self.rows + self.slots))

    def close(self) -> None:
        """Close the descriptor; the memory stays mapped for as long as anything refers to it."""
        os.close(self.fd)
