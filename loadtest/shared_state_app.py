"""What `loadtest.shared_state` serves: `/run?case=…&seconds=…` writes for a while and answers with what it took."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from typing import Any, Final
from urllib.parse import parse_qsl

from serve_asgi import shared
from serve_asgi.http.worker_context import Receive, Scope, Send

AT_ONCE: Final = 64
"""Writes under way in the cases that want many."""


async def run(case: str, seconds: float) -> dict[str, Any]:
    """Write for so long; the times that the writes took, in seconds."""
    times: list[float] = []
    begun = time.monotonic()

    async def write(task: int) -> None:
        number = 0
        while (before := time.monotonic()) < begun + seconds:
            number += 1
            match case:
                case "incr":
                    await shared.incr("counter")
                case "update":
                    await shared.update("sum", lambda value: value + 1, 0, timeout=60)
                case "large":
                    await shared.set("large", bytes(60_000))
                case _:
                    await shared.set(f"key{task}", number)
            times.append(time.monotonic() - before)

    await asyncio.gather(*(write(task) for task in range(1 if case in ("one", "large") else AT_ONCE)))
    return {"times": times, "seconds": time.monotonic() - begun}


async def follow(seconds: float) -> dict[str, Any]:
    """How long after the writing of another server's `stamp` (CLOCK_MONOTONIC) it arrives here."""
    times: list[float] = []
    changes = shared.watch("stamp")
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while change := await anext(changes):
                times.append(time.monotonic() - change.value)
    return {"times": times, "seconds": seconds}


async def stamp(seconds: float) -> dict[str, Any]:
    """Write the time, one write after another."""
    times: list[float] = []
    begun = time.monotonic()
    while (now := time.monotonic()) < begun + seconds:
        await shared.set("stamp", now)
        times.append(time.monotonic() - now)
    return {"times": times, "seconds": seconds}


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """The application."""
    if scope["type"] == "lifespan":
        while (event := await receive())["type"] != "lifespan.shutdown":
            await send({"type": event["type"] + ".complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    asked = dict(parse_qsl(scope["query_string"].decode()))
    case, seconds = asked["case"], float(asked["seconds"])
    if case == "follow":
        found = await follow(seconds)
    elif case == "stamp":
        found = await stamp(seconds)
    else:
        found = await run(case, seconds)
    body = json.dumps({**found, "slot": scope["extensions"]["serve"]["slot"]}).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})
