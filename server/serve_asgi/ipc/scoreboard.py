"""The scoreboard: shared memory with the numbers of all processes of one server.

It consists of memfds (memfd_create(2)) of 64-bit words. The board is the listener's: the drain flag, the owners of
rows, and the totals of each slot; for all others it is read-only. Each process has a row in a memfd of its own: only it
can write there (two writers on one counter lost half the counts when measured), the others read it and add up. When a
process has been reaped, the listener folds its row into its slot's totals and frees the row.

No process is trusted. A memfd is sealed, so that nobody can truncate it under a reader (SIGBUS); what the listener
knows (the owner of a row) is in the board; a word that no correct process could have written counts as 0 (`Row.words`),
and totals do not overflow. Read-only descriptors cannot be reopened for writing: the files belong to the listener's
user (mode 0400). There is no protection against processes of that same user, nor can there be (ptrace(2)).

An aligned 64-bit store is one instruction on the platforms CPython runs on, so that a reader never sees half a word.
This module knows nothing of processes, sockets or time.
"""

from __future__ import annotations

import ctypes
import enum
import mmap
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

if sys.platform == "linux":
    import fcntl

    SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
else:  # where nothing uses them
    fcntl: Any = None
    SEALS: Any = None

MAGIC: Final = 0x5345525645303033  # "SERVE003"
WORD: Final = 8
MODE: Final = 0o400
MAP_FIXED: Final = 0x10  # asm-generic/mman-common.h


class Header(enum.IntEnum):
    """Words at the start of the board, written by the listener alone."""

    MAGIC = 0
    DRAINING_SINCE = 1  # 0, or the CLOCK_MONOTONIC time in ns at which the drain began
    ROWS = 2
    SLOTS = 3
    ROW_WORDS = 4  # of each slot's totals: another version may have longer or shorter rows
    FOLDS = 5  # how often the listener has begun or finished folding a row: odd meanwhile
    STATE = 6  # how many changes the shared state has had: a process that has applied fewer is behind
    AGENT_MISSING = 7  # 1 while the agent has failed or returned, and no other is active


HEADER_WORDS: Final = 8


class RowOwner(enum.IntEnum):
    """Words of the board for each row, written by the listener alone: its owner. All 0 while it is free."""

    PID = 0
    GENERATION = 1
    SLOT = 2  # NO_SLOT for the agent
    SERIAL = 3  # distinguishes all processes that have ever owned this row


ROW_OWNER_WORDS: Final = 4


