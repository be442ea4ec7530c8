"""`serve logs-reopen`: what USR1 does, for logrotate and for people."""

from __future__ import annotations

from typing import Final

from serve_asgi.cli import control_client
from serve_asgi.cli.command import command, tell
from serve_asgi.cli.control_client import PATIENCE


def reopen(control: str, pid_file: str) -> int:
    """Reopen the log files, after they were moved."""
    tell(control_client.ask(control_client.find(control, pid_file), "logs-reopen", patience=PATIENCE)["text"])
    return 0


COMMANDS: Final = {"logs-reopen": command("logs-reopen", reopen)}
