"""The application of the bench: the least that each case needs, and the same for every server.

It is copied as `loadtest_app.py` to where the servers are started, so it imports nothing of this project.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

HELLO = b"Hello, World!"
CHUNK = b"c" * 1024
CHUNKS = 10
LARGE = b"l" * 65536
VERSION = "old"
BLOCKED = 0.002
"""Seconds for which `worker` keeps its process, so that a further connection goes to another one."""


def head(size: int) -> Message:
    """The start of a response whose length is known."""
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"%d" % size)]
    return {"type": "http.response.start", "status": 200, "headers": headers}


async def plain(receive: Receive, send: Send) -> None:
    """13 bytes."""
    await send(head(len(HELLO)))
    await send({"type": "http.response.body", "body": HELLO})


async def echo(receive: Receive, send: Send) -> None:
    """The content of the request."""
    message = await receive()
    body = message.get("body", b"")
    while message.get("more_body", False):
        message = await receive()
        body += message.get("body", b"")
    await send(head(len(body)))
    await send({"type": "http.response.body", "body": body})


async def stream(receive: Receive, send: Send) -> None:
    """Ten chunks of 1 KiB, of no announced length."""
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for _ in range(CHUNKS - 1):
        await send({"type": "http.response.body", "body": CHUNK, "more_body": True})
    await send({"type": "http.response.body", "body": CHUNK, "more_body": False})


async def large(receive: Receive, send: Send) -> None:
    """64 KiB in one piece."""
    await send(head(len(LARGE)))
    await send({"type": "http.response.body", "body": LARGE})


async def upload(receive: Receive, send: Send) -> None:
    """Read everything, answer how much it was."""
    size = 0
    more = True
    while more:
        message = await receive()
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
    body = b"%d" % size
    await send(head(len(body)))
    await send({"type": "http.response.body", "body": body})


async def worker(receive: Receive, send: Send) -> None:
    """Who answers: the version of this code, and the process's id."""
    time.sleep(BLOCKED)  # noqa: ASYNC251 - this is what is wanted
    body = f"{VERSION} {os.getpid()}".encode()
    await send(head(len(body)))
    await send({"type": "http.response.body", "body": body})


async def websocket(receive: Receive, send: Send) -> None:
    """Send back what comes."""
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        data = message.get("bytes")
        if data is not None:
            await send({"type": "websocket.send", "bytes": data})
        else:
            await send({"type": "websocket.send", "text": message["text"]})


async def lifespan(receive: Receive, send: Send) -> None:
    """Nothing to start, nothing to stop."""
    while True:
        kind = (await receive())["type"]
        await send({"type": kind + ".complete"})
        if kind == "lifespan.shutdown":
            return


ROUTES = {"/": plain, "/echo": echo, "/stream": stream, "/large": large, "/upload": upload, "/worker": worker}


async def app(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
    """ASGI."""
    kind = scope["type"]
    if kind == "http":
        await ROUTES[scope["path"]](receive, send)
    elif kind == "websocket":
        await websocket(receive, send)
    else:
        await lifespan(receive, send)