class Cell(enum.IntEnum):
    """Words of one row.

    Gauges end with their process; counters are folded into the totals. A word never changes its number: listener and
    workers may be of different versions. A later version may append words; where a row or the totals are an earlier
    version's, those that it does not have read as 0 and are not kept. Times are CLOCK_MONOTONIC.
    """

    # 0 to 2 are those of RowOwner: readers find them here, and nobody writes them
    PID = 0
    GENERATION = 1
    SLOT = 2
    HEARTBEAT = 3  # time in ns, written once per tick: shows a blocked loop
    CONNECTIONS = 4  # open client connections
    IN_FLIGHT = 5  # requests whose application has not returned, WebSockets not counted
    WEBSOCKETS = 6  # open WebSockets
    RSS = 7  # bytes, written once per tick
    # counters
    REQUESTS = 8  # requests completed or cut, without health checks
    STATUS_1XX = 9
    STATUS_2XX = 10
    STATUS_3XX = 11
    STATUS_4XX = 12
    STATUS_5XX = 13
    ACCEPTED = 14  # connections accepted from the kernel
    HANDED_OVER = 15  # connections handed over to another worker
    TAKEN_OVER = 16  # connections received from another worker
    CUT = 17  # requests and WebSockets cut at the graceful timeout
    DROPPED_OUTPUT = 18  # bytes of log output that nobody read
    BYTES_RECEIVED = 19  # received from clients, on the wire
    BYTES_SENT = 20  # written to clients, on the wire
    WEBSOCKETS_OPENED = 21  # handshakes that the application accepted
    LAG_TOTAL = 22  # sum of ns by which ticks were late
    DURATION_TOTAL = 23  # sum of ns that requests took
    CPU = 24  # ns of processor time, written once per tick
    BLOCKED = 25  # times that the event loop was blocked for longer than --block-warning; written by the watchdog alone
    # gauges
    LAG = 28  # ns by which the last tick was late
    LAG_WORST = 29  # ns, the maximum of the last ten seconds
    OLDEST = 30  # time in ns at which the oldest request in progress began, or 0
    ACCEPTS = 31  # 1 while this worker accepts connections
    # counters: one word for each bucket of DURATION_BOUNDS, and one for all that took longer
    DURATION_0 = 32
    # counters
    TLS_1_3 = 51  # handshakes that succeeded, by version
    TLS_1_2 = 52
    TLS_RESUMED = 53  # of both
    TLS_FAILED = 54
    TLS_NOT_MOVED = 55  # connections of TLS 1.2 that were closed because their worker retired
    TLS_AES_128 = 56  # handshakes by cipher
    TLS_AES_256 = 57
    TLS_CHACHA20 = 58
    # what the counts of responses do not tell of the application's part in them
    REFUSED = 59  # of REQUESTS: those that the server answered itself, too many at once or malformed
    EXCUSED_5XX = 60  # of STATUS_5XX: those where the application has not failed: too many at once, or a client gone
    FAILED_WITHOUT_5XX = 61  # requests and WebSockets whose application failed when 5xx could no longer be answered
    SURVIVED = 62  # lives that an application has begun on a connection that another worker had
    NOT_SURVIVED = 63  # connections that were to survive, and were ended as their worker retired
    HTTP2_CONNECTIONS = 64  # HTTP/2 connections begun; one that is handed over counts once
    HTTP2_STREAMS = 65  # requests begun on them
    HTTP2_RESETS_RECEIVED = 66  # RST_STREAM
    HTTP2_RESETS_SENT = 67
    HTTP2_FAULTS = 68  # connections ended because the client broke the protocol or a limit
    HTTP2_MOVED = 69  # of HANDED_OVER: HTTP/2 connections
    HTTP2_GOAWAYS = 70  # connections whose client was told to open another, as their worker retired
    TIMED_OUT = 71  # requests that took longer than --request-timeout
    STREAM_FIRST_TOTAL = 72  # sum of ns to the first byte of streams that have ended (`STREAM_TIME`)
    STREAM_TIME_TOTAL = 73  # sum of ns that they took
    STREAM_FIRST_0 = 74  # one word for each bucket of DURATION_BOUNDS, and one for all that took longer
    STREAM_TIME_0 = 93  # the same of STREAM_BOUNDS
    WEBSOCKET_ACCEPT_TOTAL = 104  # sum of ns from a WebSocket's request until the application accepted
    WEBSOCKET_TIME_TOTAL = 105  # sum of ns that WebSockets which have ended were open, over all workers that had them
    WEBSOCKET_ACCEPT_0 = 106  # one word for each bucket of DURATION_BOUNDS, and one for all that took longer
    WEBSOCKET_TIME_0 = 125  # the same of WEBSOCKET_BOUNDS


DURATION_BOUNDS: Final = (
    *(0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05),
    *(0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0),
)
"""Upper bounds (s) of the buckets of request durations."""
STREAM_TIME: Final = 1.0
"""A response whose last byte comes more than this (s) after its first is a stream, and not in the requests' latency."""
STREAM_BOUNDS: Final = (2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 86400.0)
"""Upper bounds (s) of the buckets of how long streams took."""
WEBSOCKET_BOUNDS: Final = (0.1, 0.5, 1.0, *STREAM_BOUNDS)
"""Upper bounds (s) of the buckets of how long WebSockets were open."""

