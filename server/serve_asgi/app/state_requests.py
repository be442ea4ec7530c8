"""Requests of this process to the hub about the shared state: writes and authoritative reads that have no reply yet.

It owns the window (at most `WINDOW` requests are pending; further ones wait within their own timeouts) and the
deadline of every request. What a write does is decided elsewhere (`serve_asgi.hub.state.write_evaluation`).
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from serve_asgi.app import shared_errors as errors
from serve_asgi.app.hub_link import Link, LinkClosed, current, run_on_link_loop
from serve_asgi.ipc.frames import Frame

MAX_TIMEOUT: Final = 86_400.0
"""Seconds; a longer timeout is cut to this."""
GRACE: Final = 2.0
"""Seconds beyond the timeout that the hub has to reply, which it does at the timeout itself."""
WINDOW: Final = 256
"""Requests of one process that may be pending at once."""


class StateRequests:
    """The pending requests of this process."""

    def __init__(self) -> None:
        self._window = asyncio.Semaphore(WINDOW)
        self._number = 0
        self._replies: dict[int, asyncio.Future[Frame]] = {}

    def bind(self, link: Link) -> None:
        """Use this link from now on."""
        self._window = asyncio.Semaphore(WINDOW)
        link.on_frame("state.done", self._take_reply)
        link.on_frame("state.failed", self._take_reply)

    def fail_all(self) -> None:
        """No reply will come any more."""
        for reply in self._replies.values():
            if not reply.done() and not reply.get_loop().is_closed():
                reply.set_exception(LinkClosed("the listener of this server is gone: it is not known what was written"))

    def _take_reply(self, frame: Frame) -> None:
        reply = self._replies.get(frame.head["id"])
        if reply is not None and not reply.done():
            reply.set_result(frame)

    async def request(self, kind: str, head: dict[str, Any], body: bytes, timeout: float) -> Frame:
        """Send a request and return its reply. Raises LinkClosed, and a SharedError if it is refused."""
        link = current()
        running = asyncio.get_running_loop()
        timeout = min(max(0.0, timeout), MAX_TIMEOUT)
        if link.loop is not running:
            return await run_on_link_loop(link, self.request(kind, head, body, timeout))
        end = running.time() + timeout
        sent = False
        try:
            async with asyncio.timeout_at(end + GRACE), self._window:
                self._number += 1
                number, reply = self._number, running.create_future()
                self._replies[number] = reply
                try:
                    left = max(0.0, end - running.time())
                    link.send(kind, {**head, "id": number, "timeout": left}, body)
                    sent = True
                    found: Frame = await reply
                finally:
                    del self._replies[number]
        except TimeoutError:
            if not sent:
                raise errors.NotWritten(f"nothing is written: {WINDOW} writes of this process are under way") from None
            raise errors.Unknown("it is not known whether this is written: the listener has not replied") from None
        if found.kind == "state.failed":
            raise errors.error_of(found.head, found.body)
        return found
