"""The response to one HTTP request: what becomes of the messages that its application sends.

It owns the legality of what the application sends, and that a response is counted, logged and ended, in whichever
protocol: how it is written is `serve_asgi.http.http1_response`'s and `serve_asgi.http2.response`'s. Rules: a response
that is not whole is never made to look whole; a wrong message raises into the application and changes nothing. It must
not know how connections persist, move or close: what it needs of the connection is `ResponseSink`.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Awaitable
from time import perf_counter
from typing import Any, Final, Protocol

from serve_asgi.http.dropped_messages import DroppedBody, drop_message
from serve_asgi.http.request_receive import EARLY_HINT, Request
from serve_asgi.http.response_framing import NONE, BodyFraming, ResponseFraming
from serve_asgi.http.response_head import (
    NO_CONTENT,
    RESET_CONTENT,
    STATUS_LINES,
    ResponseFlag,
    encode_headers,
    encode_hints,
    is_immutable,
    with_field,
)
from serve_asgi.http.response_states import (
    DONE,
    FILE,
    LOST,
    OVER,
    PARTED,
    PARTING,
    RESUMING,
    STARTED,
    STREAMING,
    TRAILERS,
    WAITING,
    ResponseState,
)
from serve_asgi.http.sendfile import FileBody, PieceOutput, file_of, path_of
from serve_asgi.http.survival import EXTENSION, REFUSAL, gone_on
from serve_asgi.http.underlying_tls import UnderlyingTls
from serve_asgi.http.worker_context import Message, WorkerContext, WorkerPhase
from serve_asgi.ipc.peer_address import Address
from serve_asgi.ipc.scoreboard import DURATION_BOUNDS, STREAM_BOUNDS, STREAM_TIME, Cell
from serve_asgi.logs.access_log import LoggedTls

LARGEST_HEADERS: Final = 1024
"""Encoded response headers of more bytes are not kept for the next response."""

CLIENT_GONE: Final = 499
"""What the access log shows for a request whose client left before there was a status."""

_CLOSE: Final = int(ResponseFlag.CLOSE)
_OWN_LINES: Final = int(ResponseFlag.DATE | ResponseFlag.SERVER)
_TRAILERS: Final = int(ResponseFlag.TRAILERS)
_BODILESS: Final = int(ResponseFlag.BODILESS)
_IN_FLIGHT: Final = int(Cell.IN_FLIGHT)
_REQUESTS: Final = int(Cell.REQUESTS)
_STATUS: Final = int(Cell.STATUS_1XX) - 1
_RESET_CONTENT: Final = RESET_CONTENT
_DURATION_BOUNDS: Final = DURATION_BOUNDS
_SERVING: Final = WorkerPhase.SERVING
_CLOSING: Final = WorkerPhase.CLOSING
_HANDING_OVER: Final = WorkerPhase.HANDING_OVER


class ResponseLife(Protocol):
    """The life of a response that is to survive its worker (`serve_asgi.http.surviving_response`)."""

    def update(self, message: Message) -> None:
        """The application opts in, and gives the state of the next life."""

    def send(self, message: Message, kind: object) -> None:
        """A message in state PARTING or RESUMING."""

    def may_end(self) -> None:
        """What may have been in the way of its end is over."""

    def end(self) -> bool:
        """The application's call has ended. Whether its life has with it, so that there is nothing more to do."""

    def fail(self, reason: str) -> None:
        """The response cannot go on: it is lost, and cut."""


class ResponseSink(Protocol):
    """The connection, or the stream of one, as far as a response needs it."""

    @property
    def output(self) -> PieceOutput:
        """What is written through."""

    @property
    def life(self) -> ResponseLife | None:
        """Of the response in progress, if that is to survive."""

    @property
    def client(self) -> Address:
        """Who is connected."""

    @property
    def tls(self) -> UnderlyingTls | None:
        """What stands between the socket and it."""

    def life_of_response(self) -> ResponseLife | None:
        """Of the response in progress, whether it is to survive or not; None if it cannot."""

    def refuse_life(self, reason: str) -> None:
        """The application of a next life cannot go on."""

    def response_complete(self, response: Response) -> None:
        """All of it is written; in state OVER, the application still sends."""

    def response_left(self, response: Response) -> None:
        """One that was in state OVER no longer is."""

    def response_cut(self, reset: bool) -> None:
        """The response ends here: end the connection so that the client sees that it is not whole.

        `reset`: an orderly end of the connection would pass for the end of the body.
        """


