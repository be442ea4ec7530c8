"""One frame of `serve top`, drawn by rich for a terminal of a given size: 80 columns are enough, wider ones show more.

Each generation has a colour, the same in the chart, the table of workers and the history, so that a reload shows as a
change of colour. Pure: `frame` is a function of the samples.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from serve_asgi.cli.canary_summary import failures, trial
from serve_asgi.cli.command import counted, memory, span
from serve_asgi.cli.deploys import outcome
from serve_asgi.cli.reload_live_view import STYLES
from serve_asgi.cli.status import agent_returned, state_of
from serve_asgi.cli.top_charts import ChartColumn, bar, columns, marks, rounded_up
from serve_asgi.cli.top_samples import TopSample, TopSamples, WorkerRate, processes
from serve_asgi.ipc.health_verdict import HEALTHY, is_blocked

COLOURS: Final = ("#6b9cf8", "#36b97b", "#d579c2", "#d78c1a", "#00b7c9", "#ad88eb")
"""Colours of the generations, in turn: those of the page (admin/page/charts.js); rich takes the nearest that a terminal
has."""
LINE: Final = "bright_white"
"""The colour of the 99th percentile."""
KEYS: Final = (("q", "quit"), ("w", "ten minutes"), ("ctrl-z", "suspend"))
WIDE: Final = 112
"""Columns from which on more is shown side by side."""
NARROW: Final = 72
"""Columns below which only figures and workers are shown."""
SCALE: Final = 7
"""Columns of the scale left of a chart."""
MOST_CHART: Final = 12
LEAST_CHART: Final = 3
"""Lines of a chart."""
LEAST_HISTORY: Final = 5
"""Lines that the history gets before the chart grows."""
MOST_HISTORY: Final = 14
SIGNS: Final = {
    **dict.fromkeys(("started", "done", "promoted", "inconclusive"), "✓"),
    **dict.fromkeys(("under_way", "trial"), "▸"),
    **dict.fromkeys(("rolled_back", "taken_back"), "↩"),
    **dict.fromkeys(("refused", "superseded", "given_up"), "✗"),
}
DEPLOYED: Final = {
    **dict.fromkeys(("refused", "taken_back"), "red"),
    **dict.fromkeys(("superseded", "given_up", "rolled_back"), "yellow"),
}
"""Colours of deploys that have not the colour of their generation."""
FRAME: Final = 2
"""Lines of a box."""
AIRY: Final = 30
"""Lines from which on there is an empty one."""
CLOCK: Final = 8
"""Columns of a time of day."""
CHARTED: Final = 3
"""Samples from which on there is something to chart."""


def frame(samples: TopSamples, width: int, height: int | None, *, whole: bool = False) -> Group:
    """A whole frame of at most `width` columns and `height` lines (None: without limit, and without keys).

    With `whole` the charts show all samples that are kept, else one in each column.
    """
    status = samples.status
    airy = height is None or height >= AIRY
    canary = [_canary(status["canary"], width)] if status.get("canary") else []
    gap = [Text()] if airy else []
    parts: list[RenderableType] = [_head(samples, width), *canary, *gap, _figures(samples, width)]
    hints = height is not None and height >= AIRY
    left = 1000 if height is None else height - 2 - 4 - airy - hints - len(canary)
    workers = len(processes(status))
    charts = width >= NARROW and len(samples.samples) >= CHARTED
    least = (LEAST_CHART + 1 + FRAME) if charts else 0
    shown = max(1, min(workers, left - least - 1 - FRAME))
    left -= shown + 1 + FRAME
    if charts:
        lines = min(MOST_CHART, max(LEAST_CHART, left - 1 - FRAME - LEAST_HISTORY)) if height is not None else 6
        if left >= lines + 1 + FRAME:
            parts.append(_charts(samples, width, lines, whole=whole))
            left -= lines + 1 + FRAME
    parts.append(_workers(samples, width, shown))
    if width >= NARROW and left > FRAME:
        most = MOST_HISTORY if height is not None else max(1, len(status.get("recent", ())))
        parts.append(_history(status, width, min(MOST_HISTORY, most, left - FRAME)))
    if hints:
        parts.append(_keys(whole=whole))
    return Group(*parts)


def _keys(*, whole: bool) -> Text:
    line = Text(" ")
    for key, does in KEYS:
        line.append(f" {key} ", "bold")
        line.append("one second a column  " if key == "w" and whole else f"{does}  ", "dim")
    return line


def colour(generation: int) -> str:
    """The colour of a generation."""
    return COLOURS[(max(generation, 1) - 1) % len(COLOURS)]


# The two lines at the top


def _head(samples: TopSamples, width: int) -> Table:
    status = samples.status
    head = Table.grid(expand=True)
    head.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    head.add_column(justify="right", no_wrap=True)
    head.add_row(
        Text.assemble(
            (" serve ", "bold reverse"), " ", (status["app"], "bold"), f" on {', '.join(status['listening'])}"
        ),
        Text(f"PID {status['pid']}, up {span(status['uptime'])} "),
    )
    failed = status["failed_reloads"]
    head.add_row(
        Text(f" ● gone for {span(samples.gone)}, searching", "bold red") if samples.gone else _state(status),
        Text.assemble(
            ("generation ", ""),
            (str(status["generation"]), f"bold {colour(status['generation'])}"),
            f", {counted(status['reloads'], 'reload')}",
            (f", {failed} refused ", "red") if failed else " ",
        ),
    )
    return head


def _state(status: dict[str, Any]) -> Text:
    """The state of the server, the most urgent first."""
    state = Text(" ")
    if status["state"] != "running":
        state.append(f"● {status['state']}", "yellow")
    elif status["draining"]:
        drain = status["draining"]
        state.append(f"◐ draining for {span(drain['since'])}, until {drain['until']}", "yellow")
    elif (verdict := status.get("health", {}).get("status", HEALTHY)) != HEALTHY:
        returned = verdict == "agent missing" and agent_returned(status)
        state.append("● the agent has returned" if returned else f"● {verdict}", "bold red")
    elif status["degraded"]:
        state.append(f"● slot {', '.join(status['degraded'])} empty", "red")
    elif status.get("agent_trouble"):
        state.append("● no agent", "red")
    elif blocked := status.get("health", {}).get("blocked"):
        state.append(f"● {counted(blocked, 'worker')} blocked", "red")
    elif agent_returned(status):
        state.append("● the agent has returned", "yellow")
    else:
        state.append("● healthy", "green")
    if status.get("canary"):
        state.append("  ▸ a canary is on trial", "bold")
    elif (starting := status["starting"]) is not None:
        mine = [w for w in status["workers"] if w["generation"] == starting]
        ready = sum(w["state"] not in ("starting", "pending") for w in mine)
        state.append(
            f"  ▸ reload: generation {starting}, {ready} of {status['size']} ready", f"bold {colour(starting)}"
        )
    elif status["reload_waiting"]:
        state.append("  ▸ a reload waits", "bold")
    for each in status["generations"]:
        if (left := each.get("standby")) is not None:
            state.append(f"  ● generation {each['number']} stands by, {span(max(0.0, left))}", "blue")
    return state


def _canary(canary: dict[str, Any], width: int) -> Text:
    """The trial under way, and what both sides have failed in it."""
    failed = canary.get("canary", {}).get("errors")
    line = Text.assemble(
        (f" ▸ {trial(canary, brief=True)}", f"bold {colour(canary['generation'])}"),
        (f": {failures(canary)}" if canary.get("canary") else "", "bold red" if failed else ""),
    )
    line.truncate(width, overflow="ellipsis")
    return line


# Figures


def _figures(samples: TopSamples, width: int) -> Table:
    """Two rows of figures with their names above them."""
    last = samples.samples[-1] if samples.samples else None
    first, totals = samples.first, samples.status["totals"]
    lag, oldest = samples.lag(), samples.oldest()
    lost = samples.status.get("lost", 0)
    upper = [
        ("req/s", number(last.requests) if last else "-", "bold bright_white"),
        ("p50", duration(samples.percentile(0.5)), "bold"),
        ("p90", duration(samples.percentile(0.9)), "bold"),
        ("p99", duration(samples.percentile(0.99)), "bold"),
        ("active", number(samples.summed("in_flight")), "bold"),
        ("conns", number(samples.summed("connections")), "bold"),
        ("cpu", f"{last.cpu:.0%}" if last else "-", "bold"),
        ("memory", memory(samples.summed("rss")), "bold"),
    ]
    lower = [
        ("errors/s", number(last.errors) if last else "-", "bold red" if last and last.errors else ""),
        ("oldest", span(oldest) if oldest is not None else "-", ""),
        ("lag", duration(lag), "bold yellow" if lag and lag > 0.1 else ""),
        ("lost", number(lost), "bold red" if lost > first.get("lost", 0) else ""),
        ("sockets", number(samples.summed("websockets")), ""),
        ("handed on", number(totals["handed_over"]), ""),
        ("in/s", memory(last.received) if last else "-", ""),
        ("out/s", memory(last.sent) if last else "-", ""),
    ]
    table = Table.grid(expand=True, padding=(0, 1, 0, 0))
    for name, _, _ in upper:
        table.add_column(ratio=1, min_width=min(len(name), width // 9), no_wrap=True, justify="right")
    for row in (upper, lower):
        table.add_row(*(Text(name, "dim") for name, _, _ in row))
        table.add_row(*(Text(text, style) for _, text, style in row))
    return table


def number(value: float) -> str:
    """A count or a rate in at most seven characters."""
    if value >= 1e6:
        return f"{value / 1e6:.2f} M"
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"


def duration(value: float | None) -> str:
    """A time (s) in at most eight characters: 85 µs, 1.2 ms, 340 ms, 2.5 s."""
    if value is None:
        return "-"
    if value < 0.001:
        return f"{value * 1e6:.0f} µs"
    if value < 1:
        return f"{value * 1e3:.{1 if value < 0.01 else 0}f} ms"
    return span(value)


# Charts


def _charts(samples: TopSamples, width: int, lines: int, *, whole: bool) -> RenderableType:
    half = width // 2 if width >= WIDE else width
    shown = samples.charted(half - 4 - SCALE, whole=whole)
    if width < WIDE:
        return _requests(shown, width, lines)
    side = Table.grid(padding=0)
    streams, websockets = _first_bytes(samples), _accepts(samples)
    side.add_row(_requests(shown, half, lines, websockets), _latency(shown, width - half, lines, streams))
    return side


def _requests(shown: Sequence[TopSample], width: int, lines: int, websockets: str = "") -> Panel:
    inner = width - 4 - SCALE
    top = rounded_up(max((sample.requests for sample in shown), default=0.0), 10)
    drawn = [ChartColumn(sample.requests, colour(sample.generation)) for sample in shown]
    return _boxed_chart(
        f"requests/s{websockets}", columns(drawn, inner, lines, top), _marks(shown, inner), number, top, width
    )


def _latency(shown: Sequence[TopSample], width: int, lines: int, streams: str) -> Panel:
    inner = width - 4 - SCALE
    top = rounded_up(max((sample.p99 for sample in shown if sample.p99 is not None), default=0.0), 0.001)
    drawn = [ChartColumn(sample.p50 or 0.0, colour(sample.generation), sample.p99, LINE) for sample in shown]
    title = f"latency: p50, p99 as a line{streams}"
    return _boxed_chart(title, columns(drawn, inner, lines, top), _marks(shown, inner), duration, top, width)


def _first_bytes(samples: TopSamples) -> str:
    """Of the last streams, the time to the first byte, for half of them and for 99 %; "" if none has ended."""
    first = samples.first_byte(0.5)
    return "" if first is None else f"; streams begin in {duration(first)}, {duration(samples.first_byte(0.99))}"


def _accepts(samples: TopSamples) -> str:
    """Of the last WebSockets, the time until half of them and 99 % were accepted; "" if there was none."""
    first = samples.accept(0.5)
    return "" if first is None else f"; WebSockets open in {duration(first)}, {duration(samples.accept(0.99))}"


def _boxed_chart(
    title: str, drawn: list[Text], below: Text, written: Callable[[float], str], top: float, width: int
) -> Panel:
    body = Table.grid(padding=0)
    body.add_column(width=SCALE, justify="right", no_wrap=True)
    body.add_column(no_wrap=True)
    for place, line in enumerate(drawn):
        label = written(top * (1 - place / len(drawn))) if place in (0, len(drawn) / 2) else ""
        body.add_row(Text(f"{label} ", "dim"), line)
    body.add_row(Text(""), below)
    return _panel(body, title, width)


def _marks(shown: Sequence[TopSample], width: int) -> Text:
    """Each switch with the number of its generation, each refusal as a cross."""
    last = shown[-width:]
    start = width - len(last)
    placed = []
    for place, sample in enumerate(last, start):
        if sample.switched:
            placed.append((place, f"▲{sample.generation}", f"bold {colour(sample.generation)}"))
        if sample.refused:
            placed.append((place, "✗", "bold red"))
    if not any(place >= width - 5 for place, _, _ in placed):
        placed.append((width - 3, "now", "dim"))
    if start == 0 and not any(place <= 8 for place, _, _ in placed):
        placed.append((0, f"-{span(sum(sample.seconds for sample in last))}", "dim"))
    return marks(placed, width)


# Workers


def _workers(samples: TopSamples, width: int, shown: int) -> Panel:
    """The table of workers, the newest generation first; those that do not fit are summed up in one line."""
    wide = width >= WIDE
    workers = processes(samples.status)
    fits = workers if len(workers) <= shown else workers[: shown - 1]
    most = max((rate.requests for rate in samples.rates.values()), default=0.0)
    table = Table(box=None, expand=True, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False, header_style="dim")
    for name in ("slot", "gen"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("state", no_wrap=True, min_width=10)
    for name in ("req/s", *(("",) if wide else ()), "active", "conns", "ws", "cpu", "memory", "lag", "oldest"):
        table.add_column(name, justify="left" if not name else "right", no_wrap=True, ratio=None if not name else 1)
    if wide:
        for name in ("total", "taken", "handed"):
            table.add_column(name, justify="right", no_wrap=True, ratio=1)
    for worker in fits:
        rate = samples.rates.get((worker["generation"], worker["slot"]), WorkerRate())
        table.add_row(*_worker(worker, rate, most, wide=wide))
    if len(fits) < len(workers):
        rest = workers[len(fits) :]
        requests = sum(
            samples.rates[key].requests for w in rest if (key := (w["generation"], w["slot"])) in samples.rates
        )
        table.add_row("", "", Text(f"{len(rest)} more", "dim"), Text(number(requests), "dim"))
    title = counted(len(samples.status["workers"]), "worker")
    return _panel(table, title + (" and the agent" if samples.status.get("agents") else ""), width)


def _worker(worker: dict[str, Any], rate: WorkerRate, most: float, *, wide: bool) -> Iterable[RenderableType]:
    hue = colour(worker["generation"])
    sign, style, word = STYLES.get(worker["state"], ("?", "", worker["state"]))
    if is_blocked(worker["state"], worker["heard"]):
        sign, style, word = "■", "bold red", state_of(worker)
    elif worker.get("recycling"):
        word, style = "recycling", "yellow"
    yield str(worker["slot"])
    yield Text(str(worker["generation"]), hue)
    yield Text(f"{sign} {word}", style)
    yield number(rate.requests)
    if wide:
        yield bar(rate.requests / most if most else 0.0, 12, hue)
    yield number(worker["in_flight"])
    yield number(worker["connections"])
    yield number(worker["websockets"])
    yield f"{rate.cpu:.0%}"
    yield memory(worker["rss"])
    lag = worker.get("lag_worst")
    yield Text(duration(lag), "yellow" if lag and lag > 0.1 else "")
    yield span(worker["oldest"]) if worker.get("oldest") is not None else "-"
    if wide:
        yield number(worker["requests"])
        yield number(worker.get("taken_over", 0))
        yield number(worker.get("handed_over", 0))


# History


def _history(status: dict[str, Any], width: int, lines: int) -> Table:
    """The last reloads with their durations, and the last events."""
    left = min(44, max(36, width * 2 // 5))
    side = Table.grid(padding=0)
    side.add_row(_reloads(status, left, lines), _recent(status, width - left, lines))
    return side


def _reloads(status: dict[str, Any], width: int, lines: int) -> Panel:
    if "deploys" in status:
        return _deploys(status["deploys"][:lines], width, lines)
    history = status.get("history", [])[-lines:]
    slowest = max((reload.get("seconds", 0.0) for reload in history), default=0.0)
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_column(no_wrap=True, width=CLOCK)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, justify="right")
    room = max(0, width - 4 - (CLOCK + 1 + len("✗ refused") + 1 + len("99m59s") + 1))
    for reload in reversed(history):
        done = reload["outcome"] != "refused"
        generation = reload.get("generation")
        hue = colour(generation) if done and generation is not None else "red"
        sign = "↩" if reload["outcome"] == "rolled_back" else "✓"
        what = Text(f"{sign} {generation}" if done else "✗ refused", hue)
        seconds = reload.get("seconds", 0.0)
        table.add_row(
            Text(clock(reload["at"]), "dim"), what, span(seconds), bar(seconds / slowest if slowest else 0.0, room, hue)
        )
    return _panel(table if history else Text("none yet", "dim"), "reloads", width, lines)


def _deploys(deploys: list[dict[str, Any]], width: int, lines: int) -> Panel:
    """The last deploys, the newest first: when, which generation, how it ended, how long it took."""
    slowest = max((deploy["seconds"] or 0.0 for deploy in deploys), default=0.0)
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_column(no_wrap=True, width=CLOCK)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, justify="right")
    words = [_outcome(deploy) for deploy in deploys]
    room = max(0, width - 4 - (CLOCK + 1 + max(map(len, words), default=0) + 1 + len("99m59s") + 1))
    for deploy, word in zip(deploys, words, strict=True):
        hue = DEPLOYED.get(deploy["outcome"]) or colour(deploy["generation"] or 0)
        seconds = deploy["seconds"]
        shown = bar(seconds / slowest if seconds and slowest else 0.0, room, hue)
        table.add_row(
            Text(clock(deploy["at"]), "dim"), Text(word, hue), "" if seconds is None else duration(seconds), shown
        )
    return _panel(table, "deploys", width, lines)


def _outcome(deploy: dict[str, Any]) -> str:
    sign = SIGNS.get(deploy["outcome"], "·")
    number = "" if deploy["generation"] is None else f" {deploy['generation']}"
    plain = deploy["outcome"] in ("started", "done")
    return f"{sign}{number}" if plain else f"{sign}{number} {outcome(deploy)}"


def _recent(status: dict[str, Any], width: int, lines: int) -> Panel:
    table = Table.grid(padding=(0, 1, 0, 0), expand=True)
    table.add_column(no_wrap=True, width=CLOCK)
    table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    for record in reversed(status.get("recent", [])[-lines:]):
        style = {"warning": "yellow", "error": "red"}.get(record["level"], "")
        table.add_row(Text(clock(record["at"]), "dim"), Text(record["text"].partition("\n")[0], style))
    return _panel(table, "lately", width, lines)


def clock(at: float) -> str:
    """A unix time as local time of day."""
    return time.strftime("%H:%M:%S", time.localtime(at))


def _panel(body: RenderableType, title: str, width: int, lines: int | None = None) -> Panel:
    height = None if lines is None else lines + FRAME
    return Panel(
        body,
        title=Text(title, "bold white"),
        title_align="left",
        border_style="grey35",
        box=box.ROUNDED,
        width=width,
        height=height,
        padding=(0, 1),
    )
