"""`serve reload`: run the transaction and follow it to its outcome."""

from __future__ import annotations

from typing import Final

from server import control_client
from server.commands.command import command, tell


def reload(control: str, pid: str) -> int:
    """Replace every worker with fresh code; wait until it serves."""
    tell(control_client.ask(control_client.find(control, pid), "reload")["text"])
    return 0


COMMANDS: Final = {"reload": command("reload", reload)}
