"""The link of a process that the listener has started: frames over a SOCK_SEQPACKET pair.

It owns this process's end. What cannot be sent at once waits in order; who sends much bounds it himself (each part of
`serve_asgi.app` has a window).

Before a request, what the shared state has had and this process has not, because its loop was blocked, is applied
(`SharedStateSync`). The listener sends each change before it says in the scoreboard that there is one, so what is
missing usually waits in this process's socket already. It is called in the middle of reading a request, so it waits for
nothing but that socket, and not for long.
"""

from __future__ import annotations

import asyncio
import logging
import select
import socket
import time
from collections.abc import Callable
from typing import Final

from serve_asgi.app import presence as presence  # who is there is told from the beginning, also to who asks late
from serve_asgi.app.hub_link import Identity, Link
from serve_asgi.app.shared import shared
from serve_asgi.ipc.frame_socket import FrameSocket
from serve_asgi.logs.server_log import about

log = logging.getLogger("serve")

AT_A_TIME: Final = 64
"""Frames that are read before the loop gets on with other things."""


class HubSocket:
    """The transport of `link`."""

    def __init__(self, end: socket.socket, identity: Identity, loop: asyncio.AbstractEventLoop) -> None:
        """Take over the socket `end`; frames are read from now on."""
        self._end = FrameSocket(end)
        self._loop = loop
        self._empty = asyncio.Event()
        self._empty.set()
        self.link = Link(identity, loop, self._transmit)
        loop.add_reader(end, self._read)

    def catch_up(self, done: Callable[[], bool], timeout: float) -> bool:
        """Read until `done()`, at most `timeout` s, without giving the loop a turn; return whether it is.

        For what must be known before anything else happens; the listener answers within moments.
        """
        end, deadline = self._end, time.monotonic() + timeout
        poll = select.poll()
        poll.register(end.socket, select.POLLIN)
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
        if not self._end.closed:
            self._loop.remove_reader(self._end.socket)
            self._loop.remove_writer(self._end.socket)
            self._end.close()
        self._empty.set()
        self.link.close()

    def _read(self) -> None:
        for _ in range(AT_A_TIME):
            if not self._read_one():
                return

    def _read_one(self) -> bool:
        """Take one frame; False if there is none, or never will be one."""
        data = self._end.receive()
        if data:
            self.link.receive(data)
        elif data is not None:
            self.close()
        return bool(data)

    def _transmit(self, data: bytes) -> None:
        if not self._end.send(data):
            self._empty.clear()
            self._loop.add_writer(self._end.socket, self._write)

    def _write(self) -> None:
        if self._end.send_waiting():
            self._loop.remove_writer(self._end.socket)
            self._empty.set()


PATIENCE: Final = 1.0
"""Seconds to wait for what is not in the socket yet; then the request goes on with what is known."""


class SharedStateSync:
    """Call it when `published[0]` is more than `shared.applied`."""

    def __init__(self, hub: HubSocket, published: memoryview) -> None:
        self._hub = hub
        self._published = published
        self._in_vain = -1  # what was applied when waiting led to nothing: the next request does not wait again

    def __call__(self) -> None:
        wanted = self._published[0]
        patience = 0.0 if shared.applied == self._in_vain else PATIENCE
        if self._hub.catch_up(lambda: shared.applied >= wanted, patience):
            shared.acknowledge()  # now: the request may block the loop again
        elif not self._hub.link.closed and shared.applied != self._in_vain:
            self._in_vain = shared.applied
            text = "a request was served with stale shared state, %d changes behind: the listener was late"
            log.warning(
                text, wanted - shared.applied, extra=about("stale_state_served", changes=wanted - shared.applied)
            )
