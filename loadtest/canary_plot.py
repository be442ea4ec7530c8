"""The picture of one bad deploy taken back, which turns bad later if there is one: a PNG.

matplotlib comes with the optional dependency group `loadtest`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from loadtest.canary import CanaryResult, Deploy
from loadtest.canary_versions import LATER, LATER_FAULT
from loadtest.ledger import Cause, Entry
from loadtest.plot import INK, STYLE

OLD, NEW, ERROR = "#9db8d9", "#59a14f", "#d62728"
BIN = 0.05
"""Seconds."""
BEFORE, AFTER = 1.0, 2.0
"""Seconds that are shown before the trial and after it."""
KEPT = ("keep-alive", "idle keep-alive")
"""The kinds of load whose connections are shown one by one."""


def plot(result: CanaryResult, path: Path) -> None:
    """Draw a bad deploy of the run into the file `path`. Raises ImportError if matplotlib is missing."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    bad = [each for each in result.deploys if each.fault is not None and each.on_trial]
    deploy = min(bad, key=lambda each: each.fault is not LATER_FAULT)
    first, last = -BEFORE, deploy.decided - deploy.on_trial + AFTER
    shown = [e for e in result.ledger.entries if e.pid and first <= e.done - deploy.on_trial <= last]
    with pyplot.rc_context({**STYLE, "axes.titlesize": 9}):
        figure, (upper, lower) = pyplot.subplots(
            2, 1, sharex=True, figsize=(7.2, 5.6), height_ratios=[2, 3], layout="constrained", dpi=200
        )
        head(figure, result, deploy)
        answers(upper, deploy, shown, last)
        connections(lower, deploy, [entry for entry in shown if entry.kind in KEPT])
        for axis in (upper, lower):
            for time in (0.0, deploy.decided - deploy.on_trial):
                axis.axvline(time, color=INK, linewidth=0.7, linestyle=(0, (4, 3)))
            axis.set_xlim(first, last)
            axis.set_axisbelow(True)
        for text, time in ((" trial begins", 0.0), (" taken back", deploy.decided - deploy.on_trial)):
            upper.annotate(text, (time, 1.0), xycoords=("data", "axes fraction"), fontsize=8.5, va="bottom")
        lower.set_xlabel("seconds since the new version began to serve its share")
        figure.savefig(path)
        pyplot.close(figure)


def head(figure: Any, result: CanaryResult, deploy: Deploy) -> None:
    """The result as the title, the settings below it."""
    failed = result.failed_by(deploy)
    took = 1000 * (deploy.decided - min((entry.done for entry in failed), default=deploy.decided))
    title = f"{len(failed)} errors in {took:.0f} ms, and the new version is taken back" if failed else "Taken back"
    rate = result.accounts.sent / (result.ended - result.began)
    what = f"After {LATER:g} s on trial it fails every request" if deploy.fault is LATER_FAULT else "A bad version"
    text = (
        f"{what}. {result.settings.workers} workers, {rate:.0f} requests/s; "
        f"{len(result.lost)} lost, {len(result.reconnects)} reconnects."
    )
    figure.suptitle(title, x=0.012, ha="left", fontsize=14, fontweight="bold")
    figure.text(0.013, 0.915, text, fontsize=9, color="#666666")
    figure.get_layout_engine().set(rect=(0, 0, 0.995, 0.94))


def colour(deploy: Deploy) -> Callable[[Entry], str]:
    """By who answered, and how."""

    def of(entry: Entry) -> str:
        if entry.cause is Cause.FAILED:
            return ERROR
        return NEW if entry.generation == deploy.generation else OLD

    return of


def answers(axis: Any, deploy: Deploy, shown: Sequence[Entry], last: float) -> None:
    """Answers per bin, stacked by version and status."""
    of, counts = colour(deploy), {each: Counter[int]() for each in (OLD, NEW, ERROR)}
    for entry in shown:
        counts[of(entry)][int((entry.done - deploy.on_trial + BEFORE) / BIN)] += 1
    bins = range(int((last + BEFORE) / BIN) + 1)
    times = [(index + 0.5) * BIN - BEFORE for index in bins]
    below = [0] * len(times)
    for each in (ERROR, NEW, OLD):
        heights = [counts[each][index] for index in bins]
        axis.bar(times, heights, width=BIN * 0.98, bottom=below, color=each, linewidth=0)
        below = [a + b for a, b in zip(below, heights, strict=True)]
    axis.set_title(f"answers per {BIN * 1000:.0f} ms", pad=16)
    axis.grid(axis="y", color="#eeeeee", linewidth=0.8)


def connections(axis: Any, deploy: Deploy, shown: Sequence[Entry]) -> None:
    """Each answer as a dot, each kept connection as a row; those that the canary has had come first."""
    from matplotlib.lines import Line2D

    of = colour(deploy)
    theirs = {entry.connection for entry in shown if entry.generation == deploy.generation}
    first = {number: min(e.done for e in shown if e.connection == number and of(e) != OLD) for number in theirs}
    numbers = sorted({entry.connection for entry in shown}, key=lambda n: (n not in theirs, first.get(n, 0.0), n))
    rows = {number: len(numbers) - index for index, number in enumerate(numbers)}
    for each, size in ((OLD, 5), (NEW, 7), (ERROR, 22)):
        dots = [entry for entry in shown if of(entry) == each]
        times = [entry.done - deploy.on_trial for entry in dots]
        axis.scatter(times, [rows[entry.connection] for entry in dots], s=size, color=each, linewidths=0, zorder=3)
    for row in rows.values():
        axis.axhline(row, color="#f3f3f3", linewidth=0.6)
    axis.set_title("each row is one kept-alive connection, each dot an answer; no client connects again")
    axis.set_yticks([])
    axis.spines["left"].set_visible(False)
    names = {OLD: "old version", NEW: "new version", ERROR: "new version, 500"}
    handles = [Line2D([], [], marker="o", linestyle="", markersize=6, color=c, label=name) for c, name in names.items()]
    axis.figure.legend(handles=handles, loc="outside lower left", ncols=3, frameon=False, fontsize=9, handletextpad=0)
