"""The commands, most of which control a running server: one module for each, loaded when its command is run.

The listener imports none of them, so that terminal libraries do not add to its memory.
"""

from __future__ import annotations

import importlib
from typing import Final

import click

MODULES: Final = {
    "reload": "reload",
    "deploy": "deploy",
    "promote": "promote",
    "rollback": "rollback",
    "drain": "drain",
    "stop": "stop",
    "scale": "scale",
    "status": "status",
    "workers": "status",
    "top": "top",
    "deploys": "deploys",
    "fleet": "fleet",
    "stacks": "stacks",
    "schedules": "schedules",
    "schedule": "schedules",
    "shared": "shared",
    "messages": "messages",
    "logs-reopen": "logs_reopen",
    "tls-reload": "tls_reload",
    "config": "config",
    "import-config": "import_config",
}
"""The module of each command, in the order in which help shows them."""
WITHOUT_SERVER: Final = ("import-config",)
"""Those that need no running server."""


def load(name: str) -> click.Command:
    """The command of this name."""
    command = importlib.import_module(f"serve_asgi.cli.{MODULES[name]}").COMMANDS[name]
    assert isinstance(command, click.Command)
    return command
