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
from serve_asgi.http.chunked_body import ChunkReader
from serve_asgi.http.connection_lifecycle import INFINITY, PEEK_TIME, Lifecycle, State
from serve_asgi.http.hand_over_record import TravelRecord
from serve_asgi.http.request_cycle import Exchange
from serve_asgi.http.request_head import CHUNKED, BadRequest, Head, endless_target, hopeless
from serve_asgi.http.request_id_cycle import IdentifiedExchange
from serve_asgi.http.response import COMING, WAITING
from serve_asgi.http.response import STARTED as RESPONSE_STARTED
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

    __slots__ = ("_arrived", "_chunks", "_content", "_empty_lines", "_new_exchange", "_scanned", "read_paused")

    def __init__(self, service: Service, record: TravelRecord | None = None) -> None:
        super().__init__(service, record)
        self._new_exchange = IdentifiedExchange if service.request_ids.generates else Exchange
        self.read_paused = False
        self._scanned = 0  # bytes of the buffer that hold no end of a head
        self._content = 0  # bytes of chunked content so far
        self._arrived = 0  # bytes of content since its time was last looked at
        self._chunks: ChunkReader | None = None  # of the chunked content that is coming
        self._empty_lines = 0  # before request lines

    # ---- what the transport says

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Attached: serve, or go on where the other worker left."""
        self.transport = cast(asyncio.Transport, transport)
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
            if not self._buffer and not self.write_paused and data[0] != _CR:
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
            if self.write_paused:  # the last answer is not read: what follows it waits, and is bounded
                self.mind_reading()
        elif state is REQUEST or state is DISCARDING:
            exchange = self.exchange
            assert exchange is not None
            if exchange.content is COMING:
                self._take_content(exchange, data)
            else:
                self._buffer += data
            self.mind_reading()
        elif state is FLUSHING or state is LINGERING:
            self._allowance_spent(len(data))
        else:
            self._buffer += data  # LEAVING: nothing is lost if it stays after all

    def eof_received(self) -> bool:
        """The client has shut down its write side; True keeps the transport for what is still to be written."""
        self.eof = True
        state = self.state
        if state is REQUEST:
            exchange = self.exchange
            assert exchange is not None
            if exchange.content is COMING:  # this request will never be whole
                exchange.lose()
                self.cut_short(reset=exchange.until_close)
                return False
            exchange.wake()
            return True
        if state is IDLE:
            self.flush()
            return b"\r\n\r\n" in self._buffer  # a whole request waits for its turn
        return state is FLUSHING or state is LEAVING

    def connection_lost(self, exc: Exception | None) -> None:
        """The transport is closed, by whichever side."""
        exchange, self.exchange = self.exchange, None
        self._lost()
        self.deadline = INFINITY
        self._buffer.clear()
        if exchange is not None:
            exchange.lose()
        if self.behind:
            for each in list(self.behind):
                each.lose()
        self.write_paused = False
        self.drop_held()
        self.wake_writers()
        self._close_books()

    # ---- from bytes to requests

    def _advance(self) -> None:
        """Start the requests whose heads are whole, one after another; say until when the next head must be."""
        if self.state is not IDLE or self.write_paused:
            return  # comes again from resume_writing or after the exchange
        left = BATCH
        self.batching = True
        try:
            while left and self._start_next() and self.state is IDLE and not self.write_paused:
                left = left - 1 if self.service.phase is _SERVING else 0
        finally:
            self.batching = False
            self.flush()
        if self.state is IDLE and left < BATCH:
            self.mind_reading()
            if not left or self.write_paused:
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
        self.exchange = exchange = self._new_exchange(self, service, head)
        self.state = REQUEST
        self.deadline = INFINITY
        if head.body:
            if head.body == CHUNKED:
                self._content = 0
                self._chunks = ChunkReader(service.max_head_size)
            self.expect_content()
            if self._buffer:
                rest = bytes(self._buffer)
                self._buffer.clear()
            if rest:
                self._take_content(exchange, rest)
                if self.state is not REQUEST:
                    return  # malformed
        elif rest:
            self._buffer += rest
        if self._buffer or exchange.unread:
            self.mind_reading()
        context = service.context.copy()
        cells[_IN_FLIGHT] += 1  # until the end of run(); now, since a task that is not eager begins later
        if _EAGER:
            task = asyncio.Task(exchange.run(), loop=service.loop, context=context, eager_start=True)  # type: ignore[call-arg,unused-ignore]
        else:
            task = service.loop.create_task(exchange.run(), context=context)
        if not task.done():
            exchange.task = task
            service.tasks.add(task)
            task.add_done_callback(service.tasks.discard)

    def _take_content(self, exchange: Exchange, data: bytes) -> None:
        """Bytes of the request's content have arrived, perhaps more than it."""
        self._arrived += len(data)
        left = exchange.left
        if left > 0:
            size = len(data)
            if size < left:
                exchange.left = left - size
                exchange.push(data)
                return
            if size > left:
                self._buffer += data[left:]
                data = data[:left]
            exchange.push(data)
            exchange.whole()
        elif not self._take_chunks(exchange, data):
            return
        if self.state is DISCARDING:
            self.exchange = None
            self._rest()

    def _take_chunks(self, exchange: Exchange, data: bytes) -> bool:
        """The same for chunked content; True if it is complete."""
        assert self._chunks is not None
        try:
            pieces, leftover = self._chunks.feed(data)
        except BadRequest as refused:
            self._refuse_content(exchange, refused)
            return False
        if pieces:
            content = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            self._content += len(content)
            exchange.push(content)
        largest = self.service.config.max_body_size
        if largest and self._content > largest:
            self._refuse_content(exchange, BadRequest(413, f"The request body is larger than {largest} bytes."))
            return False
        if leftover is None:
            return False
        self._chunks = None
        self._buffer += leftover
        exchange.whole()
        return True

    def mind_reading(self) -> None:
        """Pause reading while too much has arrived that nobody has taken, and read on otherwise."""
        exchange = self.exchange
        if self.state is REQUEST and exchange is not None:
            pause = exchange.unread > READ_LIMIT or len(self._buffer) > READ_LIMIT
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
                    self.expect_content()

    # ---- answers

    def answered(self, exchange: Exchange) -> None:
        """The response is complete (written to the transport)."""
        self.requests += 1
        if exchange.close:
            self.exchange = None
            if exchange.head.keep_alive or exchange.head.body or self._buffer:
                self._finish()
            else:
                self._close()  # the client has said that this was its last: nothing more comes that could be reset
        elif exchange.content is COMING:
            if exchange.discardable():
                self._become(DISCARDING)
                self.deadline = self.service.loop.time() + DISCARD_TIME
                self.mind_reading()
            else:
                self.exchange = None
                self._finish()
        else:
            self.exchange = None
            self._rest()

    def _rest(self) -> None:
        """No request is in progress any more. What is next is decided soon, not inside the application's `send`."""
        service = self.service
        self.state = IDLE
        self._allowance = 0
        self.deadline = service.loop.time() + service.keep_alive
        if not self.batching and (self._buffer or self.read_paused or self.eof or service.phase is not _SERVING):
            self.mind_reading()
            service.loop.call_soon(self._settle)

    def _settle(self) -> None:
        """An idle connection goes on, leaves, or ends, as the worker's phase has it."""
        if self.state is not IDLE:
            return
        self.flush()
        service = self.service
        if service.phase is _SERVING or self.eof:
            self._advance()
            self.mind_reading()
        elif self.transport.get_write_buffer_size():
            # Comes again from resume_writing when every byte is with the kernel.
            self.transport.set_write_buffer_limits(0)
        elif service.phase is Phase.TRAVELLING:
            if service.departure is not None:
                service.departure(self)
        elif self._buffer:
            self._advance()
            self.mind_reading()
        elif self._readable():
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
        self.write(plain_answer(refused.status, text, service.default_headers, CLOSE, with_body))
        if service.access_log is not None:
            size = len(text) if with_body else 0
            unheard = ServerResponse(self.client, self.scheme)
            service.access_log.record(self.client, RefusedRequest(), refused.status, size, time.perf_counter(), unheard)
        self._finish()

    def _refuse_content(self, exchange: Exchange, refused: BadRequest) -> None:
        """The request's content is malformed: say so if nothing else has been said, and end the connection."""
        unanswered = exchange.state is WAITING or exchange.state is RESPONSE_STARTED
        in_time = unanswered or self.state is DISCARDING
        exchange.status = refused.status if unanswered else exchange.status
        if unanswered:
            text, with_body = refused.reason + "\n", exchange.head.method != "HEAD"
            self.write(plain_answer(refused.status, text, self.service.default_headers, CLOSE, with_body))
        exchange.refuse()
        self.exchange = None
        if in_time:
            self._finish()
        else:
            self.cut_short(reset=exchange.until_close)

    def requests_wait(self) -> bool:
        """Whether more has been read behind the present request: it is answered before the connection is closed."""
        return bool(self._buffer)

    def _answer_health(self, head: Head, rest: bytes) -> None:
        service = self.service
        close = self._ends_with(head, rest)
        self.write(health.answer(service, head, close))
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
        self.write(plain_answer(503, text, service.default_headers, lines, with_body))
        if service.access_log is not None:
            size, unheard = len(text) if with_body else 0, ServerResponse(self.client, self.scheme)
            service.access_log.record(self.client, head, 503, size, time.perf_counter(), unheard)
        self._answered_at_once(close, rest)

    def _upgrade(self, head: Head, rest: bytes) -> None:
        """Give the transport to a WebSocket connection, together with what has been read behind the request."""
        service, transport = self.service, self.transport
        self.flush()
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
        """The client has sent nothing for long, or half a head and no more, or it has not read its answer yet."""
        if self.unwritten() or self._allowance:
            self._expire_unread()
        elif self._buffer and self._buffer != b"\r":
            self._refuse(BadRequest(408, "The request head took too long to arrive."))
        elif self._readable():
            self.deadline = self.service.loop.time() + PEEK_TIME
        else:
            self._finish()

    def _expire_unread(self) -> None:
        """The keep-alive time begins when the answer has been read, and as long as it is being read it may take."""
        unread = self.untaken() if self.unwritten() else 0
        if unread and self._allowance and unread >= self._allowance:
            self._close()
            self.transport.abort()
            return
        self._allowance = unread
        period = self.service.config.write_timeout if unread else self.service.keep_alive
        self.deadline = self.service.loop.time() + period

    def expect_content(self) -> None:
        """Begin the time in which the next of the request's content must arrive; none if it has all arrived."""
        self._arrived = 0
        if self.write_paused:
            return  # the deadline is the response's; comes again from resume_writing
        exchange = self.exchange
        coming = exchange is not None and exchange.content is COMING and self.service.config.min_body_rate
        self.deadline = self.service.loop.time() + BODY_WINDOW if coming else INFINITY

    def _expire_request(self) -> None:
        """The client takes no byte of the response, or sends the content too slowly, or it is not its fault."""
        exchange = self.exchange
        if exchange is None:
            return
        if self.write_paused:
            unread = self.untaken()
            if unread >= self._allowance:
                self._cut_unread(exchange)
            else:
                self._allowance = unread
                self.deadline = self.service.loop.time() + self.service.config.write_timeout
        elif self.read_paused or exchange.awaits_continue or exchange.content is not COMING:
            self.expect_content()
        elif self._arrived < self.service.config.min_body_rate * BODY_WINDOW:
            self._refuse_content(exchange, BadRequest(408, "The request body arrives too slowly."))
        else:
            self.expect_content()

    def _cut_unread(self, exchange: Exchange) -> None:
        """The client has taken no byte for `write_timeout`: the response ends here, visibly short."""
        self.exchange = None
        self._become(FLUSHING)
        exchange.lose()
        self.wake_writers()
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
            self.mind_reading()

    def _resume(self) -> None:
        if self.service.phase is Phase.CLOSING:
            self._settle()
        else:
            self._advance()
            self.mind_reading()
