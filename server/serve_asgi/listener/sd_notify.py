"""Tells the service manager what the server does (sd_notify(3)).

Each function sends one datagram to $NOTIFY_SOCKET, if that is set; none waits and none raises: the server serves even
if the service manager does not listen. Children must not see the variables, since they are not the service: they are
left out of their environment.
"""

from __future__ import annotations

import os
import socket
import time
from typing import Final

PATIENCE: Final = 15.0
"""Seconds of each request for more time; repeated before they are over."""


def ready(text: str = "") -> None:
    """The server serves; also sent when a reload has ended, successfully or not."""
    _send("READY=1", text)


def reloading(text: str = "") -> None:
    """A reload has begun (Type=notify-reload requires the current time in the same message)."""
    _send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}\n{_EXTEND}", text)


def stopping(text: str = "") -> None:
    """The server is stopping."""
    _send(f"STOPPING=1\n{_EXTEND}", text)


def status(text: str) -> None:
    """One line for `systemctl status`."""
    _send("", text)


def extend(text: str = "") -> None:
    """Request more time for the start, reload or stop under way.

    The manager then expects another message within PATIENCE; that everything ends is the server's responsibility.
    """
    _send(_EXTEND, text)


def watchdog() -> None:
    """The server is well."""
    _send("WATCHDOG=1", "")


def wanted() -> bool:
    """Whether there is a service manager to notify."""
    return os.environ.get("NOTIFY_SOCKET", "").startswith(("/", "@"))


def watchdog_period() -> float:
    """Seconds without `watchdog` after which the manager acts; 0 if it does not expect it.

    As in sd_watchdog_enabled(3), variables that are meant for another process do not count.
    """
    period = os.environ.get("WATCHDOG_USEC", "")
    if not period.isascii() or not period.isdigit() or os.environ.get("WATCHDOG_PID", "") not in ("", str(os.getpid())):
        return 0.0
    return int(period) / 1e6


_EXTEND: Final = f"EXTEND_TIMEOUT_USEC={int(PATIENCE * 1e6)}"


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
