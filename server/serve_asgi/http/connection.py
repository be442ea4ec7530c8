"""HTTP/1.1 on one client connection: from bytes to requests, one after another.

It owns the bytes that have arrived and belong to no request yet, and decides when a request begins and what follows it.
What a client pipelines stays raw bytes until its turn comes, and travels as such. Rules: bytes are never lost, never
read twice; the hot path is one data_received, one call of the application, one write. It must not know how the worker
accepts, retires or hands over, nor what a parser does; how a connection ends is
`serve_asgi.http.connection_lifecycle`'s.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Final, cast

from serve_asgi.http import health
from serve_asgi.http.client_socket import is_readable
from serve_asgi.http.connection_lifecycle import INFINITY, PEEK_TIME, Lifecycle, State
from serve_asgi.http.hand_over_record import TravelRecord
from serve_asgi.http.request import Request
from serve_asgi.http.request_body import RequestBody
from serve_asgi.http.request_cycle import run_cycle
from serve_asgi.http.request_head import BadRequest, Head, endless_target, hopeless
from serve_asgi.http.response import DONE, OVER, STARTED, WAITING, Response
from serve_asgi.http.response_head import CLOSE, plain_answer
from serve_asgi.http.worker_context import Phase, Service
from serve_asgi.ipc.address import own_end_of, peer_of
from serve_asgi.ipc.scoreboard import Cell
from serve_asgi.logs.access_lines import RefusedRequest, ServerResponse
from serve_asgi.websocket.connection import WebSocketConnection

READ_LIMIT: Final = 65536
"""Bytes that may wait unread (content the application has not taken; requests pipelined) before reading is paused."""

FRESH_TIME: Final = 2.0
"""A worker that retires with nobody to hand over to waits this long (s) for the first request of a new connection."""

DISCARD_TIME: Final = 15.0
"""How long (s) the rest of a request that was answered early may take to arrive."""

BODY_WINDOW: Final = 15.0
"""The rate at which a request's content arrives is the average over this long (s)."""

RETRY_AFTER: Final = 1
"""Seconds after which a client that found the worker overloaded may come again."""

BATCH: Final = 32
"""Pipelined requests that are answered in a row before others have their turn."""

MAX_EMPTY_LINES: Final = 8
"""Empty lines that are skipped on one connection, besides one for each request."""

_EAGER: Final = sys.version_info >= (3, 12)
_CONNECTIONS: Final = int(Cell.CONNECTIONS)
_IN_FLIGHT: Final = int(Cell.IN_FLIGHT)
_REQUESTS: Final = int(Cell.REQUESTS)
_STATUS: Final = int(Cell.STATUS_1XX) - 1
_SERVING: Final = Phase.SERVING
_CR: Final = 13
_P: Final = ord("P")
IDLE: Final = State.IDLE
REQUEST: Final = State.REQUEST
DISCARDING: Final = State.DISCARDING
FLUSHING: Final = State.FLUSHING
LINGERING: Final = State.LINGERING
LEAVING: Final = State.LEAVING