NO_SLOT: Final = (1 << 32) - 1
"""The slot of a process that fills none, the agent. Its counts are folded into the last totals."""
ROW_WORDS: Final = 144
COUNTERS: Final = (*range(Cell.REQUESTS, Cell.BLOCKED + 1), *range(Cell.DURATION_0, ROW_WORDS))
"""Words that only grow, and outlive their process in its slot's totals; the last few are not used yet."""


NONSENSE: Final = 1 << 62
"""A word from this value on counts as 0: no process has counted so many bytes or nanoseconds (146 years)."""
MOST_AT_ONCE: Final = 1 << 20
"""More than the connections of one process, and their requests, can be (fs.nr_open, proc_sys_fs(5))."""
AT_ONCE: Final = (Cell.CONNECTIONS, Cell.IN_FLIGHT, Cell.WEBSOCKETS)
LARGEST: Final = (1 << 64) - 1

Words = Sequence[int]


class Row:
    """The row of one process for its readers, who trust nothing that is written there."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        """Take over `fd`, which need not be writable."""
        self.fd = fd

    @classmethod
    def create(cls) -> tuple[Row, int]:
        """A new row (memfd_create(2)), and the descriptor for the process that writes it. Raises OSError (EMFILE)."""
        fd = _memory("serve-row", bytes(ROW_WORDS * WORD))
        try:
            return cls(read_only(fd)), fd
        except BaseException:
            os.close(fd)
            raise

    def words(self) -> list[int]:
        """All words, invalid ones as 0. Reading never waits, and the memory cannot be truncated."""
        if sys.platform != "linux":
            raise NotImplementedError
        if self.fd < 0:
            return [0] * ROW_WORDS
        words = fitted(memoryview(os.pread(self.fd, ROW_WORDS * WORD, 0)).cast("Q").tolist())
        if max(words) >= NONSENSE:
            words = [word if word < NONSENSE else 0 for word in words]
        for cell in AT_ONCE:
            if words[cell] > MOST_AT_ONCE:
                words[cell] = 0
        return words

    def word(self, cell: Cell) -> int:
        """One word, or 0 if it is invalid."""
        if sys.platform != "linux":
            raise NotImplementedError
        word = int.from_bytes(os.pread(self.fd, WORD, cell * WORD), sys.byteorder) if self.fd >= 0 else 0
        return word if word < (MOST_AT_ONCE if cell in AT_ONCE else NONSENSE) else 0

    def again(self) -> int:
        """Another descriptor of the same memory, for a reader; it is the caller's."""
        if sys.platform != "linux":
            raise NotImplementedError
        return fcntl.fcntl(self.fd, fcntl.F_DUPFD_CLOEXEC, 3)

    def close(self) -> None:
        """Close the descriptor; it reads as empty from now on."""
        os.close(self.fd)
        self.fd = -1


def mapped(fd: int, *, writable: bool = False) -> memoryview:
    """The words of a memfd; `fd` is closed."""
    if sys.platform != "linux":
        raise NotImplementedError
    protection = mmap.PROT_READ | mmap.PROT_WRITE if writable else mmap.PROT_READ
    try:
        if sys.version_info >= (3, 13):
            mapping = mmap.mmap(fd, 0, prot=protection, trackfd=False)
        else:
            mapping = mmap.mmap(fd, 0, prot=protection)  # which holds a duplicate
    finally:
        os.close(fd)
    return memoryview(mapping).cast("Q")


def mapped_row(fd: int) -> memoryview:
    """The words of this process's own row, to write to; `fd` is closed.

    If the listener is of an earlier version, the row is shorter: what is written behind its end, on the same page of
    memory, nobody reads.
    """
    if sys.platform != "linux":
        raise NotImplementedError
    size = os.fstat(fd).st_size
    if size >= ROW_WORDS * WORD:
        return mapped(fd, writable=True)
    words = memoryview(mmap.mmap(-1, ROW_WORDS * WORD)).cast("Q")
    try:
        _map_over(words, mmap.MAP_SHARED, fd)
    finally:
        os.close(fd)
    return words


