"""What the servers of a fleet run in these tests: it sends by HTTP, and notes what it handles in a file."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from serve_asgi import messenger

NOTES = Path("handled")
GO = Path("go")

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


def note(message: Any) -> None:
    with NOTES.open("a") as notes:
        notes.write(f"{os.getpid()} {message.payload} {message.attempt}\n")


def waits(message: Any) -> bool:
    return str(message.payload).startswith("wait") and message.attempt == 1 and not GO.exists()


async def job(message: Any) -> None:
    note(message)
    while waits(message):
        await asyncio.sleep(0.02)
    if message.payload.startswith("raise"):
        raise RuntimeError("it always does")


if os.environ.get("HANDLES", "yes") == "yes":
    messenger.on("job", concurrency=2)(job)


async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return
    _, payload, ack = scope["path"].strip("/").split("/")
    try:
        wanted: Any = {"none": False, "ack": True}.get(ack, ack)
        receipt = await messenger.send_to_any("job", payload, ack=wanted, timeout=30, scope="cluster")
        found = None if receipt is None else [receipt.attempts, receipt.handler.role, receipt.handler.slot]
        status, text = 200, json.dumps(found)
    except Exception as error:
        status, text = 503, json.dumps(f"{type(error).__name__}: {error}")
    body = text.encode()
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})
