"""What a connection does with its client's socket beside the transport: shut it down, reset it, duplicate it, ask the
kernel. Nothing else of `http` and `websocket` reaches past a connection's transport.

close(2) ends a connection only with its last descriptor, and a C library of the application's may have forked. So a
connection is shut down before it is closed, which is the same to its client. One that was handed over is not: its
duplicate serves the client.

A slow client takes from the kernel's buffer for minutes before the transport is asked for more (Linux lets a socket's
buffer grow to 4 MiB and reports it writable when a third is free), so the transport alone does not show whether it
reads. This module must not know what is written, nor what follows from its answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import select
import socket
import struct
import sys
from typing import Any, Final

if sys.platform == "linux":
    import fcntl
    import termios
else:  # where nothing uses them
    fcntl: Any = None
    termios: Any = None

_UNSPECIFIED: Final = bytes(16)
"""A struct sockaddr of family AF_UNSPEC (0)."""
_BYTES_ACKED: Final = 120
"""Where it stands in struct tcp_info (linux/tcp.h), with eight bytes."""
if sys.platform == "linux":
    _library: Final = ctypes.PyDLL(None)  # does not give the interpreter lock up for a call of a microsecond
else:
    _library: Any = None


def hang_up(transport: asyncio.BaseTransport) -> None:
    """Shut both sides down (shutdown(2)); nothing happens if that is done.

    For `connection_lost`: everything is with the kernel then, and the descriptor is still open.
    """
    sock = transport.get_extra_info("socket")
    if sock is not None and (descriptor := sock.fileno()) >= 0:
        if sys.platform == "linux":
            _library.shutdown(descriptor, socket.SHUT_RDWR)
        else:
            with contextlib.suppress(OSError):  # that is done
                sock.shutdown(socket.SHUT_RDWR)


def reset(transport: asyncio.BaseTransport) -> bool:
    """Reset the connection, now: what the kernel holds is dropped, and the client sees an error, not an end.

    That is what connect(2) with AF_UNSPEC does on Linux (tcp_disconnect). False if the kernel does not, or if it is a
    unix socket, which knows nothing of that kind.
    """
    if sys.platform != "linux":
        return False
    sock = transport.get_extra_info("socket")
    if sock is None or sock.family == socket.AF_UNIX or (descriptor := sock.fileno()) < 0:
        return False
    return bool(_library.connect(descriptor, _UNSPECIFIED, len(_UNSPECIFIED)) == 0)


def descriptor_of(transport: asyncio.BaseTransport) -> int:
    """The socket's descriptor, which stays the transport's."""
    descriptor: int = transport.get_extra_info("socket").fileno()
    return descriptor


def duplicate(transport: asyncio.BaseTransport) -> int:
    """A duplicate of that descriptor, which the caller owns. Raises OSError if there is none to be had."""
    return os.dup(descriptor_of(transport))


def unacknowledged(transport: asyncio.Transport) -> int:
    """Bytes written that the client's system has not acknowledged: the transport's and the kernel's.

    (SIOCOUTQ of tcp(7); unix(7) adds its overhead.)
    """
    held = transport.get_write_buffer_size()
    sock = transport.get_extra_info("socket")
    if sock is None or sock.fileno() < 0:
        return held
    if sys.platform != "linux":
        return held
    try:
        (queued,) = struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0\0\0\0"))
    except OSError:  # not a socket that tells
        return held
    return held + int(queued)


def acknowledged(transport: asyncio.BaseTransport) -> int:
    """Bytes that the client's system has acknowledged since the connection began; -1 if the kernel does not tell.

    (tcpi_bytes_acked of struct tcp_info, tcp(7), Linux 4.1.)
    """
    if sys.platform != "linux":
        return -1
    sock = transport.get_extra_info("socket")
    try:
        probe = socket.socket(sock.family, sock.type, fileno=sock.fileno())  # uvloop's own has not all options
    except (OSError, ValueError):  # the transport is closed
        return -1
    try:
        information = probe.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_ACKED + 8)
    except OSError:  # a unix socket
        return -1
    finally:
        probe.detach()
    return int.from_bytes(information[_BYTES_ACKED:], sys.byteorder) if len(information) == _BYTES_ACKED + 8 else -1


def is_readable(transport: asyncio.BaseTransport) -> bool:
    """Whether the kernel holds bytes of the client that have not been read."""
    sock = transport.get_extra_info("socket")
    try:
        probe = socket.socket(sock.family, sock.type, fileno=sock.fileno())  # no duplicate: there may be none left
    except (OSError, ValueError):  # the transport is closed
        return False
    try:
        if sys.platform != "linux":
            return bool(select.select([probe], [], [], 0)[0])
        return bool(probe.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except OSError:  # nothing there
        return False
    finally:
        probe.detach()
