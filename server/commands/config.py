"""`serve config`: what is in force, and where each value came from."""

from __future__ import annotations

import json
from typing import Any, Final

from server import control_client
from server.commands.command import as_json, command, tell


def config(control: str, pid: str, as_json: bool) -> int:
    """Show the configuration that is in force, and where each value came from."""
    found: dict[str, Any] = control_client.ask(control_client.find(control, pid), "config")["config"]
    tell(json.dumps(found, indent=2) if as_json else _text(found))
    return 0


def _text(found: dict[str, Any]) -> str:
    return json.dumps(found, indent=2)


COMMANDS: Final = {"config": command("config", config, as_json())}
