"""One end of a link as a socket: whole frames, in order, without waiting for anything.

It owns the socket (SOCK_SEQPACKET) and what could not be sent yet. When to read and when to send the rest is its
user's affair, who waits with the event loop that he has.
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
"""Bytes that the kernel has to hold for an end (SO_SNDBUF, socket(7)), so that the largest frame fits; the usual
default. One that is smaller is set to the double of what it is asked for, net.core.wmem_max at most."""

_ROOM_WILL_COME: Final = frozenset({errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM})

log = logging.getLogger("serve")


def make_room(end: socket.socket) -> None:
    """Have the kernel hold the largest frame that this end sends, where its default is too small."""
    if end.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) < SEND_BUFFER:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER // 2)


def receive(end: socket.socket) -> bytes | None:
    """The next packet; None if there is none yet, and b"" if none will come any more."""
    while True:
        try:
            return end.recv(MAX_FRAME + 1)
        except BlockingIOError:
            return None
        except ConnectionResetError:
            pass  # it was closed with packets unread: the kernel says so once, before what that end had sent
        except OSError:
            return b""


class FrameSocket:
    """One end. `waiting` is what could not be sent, oldest first."""

    __slots__ = ("bytes", "socket", "waiting")

    def __init__(self, end: socket.socket) -> None:
        """Take over the socket `end`; `close` closes it."""
        end.setblocking(False)
        make_room(end)
        self.socket = end
        self.waiting: collections.deque[bytes] = collections.deque()
        self.bytes = 0
        """Of what waits."""

    @property
    def closed(self) -> bool:
        return self.socket.fileno() < 0

    def receive(self) -> bytes | None:
        """The next frame, encoded; None if there is none yet, and b"" if none will come any more."""
        return receive(self.socket)

    def send(self, data: bytes) -> bool:
        """Send a frame after all that was sent before; False if it, and nothing before it, has to wait for room."""
        if not self.waiting and self._sent(data):
            return True
        self.put(data)
        return len(self.waiting) > 1

    def put(self, data: bytes) -> None:
        """Have a frame wait."""
        self.waiting.append(data)
        self.bytes += len(data)

    @property
    def hung_up(self) -> bool:
        """Whether a packet of no bytes that was received was the end."""
        return self.closed or hung_up(self.socket)

    def send_waiting(self) -> bool:
        """There is room: send what waits. True if nothing waits any more."""
        while self.waiting and self._sent(self.waiting[0]):
            self.bytes -= len(self.waiting.popleft())
        return not self.waiting

    def close(self) -> None:
        """Drop what waits."""
        self.waiting.clear()
        self.bytes = 0
        self.socket.close()

    def _sent(self, data: bytes) -> bool:
        """Send at once; False if there is no room. What is for an end that is gone is dropped."""
        try:
            self.socket.send(data, socket.MSG_NOSIGNAL)
        except OSError as error:
            if error.errno == errno.EMSGSIZE:
                text = "a frame of %d bytes cannot be sent to another process of this server: raise net.core.wmem_max"
                log.error(text, len(data), extra=about("frame_dropped", size=len(data)))
            return error.errno not in _ROOM_WILL_COME
        return True
