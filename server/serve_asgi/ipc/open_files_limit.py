"""The open-files limit of this process (getrlimit(2), RLIMIT_NOFILE): raised at the start, and never used up.

It owns how many descriptors are kept for what must not fail (packets that bring some, the hand-over, logs, files of the
application), and how it is known that only those are left. The kernel gives a new descriptor the lowest free number
(open(2)), so that the number of the latest tells without counting, whoever in the process opens and closes them.
"""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from typing import Final

MOST_RAISED: Final = 65_536
"""The soft limit is raised to the hard one, but to no more than this: some programs close all that there could be."""
KEPT: Final = 8
"""Descriptors that are kept of any limit, and a sixteenth of it besides."""
MOST_KEPT: Final = 256
PAUSE: Final = 0.1
"""Seconds between two looks at whether there are some again: nothing tells when others of the process close one."""


def raise_limit() -> None:
    """Raise the soft limit, which is 1,024 by custom for the sake of select(2), towards the hard one.

    Processes that are started from here on inherit it. Whoever wants less lowers the hard limit (`ulimit -n`).
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_RAISED if hard == resource.RLIM_INFINITY else min(hard, MOST_RAISED)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # forbidden by some sandbox: it is a convenience
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def limit() -> int:
    """One more than the largest number that a descriptor can have now."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def reserve(most: int) -> int:
    """How many descriptors are kept of a limit of `most`: 12 of 64, 24 of 256, 72 of 1,024, 256 of 4,096 and more."""
    return min(KEPT + most // 16, MOST_KEPT)


def lowest_free() -> int:
    """The number that the next descriptor will have. Raises OSError if there is none left (EMFILE, ENFILE)."""
    descriptor = os.eventfd(0, os.EFD_CLOEXEC)
    os.close(descriptor)
    return descriptor


def available(below: int = sys.maxsize) -> bool:
    """Whether there is one left, with a number `below` this."""
    try:
        return lowest_free() < below
    except OSError:
        return False
