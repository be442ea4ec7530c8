"""The live view of a reload: generations as rows of workers that change colour, drawn by rich.

`picture` is a pure function of what the server has sent; `ReloadLiveView` keeps redrawing it in place.
"""

from __future__ import annotations

import time
from typing import Any, Final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from serve_asgi.cli.canary_summary import HELD, SIDES, failed_share, trial
from serve_asgi.cli.command import counted, harmless, span
from serve_asgi.cli.reload_progress import ENDS, FRAME, STEPS, OlderGenerations, remains

STYLES: Final = {
    "pending": ("·", "dim", "waiting"),
    "starting": ("◐", "yellow", "importing"),
    "ready": ("●", "cyan", "ready"),
    "switching": ("●", "bright_cyan", "switching"),
    "serving": ("●", "green", "serving"),
    "standing down": ("○", "blue", "standing down"),
    "standby": ("●", "blue", "standing by"),
    "retiring": ("○", "magenta", "retiring"),
    "ending": ("×", "red", "ending"),
    "gone": (" ", "dim", "gone"),
    "prepared": ("●", "cyan", "prepared"),
    "entering": ("●", "bright_cyan", "entering"),
    "active": ("●", "green", "active"),
    "returned": ("●", "yellow", "returned"),
    "finishing": ("○", "magenta", "finishing"),
    "killed": ("×", "red", "killed"),
}
"""Sign, colour and word of each state of a worker, and of an agent."""
COMING: Final = frozenset({"starting canary", "canary", "held", "starting", "passing", "switching"})
"""States of a generation of which workers are still to start."""
VERDICTS: Final = frozenset({"canary_promoted"})
"""Good news that is to stay above the picture."""
BAR: Final = 40
"""Columns of the bar of a trial."""
MOST_SIGNS: Final = 32
"""Most workers that are drawn individually; for larger generations only numbers are shown."""


def picture(before: dict[str, Any], seen: dict[str, Any], took: float, note: str, width: int) -> Group:
    """The progress, `took` seconds after the request; `note` is the latest event."""
    title = Text.assemble(("reload of ", ""), (seen.get("app", ""), "bold"), f", PID {seen['pid']}")
    head = Table.grid(expand=True)
    head.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    head.add_column(justify="right")
    head.add_row(title, Text(f"{took:.1f} s", "dim"))
    rows = Table.grid(padding=(0, 2))
    rows.add_column(no_wrap=True)
    rows.add_column(no_wrap=True, min_width=min(MOST_SIGNS, seen["size"]))
    for generation in sorted(seen["generations"], key=lambda g: -g["number"]):
        rows.add_row(Text(f"generation {generation['number']}", "bold"), *_workers(generation, seen))
    if canary := seen.get("canary"):
        return Group(head, rows, *_canary(canary, seen, width))
    last: list[Text] = []
    if seen["generation"] != before["generation"]:
        last.append(Text(remains(before, seen).text()))
    elif note:
        last.append(Text(note, "dim"))
    for line in (title, *last):
        line.truncate(width, overflow="ellipsis")
    return Group(head, rows, *last)


def _canary(canary: dict[str, Any], seen: dict[str, Any], width: int) -> list[RenderableType]:
    """The trial: how much of its time is over, and what both sides have done in it."""
    line = Text(trial(canary), "yellow" if canary["state"] == HELD else "cyan")
    line.truncate(width, overflow="ellipsis")
    shown: list[RenderableType] = [line]
    whole = ((seen.get("last_deploy") or {}).get("trial") or {}).get("seconds")
    if whole and canary["seconds_left"] is not None:
        over = min(BAR, max(0, round(BAR * (1 - canary["seconds_left"] / whole))))
        shown.append(Text.assemble(("━" * over, "cyan"), ("━" * (BAR - over), "bright_black")))
    if canary.get("canary"):
        table = Table.grid(padding=(0, 2))
        for justify in ("left", "right", "right", "right"):
            table.add_column(no_wrap=True, justify=justify)
        table.add_row("", *(Text(name, "dim") for name in ("requests", "failed", "share")))
        for name, number in zip(SIDES, (canary["generation"], seen["generation"]), strict=True):
            side = canary[name]
            style = "red" if name == "canary" and side["errors"] else ""
            figures = (f"{side['requests']:,}", f"{side['errors']:,}", failed_share(side))
            table.add_row(f"generation {number}", figures[0], *(Text(each, style) for each in figures[1:]))
        shown.append(table)
    return shown


def _workers(generation: dict[str, Any], seen: dict[str, Any]) -> tuple[Text, Text]:
    """The symbols of a generation's workers, and a legend."""
    states = {w["slot"]: w["state"] for w in seen["workers"] if w["generation"] == generation["number"]}
    missing = "pending" if generation["state"] in COMING else "gone"
    slots = [states.get(slot, missing) for slot in range(max([generation["size"], *(s + 1 for s in states)]))]
    signs, words = Text(), Text()
    if len(slots) <= MOST_SIGNS:
        for state in slots:
            sign, style, _ = STYLES.get(state, ("?", "", state))
            signs.append(sign, style)
    for state, (_, style, word) in STYLES.items():
        if (number := slots.count(state)) and state != "gone":
            words.append(", " if words else "")
            words.append(f"{number} {word}", style)
    for agent in seen.get("agents", []):
        if agent["generation"] == generation["number"]:
            _, style, word = STYLES.get(agent["state"], ("?", "", agent["state"]))
            words.append(", " if words else "")
            words.append(f"agent {word}", style)
    return signs, words or Text("gone", "dim")


class ReloadLiveView:
    """Draws a reload on the terminal, in place, and leaves the last frame."""

    pause = FRAME

    def __init__(self, before: dict[str, Any], console: Console | None = None) -> None:
        self._before = self._seen = harmless(before)
        self._began = time.monotonic()
        self._took: float | None = None
        self._note = "requested"
        self._refusal = "refused"
        self._end = ""
        self._console = console or Console(highlight=False)
        self._live = Live(console=self._console, auto_refresh=False, transient=False)

    def __enter__(self) -> ReloadLiveView:
        self._live.__enter__()
        self._draw()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.__exit__(None, None, None)
        if self._end:
            self._console.print(Text(self._end, "bold green"))

    def happened(self, record: dict[str, Any]) -> None:
        record = harmless(record)
        if record["event"] == "canary_withdrawn":
            self._refusal = "taken back"
        if record["level"] in ("warning", "error") and record["event"] not in ENDS:
            style = "red" if record["level"] == "error" else "yellow"
            self._console.print(Text(record["text"], style))  # above the picture, to stay
        elif record["event"] in VERDICTS:
            self._console.print(Text(record["text"], "green"))
        elif record["level"] != "debug" or record["event"] in STEPS:
            self._note = record["text"]
        self._draw()

    def seen(self, status: dict[str, Any]) -> None:
        self._seen = harmless(status)
        self._draw()

    def outcome(self, response: dict[str, Any]) -> None:
        self._took = time.monotonic() - self._began
        if not response["ok"]:
            self._note = self._refusal
        self._draw()

    def left(self, remains: OlderGenerations) -> None:
        self._draw()
        took = f" after {span(self._took)}" if self._took is not None else ""
        number, size = self._seen["generation"], self._seen["size"]
        self._end = f"generation {number} serves, {counted(size, 'worker')},{took}"

    def _draw(self) -> None:
        took = time.monotonic() - self._began
        shown = picture(self._before, self._seen, took, self._note, self._console.width)
        self._live.update(shown, refresh=True)
