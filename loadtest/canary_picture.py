"""`python -m loadtest.canary_picture docs/pictures/canary-verdict.png`: the evidence in three simulated trials.

A version that is bad, one that is good, and one that is good while a database that both versions need is out. Above,
what share of the requests has failed so far; below, the likelihood ratio that the verdict is made from.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
from pathlib import Path

from loadtest.canary_simulation import SECONDS, binomial
from loadtest.plot import FAINT, INK, STYLE
from serve_asgi.supervisor.canary_verdict import CanaryTrial, TrafficSample, TrialPolicy, VerdictKind

PER_SECOND = 5
"""Requests that the canary gets; the current generation gets three times as many."""
CANARY, CURRENT, ALARM = "#f28e2b", "#4e79a7", "#d62728"
LEAST, MOST = 0.5, 1e5
"""Of the axis of likelihood ratios."""


@dataclasses.dataclass(frozen=True)
class Story:
    """One trial: both sides' rate of errors from a second on."""

    title: str
    canary: dict[int, float]
    current: dict[int, float]

    def rates(self, second: int) -> tuple[float, float]:
        """In this second."""
        ours, theirs = (
            side[max(begins for begins in side if begins <= second)] for side in (self.canary, self.current)
        )
        return ours, theirs


STORIES = (
    Story("bad: 1 % → 10 %", {0: 0.1}, {0: 0.01}),
    Story("good: both fail 1 %", {0: 0.01}, {0: 0.01}),
    Story("good, in an outage of what both need", {0: 0.01, 20: 0.5, 25: 0.01}, {0: 0.01, 20: 0.5, 25: 0.01}),
)


@dataclasses.dataclass
class Course:
    """What was known after each second, until the verdict."""

    ours: list[float]
    theirs: list[float]
    ratios: list[float]
    alarm: int | None = None
    failed: int = 0
    requests: int = 0
    """The canary's until then."""


def course(story: Story, chance: random.Random) -> Course:
    """Play a trial; what would have followed an alarm is left out."""
    trial, found = CanaryTrial(TrialPolicy()), Course([], [], [])
    canary, current = TrafficSample(), TrafficSample()
    for second in range(SECONDS):
        ours, theirs = story.rates(second)
        failed, failed_there = binomial(chance, PER_SECOND, ours), binomial(chance, 3 * PER_SECOND, theirs)
        canary = canary + TrafficSample(PER_SECOND, failed)
        current = current + TrafficSample(3 * PER_SECOND, failed_there)
        verdict = trial.observe(canary, current)
        found.ours.append(100 * canary.errors / canary.requests)
        found.theirs.append(100 * current.errors / current.requests)
        found.ratios.append(verdict.likelihood_ratio)
        if verdict.kind is VerdictKind.BAD:
            found.alarm, found.failed, found.requests = second, canary.errors, canary.requests
            break
    return found


def draw(path: Path, seed: int) -> None:
    """Draw into `path`. Raises ImportError if matplotlib is missing."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context(STYLE):
        figure, axes = pyplot.subplots(
            2, 3, sharex=True, sharey="row", figsize=(12, 5), height_ratios=[2, 3], layout="constrained", dpi=130
        )
        for column, story in enumerate(STORIES):
            found = course(story, random.Random(seed))
            above, below = axes[0][column], axes[1][column]
            above.set_title(story.title)
            seconds = range(1, len(found.ratios) + 1)
            above.plot(seconds, found.theirs, color=CURRENT, label="current generation")
            above.plot(seconds, found.ours, color=CANARY, label="canary")
            below.semilogy(seconds, found.ratios, color=INK)
            below.axhline(1000, color=ALARM, linewidth=0.9, linestyle="--")
            below.axhline(1, color=FAINT, linewidth=0.6)
            if found.alarm is not None:
                at, ratio = found.alarm + 1, found.ratios[-1]
                below.plot(at, ratio, "o", color=ALARM)
                below.annotate(
                    f"taken back after {found.requests} requests,\n{found.failed} of which it failed",
                    (at, ratio),
                    (10, -20),
                    textcoords="offset points",
                    va="top",
                    color=ALARM,
                )
            below.set_xlabel("seconds since the trial began")
        axes[0][0].set_ylabel("failed so far, %")
        axes[0][0].set_ylim(0, 20)
        axes[0][1].legend(frameon=False, loc="upper right")
        axes[1][0].set_ylabel("times as likely if it is bad")
        axes[1][0].set_ylim(LEAST, MOST)
        axes[1][0].set_xlim(0, SECONDS)
        axes[1][2].text(SECONDS, 1250, "1000: taken back", color=ALARM, fontsize=8, ha="right")
        figure.savefig(path)


def main() -> None:
    """Draw the picture."""
    arguments = argparse.ArgumentParser(description="Draw the likelihood ratio in three simulated trials.")
    arguments.add_argument("path", type=Path)
    arguments.add_argument("--seed", type=int, default=42)
    given = arguments.parse_args()
    draw(given.path, given.seed)


if __name__ == "__main__":
    main()
