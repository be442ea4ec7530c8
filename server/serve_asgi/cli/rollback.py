"""`serve rollback`: take back the latest deploy, and follow that to its outcome as `serve reload` does."""

from __future__ import annotations

from typing import Final

import click

from serve_asgi.cli import control_client
from serve_asgi.cli.command import as_json, command, complain, failed_as_json, tell, tell_outcome
from serve_asgi.cli.control_client import PATIENCE, RequestRefused
from serve_asgi.cli.deploy import follow_rollback
from serve_asgi.cli.reload import followed
from serve_asgi.config.code_places import moved_link
from serve_asgi.errors import UsageError


def rollback(control: str, pid_file: str, wait: bool, retired: bool, as_json: bool) -> int:
    """Take back the latest deploy: have the code before it serve again; wait until it does.

    With --keep-previous the generation before is still there, and serves again within milliseconds; its connections
    are handed over and its requests finished, as in a reload. A reload that is under way is given up instead.

    Exit status 0: the previous generation serves. 1: it was refused, with the reason; the current one serves on.
    """
    try:
        path = control_client.find(control, pid_file)
        if wait:
            status = followed(path, "rollback", {}, retired=retired, as_json=as_json)
            if status == 0:
                follow_rollback(path, as_json=as_json)
                if not as_json and (moved := moved_link(control_client.look(path).get("places", {}))):
                    complain(str(moved))
            return status
        text = control_client.ask(path, "rollback", wait=False, patience=PATIENCE)["text"]
    except (RequestRefused, UsageError) as error:
        if as_json:
            return failed_as_json(error)
        raise
    if as_json:
        tell_outcome(True, text)
    else:
        tell(text)
    return 0


COMMANDS: Final = {
    "rollback": command(
        "rollback",
        rollback,
        click.Option(["--wait/--no-wait"], default=True, show_default=True, help="Wait for the outcome."),
        click.Option(["--retired"], is_flag=True, help="Wait until the workers that were rolled back have ended."),
        as_json("One JSON object per step, the last one the outcome."),
    ),
}
