"""A server with nothing but HTTP/1.1: the real connection object on a real socket, in a thread with its own loop.

Every change of a connection's or a response's state is checked against the tables of transitions.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import select
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

from serve_asgi.http import connection_states as lifecycle
from serve_asgi.http import request_pipeline, response_states
from serve_asgi.http.connection import Http1Connection
from serve_asgi.http.hand_over_record import HandOverRecord
from serve_asgi.http.http1_response import Http1Response
from serve_asgi.http.survival_record import SurvivalRecord
from serve_asgi.http.worker_context import ASGIApplication, Message, Receive, Scope, Send
from tests.connection_server import TIMEOUT, ConnectionServer

DEFAULT_HEADERS = b"date: Sun, 22 Nov 2026 04:29:00 GMT\r\nserver: serve\r\n"
KEPT = b"connection: keep-alive\r\nkeep-alive: timeout=75\r\n"
CLOSED = b"connection: close\r\n"
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


class CheckedResponse(Http1Response):
    """Refuses transitions that are not in the table."""

    __slots__ = ()

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "state" and hasattr(self, "state"):
            assert value in response_states.TRANSITIONS[self.state], f"{self.state} -> {value}"
        super().__setattr__(name, value)


class CheckedConnection(Http1Connection):
    """The same for connections."""

    __slots__ = ()

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "state" and hasattr(self, "state") and value is not self.state:
            assert value in lifecycle.TRANSITIONS[self.state], f"{self.state} -> {value}"
        super().__setattr__(name, value)


setattr(request_pipeline, "Http1Response", CheckedResponse)  # noqa: B010


class HttpServer(ConnectionServer):
    """Runs an application until `stop()`; `run` brings a function or coroutine into the server's thread."""

    def __init__(self, app: ASGIApplication, loop_name: str, unix: Path | None = None, **config: Any) -> None:
        super().__init__(app, loop_name, DEFAULT_HEADERS, **config)
        self.attached: list[Http1Connection] = []
        self.new_connection = threading.Event()
        self._clients: list[socket.socket] = []
        if unix is None:
            bound = socket.create_server(("127.0.0.1", 0))
            self.listener = socket.socket(fileno=bound.detach())  # knows its protocol: asyncio sets TCP_NODELAY
        else:
            self.listener = socket.socket(socket.AF_UNIX)
            self.listener.bind(str(unix))
            self.listener.listen()
        self.listener.setblocking(False)
        self.address = self.listener.getsockname()
        self.start()

    def main(self) -> None:
        """Serve until the loop is stopped."""
        asyncio.set_event_loop(self.loop)
        self.loop.call_soon(self.has_started)
        accepting = self.loop.create_task(self._accept())
        self.tick()
        self.loop.run_forever()
        accepting.cancel()
        for task in list(self.worker.tasks):
            task.cancel()
        for connection in list(self.worker.connections):
            connection.cut()
        self.loop.run_until_complete(asyncio.gather(accepting, *self.worker.tasks, return_exceptions=True))
        self.loop.run_until_complete(asyncio.sleep(0.01))
        self.loop.close()

    async def _accept(self) -> None:
        while True:
            client, _ = await self.loop.sock_accept(self.listener)
            await self.attach(client)

    async def attach(self, client: socket.socket, record: HandOverRecord | None = None) -> Http1Connection:
        """Serve the accepted socket."""
        survives = record is not None and record.survives
        survival = SurvivalRecord.from_bytes(record.leftover) if record is not None and survives else None
        connection = CheckedConnection(self.worker, record, survival)
        await self.loop.connect_accepted_socket(lambda: connection, client)
        self.attached.append(connection)
        self.new_connection.set()
        return connection

    def take(self, descriptor: int, record: HandOverRecord) -> Http1Connection:
        """Go on with a connection that another worker left."""
        return self.wait_for(self.attach(socket.socket(fileno=descriptor), record))

    def stop(self) -> None:
        for client in self._clients:
            client.close()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.join()
        self.listener.close()

    # ---- the client's side

    def connect(self, **options: int) -> Client:
        """A raw client, closed with the server."""
        sock = socket.socket(self.listener.family)
        for name, value in options.items():
            sock.setsockopt(socket.SOL_SOCKET, getattr(socket, name), value)
        sock.settimeout(TIMEOUT)
        sock.connect(self.address)
        if self.listener.family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._clients.append(sock)
        return Client(sock)

    def connection(self) -> Http1Connection:
        """The server's side of the newest connection."""
        assert self.new_connection.wait(TIMEOUT)
        return self.attached[-1]

    def ask(self, *pieces: bytes) -> bytes:
        """All that the server answers on one connection to the pieces, sent one after another, up to its end."""
        client = self.connect()
        for piece in pieces:
            client.send(piece)
        return client.read_to_end()


