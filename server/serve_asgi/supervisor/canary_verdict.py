"""The verdict on a canary: whether it fails more requests, or is slower, than the current generation in the same time.

It owns the statistics; what is done about a verdict is decided elsewhere. Rules: a canary that is no worse than the
current generation is never BAD, however many requests fail; a verdict that ends the trial stays. Pure: it is given
totals since the trial began, about once per second, and knows no clock. docs/how-it-works/canary-verdict.md explains
the tests and gives their measured error rates.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Iterator
from typing import Final

from serve_asgi.ipc.latency_histogram import LatencyHistogram, bucket

LIKELIHOOD_RATIO: Final = math.log(1000.0)
"""The canary is bad if what it has done since the trial began is so many times as likely for a bad version."""
LATER_LIKELIHOOD_RATIO: Final = math.log(1e6)
"""The same for what it has done since any later moment: there are many moments at which a version may turn bad."""
INCONCLUSIVE_RATIO: Final = 20.0
"""At the end of the trial: so much more likely for a bad version is not good."""
LEAST_ERRORS: Final = 3
EXCUSES: Final = 32
"""Rates that are tried as the usual one."""
WORSE_FACTOR: Final = 3.0
WORSE_BY: Final = 0.02
"""A bad version fails WORSE_FACTOR times as many requests as the current one, and at least WORSE_BY more of them."""
BROKEN: Final = 0.2
"""A broken one fails this share, or that of a bad one if that is more."""
PERIOD: Final = 1.0
"""Seconds from one of the moments to the next since which both sides are compared, and by which bursts are told."""
MOMENTS: Final = 64
"""Most moments since which both sides are compared; further ones take the place of every second earlier one."""
STEADY_OBSERVATIONS: Final = 10
"""How many seconds without bursts the estimate of the overdispersion begins with."""

QUANTILES: Final = (0.5, 0.95)
"""A slow version shows in the median; one with a slow path shows in what the slowest requests take."""
DEVIATIONS: Final = 3.5
"""Standard deviations by which each quantile may have been estimated wrongly: one in 4,300, on each side."""
WARM_UP: Final = 10.0
"""Seconds before latencies are compared: caches, pools and lazy imports make any new process slow at first."""
WARNING_FACTOR: Final = 1.5
"""How much slower a canary is reported to be if its latency does not decide."""


NOTHING_TIMED: Final = LatencyHistogram()


@dataclasses.dataclass(frozen=True, slots=True)
class TrafficSample:
    """What one side, the canary or the current generation, has done in some time."""

    requests: int = 0
    """Finished requests that the application was called with."""
    errors: int = 0
    """Those that the application failed: with a status of 5xx or an exception. Each counts once."""
    latency: LatencyHistogram = NOTHING_TIMED
    in_flight: int = 0
    """Requests that have not ended by now; WebSockets are not counted."""

    def __add__(self, other: TrafficSample) -> TrafficSample:
        """What two have done together."""
        requests, errors = self.requests + other.requests, self.errors + other.errors
        return TrafficSample(requests, errors, self.latency + other.latency, self.in_flight + other.in_flight)

    def __sub__(self, earlier: TrafficSample) -> TrafficSample:
        """What was done since `earlier`; what has not ended is that of now."""
        requests, errors = max(0, self.requests - earlier.requests), max(0, self.errors - earlier.errors)
        return TrafficSample(requests, errors, self.latency - earlier.latency, self.in_flight)

    def unended(self) -> float:
        """The share of its requests that have not ended."""
        return self.in_flight / begun if (begun := self.in_flight + self.requests) else 0.0


NOTHING_DONE: Final = TrafficSample()


class VerdictKind(enum.Enum):
    """What is known of the canary."""

    UNDECIDED = "undecided"
    """The trial goes on."""
    BAD = "bad"
    """It fails more requests than the current generation."""
    SLOW = "slow"
    """It is slower than the policy allows."""
    GOOD = "good"
    """The time is over, and it has been no worse than the current generation."""
    INCONCLUSIVE = "inconclusive"
    """The time is over, and it is not known."""


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """What is known of the canary, and why."""

    kind: VerdictKind
    reason: str
    """A clause with the numbers: "12 of 60 requests failed (20 %), against 3 of 5,210 (0.06 %) in the same time"."""
    likelihood_ratio: float = 1.0
    """How many times as likely the canary's errors are for a bad version, at least 1; bursts are allowed for."""
    latency_warning: str = ""
    """A clause with the numbers if the canary is slower, which the policy does not have decide; else ""."""


