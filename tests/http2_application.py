"""What real clients ask over HTTP/2: who serves them, as JSON; a page that asks it; and a small gRPC service.

Each call of the service is written down in the file that CALLS names, so that a test sees what was executed twice.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

CALLS = "CALLS"
"""The environment variable that names the file."""
PAGE = b"""<!doctype html><title>HTTP/2</title><p id=answers>0<p id=generation>0<script>
const told = {answers: 0, failures: [], generation: 0, connections: []};
async function ask() {
  for (;;) {
    try {
      const response = await fetch("/who", {cache: "no-store"}), who = await response.json();
      told.answers++;
      told.generation = who.generation;
      for (const name of ["answers", "generation"]) document.getElementById(name).textContent = told[name];
      told.version = who.version;
      if (!told.connections.includes(who.connection)) told.connections.push(who.connection);
    } catch (error) {
      told.failures.push(String(error));
    }
    await new Promise(next => setTimeout(next, 20));
  }
}
for (let at_once = 0; at_once < 4; at_once++) ask();
</script>"""
PREFIX = 5
"""Bytes before each message of gRPC: whether it is compressed, and its length."""


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """The ASGI entry point."""
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    elif scope["path"] == "/who":
        await answer(send, b"application/json", json.dumps(who(scope)).encode())
    elif scope["path"] == "/page":
        await answer(send, b"text/html", PAGE)
    elif scope["path"] == "/test.Test/Say":
        await grpc(send, say(scope, await message_of(receive)))
    elif scope["path"] == "/test.Test/Count":
        await grpc(send, count(scope, await message_of(receive)))
    else:
        await grpc(send, None)


def who(scope: Scope) -> dict[str, Any]:
    """The generation that answers, and on which connection: the client's port tells them apart."""
    generation = scope["extensions"]["serve"]["generation"]
    return {"generation": generation, "connection": scope["client"][1], "version": scope["http_version"]}


async def answer(send: Send, kind: bytes, body: bytes) -> None:
    """A whole response."""
    fields = [(b"content-type", kind), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": fields})
    await send({"type": "http.response.body", "body": body})


async def message_of(receive: Receive) -> bytes:
    """The one message of a request."""
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            return bytes(body[PREFIX:])


async def say(scope: Scope, message: bytes) -> AsyncIterator[bytes]:
    """A unary call: the message again, and who answers."""
    descriptor = os.open(os.environ[CALLS], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, message + b"\n")
    os.close(descriptor)
    yield json.dumps({"message": message.decode(), **who(scope)}).encode()


async def count(scope: Scope, message: bytes) -> AsyncIterator[bytes]:
    """A call whose answer is a stream of so many numbers, one each 20 ms."""
    for number in range(int(message)):
        await asyncio.sleep(0.02)
        yield b"%d" % number


async def grpc(send: Send, messages: AsyncIterator[bytes] | None) -> None:
    """A response of gRPC (https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md); None: no such method."""
    fields = [(b"content-type", b"application/grpc+proto")]
    await send({"type": "http.response.start", "status": 200, "headers": fields, "trailers": True})
    if messages is not None:
        async for message in messages:
            framed = b"\0" + len(message).to_bytes(PREFIX - 1) + message
            await send({"type": "http.response.body", "body": framed, "more_body": True})
    await send({"type": "http.response.body"})
    status = b"0" if messages is not None else b"12"
    await send({"type": "http.response.trailers", "headers": [(b"grpc-status", status)]})
