"""`python -m loadtest.bench_floor PORT CASE [APP [CERTIFICATE KEY]]`: the least that a server on this loop could cost.

A bare uvloop protocol counts bytes and writes a canned response: no parser, no scope, no task, no application. The
size of a request is learned from the first one of each connection, since a client of the bench repeats itself.

With APP (a module) each response has that module's application called before it, in a task, with `receive` and `send`
that do nothing: what an application costs where a server would call it, between the kernel's work for two requests.

With CERTIFICATE and KEY it speaks TLS, by OpenSSL on memory BIOs, with nothing around it. The cases over HTTP/2 have a
floor of their own (`loadtest.bench_floor_http2`).
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import importlib
import re
import ssl
import sys
from collections.abc import Sequence
from typing import Any, cast

import uvloop

from loadtest import bench_app, bench_direct
from loadtest.bench_cases import CASES, Case
from loadtest.bench_floor_http2 import Http2Floor

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


class TlsFloor(asyncio.Protocol):
    """TLS before a `Floor`, for which this is the transport too."""

    tcp: asyncio.Transport

    def __init__(self, floor: Floor | Http2Floor, context: ssl.SSLContext) -> None:
        self.floor = floor
        floor.transport = cast(asyncio.Transport, self)
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_side=True)
        self.open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio."""
        self.tcp = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Shake hands, then decrypt."""
        self.incoming.write(data)
        try:
            if not self.open:
                self.tls.do_handshake()
                self.open = True
                self.flush()
                if not self.incoming.pending:
                    return
            while data := self.tls.read(65536):  # a record
                self.floor.data_received(data)
        except ssl.SSLWantReadError:
            self.flush()
        except ssl.SSLError:
            self.tcp.close()

    def write(self, data: bytes) -> None:
        """Encrypt."""
        self.tls.write(data)
        self.flush()

    def close(self) -> None:
        """Send close_notify and close."""
        with contextlib.suppress(ssl.SSLError):
            self.tls.unwrap()
        self.flush()
        self.tcp.close()

    def flush(self) -> None:
        """Send what OpenSSL has to send."""
        if self.outgoing.pending:
            self.tcp.write(self.outgoing.read())


async def main(port: int, case: Case, app: Any, pair: Sequence[str]) -> None:
    """Serve until TERM."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if pair:
        context.load_cert_chain(*pair)
        context.set_alpn_protocols(["h2" if case.http2 else "http/1.1"])

    def made() -> asyncio.Protocol:
        if case.http2:
            floor: Floor | Http2Floor = Http2Floor(case)
        else:
            floor = Floor(case) if app is None else CallingFloor(case, app)
        return TlsFloor(floor, context) if pair else floor

    server = await asyncio.get_running_loop().create_server(made, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    _, port, name, *rest = sys.argv
    application = importlib.import_module(rest[0]).app if rest and rest[0] else None
    uvloop.run(main(int(port), CASES[name], application, rest[1:]))
