"""How much freed memory the C library keeps: enough for large reads, but not for ever.

The loops read up to 256 KB at once into a block of its own. glibc returns free memory at the end of its heap to the
kernel as soon as there are a few such blocks, and takes it again for the next read, with a page fault for every 4 KiB.
So its thresholds are raised (mallopt(3)), which reduces the cost of an upload to a third. Unused memory is returned
once a minute. Thresholds set by the user (MALLOC_*, GLIBC_TUNABLES) are kept, and C libraries without mallopt are left
alone.
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
"""Size of a block from which on it is mapped by itself, and unmapped when it is freed; the maximum is 32 MiB."""
KEPT: Final = 2 * LARGEST
"""Bytes of free memory at the end of the heap that are kept."""
VARIABLES: Final = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_")
GROWN: Final = 16 << 20
"""Growth of resident memory since the last trim that makes a trim worthwhile."""
EVERY: Final = 60.0
"""Least seconds between two trims."""


def keep_large_blocks() -> None:
    """Make glibc keep up to `KEPT` bytes of free memory."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    chosen = any(name in os.environ for name in VARIABLES) or "glibc.malloc." in os.environ.get("GLIBC_TUNABLES", "")
    if mallopt is not None and not chosen:
        mallopt(M_MMAP_THRESHOLD, LARGEST)
        mallopt(M_TRIM_THRESHOLD, KEPT)


class MemoryTrimmer:
    """Returns unused memory to the kernel."""

    __slots__ = ("_least", "_next", "_trim")

    def __init__(self) -> None:
        self._trim: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
        self._least = math.inf
        self._next = 0.0

    def tick(self, now: float, resident: int) -> None:
        """Return unused memory if `resident` bytes have grown enough, at most once per EVERY.

        malloc_trim(3) takes a few milliseconds for a large heap.
        """
        if resident < self._least + GROWN:
            self._least = min(self._least, resident)
        elif now >= self._next and self._trim is not None:
            self._next = now + EVERY
            self._trim(0)
            self._least = math.inf  # what is left then is in use
