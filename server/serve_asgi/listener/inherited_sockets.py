"""Inherited sockets: --fd N, and those of a service manager (sd_listen_fds(3)).

They still belong to whoever opened them: they are never shut out or removed, and closing them here leaves them open
there.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from typing import Final

from serve_asgi.errors import UsageError

FIRST: Final = 3  # SD_LISTEN_FDS_START
VARIABLES: Final = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID")


def from_descriptor(fd: int) -> socket.socket:
    """The stream socket behind the inherited descriptor `fd`, which the result owns from here on.

    Raises UsageError if there is none, or if it is of a kind that cannot listen.
    """
    try:
        mode = os.fstat(fd).st_mode
    except OSError:
        raise UsageError(
            f"--fd {fd}: no descriptor of that number was inherited: open it in the program that starts the server"
        ) from None
    if not stat.S_ISSOCK(mode):
        raise UsageError(f"--fd {fd}: the descriptor is not a socket: pass one that listens, or use --bind")
    os.set_inheritable(fd, False)
    made = socket.socket(fileno=fd)
    if made.type != socket.SOCK_STREAM or made.family not in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
        made.detach()
        raise UsageError(
            f"--fd {fd}: the socket is neither TCP nor a unix stream socket: pass one that is, or use --bind"
        )
    with contextlib.suppress(OSError):
        made.getpeername()
        made.detach()
        raise UsageError(f"--fd {fd}: the socket is a connection: pass one that listens, or use --bind")
    return made


def from_service_manager() -> list[tuple[socket.socket, str, str]]:
    """The sockets that the service manager passed to this very process, each with its name for the operator and the
    service manager's own name for it, "" if it has none. Removes the variables from the environment, whichever process
    they were for, so that no child takes them for its own.
    """
    found = {name: os.environ.pop(name, "") for name in VARIABLES}
    if found["LISTEN_PID"] != str(os.getpid()) or not found["LISTEN_FDS"].isdigit():
        return []
    names = found["LISTEN_FDNAMES"].split(":")
    made = []
    for index in range(int(found["LISTEN_FDS"])):
        name = names[index] if index < len(names) and names[index] not in ("", "unknown") else ""
        made.append((from_descriptor(FIRST + index), f"fd:{FIRST + index}" + (f" ({name})" if name else ""), name))
    return made
