"""`serve scale`: change the number of workers, until a reload reads another one from the configuration file."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Final

import click

from serve_asgi.cli import control_client
from serve_asgi.cli.command import INTERRUPTED, command, complain, counted, tell
from serve_asgi.cli.control_client import PATIENCE, RequestRefused

LOOK: Final = 0.1
"""Seconds between two checks of the progress."""
STEP_TIME: Final = 600.0
"""Seconds without a change after which this command gives up; the server continues."""


def scale(control: str, pid_file: str, workers: int, wait: bool) -> int:
    """Change the number of workers to WORKERS; wait until that many serve.

    Exit status 0: that many serve, and surplus ones accept no more and finish their requests. 1: a worker could not
    be started, with the reason; the server keeps trying.
    """
    path = control_client.find(control, pid_file)
    tell(control_client.ask(path, "scale", to=workers, patience=PATIENCE)["text"])
    if not wait:
        return 0
    try:
        return _follow(path, workers)
    except KeyboardInterrupt:
        complain("the server continues with it; `serve status` shows the progress")
        return INTERRUPTED


def _follow(path: Path, workers: int) -> int:
    """Wait until so many workers serve. Raises RequestRefused when a slot cannot be filled."""
    seen: tuple[int, ...] = ()
    deadline = time.monotonic() + STEP_TIME
    while True:
        found = control_client.look(path)
        if found["size"] != workers and seen:
            raise RequestRefused(f"somebody else has requested {counted(found['size'], 'worker')} meanwhile")
        serving = {w["slot"] for w in _current(found) if w["state"] == "serving"}
        surplus = [w for w in _current(found) if w["slot"] >= workers]
        if serving == set(range(workers)) and all(w["state"] != "serving" for w in surplus):
            tell(_outcome(workers, surplus))
            return 0
        for slot, trouble in found["degraded"].items():
            raise RequestRefused(f"slot {slot} cannot be filled, the server keeps trying: {trouble}")
        now = (len(serving), len(surplus), found["size"])
        if now != seen:
            seen, deadline = now, time.monotonic() + STEP_TIME
        elif time.monotonic() >= deadline:
            raise RequestRefused(f"nothing has changed for {STEP_TIME:g} s; `serve status` shows the progress")
        time.sleep(LOOK)


def _current(found: dict[str, Any]) -> list[dict[str, Any]]:
    return [w for w in found["workers"] if w["generation"] == found["generation"]]


def _outcome(workers: int, surplus: list[dict[str, Any]]) -> str:
    text = f"{counted(workers, 'worker')} {'serves' if workers == 1 else 'serve'}"
    if surplus:
        in_flight = sum(w["in_flight"] + w["websockets"] for w in surplus)
        others = counted(len(surplus), "other")
        text += f"; {others} finishing {counted(in_flight, 'request')}" if in_flight else f"; {others} ending"
    return text


COMMANDS: Final = {
    "scale": command(
        "scale",
        scale,
        click.Argument(["workers"], type=click.IntRange(min=1)),
        click.Option(["--wait/--no-wait"], default=True, help="Wait until that many workers serve.", show_default=True),
    ),
}