def let_go(words: memoryview) -> None:
    """In a forked child: make the mapped `words` private, so that nobody else sees further writes."""
    map_privately(words, words.nbytes)


def map_privately(words: memoryview, used: int) -> None:
    """Make the mapped `words` private to this process, with a copy of the first `used` bytes; the rest reads as 0."""
    if sys.platform != "linux":
        raise NotImplementedError
    memory = words.cast("B")
    content = bytes(memory[:used])
    _map_over(words, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1)
    memory[:used] = content


def _map_over(words: memoryview, flags: int, fd: int) -> None:
    """Map something else at the address of the mapped `words` (mmap(2)). Raises OSError."""
    if sys.platform != "linux":
        raise NotImplementedError
    address = ctypes.addressof(ctypes.c_char.from_buffer(words))
    library = ctypes.CDLL(None, use_errno=True)
    library.mmap.argtypes = [*[ctypes.c_size_t] * 2, *[ctypes.c_int] * 3, ctypes.c_long]
    library.mmap.restype = ctypes.c_size_t
    if library.mmap(address, words.nbytes, mmap.PROT_READ | mmap.PROT_WRITE, flags | MAP_FIXED, fd, 0) != address:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def fitted(words: list[int]) -> list[int]:
    """A row or totals of any version, with as many words as this one has: those that are missing are 0."""
    return [*words[:ROW_WORDS], *[0] * (ROW_WORDS - len(words))]


def read_only(fd: int) -> int:
    """A new, read-only descriptor of the memfd `fd`; it is the caller's.

    Without /proc it is writable: then a process can falsify others' counts, but nothing else.
    """
    if sys.platform != "linux":
        raise NotImplementedError
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)


def _memory(name: str, content: bytes) -> int:
    """A memfd of fixed size."""
    if sys.platform != "linux":
        raise NotImplementedError
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.pwrite(fd, content, 0)
        os.fchmod(fd, MODE)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd


