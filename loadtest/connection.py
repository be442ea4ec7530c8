"""One client connection, byte by byte: no HTTP client library stands between, since those retry.

Owns one connection, over TCP or over TLS, and the parser of its responses (httptools). Rules: what is written is
exactly what the caller gives; every expected response is a future that ends as the response, or as a `Failure` with its
cause; a response that only the end of the connection delimits is whole if that end was a proper one, which over TLS
means close_notify; nothing is opened again here. It knows nothing of ids and load kinds.
"""

from __future__ import annotations

import asyncio
import dataclasses
import socket
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import cast

import httptools

from loadtest import tls
from loadtest.ledger import Cause, Left

CONNECT_TIMEOUT = 10.0
NARROW = 24_576
"""Bytes of SO_RCVBUF."""


class Failure(Exception):
    """A request has no response."""

    def __init__(self, cause: Cause, detail: str = "") -> None:
        super().__init__(f"{cause.value}: {detail}" if detail else cause.value)
        self.cause = cause
        self.detail = detail


@dataclasses.dataclass(slots=True)
class Response:
    """One whole response."""

    status: int = 0
    headers: dict[bytes, bytes] = dataclasses.field(default_factory=dict)
    body: bytearray = dataclasses.field(default_factory=bytearray)
    done: float = 0.0
    """When its last byte was read (monotonic, s)."""


class Connection(asyncio.Protocol):
    """A client connection that expects HTTP responses, in the order in which they were asked for.

    `left` is told once, if the server ends the connection while the client has not asked it to. `took` takes the raw
    bytes instead of the response parser, once it has been set.
    """

    def __init__(self, left: Callable[[Left], None]) -> None:
        self._left = left
        self._transport: asyncio.Transport | None = None
        self._expected: deque[asyncio.Future[Response]] = deque()
        self._parser = httptools.HttpResponseParser(self)
        self._response = Response()
        self._begun = False  # some byte of the current response has arrived
        self._until_close = False  # the current response is delimited by the end of the connection (RFC 9112 6.3)
        self._paused = False
        self.number = 0
        """Whose turn it was to be opened in this run: 1 is the first."""
        self.took: Callable[[bytes], None] | None = None
        self.ended: Cause | None = None
        """Why nothing more can be asked here; None while the connection stands."""
        self.asked_to_close = False
        """The client has sent `Connection: close` or closed: an end is no reconnect."""
        self.stray = b""
        """Bytes that no request had asked for."""
        self.unannounced = False
        """Over TLS: the server has ended the connection without close_notify."""
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the server has sent its end (EOF or reset)."""

    # what the caller does

    @classmethod
    async def open(
        cls,
        host: str,
        port: int,
        left: Callable[[Left], None],
        client: tls.ClientTls | None = None,
        unix: Path | None = None,
    ) -> Connection:
        """Connect, to the socket `unix` if there is one, and shake hands if there is a TLS `client`; raises Failure."""
        connection = cls(left)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                if client is not None:
                    await tls.connect(host, port, connection, client)
                elif unix is not None:
                    await asyncio.get_running_loop().create_unix_connection(lambda: connection, str(unix))
                else:
                    await asyncio.get_running_loop().create_connection(lambda: connection, host, port)
        except (ConnectionRefusedError, FileNotFoundError) as error:
            raise Failure(Cause.REFUSED) from error
        except (OSError, TimeoutError) as error:
            raise Failure(Cause.CONNECT, str(error) or repr(error)) from error
        return connection

    def write(self, data: bytes) -> None:
        """Send `data`, if the connection still stands (if it does not, the futures say so)."""
        if self.ended is None and self._transport is not None:
            self._transport.write(data)

    def expect(self) -> asyncio.Future[Response]:
        """A future for the next response; it raises Failure if there will be none."""
        future: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        if self.ended is not None:
            future.set_exception(Failure(self.ended))
        else:
            self._expected.append(future)
        return future

    def narrow(self) -> None:
        """Let the kernel keep little of what is not read, so that the server has to keep it."""
        if self._transport is not None:
            self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, NARROW)

    def pause_reading(self, seconds: float) -> None:
        """Read nothing for so long."""
        transport, loop = self._transport, asyncio.get_running_loop()
        if transport is not None and self.usable and not self._paused:
            self._paused = True
            transport.pause_reading()
            loop.call_later(seconds, self._read_on)

    def _read_on(self) -> None:
        self._paused = False
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    @property
    def usable(self) -> bool:
        """Whether another request may be sent."""
        return self.ended is None

    def close(self) -> None:
        """The client goes."""
        self.asked_to_close = True
        self.ended = self.ended or Cause.EOF
        if self._transport is not None:
            self._transport.close()

    # what the loop does

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self.took is not None:
            self.took(data)
            return
        if not self._expected and not self._begun:
            self.stray += data
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._end(Cause.WRONG, f"{error}: {data[:80]!r}")

    def eof_received(self) -> bool:
        if self._begun and self._until_close:
            self.on_message_complete()
        self._tell(Left.EOF)
        self._end(Cause.TRUNCATED if self._begun else Cause.EOF)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None:
            self._tell(Left.RESET)
        self._end(Cause.RESET if exc is not None else Cause.EOF)

    # what TLS says besides

    def truncated(self) -> None:
        """The end of TCP without close_notify: whoever sent it, nothing says that what has arrived is all."""
        self.unannounced = True
        self._tell(Left.TRUNCATION)
        self._end(Cause.TRUNCATED if self._begun else Cause.EOF, "no close_notify")

    def alerted(self, reason: str) -> None:
        """An alert, or a record that is wrong."""
        self._tell(Left.ALERT)
        self._end(Cause.TLS, reason)

    def _end(self, cause: Cause, detail: str = "") -> None:
        self.ended = self.ended or cause
        if not self.over.done():
            self.over.set_result(None)
        while self._expected:
            future = self._expected.popleft()
            if not future.done():
                future.set_exception(Failure(cause, detail))
            cause = Cause.EOF if cause is Cause.TRUNCATED else cause  # only the first one had begun
        if self._transport is not None:
            self._transport.close()

    def _tell(self, left: Left) -> None:
        if not self.asked_to_close:
            self.asked_to_close = True  # told once
            self._left(left)

    # what the parser does

    def on_message_begin(self) -> None:
        if not self._expected:
            self.stray += b"the beginning of a response"
        self._response = Response()
        self._begun = True
        self._until_close = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self._response.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        headers = self._response.headers
        self._until_close = b"content-length" not in headers and b"transfer-encoding" not in headers

    def on_body(self, body: bytes) -> None:
        self._response.body += body

    def on_message_complete(self) -> None:
        response, self._begun, self._until_close = self._response, False, False
        response.status = self._parser.get_status_code()
        if 100 <= response.status < 200:
            return
        if not self._expected:
            self.stray += b"a whole response: %d" % response.status
            return
        response.done = time.monotonic()
        future = self._expected.popleft()
        if not future.done():
            future.set_result(response)
        if not self._parser.should_keep_alive():
            self._tell(Left.ANNOUNCED)
            self.ended = self.ended or Cause.EOF
