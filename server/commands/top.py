"""`serve top`."""

from __future__ import annotations

from typing import Final

from server.commands.command import command


def top(control: str, pid: str) -> int:
    """Watch the server live."""
    return 0


COMMANDS: Final = {"top": command("top", top)}
