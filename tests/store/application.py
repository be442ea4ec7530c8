"""What real servers run in these tests: the shared state and a broadcast by HTTP."""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable
from typing import Any

from serve_asgi import messenger, shared

heard: list[Any] = []
TIMEOUT = 20.0
"""Seconds: another store process that takes over needs longer than usual to start on a busy machine."""

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


@messenger.on("news")
async def news(message: Any) -> None:
    heard.append(message.payload)


async def _answer(path: list[str]) -> Any:
    match path:
        case ["get", key]:
            return shared.get(key)
        case ["fresh", key]:
            return await shared.get_authoritative(key, timeout=TIMEOUT)
        case ["set", key, value]:
            await shared.set(key, value, timeout=TIMEOUT)
            return value
        case ["incr", key]:
            return await shared.incr(key, timeout=TIMEOUT)
        case ["broadcast", text]:
            return await messenger.broadcast("news", text)
        case ["heard"]:
            return {"pid": os.getpid(), "heard": heard}
    return None


async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return
    try:
        status, found = 200, await _answer(scope["path"].strip("/").split("/"))
    except Exception as error:
        status, found = 503, f"{type(error).__name__}: {error}"
    body = json.dumps(found).encode()
    head = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})
