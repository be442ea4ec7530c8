"""`serve deploys`: the last deploys, as a table for people or as JSON."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import click

from serve_asgi.cli import control_client
from serve_asgi.cli.command import as_json, command, harmless, lively, show, span
from serve_asgi.cli.control_client import PATIENCE

if TYPE_CHECKING:
    from rich.table import Table

SHOWN: Final = 20
"""Deploys that are shown by default."""
MOST: Final = 50
"""Most deploys that a server keeps (`serve_asgi.listener.deploy_history.KEPT`)."""
RIGHT: Final = ("took", "moved", "cut")
"""Columns of numbers: seconds, connections handed over, requests cut."""
COLOURS: Final = {
    **dict.fromkeys(("started", "done", "promoted"), "green"),
    **dict.fromkeys(("inconclusive", "rolled back"), "magenta"),
    **dict.fromkeys(("under way", "trial"), "cyan"),
    **dict.fromkeys(("superseded", "given up"), "yellow"),
    **dict.fromkeys(("refused", "taken back"), "red"),
}
COMMIT: Final = 9
"""Characters of a commit that are shown."""


def deploys(control: str, pid_file: str, as_json: bool, last: int) -> int:
    """Show the last deploys, the newest first: when, by whom, from what to what, how each ended, what it cost.

    They are those since the server was started, and with --state those before it as well.
    """
    path = control_client.find(control, pid_file)
    found = control_client.ask(path, "deploys", last=last, patience=PATIENCE)["deploys"]
    if as_json:
        show(json.dumps(found, indent=2))
    elif lively():
        from rich.console import Console

        Console(highlight=False, markup=False, emoji=False).print(drawn(rows(harmless(found))))
    else:
        show(plain(rows(found)))
    return 0


def outcome(deploy: dict[str, Any]) -> str:
    """How a deploy ended, in words."""
    return str(deploy["outcome"]).replace("_", " ")


def requester(deploy: dict[str, Any]) -> str:
    """What requested a deploy, and who: "serve reload, alice, from make"."""
    return ", ".join(filter(None, (deploy["by"], deploy["who"])))


def changes(deploy: dict[str, Any]) -> Iterator[str]:
    """What a deploy has changed, as far as it can be told."""
    before, after = deploy["from"], deploy["to"]
    if after is None:
        return
    if before is None or deploy["kind"] == "start":  # what has started, also if it is what ran before
        before = before or after
        for name in ("app", "directory", "commit"):
            older, newer = before[name], after[name]
            if name == "commit":
                older, newer = older[:COMMIT], newer[:COMMIT]
            if older != newer:
                yield "{} → {}".format(*_shortened(older or "?", newer or "?"))
            elif newer:
                yield newer
        return
    for name in ("app", "directory", "python"):
        if before[name] != after[name]:
            yield "{} → {}".format(*_shortened(before[name], after[name]))
    if before["commit"] != after["commit"]:
        yield f"{before['commit'][:COMMIT] or '?'} → {after['commit'][:COMMIT] or '?'}"
    yield from deploy["options"]


def _shortened(before: str, after: str) -> tuple[str, str]:
    """Two paths without the directories that they have in common."""
    if not (before.startswith("/") and after.startswith("/")):
        return before, after
    common = os.path.commonpath([os.path.dirname(before), os.path.dirname(after)])
    return os.path.relpath(before, common), os.path.relpath(after, common)


def rows(found: list[dict[str, Any]]) -> list[list[str]]:
    """The table, its head first."""
    places = {(each["server"], each.get("place", "")) for each in found if each.get("place")}  # no earlier version's
    hosts = {each["server"] for each in found}
    crowded = len(places) > len({host for host, _ in places})  # several servers on one host
    table = [["when", *(["server"] if crowded or len(hosts) > 1 else []), "by", "generation", *RIGHT, "outcome", ""]]
    for each in found:
        why = [each["text"]] if each["text"] else []
        table.append(
            [
                time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(each["at"])),
                *([_server(each, crowded)] if crowded or len(hosts) > 1 else []),
                requester(each),
                _generations(each),
                took(each),
                _number(each["handed_over"]),
                _number(each["cut"]),
                outcome(each),
                "; ".join([*why, *changes(each)]),
            ]
        )
    return table


def _server(deploy: dict[str, Any], crowded: bool) -> str:
    place = deploy.get("place", "")
    return f"{deploy['server']}:{place}" if crowded and place else str(deploy["server"])


def plain(table: list[list[str]]) -> str:
    """The table as lines, however long."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for row in table:
        cells = zip(table[0], row, widths, strict=True)
        lines.append("  ".join(cell.rjust(w) if name in RIGHT else cell.ljust(w) for name, cell, w in cells).rstrip())
    return "\n".join(lines)


def drawn(table: list[list[str]]) -> Table:
    """The table for a terminal, which may fold it."""
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, pad_edge=False, header_style="bold")
    for name in table[0]:
        right = name in RIGHT
        made.add_column(name, justify="right" if right else "left", no_wrap=right, overflow="fold")
    for row in table[1:]:
        cells = zip(table[0], row, strict=True)
        made.add_row(*(Text(cell, COLOURS.get(cell, "")) if name == "outcome" else cell for name, cell in cells))
    return made


def _generations(deploy: dict[str, Any]) -> str:
    before, after = deploy["from"], deploy["to"]
    if after is None:
        return f"{before['generation']}" if before else "-"
    return f"{before['generation']} → {after['generation']}" if before else str(after["generation"])


def took(deploy: dict[str, Any]) -> str:
    """How long a deploy took."""
    seconds = deploy["seconds"]
    if seconds is None:
        return "-"
    return f"{seconds * 1000:.0f} ms" if seconds < 0.1 else span(seconds)


def _number(found: int | None) -> str:
    return "-" if found is None else str(found)


COMMANDS: Final = {
    "deploys": command(
        "deploys",
        deploys,
        as_json(),
        click.Option(
            ["--last"],
            type=click.IntRange(1, MOST),
            metavar="NUMBER",
            default=SHOWN,
            show_default=True,
            help="How many.",
        ),
    ),
}