class Scoreboard:
    """The board: `words` is the whole of it."""

    __slots__ = ("fd", "row_words", "rows", "slots", "words")

    def __init__(self, fd: int, *, writable: bool = False) -> None:
        """Map the memfd `fd`, which the scoreboard owns from here on; `writable` for the listener.

        Raises ValueError if the memory is not a scoreboard of this layout.
        """
        self.fd = fd if writable else -1
        self.words = mapped(os.dup(fd) if writable else fd, writable=writable)
        if self.words[Header.MAGIC] != MAGIC:
            raise ValueError("the shared memory is not a scoreboard of this version")
        self.rows = self.words[Header.ROWS]
        self.slots = self.words[Header.SLOTS]
        self.row_words = self.words[Header.ROW_WORDS]

    def lasting(self, words: list[int]) -> list[int]:
        """The words of a row that the totals keep: a counter that they have no word for would go back when its process
        ends (`Cell`), so it stays 0 until the server is started anew."""
        return words if self.row_words >= len(words) else fitted(words[: self.row_words])

    @classmethod
    def create(cls, rows: int, slots: int) -> Scoreboard:
        """Create a scoreboard with room for `rows` processes and the totals of `slots` slots."""
        words = memoryview(bytearray((HEADER_WORDS + rows * ROW_OWNER_WORDS + slots * ROW_WORDS) * WORD)).cast("Q")
        words[Header.MAGIC] = MAGIC
        words[Header.ROWS] = rows
        words[Header.SLOTS] = slots
        words[Header.ROW_WORDS] = ROW_WORDS
        return cls(_memory("serve-scoreboard", words.tobytes()), writable=True)

    @property
    def draining_since(self) -> int:
        """0, or the CLOCK_MONOTONIC time in ns at which the drain began."""
        return self.words[Header.DRAINING_SINCE]

    @draining_since.setter
    def draining_since(self, since: int) -> None:
        self.words[Header.DRAINING_SINCE] = since

    @property
    def agent_missing(self) -> bool:
        """Whether the agent has failed or returned, and no other is active."""
        return self.words[Header.AGENT_MISSING] != 0

    @agent_missing.setter
    def agent_missing(self, missing: bool) -> None:
        self.words[Header.AGENT_MISSING] = missing

    def place(self, index: int) -> memoryview:
        """The owner of the row `index`, indexed by `RowOwner`."""
        start = HEADER_WORDS + index * ROW_OWNER_WORDS
        return self.words[start : start + ROW_OWNER_WORDS]

    def serial(self, index: int) -> int:
        """The serial of the row's owner; 0 if it is free."""
        return self.words[HEADER_WORDS + index * ROW_OWNER_WORDS + RowOwner.SERIAL]

    def living(self) -> dict[int, int]:
        """The slot of each living process (NO_SLOT for the agent), by its serial."""
        owners = self.words[HEADER_WORDS : HEADER_WORDS + self.rows * ROW_OWNER_WORDS].tolist()
        serials, slots = owners[RowOwner.SERIAL :: ROW_OWNER_WORDS], owners[RowOwner.SLOT :: ROW_OWNER_WORDS]
        return {serial: slot for serial, slot in zip(serials, slots, strict=True) if serial}

    def enter(self, index: int, pid: int, generation: int, slot: int, serial: int) -> None:
        """Give the row to a process."""
        place = self.place(index)
        place[RowOwner.PID], place[RowOwner.GENERATION], place[RowOwner.SLOT] = pid, generation, slot
        place[RowOwner.SERIAL] = serial

    def totals(self, slot: int) -> memoryview:
        """The folded counters of `slot` (written by the listener); slots beyond the table share the last one.

        There are as many words as in the rows of the version that has created the board (`fitted`).
        """
        start = HEADER_WORDS + self.rows * ROW_OWNER_WORDS + min(slot, self.slots - 1) * self.row_words
        return self.words[start : start + self.row_words]

    def fold(self, index: int, slot: int, words: Words) -> None:
        """Add the counters of a reaped process, whose row was `words`, to its slot's totals, and free the row."""
        place, totals = self.place(index), self.totals(slot)
        self.words[Header.FOLDS] += 1
        for cell in COUNTERS:
            if cell < self.row_words:
                totals[cell] = min(totals[cell] + words[cell], LARGEST)
        for cell in range(ROW_OWNER_WORDS):
            place[cell] = 0
        self.words[Header.FOLDS] += 1

    def copied(self, rows: Mapping[int, tuple[int, Row]]) -> tuple[memoryview, dict[int, list[int]]] | None:
        """A copy of the board, and the words of each of `rows` (by index, with their serials) that is in use.

        No counter is less than in an earlier copy. None if a row was being folded meanwhile, so that it might be
        counted twice or not at all: try again.
        """
        before = self.words[Header.FOLDS]
        copy = memoryview(bytes(self.words)).cast("Q")
        found = {}
        for index, (serial, row) in rows.items():
            start = HEADER_WORDS + index * ROW_OWNER_WORDS
            if copy[start + RowOwner.SERIAL] == serial:
                words = found[index] = row.words()
                words[: ROW_OWNER_WORDS - 1] = copy[start : start + ROW_OWNER_WORDS - 1]
        return None if before % 2 or self.words[Header.FOLDS] != before else (copy, found)

    def read_only(self) -> int:
        """A new, read-only descriptor of the same memory; it is the caller's."""
        return read_only(self.fd)

    def close(self) -> None:
        """Close the descriptor; the memory stays mapped for as long as anything refers to it."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
