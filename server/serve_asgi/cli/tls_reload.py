"""`serve tls-reload`: have the files of certificates looked at now, for hooks of certbot and for people."""

from __future__ import annotations

from typing import Final

from serve_asgi.cli import control_client
from serve_asgi.cli.command import command, tell

PATIENCE: Final = 60.0
"""Seconds to wait for the outcome: the disk has its time, twice, and the workers have theirs."""


def tls_reload(control: str, pid_file: str) -> int:
    """Use certificates that have changed, without a reload."""
    tell(control_client.ask(control_client.find(control, pid_file), "tls-reload", patience=PATIENCE)["text"])
    return 0


COMMANDS: Final = {"tls-reload": command("tls-reload", tls_reload)}
