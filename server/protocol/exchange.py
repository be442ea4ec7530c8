"""One HTTP request and its response: the `receive` and `send` that an application is called with.

It owns the request's content until the application takes it, the legality of what the application sends, and the
framing of the response. Rules: a response that is not whole is never made to look whole; a wrong message raises into
the application and changes nothing. It writes to the connection's transport and tells the connection when the response
is complete; it must not know how connections persist, travel or close.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import time
from typing import TYPE_CHECKING, Any, Final

from server.protocol.head import CHUNKED, Head
from server.protocol.response import (
    CLOSE,
    CONTINUE,
    STATUS_LINES,
    Wish,
    encode_fields,
    encode_trailers,
    without,
)
from server.protocol.service import ClientDisconnected, Message, Phase, Service
from server.scoreboard import Cell

if TYPE_CHECKING:
    from server.protocol.http1 import Http1Connection

ASGI_VERSION: Final = "3.0"
SPEC_VERSION: Final = "2.4"
"""Of the WebSocket part of ASGI: from 2.4 on, send() after the client has gone raises an OSError."""

HTTP_SPEC_VERSION: Final = "2.3"
"""Of the HTTP part, as uvicorn has it: told of 2.4, Starlette no longer ends a stream whose client has gone while it
waits for something to send, and `send` may raise where a background task was to follow (docs/asgi.md)."""

DROPPED_LIMIT: Final = 64
"""So many messages of a response whose client has gone are dropped in silence; then `send` raises, which ends even an
application that streams for ever and never asks `receive`."""

ONE_WRITE: Final = 65536
"""Up to this size (bytes) head and content are copied into one buffer; above, they are written one after the other."""

DRAIN_LIMIT: Final = 65536
"""Unread request content up to this size (bytes) is read and dropped after the response; more ends the connection."""

CLIENT_GONE: Final = 499
"""What the access log shows for a request whose client left before there was a status."""

_log: Final = logging.getLogger("serve.error")

_CLOSE: Final = int(Wish.CLOSE)
_CHUNKED: Final = int(Wish.CHUNKED)
_OWN_LINES: Final = int(Wish.DATE | Wish.SERVER)
_REQUESTS: Final = int(Cell.REQUESTS)
_IN_FLIGHT: Final = int(Cell.IN_FLIGHT)
_STATUS: Final = int(Cell.STATUS_1XX) - 1
_CLOSING: Final = Phase.CLOSING


class State(enum.Enum):
    """Of the response."""

    WAITING = "waiting"  # for http.response.start
    STARTED = "started"  # status and headers are known, nothing is written
    STREAMING = "streaming"  # the head is written, more content is to come
    TRAILERS = "trailers"  # the content is whole, trailer fields are to come
    DONE = "done"  # the response is complete
    LOST = "lost"  # the client has gone, or the response was cut


TRANSITIONS: Final = {
    State.WAITING: {State.STARTED, State.LOST},
    State.STARTED: {State.STARTED, State.STREAMING, State.TRAILERS, State.DONE, State.LOST},
    State.STREAMING: {State.TRAILERS, State.DONE, State.LOST},
    State.TRAILERS: {State.DONE, State.LOST},
    State.DONE: set[State](),
    State.LOST: set[State](),
}
"""The only ways from state to state. STARTED repeats itself where a 500 takes the place of a head not yet written."""


class Content(enum.Enum):
    """Of the request: COMING -> WHOLE -> TAKEN."""

    COMING = "coming"  # not all of it has arrived
    WHOLE = "whole"  # it has arrived; the application has not taken the last of it
    TAKEN = "taken"


class Framing(enum.Enum):
    """How the response's content is delimited (RFC 9112 6.3)."""

    NONE = "none"  # no content on the wire: HEAD, 204, 304
    LENGTH = "length"
    CHUNKED = "chunked"
    CLOSE = "close"  # by the end of the connection: HTTP/1.0


# Names bound to the module are faster than attributes of the enum.
WAITING: Final = State.WAITING
STARTED: Final = State.STARTED
STREAMING: Final = State.STREAMING
TRAILERS: Final = State.TRAILERS
DONE: Final = State.DONE
LOST: Final = State.LOST
COMING: Final = Content.COMING
WHOLE: Final = Content.WHOLE
TAKEN: Final = Content.TAKEN


