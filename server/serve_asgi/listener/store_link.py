"""The listener's end of the socket pair to one store process: what the process is fed, and what it sends back.

It owns the socket (`serve_asgi.ipc.store_frames` says what passes). It sends the requests that wait
(`serve_asgi.listener.store_requests`) as fast as the process takes them, and passes on the frames that come back;
neither takes more than `TURN_BUDGET` of a turn of the loop. The process is not trusted: if it sends what no store
sends, the link is `broken` and the process is to be killed. Why it is started and when it ends is
`serve_asgi.listener.store_process`'s.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable
from typing import Final

import anyio

from serve_asgi.ipc.channel import hung_up, refuse_descriptors
from serve_asgi.ipc.frame_socket import make_room, receive
from serve_asgi.ipc.frames import ValidatedFrame, split_frame
from serve_asgi.ipc.store_frames import FROM_STORE
from serve_asgi.ipc.untrusted_input import Heads
from serve_asgi.listener import protocol_violations
from serve_asgi.listener.store_requests import StoreRequests

TURN_BUDGET: Final = 0.0002
"""Seconds of one turn of the loop that go to frames, in each direction."""
LAST_FRAMES: Final = 1000
"""Frames that are read after the death of a process; its socket holds fewer, but somebody else may hold its end."""


class StoreLink:
    """The link to one store process."""

    def __init__(
        self,
        end: socket.socket,
        requests: StoreRequests,
        take: Callable[[ValidatedFrame, bytes], None],
        violated: Callable[[], None],
    ) -> None:
        """Take over `end`, which `close` closes.

        `take` is called with each frame, validated and as it came; what it raises counts as a violation of the
        protocol. `violated` is called once, when `broken` says what the process did.
        """
        end.setblocking(False)
        make_room(end)
        refuse_descriptors(end)
        self.socket = end
        self.broken = ""
        self._requests = requests
        self._take = take
        self._violated = violated
        self._heads = Heads(FROM_STORE)
        self._news = anyio.Event()

    # Sending

    async def send(self, data: bytes) -> None:
        """Send a frame, waiting for room. Raises OSError if the process is gone."""
        while True:
            try:
                self.socket.send(data, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                await anyio.wait_writable(self.socket)
            else:
                return

    async def feed(self, ends: anyio.Event) -> None:
        """Send all requests, now and later, until `ends` is set and none is left. Raises OSError as `send`."""
        while True:
            turn_ends = time.perf_counter() + TURN_BUDGET
            while (data := self._requests.first()) is not None:
                if time.perf_counter() > turn_ends:
                    await anyio.lowlevel.checkpoint()
                    turn_ends = time.perf_counter() + TURN_BUDGET
                await self.send(data)
                self._requests.given()
            if ends.is_set():
                return
            await self._wait_for_news()

    async def wait_answered(self) -> None:
        """Send nothing more, and wait until the process has answered all that it was sent."""
        while self._requests.under_way:
            await self._wait_for_news()

    async def _wait_for_news(self) -> None:
        self._news = anyio.Event()
        await self._news.wait()

    def wake(self) -> None:
        """Something has changed that `feed` or `wait_answered` may wait for."""
        self._news.set()

    def end_sending(self) -> None:
        """The process is to read to the end and to exit. Raises OSError if it is gone."""
        self.socket.shutdown(socket.SHUT_WR)

    # Receiving

    async def read(self) -> None:
        """Take frames until the process is gone, or has broken the protocol."""
        try:
            while True:
                await anyio.wait_readable(self.socket)
                turn_ends = time.perf_counter() + TURN_BUDGET
                while time.perf_counter() < turn_ends:
                    if not self._take_one():
                        break
                await anyio.lowlevel.checkpoint()
                if self.broken:
                    return
        except (OSError, EOFError, anyio.ClosedResourceError):
            pass  # it is gone, which SIGCHLD tells

    def read_rest(self) -> None:
        """The process is dead: what it sent last is taken before its death is."""
        with contextlib.suppress(EOFError):
            for _ in range(LAST_FRAMES):
                if not self._take_one():
                    break

    def _take_one(self) -> bool:
        """Take one frame; False if there is none. Raises EOFError at the end."""
        if self.broken:
            return False
        data = receive(self.socket)
        if data is None:
            return False
        if not data and hung_up(self.socket):
            raise EOFError
        try:
            kind, raw, body = split_frame(data)
            if (head := self._heads.decode(kind, raw)) is not None:
                self._take(ValidatedFrame(kind, head, body), data)
        except Exception as error:
            self.broken = protocol_violations.reason("the store process", "lane", error)
            self._violated()
            return False
        return True

    def close(self) -> None:
        """The process is gone."""
        anyio.notify_closing(self.socket)
        self.socket.close()
