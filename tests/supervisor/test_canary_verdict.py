"""The verdict on a canary: a table of exact cases, what holds for all of them, and how often it is wrong."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.canary_simulation import Deploy, Outage, simulate
from serve_asgi.ipc.latency_histogram import BUCKETS, LatencyHistogram, bucket
from serve_asgi.supervisor.canary_verdict import CanaryTrial, TrafficSample, TrialPolicy, Verdict, VerdictKind

BAD, SLOW, GOOD = VerdictKind.BAD, VerdictKind.SLOW, VerdictKind.GOOD
UNDECIDED, INCONCLUSIVE = VerdictKind.UNDECIDED, VerdictKind.INCONCLUSIVE


def judged(canary: tuple[int, int], current: tuple[int, int]) -> Verdict:
    """The verdict after one observation: requests and errors of both sides."""
    return CanaryTrial(TrialPolicy()).observe(TrafficSample(*canary), TrafficSample(*current))


@pytest.mark.parametrize(
    ("canary", "current", "kind"),
    [
        ((0, 0), (0, 0), UNDECIDED),
        ((7, 7), (21, 0), BAD),
        ((4, 4), (12, 0), UNDECIDED),
        ((2, 2), (100_000, 0), UNDECIDED),  # at least 3
        ((3, 3), (100_000, 0), BAD),
        ((60, 12), (5210, 3), BAD),
        ((60, 12), (180, 36), UNDECIDED),  # both alike
        ((1000, 1000), (3000, 3000), UNDECIDED),
        ((1000, 990), (3000, 2985), UNDECIDED),  # 99 % against 99.5 %: not worse
        ((1000, 999), (3000, 1500), BAD),
        ((30, 3), (90, 1), UNDECIDED),
        ((3000, 45), (9000, 90), UNDECIDED),  # 1.5 % against 1 %
        ((3000, 120), (9000, 90), BAD),
        ((3, 3), (0, 0), UNDECIDED),  # there is nothing to compare it with
    ],
)
def test_verdict_on_counts(canary: tuple[int, int], current: tuple[int, int], kind: VerdictKind) -> None:
    assert judged(canary, current).kind is kind


def test_the_reason_gives_the_numbers() -> None:
    verdict = judged((60, 12), (5210, 3))
    assert verdict.reason == "12 of 60 requests failed (20 %), against 3 of 5,210 (0.058 %) in the same time"
    assert verdict.likelihood_ratio > 1000


def test_a_verdict_stays() -> None:
    trial = CanaryTrial(TrialPolicy())
    bad = trial.observe(TrafficSample(7, 7), TrafficSample(21, 0))
    assert trial.observe(TrafficSample(1000, 7), TrafficSample(3000, 0)) is bad
    assert trial.finish() is bad


def test_a_canary_that_turns_bad_late_is_seen_though_it_was_good_for_long() -> None:
    trial = CanaryTrial(TrialPolicy())
    for second in range(1, 601):
        assert trial.observe(TrafficSample(50 * second, 0), TrafficSample(150 * second, second)).kind is UNDECIDED
    after = trial.observe(TrafficSample(30_050, 25), TrafficSample(90_150, 601))
    assert after.kind is BAD
    assert "25 of 50 requests" in after.reason


def test_an_outage_that_hits_both_is_not_the_canarys_fault() -> None:
    trial = CanaryTrial(TrialPolicy())
    canary, current = TrafficSample(), TrafficSample()
    for second in range(60):
        out = 20 <= second < 25
        canary = TrafficSample(canary.requests + 50, canary.errors + 40 * out)
        current = TrafficSample(current.requests + 150, current.errors + 105 * out)
        assert trial.observe(canary, current).kind is UNDECIDED
    assert trial.overdispersion() > 10
    assert trial.finish().kind is GOOD


@pytest.mark.parametrize(
    ("canary", "current", "kind", "why"),
    [
        ((99, 0), (400, 0), INCONCLUSIVE, "the canary had 99 requests, and 100 are needed: 0 of 99"),
        ((1, 0), (400, 0), INCONCLUSIVE, "the canary had 1 request, and 100 are needed: 0 of 1 request failed"),
        ((100, 0), (400, 0), GOOD, "0 of 100 requests failed, against 0 of 400"),
        ((100, 4), (0, 0), INCONCLUSIVE, "the current generation had 0 requests, and 100 are needed to compare"),
        ((100, 0), (0, 0), GOOD, "0 of 100 requests failed, against 0 of 0"),
        ((300, 15), (900, 12), INCONCLUSIVE, "it may be worse, but too few requests have shown it: 15 of 300"),
    ],
)
def test_the_end_of_the_time(canary: tuple[int, int], current: tuple[int, int], kind: VerdictKind, why: str) -> None:
    trial = CanaryTrial(TrialPolicy(minimum_requests=100))
    assert trial.observe(TrafficSample(*canary), TrafficSample(*current)).kind is UNDECIDED
    verdict = trial.finish()
    assert verdict.kind is kind
    assert verdict.reason.startswith(why)


def test_a_trial_without_an_observation_is_inconclusive() -> None:
    assert CanaryTrial(TrialPolicy()).finish().kind is INCONCLUSIVE


# Latency


def timed(durations: dict[float, int]) -> TrafficSample:
    """Requests of these durations (s)."""
    counts = [0] * BUCKETS
    for seconds, requests in durations.items():
        counts[bucket(seconds)] += requests
    seconds = sum(each * requests for each, requests in durations.items())
    return TrafficSample(sum(counts), 0, LatencyHistogram(tuple(counts), seconds))


def after_warm_up(canary: TrafficSample, current: TrafficSample, factor: float | None = None) -> Verdict:
    trial = CanaryTrial(TrialPolicy(latency_factor=factor))
    for _ in range(10):
        trial.observe(TrafficSample(), TrafficSample())
    return trial.observe(canary, current)


USUAL = {0.004: 500, 0.008: 400, 0.04: 100}


def test_latency_warns_and_decides_with_a_factor() -> None:
    slow = timed({seconds * 5: requests for seconds, requests in USUAL.items()})
    warned = after_warm_up(slow, timed(USUAL))
    assert warned.kind is UNDECIDED
    assert warned.latency_warning.startswith("half of its requests took up to 20 ms")
    decided = after_warm_up(slow, timed(USUAL), 2.0)
    assert (decided.kind, decided.reason) == (SLOW, warned.latency_warning)
    assert after_warm_up(slow, timed(USUAL), 8.0).kind is UNDECIDED


def test_a_slow_path_of_a_tenth_shows() -> None:
    verdict = after_warm_up(timed({0.004: 500, 0.008: 400, 0.4: 100}), timed(USUAL))
    assert verdict.latency_warning.startswith("95 % of its requests")


def test_the_bound_of_a_bucket_does_not_make_a_difference() -> None:
    """1.05 ms is counted as up to 2 ms, 0.98 ms as up to 1."""
    assert not after_warm_up(timed({0.00105: 1000}), timed({0.00098: 1000})).latency_warning


@pytest.mark.parametrize("requests", [0, 5])
def test_few_requests_say_nothing_of_latency(requests: int) -> None:
    assert not after_warm_up(timed({1.0: requests}), timed(USUAL)).latency_warning


def test_the_warm_up_does_not_count() -> None:
    trial = CanaryTrial(TrialPolicy(latency_factor=1.5))
    cold = timed({1.0: 1000})
    for _ in range(10):
        assert trial.observe(cold, timed(USUAL)).kind is UNDECIDED
    assert trial.observe(cold, timed(USUAL)).kind is UNDECIDED


def test_looks_in_between_are_not_seconds() -> None:
    trial = CanaryTrial(TrialPolicy(latency_factor=2.0))
    for look in range(1, 451):  # 9 s
        assert trial.observe(timed({0.1: look}), timed({0.01: 3 * look}), look / 50).kind is UNDECIDED
    kinds = [trial.observe(timed({0.1: look}), timed({0.01: 3 * look}), look / 50).kind for look in range(451, 1000)]
    assert kinds[-1] is SLOW


def test_what_was_before_the_switch_is_compared_with_as_well() -> None:
    """After a switch the current generation has had no requests in the same time, only before that."""
    trial = CanaryTrial(TrialPolicy(when="before the switch", latency_factor=2.0))
    before = TrafficSample(10_000, 20, timed({0.01: 10_000}).latency)
    for second in range(1, 101):
        assert trial.observe(TrafficSample(50 * second, 0), before, float(second)).kind is UNDECIDED
    verdict = trial.observe(TrafficSample(5050, 20), before, 101.0)
    assert (verdict.kind, verdict.reason) == (
        BAD,
        "20 of 50 requests failed (40 %), against 20 of 10,000 (0.2 %) before the switch",
    )


# What holds for all

sides = st.tuples(st.integers(0, 5000), st.floats(0, 1)).map(lambda side: (side[0], round(side[0] * side[1])))


@given(sides, sides)
def test_one_more_error_never_acquits(canary: tuple[int, int], current: tuple[int, int]) -> None:
    requests, errors = canary
    if judged(canary, current).kind is BAD:
        assert judged((requests + 1, errors + 1), current).kind is BAD
        if errors < requests:
            assert judged((requests, errors + 1), current).kind is BAD


@given(sides, sides)
def test_a_canary_that_is_no_worse_is_not_bad(canary: tuple[int, int], current: tuple[int, int]) -> None:
    if canary[1] * current[0] <= current[1] * canary[0] and current[0]:
        assert judged(canary, current).kind is UNDECIDED


@given(sides, sides)
def test_the_better_of_two_is_never_bad(one: tuple[int, int], other: tuple[int, int]) -> None:
    assert [judged(one, other).kind, judged(other, one).kind].count(BAD) < 2


@given(st.lists(st.tuples(sides, sides), max_size=200))
def test_any_observations_are_taken(observed: list[tuple[tuple[int, int], tuple[int, int]]]) -> None:
    trial = CanaryTrial(TrialPolicy(latency_factor=2.0))
    ours = theirs = (0, 0)
    for canary, current in observed:
        ours = (ours[0] + canary[0], ours[1] + canary[1])
        theirs = (theirs[0] + current[0], theirs[1] + current[1])
        verdict = trial.observe(TrafficSample(*ours), TrafficSample(*theirs))
        assert verdict.likelihood_ratio >= 0
    assert trial.finish().kind is not UNDECIDED


# How often it is wrong: a short version of `python -m loadtest.canary_simulation`


@pytest.mark.parametrize("share", [0.5, 0.25])
@pytest.mark.parametrize("rate", [0.0, 0.001, 0.01, 0.05])
def test_false_alarms(rate: float, share: float) -> None:
    chance = random.Random(4)
    deploy = Deploy(rate, rate, share, per_second=50)
    kinds = [simulate(deploy, chance, TrialPolicy()).verdict.kind for _ in range(50)]
    assert kinds.count(BAD) <= 1


@pytest.mark.parametrize(
    ("usual", "canary", "share", "most"),
    [(0.0, 1.0, 0.25, 7), (0.01, 1.0, 0.25, 7), (0.001, 0.2, 0.25, 30), (0.01, 0.1, 0.1, 100)],
)
def test_requests_until_the_alarm(usual: float, canary: float, share: float, most: int) -> None:
    chance = random.Random(5)
    deploy = Deploy(usual, canary, share, per_second=1, seconds=2000)
    outcomes = [simulate(deploy, chance, TrialPolicy()) for _ in range(50)]
    assert all(outcome.verdict.kind is BAD for outcome in outcomes)
    assert sorted(outcome.requests for outcome in outcomes)[25] <= most


def test_outages() -> None:
    chance = random.Random(6)
    deploy = Deploy(0.001, 0.001, outage=Outage(5, 0.1, 0.9, alike=True))
    kinds = [simulate(deploy, chance, TrialPolicy()).verdict.kind for _ in range(50)]
    assert kinds.count(BAD) <= 1


def test_samples_are_added_and_subtracted_and_never_below_nothing() -> None:
    one, other = TrafficSample(10, 1), TrafficSample(4, 3)
    assert one + other == TrafficSample(14, 4)
    assert one - other == TrafficSample(6, 0)


def test_errors_that_are_more_than_the_requests_count_as_all_of_them() -> None:
    """A WebSocket may fail long after it was counted as a request."""
    assert judged((5, 9), (100_000, 0)).kind is BAD
    assert judged((-1, 9), (100_000, 0)).kind is UNDECIDED


@pytest.mark.parametrize(
    ("canary", "current", "kind"),
    [
        ((0, 5), (400, 4), BAD),  # requests that have ended, and not
        ((4, 5), (400, 4), BAD),
        ((0, 2), (400, 4), UNDECIDED),
        ((50, 5), (400, 4), UNDECIDED),
        ((0, 5), (0, 20), UNDECIDED),  # streams alone
        ((2, 5), (6, 20), UNDECIDED),
    ],
)
def test_a_version_whose_requests_do_not_end_is_bad(
    canary: tuple[int, int], current: tuple[int, int], kind: VerdictKind
) -> None:
    trial = CanaryTrial(TrialPolicy())
    ours, theirs = TrafficSample(canary[0], in_flight=canary[1]), TrafficSample(current[0], in_flight=current[1])
    assert trial.observe(ours, theirs, 1.0).kind is UNDECIDED, "they have only begun"
    for second in range(2, 12):
        verdict = trial.observe(ours, theirs, float(second))
    assert verdict.kind is kind
    assert ("have not ended" in verdict.reason) is (kind is BAD)
