"""The response to one HTTP request: the `send` that an application is called with.

It owns the legality of what the application sends, and the framing of the response. Rules: a response that is not whole
is never made to look whole; a wrong message raises into the application and changes nothing. It writes through the
connection and tells it when the response is complete; it must not know how connections persist, travel or close.
"""

from __future__ import annotations

import asyncio
import enum
from bisect import bisect_left
from collections.abc import Iterable
from time import perf_counter
from typing import TYPE_CHECKING, Final

from serve_asgi.http.request_head import Head
from serve_asgi.http.response_head import (
    CLOSE,
    NO_CONTENT,
    RESET_CONTENT,
    STATUS_LINES,
    Wish,
    encode_fields,
    encode_hints,
    encode_trailers,
    without,
)
from serve_asgi.http.sendfile import FileContent, file_of, path_of
from serve_asgi.http.worker_context import DROP_TIME, ClientDisconnected, Message, Phase, Service
from serve_asgi.http.writer import LARGE
from serve_asgi.ipc.address import Address
from serve_asgi.ipc.scoreboard import DURATION_BOUNDS, Cell

if TYPE_CHECKING:
    from serve_asgi.http.connection import Http1Connection

LARGEST_FIELDS: Final = 1024
"""Encoded response fields of more bytes are not kept for the next response."""

EARLY_HINT: Final = "http.response.early_hint"

DROPPED_AT_MOST: Final = 1 << 20
"""So many bytes of content (for DROP_TIME at most) an application may send behind the end of a response that has none,
before it is told that there is nobody to take it."""

CLIENT_GONE: Final = 499
"""What the access log shows for a request whose client left before there was a status."""

_CLOSE: Final = int(Wish.CLOSE)
_CHUNKED: Final = int(Wish.CHUNKED)
_OWN_LINES: Final = int(Wish.DATE | Wish.SERVER)
_TRAILERS: Final = int(Wish.TRAILERS)
_BODILESS: Final = int(Wish.BODILESS)
_REQUESTS: Final = int(Cell.REQUESTS)
_STATUS: Final = int(Cell.STATUS_1XX) - 1
_SERVING: Final = Phase.SERVING
_CLOSING: Final = Phase.CLOSING


class State(enum.Enum):
    """Of the response."""

    WAITING = "waiting"  # for http.response.start
    STARTED = "started"  # status and headers are known, nothing is written
    STREAMING = "streaming"  # the head is written, more content is to come
    TRAILERS = "trailers"  # the content is whole, trailer fields are to come
    OVER = "over"  # the response is complete without content, and the application still sends some
    DONE = "done"  # the response is complete
    LOST = "lost"  # the client has gone, or the response was cut


