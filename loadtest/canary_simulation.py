"""`python -m loadtest.canary_simulation --deploys 10000`: how often the verdict on a canary is wrong, and how late.

Each deploy is a trial of a minute: the requests of each second are drawn for the canary and for the current generation,
and `serve_asgi.supervisor.canary_verdict` judges them as it does in the listener. The tables are those of
docs/how-it-works/canary-verdict.md; the test of the verdict runs a short version.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import random
from collections.abc import Callable, Sequence

from loadtest.ledger import percentile
from loadtest.report import columns
from serve_asgi.ipc.latency_histogram import BUCKETS, LatencyHistogram, bucket
from serve_asgi.supervisor.canary_verdict import CanaryTrial, TrafficSample, TrialPolicy, Verdict, VerdictKind

SECONDS = 60
CANARY_REQUESTS = 3000
"""Of a trial, where nothing else is said: 50 per second."""


@dataclasses.dataclass(frozen=True)
class Outage:
    """Something that both versions need fails for some seconds, once per trial, at any time."""

    seconds: int
    least: float
    most: float
    """The rate of errors in it is drawn between these; for both sides the same, or for each its own."""
    alike: bool


@dataclasses.dataclass(frozen=True)
class Deploy:
    """A kind of deploy."""

    usual: float
    """The rate of errors of the current generation."""
    canary: float
    share: float = 0.25
    """Of the traffic that the canary gets."""
    per_second: float = CANARY_REQUESTS / SECONDS
    """Requests that the canary gets."""
    seconds: int = SECONDS
    bad_from: int = 0
    """The second in which the canary turns bad."""
    outage: Outage | None = None
    steady: bool = True
    """The same number of requests each second; else drawn (Poisson)."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How one trial ended."""

    verdict: Verdict
    requests: int
    """The canary's, since it turned bad, until the verdict."""
    errors: int
    """Of these."""


def binomial(chance: random.Random, of: int, rate: float) -> int:
    """How many of so many fail: jumps from one of the rarer kind to the next."""
    if rate > 0.5:
        return of - binomial(chance, of, 1 - rate)
    if rate <= 0:
        return 0
    scale, found, at = math.log1p(-rate), 0, 0
    while True:
        at += int(math.log(1 - chance.random()) / scale) + 1
        if at > of:
            return found
        found += 1


def poisson(chance: random.Random, mean: float) -> int:
    """How many come in a second."""
    if mean > 50:
        return max(0, round(chance.gauss(mean, math.sqrt(mean))))
    limit, product, found = math.exp(-mean), chance.random(), 0
    while product > limit:
        product *= chance.random()
        found += 1
    return found


def simulate(deploy: Deploy, chance: random.Random, policy: TrialPolicy) -> Outcome:
    """One trial."""
    trial = CanaryTrial(policy)
    others = deploy.per_second * (1 - deploy.share) / deploy.share
    requests = errors = bad_requests = bad_errors = theirs = their_errors = 0
    outage = deploy.outage
    begins = chance.randrange(deploy.seconds) if outage else 0
    rate_here = chance.uniform(outage.least, outage.most) if outage else 0.0
    rate_there = (rate_here if outage.alike else chance.uniform(outage.least, outage.most)) if outage else 0.0
    for second in range(deploy.seconds):
        bad = second >= deploy.bad_from
        rate, usual = deploy.canary if bad else deploy.usual, deploy.usual
        if outage is not None and begins <= second < begins + outage.seconds:
            rate, usual = max(rate, rate_here), max(usual, rate_there)
        if deploy.steady:
            new = int(deploy.per_second * (second + 1)) - int(deploy.per_second * second)
            new_theirs = int(others * (second + 1)) - int(others * second)
        else:
            new, new_theirs = poisson(chance, deploy.per_second), poisson(chance, others)
        failed = binomial(chance, new, rate)
        requests, errors = requests + new, errors + failed
        if bad:
            bad_requests, bad_errors = bad_requests + new, bad_errors + failed
        theirs, their_errors = theirs + new_theirs, their_errors + binomial(chance, new_theirs, usual)
        verdict = trial.observe(TrafficSample(requests, errors), TrafficSample(theirs, their_errors))
        if verdict.kind is not VerdictKind.UNDECIDED:
            return Outcome(verdict, bad_requests, bad_errors)
    return Outcome(trial.finish(), bad_requests, bad_errors)


