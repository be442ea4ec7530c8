"""How much of what was written to a client it has not taken: what the transport holds, and what the kernel holds.

A slow client takes from the kernel's buffer for minutes before the transport is asked for more (Linux lets a socket's
buffer grow to 4 MiB and reports it writable when a third is free), so the transport alone does not show whether it
reads. It must not know what is written, nor what follows from the answer.
"""

from __future__ import annotations

import asyncio
import fcntl
import struct
import termios


def untaken(transport: asyncio.Transport) -> int:
    """Bytes written and not acknowledged by the client's system (SIOCOUTQ of tcp(7); unix(7) adds its overhead)."""
    held = transport.get_write_buffer_size()
    socket = transport.get_extra_info("socket")
    if socket is None or socket.fileno() < 0:
        return held
    try:
        (queued,) = struct.unpack("i", fcntl.ioctl(socket.fileno(), termios.TIOCOUTQ, b"\0\0\0\0"))
    except OSError:  # not a socket that tells
        return held
    return held + int(queued)
