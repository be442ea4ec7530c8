"""The application of `loadtest.bounds`: it reads nothing for a minute, or writes much to whoever does not read."""

from __future__ import annotations

import asyncio
from typing import Any

LARGE = b"z" * (1 << 20)


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """`/unread` takes nothing, `/large` sends 100 MiB, anything else takes all and answers with a byte."""
    if scope["type"] == "websocket":
        await receive()
        if scope["path"] == "/late":
            await asyncio.sleep(60)
        await send({"type": "websocket.accept"})
        while scope["path"] == "/large":
            await send({"type": "websocket.send", "bytes": LARGE})
        if scope["path"] == "/unread":
            await asyncio.sleep(60)
        while (await receive())["type"] == "websocket.receive":
            pass
        return
    if scope["path"] == "/unread":
        await asyncio.sleep(60)
    while scope["path"] == "/" and (await receive()).get("more_body"):
        pass
    size = 100 if scope["path"] == "/large" else 1
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for left in range(size)[::-1]:
        await send({"type": "http.response.body", "body": LARGE if size > 1 else b".", "more_body": left > 0})
