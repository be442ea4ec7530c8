"""The application under load: plain ASGI, runs on every server, and writes down each id that it executes.

It is copied alone into a directory of the run, so it imports nothing but the standard library. Each executed id is one
`os.write` to a file opened with O_APPEND, so that lines of several processes do not mix: `S <id> <pid> <ns>` when the
execution starts, `E <id> <pid> <ns>` when the whole response has been handed to the server (CLOCK_MONOTONIC).
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
import zlib
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qs

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

EXECUTIONS = "LOADTEST_EXECUTIONS"
"""The environment variable that names the file."""

LARGE = b"l" * (1 << 20)
PID = os.getpid()
_file = -1


def echo_answer(number: int, body: bytes | bytearray) -> bytes:
    """What POST /echo answers: proof that the whole body arrived."""
    return b"%d %d %08x\n" % (number, len(body), zlib.crc32(body))


def stream_chunk(number: int, index: int) -> bytes:
    """Chunk `index` of the stream `number`."""
    return b"%d.%d;" % (number, index) * (1 + (number * 7 + index * 13) % 60)


def note(phase: bytes, number: int) -> None:
    """Write down that the execution of `number` has started (`S`) or ended (`E`)."""
    global _file
    if _file < 0:
        _file = os.open(os.environ[EXECUTIONS], os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    os.write(_file, b"%s %d %d %d\n" % (phase, number, PID, time.monotonic_ns()))


def generation(scope: Scope) -> int:
    """The generation that answers: the server's word where it has one, else the pid stands for it."""
    told = (scope.get("extensions") or {}).get("serve") or {}
    return int(told.get("generation") or PID)


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """The ASGI entry point."""
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
    elif scope["type"] == "websocket":
        await websocket(scope, receive, send)
    elif scope["path"] == "/echo":
        await echo(scope, receive, send)
    elif scope["path"] == "/stream":
        await stream(scope, send)
    elif scope["path"] == "/large":
        await answer(scope, send, 0, LARGE)
    elif scope["path"] == "/modules":
        await answer(scope, send, 0, json.dumps(list(sys.modules)).encode())
    elif scope["path"] == "/":
        await answer(scope, send, 0, b"%d\n" % PID)
    else:
        await answer(scope, send, 0, b"not found\n", status=404)


async def lifespan(receive: Receive, send: Send) -> None:
    """Start-up and shutdown, both at once."""
    while True:
        message = await receive()
        await send({"type": message["type"] + ".complete"})
        if message["type"] == "lifespan.shutdown":
            return


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Read the body, wait as long as asked, answer its length and checksum."""
    number, query = question(scope)
    note(b"S", number)
    body = bytearray()
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body += message.get("body", b"")
        more = message.get("more_body", False)
    wait = float(query.get("wait", "0"))
    if wait:
        await asyncio.sleep(wait)
    await answer(scope, send, number, echo_answer(number, body))
    note(b"E", number)


async def stream(scope: Scope, send: Send) -> None:
    """Answer `chunks` chunks over `over` seconds."""
    number, query = question(scope)
    note(b"S", number)
    chunks, pause = int(query["chunks"]), float(query["over"]) / int(query["chunks"])
    await send({"type": "http.response.start", "status": 200, "headers": headers(scope, number)})
    for index in range(chunks):
        await asyncio.sleep(pause)
        await send({"type": "http.response.body", "body": stream_chunk(number, index), "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})
    note(b"E", number)


async def websocket(scope: Scope, receive: Receive, send: Send) -> None:
    """Echo text messages; each begins with its id, and the response is `id pid generation rest`.

    The handshake has an id as well; it is answered by a first message of the same form.
    """
    opened, _ = question(scope)
    await receive()
    note(b"S", opened)
    await send({"type": "websocket.accept"})
    await send({"type": "websocket.send", "text": f"{opened} {PID} {generation(scope)} hello"})
    note(b"E", opened)
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            return
        number, _, rest = message["text"].partition(" ")
        note(b"S", int(number))
        await send({"type": "websocket.send", "text": f"{number} {PID} {generation(scope)} {rest}"})
        note(b"E", int(number))


async def answer(scope: Scope, send: Send, number: int, body: bytes, status: int = 200) -> None:
    """One answer with a content-length."""
    head = [*headers(scope, number), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})


def headers(scope: Scope, number: int) -> list[tuple[bytes, bytes]]:
    """Who answers what."""
    return [
        (b"content-type", b"text/plain"),
        (b"x-id", b"%d" % number),
        (b"x-pid", b"%d" % PID),
        (b"x-generation", b"%d" % generation(scope)),
    ]


def question(scope: Scope) -> tuple[int, dict[str, str]]:
    """The id and the other parameters of the query string."""
    query = {name: values[0] for name, values in parse_qs(scope["query_string"].decode()).items()}
    return int(query["id"]), query
