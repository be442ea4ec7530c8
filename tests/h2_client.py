"""A client of HTTP/2 that waits: the library h2 over a socket, for tests that ask one server a few things.

GOAWAY is taken out of what the library gets: it sends nothing more after the first, not even what is announced by it.
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
from collections.abc import Iterator
from typing import Any, Final, TypeVar

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    DataReceived,
    Event,
    ResponseReceived,
    StreamEnded,
    StreamReset,
)

from tests.running import PATIENCE

GOAWAY: Final = 7
E = TypeVar("E", bound=Event)
Headers = list[tuple[str, str]]


class H2Client:
    """One connection; `events` are all that have come and nobody has waited for."""

    def __init__(self, connection: socket.socket) -> None:
        """Begin on a connection that is open; over TLS, h2 was agreed on."""
        connection.settimeout(PATIENCE)
        self.socket = connection
        self.core = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self.core.initiate_connection()
        self.events: list[Event] = []
        self.farewells: list[tuple[int, int]] = []
        """The last stream and the error code of each GOAWAY."""
        self.closed = False
        self._unread = b""
        self.flush()

    @classmethod
    def to(cls, address: tuple[str, int], tls: ssl.SSLContext | None = None, name: str = "localhost") -> H2Client:
        """Connect; with `tls`, offer h2 first."""
        plain = socket.create_connection(address, timeout=PATIENCE)
        if tls is None:
            return cls(plain)
        tls.set_alpn_protocols(["h2", "http/1.1"])
        secure = tls.wrap_socket(plain, server_hostname=name)
        assert secure.selected_alpn_protocol() == "h2"
        return cls(secure)

    def flush(self) -> None:
        """Send what there is to be sent."""
        if data := self.core.data_to_send():
            self.socket.sendall(data)

    def begin(self, path: str = "/", method: str = "GET", more: Headers | None = None, *, ended: bool = True) -> int:
        """Send a request's head; its stream."""
        stream = self.core.get_next_available_stream_id()
        scheme = "https" if isinstance(self.socket, ssl.SSLSocket) else "http"
        head = [(":method", method), (":scheme", scheme), (":authority", "test"), (":path", path), *(more or [])]
        self.core.send_headers(stream, head, end_stream=ended)
        self.flush()
        return stream

    def wait(self, kind: type[E], stream: int | None = None) -> E:
        """The next event of a kind, of this stream; those before it of other kinds or streams stay."""
        while True:
            for event in self.events:
                if isinstance(event, kind) and stream in (None, getattr(event, "stream_id", None)):
                    self.events.remove(event)
                    return event
            assert not self.closed, f"closed before {kind.__name__}; there were {self.events}"
            self.receive()

    def receive(self) -> None:
        """Take what comes next."""
        try:
            data = self.socket.recv(65536)
        except ConnectionResetError:
            data = b""
        self.closed = not data
        for event in self.core.receive_data(b"".join(self._frames(data))):
            self.events.append(event)
            if isinstance(event, DataReceived) and event.flow_controlled_length:
                with contextlib.suppress(Exception):  # h2's: the stream is over
                    self.core.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.flush()

    def _frames(self, data: bytes) -> Iterator[bytes]:
        """Those that are whole by now."""
        unread = self._unread + data
        while len(unread) >= 9 and len(unread) >= (end := 9 + int.from_bytes(unread[:3])):
            frame, unread = unread[:end], unread[end:]
            if frame[3] == GOAWAY:
                self.farewells.append((int.from_bytes(frame[9:13]), int.from_bytes(frame[13:17])))
            else:
                yield frame
        self._unread = unread

    def response(self, stream: int) -> tuple[int, bytes]:
        """The status and body of a response that ends well."""
        head = self.wait(ResponseReceived, stream)
        assert head.headers is not None
        while not any(
            isinstance(each, (StreamEnded, StreamReset)) and each.stream_id == stream for each in self.events
        ):
            assert not self.closed, self.events
            self.receive()
        reset = [each for each in self.events if isinstance(each, StreamReset) and each.stream_id == stream]
        assert not reset, reset
        pieces = [each for each in self.events if isinstance(each, DataReceived) and each.stream_id == stream]
        self.events = [each for each in self.events if getattr(each, "stream_id", None) != stream]
        status: dict[Any, Any] = dict(head.headers)
        return int(status[":status"]), b"".join(each.data or b"" for each in pieces)

    def ask(self, path: str = "/", method: str = "GET", more: Headers | None = None) -> tuple[int, bytes]:
        """One request and its response."""
        return self.response(self.begin(path, method, more))

    def told(self, path: str = "/") -> dict[str, Any]:
        """One response in JSON."""
        status, body = self.ask(path)
        assert status == 200, (status, body)
        found: dict[str, Any] = json.loads(body)
        return found

    def ended(self) -> list[tuple[int, int]]:
        """Wait until the server has closed the connection: the last stream and the error code of each GOAWAY."""
        while not self.closed:
            self.receive()
        return self.farewells

    def __enter__(self) -> H2Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