@dataclasses.dataclass(frozen=True)
class Speed:
    """How long requests take: a log-normal distribution, of which some take a slow path."""

    median: float = 0.008
    """Seconds."""
    sigma: float = 1.0
    slow_path: float = 0.0
    """The share of requests that take it."""
    slowness: float = 5.0
    """How many times as long they take."""

    def times(self, factor: float) -> Speed:
        return dataclasses.replace(self, median=self.median * factor)

    def draw(self, chance: random.Random) -> float:
        seconds = chance.lognormvariate(math.log(self.median), self.sigma)
        return seconds * self.slowness if self.slow_path and chance.random() < self.slow_path else seconds


class Clock:
    """Times requests as a row of the scoreboard does."""

    def __init__(self, speed: Speed, chance: random.Random) -> None:
        self._speed, self._chance = speed, chance
        self._counts, self._seconds = [0] * BUCKETS, 0.0

    def serve(self, requests: int) -> TrafficSample:
        """Some more requests; return all."""
        for _ in range(requests):
            seconds = self._speed.draw(self._chance)
            self._counts[bucket(seconds)] += 1
            self._seconds += seconds
        return TrafficSample(sum(self._counts), 0, LatencyHistogram(tuple(self._counts), self._seconds))


def simulate_latency(
    canary: Speed, current: Speed, factor: float, chance: random.Random, per_second: int = 50
) -> int | None:
    """One trial of a canary with a quarter of the traffic; after how many seconds it was SLOW, or None."""
    trial = CanaryTrial(TrialPolicy(latency_factor=factor))
    ours, theirs = Clock(canary, chance), Clock(current, chance)
    for second in range(1, SECONDS + 1):
        if trial.observe(ours.serve(per_second), theirs.serve(3 * per_second)).kind is VerdictKind.SLOW:
            return second
    return None


# The tables

Row = list[str]


def share_of(found: int, of: int) -> str:
    """A percentage."""
    return ("100 %" if found == of else f"{100 * found / of:.2g} %") if found else "0"


def rate(value: float) -> str:
    return f"{100 * value:g} %"


def both(values: Sequence[int]) -> Row:
    """The median and what nine in ten do not exceed."""
    ordered = sorted(map(float, values))
    return [f"{percentile(ordered, 0.5):.0f}", f"{percentile(ordered, 0.9):.0f}"] if ordered else ["", ""]


def outcomes(deploy: Deploy, deploys: int, chance: random.Random) -> Row:
    """The rates of verdicts, and requests and errors until BAD."""
    found = [simulate(deploy, chance, TrialPolicy()) for _ in range(deploys)]
    bad = [each for each in found if each.verdict.kind is VerdictKind.BAD]
    held = sum(each.verdict.kind is VerdictKind.INCONCLUSIVE for each in found)
    good = deploys - len(bad) - held
    counts = both([each.requests for each in bad]) + both([each.errors for each in bad])
    return [share_of(len(bad), deploys), share_of(held, deploys), share_of(good, deploys), *counts]


def false_alarms(deploys: int, chance: random.Random) -> list[Row]:
    """Good canaries."""
    rows = [["both fail", "share", "BAD", "inconclusive"]]
    for share in (0.5, 0.25, 0.1):
        for usual in (0.0, 0.001, 0.01, 0.05):
            found = outcomes(Deploy(usual, usual, share, steady=False), deploys, chance)
            rows.append([rate(usual), rate(share), *found[:2]])
    return rows


ALARM_HEAD = ["BAD", "inconclusive", "GOOD", "requests", "90 %", "failed", "90 %"]


def alarms(deploys: int, chance: random.Random) -> list[Row]:
    """Bad canaries, observed after each of their requests."""
    rows = [["current fails", "canary fails", "share", *ALARM_HEAD]]
    for share in (0.25, 0.1):
        for usual in (0.0, 0.001, 0.01, 0.05):
            for canary in (1.0, 0.5, 0.2, 0.1, 0.05, 0.03):
                if canary > usual:
                    deploy = Deploy(usual, canary, share, per_second=1, seconds=CANARY_REQUESTS)
                    rows.append([rate(usual), rate(canary), rate(share), *outcomes(deploy, deploys, chance)])
    return rows


