"""What the C library keeps of the memory that has been freed: enough for large reads, and not for ever.

The loops read up to 256 KB at once into a block of their own. glibc returns free memory at the end of its heap to the
kernel as soon as that is some few such blocks, and takes it again for the next read, a page fault for every 4 KiB. How
much it keeps depends on the largest block that it has seen freed (mallopt(3), M_MMAP_THRESHOLD: "dynamic", and twice
that for M_TRIM_THRESHOLD). So it is shown a large one at the start: an upload costs a third of what it did. What stays
unused is given back once a minute. Thresholds that somebody has set (MALLOC_*, GLIBC_TUNABLES) stay as they are, and
other C libraries are not concerned.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
from collections.abc import Callable
from typing import Final

LARGEST: Final = 31 << 20
"""Bytes of the block that is shown: below the 32 MiB from which glibc learns nothing more."""
GROWN: Final = 16 << 20
"""Bytes of resident memory, above what there was after the last time, that are worth looking for unused ones."""
EVERY: Final = 60.0
"""Seconds between two such looks."""


def keep_large_blocks() -> None:
    """Have glibc keep up to twice LARGEST of free memory. No page of the block that it is shown is touched."""
    with contextlib.suppress(MemoryError):  # a limit on address space (setrlimit(2), RLIMIT_AS)
        bytes(LARGEST)


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