class Response:
    """One response. What `raise NotImplementedError` is the protocol's."""

    __slots__ = (
        "_block",
        "_connection",
        "_dropped_body",
        "_dropped_since",
        "_first_at",
        "_flags",
        "_framing",
        "_length",
        "close",
        "head",
        "output",
        "request",
        "sent",
        "state",
        "status",
        "worker",
    )

    _block: bytes
    """The application's headers, each preceded by CRLF."""
    _dropped_body: DroppedBody
    """In state OVER."""
    _dropped_since: float
    """In state LOST: when the first message that nobody can get was sent (loop time, s), or 0."""
    _length: int
    """The application's Content-Length, or -1."""
    _flags: int

    def __init__(self, connection: ResponseSink, worker: WorkerContext, request: Request) -> None:
        self._connection = connection
        self.output: PieceOutput = connection.output
        self.worker = worker
        self.request = request
        self.head = self.request.head
        self.state = WAITING
        self.status = 0
        """As the application has given it, or 0."""
        self.sent = 0
        """Bytes of the response's body written."""
        self.close = False
        """Whether the connection ends with this response."""
        self._framing: ResponseFraming | None = None
        self._first_at = 0.0
        """When the first byte was written (time.perf_counter, s), if more was to follow; or 0."""

    # ---- the application's messages

    def send(self, message: Message) -> Awaitable[None] | None:
        """Take a message of ASGI `send`, which awaits what is returned: None if there is nothing to wait for.

        Raises RuntimeError, TypeError or ValueError for a wrong message; what it returns, ClientDisconnected.
        """
        state = self.state
        kind = message["type"]
        if state is WAITING:
            if kind == "http.response.start":
                self._start(message)
            else:
                self._before_start(message, kind)
        elif state is STARTED or state is STREAMING:
            if kind != "http.response.body":
                return self._send_file(message, kind)
            body = message["body"] if "body" in message else b""  # noqa: SIM401 (compiled, twice as fast as get())
            if type(body) is not bytes:
                body = as_bytes(body)
            more = message["more_body"] if "more_body" in message else False  # noqa: SIM401
            if state is STARTED:
                self._first(body, more)
            else:
                self.write_next(body, more)
            if more and self.output.paused and self.state is STREAMING:
                return self.output.writable()
        elif state is TRAILERS:
            if kind != "http.response.trailers":
                raise RuntimeError(f"Expected the message http.response.trailers, got {kind!r}.")
            self._take_trailers(message)
        elif state is OVER:
            return self._pass_over(message, kind)
        elif state is LOST:
            return self._drop()
        elif state is not DONE:
            self._send_between_lives(message, kind)
        elif kind != "http.response.trailers" or not self._flags & _TRAILERS:
            raise RuntimeError(f"Got the message {kind!r} after the response was complete.")
        return None

    async def _drop(self) -> None:
        self._dropped_since = await drop_message(self.worker.loop, self._dropped_since)

    def _before_start(self, message: Message, kind: object) -> None:
        if kind == EARLY_HINT and self.worker.early_hints:
            self._hint(message)
        elif not self._is_of_survival(message, kind):
            raise RuntimeError(f"Expected the message http.response.start, got {kind!r}.")

    def _hint(self, message: Message) -> None:
        """An interim response (RFC 8297), if that was offered; passed over where the head is written already."""
        hints = encode_hints(message.get("links") or ())
        if hints and self.state is not STREAMING:
            self._write_hints(hints)

    def _start(self, message: Message) -> None:
        try:
            status = message["status"]
        except KeyError:
            raise RuntimeError("The message http.response.start has no status.") from None
        if not isinstance(status, int) or status not in STATUS_LINES:
            raise ValueError(f"{status!r} is not the status of a final response (200 to 599).")
        headers = (message["headers"] if "headers" in message else None) or ()  # noqa: SIM401
        worker = self.worker
        known = worker.encoded_headers
        if known.resting or status == 204 or status == _RESET_CONTENT:
            block, length, flags = encode_headers(headers, status == 204 or status == _RESET_CONTENT)
        else:
            headers = tuple(headers)
            try:
                fields = known.known.get(headers)
            except (TypeError, ValueError):  # something mutable, which no memory can be asked about
                fields = None
            if fields is None:
                fields = encode_headers(headers, False)
                if len(fields[0]) <= LARGEST_HEADERS and is_immutable(headers):
                    known.keep(headers, fields, worker.cells[_REQUESTS])
            block, length, flags = fields
        if worker.request_ids.echoes:
            block = with_field(block, worker.request_ids.name, self.request.identity())
        if status in NO_CONTENT:
            flags |= _BODILESS
        if "trailers" in message and message["trailers"]:  # noqa: RUF019
            flags |= _TRAILERS
        self._block = block
        self._length = length
        self._flags = flags
        self.status = int(status)
        self.state = STARTED

    def _frame(self, size: int, more: bool) -> ResponseFraming:
        framing = ResponseFraming(self.head, self.status, self._flags, self._length, size, more)
        if more:
            self._first_at = perf_counter()
        if framing.kind is NONE and size:
            self._body_dropped()
        self._framing = framing
        return framing

    def _body_sent(self, framing: ResponseFraming) -> None:
        if framing.trailers_follow:
            self.state = TRAILERS
        else:
            self._complete()

    # ---- what each protocol has of its own

    def _write_hints(self, hints: bytes) -> None:
        """Write an interim response, given as HTTP/1.1 has it."""
        raise NotImplementedError

    def _first(self, body: bytes, more: bool) -> None:
        """In state STARTED: write the head together with the first of the body."""
        raise NotImplementedError

    def write_next(self, body: bytes, more: bool) -> None:
        """Write further body."""
        raise NotImplementedError

    def _take_trailers(self, message: Message) -> None:
        """Take trailer fields, and write them if they are the last."""
        raise NotImplementedError

    async def _write_file(self, file: FileBody, more: bool) -> None:
        """Write a part of the body that is in a file, and the head before it where that is not written."""
        raise NotImplementedError

    async def _copy(self, file: FileBody) -> None:
        """Send of a file what has been announced; some of it is left if that is not possible."""
        raise NotImplementedError

    # ---- files

    async def _send_file(self, message: Message, kind: object) -> None:
        """http.response.pathsend, http.response.zerocopysend (ASGI extensions); nothing else is legal here."""
        if kind == "http.response.pathsend" and self.state is STARTED:
            file, more = path_of(message, self._length), False
        elif kind == "http.response.zerocopysend":
            file, more = file_of(message), bool(message.get("more_body", False))
        elif kind == EARLY_HINT and self.worker.early_hints:
            self._hint(message)
            return
        elif self._is_of_survival(message, kind):
            return
        else:
            raise RuntimeError(f"Expected the message http.response.body, got {kind!r}.")
        if self.state is STARTED:
            self._first_at = perf_counter()
        with file:
            await self._write_file(file, more)

    async def _send_announced(self, file: FileBody) -> None:
        """Send a file that the head or a chunk's size has announced: whatever prevents that ends the response.

        An application that goes on after the error, or after having cancelled this, could else have a response pass for
        whole that is too short, and the client take the next one for the rest of it.
        """
        size = file.left
        try:
            try:
                await self._copy(file)
            finally:
                self.sent += size - file.left
            if file.left:
                if not self.output.is_closing():
                    raise RuntimeError(
                        f"The file has become shorter: {size} bytes were announced, {size - file.left} sent."
                    )
                self.lose()
        except BaseException:
            self.end_badly()
            raise

    # ---- responses without a body (HEAD; 204, 205, 304)

    def _end_without_body(self, more: bool) -> None:
        """The head is written, and with it the response is complete, whatever the application sends after it.

        RFC 9110 9.3.2 and 6.4.1, RFC 9112 6.3. The connection goes on. With `more` the application does not know yet
        that nobody listens: it may end its body as for a GET if it does so soon; otherwise it is told as if the client
        had gone. To tell it at once would, in most frameworks, cancel whatever answers a HEAD.
        """
        if not more:
            self._complete()
            return
        self.state = OVER
        self._dropped_body = DroppedBody(self.worker.loop, self._tell_over)
        self._count()
        self._connection.response_complete(self)

    async def _pass_over(self, message: Message, kind: object) -> None:
        """What the application sends after a response that is complete without a body. Yields to other tasks."""
        if kind == EARLY_HINT and self.worker.early_hints:
            return
        if kind != "http.response.body" and kind != "http.response.zerocopysend":
            raise RuntimeError(f"Expected the message http.response.body, got {kind!r}.")
        size = len(message.get("body") or b"")
        if size:
            self._body_dropped()
        if not message.get("more_body", False):
            self._leave_over(DONE)
            return
        if not self._dropped_body.take(size):
            self._tell_over()
        await asyncio.sleep(0)

    def _tell_over(self) -> None:
        """From now on `receive` says that the client has gone, and soon `send` will (`drop_message`)."""
        if self.state is OVER:
            self._dropped_since = 0.0
            self._leave_over(LOST)

    def _leave_over(self, state: ResponseState) -> None:
        self._dropped_body.end()
        self._connection.response_left(self)
        self.state = state
        self.request.ended = True
        self.request.wake()

    def _body_dropped(self) -> None:
        """There is a body in a response that has none: a mistake, unless it is the response to HEAD."""
        if self.head.method != "HEAD":
            self.worker.dropped_bodies.report(self.head, self.status)

    # ---- lives: see serve_asgi.http.surviving_response

    def write_head(self) -> None:
        """In state STARTED: what the client gets at the beginning of the body, before there is any."""
        self._first(b"", True)

    def _go_on_streaming(self) -> None:
        self.state = STREAMING
        if self.worker.phase is not _SERVING and self._connection.life is not None:
            self._connection.life.may_end()

    def _is_of_survival(self, message: Message, kind: object) -> bool:
        """Take a message with which an application says what `serve_asgi.survive` would."""
        if kind == EXTENSION:
            life = self._connection.life_of_response()
            if life is not None:
                life.update(message)
            return life is not None
        if kind == REFUSAL:
            self._connection.refuse_life(str(message.get("reason") or ""))
        return kind == REFUSAL

    def _send_between_lives(self, message: Message, kind: object) -> None:
        """In the states PARTING, PARTED and RESUMING, and in FILE."""
        life = self._connection.life
        if self.state is PARTED:
            raise gone_on()
        if self.state is FILE or life is None:
            raise RuntimeError(f"Got the message {kind!r} while a file was sent.")
        if not self._is_of_survival(message, kind) and (kind != EARLY_HINT or not self.worker.early_hints):
            life.send(message, kind)

    def is_settled(self) -> bool:
        """The application has returned. Whether nothing is left to be done for its response."""
        return self.state is DONE or self.state is LOST or self.life_ended()

    def call_ended(self) -> None:
        """The application's call has ended, with or without an exception: the request is no longer in flight."""
        self.worker.cells[_IN_FLIGHT] -= 1

    def life_ended(self) -> bool:
        """The application's call has ended. Whether the response goes on in another one, or has been ended."""
        life = self._connection.life
        return life is not None and life.end()

    def travels(self) -> dict[str, Any]:
        """What its next life needs. JSON."""
        assert self._framing is not None
        return {
            "status": self.status,
            "headers": self._block.decode("latin-1"),
            "length": self._length,
            "flags": self._flags,
            "sent": self.sent,
            "close": self.close,
            "framing": self._framing.travels(),
            "first": self._first_at,
        }

    def resume(self, values: dict[str, Any]) -> None:
        """Be the next life of what has travelled. Raises LookupError or ValueError if it is nothing of that kind."""
        self._block = values["headers"].encode("latin-1")
        self._length, self._flags = values["length"], values["flags"]
        self.status, self.sent, self.close = values["status"], values["sent"], values["close"]
        self._framing = ResponseFraming.resumed(values["framing"])
        self._first_at = float(values.get("first", 0.0))
        self.state = RESUMING

    def has_length(self) -> bool:
        """Whether the application has announced how long the body is."""
        return self._length >= 0

    def body_may_follow(self) -> bool:
        """Whether what was announced leaves room for more body. In state PARTING."""
        assert self._framing is not None
        return not self._framing.is_full()

    # ---- ends

    def end_badly(self) -> None:
        """The application is over and the response is not: 500 if that is still possible, else cut it visibly short."""
        if self.state is WAITING or self.state is STARTED:
            self._start({"status": 500, "headers": [(b"content-type", b"text/plain; charset=utf-8")]})
            self._first(b"Internal Server Error", False)
        elif self.state is STREAMING or self.state is FILE or self.state is TRAILERS:
            self.lose()
            self._connection.response_cut(self.until_close)
        elif (self.state is PARTING or self.state is RESUMING) and self._connection.life is not None:
            self._connection.life.fail("its handler failed at the end of its life, or at the beginning of the next one")

    def _complete(self) -> None:
        self.state = DONE
        self._count()
        request = self.request
        request.ended = True
        if request.waiters:
            request.wake()
        self._connection.response_complete(self)

    def lose(self) -> None:
        """The client has gone, or the response is cut: the application hears of it in `receive` and `send`."""
        if self.state is not DONE and self.state is not LOST:
            if self.state is STARTED:
                self.status = 0  # nobody has seen it
            self.refuse()

    def refuse(self) -> None:
        """The connection has refused the request's body (and answered with `status`, if it still could)."""
        if self.state is OVER:
            self._tell_over()
        elif self.state is not DONE and self.state is not LOST:
            self.state = LOST
            self._dropped_since = 0.0
            self._count()
            self.request.ended = True
            self.request.wake()

    @property
    def until_close(self) -> bool:
        """Whether the end of the connection would pass for the end of the body that is being written."""
        return self._framing is not None and self._framing.kind is BodyFraming.CLOSE

    def _count(self) -> None:
        worker, request = self.worker, self.request
        cells = worker.cells
        cells[_REQUESTS] += 1
        if self.status:
            cells[_STATUS + self.status // 100] += 1
        took = perf_counter() - request.begun
        if took <= STREAM_TIME or not self._count_stream(took):
            worker.took += took
            number = 0
            for bound in _DURATION_BOUNDS:  # most take as long as one of the first
                if took <= bound:
                    break
                number += 1
            worker.durations[number] += 1
        if worker.access_log is not None:
            status = self.status or CLIENT_GONE
            worker.access_log.record(request.client, self.head, status, self.sent, request.begun, self)

    def _count_stream(self, took: float) -> bool:
        """Whether this was a stream (`STREAM_TIME`), which is then counted as such; `took`: from its request on (s)."""
        first = self._first_at - self.request.begun
        if first < 0 or took - first <= STREAM_TIME:
            return False
        cells = self.worker.cells
        cells[Cell.STREAM_FIRST_TOTAL] += int(first * 1e9)
        cells[Cell.STREAM_TIME_TOTAL] += int(took * 1e9)
        cells[Cell.STREAM_FIRST_0 + bisect_left(DURATION_BOUNDS, first)] += 1
        cells[Cell.STREAM_TIME_0 + bisect_left(STREAM_BOUNDS, took)] += 1
        return True

    # ---- what some formats of the access log ask for (serve_asgi.logs.access_log.LoggedResponse)

    def peer(self) -> Address:
        """Who is connected."""
        return self._connection.client

    def client_scheme(self) -> str:
        """The scheme that the client used."""
        return self.request.client_scheme()

    def tls(self) -> LoggedTls | None:
        """What was negotiated."""
        return None if self._connection.tls is None else self._connection.tls.info

    def identity(self) -> str:
        """The request's id, or ""."""
        return self.request.identity()

    def response_header(self, name: bytes) -> bytes:
        """The value of a header that the application has set, or b""."""
        block = self._block if self.status else b""
        _, found, after = block.partition(b"\r\n" + name + b": ")
        return after.partition(b"\r\n")[0] if found else b""


def as_bytes(body: object) -> bytes:
    if isinstance(body, (bytes, bytearray, memoryview)):
        return bytes(body)
    if body is None:
        return b""
    raise TypeError(f"The body of a response must be bytes, not {type(body).__name__}.")
