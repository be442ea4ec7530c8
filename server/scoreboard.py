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

MAGIC: Final = 0x5345525645303032  # "SERVE002"
WORD: Final = 8


class Header(enum.IntEnum):
    """Words at the start of the memory, written by the listener alone."""

    MAGIC = 0
    LAME_DUCK = 1  # 0, or the CLOCK_MONOTONIC time in ns at which the lame duck began
    ROWS = 2
    SLOTS = 3
    ROW_WORDS = 4  # so that a later version may have longer rows
    FOLDS = 5  # how often the listener has begun or ended to fold a row: odd while it does
    STATE = 6  # how many changes the shared state has had: a process that has applied fewer is behind


HEADER_WORDS: Final = 8


class Cell(enum.IntEnum):
    """Words of one row. Gauges die with their process; counters are folded into the totals.

    A word keeps its number for good: listener and workers may be of different versions. Times are CLOCK_MONOTONIC.
    """

    PID = 0
    GENERATION = 1
    SLOT = 2  # NO_SLOT for the agent
    HEARTBEAT = 3  # time in ns, written once per tick: tells a blocked loop
    CONNECTIONS = 4  # open client connections
    IN_FLIGHT = 5  # requests whose application has not returned, WebSockets not counted
    WEBSOCKETS = 6  # open WebSockets
    RSS = 7  # bytes, written once per tick
    # counters
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
    BYTES_RECEIVED = 19  # of what clients sent, as it was on the wire
    BYTES_SENT = 20  # of what was written to clients, as it was on the wire
    WEBSOCKETS_OPENED = 21  # handshakes that the application accepted
    LAG_TOTAL = 22  # ns by which ticks came late, added up
    DURATION_TOTAL = 23  # ns that requests took, added up
    CPU = 24  # ns of processor time, written once per tick
    BLOCKED = 25  # times that the event loop was blocked for longer than --block-warn; written by the watchdog alone
    # gauges
    LAG = 28  # ns by which the last tick came late
    LAG_WORST = 29  # ns, the most of the last ten seconds
    OLDEST = 30  # time in ns at which the oldest request in progress began, or 0
    ACCEPTS = 31  # 1 while this worker accepts connections
    # counters: one word for each bucket of DURATION_BOUNDS, and one more for all that took longer
    DURATION_0 = 32


DURATION_BOUNDS: Final = (
    *(0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05),
    *(0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0),
)
"""Upper bounds (s) of the buckets that requests are counted in by how long they took."""

NO_SLOT: Final = (1 << 32) - 1
"""The slot of a process that fills none: the agent. Its counts are folded into the last totals."""
ROW_WORDS: Final = 64
COUNTERS: Final = (*range(Cell.REQUESTS, Cell.BLOCKED + 1), *range(Cell.DURATION_0, ROW_WORDS))
"""Words that only grow, and outlive their process in the totals of its slot; the last few are not used yet."""


class Scoreboard:
    """A mapping of the shared memory. `words` is the whole of it; `row(i)` is the part that belongs to one process."""

    __slots__ = ("_mapping", "fd", "row_words", "rows", "slots", "words")

    def __init__(self, fd: int, *, writable: bool = True) -> None:
        """Map the memfd `fd`, which the scoreboard owns from here on; not `writable` for who only reads.

        Raises ValueError if the memory is not a scoreboard of this layout.
        """
        self.fd = fd
        self._mapping = mmap.mmap(fd, 0, prot=mmap.PROT_READ | mmap.PROT_WRITE if writable else mmap.PROT_READ)
        self.words = memoryview(self._mapping).cast("Q")
        if self.words[Header.MAGIC] != MAGIC:
            raise ValueError("the shared memory is not a scoreboard of this version")
        self.rows = self.words[Header.ROWS]
        self.slots = self.words[Header.SLOTS]
        self.row_words = self.words[Header.ROW_WORDS]

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
        header[Header.ROW_WORDS] = ROW_WORDS
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
        start = HEADER_WORDS + index * self.row_words
        return self.words[start : start + self.row_words]

    def column(self, cell: Cell) -> memoryview:
        """The same word of every row, by the rows' numbers; only to be read."""
        first = HEADER_WORDS + cell
        return self.words[first : first + self.rows * self.row_words : self.row_words]

    def totals(self, slot: int) -> memoryview:
        """The folded counters of `slot` (written by the listener); slots beyond the table share the last one."""
        return self.row(self.rows + min(slot, self.slots - 1))

    def fold(self, index: int, slot: int) -> None:
        """Add the counters of a reaped process's row to its slot's totals and clear the row for the next process."""
        row, totals = self.row(index), self.totals(slot)
        self.words[Header.FOLDS] += 1
        for cell in COUNTERS:
            totals[cell] += row[cell]
        for cell in range(self.row_words):
            row[cell] = 0
        self.words[Header.FOLDS] += 1

    def copied(self) -> memoryview | None:
        """A copy of all words, in which every counter is at least what it was in an earlier one.

        None if a row was being folded meanwhile, for then it could be counted twice or not at all: try again.
        """
        before = self.words[Header.FOLDS]
        copy = memoryview(bytes(self.words)).cast("Q")
        return None if before % 2 or self.words[Header.FOLDS] != before else copy

    def read_only(self) -> int:
        """A new descriptor of the same memory, for who must not write to it; it is the caller's."""
        return os.open(f"/proc/self/fd/{self.fd}", os.O_RDONLY | os.O_CLOEXEC)

    def total(self, cell: Cell) -> int:
        """The sum of a counter over all slots' totals and all living rows."""
        return sum(self.row(index)[cell] for index in range(self.rows + self.slots))

    def durations(self) -> list[int]:
        """How many requests took as long as each bucket of `DURATION_BOUNDS` says, and how many longer than all."""
        last = Cell.DURATION_0 + len(DURATION_BOUNDS)
        columns = [self.row(index)[Cell.DURATION_0 : last + 1] for index in range(self.rows + self.slots)]
        return [sum(words) for words in zip(*columns, strict=True)]

    def close(self) -> None:
        """Close the descriptor; the memory stays mapped for as long as anything refers to it."""
        os.close(self.fd)
