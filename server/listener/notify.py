"""Telling the service manager what the server does (sd_notify(3)).

Each function sends one datagram to $NOTIFY_SOCKET, if that is set; none waits and none raises: a service manager that
does not listen is no reason to serve nobody. Children must not see the variable (they are not the service): who
starts them leaves it out of their environment.
"""

from __future__ import annotations

import os
import socket
import time


def ready(text: str = "") -> None:
    """The server serves; also sent when a reload has ended, well or not."""
    _send("READY=1", text)


def reloading(text: str = "") -> None:
    """A reload has begun (Type=notify-reload wants the time at which it did)."""
    _send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}", text)


def stopping(text: str = "") -> None:
    """The server is about to end."""
    _send("STOPPING=1", text)


def status(text: str) -> None:
    """One line for `systemctl status`."""
    _send("", text)


def _send(state: str, text: str) -> None:
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    message = "\n".join(part for part in (state, f"STATUS={' '.join(text.split())}" if text else "") if part)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
            end.setblocking(False)
            where = "\0" + address[1:] if address.startswith("@") else address
            end.sendto(message.encode(errors="backslashreplace"), where)
    except OSError:
        pass
