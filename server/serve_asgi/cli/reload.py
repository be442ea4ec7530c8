"""`serve reload`: request a reload and follow it to its outcome, on a terminal, in a pipe or for a script.

The listener performs the reload, which continues if this command is interrupted.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Final

import click

from serve_asgi.cli import control_client
from serve_asgi.cli.command import (
    INTERRUPTED,
    as_json,
    command,
    complain,
    failed_as_json,
    lively,
    tell,
    tell_outcome,
)
from serve_asgi.cli.control_client import PATIENCE, ControlConversation, RequestRefused
from serve_asgi.cli.reload_progress import (
    FRAME,
    OlderGenerations,
    ReloadDisplay,
    ReloadLines,
    ReloadRecords,
    remains,
    settled,
)
from serve_asgi.errors import UsageError

LISTENER_TIME: Final = 120.0
"""Seconds that replacing the listener may take; the listener itself gives up earlier."""
SETTLE: Final = 0.5
"""Seconds to wait for the hand-over of idle connections before this command reports what is left."""


def reload(control: str, pid_file: str, wait: bool, retired: bool, listener: bool, as_json: bool) -> int:
    """Replace every worker with fresh code; wait until it serves.

    On a terminal a live view shows which workers are importing or ready, the switch, and what the old workers still
    have to do; elsewhere each step is a line. The old generation finishes its requests after the switch: --retired
    waits for that as well.

    --listener replaces the program of the listener, which otherwise survives every reload, by the current release's:
    the process, the workers and the sockets stay. When the server itself has a new version, reload first, then do this.

    Exit status 0: the new generation (or listener) serves. 1: it was refused, with the reason; the old one serves on.
    """
    try:
        path = control_client.find(control, pid_file)
        if wait and not listener:
            return _followed(path, retired=retired, as_json=as_json)
        if listener:
            text = control_client.ask(path, "reload-listener", patience=LISTENER_TIME)["text"]
        else:
            text = control_client.ask(path, "reload", wait=False, patience=PATIENCE)["text"]
    except (RequestRefused, UsageError) as error:
        if as_json:
            return failed_as_json(error)
        raise
    if as_json:
        tell_outcome(True, text)
    else:
        tell(text)
    return 0


def _followed(path: Path, *, retired: bool, as_json: bool) -> int:
    """Run the reload and show it. Raises RequestRefused if it was refused."""
    before = control_client.look(path)
    show = _show(before, as_json=as_json)
    try:
        with show:
            response = _transaction(path, show)
            show.outcome(response)
            if response["ok"]:
                show.left(_afterwards(path, before, show, retired=retired))
    except KeyboardInterrupt:
        complain("the reload continues without this command; `serve status` shows its outcome")
        return INTERRUPTED
    control_client.checked(response)
    return 0


def _show(before: dict[str, Any], *, as_json: bool) -> ReloadDisplay:
    if as_json:
        return ReloadRecords()
    if lively():
        from serve_asgi.cli.reload_live_view import ReloadLiveView

        return ReloadLiveView(before)
    return ReloadLines(before)


def _transaction(path: Path, show: ReloadDisplay) -> dict[str, Any]:
    """Request the reload and follow it; return the response. The listener's own timeouts bound the wait."""
    with ControlConversation(path, "reload", follow=True) as conversation:
        while True:
            message = conversation.receive(show.pause)
            if message is None:
                show.seen(control_client.look(path))  # raises if it does not respond
            elif "record" in message:
                show.happened(message["record"])
            else:
                return message


def _afterwards(path: Path, before: dict[str, Any], show: ReloadDisplay, *, retired: bool) -> OlderGenerations:
    """Watch until the idle connections have been handed over or, if requested, until the old workers have ended.

    Their own deadlines (the server's --graceful-timeout) bound the wait.
    """
    settle = time.monotonic() + SETTLE
    found = before
    while True:
        try:
            found = control_client.look(path)
        except (RequestRefused, UsageError):
            return remains(before, found)  # it is being stopped; the reload itself has succeeded
        show.seen(found)
        left = remains(before, found)
        if not left.generations or not (retired or (not settled(found) and time.monotonic() < settle)):
            return left
        time.sleep(min(FRAME, show.pause) if retired else 0.02)


COMMANDS: Final = {
    "reload": command(
        "reload",
        reload,
        click.Option(["--wait/--no-wait"], default=True, show_default=True, help="Wait for the outcome."),
        click.Option(["--listener"], is_flag=True, help="Replace the listener's own program, not the workers."),
        click.Option(["--retired"], is_flag=True, help="Wait until the old workers have ended as well."),
        as_json("One JSON object per step, the last one the outcome."),
    ),
}