@dataclasses.dataclass(frozen=True, slots=True)
class TrialPolicy:
    """What decides a trial."""

    latency_factor: float | None = None
    """From how many times the current generation's latency on the canary is SLOW; None: latency only warns."""
    minimum_requests: int = 100
    """The canary's requests without which it cannot be GOOD: a version that fails 10 % shows in about as many."""
    when: str = "in the same time"
    """When the current generation has done what it is compared with, for the sentences."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Moment:
    """Both sides' totals at one observation."""

    canary: TrafficSample = NOTHING_DONE
    current: TrafficSample = NOTHING_DONE


class CanaryTrial:
    """One trial: the observations so far, and what follows from them."""

    def __init__(self, policy: TrialPolicy) -> None:
        self._policy = policy
        self._moments = [_Moment()]
        """Since when both sides are compared, the earliest first; the last observation is the last."""
        self._warm: _Moment | None = None
        """The totals at the end of the warm-up."""
        self._bursts = 0.0
        """The sum of errors² / requests of the current generation in each second."""
        self._busy = 0
        """Seconds in which it had requests."""
        self._last = self._noted = _Moment()
        """The last observation, and the last after which a second had passed."""
        self._began: float | None = None
        """When the trial began, a second before its first observation."""
        self._noted_at = 0.0
        self._ended: Verdict | None = None

    def observe(self, canary: TrafficSample, current: TrafficSample, at: float | None = None) -> Verdict:
        """Take both sides' totals since the trial began; return what is known by now.

        Called about once per second, and in between whenever that may find a bad canary sooner. `at` is a time (s) of
        any clock; None: one second after the last.
        """
        if self._ended is not None:
            return self._ended
        now = _Moment(_possible(canary), _possible(current))
        if at is None:
            at = self._noted_at + PERIOD
        if self._began is None:
            self._began = self._noted_at = at - PERIOD
        self._last = now
        if at - self._noted_at >= 0.9 * PERIOD:
            self._note(now, at, warm=at - self._began >= WARM_UP - 0.1)
        verdict = self._judged(now)
        if verdict.kind is not VerdictKind.UNDECIDED:
            self._ended = verdict
        return verdict

    def finish(self) -> Verdict:
        """The time is over: what is known in the end. An earlier BAD or SLOW stays."""
        if self._ended is None:
            self._ended = self._final()
        return self._ended

    def overdispersion(self) -> float:
        """How much more the current generation's errors vary from second to second than independent ones would; >= 1.

        Pearson's statistic by its degrees of freedom, as quasi-likelihood has it (McCullagh and Nelder, "Generalized
        Linear Models", 4.5); the first few seconds count for little.
        """
        total = self._noted.current
        if not 0 < total.errors < total.requests:
            return 1.0
        rate = total.errors / total.requests
        pearson = (self._bursts - total.errors * rate) / (rate * (1 - rate))
        freedom = self._busy - 1 + STEADY_OBSERVATIONS
        return max(1.0, (pearson + STEADY_OBSERVATIONS) / freedom)

    def _note(self, now: _Moment, at: float, warm: bool) -> None:
        """A second is over."""
        done = _added(now.current, self._noted.current)
        if done.requests:
            self._bursts += done.errors**2 / done.requests
            self._busy += 1
        if self._warm is None and warm:
            self._warm = now
        self._noted, self._noted_at = now, at
        if len(self._moments) == MOMENTS:
            self._moments = self._moments[::2]
        self._moments.append(now)

    # Errors

    def _judged(self, now: _Moment) -> Verdict:
        usual = usual_rate(now.current)
        bursts = self.overdispersion()
        ratio = evidence(now.canary, now.current, usual) / bursts
        if ratio > LIKELIHOOD_RATIO and now.canary.errors >= LEAST_ERRORS:
            return Verdict(VerdictKind.BAD, self._comparison(now.canary, now.current), _from_log(ratio))
        later = [
            (evidence(*_since(then, now), usual) / bursts, index)
            for index, then in self._later_suspicions(now, usual, bursts)
        ]
        strongest, index = max(later, default=(0.0, 0))
        if strongest > LATER_LIKELIHOOD_RATIO:
            text = self._comparison(*_since(self._moments[index], now))
            return Verdict(VerdictKind.BAD, text, _from_log(strongest))
        if hanging := self._hanging(now):
            return Verdict(VerdictKind.BAD, hanging)
        ratio = _from_log(max(0.0, ratio))
        slower = self._slower(now)
        if slower and self._policy.latency_factor is not None:
            return Verdict(VerdictKind.SLOW, slower, ratio)
        return Verdict(VerdictKind.UNDECIDED, self._comparison(now.canary, now.current), ratio, slower)

    def _hanging(self, now: _Moment) -> str:
        """What shows that requests do not end on the canary, in a clause, or "". Streams last on both sides alike."""
        canary, current = now.canary, now.current
        if self._warm is None or canary.in_flight < LEAST_ERRORS or canary.in_flight <= canary.requests:
            return ""
        if canary.unended() <= WORSE_FACTOR * current.unended():
            return ""
        return (
            f"{canary.in_flight:,} of its requests have not ended and {canary.requests:,} have, against "
            f"{current.in_flight:,} and {current.requests:,} of the current generation {self._policy.when}"
        )

    def _later_suspicions(self, now: _Moment, usual: float, bursts: float) -> Iterator[tuple[int, _Moment]]:
        """The moments since which the canary has failed too many requests for the usual rate."""
        enough = LATER_LIKELIHOOD_RATIO * bursts
        weights = [(math.log(rate / usual), math.log((1 - rate) / (1 - usual))) for rate in bad_rates(usual)]
        for index, then in enumerate(self._moments[1:], 1):
            done = _added(now.canary, then.canary)
            if done.errors < LEAST_ERRORS:
                break
            good = done.requests - done.errors
            if any(done.errors * error + good * success > enough for error, success in weights):
                yield index, then

    def _final(self) -> Verdict:
        now = self._last
        undecided = self._judged(now)
        ratio, warning, numbers = undecided.likelihood_ratio, undecided.latency_warning, undecided.reason
        least = self._policy.minimum_requests
        if now.canary.requests < least:
            text = f"the canary had {_many(now.canary.requests)}, and {least:,} are needed: {numbers}"
            return Verdict(VerdictKind.INCONCLUSIVE, text, ratio, warning)
        if now.current.requests < least and now.canary.errors >= LEAST_ERRORS:
            text = f"the current generation had {_many(now.current.requests)}, and {least:,} are needed to compare"
            return Verdict(VerdictKind.INCONCLUSIVE, f"{text}: {numbers}", ratio, warning)
        if ratio > INCONCLUSIVE_RATIO:
            text = f"it may be worse, but too few requests have shown it: {numbers}"
            return Verdict(VerdictKind.INCONCLUSIVE, text, ratio, warning)
        return Verdict(VerdictKind.GOOD, numbers, ratio, warning)

    def _comparison(self, canary: TrafficSample, current: TrafficSample) -> str:
        ours = f"{canary.errors:,} of {_many(canary.requests)} failed{_percent(canary)}"
        return f"{ours}, against {current.errors:,} of {current.requests:,}{_percent(current)} {self._policy.when}"

    # Latency

    def _slower(self, now: _Moment) -> str:
        """How much slower the canary is than it may be, in a clause, or ""."""
        if self._warm is None:
            return ""
        factor = self._policy.latency_factor or WARNING_FACTOR
        canary = now.canary.latency - self._warm.canary.latency
        current = now.current.latency - self._warm.current.latency
        if not current.requests:
            current = now.current.latency
        for share in QUANTILES:
            ours = canary.confidence_interval(share, DEVIATIONS)
            theirs = current.confidence_interval(share, DEVIATIONS)
            if ours is None or theirs is None or ours[0] <= factor * theirs[1]:
                continue
            if bucket(ours[0]) - bucket(theirs[1]) < 2 and canary.mean() <= (1 + factor) / 2 * current.mean():
                continue  # neighbouring buckets may be no further apart than their bound is wide
            measured, usual = canary.quantile(share), current.quantile(share)
            name = "half" if share == 0.5 else f"{share * 100:.0f} %"
            return (
                f"{name} of its requests took up to {_duration(measured)}, {measured / usual:.1f} times as long "
                f"as those of the current generation {self._policy.when} ({_duration(usual)})"
            )
        return ""


