"""Telling the service manager what the server does (sd_notify(3)).

Each function sends one datagram to $NOTIFY_SOCKET, if that is set; none waits and none raises: a service manager that
does not listen is no reason to serve nobody. Children must not see the variables (they are not the service): who
starts them leaves them out of their environment.
"""

from __future__ import annotations

import os
import socket
import time
from typing import Final

PATIENCE: Final = 15.0
"""Seconds that the service manager is asked for each time that something takes longer; asked again before they end."""


def ready(text: str = "") -> None:
    """The server serves; also sent when a reload has ended, well or not."""
    _send("READY=1", text)


def reloading(text: str = "") -> None:
    """A reload has begun (Type=notify-reload wants the time at which it did, in the same message)."""
    _send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}\n{_EXTEND}", text)


def stopping(text: str = "") -> None:
    """The server is about to end."""
    _send(f"STOPPING=1\n{_EXTEND}", text)


def status(text: str) -> None:
    """One line for `systemctl status`."""
    _send("", text)


def extend(text: str = "") -> None:
    """What is under way (start, reload or stop) goes on: the manager's timeout for it is to come no sooner than that.

    The manager then relies on hearing of it again within PATIENCE; that everything has an end is the server's duty.
    """
    _send(_EXTEND, text)


def watchdog() -> None:
    """The server is well."""
    _send("WATCHDOG=1", "")


def wanted() -> bool:
    """Whether there is a service manager that wants to know."""
    return os.environ.get("NOTIFY_SOCKET", "").startswith(("/", "@"))


def watchdog_period() -> float:
    """Seconds after which the manager acts if it has not been told `watchdog`; 0 if it does not ask for that.

    As sd_watchdog_enabled(3) has it: variables that are meant for another process do not count.
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
