"""One end of a link as a socket: whole frames, in order, without blocking.

It owns the socket (SOCK_SEQPACKET) and what could not be sent yet. Its user decides when to read and when to send the
rest, with whatever event loop there is.
"""

from __future__ import annotations

import collections
import errno
import logging
import socket
from typing import Final

from serve_asgi.ipc.channel import hung_up
from serve_asgi.ipc.frames import MAX_FRAME
from serve_asgi.logs.server_log import about

SEND_BUFFER: Final = 212_992
"""Bytes that the kernel has to buffer for an end (SO_SNDBUF, socket(7)) so that the largest frame fits; the usual
default. A smaller buffer is set to twice the requested size, at most net.core.wmem_max."""

_ROOM_WILL_COME: Final = frozenset({errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM})

log = logging.getLogger("serve")


def make_room(end: socket.socket) -> None:
    """Make the kernel's buffer large enough for the largest frame, where its default is too small."""
    if end.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) < SEND_BUFFER:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER // 2)


def receive(end: socket.socket) -> bytes | None:
    """The next packet; None if there is none yet, and b"" if there will be no more."""
    while True:
        try:
            return end.recv(MAX_FRAME + 1)
        except BlockingIOError:
            return None
        except ConnectionResetError:
            pass  # closed with unread packets, which the kernel reports once, before what that end has sent
        except OSError:
            return b""


class FrameSocket:
    """One end. `waiting` are the frames that could not be sent, oldest first."""

    __slots__ = ("bytes", "socket", "waiting")

    def __init__(self, end: socket.socket) -> None:
        """Take over the socket `end`; `close` closes it."""
        end.setblocking(False)
        make_room(end)
        self.socket = end
        self.waiting: collections.deque[bytes] = collections.deque()
        self.bytes = 0
        """Total bytes of `waiting`."""

    @property
    def closed(self) -> bool:
        return self.socket.fileno() < 0

    def receive(self) -> bytes | None:
        """The next frame, encoded; None if there is none yet, and b"" if there will be no more."""
        return receive(self.socket)

    def send(self, data: bytes) -> bool:
        """Send a frame, in order; return False if it is the first that has to wait for room."""
        if not self.waiting and self._sent(data):
            return True
        self.put(data)
        return len(self.waiting) > 1

    def put(self, data: bytes) -> None:
        """Queue a frame."""
        self.waiting.append(data)
        self.bytes += len(data)

    @property
    def hung_up(self) -> bool:
        """Whether an empty packet that was received was the end."""
        return self.closed or hung_up(self.socket)

    def send_waiting(self) -> bool:
        """There is room: send what is queued. Returns True if nothing is queued any more."""
        while self.waiting and self._sent(self.waiting[0]):
            self.bytes -= len(self.waiting.popleft())
        return not self.waiting

    def close(self) -> None:
        """Close the socket and drop what is queued."""
        self.waiting.clear()
        self.bytes = 0
        self.socket.close()

    def _sent(self, data: bytes) -> bool:
        """Send at once; return False if there is no room. Frames to a closed end are dropped."""
        try:
            self.socket.send(data, socket.MSG_NOSIGNAL)
        except OSError as error:
            if error.errno == errno.EMSGSIZE:
                text = "a frame of %d bytes cannot be sent to another process of this server: raise net.core.wmem_max"
                log.error(text, len(data), extra=about("frame_dropped", size=len(data)))
            return error.errno not in _ROOM_WILL_COME
        return True
