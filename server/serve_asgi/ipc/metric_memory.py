"""A memory of metrics: what one process counts for the application, in a memfd that others read.

It is a header, then records that are only ever appended. A record has the key of one metric with its label values
(`MetricKey`), its values as doubles, and who wrote it last. One process writes; the listener and others hold the
memory, so that nothing is lost with the process that wrote it, however it ends. When it has been reaped, a later
process is given the memory and goes on from the counts that are there: a sum over all memories never goes back.

A process that dies in the middle of a write leaves a whole memory behind: a record is in use once the header says so,
and a value is one aligned 64-bit store. Writers are not trusted: readers check what they read, once for each record,
and the size of the memory is sealed. It is sparse: what is not used takes no memory. This module knows nothing of
processes or sockets.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import math
import mmap
import os
import re
import sys
from collections.abc import Iterator
from typing import Any, Final

from serve_asgi.ipc.scoreboard import SEALS, WORD, map_privately, mapped

MAGIC: Final = 0x5345525645304D31  # "SERVE0M1"
SERIES_BYTES: Final = 512
"""Bytes of the memory for each time series that it may hold: a record with a long key takes less."""
KEY_LIMIT: Final = 8192
"""Bytes of a key; a longer one is refused."""
MOST_CELLS: Final = 1000
"""Values of one record: the buckets of a histogram."""
KINDS: Final = frozenset({"counter", "gauge", "histogram", "summary"})
MODES: Final = frozenset({"", "sum", "max", "min", "last", "worker"})
NAME: Final = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*", re.ASCII)
LABEL: Final = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*", re.ASCII)


class MemoryWord(enum.IntEnum):
    """Words of the header."""

    MAGIC = 0
    USED = 1  # bytes, with the header; written last when a record is appended
    SERIES = 2  # time series in use
    REFUSED = 3  # how many were refused


HEADER_WORDS: Final = 8


class RecordWord(enum.IntEnum):
    """Words of a record, before its values; the key follows them."""

    KEY_BYTES = 0
    CELLS = 1  # how many values
    LIFE = 2  # the serial of the process that had this metric last (`RowOwner.SERIAL`)
    TIME = 3  # of a gauge: unix time at which it was last set, as a double, or 0


RECORD_WORDS: Final = 4


@dataclasses.dataclass(frozen=True, slots=True)
class MetricKey:
    """What a record counts: one or more samples of one metric, with one set of label values."""

    kind: str
    """One of `KINDS`."""
    name: str
    """The metric's name; of a counter without `_total`."""
    sample: str
    """The sample's name; of a histogram with `bounds` that of none."""
    labels: tuple[tuple[str, str], ...]
    help: str
    mode: str = ""
    """How a gauge is put together over processes: one of `MODES`."""
    bounds: tuple[float, ...] = ()
    """The upper bounds of a histogram's buckets: there is a value for each, one for what is larger, and the sum."""

    @property
    def cells(self) -> int:
        """How many values its record has."""
        return len(self.bounds) + 2 if self.bounds else 1

    def encode(self) -> bytes:
        """As bytes, which are the same for equal keys."""
        members = [self.kind, self.name, self.sample, self.labels, self.help, self.mode, self.bounds]
        return json.dumps(members, separators=(",", ":")).encode()

    @classmethod
    def decode(cls, data: bytes) -> MetricKey:
        """The reverse, of bytes that another process wrote. Raises ValueError or TypeError if they are no key."""
        kind, name, sample, labels, help, mode, bounds = json.loads(data)
        key = cls(kind, name, sample, tuple((str(n), str(v)) for n, v in labels), help, mode, tuple(map(float, bounds)))
        strings: list[Any] = [kind, name, sample, help, mode]
        if not all(isinstance(each, str) for each in strings) or kind not in KINDS or mode not in MODES:
            raise ValueError("not a key")
        if not NAME.fullmatch(name) or not NAME.fullmatch(sample) or not sample.startswith(name):
            raise ValueError("not a metric's name")
        if not all(LABEL.fullmatch(label) for label, _ in key.labels):
            raise ValueError("not a label's name")
        in_order = list(key.bounds) == sorted(set(key.bounds))
        if bounds and (kind != "histogram" or not in_order or not all(map(math.isfinite, key.bounds))):
            raise ValueError("not a histogram's bounds")
        return key


