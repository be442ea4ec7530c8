"""Simulated deploys: how often the verdict on a canary is wrong, and how late.

Each deploy is a trial of a minute: the requests of each second are drawn for the canary and for the current generation,
and `serve_asgi.supervisor.canary_verdict` judges them as it does in the listener.
"""

from __future__ import annotations

import dataclasses
import math
import random

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
