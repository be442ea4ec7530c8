"""Histograms of how long requests took: the counts of the scoreboard's buckets, and what can be read from them.

It owns the arithmetic on buckets, for the metrics and for the verdict on a canary. It must not know who counted.
"""

from __future__ import annotations

import bisect
import dataclasses
import math
from collections.abc import Sequence

from serve_asgi.ipc.scoreboard import DURATION_BOUNDS

BUCKETS = len(DURATION_BOUNDS) + 1
"""One for each bound, and one for all that took longer."""


@dataclasses.dataclass(frozen=True, slots=True)
class LatencyHistogram:
    """How long the requests of somebody took in some time."""

    counts: tuple[int, ...] = (0,) * BUCKETS
    """Requests in each bucket."""
    seconds: float = 0.0
    """The sum of all durations."""

    @property
    def requests(self) -> int:
        """How many were timed."""
        return sum(self.counts)

    def __add__(self, other: LatencyHistogram) -> LatencyHistogram:
        """Both together."""
        counts = tuple(ours + theirs for ours, theirs in zip(self.counts, other.counts, strict=True))
        return LatencyHistogram(counts, self.seconds + other.seconds)

    def __sub__(self, earlier: LatencyHistogram) -> LatencyHistogram:
        """What was added since `earlier`."""
        counts = tuple(max(0, now - before) for now, before in zip(self.counts, earlier.counts, strict=True))
        return LatencyHistogram(counts, max(0.0, self.seconds - earlier.seconds))

    def mean(self) -> float:
        """The mean duration (s); 0.0 if there are no requests."""
        return self.seconds / requests if (requests := self.requests) else 0.0

    def quantile(self, share: float) -> float:
        """The duration (s) that `share` of the requests did not exceed. Raises ValueError if there are none."""
        found = quantile(share, self.counts)
        if found is None:
            raise ValueError("no request was timed")
        return found

    def confidence_interval(self, share: float, deviations: float) -> tuple[float, float] | None:
        """Between which durations (s) the quantile `share` lies of the distribution that these are a sample of.

        Both bounds are quantiles of the sample: the number of requests below the true quantile is binomial, and is
        allowed `deviations` of its standard deviations either way. Nothing is assumed of the distribution. None if
        there are too few requests for a bound.
        """
        requests = self.requests
        if not requests:
            return None
        spread = deviations * math.sqrt(share * (1 - share) / requests)
        if share - spread <= 0 or share + spread >= 1:
            return None
        return self.quantile(share - spread), self.quantile(share + spread)


def bucket(seconds: float) -> int:
    """The bucket in which a duration is counted."""
    return bisect.bisect_left(DURATION_BOUNDS, seconds)


def quantile(share: float, counts: Sequence[int], bounds: Sequence[float] = DURATION_BOUNDS) -> float | None:
    """The duration (s) that `share` of the requests did not exceed, from the counts of the buckets up to `bounds`.

    Within a bucket they are assumed to be uniform on a logarithmic scale; None if there are none.
    """
    wanted = share * sum(counts)
    if not wanted:
        return None
    for index, count in enumerate(counts[: len(bounds)]):
        if count and wanted <= count:
            upper = bounds[index]
            lower = bounds[index - 1] if index else upper / 2
            return float(lower * (upper / lower) ** (wanted / count))
        wanted -= count
    return bounds[-1]