def alarms_by_the_second(deploys: int, chance: random.Random) -> list[Row]:
    """Bad canaries as the listener observes them; some turn bad later."""
    rows = [["current fails", "canary fails", "from second", *ALARM_HEAD]]
    for usual, canary in ((0.001, 1.0), (0.001, 0.1), (0.01, 0.1), (0.01, 0.03)):
        for begins in (0, 20, 45):
            deploy = Deploy(usual, canary, bad_from=begins, steady=False)
            rows.append([rate(usual), rate(canary), str(begins), *outcomes(deploy, deploys, chance)])
    return rows


def outages(deploys: int, chance: random.Random) -> list[Row]:
    """Good canaries, while something that both versions need fails for some seconds."""
    rows = [["outage", "fails", "share", "BAD", "inconclusive"]]
    for seconds, least, most, alike in (
        *((2, 0.1, 0.9, True), (5, 0.1, 0.9, True), (15, 0.1, 0.9, True)),
        *((2, 0.1, 0.9, False), (5, 0.1, 0.9, False), (15, 0.1, 0.9, False), (5, 0.0, 0.3, False)),
    ):
        for share in (0.25, 0.1):
            deploy = Deploy(0.001, 0.001, share, outage=Outage(seconds, least, most, alike), steady=False)
            text = f"{rate(least)} to {rate(most)}, " + ("both alike" if alike else "each its own")
            rows.append([f"{seconds} s", text, rate(share), *outcomes(deploy, deploys, chance)[:2]])
    return rows


SPEEDS = {
    "narrow (sigma 0.1)": Speed(sigma=0.1),
    "narrow, at the bound of a bucket": Speed(median=0.01, sigma=0.02),
    "usual (sigma 1)": Speed(),
    "two kinds, 1 : 20": Speed(median=0.004, sigma=0.5, slow_path=0.5, slowness=20),
}


def latencies(deploys: int, chance: random.Random) -> list[Row]:
    """How often a canary is called SLOW, and after how many seconds."""
    rows = [["distribution", "canary", "factor 1.5", "after", "factor 2", "after"]]
    for name, speed in SPEEDS.items():
        slower = [(f"{factor:g} times", speed.times(factor)) for factor in (1.0, 1.2, 1.5, 2.0, 3.0)]
        if not speed.slow_path:
            slower.append(("a tenth 5 times", dataclasses.replace(speed, slow_path=0.1)))
        for how, canary in slower:
            row = [name, how]
            for factor in (1.5, 2.0):
                found = [simulate_latency(canary, speed, factor, chance) for _ in range(deploys)]
                slow = [float(each) for each in found if each is not None]
                row += [share_of(len(slow), deploys), f"{percentile(sorted(slow), 0.5):.0f} s" if slow else ""]
            rows.append(row)
    return rows


TABLES: dict[str, tuple[Callable[[int, random.Random], list[Row]], int]] = {
    "false alarms": (false_alarms, 1),
    "alarms": (alarms, 10),
    "alarms by the second": (alarms_by_the_second, 10),
    "outages": (outages, 5),
    "latency": (latencies, 50),
}
"""By title: the table, and by what the number of deploys is divided for each of its rows."""


def main() -> None:
    """Print the tables."""
    arguments = argparse.ArgumentParser(description="Simulate deploys and print how the verdict on a canary errs.")
    arguments.add_argument("--deploys", type=int, default=10_000, help="for each row of the first table")
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--only", choices=TABLES, help="print this table only")
    given = arguments.parse_args()
    for title, (table, divisor) in TABLES.items():
        if given.only in (None, title):
            deploys = max(20, given.deploys // divisor)
            print(f"\n{title} ({deploys} deploys for each row)\n")
            print("\n".join(columns(table(deploys, random.Random(given.seed)))), flush=True)


if __name__ == "__main__":
    main()
