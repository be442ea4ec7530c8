"""`python -m loadtest.bench_floor PORT CASE [APP]`: the least that a server on this loop could cost.

A bare uvloop protocol counts bytes and writes a canned response: no parser, no scope, no task, no application. The
size of a request is learned from the first one of each connection, since a client of the bench repeats itself.

With APP (a module) each response has that module's application called before it, in a task, with `receive` and `send`
that do nothing: what an application costs where a server would call it, between the kernel's work for two requests.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import importlib
import re
import sys
from typing import Any, cast

import uvloop

from loadtest import bench_app, bench_direct
from loadtest.bench_cases import CASES, Case

_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *([0-9]+)")
_KEY = re.compile(rb"(?i)\r\nsec-websocket-key: *([^\r]+)")
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 1.3
MASKED_HEAD, HEAD = 6, 2  # of a frame with up to 125 bytes, from the client and from the server


def canned(case: Case) -> bytes:
    """The whole response."""
    lines = [b"HTTP/1.1 200 OK", b"date: Sun, 06 Nov 1994 08:49:37 GMT", b"server: floor", b"content-type: text/plain"]
    lines.append(b"connection: close" if case.close else b"connection: keep-alive")
    if case.name == "stream":
        lines.append(b"transfer-encoding: chunked")
        content = b"%x\r\n%b\r\n" % (len(bench_app.CHUNK), bench_app.CHUNK) * bench_app.CHUNKS + b"0\r\n\r\n"
    else:
        lines.append(b"content-length: %d" % len(case.answer))
        content = case.answer
    return b"\r\n".join(lines) + b"\r\n\r\n" + content


class Floor(asyncio.Protocol):
    """One connection."""

    transport: asyncio.Transport

    def __init__(self, case: Case) -> None:
        self.case = case
        self.answer = canned(case)
        self.got = 0
        self.size = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio."""
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Count, and answer what is whole."""
        if not self.size:
            if self.case.websocket:
                self.upgrade(data)
                return
            length = _LENGTH.search(data)
            self.size = data.index(b"\r\n\r\n") + 4 + (int(length[1]) if length else 0)
        self.got += len(data)
        if self.got >= self.size:
            count, self.got = divmod(self.got, self.size)
            self.respond(count)

    def respond(self, count: int) -> None:
        """Answer so many requests."""
        self.transport.write(self.answer if count == 1 else self.answer * count)
        if self.case.close:
            self.transport.close()

    def upgrade(self, data: bytes) -> None:
        """Answer the handshake; from now on the response is a frame."""
        key = _KEY.search(data)
        assert key is not None
        accept = base64.b64encode(hashlib.sha1(key[1] + _GUID).digest())
        self.transport.write(
            b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\n"
            b"sec-websocket-accept: %b\r\n\r\n" % accept
        )
        self.size = MASKED_HEAD + 64
        self.answer = bytes((0x82, 64)) + b"x" * 64


class CallingFloor(Floor):
    """The same with an application."""

    def __init__(self, case: Case, app: Any) -> None:
        super().__init__(case)
        self.app = app
        self.scope = bench_direct.scope(case)
        self.task: asyncio.Task[None]

    def respond(self, count: int) -> None:
        """Call the application as often, then answer."""
        loop = asyncio.get_running_loop()
        if sys.version_info >= (3, 12):
            self.task = asyncio.Task(self.call(count), loop=loop, eager_start=True)
        else:
            self.task = loop.create_task(self.call(count))

    async def call(self, count: int) -> None:
        """In the task."""
        for _ in range(count):
            await self.app(self.scope.copy(), self.receive, self.send)
        super().respond(count)

    async def receive(self) -> Any:
        """Nothing comes."""
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(self, message: Any) -> None:
        """Nothing goes."""


async def main(port: int, case: Case, app: Any) -> None:
    """Serve until TERM."""

    def made() -> Floor:
        return Floor(case) if app is None else CallingFloor(case, app)

    server = await asyncio.get_running_loop().create_server(made, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    application = importlib.import_module(sys.argv[3]).app if len(sys.argv) > 3 else None
    uvloop.run(main(int(sys.argv[1]), CASES[sys.argv[2]], application))
