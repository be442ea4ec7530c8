"""The bench as a picture: CPU time per request, one panel per case.

matplotlib comes with the optional dependency group `loadtest`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from loadtest.bench_cases import CASES
from loadtest.bench_report import AGAINST, CALLING, FLOOR, LOGGED, SERVE, Findings
from loadtest.plot import INK, STYLE

COLOURS = {SERVE: "#4e79a7", FLOOR: "#d9d9d9", CALLING: "#c4c4c4", AGAINST: "#76b7b2"}
PEER = "#cfb991"
"""Of all peers: their names stand beside the bars, and what matters is this server against the others."""
ACROSS = 3
"""Panels in a row."""
EXPLAINED = (
    "One worker on one core, all servers {how} within one run. "
    "Floor: a protocol on uvloop that answers with fixed bytes, so what the kernel and the loop cost by themselves."
)


def plot(findings: Findings, path: Path) -> None:
    """Draw into the file `path`. Raises ImportError if matplotlib is missing."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import layout_engine, pyplot

    cases = findings.cases()
    across = min(ACROSS, len(cases))
    down = -(-len(cases) // across)
    bars = max(len(findings.servers(case)) for case in cases)
    with pyplot.rc_context(STYLE):
        size = (3.7 * across, (0.62 + 0.26 * bars) * down + 0.75)
        layout = layout_engine.ConstrainedLayoutEngine(rect=(0, 0, 1, 1 - 0.62 / size[1]), wspace=0.06, hspace=0.08)
        figure, axes = pyplot.subplots(down, across, figsize=size, squeeze=False, layout=layout, dpi=130)
        panels = list(axes.flat)
        for panel, case in zip(panels, cases, strict=False):
            draw_case(panel, findings, case)
        for panel in panels[len(cases) :]:
            panel.set_axis_off()
        figure.text(
            0.01, 1 - 0.26 / size[1], "CPU time per request, µs: less is better", fontsize=14, fontweight="bold"
        )
        explained = EXPLAINED.format(how="at the same time" if findings.settings.get("together") else "in turn")
        figure.text(0.01, 1 - 0.47 / size[1], explained, fontsize=8.5, color="#666666")
        figure.savefig(path)
        pyplot.close(figure)


def draw_case(panel: Any, findings: Findings, case: str) -> None:
    """One bar per server: the floor at the top, then the cheapest first."""
    servers = findings.servers(case)
    servers.sort(key=lambda server: (server not in (FLOOR, CALLING), findings.cpu(case, server)), reverse=True)
    values = [findings.cpu(case, server) for server in servers]
    colours = [COLOURS.get(server.removesuffix(LOGGED), PEER) for server in servers]
    found = panel.barh(servers, values, color=colours, height=0.74)
    panel.bar_label(found, fmt="%.1f", padding=3, fontsize=8, color=INK)
    panel.set_title(CASES[case].title, fontweight="bold")
    panel.set_xlim(0, max(values) * 1.16)
    panel.set_xticks([])
    panel.spines["bottom"].set_visible(False)
    panel.tick_params(axis="y", length=0)
    for label in panel.get_yticklabels():
        label.set_fontweight("bold" if label.get_text() == SERVE else "normal")
