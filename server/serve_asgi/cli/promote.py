"""`serve promote`: end the trial of a canary, and have its version serve all of the traffic."""

from __future__ import annotations

from typing import Final

from serve_asgi.cli import control_client
from serve_asgi.cli.command import command, tell
from serve_asgi.cli.control_client import PATIENCE


def promote(control: str, pid_file: str) -> int:
    """Promote the version that is on trial: the rest of its workers start, and then it serves all of the traffic.

    `serve status` shows the trial, `serve rollback` ends it the other way.

    Exit status 0: the canary is promoted. 1: none is on trial.
    """
    tell(control_client.ask(control_client.find(control, pid_file), "promote", patience=PATIENCE)["text"])
    return 0


COMMANDS: Final = {"promote": command("promote", promote)}
