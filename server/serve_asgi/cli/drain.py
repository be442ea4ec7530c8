"""`serve drain`: make the health endpoint fail, and succeed again."""

from __future__ import annotations

from typing import Final

import click

from serve_asgi.cli import control_client
from serve_asgi.cli.command import command, tell
from serve_asgi.cli.control_client import HOOK_PATIENCE


def drain(control: str, pid_file: str, off: bool) -> int:
    """Make the health endpoint fail while real traffic is still served.

    It lasts, over reloads too, until `serve drain --off`.
    """
    tell(control_client.ask(control_client.find(control, pid_file), "drain", off=off, patience=HOOK_PATIENCE)["text"])
    return 0


COMMANDS: Final = {
    "drain": command("drain", drain, click.Option(["--off"], is_flag=True, help="End the drain.")),
}