TRANSITIONS: Final = {
    State.WAITING: {State.STARTED, State.LOST},
    State.STARTED: {State.STARTED, State.STREAMING, State.TRAILERS, State.OVER, State.DONE, State.LOST},
    State.STREAMING: {State.TRAILERS, State.DONE, State.LOST},
    State.TRAILERS: {State.DONE, State.LOST},
    State.OVER: {State.DONE, State.LOST},
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

    NONE = "none"  # no content on the wire: HEAD, 204, 205, 304
    LENGTH = "length"
    CHUNKED = "chunked"
    CLOSE = "close"  # by the end of the connection: HTTP/1.0


# Names bound to the module are faster than attributes of the enum.
WAITING: Final = State.WAITING
STARTED: Final = State.STARTED
STREAMING: Final = State.STREAMING
TRAILERS: Final = State.TRAILERS
OVER: Final = State.OVER
DONE: Final = State.DONE
LOST: Final = State.LOST
COMING: Final = Content.COMING


class Answer:
    """One response. `serve_asgi.http.request_cycle.Exchange` adds the request."""

    __slots__ = (
        "_block",
        "_dropped",
        "_framing",
        "_length",
        "_patience",
        "_remaining",
        "_trailer_lines",
        "_wishes",
        "begun",
        "client",
        "close",
        "connection",
        "content",
        "head",
        "sent",
        "service",
        "state",
        "status",
    )

    connection: Http1Connection
    service: Service
    head: Head
    client: Address
    """Whose request it is: the connection's, or who a trusted proxy says."""
    content: Content
    state: State
    status: int
    """As the application has given it, or 0."""
    sent: int
    """Bytes of the response's content written."""
    close: bool
    """Whether the connection ends with this response."""
    begun: float
    """When the request began (time.perf_counter, s)."""
    _block: bytes
    _dropped: float
    _framing: Framing
    _length: int
    """The application's Content-Length, or -1."""
    _patience: asyncio.TimerHandle
    """In state OVER: tells the application, at its end."""
    _remaining: int
    _trailer_lines: bytes
    _wishes: int

    # ---- what the exchange adds

    def wake(self) -> None:
        """Let `receive` look again."""
        raise NotImplementedError

    def discardable(self) -> bool:
        """Whether what is outstanding of the request's content is worth reading to its end."""
        raise NotImplementedError

    # ---- the application's messages

    async def send(self, message: Message) -> None:
        """ASGI `send`. Raises RuntimeError, TypeError or ValueError for a wrong message, ClientDisconnected."""
        state = self.state
        kind = message["type"]
        if state is WAITING:
            if kind == "http.response.start":
                self._start(message)
            else:
                self._before_start(message, kind)
        elif state is STARTED or state is STREAMING:
            if kind == "http.response.body":
                body = message.get("body", b"")
                if type(body) is not bytes:
                    body = _as_bytes(body)
                more = message.get("more_body", False)
                if state is STARTED:
                    self._first(body, more)
                else:
                    self._next(body, more)
                if more and self.connection.write_paused and self.state is STREAMING:
                    await self.connection.writable()
            else:
                await self._send_file(message, kind)
        elif state is TRAILERS:
            if kind != "http.response.trailers":
                raise RuntimeError(f"Expected the message http.response.trailers, got {kind!r}.")
            self._take_trailers(message)
        elif state is OVER:
            await self._pass_over(message, kind)
        elif state is LOST:
            await self._drop()
        elif kind != "http.response.trailers" or not self._wishes & _TRAILERS:
            raise RuntimeError(f"Got the message {kind!r} after the response was complete.")

    async def _drop(self) -> None:
        """A message that nobody will get. Gives way, so that a framework can end a stream that it has cancelled."""
        now = self.service.loop.time()
        self._dropped = self._dropped or now
        if now - self._dropped > DROP_TIME:
            raise ClientDisconnected("The client has disconnected.")
        await asyncio.sleep(0)

    def _before_start(self, message: Message, kind: object) -> None:
        if kind != EARLY_HINT or not self.service.early_hints:
            raise RuntimeError(f"Expected the message http.response.start, got {kind!r}.")
        self._hint(message)

    def _hint(self, message: Message) -> None:
        """An interim response (RFC 8297), if that was offered; passed over where the head is written already."""
        hints = encode_hints(message.get("links") or ())
        if hints and self.head.version == "1.1" and self.state is not STREAMING:
            self.connection.hold(hints)

    def _start(self, message: Message) -> None:
        try:
            status = message["status"]
        except KeyError:
            raise RuntimeError("The message http.response.start has no status.") from None
        if not isinstance(status, int) or status not in STATUS_LINES:
            raise ValueError(f"{status!r} is not the status of a final response (200 to 599).")
        headers = message.get("headers") or ()
        known = self.service.response_fields
        if known.resting or status == 204 or status == RESET_CONTENT:
            block, length, wishes = encode_fields(headers, status == 204 or status == RESET_CONTENT)
        else:
            headers = tuple(headers)
            try:
                fields = known.known.get(headers)
            except (TypeError, ValueError):  # something mutable, which no memory can be asked about
                fields = None
            if fields is None:
                fields = encode_fields(headers, False)
                if len(fields[0]) <= LARGEST_FIELDS and _immutable(headers):
                    known.keep(headers, fields, self.service.cells[_REQUESTS])
            block, length, wishes = fields
        if status in NO_CONTENT:
            wishes |= _BODILESS
        if message.get("trailers", False):
            wishes |= _TRAILERS
        self._block = block
        self._length = length
        self._wishes = wishes
        self.status = int(status)
        self.state = STARTED

    def _first(self, body: bytes, more: bool) -> None:
        """Write the head together with the first content."""
        service, head, length, size = self.service, self.head, self._length, len(body)
        if (
            more
            or self._wishes
            or not head.keep_alive
            or service.phase is not _SERVING
            or not service.persistent
            or head.method == "HEAD"
            or size > LARGE
            or self.content is COMING
        ):
            framing = self._begin_content(size, more)
            start = self._head_bytes(framing, more)
            if self._framing is Framing.NONE:
                self._end_without_content(start, more)
                return
            payload = self._payload(body, more)
            self.sent = size
            connection = self.connection
            if size > LARGE and payload:
                connection.write_large(start)
                start = b""
                connection.write_large(payload)
            elif payload:
                start += payload
            if not more:
                if start:
                    connection.write(start)
                self._content_sent()
            else:
                if start:
                    connection.hold(start)
                self.state = STREAMING
        elif length == size:
            self.sent = size
            self.connection.write(b"".join((STATUS_LINES[self.status], self._block, service.persistent, b"\r\n", body)))
            self._complete()
        elif length < 0:
            self.sent = size
            self.connection.write(
                b"%b%b%bcontent-length: %d\r\n\r\n%b"
                % (STATUS_LINES[self.status], self._block, service.persistent, size, body)
            )
            self._complete()
        else:
            raise RuntimeError(_wrong_length(size, length))

    def _begin_content(self, size: int, more: bool) -> bytes:
        """Decide how the content is framed, of which `size` bytes come first; the field that says so, if one is due."""
        head, length = self.head, self._length
        if head.method == "HEAD" or self._wishes & _BODILESS:
            self._framing = Framing.NONE
            if size:
                self._content_dropped()
            if self.status == RESET_CONTENT:  # one without a length would have content up to the end of the connection
                return b"content-length: 0\r\n"
            if length < 0 and size and not more and not self._wishes & _BODILESS:
                return b"content-length: %d\r\n" % size  # HEAD: what GET would have said (RFC 9110 9.3.2)
        elif length >= 0:
            if size > length or (size != length and not more):
                raise RuntimeError(_wrong_length(size, length))
            self._framing = Framing.LENGTH
            self._remaining = length - size
        elif head.version == "1.1" and (more or self._wishes & (_TRAILERS | _CHUNKED)):
            self._framing = Framing.CHUNKED
            return b"transfer-encoding: chunked\r\n"
        elif more:
            self._framing = Framing.CLOSE
        else:
            self._framing = Framing.LENGTH
            self._remaining = 0
            return b"content-length: %d\r\n" % size
        return b""

    def _go_on_content(self, size: int, more: bool) -> None:
        """`size` further bytes of content: an error if that is not what was announced."""
        if self._framing is Framing.LENGTH:
            if size > self._remaining or (size != self._remaining and not more):
                raise RuntimeError(_wrong_length(self.sent + size, self._length))
            self._remaining -= size

    def _head_bytes(self, framing: bytes, more: bool) -> bytes:
        """The head; decides whether the connection persists. With `more`, content is still to come on the wire."""
        service, head, wishes = self.service, self.head, self._wishes
        self.close = close = (
            not head.keep_alive
            or ((service.close_answers or service.phase is _CLOSING) and not self.connection.requests_wait())
            or not service.config.keep_alive
            or wishes & _CLOSE != 0
            or self._framing is Framing.CLOSE
            or (not (more and self._framing is not Framing.NONE) and self.content is COMING and not self.discardable())
        )
        default = service.default_headers
        return b"".join(
            (
                STATUS_LINES[self.status],
                self._block,
                b"\r\n",
                without(default, wishes) if wishes & _OWN_LINES else default,
                CLOSE if close else service.keep_alive_lines,
                framing,
                b"\r\n",
            )
        )

    def _payload(self, body: bytes, more: bool) -> bytes:
        """`body` as it goes over the wire."""
        framing = self._framing
        if framing is Framing.CHUNKED:  # RFC 9112 7.1
            chunk = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            return chunk if more or self._trailers_follow() else chunk + b"0\r\n\r\n"
        return body

    def _next(self, body: bytes, more: bool) -> None:
        """Write further content."""
        size = len(body)
        framing = self._framing
        if framing is Framing.CHUNKED and more:
            if size:
                self.sent += size
                self.connection.hold(b"%x\r\n%b\r\n" % (size, body))
            return
        self._go_on_content(size, more)
        payload = self._payload(body, more)
        self.sent += size
        if not more:
            if len(payload) > LARGE:
                self.connection.write_large(payload)
            elif payload:
                self.connection.write(payload)
            else:
                self.connection.flush()
            self._content_sent()
        elif payload:
            self.connection.hold(payload)

    def _trailers_follow(self) -> bool:
        """Trailer fields that the client did not ask for are not waited for, and ignored when they come."""
        return self._wishes & _TRAILERS != 0 and self.head.te_trailers and self._framing is Framing.CHUNKED

    def _content_sent(self) -> None:
        if self._trailers_follow():
            self._trailer_lines = b""
            self.state = TRAILERS
        else:
            self._complete()

    def _take_trailers(self, message: Message) -> None:
        self._trailer_lines += encode_trailers(message.get("headers") or ())
        if not message.get("more_trailers", False):
            self.connection.write(b"0\r\n%b\r\n" % self._trailer_lines)
            self._complete()

    # ---- files

    async def _send_file(self, message: Message, kind: object) -> None:
        """http.response.pathsend, http.response.zerocopysend (ASGI extensions); nothing else is legal here."""
        if kind == "http.response.pathsend" and self.state is STARTED:
            content, more = path_of(message, self._length), False
        elif kind == "http.response.zerocopysend":
            content, more = file_of(message), bool(message.get("more_body", False))
        elif kind == EARLY_HINT and self.service.early_hints:
            self._hint(message)
            return
        else:
            raise RuntimeError(f"Expected the message http.response.body, got {kind!r}.")
        with content:
            await self._write_file(content, more)

    async def _write_file(self, content: FileContent, more: bool) -> None:
        connection, size = self.connection, content.left
        if self.state is STARTED:
            framing = self._begin_content(size, more)
            start = self._head_bytes(framing, more)
            if self._framing is Framing.NONE:
                self._end_without_content(start, more)
                return
            self.state = STREAMING
        else:
            self._go_on_content(size, more)
            start = b""
        last = not more and not self._trailers_follow()
        end = b""
        if self._framing is Framing.CHUNKED:
            start += b"%x\r\n" % size if size else b""
            end = (b"\r\n" if size else b"") + (b"0\r\n\r\n" if last else b"")
        if start:
            connection.hold(start)
        await self._send_announced(content)
        if self.state is LOST:
            return
        if more:
            if end:
                connection.hold(end)
        else:
            connection.write(end)
            self._content_sent()

    async def _send_announced(self, content: FileContent) -> None:
        """Send content that the head or a chunk's size has announced: whatever prevents that ends the response.

        An application that goes on after the error, or after having cancelled this, could else have a response pass for
        whole that is too short, and the client take the next one for the rest of it.
        """
        size = content.left
        try:
            try:
                await content.send(self.connection)
            finally:
                self.sent += size - content.left
            if content.left:
                if not self.connection.transport.is_closing():
                    raise RuntimeError(
                        f"The file has become shorter: {size} bytes were announced, {size - content.left} sent."
                    )
                self.lose()
        except BaseException:
            self.end_badly()
            raise

    # ---- responses without content (HEAD; 204, 205, 304)

    def _end_without_content(self, start: bytes, more: bool) -> None:
        """Write the head, with which the response is complete, whatever the application sends behind it.

        RFC 9110 9.3.2 and 6.4.1, RFC 9112 6.3. The connection goes on. With `more` the application does not know yet
        that it speaks to nobody: it may end its content as for a GET if that is soon, and else is told as when a client
        has gone. To tell it at once would be to cancel, in most frameworks, what answers every HEAD.
        """
        self.connection.write(start)
        if not more:
            self._complete()
            return
        self.state = OVER
        self._remaining = DROPPED_AT_MOST
        self._patience = self.service.loop.call_later(DROP_TIME, self._tell_over)
        connection = self.connection
        if connection.behind is None:
            connection.behind = set()
        connection.behind.add(self)  # type: ignore[arg-type]  # an Exchange
        self._count()
        connection.answered(self)  # type: ignore[arg-type]

    async def _pass_over(self, message: Message, kind: object) -> None:
        """What the application sends behind a response that is complete without content. Gives way."""
        if kind == EARLY_HINT and self.service.early_hints:
            return
        if kind != "http.response.body" and kind != "http.response.zerocopysend":
            raise RuntimeError(f"Expected the message http.response.body, got {kind!r}.")
        size = len(message.get("body") or b"")
        if size:
            self._content_dropped()
        if not message.get("more_body", False):
            self._leave_over(DONE)
            return
        self._remaining -= size
        if self._remaining < 0:
            self._tell_over()
        await asyncio.sleep(0)

    def _tell_over(self) -> None:
        """From now on `receive` says that the client has gone, and soon `send` does (`_drop`)."""
        if self.state is OVER:
            self._dropped = 0.0
            self._leave_over(LOST)

    def _leave_over(self, state: State) -> None:
        self._patience.cancel()
        if self.connection.behind:
            self.connection.behind.discard(self)
        self.state = state
        self.wake()

    def _content_dropped(self) -> None:
        """There is content in a response that has none: a mistake, unless it is the answer to HEAD."""
        if self.head.method != "HEAD":
            self.service.mistakes.content(self.head, self.status)

    # ---- ends

    def end_badly(self) -> None:
        """The application is over and the response is not: 500 if that is still possible, else cut it visibly short."""
        if self.state is WAITING or self.state is STARTED:
            self._start({"status": 500, "headers": [(b"content-type", b"text/plain; charset=utf-8")]})
            self._first(b"Internal Server Error", False)
        elif self.state is STREAMING or self.state is TRAILERS:
            self.lose()
            self.connection.cut_short(reset=self.until_close)

    def _complete(self) -> None:
        self.state = DONE
        self._count()
        self.wake()
        self.connection.answered(self)  # type: ignore[arg-type]  # an Exchange

    def lose(self) -> None:
        """The client has gone, or the response is cut: the application hears of it in `receive` and `send`."""
        if self.state is not DONE and self.state is not LOST:
            if self.state is STARTED:
                self.status = 0  # nobody has seen it
            self.refuse()

    def refuse(self) -> None:
        """The connection has refused the request's content (and answered with `status`, if it still could)."""
        if self.state is OVER:
            self._tell_over()
        elif self.state is not DONE and self.state is not LOST:
            self.state = LOST
            self._dropped = 0.0
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
        took = perf_counter() - self.begun
        service.took += took
        service.durations[bisect_left(DURATION_BOUNDS, took)] += 1
        if service.access_log is not None:
            service.access_log.record(self.client, self.head, self.status or CLIENT_GONE, self.sent, self.begun, self)

    # ---- what some formats of the access log ask for (serve_asgi.logs.access_lines.LoggedResponse)

    def peer(self) -> Address:
        """Who is connected."""
        return self.connection.client

    def client_scheme(self) -> str:
        """What the client speaks."""
        raise NotImplementedError

    def identity(self) -> str:
        """The request's id, or ""."""
        return self.service.request_ids.carried(self.head.headers)

    def response_header(self, name: bytes) -> bytes:
        """The value of a field that the application answered with, or b""."""
        block = self._block if self.status else b""
        _, found, after = block.partition(b"\r\n" + name + b": ")
        return after.partition(b"\r\n")[0] if found else b""


def _wrong_length(size: int, length: int) -> str:
    than = "longer" if size > length else "shorter"
    return f"The response body is {than} than its Content-Length: {size} bytes, announced {length}."


def _immutable(headers: tuple[Iterable[bytes], ...]) -> bool:
    """Whether what equals these headers will always mean the same: pairs of bytes, and no objects of other kinds."""
    return all(type(field) is tuple and type(field[0]) is bytes and type(field[1]) is bytes for field in headers)


def _as_bytes(body: object) -> bytes:
    if isinstance(body, (bytes, bytearray, memoryview)):
        return bytes(body)
    if body is None:
        return b""
    raise TypeError(f"The body of a response must be bytes, not {type(body).__name__}.")
