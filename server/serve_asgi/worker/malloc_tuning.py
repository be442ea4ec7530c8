"""What the C library keeps of the memory that has been freed: enough for large reads, and not for ever.

The loops read up to 256 KB at once into a block of their own. glibc returns free memory at the end of its heap to the
kernel as soon as that is some few such blocks, and takes it again for the next read, a page fault for every 4 KiB. So
its thresholds are raised (mallopt(3)): an upload costs a third of what it did. What stays unused is given back once a
minute. Thresholds that somebody has set (MALLOC_*, GLIBC_TUNABLES) stay as they are, and C libraries without mallopt
are not concerned.
"""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Callable
from typing import Final

M_TRIM_THRESHOLD: Final = -1  # malloc.h
M_MMAP_THRESHOLD: Final = -3
LARGEST: Final = 31 << 20
"""Bytes of a block from which on it is mapped for itself, and given back as soon as it is freed; 32 MiB is the most."""
KEPT: Final = 2 * LARGEST
"""Bytes of free memory at the end of the heap that are kept."""
VARIABLES: Final = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_")
GROWN: Final = 16 << 20
"""Bytes of resident memory, above what there was after the last time, that are worth looking for unused ones."""
EVERY: Final = 60.0
"""Seconds between two such looks."""


def keep_large_blocks() -> None:
    """Have glibc keep up to `KEPT` bytes of free memory."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    chosen = any(name in os.environ for name in VARIABLES) or "glibc.malloc." in os.environ.get("GLIBC_TUNABLES", "")
    if mallopt is not None and not chosen:
        mallopt(M_MMAP_THRESHOLD, LARGEST)
        mallopt(M_TRIM_THRESHOLD, KEPT)


class MemoryTrimmer:
    """Gives unused memory back to the kernel."""

    __slots__ = ("_least", "_next", "_trim")

    def __init__(self) -> None:
        self._trim: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
        self._least = math.inf
        self._next = 0.0

    def tick(self, now: float, resident: int) -> None:
        """Give back what is unused, if `resident` bytes are much more than there were, and not more often than EVERY.

        malloc_trim(3) takes some milliseconds for a large heap.
        """
        if resident < self._least + GROWN:
            self._least = min(self._least, resident)
        elif now >= self._next and self._trim is not None:
            self._next = now + EVERY
            self._trim(0)
            self._least = math.inf  # whatever is left then is needed
