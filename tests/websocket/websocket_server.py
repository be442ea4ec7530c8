"""A server with nothing but WebSockets: the real connection object on a real socket, in a thread with its own loop."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import math
import os
import socket
import struct
import zlib
from collections.abc import Iterator
from typing import Any

from serve_asgi.http.connection import Http1Connection
from serve_asgi.http.worker_context import ASGIApplication
from serve_asgi.http2.connection import Http2Connection
from serve_asgi.ipc.scoreboard import Cell
from serve_asgi.websocket.connection import WebSocketConnection
from tests.connection_server import ConnectionServer, Log
from tests.http2.websocket_bridge import WebSocketBridge


class WebSocketServer(ConnectionServer):
    """Runs the application until `stop()`; `run` brings a function or coroutine into the server's thread."""

    def __init__(self, app: ASGIApplication, loop_name: str, **config: Any) -> None:
        """`loop_name` ending with " over HTTP/2": clients are bridged to it (`tests.http2.websocket_bridge`)."""
        loop_name, _, version = loop_name.partition(" over ")
        super().__init__(app, loop_name, b"server: test\r\n", **config)
        self.log = Log()
        self.worker.access_log = self.log  # type: ignore[assignment]  # the same method, no file behind it
        self.port = 0
        self._server: asyncio.Server
        self.start()
        self.own_port = self.port
        self.over_http2 = bool(version)
        self._bridge: WebSocketBridge | None = None
        if self.over_http2:
            self._bridge = WebSocketBridge(self.own_port)
            self.port = self._bridge.port

    def main(self) -> None:
        """Serve until the loop is stopped."""
        asyncio.set_event_loop(self.loop)
        serving = self.loop.create_task(self._serve())
        self.loop.run_forever()
        assert serving.done()
        self.loop.close()

    async def _serve(self) -> None:
        self._server = await self.loop.create_server(lambda: Http1Connection(self.worker), "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        self.tick()
        self.has_started()

    def gone(self) -> bool:
        """Whether every connection has ended and the gauges are back at zero."""
        cells = self.worker.cells
        return self.settled(
            lambda: not self.worker.connections and cells[Cell.CONNECTIONS] == 0 and cells[Cell.WEBSOCKETS] == 0
        )

    def websockets(self) -> list[WebSocketConnection]:
        """All of them."""
        found: list[Any] = []
        for connection in list(self.worker.connections):
            if isinstance(connection, Http2Connection):
                found += list(connection.streams._handlers.values())
            else:
                found.append(connection)
        return [each for each in found if isinstance(each, WebSocketConnection)]

    def url(self, path: str = "/") -> str:
        return f"ws://127.0.0.1:{self.port}{path}"

    def stop(self) -> None:
        async def stop() -> None:
            self._server.close()
            for connection in list(self.worker.connections):
                connection.cut()
            for task in list(self.worker.tasks):
                task.cancel()
            await asyncio.sleep(0.02)
            self.loop.stop()

        asyncio.run_coroutine_threadsafe(stop(), self.loop)
        self.join()
        if self._bridge is not None:
            self._bridge.stop()

    def retire(self, reason: str, deadline: float = math.inf) -> None:
        """What the worker does to its connections when it begins to retire."""

        def retire() -> None:
            self.retiring.begin(reason)
            self.worker.retire_deadline = self.loop.time() + deadline
            for connection in list(self.worker.connections):
                connection.retire()

        self.run(retire)


class RawClient:
    """A client that can also be wrong: a socket, and frames by hand (RFC 6455 5.2)."""

    def __init__(self, port: int, *, receive_buffer: int | None = None) -> None:
        self.socket = socket.socket()
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(10)
        self.socket.connect(("127.0.0.1", port))
        self.buffer = bytearray()

    def request(self, path: str = "/", *extra: str, key: str | None = None, version: str = "13") -> None:
        key = base64.b64encode(os.urandom(16)).decode() if key is None else key
        lines = [f"GET {path} HTTP/1.1", "Host: test", "Connection: keep-alive, Upgrade", "Upgrade: websocket"]
        lines += [f"Sec-WebSocket-Key: {key}"] if key else []
        lines += [f"Sec-WebSocket-Version: {version}"] if version else []
        self.socket.sendall("\r\n".join([*lines, *extra, "", ""]).encode())

    def head(self) -> str:
        """The response head."""
        while b"\r\n\r\n" not in self.buffer:
            self._read()
        head = self.exactly(self.buffer.index(b"\r\n\r\n") + 4)
        return head[:-4].decode()

    def open(self, path: str = "/", *extra: str) -> str:
        """A whole handshake; returns the 101's head."""
        self.request(path, *extra)
        head = self.head()
        assert head.startswith("HTTP/1.1 101 "), head
        return head

    def _read(self) -> None:
        data = self.socket.recv(65536)
        if not data:
            raise EOFError("the server has closed")
        self.buffer += data

    def exactly(self, size: int) -> bytes:
        while len(self.buffer) < size:
            self._read()
        data = bytes(self.buffer[:size])
        del self.buffer[:size]
        return data

    def to_the_end(self) -> bytes:
        """All bytes until the server's end of stream (a reset raises)."""
        with contextlib.suppress(EOFError):
            while True:
                self._read()
        return self.exactly(len(self.buffer))

    def send(self, opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0, mask: bool = True) -> None:
        self.socket.sendall(frame(opcode, payload, fin=fin, rsv=rsv, mask=mask))

    def receive(self) -> tuple[int, bytes]:
        """One frame: opcode (with FIN and RSV bits taken off) and payload."""
        first, length = self.exactly(2)
        if length == 126:
            (length,) = struct.unpack("!H", self.exactly(2))
        elif length == 127:
            (length,) = struct.unpack("!Q", self.exactly(8))
        return first & 0x0F, self.exactly(length)

    def close_code(self) -> int:
        """Read frames up to the close frame; its code, and check that the stream ends after it."""
        while True:
            opcode, payload = self.receive()
            if opcode == 8:
                code = struct.unpack("!H", payload[:2])[0] if payload else 1005
                assert self.to_the_end() == b""
                return int(code)

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0, mask: bool = True) -> bytes:
    """A frame as a client sends it."""
    head = bytes([(0x80 if fin else 0) | rsv << 4 | opcode])
    bit = 0x80 if mask else 0
    size = len(payload)
    if size < 126:
        head += bytes([bit | size])
    elif size < 65536:
        head += bytes([bit | 126]) + struct.pack("!H", size)
    else:
        head += bytes([bit | 127]) + struct.pack("!Q", size)
    if not mask:
        return head + payload
    key = zlib.crc32(head + payload).to_bytes(4)  # the same in each run: examples of hypothesis may be made of it
    return head + key + bytes(byte ^ key[i % 4] for i, byte in enumerate(payload))


@contextlib.contextmanager
def serving(app: ASGIApplication, loop_name: str, **config: Any) -> Iterator[WebSocketServer]:
    """A running server that is stopped at the end, with no error left behind in its loop."""
    server = WebSocketServer(app, loop_name, **config)
    try:
        yield server
    finally:
        server.stop()
