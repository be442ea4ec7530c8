"""The open-files limit of this process (getrlimit(2), RLIMIT_NOFILE): raised at the start, and never exhausted.

It owns how many descriptors are reserved for what must not fail (packets with descriptors, the hand-over, logs, files
of the application), and how to tell that only those are left. The kernel gives a new descriptor the lowest free number
(open(2)), so that the latest number is enough, without counting, whatever code opens and closes descriptors.
"""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from typing import Final

MOST_RAISED: Final = 65_536
"""The soft limit is raised to the hard one, but no further than this: some programs close all possible descriptors."""
KEPT: Final = 8
"""Descriptors that are reserved of any limit, besides a sixteenth of it."""
MOST_KEPT: Final = 256
PAUSE: Final = 0.1
"""Seconds between two checks for free descriptors: there is no event when other code closes one."""


def raise_limit() -> None:
    """Raise the soft limit, usually 1,024 for the sake of select(2), towards the hard one.

    Processes that are started from here on inherit it. To limit it, lower the hard limit (`ulimit -n`).
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_RAISED if hard == resource.RLIM_INFINITY else min(hard, MOST_RAISED)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # forbidden by a sandbox: it is only a convenience
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def limit() -> int:
    """The current limit: one more than the largest descriptor number."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def reserve(most: int) -> int:
    """How many descriptors are reserved of a limit of `most`: 12 of 64, 24 of 256, 72 of 1,024, 256 of 4,096 and
    more."""
    return min(KEPT + most // 16, MOST_KEPT)


def lowest_free() -> int:
    """The number that the next descriptor will have. Raises OSError if there is none left (EMFILE, ENFILE)."""
    descriptor = os.eventfd(0, os.EFD_CLOEXEC)
    os.close(descriptor)
    return descriptor


def available(below: int = sys.maxsize) -> bool:
    """Whether a descriptor is left, with a number `below` this."""
    try:
        return lowest_free() < below
    except OSError:
        return False
