"""What a test adds to the load test's application: each connection is handed over to itself again and again.

It stands in for a server that does so, and does it right or with one fault: TEST_FAULT in the environment is a
statement about the `state` that the third life gets.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from typing import Any

import serve_asgi
from loadtest.app import HandedOver
from loadtest.app import app as application

LIFE = 0.4
"""Seconds of each life."""
FAULT = os.environ.get("TEST_FAULT", "")


class Kept:
    """What `serve_asgi.survive` gives."""

    def __init__(self, state: dict[str, Any]) -> None:
        self.state = state


def survive(scope: Any, version: int) -> Kept:
    """The state of `scope`."""
    return Kept(scope["test.state"])


serve_asgi.survive = survive  # type: ignore[assignment, misc, unused-ignore]


class Lives:
    """Of one connection."""

    def __init__(self, scope: Any, receive: Any, send: Any) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._is_websocket = scope["type"] == "websocket"
        self._coming: asyncio.Future[Any] | None = None  # what the client sends next
        self._state: dict[str, Any] = {}
        self._ends = 0.0
        self._resumed = False
        self._begins = False  # a next life has not received anything yet
        self._parting = False
        self._over = False

    async def run(self) -> None:
        """All of them."""
        while not self._over:
            self._ends, self._parting, self._begins = time.monotonic() + LIFE, False, self._resumed
            told = {"resumed": True, "state": self._state} if self._resumed else {}
            scope = {**self._scope, "extensions": {"serve.survive": told}, "test.state": self._state}
            with contextlib.suppress(HandedOver):
                await application(scope, self.receive, self.send)
            if not self._parting:
                break
            self._resumed, state = True, self._state
            if state["life"] == 2:
                exec(FAULT, {"state": state})
        if self._coming is not None:
            self._coming.cancel()

    async def receive(self) -> Any:
        """What the client sends, or the end of this life."""
        if self._begins:
            self._begins = False
            return {"type": "websocket.connect" if self._is_websocket else "http.request"}
        if self._coming is None:
            self._coming = asyncio.ensure_future(self._receive())
        if not self._parting:
            await asyncio.wait([self._coming], timeout=max(0.0, self._ends - time.monotonic()))
        if not self._parting and self._coming.done():
            message, self._coming = self._coming.result(), None
            self._over = self._over or message["type"].endswith(".disconnect")
            return message
        self._parting = True
        if self._is_websocket:
            return {"type": "websocket.disconnect", "code": 1012, "reason": "handed over"}
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        """What the application sends, but for what a next life begins with and what a handler does to clean up."""
        kind = message["type"]
        if kind == "serve.survive":
            self._state = dict(message["state"])
            return
        if kind in ("websocket.accept", "http.response.start") and self._resumed:
            return
        if kind == "websocket.close":
            if self._parting:
                return
            self._over = True
        if message.get("more_body") is False:
            self._over = True
        await self._send(message)


async def app(scope: Any, receive: Any, send: Any) -> None:
    """The ASGI entry point."""
    if scope["type"] != "lifespan" and scope["path"] == "/surviving":
        await Lives(scope, receive, send).run()
    else:
        await application(scope, receive, send)