def usual_rate(current: TrafficSample) -> float:
    """The current generation's rate of errors; with half an error added, since none seen does not mean that none is."""
    return (current.errors + 0.5) / (current.requests + 1)


def bad_rates(usual: float) -> tuple[float, float]:
    """The rates of errors of a bad version and of a broken one.

    At most half of what is left to 1, so that they are above the usual rate wherever anything can be.
    """
    bad, most = max(WORSE_FACTOR * usual, usual + WORSE_BY), (1 + usual) / 2
    return min(bad, most), min(max(bad, BROKEN), most)


def log_likelihood_ratio(canary: TrafficSample, usual: float) -> float:
    """The logarithm of how many times as likely the canary's errors are for a bad or broken version as for a good one.

    Wald's sequential test with two alternatives of equal weight (A. Wald, "Sequential Tests of Statistical Hypotheses",
    1945, 4.1.2). 0.0 if the canary's rate is not above the usual one.
    """
    if canary.errors <= usual * canary.requests:
        return 0.0
    good = canary.requests - canary.errors
    bad, broken = (
        canary.errors * math.log(rate / usual) + good * math.log((1 - rate) / (1 - usual)) for rate in bad_rates(usual)
    )
    return max(bad, broken) + math.log1p(math.exp(-abs(bad - broken))) - math.log(2)


