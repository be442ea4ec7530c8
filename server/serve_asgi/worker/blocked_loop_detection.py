"""What the watchdog makes of what it sees of an event loop, look by look: pure, no thread and no clock of its own.

And the timer that wakes its thread at a time, for next to nothing while that does not come.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import enum
import os
import sys
import time
from typing import Final

TICK: Final = 1.0
"""Seconds between the loop's ticks (`serve_asgi.worker.housekeeping.PERIOD`)."""
SHORTEST: Final = 0.02
"""Seconds between two looks, at least."""


class WatchPhase(enum.Enum):
    """What the watch is doing."""

    PARKED = "parked"  # the loop has nothing to do: its next tick is waited for
    LOOKING = "looking"  # the loop has work: it is looked at from time to time
    ASKED = "asked"  # it was busy at a look, and asked to answer
    BLOCKED = "blocked"  # it has not answered for --block-warning, which has been told


class Finding(enum.Enum):
    """What a look found out."""

    NOTHING = "nothing"
    ASK = "ask"  # have the loop answer
    BLOCKED = "blocked"  # since `asked`
    TURNS = "turns"  # again, after `lasted`


@dataclasses.dataclass(slots=True)
class LoopWatch:
    """The watch over one loop: what is seen at each look, and what follows from it. All times CLOCK_MONOTONIC, s."""

    limit: float  # --block-warning
    phase: WatchPhase = WatchPhase.PARKED
    asked: float = 0.0  # since when the loop has owed an answer
    lasted: float = 0.0

    def look(self, now: float, turned: float, idle: bool, quiet: bool, late: float) -> Finding:
        """Take what is seen at `now`.

        `turned`: when the loop turned last, as far as it said; `idle`: its thread waits for events; `quiet`: it had
        nothing to do before its last tick; `late`: by how much this look is later than it was meant to be.
        """
        if self.phase is WatchPhase.BLOCKED:
            if turned < self.asked:
                return Finding.NOTHING
            self.phase, self.lasted = WatchPhase.LOOKING, turned - self.asked
            return Finding.TURNS
        if late >= self.limit and turned < now - late:  # nothing of this process's Python code ran
            self.asked = min(self.asked, now - late) if self.phase is WatchPhase.ASKED else now - late
            self.phase = WatchPhase.BLOCKED
            return Finding.BLOCKED
        if self.phase is WatchPhase.ASKED:
            if turned < self.asked:
                if now - self.asked < self.limit:
                    return Finding.NOTHING
                self.phase = WatchPhase.BLOCKED
                return Finding.BLOCKED
            self.phase = WatchPhase.LOOKING
        if self.phase is WatchPhase.PARKED:
            if now - turned < TICK + self.limit / 2 and quiet:
                return Finding.NOTHING
            self.phase = WatchPhase.LOOKING
        if idle:
            if quiet and now - turned < TICK:
                self.phase = WatchPhase.PARKED
            return Finding.NOTHING
        self.phase, self.asked = WatchPhase.ASKED, now
        return Finding.ASK

    def next_look(self, now: float, turned: float) -> float:
        """When the next look is due."""
        if self.phase is WatchPhase.PARKED:
            return max(now, turned + TICK + self.limit / 2)
        return now + max(SHORTEST, self.limit / 2)


class WakeTimer:
    """Wakes the thread at a time, if it is not set anew before (timerfd_create(2))."""

    def __init__(self) -> None:
        self.fd: int | None = None
        """Readable once the time has come; None where the kernel has no such thing for us."""
        with contextlib.suppress(OSError, AttributeError):
            self.fd = _timerfd_create()

    def set(self, at: float) -> None:
        """Be readable from `at` (CLOCK_MONOTONIC, s) on, and not before."""
        if self.fd is not None:
            _timerfd_settime(self.fd, at)


if sys.version_info >= (3, 13):

    def _timerfd_create() -> int:
        return os.timerfd_create(time.CLOCK_MONOTONIC, flags=os.TFD_NONBLOCK | os.TFD_CLOEXEC)

    def _timerfd_settime(fd: int, at: float) -> None:
        os.timerfd_settime(fd, flags=os.TFD_TIMER_ABSTIME, initial=at)
else:
    _library = ctypes.PyDLL(None)  # does not give the interpreter lock up for a call of a microsecond
    _TIMER_ABSTIME: Final = 1

    def _timerfd_create() -> int:
        fd = int(_library.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC))
        if fd < 0:
            raise OSError("no timerfd")
        return fd

    def _timerfd_settime(fd: int, at: float) -> None:
        seconds, fraction = divmod(at, 1)
        when = (ctypes.c_long * 4)(0, 0, int(seconds), int(fraction * 1e9))  # struct itimerspec
        _library.timerfd_settime(fd, _TIMER_ABSTIME, when, None)
