"""`serve messages`: which processes handle which topics, how much waits where, and how fast it flows."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, Final

import click

from serve_asgi.cli import control_client
from serve_asgi.cli.command import as_json, command, counted, memory, seconds, tell
from serve_asgi.cli.control_client import PATIENCE, RequestRefused

INTERVAL: Final = 1.0
"""Seconds over which rates are measured, unless --interval says otherwise."""
SOME: Final = 8
"""Subscribers that a row names."""

Report = dict[str, Any]


def messages(
    control: str, pid_file: str, topic: str | None, follow: bool, interval: float, most: int, as_json: bool
) -> int:
    """Show the topics: who subscribes, how many messages wait and are in progress, how many were delivered per second.

    With TOPIC, each of its subscribers. Rates are those of --interval, for which this waits; with --follow it goes on
    until Ctrl-C.
    """
    path = control_client.find(control, pid_file)
    interval = max(interval, 0.1)
    before, began = _look(path, topic, most), time.monotonic()
    while True:
        time.sleep(interval)
        found, now = _look(path, topic, most), time.monotonic()
        add_rates(before, found, now - began)
        tell(json.dumps(found, indent=None if follow else 2) if as_json else "\n".join(lines(found, topic)))
        if not follow:
            return 0
        if not as_json:
            tell("")
        before, began = found, now


def _look(path: Path, topic: str | None, most: int) -> Report:
    asked = control_client.ask(path, "messages", name=topic or "", most=most, patience=PATIENCE)
    found: Report = asked["messages"]
    if topic and not found["topics"]:
        raise RequestRefused(
            f"no process handles {topic!r} and nothing waits for it; `serve messages` shows all topics"
        )
    return found


def add_rates(before: Report, now: Report, took: float) -> None:
    """Add to the topics of `now`, and their consumers, what was delivered per second since `before`, `took` s ago.

    What was delivered to a process that has ended meanwhile is not known any more.
    """
    earlier = {each["topic"]: each for each in before["topics"]}
    for each in now["topics"]:
        then = {_who(c): c["delivered"] for c in earlier.get(each["topic"], {"consumers": ()})["consumers"]}
        for consumer in each["consumers"]:
            consumer["rate"] = round(max(0, consumer["delivered"] - then.get(_who(consumer), 0)) / took, 1)
        if each["subscribers"] > len(each["consumers"]):  # not all of them are named
            known = earlier.get(each["topic"], {"delivered": each["delivered"]})["delivered"]
            each["rate"] = round(max(0, each["delivered"] - known) / took, 1)
        else:
            each["rate"] = round(sum(consumer["rate"] for consumer in each["consumers"]), 1)


def lines(found: Report, topic: str | None) -> list[str]:
    """What is printed."""
    counts = found["counts"]
    head = (
        f"{counted(counts['accepted'], 'message')} accepted, {counts['given']} delivered, {found['waiting']} waiting "
        f"({memory(found['waiting_bytes'])}), {counts['failed']} failed, {counts['dead']} dead-lettered, "
        f"{counts['lost']} lost"
    )
    waiting = [
        f"waiting for {_slot(each['slot'])}, which has no process: {counted(each['waiting'], 'message')}"
        for each in found["slots"]
    ]
    if not found["topics"]:
        return [head, *waiting, "no process handles messages"]
    return [head, *waiting, "", *(_consumers(found["topics"][0]) if topic else _topics(found))]


def _topics(found: Report) -> list[str]:
    row = "{:<{widest}}  {:>7}  {:>8}  {:>9}  {}"
    widest = min(40, max(5, *(len(each["topic"]) for each in found["topics"])))
    rows = [row.format("topic", "waiting", "handling", "rate/s", "subscribers", widest=widest)]
    for each in found["topics"]:
        who = [_who(consumer) for consumer in each["consumers"][:SOME]]
        more = each["subscribers"] - len(who)
        names = " ".join([*who, *([f"and {more} more"] if more else [])]) or "nobody"
        figures = (each["waiting"], each["in_flight"], f"{each['rate']:.1f}")
        rows.append(row.format(each["topic"], *figures, names, widest=widest))
    if found["total"] > len(found["topics"]):
        rows.append(f"those of {found['total']} topics for which most waits; --most NUMBER shows more")
    return rows


def _consumers(topic: Report) -> list[str]:
    row = "{:>12}  {:<9}  {:>7}  {:>8}  {:>8}  {:>9}"
    rows = [row.format("subscriber", "phase", "at once", "waiting", "handling", "rate/s")]
    for each in topic["consumers"]:
        figures = (each["concurrency"], each["waiting"], each["in_flight"], f"{each['rate']:.1f}")
        rows.append(row.format(_who(each), each["phase"], *figures))
    for_all = topic["waiting"] - sum(each["waiting"] for each in topic["consumers"])
    return [*rows, f"waiting for any of them: {counted(for_all, 'message')}"]


def _who(consumer: Report) -> str:
    """Slot and generation, as in the log."""
    return f"{consumer['slot']}.{consumer['generation']}"


def _slot(slot: int | str) -> str:
    return "the agent" if slot == "agent" else f"worker {slot}"


COMMANDS: Final = {
    "messages": command(
        "messages",
        messages,
        click.Argument(["topic"], required=False),
        click.Option(["--follow"], is_flag=True, help="Go on until Ctrl-C."),
        seconds("--interval", "Time over which rates are measured.", INTERVAL),
        click.Option(
            ["--most"],
            type=click.IntRange(1, 500),
            default=100,
            metavar="NUMBER",
            show_default=True,
            help="Most topics to show.",
        ),
        as_json(),
    )
}
