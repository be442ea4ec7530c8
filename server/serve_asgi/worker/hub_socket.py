"""The hub link of a process that the listener has started: frames over a SOCK_SEQPACKET pair.

It owns this process's end. What cannot be sent at once is queued in order; each sender in `serve_asgi.app` bounds its
own frames by a window.

Before a request, changes of the shared state that this process has missed because its loop was blocked are applied
(`SharedStateSync`). The listener sends each change before it publishes its number in the scoreboard, so missing changes
are usually in this process's socket already. It is called while a request is being read, so it waits for nothing but
that socket, and not for long.
"""

from __future__ import annotations

import asyncio
import logging
import select
import socket
import time
from collections.abc import Callable
from typing import Final

from serve_asgi.app import presence as presence  # imported so that members are tracked from the beginning
from serve_asgi.app.hub_link import Identity, Link
from serve_asgi.app.shared import shared
from serve_asgi.ipc.frame_socket import FrameSocket
from serve_asgi.logs.server_log import about

log = logging.getLogger("serve")

AT_A_TIME: Final = 64
"""Frames that are read before the loop continues with other things."""


class HubSocket:
    """The transport of `link`."""

    def __init__(self, end: socket.socket, identity: Identity, loop: asyncio.AbstractEventLoop) -> None:
        """Take over the socket `end` and start to read frames."""
        self._end = FrameSocket(end)
        self._loop = loop
        self._empty = asyncio.Event()
        self._empty.set()
        self.link = Link(identity, loop, self._transmit)
        loop.add_reader(end, self._read)

    def catch_up(self, done: Callable[[], bool], timeout: float) -> bool:
        """Read until `done()`, at most `timeout` s, without running the loop; return whether it is done.

        For what must be known before anything else happens; the listener replies within moments.
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
        """Stop reading and sending."""
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
        """Handle one frame; return False if there is none, or never will be."""
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
"""Seconds to wait for changes that are not in the socket yet; then the request proceeds without them."""


class SharedStateSync:
    """Applies missed changes; to be called when `published[0]` is greater than `shared.applied`."""

    def __init__(self, hub: HubSocket, published: memoryview) -> None:
        self._hub = hub
        self._published = published
        self._in_vain = -1  # what was applied when a wait was in vain: the next request does not wait again

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
