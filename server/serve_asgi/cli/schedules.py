"""`serve schedules` and `serve schedule`: what runs when, with which outcome; pause, resume and run one."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any, Final

import click

from serve_asgi.cli import control_client
from serve_asgi.cli.command import as_json, command, complain, harmless, seconds, show, span, tell
from serve_asgi.cli.control_client import PATIENCE, RequestRefused, ServerEnded, ServerSilent
from serve_asgi.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

COLOURS: Final = {
    "ok": "green",
    "running": "cyan",
    **dict.fromkeys(("skipped", "paused", "missed"), "yellow"),
    **dict.fromkeys(("elsewhere", "removed"), "dim"),
    **dict.fromkeys(("failed", "timeout", "cut", "died"), "red"),
}
MOST: Final = 1000
"""Most schedules in one reply (`serve_asgi.hub.schedules.commands.MAX_LISTED`)."""
WIDE: Final = 160
"""Columns if the output is not a terminal."""


def schedules(control: str, pid_file: str, name: str | None, as_json: bool) -> int:
    """Show all schedules: when they run next, and the outcome of the last run. With NAME, the history of one."""
    path = control_client.find(control, pid_file)
    found = control_client.ask(path, "schedules", name=name or "", patience=PATIENCE)["schedules"]
    if name and not found:
        raise UsageError(f"there is no schedule {name!r}; `serve schedules` lists all of them")
    if as_json:
        show(json.dumps(found[0] if name else found, indent=2))
    elif not found:
        show("the application has no schedules")
    else:
        _print(*(_one(harmless(found[0])) if name else [_all(harmless(found))]))
    if len(found) >= MOST:
        complain(f"these are the first {MOST} by name; `serve schedules NAME` shows any of them")
    return 0


def schedule(control: str, pid_file: str, do: str, name: str, wait: bool, timeout: float | None) -> int:
    """Pause a schedule, resume it, or run it now; in effect for all workers when this returns.

    A pause lasts until it is resumed, over reloads too, and over restarts with --state. `run` waits for the end of the
    run. Exit status 0: done. 1: the run did not succeed, or the state could not be written.
    """
    path = control_client.find(control, pid_file)
    if do != "run":
        tell(control_client.ask(path, "schedule", do=do, name=name, patience=PATIENCE)["text"])
        return 0
    if not wait:
        with control_client.ControlConversation(path, "schedule", do=do, name=name) as conversation:
            response = conversation.receive(SOON)
        if response is not None and not response["ok"]:
            raise RequestRefused(response["text"])
        tell(f"{name} is requested; {_SHOWS.format(name)}")
        return 0
    try:
        tell(control_client.ask(path, "schedule", do=do, name=name, patience=timeout)["text"])
    except ServerEnded as error:
        raise RequestRefused(f"the listener was replaced or has ended; {_SHOWS.format(name)}") from error
    except ServerSilent as error:
        raise RequestRefused(
            f"{name} has not ended within {timeout:g} s, and continues; {_SHOWS.format(name)}"
        ) from error
    except KeyboardInterrupt:
        complain(f"the run continues; {_SHOWS.format(name)}")
        raise
    return 0


_SHOWS: Final = "`serve schedules {}` shows its outcome"
SOON: Final = 1.0
"""Seconds within which an impossible run is refused."""


def _print(*parts: Table | Text) -> None:
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    if console.is_terminal:
        console.print(*parts, sep="\n")
        return
    plain = Console(highlight=False, markup=False, emoji=False, width=WIDE, file=sys.stdout, no_color=True)
    with plain.capture() as captured:
        plain.print(*parts, sep="\n", soft_wrap=True)
    show("\n".join(line.rstrip() for line in captured.get().splitlines()))


def _all(found: list[dict[str, Any]]) -> Table:
    """A row for each schedule."""
    now = time.time()
    table = _table("schedule", "when", "on", "state", "next", "last run", "took", "worker", "runs", "failed")
    for each in found:
        last = each["history"][0] if each["history"] else None
        counts = each["counts"]
        failed = sum(counts.get(outcome, 0) for outcome in ("failed", "timeout", "cut", "died"))
        table.add_row(
            each["name"],
            each["when"],
            each["on"],
            _state(each),
            "-" if each["next"] is None else f"in {span(max(0.0, each['next'] - now))}",
            _outcome(last, now),
            _took(last, now),
            _worker(last),
            str(counts.get("ok", 0) + failed),
            str(failed) if failed else "-",
        )
    return table


def _one(found: dict[str, Any]) -> tuple[Text, Table]:
    """The outcomes of the last ticks of one schedule, the newest first."""
    from rich.text import Text

    now = time.time()
    parts = (found["when"], f"on {found['on']}", _state(found).plain, found["where"])
    head = Text(f"{found['name']}: {', '.join(parts)}")
    table = _table("instant", "outcome", "began", "took", "worker", "attempt", "")
    for entry in found["history"]:
        several = f" ({entry['count']} ticks)" if entry["count"] > 1 else ""
        table.add_row(
            _clock(entry["instant"]) + ("" if entry["kind"] == "tick" else f" ({entry['kind']})"),
            _outcome(entry, None),
            "-" if entry["began"] is None else f"{entry['began'] - entry['instant']:+.3f} s",
            _took(entry, now),
            _worker(entry),
            str(entry["attempt"]),
            entry["text"] + several,
        )
    return head, table


def _table(*columns: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold", justify="right" if column in ("took", "runs", "failed") else "left")
    return table


def _state(found: dict[str, Any]) -> Text:
    from rich.text import Text

    if found["paused"]:
        by = found["paused"].get("by") or "somebody"
        return Text(f"paused {span(time.time() - found['paused']['at'])} ago by {by}", "yellow")
    if found["disabled"]:
        return Text(f"disabled: {found['disabled']}", "dim")
    if found["runs"]:
        return Text("running" if found["runs"] == 1 else f"{found['runs']} running", "cyan")
    return Text(found["state"])


def _outcome(entry: dict[str, Any] | None, now: float | None) -> Text:
    from rich.text import Text

    if entry is None:
        return Text("-")
    ago = "" if now is None else f" {span(max(0.0, now - entry['last']))} ago"
    return Text(entry["outcome"] + ago, COLOURS.get(entry["outcome"], ""))


def _worker(entry: dict[str, Any] | None) -> str:
    """Slot and generation, as in the log."""
    if entry is None or not entry["worker"]:
        return "-"
    return f"{'agent' if entry['slot'] < 0 else entry['slot']}.{entry['generation']}"


def _took(entry: dict[str, Any] | None, now: float) -> str:
    if entry is None or entry["began"] is None:
        return "-"
    seconds = now - entry["began"] if entry["seconds"] is None else entry["seconds"]
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else span(seconds)


def _clock(instant: float) -> str:
    """UTC, to the second, or to the millisecond if it is not a whole second."""
    text = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(instant))
    return text + (f".{round(instant % 1 * 1000):03d}" if instant % 1 else "") + "Z"


COMMANDS: Final = {
    "schedules": command("schedules", schedules, click.Argument(["name"], required=False), as_json()),
    "schedule": command(
        "schedule",
        schedule,
        click.Argument(["do"], type=click.Choice(["pause", "resume", "run"])),
        click.Argument(["name"]),
        click.Option(["--wait/--no-wait"], default=True, help="Wait for the end of the run.", show_default=True),
        seconds("--timeout", "How long to wait; the run continues."),
    ),
}
