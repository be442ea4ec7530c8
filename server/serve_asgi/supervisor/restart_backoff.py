"""The back-off after a crash: the delay before a worker or agent that died or could not start is replaced.

A process that dies after it has served long enough is replaced at once. One that dies again, or never served, is
replaced after a delay that doubles, up to a bound. Pure.
"""

from __future__ import annotations

import dataclasses
import math


@dataclasses.dataclass(slots=True)
class RestartBackoff:
    """The back-off of one slot of the current generation, or of its agent."""

    failures: int = 0
    not_before: float = -math.inf
    trouble: str = ""  # the last failure

    STEADY = 30.0
    """Seconds of serving (for an agent: of being active) after which earlier failures no longer count."""
    FIRST_DELAY = 0.5
    LONGEST_DELAY = 30.0

    def failed(self, now: float, served: float | None, trouble: str) -> float:
        """Count a death after `served` seconds of serving (None: it never did); return the delay (s) of its
        replacement.
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
