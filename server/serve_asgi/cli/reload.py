"""`serve reload`: request a reload and follow it to its outcome, on a terminal, in a pipe or for a script.

The listener performs the reload, which continues if this command is interrupted.
"""

from __future__ import annotations

import time
from collections.abc import Callable
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
from serve_asgi.config.code_places import moved_link
from serve_asgi.errors import UsageError

LISTENER_TIME: Final = 120.0
"""Seconds that replacing the listener may take; the listener itself gives up earlier."""
LARGEST_SHARE: Final = 0.5
"""Of the traffic: beyond that it would be the old version that is on trial."""
SETTLE: Final = 0.5
"""Seconds to wait for the hand-over of idle connections before this command reports what is left."""


def reload(
    control: str,
    pid_file: str,
    wait: bool,
    retired: bool,
    listener: bool,
    canary: str | None,
    no_canary: bool,
    trial: float | None,
    hold: bool | None,
    as_json: bool,
) -> int:
    """Replace every worker with fresh code; wait until it serves.

    On a terminal a live view shows which workers are importing or ready, the switch, and what the old workers still
    have to do; elsewhere each step is a line. The old generation finishes its requests after the switch: --retired
    waits for that as well.

    --listener replaces the program of the listener, which otherwise survives every reload, by the current release's:
    the process, the workers and the sockets stay. When the server itself has a new version, reload first, then do this.

    --canary has some of the new workers serve a share of the traffic on trial before the others start: one worker's
    worth, or a percentage. They are taken back, and their connections with them, if they fail more requests than the
    old workers in the same time. --for says how long the trial lasts; --auto promotes the new version if there were too
    few requests to tell, --hold waits for `serve promote` or `serve rollback` then.

    Exit status 0: the new generation (or listener) serves. 1: it was refused or taken back, with the reason; the old
    one serves on.
    """
    try:
        path = control_client.find(control, pid_file)
        wish = trial_wish(canary, no_canary, trial, hold)
        if wait and not listener:
            return followed(path, "reload", wish, retired=retired, as_json=as_json)
        if listener:
            text = control_client.ask(path, "reload-listener", patience=LISTENER_TIME)["text"]
        else:
            text = control_client.ask(path, "reload", wait=False, patience=PATIENCE, **wish)["text"]
    except (RequestRefused, UsageError) as error:
        if as_json:
            return failed_as_json(error)
        raise
    if as_json:
        tell_outcome(True, text)
    else:
        tell(text)
    return 0


def trial_wish(canary: str | None, no_canary: bool, trial: float | None, hold: bool | None) -> dict[str, Any]:
    """What the request says of a trial: nothing, if it is to be as configured. Raises UsageError."""
    if no_canary and not (canary is None and trial is None and hold is None):
        raise UsageError("--no-canary and options of a trial were both given: leave one out")
    if no_canary:
        return {"canary": {"on": False}}
    if canary is None and (trial is not None or hold is not None):
        raise UsageError("--for, --auto and --hold are about a trial: give --canary as well")
    if canary is None:
        return {}
    wish = {"share": _share(canary) if canary else None, "time": trial, "hold": hold}
    return {"canary": {name: value for name, value in wish.items() if value is not None}}


def _share(text: str) -> float:
    try:
        share = float(text.removesuffix("%")) / 100
    except ValueError:
        share = 0.0
    if not 0 < share <= LARGEST_SHARE:
        raise UsageError(f"{text!r} is not the share of a canary: write a percentage up to {LARGEST_SHARE:.0%}, as 10%")
    return share


def followed(
    path: Path,
    command: str,
    wish: dict[str, Any],
    *,
    retired: bool,
    as_json: bool,
    settle: Callable[[dict[str, Any]], None] | None = None,
) -> int:
    """Run the reload, or the roll-back, and show it. Raises RequestRefused if it was refused.

    `settle` is called with the response before it is shown; whoever gives it handles Ctrl-C.
    """
    before = control_client.look(path)
    show = _show(before, as_json=as_json)
    try:
        with show:
            response = _transaction(path, command, wish, show)
            if settle is not None:
                settle(response)
            elif not response["ok"] and (moved := moved_link(before.get("places", {}))):
                response["text"] = f"{response['text'].rstrip('.')}. {moved}"
            show.outcome(response)
            if response["ok"]:
                show.left(_afterwards(path, before, show, retired=retired))
    except KeyboardInterrupt:
        if settle is not None:
            raise
        complain(f"the {command} continues without this command; `serve status` shows its outcome")
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


def _transaction(path: Path, command: str, wish: dict[str, Any], show: ReloadDisplay) -> dict[str, Any]:
    """Request it and follow it; return the response. The listener's own timeouts bound the wait."""
    with ControlConversation(path, command, follow=True, **wish) as conversation:
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


TRIAL: Final = (
    click.Option(
        ["--canary"],
        is_flag=False,
        flag_value="",
        metavar="[SHARE]",
        help="Begin with a trial; SHARE of the traffic: 10%, or as much as one worker's.",
    ),
    click.Option(["--no-canary"], is_flag=True, help="Begin with none, whatever is configured."),
    click.Option(["--for", "trial"], type=click.FloatRange(1), metavar="SECONDS", help="How long the trial lasts."),
    click.Option(
        ["--hold/--auto"], default=None, help="Without a verdict, wait for an operator; or promote the canary."
    ),
)
"""The options of a trial."""
COMMANDS: Final = {
    "reload": command(
        "reload",
        reload,
        click.Option(["--wait/--no-wait"], default=True, show_default=True, help="Wait for the outcome."),
        click.Option(["--listener"], is_flag=True, help="Replace the listener's own program, not the workers."),
        *TRIAL,
        click.Option(["--retired"], is_flag=True, help="Wait until the old workers have ended as well."),
        as_json("One JSON object per step, the last one the outcome."),
    ),
}