def evidence(canary: TrafficSample, current: TrafficSample, least: float = 0.0) -> float:
    """The logarithmic likelihood ratio against a canary, whatever the usual rate of errors may be.

    The usual rate is not known, only what the current generation has done. So each rate from the estimate (at least
    `least`) up to the canary's own is a possible excuse, at the price of making what the current generation did less
    likely; the best one counts.
    """
    usual = max(usual_rate(current), least)
    found = log_likelihood_ratio(canary, usual)
    if found <= 0:
        return found
    step = (canary.errors / canary.requests / usual) ** (1 / EXCUSES)
    likely = _log_likelihood(current, usual)
    for _ in range(EXCUSES - 1):
        usual *= step
        excused = max(0.0, log_likelihood_ratio(canary, usual)) + likely - _log_likelihood(current, usual)
        found = min(found, excused)
    return found


def _log_likelihood(counts: TrafficSample, rate: float) -> float:
    return counts.errors * math.log(rate) + (counts.requests - counts.errors) * math.log(1 - rate)


def _from_log(ratio: float) -> float:
    return math.exp(min(ratio, 700.0))


def _added(now: TrafficSample, before: TrafficSample) -> TrafficSample:
    """What was done since `before`, without latencies."""
    return _possible(TrafficSample(now.requests - before.requests, now.errors - before.errors))


def _since(then: _Moment, now: _Moment) -> tuple[TrafficSample, TrafficSample]:
    """What both sides have done since; if the current generation has had no request, what it had done before that."""
    current = _added(now.current, then.current)
    return _added(now.canary, then.canary), current if current.requests else now.current


def _possible(sample: TrafficSample) -> TrafficSample:
    """A WebSocket may fail long after it was counted as a request: no more errors than requests are reckoned with."""
    if 0 <= sample.errors <= sample.requests:
        return sample
    requests = max(0, sample.requests)
    return TrafficSample(requests, min(max(0, sample.errors), requests), sample.latency)


def _many(requests: int) -> str:
    return "1 request" if requests == 1 else f"{requests:,} requests"


def _percent(sample: TrafficSample) -> str:
    return f" ({_rounded(100 * sample.errors / sample.requests)} %)" if sample.errors and sample.requests else ""


def _duration(seconds: float) -> str:
    return f"{_rounded(seconds)} s" if seconds >= 1 else f"{_rounded(seconds * 1000)} ms"


def _rounded(number: float) -> str:
    return f"{number:.2g}" if number < 9.95 else f"{number:.0f}"
