"""`serve stacks`: what every worker is doing at this moment, also one whose event loop is blocked."""

from __future__ import annotations

import json
from typing import Any, Final

from server import control_client
from server.commands.command import as_json, command, seconds, tell

TIMEOUT: Final = 5.0


def stacks(control: str, pid: str, timeout: float, as_json: bool) -> int:
    """Show every worker's Python stacks and running tasks, also of one that is blocked.

    Exit status 0: every worker has told them. 1: not every one did.
    """
    path = control_client.find(control, pid)
    found: dict[str, Any] = control_client.ask(path, "stacks", timeout=timeout)["stacks"]
    tell(json.dumps(found, indent=2) if as_json else _text(found))
    return 0


def _text(found: dict[str, Any]) -> str:
    return json.dumps(found, indent=2)


COMMANDS: Final = {
    "stacks": command(
        "stacks", stacks, seconds("--timeout", "How long a worker may take to answer.", TIMEOUT), as_json()
    ),
}
