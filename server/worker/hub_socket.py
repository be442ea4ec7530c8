"""The link of a process that the listener has started: frames over a SOCK_SEQPACKET pair.

It owns this process's end. What cannot be sent at once waits in order; who sends much bounds it himself (each part of
`server.app` has a window).
"""

from __future__ import annotations

import asyncio
import collections
import errno
import select
import socket
import time
from collections.abc import Callable
from typing import Final

from server.app import presence  # noqa: F401  # who is there is told from the beginning, also to who asks late
from server.app.link import Identity, Link
from server.hub.frames import MAX_FRAME

AT_A_TIME: Final = 64
"""Frames that are read before the loop gets on with other things."""
NO_ROOM_YET: Final = frozenset({errno.EAGAIN, errno.ENOBUFS})


class HubSocket:
    """The transport of `link`."""

    def __init__(self, end: socket.socket, identity: Identity, loop: asyncio.AbstractEventLoop) -> None:
        """Take over the socket `end`; frames are read from now on."""
        end.setblocking(False)
        self._socket = end
        self._loop = loop
        self._queue: collections.deque[bytes] = collections.deque()
        self._empty = asyncio.Event()
        self._empty.set()
        self.link = Link(identity, loop, self._transmit)
        loop.add_reader(end, self._read)

    def catch_up(self, done: Callable[[], bool], timeout: float) -> bool:
        """Read until `done()`, at most `timeout` s, without giving the loop a turn; return whether it is.

        For what must be known before anything else happens; the listener answers within moments.
        """
        deadline = time.monotonic() + timeout
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        while not done():
            if self.link.closed:
                return False
            if not self._read_one():
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                poll.poll(left * 1000)
        return True

    async def flushed(self) -> None:
        """Wait until all has been sent; the caller sets the deadline."""
        await self._empty.wait()

    def close(self) -> None:
        """Nothing is read or sent any more."""
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._socket.close()
        self._queue.clear()
        self._empty.set()
        self.link.close()

    def _read(self) -> None:
        for _ in range(AT_A_TIME):
            if not self._read_one():
                return

    def _read_one(self) -> bool:
        """Take one frame; False if there is none, or never will be one."""
        try:
            data = self._socket.recv(MAX_FRAME + 1)
        except BlockingIOError:
            return False
        except ConnectionResetError:
            return True  # it was closed with frames unread, which the kernel says before what it had sent
        except OSError:
            data = b""
        if not data:
            self.close()
            return False
        self.link.receive(data)
        return True

    def _transmit(self, data: bytes) -> None:
        if not self._queue and self._sent(data):
            return
        self._queue.append(data)
        if len(self._queue) == 1:
            self._empty.clear()
            self._loop.add_writer(self._socket, self._write)

    def _sent(self, data: bytes) -> bool:
        """Send at once; False if there is no room. To a listener that is gone nothing is sent."""
        try:
            self._socket.send(data, socket.MSG_NOSIGNAL)
        except OSError as error:
            return error.errno not in NO_ROOM_YET
        return True

    def _write(self) -> None:
        while self._queue and self._sent(self._queue[0]):
            self._queue.popleft()
        if not self._queue:
            self._loop.remove_writer(self._socket)
            self._empty.set()
