"""A server with HTTP/2: the real connection object on a real socket, in a thread with its own loop; and a raw client.

Every change of a connection's or a response's state is checked against the tables of transitions.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from typing import Any

from serve_asgi.http import connection_states as lifecycle
from serve_asgi.http import response_states
from serve_asgi.http.h2 import frames
from serve_asgi.http.hand_over_record import HandOverRecord
from serve_asgi.http.worker_context import ASGIApplication
from serve_asgi.http2 import exchange
from serve_asgi.http2.connection import Http2Connection
from serve_asgi.http2.response import Http2Response
from tests.connection_server import TIMEOUT
from tests.http.http_server import Client, HttpServer
from tests.http2.frame_client import Answer, FrameClient

NO_LIMIT = (1 << 31) - 1 - 65_535


class CheckedHttp2Response(Http2Response):
    """Refuses transitions that are not in the table."""

    __slots__ = ()

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "state" and hasattr(self, "state"):
            assert value in response_states.TRANSITIONS[self.state], f"{self.state} -> {value}"
        super().__setattr__(name, value)


class CheckedHttp2Connection(Http2Connection):
    """The same for connections."""

    __slots__ = ()

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "state" and hasattr(self, "state") and value is not self.state:
            assert value in lifecycle.TRANSITIONS[self.state], f"{self.state} -> {value}"
        super().__setattr__(name, value)


setattr(exchange, "Http2Response", CheckedHttp2Response)  # noqa: B010


class Http2Server(HttpServer):
    """Speaks HTTP/2 from a connection's beginning, as if TLS had negotiated it."""

    def __init__(self, app: ASGIApplication, loop_name: str, **config: Any) -> None:
        self.connections: list[Http2Connection] = []
        super().__init__(app, loop_name, **config)

    async def attach(self, client: socket.socket, record: HandOverRecord | None = None) -> Any:
        """Serve the accepted socket."""
        connection = CheckedHttp2Connection(self.worker, record)
        await self.loop.connect_accepted_socket(lambda: connection, client)
        self.connections.append(connection)
        self.new_connection.set()
        return connection

    def newest(self) -> Http2Connection:
        """The server's side of the newest connection."""
        assert self.new_connection.wait(TIMEOUT)
        return self.connections[-1]

    def client(
        self, settings: dict[int, int] | None = None, connection_window: int = NO_LIMIT, **options: int
    ) -> Http2Client:
        """A raw client that has begun as it must."""
        self.new_connection.clear()
        client = Http2Client(self.connect(**options))
        client.begin(settings or {}, connection_window)
        return client


class Http2Client(FrameClient):
    """A raw client on a socket. It reads only when it is told to."""

    def __init__(self, client: Client) -> None:
        super().__init__()
        self.raw = client
        self.sock = client.sock
        self.closed = False

    def send(self, *data: bytes) -> None:
        self.raw.send(b"".join(data))

    def read_some(self) -> None:
        """Whatever is there; wait for it if nothing is."""
        data = self.sock.recv(1 << 18)
        if data:
            self.receive(data)
        else:
            self.closed = True

    def read_until(self, condition: Any) -> None:
        """Read until it holds; the connection may not end before."""
        while not condition():
            assert not self.closed, f"the connection has ended; last frames {self.frames[-5:]}"
            self.read_some()

    def wait(self, stream_id: int) -> Answer:
        """The whole answer on the stream, or as much as came before it was reset."""
        answer = self.answers[stream_id]
        self.read_until(lambda: answer.over)
        return answer

    def wait_for_head(self, stream_id: int) -> Answer:
        """The answer as soon as its final head has come."""
        answer = self.answers[stream_id]
        self.read_until(lambda: answer.status or answer.over)
        return answer

    def wait_for_content(self, stream_id: int, size: int) -> Answer:
        """The answer as soon as so much of its content has come."""
        answer = self.answers[stream_id]
        self.read_until(lambda: len(answer.content) >= size or answer.over)
        return answer

    def read_to_end(self) -> None:
        """Read until the server ends the connection; raises ConnectionResetError if it was cut by a reset."""
        while not self.closed:
            self.read_some()

    def silent(self, seconds: float = 0.0) -> bool:
        """Whether nothing is there to be read, not even an end; what was there has been taken."""
        self.sock.settimeout(seconds or 0.000_1)
        count = len(self.frames)
        try:
            self.read_some()
        except TimeoutError:
            return True
        finally:
            self.sock.settimeout(TIMEOUT)
        return not self.closed and len(self.frames) == count

    def sync(self) -> None:
        """Return when all that was sent before has been read by the server, and answered as far as it was at once."""
        payload = time.perf_counter_ns().to_bytes(8, "big")
        self.send(frames.ping_frame(payload, False))
        self.read_until(
            lambda: any(said.kind == frames.PING and said.payload == payload for said in self.frames[-200:])
        )

    def end(self) -> None:
        self.raw.end()

    def close(self) -> None:
        self.raw.close()


@contextlib.contextmanager
def serving(app: ASGIApplication, loop_name: str, **config: Any) -> Iterator[Http2Server]:
    server = Http2Server(app, loop_name, **config)
    try:
        yield server
    finally:
        server.stop()