class Client:
    """A raw client that reads exactly what it is told to."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.pending = bytearray()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def fill(self, data: bytes, full: Callable[[], bool]) -> int:
        """Send until the kernel takes no more and `full()`, and return how much that was."""
        sent = 0
        limit = time.monotonic() + TIMEOUT
        self.sock.setblocking(False)
        while sent < len(data):
            try:
                sent += self.sock.send(data[sent : sent + 65536])
            except BlockingIOError:
                if full():
                    break
                assert time.monotonic() < limit
                select.select([], [self.sock], [], 0.01)
        self.sock.settimeout(TIMEOUT)
        return sent

    def end(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.sock.close()

    def read_until(self, mark: bytes) -> bytes:
        """Up to and including the mark."""
        while mark not in self.pending:
            data = self.sock.recv(65536)
            assert data, f"ended after {bytes(self.pending)!r}"
            self.pending += data
        return self._take(self.pending.index(mark) + len(mark))

    def read(self, size: int) -> bytes:
        while len(self.pending) < size:
            data = self.sock.recv(65536)
            assert data, f"ended after {self.pending!r}"
            self.pending += data
        return self._take(size)

    def read_to_end(self) -> bytes:
        """Up to the end of the stream; raises ConnectionResetError if it was cut by a reset."""
        while data := self.sock.recv(65536):
            self.pending += data
        return self._take(len(self.pending))

    def _take(self, size: int) -> bytes:
        found = bytes(self.pending[:size])
        del self.pending[:size]
        return found

    def answer(self) -> tuple[int, bytes, bytes]:
        """One answer with a Content-Length: status, head, content."""
        head = self.read_until(b"\r\n\r\n")
        status = int(head.split(b" ", 2)[1])
        length = 0
        for line in head.split(b"\r\n"):
            if line.startswith(b"content-length: "):
                length = int(line[16:])
        return status, head, self.read(length)

    def silent(self) -> bool:
        """Whether nothing is there to be read, not even an end."""
        self.sock.setblocking(False)
        try:
            self.pending += self.sock.recv(65536)
        except BlockingIOError:
            return True
        finally:
            self.sock.settimeout(TIMEOUT)
        return False


@contextlib.contextmanager
def serving(app: ASGIApplication, loop_name: str, **config: Any) -> Iterator[HttpServer]:
    server = HttpServer(app, loop_name, **config)
    try:
        yield server
    finally:
        server.stop()


def answering(*messages: Message) -> ASGIApplication:
    """An application that sends these messages."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)

    return app


def start(status: int = 200, *headers: tuple[bytes, bytes], **more: Any) -> Message:
    return {"type": "http.response.start", "status": status, "headers": list(headers), **more}


def body(data: bytes = b"", more: bool = False) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more}


async def read(receive: Receive) -> bytes:
    """The whole content of a request."""
    content = b""
    while True:
        message = await receive()
        assert message["type"] == "http.request", message
        content += message["body"]
        if not message["more_body"]:
            return bytes(content)


async def respond(send: Send, data: bytes, status: int = 200) -> None:
    await send(start(status))
    await send(body(data))


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with method, path and content."""
    content = await read(receive)
    await respond(send, f"{scope['method']} {scope['path']} ".encode() + content)


def response(content: bytes, connection: bytes = KEPT, status: bytes = b"200 OK", fields: bytes = b"") -> bytes:
    """The exact bytes of an answer in one piece."""
    return b"HTTP/1.1 %b\r\n%b%b%bcontent-length: %d\r\n\r\n%b" % (
        status,
        fields,
        DEFAULT_HEADERS,
        connection,
        len(content),
        content,
    )


FOREVER = math.inf
Waiter = Callable[[], Awaitable[None]]
