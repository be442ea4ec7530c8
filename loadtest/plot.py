"""The picture of a run, and of two runs beside each other: PNG timelines.

matplotlib comes with the optional dependency group `loadtest`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loadtest.kinds import KINDS
from loadtest.result import Result
from loadtest.servers import parser
from loadtest.timeline import Timeline, timeline

COLOURS = ("#4e79a7", "#76b7b2", "#59a14f", "#b6992d", "#b07aa1", "#9c755f")
"""Of the generations, in turn. None is red: red means lost."""
LOST = "#d62728"
RECONNECT = "#f28e2b"
ROOM = 0.04
"""Of the time shown: what the name of a reload takes, so that the next one has none if it comes sooner."""
INK = "#333333"
FAINT = "#999999"

STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": "#cccccc",
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 9.5,
}
"""What all pictures of the load tests have in common, for matplotlib."""


def plot(result: Result, path: Path) -> None:
    """Draw the run into the file `path`. Raises ImportError if matplotlib is missing."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    data = of(result)
    with pyplot.rc_context(STYLE):
        figure, axes = pyplot.subplots(
            4, 1, sharex=True, figsize=(12, 8.2), height_ratios=[3, 1, 2, 2], layout="constrained", dpi=130
        )
        head(figure, result)
        answers(axes[0], data)
        failures(axes[1], data)
        latency(axes[2], data)
        requests(axes[3], data)
        over_time(axes, result)
        figure.savefig(path)
        pyplot.close(figure)