class Http1Connection(Lifecycle):
    """One client connection; see `serve_asgi.http.worker_context.Connection` for what the worker asks of it.

    With a `record` it goes on where another worker left: addresses, deadline, number of requests and leftover bytes are
    the record's, and the leftover is processed as soon as the transport is attached.
    """

    __slots__ = ("_empty_lines", "_scanned", "_unread_at_deadline", "read_paused")

    def __init__(self, service: Service, record: TravelRecord | None = None) -> None:
        super().__init__(service, record)
        self.read_paused = False
        self._scanned = 0  # bytes of the buffer that hold no end of a head
        self._empty_lines = 0  # before request lines
        self._unread_at_deadline = False  # IDLE: the last response had not been read when the deadline passed

    # ---- what the transport says

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Attached: serve, or go on where the other worker left."""
        self.transport = self.output.transport = cast(asyncio.Transport, transport)
        service = self.service
        service.connections.add(self)
        service.cells[_CONNECTIONS] += 1
        self._become(IDLE)
        record, self._record = self._record, None
        if record is None:
            self.client = self.client or peer_of(transport)
            self.server = self.server or own_end_of(transport)
            self.trusted = service.forwarding.trusts(self.client)
            self.deadline = service.loop.time() + service.config.first_byte_timeout
        else:
            self.client, self.server, self.scheme = record.client, record.server, record.scheme
            self.trusted = service.forwarding.trusts(record.client) if record.trusted is None else record.trusted
            self.requests = record.requests
            self.deadline = record.deadline
            if record.leftover:
                self._buffer += record.leftover
                service.loop.call_soon(self._go_on, record)
                return
        if service.phase is not _SERVING:
            service.loop.call_soon(self._settle)

    def _go_on(self, record: TravelRecord) -> None:
        """Process what the other worker had read.

        Not in `connection_made`: uvloop begins to read after it, whatever it has said of reading.
        """
        if self.state is not IDLE:
            return
        self._settle()
        if self.state is IDLE and self.requests == record.requests:
            self.deadline = min(self.deadline, record.deadline)  # half a head: its time is not renewed

    def data_received(self, data: bytes) -> None:
        """Bytes from the client."""
        self.service.received += len(data)
        state = self.state
        if state is IDLE:
            if not self._buffer and not self.output.paused and data[0] != _CR:
                end = data.find(b"\r\n\r\n") + 4
                if 3 < end <= self.service.max_head_size:
                    if end == len(data):
                        self._begin(data, b"")
                        return
                    if data[0] == _P:  # POST, PUT, PATCH: content follows; else, further requests do
                        self._begin(data[:end], data[end:])
                        return
            self._buffer += data
            self._advance()
            if self.output.paused:  # the last answer is not read: what follows it waits, and is bounded
                self.adjust_reading()
        elif state is REQUEST or state is DISCARDING:
            response = self.response
            assert response is not None
            body = response.request.body
            if body is not None and not body.whole:
                self._feed_body(response, body, data)
            else:
                self._buffer += data
            self.adjust_reading()
        elif state is FLUSHING or state is LINGERING:
            self._allowance_spent(len(data))
        else:
            self._buffer += data  # LEAVING: nothing is lost if it stays after all

    def eof_received(self) -> bool:
        """The client has shut down its write side; True keeps the transport for what is still to be written."""
        self.eof = True
        state = self.state
        if state is REQUEST:
            response = self.response
            assert response is not None
            if response.request.body_is_coming():  # this request will never be whole
                response.lose()
                self.response_cut(reset=response.until_close)
                return False
            response.request.wake()
            return True
        if state is IDLE:
            self.output.flush()
            return b"\r\n\r\n" in self._buffer  # a whole request waits for its turn
        return state is FLUSHING or state is LEAVING

    def connection_lost(self, exc: Exception | None) -> None:
        """The transport is closed, by whichever side."""
        response, self.response = self.response, None
        self._lost()
        self.deadline = INFINITY
        self._buffer.clear()
        if response is not None:
            response.lose()
        if self.still_sending:
            for each in list(self.still_sending):
                each.lose()
        output = self.output
        output.paused = False
        output.drop_held()
        output.wake_writers()
        self._close_books()

    # ---- from bytes to requests

    def _advance(self) -> None:
        """Start the requests whose heads are whole, one after another; say until when the next head must be."""
        output = self.output
        if self.state is not IDLE or output.paused:
            return  # comes again from resume_writing or after the response
        left = BATCH
        output.batching = True
        try:
            while left and self._start_next() and self.state is IDLE and not output.paused:
                left = left - 1 if self.service.phase is _SERVING else 0
        finally:
            output.batching = False
            output.flush()
        if self.state is IDLE and left < BATCH:
            self.adjust_reading()
            if not left or output.paused:
                self.service.loop.call_soon(self._settle)

    def _start_next(self) -> bool:
        """Start the request at the buffer's beginning if its head is whole; True if more may be done."""
        buffer = self._buffer
        while buffer[:2] == b"\r\n":  # RFC 9112 2.2: empty lines before a request line are skipped
            del buffer[:2]
            self._scanned = 0
            self._empty_lines += 1
            if self._empty_lines > MAX_EMPTY_LINES + self.requests:
                self._refuse(BadRequest(400, "There are too many empty lines before the request."))
                return False
        if not buffer:
            if self.eof:
                self._close()
            return False
        limit = self.service.max_head_size
        end = buffer.find(b"\r\n\r\n", max(self._scanned - 3, 0)) + 4
        if end == 3:
            self._await_head(limit)
        elif end > limit:
            self._refuse(self._too_large(limit))
        else:
            head = bytes(buffer[:end])
            del buffer[:end]
            self._scanned = 0
            self._begin(head, b"")
            return True
        return False

    def _await_head(self, limit: int) -> None:
        """A part of a head has arrived: it has a time limit, a size limit, and it must look like one."""
        buffer = self._buffer
        if len(buffer) >= limit:
            self._refuse(self._too_large(limit))
            return
        if buffer == b"\r":
            return  # half an empty line
        longest = self.service.config.max_target_size
        refused = endless_target(buffer, longest) if len(buffer) > longest else None
        refused = refused or hopeless(buffer, self._scanned)
        if refused is not None:
            self._refuse(refused)
        elif self.eof:
            self._close()
        else:
            if self._scanned == 0:
                self.deadline = self.service.loop.time() + self.service.config.head_timeout
            self._scanned = len(buffer)

    def _too_large(self, limit: int) -> BadRequest:
        """The verdict on a head of more than `limit` bytes: the same in whatever pieces it has arrived."""
        start = self._buffer[:limit]
        return (
            endless_target(start, self.service.config.max_target_size)
            or hopeless(start, 0)
            or BadRequest(431, f"The request head is larger than {limit} bytes.")
        )

    def _begin(self, data: bytes, rest: bytes) -> None:
        """Start the request whose whole head is `data`; `rest` followed it."""
        service = self.service
        cells = service.cells
        try:
            head = service.heads.read(data, cells[_REQUESTS])
        except BadRequest as refused:
            refused = endless_target(data, service.config.max_target_size) or refused
            self._refuse(refused, with_body=not data.startswith(b"HEAD "))
            return
        if head.path == service.health_path and head.method in health.METHODS:
            self._answer_health(head, rest)
            return
        if service.published[0] > service.shared.applied:
            service.catch_up()
        if head.websocket and not head.body:
            self._upgrade(head, rest)
            return
        if service.max_concurrency and cells[_IN_FLIGHT] >= service.max_concurrency:
            self._overloaded(head, rest)
            return
        request = Request(self, service, head)
        self.response = response = Response(self, service, request)
        self.state = REQUEST
        self.deadline = INFINITY
        body = request.body
        if body is None:
            if rest:
                self._buffer += rest
            if self._buffer:
                self.adjust_reading()
        else:
            if self._buffer:
                rest = bytes(self._buffer)
                self._buffer.clear()
            if rest:
                self._feed_body(response, body, rest)
                if self.state is not REQUEST:
                    return  # malformed
            if not body.whole and service.config.min_body_rate:
                self.deadline = service.loop.time() + BODY_WINDOW
            if self._buffer or body.unread > READ_LIMIT or self.read_paused:
                self.adjust_reading()
        context = service.context.copy()
        cells[_IN_FLIGHT] += 1  # until the end of run_cycle(); now, since a task that is not eager begins later
        cycle = run_cycle(service, request, response)
        if _EAGER:
            task = asyncio.Task(cycle, loop=service.loop, context=context, eager_start=True)  # type: ignore[call-arg,unused-ignore]
        else:
            task = service.loop.create_task(cycle, context=context)
        if not task.done():
            request.task = task
            service.tasks.add(task)
            task.add_done_callback(service.tasks.discard)

    def _feed_body(self, response: Response, body: RequestBody, data: bytes) -> None:
        """Bytes of the request's body have arrived, perhaps more than it."""
        try:
            rest = body.feed(data)
        except BadRequest as refused:
            self._refuse_body(response, refused)
            return
        if response.request.waiters and (body.unread or body.whole):
            response.request.wake()
        if rest is not None:
            if rest:
                self._buffer += rest
            if self.state is DISCARDING:
                self.response = None
                self._rest()

    def adjust_reading(self) -> None:
        """Pause reading while too much has arrived that nobody has taken, and read on otherwise."""
        response = self.response
        if self.state is REQUEST and response is not None:
            body = response.request.body
            pause = (body is not None and body.unread > READ_LIMIT) or len(self._buffer) > READ_LIMIT
        elif self.state is IDLE:
            pause = len(self._buffer) > READ_LIMIT + self.service.max_head_size
        else:
            pause = self.state is LEAVING
        if pause is not self.read_paused and not self.transport.is_closing() and not self.eof:
            self.read_paused = pause
            if pause:
                self.transport.pause_reading()
            else:
                self.transport.resume_reading()
                if self.state is REQUEST:
                    self.expect_body()

    # ---- responses

    def response_complete(self, response: Response) -> None:
        """The response is complete (written to the transport)."""
        self.requests += 1
        if response.state is OVER:
            if self.still_sending is None:
                self.still_sending = set()
            self.still_sending.add(response)
        body = response.request.body
        if response.close:
            self.response = None
            if response.head.keep_alive or body is not None or self._buffer:
                self._finish()
            else:
                self._close()  # the client has said that this was its last: nothing more comes that could be reset
        elif body is not None and not body.whole:
            if body.discardable():
                if response.state is DONE:
                    body.drop()
                self._become(DISCARDING)
                self.deadline = self.service.loop.time() + DISCARD_TIME
                self.adjust_reading()
            else:
                self.response = None
                self._finish()
        else:
            self.response = None
            self._rest()

    def response_left(self, response: Response) -> None:
        """An application has ended that went on behind its response, or has been told that nobody listens."""
        if self.still_sending:
            self.still_sending.discard(response)
        if response.request.body is not None:
            response.request.body.drop()

    def _rest(self) -> None:
        """No request is in progress any more. What is next is decided soon, not inside the application's `send`."""
        service = self.service
        self.state = IDLE
        self._unread_at_deadline = False
        self.deadline = service.loop.time() + service.keep_alive
        if not self.output.batching and (self._buffer or self.read_paused or self.eof or service.phase is not _SERVING):
            self.adjust_reading()
            service.loop.call_soon(self._settle)

    def _settle(self) -> None:
        """An idle connection goes on, leaves, or ends, as the worker's phase has it."""
        if self.state is not IDLE:
            return
        self.output.flush()
        service = self.service
        if service.phase is _SERVING or self.eof:
            self._advance()
            self.adjust_reading()
        elif self.transport.get_write_buffer_size():
            # Comes again from resume_writing when every byte is with the kernel.
            self.transport.set_write_buffer_limits(0)
        elif service.phase is Phase.TRAVELLING:
            if service.departure is not None:
                service.departure(self)
        elif self._buffer:
            self._advance()
            self.adjust_reading()
        elif is_readable(self.transport):
            self.deadline = service.loop.time() + PEEK_TIME
        elif not self.requests:
            self.deadline = min(self.deadline, service.loop.time() + FRESH_TIME)
        else:
            self._finish()

    def _refuse(self, refused: BadRequest, with_body: bool = True) -> None:
        """Answer what is no request that could be served, and close."""
        service = self.service
        service.cells[_REQUESTS] += 1
        service.cells[_STATUS + refused.status // 100] += 1
        text = refused.reason + "\n"
        self._buffer.clear()
        self.output.write(plain_answer(refused.status, text, service.default_headers, CLOSE, with_body))
        if service.access_log is not None:
            size = len(text) if with_body else 0
            unheard = ServerResponse(self.client, self.scheme)
            service.access_log.record(self.client, RefusedRequest(), refused.status, size, time.perf_counter(), unheard)
        self._finish()

    def _refuse_body(self, response: Response, refused: BadRequest) -> None:
        """The request's body is malformed: say so if nothing else has been said, and end the connection."""
        unanswered = response.state is WAITING or response.state is STARTED
        in_time = unanswered or self.state is DISCARDING
        if unanswered:
            response.status = refused.status
            text, with_body = refused.reason + "\n", response.head.method != "HEAD"
            self.output.write(plain_answer(refused.status, text, self.service.default_headers, CLOSE, with_body))
        response.refuse()
        self.response = None
        if in_time:
            self._finish()
        else:
            self.response_cut(reset=response.until_close)

    def requests_wait(self) -> bool:
        """Whether more has been read behind the present request: it is answered before the connection is closed."""
        return bool(self._buffer)

    def _answer_health(self, head: Head, rest: bytes) -> None:
        service = self.service
        close = self._ends_with(head, rest)
        self.output.write(health.answer(service, head, close))
        self._answered_at_once(close, rest)

    def _ends_with(self, head: Head, rest: bytes) -> bool:
        """Whether an answer of the server's own, which takes no content, is the connection's last."""
        service = self.service
        return (
            not head.keep_alive
            or head.body != 0
            or ((service.close_answers or service.phase is Phase.CLOSING) and not (rest or self._buffer))
            or not service.config.keep_alive
        )

    def _answered_at_once(self, close: bool, rest: bytes) -> None:
        self.requests += 1
        if close:
            self._finish()
        else:
            self._buffer += rest
            self._rest()

    def _overloaded(self, head: Head, rest: bytes) -> None:
        """As many requests are in progress as the worker takes: this one is refused, and may come again soon."""
        service = self.service
        service.cells[_REQUESTS] += 1
        service.cells[_STATUS + 5] += 1
        close = self._ends_with(head, rest)
        lines = (CLOSE if close else service.keep_alive_lines) + b"retry-after: %d\r\n" % RETRY_AFTER
        text, with_body = "The server is busy; try again soon.\n", head.method != "HEAD"
        self.output.write(plain_answer(503, text, service.default_headers, lines, with_body))
        if service.access_log is not None:
            size, unheard = len(text) if with_body else 0, ServerResponse(self.client, self.scheme)
            service.access_log.record(self.client, head, 503, size, time.perf_counter(), unheard)
        self._answered_at_once(close, rest)

    def _upgrade(self, head: Head, rest: bytes) -> None:
        """Give the transport to a WebSocket connection, together with what has been read behind the request."""
        service, transport = self.service, self.transport
        self.output.flush()
        leftover = rest + self._buffer
        self._buffer.clear()
        if self.read_paused:
            self.read_paused = False
            transport.resume_reading()
        self._become(State.UPGRADED)
        self.deadline = INFINITY
        forwarded = service.forwarding.understand(head.headers, self.client) if self.trusted else None
        websocket = WebSocketConnection(service, head, self.client, self.server, self.scheme, forwarded)
        service.connections.discard(self)
        service.connections.add(websocket)
        transport.set_protocol(websocket)
        websocket.connection_made(transport)
        if leftover:
            websocket.go_on(leftover)

    # ---- ends

    def _expire_idle(self) -> None:
        """The client has sent nothing for long, or half a head and no more, or it has not read its response yet."""
        if self.output.unwritten() or self._unread_at_deadline:
            self._expire_unread()
        elif self._buffer and self._buffer != b"\r":
            self._refuse(BadRequest(408, "The request head took too long to arrive."))
        elif is_readable(self.transport):
            self.deadline = self.service.loop.time() + PEEK_TIME
        else:
            self._finish()

    def _expire_unread(self) -> None:
        """The keep-alive time begins when the response has been read, and as long as it is being read it may take."""
        output, before = self.output, self._unread_at_deadline
        self._unread_at_deadline = unread = output.unwritten() > 0
        if unread and before and output.stalled():
            self._close()
            self.transport.abort()
            return
        if unread and not before:
            output.watch_client()
        period = self.service.config.write_timeout if unread else self.service.keep_alive
        self.deadline = self.service.loop.time() + period

    def expect_body(self) -> None:
        """Begin the time in which the next of the request's body must arrive; none if it has all arrived."""
        body = None if self.response is None else self.response.request.body
        if body is not None:
            body.arrived = 0
        if self.output.paused:
            return  # the deadline is the response's; comes again from resume_writing
        coming = body is not None and not body.whole and self.service.config.min_body_rate
        self.deadline = self.service.loop.time() + BODY_WINDOW if coming else INFINITY

    def _expire_request(self) -> None:
        """The client takes no byte of the response, or sends the body too slowly, or it is not its fault."""
        response = self.response
        if response is None:
            return
        body = response.request.body
        if self.output.paused:
            if self.output.stalled():
                self._cut_unread(response)
            else:
                self.deadline = self.service.loop.time() + self.service.config.write_timeout
        elif self.read_paused or body is None or body.whole or body.awaits_continue:
            self.expect_body()
        elif body.arrived < self.service.config.min_body_rate * BODY_WINDOW:
            self._refuse_body(response, BadRequest(408, "The request body arrives too slowly."))
        else:
            self.expect_body()

    def _cut_unread(self, response: Response) -> None:
        """The client has taken no byte for `write_timeout`: the response ends here, visibly short."""
        self.response = None
        self._become(FLUSHING)
        response.lose()
        self.output.wake_writers()
        self._reset()

    # ---- hand-over

    def retire(self) -> None:
        """The worker's phase has left SERVING: leave as soon as that loses nothing. May be called again."""
        self._settle()

    def remain(self) -> None:
        """Nobody can take this connection now: it is served here until `retire()` is called again."""
        if self.state is IDLE:
            self.transport.set_write_buffer_limits()
            self._advance()
            self.adjust_reading()

    def _resume(self) -> None:
        if self.service.phase is Phase.CLOSING:
            self._settle()
        else:
            self._advance()
            self.adjust_reading()
