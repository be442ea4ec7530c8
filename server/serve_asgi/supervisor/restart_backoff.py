"""The back-off after a crash: how long a slot, or the agent, waits before what died or could not start is replaced.

A process that served for long enough and dies is replaced at once. One that dies again, or never came to serve, is
replaced after a delay that doubles, up to a bound. Pure.
"""

from __future__ import annotations

import dataclasses
import math


@dataclasses.dataclass(slots=True)
class RestartBackoff:
    """Of one slot of the current generation, or of its agent."""

    failures: int = 0
    not_before: float = -math.inf
    trouble: str = ""  # why it is degraded

    STEADY = 30.0
    """A worker that served (an agent that was active) this long (s) has its slot's failures forgiven."""
    FIRST_DELAY = 0.5
    LONGEST_DELAY = 30.0

    def failed(self, now: float, served: float | None, trouble: str) -> float:
        """Count a death after `served` seconds of serving (None: it never did); return the delay (s) until the next.

        One that served and dies is replaced at once; one that dies again, or could not start, after a delay that
        doubles.
        """
        if served is not None and served >= self.STEADY:
            self.failures = 0
        self.failures += 1
        delay = min(self.LONGEST_DELAY, self.FIRST_DELAY * 2.0 ** (self.failures - 1))
        if self.failures == 1 and served is not None:
            delay = 0.0
        self.not_before = now + delay
        self.trouble = trouble
        return delay