def beside(results: Sequence[Result], path: Path) -> None:
    """Draw runs under the same load beside each other, on the same scales but for the time.

    Raises ImportError if matplotlib is missing.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot, ticker

    with pyplot.rc_context({**STYLE, "font.size": 10, "axes.titlesize": 12.5, "axes.titleweight": "bold"}):
        figure, axes = pyplot.subplots(
            *(3, len(results)),
            sharex="col",
            sharey="row",
            figsize=(10.4, 6.4),
            height_ratios=[3, 1.6, 2],
            layout="constrained",
            dpi=150,
            squeeze=False,
        )
        for column, result in zip(axes.T, results, strict=True):
            data = of(result)
            answers(column[0], data)
            failures(column[1], data)
            latency(column[2], data)
            over_time(column, result)
            for axis in column:
                axis.set_title("")
            title = f"{result.settings.server}: {result.lost:,} lost, {result.reconnects:,} reconnects"
            column[0].set_title(title, pad=18, color=LOST if result.lost else INK)
        for axis, name in zip(
            axes[:, 0],
            ("responses/s, each colour\none generation", "lost (red), closed\n(orange)", "p99, p50; ms"),
            strict=True,
        ):
            axis.set_ylabel(name)
        axes[1][0].yaxis.set_major_locator(ticker.MaxNLocator(4, integer=True))
        figure.align_ylabels()
        figure.savefig(path)
        pyplot.close(figure)


def over_time(axes: Sequence[Any], result: Result) -> None:
    """What the charts of a run have in common: the time, and its reloads."""
    if len(result.reloads) <= 20:
        written = float("-inf")
        for reload in result.reloads:
            at = reload.sent - result.began
            if at - written > ROOM * shown(result):
                axes[0].annotate(
                    "HUP", (at, 1), xycoords=("data", "axes fraction"), ha="center", fontsize=7, color=FAINT
                )
                written = at
    for axis in axes:
        reload_lines(axis, result)
        axis.set_xlim(0, shown(result))
        axis.grid(axis="y", color="#eeeeee", linewidth=0.8)
        axis.set_axisbelow(True)
    axes[-1].set_xlabel("seconds")


def of(result: Result) -> Timeline:
    """The timeline of a run."""
    return timeline(
        result.ledger.entries,
        result.executions,
        [reload.sent for reload in result.reloads],
        [reconnect.time for reconnect in result.ledger.reconnects],
        result.began,
        result.ended,
        [kind.name for kind in KINDS if kind.prompt],
    )


def shown(result: Result) -> float:
    """Seconds of the run that are worth showing: until the load ended, or the last request was lost."""
    sent = max((entry.sent for entry in result.ledger.entries), default=result.ended)
    lost = max((entry.done for entry in result.accounts.lost), default=0.0)
    return max(sent, lost) - result.began


def head(figure: Any, result: Result) -> None:
    """The result as the title, the settings below it."""
    settings = result.settings
    counts = ((result.lost, "lost"), (result.reconnects, "reconnects"), (len(result.reloads), "reloads"))
    verdict = f"{settings.server}:  " + ",  ".join(
        f"{count:,} {what.removesuffix('s') if count == 1 else what}" for count, what in counts
    )
    setting = (
        f"{settings.workers} workers, {parser(settings.server, settings.http)}, {settings.loop}; "
        f"{result.accounts.sent:,} requests and messages in {result.ended - result.began:.0f} s, nothing retried"
    )
    bad = result.lost or result.duplicated
    figure.suptitle(verdict, x=0.01, ha="left", fontsize=17, fontweight="bold", color=LOST if bad else INK)
    figure.text(0.012, 0.938, setting, fontsize=10, color="#666666")
    figure.get_layout_engine().set(rect=(0, 0, 1, 0.96))


def answers(axis: Any, data: Timeline) -> None:
    """Responses per second, stacked by generation."""
    axis.set_title("responses per second; each colour is one generation of workers", pad=15)
    axis.stackplot(data.times, data.answered, colors=COLOURS, linewidth=0, step="mid")
    axis.set_ylim(bottom=0)


def requests(axis: Any, data: Timeline) -> None:
    """Requests in progress, stacked by generation."""
    axis.set_title("requests in progress, by generation: the older one finishes what it has begun")
    axis.stackplot(data.times, data.in_flight, colors=COLOURS, linewidth=0, step="mid")
    axis.set_ylim(bottom=0)


def failures(axis: Any, data: Timeline) -> None:
    """What must not be: lost requests and reconnects."""
    lost, reconnects = sum(data.lost), sum(data.reconnects)
    axis.set_title("lost requests (red) and keep-alive connections that the server closed (orange), per bin")
    axis.bar(data.times, data.reconnects, width=data.bin * 1.5, color=RECONNECT)
    axis.bar(data.times, [-count for count in data.lost], width=data.bin * 1.5, color=LOST)
    if lost:
        spots = [(time, -count) for time, count in zip(data.times, data.lost, strict=True) if count]
        axis.plot(*zip(*spots, strict=True), "x", color=LOST, markersize=5, markeredgewidth=1.5)
    most = max(5, *data.lost), max(5, *data.reconnects)
    axis.set_ylim(-1.25 * most[0], 1.25 * most[1])
    axis.axhline(0, color="#cccccc", linewidth=0.8)
    axis.yaxis.set_major_formatter(lambda value, _: f"{abs(value):.0f}")
    if not lost and not reconnects:
        axis.set_yticks([0])
        axis.text(0.5, 0.5, "none", transform=axis.transAxes, ha="center", va="center", fontsize=13, color="#59a14f",
                  backgroundcolor="white")  # fmt: skip


def latency(axis: Any, data: Timeline) -> None:
    """p99 and p50 of what is answered at once, on a logarithmic axis."""
    axis.set_title("latency of plain requests: p99 (dark) and p50 (light), milliseconds, logarithmic")
    axis.plot(data.times, [1000 * value for value in data.p99], color=INK, linewidth=1.2)
    axis.plot(data.times, [1000 * value for value in data.p50], color="#aaaaaa", linewidth=1.0)
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")


def reload_lines(axis: Any, result: Result) -> None:
    """A thin line for each HUP."""
    for reload in result.reloads:
        axis.axvline(reload.sent - result.began, color=INK, linewidth=0.6, alpha=0.55, linestyle=(0, (4, 3)))
