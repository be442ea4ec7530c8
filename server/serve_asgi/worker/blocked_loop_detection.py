"""The watchdog's detection of a blocked event loop from a series of observations: pure, without thread or clock.

And the timer that wakes the watchdog's thread, which costs almost nothing until it fires.
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
"""Least seconds between two checks."""


class WatchPhase(enum.Enum):
    """The state of the watch."""

    PARKED = "parked"  # the loop is idle: wait for its next tick
    LOOKING = "looking"  # the loop has work: check it periodically
    ASKED = "asked"  # it was busy at a check, and has been pinged
    BLOCKED = "blocked"  # it has not responded for --block-warning, which has been reported


class Finding(enum.Enum):
    """The result of a check."""

    NOTHING = "nothing"
    ASK = "ask"  # ping the loop
    BLOCKED = "blocked"  # since `asked`
    TURNS = "turns"  # again, after `lasted`


@dataclasses.dataclass(slots=True)
class LoopWatch:
    """Watches one loop: takes observations and draws conclusions. All times are CLOCK_MONOTONIC, s."""

    limit: float  # --block-warning
    phase: WatchPhase = WatchPhase.PARKED
    asked: float = 0.0  # since when a ping has been unanswered
    lasted: float = 0.0

    def look(self, now: float, turned: float, idle: bool, quiet: bool, late: float) -> Finding:
        """Take an observation at `now`.

        `turned`: when the loop last ran, as far as it has reported; `idle`: its thread waits for events; `quiet`: it
        had nothing to do before its last tick; `late`: by how much this check is late.
        """
        if self.phase is WatchPhase.BLOCKED:
            if turned < self.asked:
                return Finding.NOTHING
            self.phase, self.lasted = WatchPhase.LOOKING, turned - self.asked
            return Finding.TURNS
        if late >= self.limit and turned < now - late:  # no Python code of this process ran
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
        """When the next check is due."""
        if self.phase is WatchPhase.PARKED:
            return max(now, turned + TICK + self.limit / 2)
        return now + max(SHORTEST, self.limit / 2)


class WakeTimer:
    """Wakes the thread at a given time, unless it is set again before (timerfd_create(2))."""

    def __init__(self) -> None:
        self.fd: int | None = None
        """Readable once the time has come; None where timerfd is not available."""
        with contextlib.suppress(OSError, AttributeError):
            self.fd = _timerfd_create()

    def set(self, at: float) -> None:
        """Become readable at `at` (CLOCK_MONOTONIC, s), and not before."""
        if self.fd is not None:
            _timerfd_settime(self.fd, at)


if sys.version_info >= (3, 13):

    def _timerfd_create() -> int:
        return os.timerfd_create(time.CLOCK_MONOTONIC, flags=os.TFD_NONBLOCK | os.TFD_CLOEXEC)

    def _timerfd_settime(fd: int, at: float) -> None:
        os.timerfd_settime(fd, flags=os.TFD_TIMER_ABSTIME, initial=at)
else:
    _library = ctypes.PyDLL(None)  # does not release the interpreter lock for a call of a microsecond
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