def create(series: int) -> int:
    """A new memory for so many time series (memfd_create(2)); the descriptor is the caller's. Raises OSError."""
    import fcntl  # for Linux alone, as the server is; values in one process work elsewhere, too

    size = HEADER_WORDS * WORD + series * SERIES_BYTES
    fd = os.memfd_create("serve-metrics", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, -(-size // mmap.PAGESIZE) * mmap.PAGESIZE)
        os.fchmod(fd, 0o400)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd


def used(fd: int) -> int:
    """Bytes in use of the memory `fd`, as its writer says."""
    return int.from_bytes(os.pread(fd, WORD, MemoryWord.USED * WORD), sys.byteorder)


def _records(memory: memoryview, words: memoryview, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """The key, the index of the first value and the number of values of each record, up to one that is none."""
    while start + RECORD_WORDS * WORD <= end:
        first = start // WORD + RECORD_WORDS
        length, cells = words[first - RECORD_WORDS], words[first - RECORD_WORDS + 1]
        if not 0 < length <= KEY_LIMIT or not 0 < cells <= MOST_CELLS:
            return
        key = (first + cells) * WORD
        start = key + _padded(length)
        if start > end:
            return
        yield bytes(memory[key : key + length]), first, cells


def _padded(length: int) -> int:
    return -(-length // WORD) * WORD


class MetricWriter:
    """A memory for the process that writes it. Not thread-safe."""

    __slots__ = ("_end", "_memory", "_series", "found", "values", "words")

    def __init__(self, fd: int, series: int) -> None:
        """Map the memory `fd`, which is closed; at most `series` time series may be added. Raises OSError."""
        self.words = mapped(fd, writable=True)
        self._memory = self.words.cast("B")
        self.values = self._memory.cast("d")
        """The whole memory as doubles, indexed as the words are."""
        self._series = series
        self.found: dict[bytes, tuple[int, int]] = {}
        """The index of the first value, and their number, of each key that earlier processes have used."""
        self._end = HEADER_WORDS * WORD
        claimed = min(self.words[MemoryWord.USED], len(self._memory))
        for key, first, cells in _records(self._memory, self.words, self._end, claimed):
            self.found[key] = first, cells
            self._end = (first + cells) * WORD + _padded(len(key))
        self.words[MemoryWord.MAGIC] = MAGIC

    def record(self, key: bytes, cells: int, life: int) -> int | None:
        """The index of the first value for `key`, in a new record unless there is one; None if there is no room."""
        if (there := self.found.get(key)) is not None and there[1] == cells:
            first = there[0]
        else:
            first = self._end // WORD + RECORD_WORDS
            end = (first + cells) * WORD + _padded(len(key))
            series = self.words[MemoryWord.SERIES] + cells
            if there or len(key) > KEY_LIMIT or cells > MOST_CELLS or end > len(self._memory) or series > self._series:
                self.words[MemoryWord.REFUSED] += 1
                return None
            self.words[first - RECORD_WORDS + RecordWord.KEY_BYTES] = len(key)
            self.words[first - RECORD_WORDS + RecordWord.CELLS] = cells
            self._memory[(first + cells) * WORD : (first + cells) * WORD + len(key)] = key
            self.words[MemoryWord.SERIES] = series
            self.words[MemoryWord.USED] = self._end = end
            self.found[key] = first, cells
        self.words[first - RECORD_WORDS + RecordWord.LIFE] = life
        return first

    def let_go(self) -> None:
        """In a forked child: make the memory private, so that nobody else sees further writes."""
        map_privately(self.words, self._end)


@dataclasses.dataclass(frozen=True, slots=True)
class MetricRecord:
    """A record for its readers."""

    key: MetricKey
    values: memoryview[float]
    """Of the whole memory, as doubles."""
    words: memoryview
    first: int
    """The index of its first value."""

    @property
    def life(self) -> int:
        """The serial of the process that had it last."""
        return int(self.words[self.first - RECORD_WORDS + RecordWord.LIFE])

    @property
    def time(self) -> float:
        """When a gauge was last set, in unix time."""
        return float(self.values[self.first - RECORD_WORDS + RecordWord.TIME])

    def read(self) -> list[float]:
        """Its values now."""
        return list(self.values[self.first : self.first + self.key.cells])


class MetricReader:
    """A memory for everybody else."""

    __slots__ = ("_memory", "_parsed", "_values", "by_name", "words")

    def __init__(self, fd: int) -> None:
        """Map the memory `fd`, which is closed; it need not be writable. Raises OSError."""
        self.words = mapped(fd)
        self._memory = self.words.cast("B")
        self._values = self._memory.cast("d")
        self._parsed = HEADER_WORDS * WORD
        self.by_name: dict[str, list[MetricRecord]] = {}
        """The records of each metric, as of the last `refresh`."""

    def refresh(self) -> None:
        """Read what has been appended meanwhile; what no correct process could have written is left out."""
        end = min(self.words[MemoryWord.USED], len(self._memory))
        for data, first, cells in _records(self._memory, self.words, self._parsed, end):
            self._parsed = (first + cells) * WORD + _padded(len(data))
            try:
                key = MetricKey.decode(data)
            except (ValueError, TypeError, RecursionError):
                continue
            if key.cells == cells:
                self.by_name.setdefault(key.name, []).append(MetricRecord(key, self._values, self.words, first))

    @property
    def series(self) -> int:
        """Time series in use."""
        return min(self.words[MemoryWord.SERIES], len(self._memory) // SERIES_BYTES)

    @property
    def refused(self) -> int:
        """Time series that were refused."""
        return min(self.words[MemoryWord.REFUSED], 1 << 62)