class Exchange:
    """One request and its response."""

    __slots__ = (
        "_begun",
        "_block",
        "_continue",
        "_dropped",
        "_framing",
        "_length",
        "_pieces",
        "_remaining",
        "_trailer_lines",
        "_trailers",
        "_waiters",
        "_wishes",
        "close",
        "connection",
        "content",
        "head",
        "left",
        "scope",
        "sent",
        "service",
        "state",
        "status",
        "task",
        "unread",
    )

    def __init__(self, connection: Http1Connection, service: Service, head: Head) -> None:
        self.connection = connection
        self.service = service
        self.head = head
        self.task: asyncio.Task[None] | None = None
        self.state = WAITING
        self.left = head.body
        """Bytes of the request's content still to arrive, 0 for none, CHUNKED where only its end will tell."""
        self.content = COMING if head.body else WHOLE
        self.unread = 0
        """Bytes of content that have arrived and that the application has not taken."""
        self._pieces: list[bytes] = []
        self._continue = head.expect_continue
        self._framing = Framing.NONE
        self._waiters: list[asyncio.Future[None]] | None = None
        self.status = 0
        self.sent = 0
        """Bytes of the response's content written."""
        self.close = False
        """Whether the connection ends with this response."""
        self._begun = 0.0 if service.access_log is None else time.perf_counter()
        raw_path = head.path
        path = head.text
        root_path = service.config.root_path
        if root_path and not (path + "/").startswith(root_path + "/"):
            # A proxy may or may not have taken the mount point off; the application always sees the whole path.
            path = root_path + path
            raw_path = root_path.encode() + raw_path
        extensions = service.extensions.copy()
        if head.te_trailers:
            extensions["http.response.trailers"] = {}
        self.scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": ASGI_VERSION, "spec_version": HTTP_SPEC_VERSION},
            "http_version": head.version,
            "method": head.method,
            "scheme": "http",
            "path": path,
            "raw_path": raw_path,
            "query_string": head.query,
            "root_path": root_path,
            "headers": head.headers,
            "client": connection.client,
            "server": connection.server,
            "state": service.state.copy(),
            "extensions": extensions,
        }

    # ---- the application's task

    async def run(self) -> None:
        """Call the application and see to it that the response has an end."""
        cells = self.service.cells
        cells[_IN_FLIGHT] += 1
        try:
            await self.service.app(self.scope, self.receive, self.send)
            if self.state is not DONE and self.state is not LOST:
                self._abandoned()
        except GeneratorExit:  # the loop is closed, and this coroutine with it
            raise
        except BaseException as error:  # whatever it is, the client gets an answer
            self._failed(error)
        finally:
            cells[_IN_FLIGHT] -= 1

    def _abandoned(self) -> None:
        if self.connection.eof and self.content is TAKEN:  # `receive` has told it that the client is gone
            _log.debug("The application ended because the client had gone.")
        elif self.state is WAITING:
            _log.error("The application returned without answering %s %s.", self.head.method, self.scope["path"])
        else:
            _log.error(
                "The application returned without completing its answer to %s %s.", self.head.method, self.scope["path"]
            )
        self._end_badly()

    def _failed(self, error: BaseException) -> None:
        if self.state is LOST and (isinstance(error, asyncio.CancelledError) or tells_of_disconnect(error)):
            _log.debug("The application ended because the client had gone.", exc_info=error)
            return
        what = "was cancelled" if isinstance(error, asyncio.CancelledError) else "raised an exception"
        _log.error(
            "The application %s while answering %s %s.", what, self.head.method, self.scope["path"], exc_info=error
        )
        self._end_badly()

    def _end_badly(self) -> None:
        """The application is over and the response is not: 500 if that is still possible, else cut it visibly short."""
        if self.state is WAITING or self.state is STARTED:
            self._start({"status": 500, "headers": [(b"content-type", b"text/plain; charset=utf-8")]})
            self._first(b"Internal Server Error", False)
        elif self.state is STREAMING or self.state is TRAILERS:
            self.lose()
            self.connection.cut_short(reset=self.until_close)

    # ---- the request

    async def receive(self) -> Message:
        """ASGI `receive`: http.request while there is content to take, then http.disconnect once all is over."""
        while True:
            if self.state is DONE or self.state is LOST:
                return {"type": "http.disconnect"}
            if self._pieces or self.content is WHOLE:
                return self._take()
            if self.connection.eof:
                return {"type": "http.disconnect"}
            if self._continue and self.state is not STREAMING and self.state is not TRAILERS:
                # RFC 9110 10.1.1: while no byte of the final response is written. Not held back after a mere
                # http.response.start, since client and application would wait for each other.
                self._continue = False
                self.connection.transport.write(CONTINUE)
            await self._wait()

    def _take(self) -> Message:
        pieces = self._pieces
        if len(pieces) == 1:
            body = pieces[0]
        else:
            body = b"".join(pieces)
        self._pieces = []
        self.unread = 0
        more = self.content is COMING
        if not more:
            self.content = TAKEN
        if more or self.connection.read_paused:  # also behind the last of it: the client's end is to be seen
            self.connection.mind_reading()
        return {"type": "http.request", "body": body, "more_body": more}

    async def _wait(self) -> None:
        """Until `wake()`; several may wait."""
        waiter: asyncio.Future[None] = self.service.loop.create_future()
        if self._waiters is None:
            self._waiters = []
        self._waiters.append(waiter)
        try:
            await waiter
        finally:  # frameworks ask whether the client is still there by a `receive` that they cancel, many times
            if self._waiters and waiter in self._waiters:
                self._waiters.remove(waiter)

    def wake(self) -> None:
        """Let `receive` look again."""
        waiters, self._waiters = self._waiters, None
        for waiter in waiters or ():
            if not waiter.done():
                waiter.set_result(None)

    def push(self, data: bytes) -> None:
        """A piece of the request's content has arrived. What comes after the response's end is dropped."""
        self._continue = False
        if self.state is not DONE and data:
            self._pieces.append(data)
            self.unread += len(data)
            if self._waiters:
                self.wake()

    def whole(self) -> None:
        """The request's content is complete."""
        self.left = 0
        self.content = WHOLE
        if self._waiters:
            self.wake()

    def drainable(self) -> bool:
        """Whether the rest of the content is announced, small, and surely on its way.

        A client that expected 100 and got a final status may or may not send its content (RFC 9110 10.1.1), so that
        nobody knows where the next request begins.
        """
        return self.left != CHUNKED and self.left <= DRAIN_LIMIT and not self._continue

    # ---- the response

    async def send(self, message: Message) -> None:
        """ASGI `send`. Raises RuntimeError, TypeError or ValueError for a wrong message, ClientDisconnected."""
        state = self.state
        kind = message["type"]
        if state is WAITING:
            if kind != "http.response.start":
                raise RuntimeError(f"Expected the message http.response.start, got {kind!r}.")
            self._start(message)
        elif state is STARTED or state is STREAMING:
            if kind != "http.response.body":
                raise RuntimeError(f"Expected the message http.response.body, got {kind!r}.")
            body = message.get("body", b"")
            if type(body) is not bytes:
                body = _as_bytes(body)
            more = message.get("more_body", False)
            if state is STARTED:
                self._first(body, more)
            else:
                self._next(body, more)
            if more and self.connection.write_paused:
                await self.connection.writable()
        elif state is TRAILERS:
            if kind != "http.response.trailers":
                raise RuntimeError(f"Expected the message http.response.trailers, got {kind!r}.")
            self._take_trailers(message)
        elif state is LOST:
            await self._drop()
        elif kind != "http.response.trailers" or not self._trailers:
            raise RuntimeError(f"Got the message {kind!r} after the response was complete.")

    async def _drop(self) -> None:
        """A message that nobody will get. Gives way, so that a framework can end a stream that it has cancelled."""
        self._dropped += 1
        if self._dropped > DROPPED_LIMIT:
            raise ClientDisconnected("The client has disconnected.")
        await asyncio.sleep(0)

    def _start(self, message: Message) -> None:
        try:
            status = message["status"]
        except KeyError:
            raise RuntimeError("The message http.response.start has no status.") from None
        if not isinstance(status, int) or status not in STATUS_LINES:
            raise ValueError(f"{status!r} is not the status of a final response (200 to 599).")
        block, length, wishes = encode_fields(message.get("headers") or (), status == 204)
        if length >= 0 and wishes & _CHUNKED:
            raise ValueError("The response has both Content-Length and Transfer-Encoding.")
        self._block = block
        self._length = length
        self._wishes = wishes
        self._trailers = bool(message.get("trailers", False))
        self.status = int(status)
        self.state = STARTED

    def _first(self, body: bytes, more: bool) -> None:
        """Write the head together with the first content."""
        service, head, length, size = self.service, self.head, self._length, len(body)
        status = self.status
        framing = b""
        payload = body
        if head.method == "HEAD" or status == 304 or status == 204:
            payload = self._suppressed(body)
            self._framing = Framing.NONE
            if length < 0 and size and not more:  # HEAD: what GET would have said (RFC 9110 9.3.2)
                framing = b"content-length: %d\r\n" % size
        elif length >= 0:
            if size > length or (size != length and not more):
                raise RuntimeError(_wrong_length(size, length))
            self._framing = Framing.LENGTH
            self._remaining = length - size
        elif head.version == "1.1" and (more or self._trailers or self._wishes & _CHUNKED):
            self._framing = Framing.CHUNKED
            framing = b"transfer-encoding: chunked\r\n"
            payload = self._chunk(body, more)
        elif more:
            self._framing = Framing.CLOSE
        else:
            self._framing = Framing.LENGTH
            framing = b"content-length: %d\r\n" % size
        self.close = close = (
            not head.keep_alive
            or ((service.close_answers or service.phase is _CLOSING) and not self.connection.requests_wait())
            or not service.config.keep_alive
            or self._wishes & _CLOSE != 0
            or self._framing is Framing.CLOSE
            or (not more and self.content is COMING and not self.drainable())
        )
        default = service.default_headers
        start = b"".join(
            (
                STATUS_LINES[status],
                self._block,
                b"\r\n",
                without(default, self._wishes) if self._wishes & _OWN_LINES else default,
                CLOSE if close else service.keep_alive_lines,
                framing,
                b"\r\n",
                payload if size <= ONE_WRITE else b"",
            )
        )
        self.sent = 0 if self._framing is Framing.NONE else size
        transport = self.connection.transport
        transport.write(start)
        if size > ONE_WRITE and payload:
            transport.write(payload)  # not writelines(): asyncio's does not pause the protocol before 3.13.2
        if more:
            self.state = STREAMING
        else:
            self._content_sent()

    def _next(self, body: bytes, more: bool) -> None:
        """Write further content."""
        framing = self._framing
        size = len(body)
        payload = body
        if framing is Framing.LENGTH:
            if size > self._remaining or (size != self._remaining and not more):
                raise RuntimeError(_wrong_length(self.sent + size, self._length))
            self._remaining -= size
        elif framing is Framing.CHUNKED:
            payload = self._chunk(body, more)
        elif framing is Framing.NONE:
            payload = self._suppressed(body)
            size = 0
        self.sent += size
        if payload:
            self.connection.transport.write(payload)
        if not more:
            self._content_sent()

    def _chunk(self, body: bytes, more: bool) -> bytes:
        """`body` as a chunk, with the last chunk behind it if it is the end (RFC 9112 7.1)."""
        chunk = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
        if more or (self._trailers and self.head.te_trailers):
            return chunk
        return chunk + b"0\r\n\r\n"

    def _suppressed(self, body: bytes) -> bytes:
        """No content on the wire; an error if there cannot be any and the application meant some."""
        if body and self.status in (204, 304) and self.head.method != "HEAD":
            raise RuntimeError(f"A {self.status} response has no content, got {len(body)} bytes.")
        return b""

    def _content_sent(self) -> None:
        if self._trailers and self._framing is Framing.CHUNKED and self.head.te_trailers:
            self._trailer_lines = b""
            self.state = TRAILERS
        else:
            # Trailer fields that the client did not ask for are not waited for, and ignored when they come.
            self._complete()

    def _take_trailers(self, message: Message) -> None:
        self._trailer_lines += encode_trailers(message.get("headers") or ())
        if not message.get("more_trailers", False):
            self.connection.transport.write(b"0\r\n%b\r\n" % self._trailer_lines)
            self._complete()

    # ---- ends

    def _complete(self) -> None:
        self.state = DONE
        self._count()
        if self._waiters:
            self.wake()
        self.connection.answered(self)

    def lose(self) -> None:
        """The client has gone, or the response is cut: the application hears of it in `receive` and `send`."""
        if self.state is not DONE and self.state is not LOST:
            if self.state is STARTED:
                self.status = 0  # nobody has seen it
            self.state = LOST
            self._dropped = 0
            self._count()
            self.wake()

    def refuse(self) -> None:
        """The connection has refused the request's content (and answered with `status`, if it still could)."""
        if self.state is not DONE and self.state is not LOST:
            self.state = LOST
            self._dropped = 0
            self._count()
            self.wake()

    @property
    def until_close(self) -> bool:
        """Whether the end of the connection would pass for the end of the content that is being written."""
        return self._framing is Framing.CLOSE

    def _count(self) -> None:
        service = self.service
        cells = service.cells
        cells[_REQUESTS] += 1
        if self.status:
            cells[_STATUS + self.status // 100] += 1
        if service.access_log is not None:
            head = self.head
            service.access_log.record(
                self.connection.client,
                head.method,
                head.target.decode("latin-1"),
                head.version,
                self.status or CLIENT_GONE,
                self.sent,
                time.perf_counter() - self._begun,
                head.headers,
            )


def _wrong_length(size: int, length: int) -> str:
    than = "longer" if size > length else "shorter"
    return f"The response's content is {than} than its Content-Length: {size} bytes, announced {length}."


def _as_bytes(body: object) -> bytes:
    if isinstance(body, (bytes, bytearray, memoryview)):
        return bytes(body)
    raise TypeError(f"The body of a response must be bytes, not {type(body).__name__}.")


def tells_of_disconnect(error: BaseException | None) -> bool:
    """Whether the error is a ClientDisconnected, a group of nothing else, or was raised in place of one."""
    for _ in range(8):
        if error is None:
            return False
        if isinstance(error, ClientDisconnected):
            return True
        if isinstance(error, BaseExceptionGroup):
            return all(tells_of_disconnect(inner) for inner in error.exceptions)
        error = error.__cause__ or error.__context__
    return False
