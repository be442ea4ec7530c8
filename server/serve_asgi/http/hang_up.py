"""The end of a client's connection, also where another process holds a duplicate of it.

close(2) ends a connection only with its last descriptor, and a C library of the application's may have forked. So a
connection is shut down before it is closed, which is the same to its client. One that was handed over is not: its
duplicate serves the client.
"""

from __future__ import annotations

import asyncio
import ctypes
import socket
from typing import Final

_UNSPECIFIED: Final = bytes(16)
"""A struct sockaddr of family AF_UNSPEC (0)."""
_library: Final = ctypes.PyDLL(None)  # does not give the interpreter lock up for a call of a microsecond


def hang_up(transport: asyncio.BaseTransport) -> None:
    """Shut both sides down (shutdown(2)); nothing happens if that is done.

    For `connection_lost`: everything is with the kernel then, and the descriptor is still open.
    """
    sock = transport.get_extra_info("socket")
    if sock is not None and (descriptor := sock.fileno()) >= 0:
        _library.shutdown(descriptor, socket.SHUT_RDWR)


def reset(transport: asyncio.BaseTransport) -> bool:
    """Reset the connection, now: what the kernel holds is dropped, and the client sees an error, not an end.

    That is what connect(2) with AF_UNSPEC does on Linux (tcp_disconnect). False if the kernel does not, or if it is a
    unix socket, which knows nothing of that kind.
    """
    sock = transport.get_extra_info("socket")
    if sock is None or sock.family == socket.AF_UNIX or (descriptor := sock.fileno()) < 0:
        return False
    return bool(_library.connect(descriptor, _UNSPECIFIED, len(_UNSPECIFIED)) == 0)
