"""The comparison as pictures: a panel of bars for each figure, and the curves of connections and workers.

matplotlib comes with the optional dependency group `loadtest`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loadtest.bench_picture import PEER
from loadtest.bench_report import SERVE
from loadtest.compare_report import BESIDES, CONNECTIONS, COST, ROWS, WORKERS, Findings, Row, fine
from loadtest.plot import COLOURS, INK, STYLE

OWN = "#4e79a7"
LINES = dict(zip(("h2corn", "granian", "uvicorn", "gunicorn", "hypercorn"), COLOURS[1:], strict=True))
"""Curves cross, so each peer has a colour of its own, where bars need none."""
ACROSS = 4
PANELS = [*(row for row in BESIDES if row.what == COST), *ROWS]
"""Under load in the first row; memory and times in the second."""
EXPLAINED = (
    "All servers in turn within one run, medians. Where there is load, its generator has its share of the two cores. "
    "Less is better, but for requests/s."
)
CURVES = {CONNECTIONS: "connections, one worker", WORKERS: "workers, 32 connections each"}
GAP = 0.055
"""Of the height of a panel: what a name beside a curve takes."""


def plot(findings: Findings, path: Path) -> None:
    """Draw the figures into the file `path`. Raises ImportError if matplotlib is missing."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import layout_engine, pyplot

    rows = [row for row in PANELS if row.best(findings) is not None]
    across = max(1, min(ACROSS, len(rows)))
    down = max(1, -(-len(rows) // across))
    with pyplot.rc_context(STYLE):
        size = (2.95 * across, (0.62 + 0.26 * len(findings.servers())) * down + 0.75)
        layout = layout_engine.ConstrainedLayoutEngine(rect=(0, 0, 1, 1 - 0.62 / size[1]), wspace=0.06, hspace=0.08)
        figure, axes = pyplot.subplots(down, across, figsize=size, squeeze=False, layout=layout, dpi=130)
        panels = list(axes.flat)
        for panel, row in zip(panels, rows, strict=False):
            draw_row(panel, findings, row)
        for panel in panels[len(rows) :]:
            panel.set_axis_off()
        head(figure, "Throughput, latency, memory, start and reload, with two workers", EXPLAINED)
        figure.savefig(path)
        pyplot.close(figure)


def head(figure: Any, title: str, explained: str) -> None:
    """Above the panels."""
    height = figure.get_size_inches()[1]
    figure.text(0.01, 1 - 0.26 / height, title, fontsize=14, fontweight="bold")
    figure.text(0.01, 1 - 0.47 / height, explained, fontsize=8.5, color="#666666")


def draw_row(panel: Any, findings: Findings, row: Row) -> None:
    """One bar per server, the best at the top; who has no figure comes last."""
    found = {server: row.value(findings, server) for server in findings.servers()}
    able = sorted((value, server) for server, value in found.items() if value is not None)
    if not row.most:
        able.reverse()
    unable = [server for server, value in reversed(found.items()) if value is None]
    servers = [*unable, *(server for _, server in able)]
    values = [found[server] or 0.0 for server in servers]
    bars = panel.barh(servers, values, color=[OWN if server == SERVE else PEER for server in servers], height=0.74)
    panel.bar_label(bars, [row.cell(findings, server) for server in servers], padding=3, fontsize=8, color=INK)
    panel.set_title(row.named(findings), fontweight="bold", fontsize=9)
    panel.set_xlim(0, max(values) * 1.24)
    panel.set_xticks([])
    panel.spines["bottom"].set_visible(False)
    panel.tick_params(axis="y", length=0)
    for label in panel.get_yticklabels():
        label.set_fontweight("bold" if label.get_text() == SERVE else "normal")


def plot_scaling(findings: Findings, path: Path) -> None:
    """Draw what a request costs with more connections, and with more workers. Raises ImportError."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import layout_engine, pyplot

    shown = [what for what in CURVES if any(findings.line(what, server) for server in findings.servers())]
    with pyplot.rc_context(STYLE):
        size = (5.6 * max(1, len(shown)), 4.4)
        layout = layout_engine.ConstrainedLayoutEngine(rect=(0, 0, 1, 1 - 0.62 / size[1]), wspace=0.04)
        figure, axes = pyplot.subplots(
            1, max(1, len(shown)), figsize=size, squeeze=False, sharey=True, layout=layout, dpi=130
        )
        lines = {(what, server): findings.line(what, server) for what in shown for server in findings.servers()}
        values = [value for line in lines.values() for _, value in line]
        for panel, what in zip(axes.flat, shown, strict=False):
            panel.set_xscale("log")
            panel.set_yscale("log")
            panel.set_ylim(min(values) / 1.3, max(values) * 1.2)
            draw_curves(panel, what, {server: lines[what, server] for server in findings.servers()})
        head(
            figure,
            "CPU time per request, µs, with more connections and with more workers",
            "Logarithmic on both axes: a flat line costs the same throughout. All workers on one core, the load on the "
            "other; every connection always has a request under way.",
        )
        figure.savefig(path)
        pyplot.close(figure)


def draw_curves(panel: Any, what: str, lines: dict[str, list[tuple[int, float]]]) -> None:
    """A curve per server, its name and its last value at the right end."""
    bottom, top = map(math.log, panel.get_ylim())
    able = {server: line for server, line in lines.items() if line}
    for server, line in able.items():
        own = server == SERVE
        panel.plot(
            *zip(*line, strict=True),
            color=OWN if own else LINES[server],
            linewidth=2.6 if own else 1.3,
            marker="o",
            markersize=5 if own else 3.5,
            zorder=3 if own else 2,
        )
    last = max(line[-1][0] for line in able.values())
    names = list(able)
    heights = apart([math.log(able[server][-1][1]) for server in names], GAP * (top - bottom))
    for server, height in zip(names, heights, strict=True):
        panel.annotate(
            f"{server} {fine(able[server][-1][1])}",
            (last, math.exp(height)),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            color=OWN if server == SERVE else LINES[server],
            fontweight="bold" if server == SERVE else "normal",
            annotation_clip=False,
        )
    counts = sorted({count for line in able.values() for count, _ in line})
    panel.set_xticks(counts, [f"{count:,}" for count in counts])
    panel.minorticks_off()
    panel.set_xlabel(CURVES[what])
    panel.set_yticks(ticks := [5, 10, 20, 50, 100, 200, 500, 1000], [str(tick) for tick in ticks])
    panel.yaxis.set_tick_params(which="minor", length=0)
    panel.set_ylim(math.exp(bottom), math.exp(top))
    panel.grid(axis="y", color="#eeeeee", linewidth=0.8)
    panel.set_axisbelow(True)


def apart(heights: Sequence[float], gap: float) -> list[float]:
    """The same, in the same order from below, but nowhere closer than `gap`, each as near to its own as that allows."""
    order = sorted(range(len(heights)), key=heights.__getitem__)
    groups: list[list[int]] = []
    centres: list[float] = []
    for index in order:
        groups.append([index])
        centres.append(heights[index])
        while len(groups) > 1 and centres[-1] - centres[-2] < gap * (len(groups[-1]) + len(groups[-2])) / 2:
            upper = groups.pop()
            centres.pop()
            groups[-1] += upper
            centres[-1] = sum(heights[each] for each in groups[-1]) / len(groups[-1])
    placed = [0.0] * len(heights)
    for group, centre in zip(groups, centres, strict=True):
        for number, index in enumerate(group):
            placed[index] = centre + gap * (number - (len(group) - 1) / 2)
    return placed
