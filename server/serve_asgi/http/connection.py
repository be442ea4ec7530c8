"""HTTP/1.1 on one client connection: its life, and from bytes to requests, one after another.

It decides when a request begins and what follows it. What a client pipelines stays raw bytes until its turn comes, and
moves to another worker as such. Rules: bytes are never lost, never read twice; the hot path is one data_received, one
call of the application, one write; a response that is not whole never looks whole; a connection that is handed over is
neither read nor written. It is made of parts that know nothing of each other:

- `connection_states` has its states, `timeouts` its deadlines, `closing` its end;
- `request_buffer` holds what has arrived and belongs to no request yet, `head_cache` and the parsers read heads;
- `request` and `response` are what an application is called with, by `request_cycle`; they see the connection as
  `RequestSource` and `ResponseSink`;
- `write_buffer` is what responses are written through; `health` and `refusals` are responses of the server's own.

It must not know how the worker accepts, retires or hands over, nor what a parser does.
"""

from __future__ import annotations

import asyncio
import math
import os
import sys
from typing import Any, Final, cast

from serve_asgi.http import health, refusals
from serve_asgi.http.client_socket import hang_up, is_readable, reset
from serve_asgi.http.closing import PoliteClose
from serve_asgi.http.connection_states import (
    CLOSED,
    CLOSING,
    DISCARDING,
    IDLE,
    LEAVING,
    NEW,
    REQUEST,
    UPGRADED,
    ConnectionState,
    check_transition,
)
from serve_asgi.http.hand_over_record import HandOverRecord
from serve_asgi.http.request_body import RequestBody
from serve_asgi.http.request_buffer import RequestBuffer
from serve_asgi.http.request_cycle import run_cycle
from serve_asgi.http.request_head import BadRequest, Head, endless_target
from serve_asgi.http.request_receive import Request
from serve_asgi.http.response import DONE, OVER, STARTED, WAITING, Response
from serve_asgi.http.timeouts import PEEK_TIME, Expiry, Timeouts
from serve_asgi.http.worker_context import WorkerContext, WorkerPhase
from serve_asgi.http.write_buffer import WriteBuffer
from serve_asgi.ipc.peer_address import Address, own_end_of, peer_of
from serve_asgi.ipc.scoreboard import Cell
from serve_asgi.websocket.connection import WebSocketConnection

READ_LIMIT: Final = 65536
"""Bytes that may wait unread (a body that the application has not taken; requests pipelined) before reading pauses."""

FRESH_TIME: Final = 2.0
"""A worker that retires with nobody to hand over to waits this long (s) for the first request of a new connection."""

DISCARD_TIME: Final = 15.0
"""How long (s) the rest of a request that was answered early may take to arrive."""

BATCH: Final = 32
"""Pipelined requests that are answered in a row before others have their turn."""

INFINITY: Final = math.inf
_EAGER: Final = sys.version_info >= (3, 12)
_CONNECTIONS: Final = int(Cell.CONNECTIONS)
_IN_FLIGHT: Final = int(Cell.IN_FLIGHT)
_SERVING: Final = WorkerPhase.SERVING
_CR: Final = 13
_P: Final = ord("P")


class Http1Connection(asyncio.Protocol):
    """One client connection; see `serve_asgi.http.worker_context.ClientConnection` for what the worker asks of it.

    With a `record` it goes on where another worker left: addresses, deadline, number of requests and leftover bytes are
    the record's, and the leftover is processed as soon as the transport is attached.
    """

    __slots__ = (
        "_buffer",
        "_closing",
        "_record",
        "_timeouts",
        "client",
        "deadline",
        "eof",
        "output",
        "read_paused",
        "requests",
        "response",
        "scheme",
        "server",
        "state",
        "still_sending",
        "transport",
        "trusted",
        "worker",
    )

    transport: asyncio.Transport

    def __init__(self, worker: WorkerContext, record: HandOverRecord | None = None) -> None:
        self.worker = worker
        self.output = output = WriteBuffer(worker)
        self.client: Address = None
        self.server: Address = None
        """Both are asked of the transport in `connection_made` unless whoever makes the connection knows them."""
        self.scheme = "http"
        """Of the client's side, as far as the connection itself tells."""
        self.trusted = False
        """Whether the forwarding fields of its requests are believed."""
        self.requests = 0
        """Requests answered on this connection, also by other workers before."""
        self.state = NEW
        self.deadline = INFINITY
        self.response: Response | None = None
        """Of the request in progress."""
        self.still_sending: set[Response] | None = None
        """Those that are over and whose application goes on sending; they are told when the client goes."""
        self.eof = False
        """The client has shut down its write side. It may still read: what it has sent whole is answered."""
        self.read_paused = False
        self._record = record  # what came with the connection, then (LEAVING) what goes with it
        self._buffer = RequestBuffer()
        self._timeouts = Timeouts(worker, output)
        self._closing: PoliteClose | None = None

    def _become(self, state: ConnectionState) -> None:
        check_transition(self.state, state)
        self.state = state

    # ---- what the transport says

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Attached: serve, or go on where the other worker left."""
        self.transport = self.output.transport = cast(asyncio.Transport, transport)
        worker = self.worker
        worker.connections.add(self)
        worker.cells[_CONNECTIONS] += 1
        self._become(IDLE)
        record, self._record = self._record, None
        if record is None:
            self.client = self.client or peer_of(transport)
            self.server = self.server or own_end_of(transport)
            self.trusted = worker.forwarding.trusts(self.client)
            self.deadline = worker.loop.time() + worker.config.first_byte_timeout
        else:
            self.client, self.server, self.scheme = record.client, record.server, record.scheme
            self.trusted = worker.forwarding.trusts(record.client) if record.trusted is None else record.trusted
            self.requests = record.requests
            self.deadline = record.deadline
            if record.leftover:
                self._buffer += record.leftover
                worker.loop.call_soon(self._go_on, record)
                return
        if worker.phase is not _SERVING:
            worker.loop.call_soon(self._settle)

    def _go_on(self, record: HandOverRecord) -> None:
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
        self.worker.received += len(data)
        state = self.state
        if state is IDLE:
            if not self._buffer and not self.output.paused and data[0] != _CR:
                end = data.find(b"\r\n\r\n") + 4
                if 3 < end <= self.worker.max_head_size:
                    if end == len(data):
                        self._begin(data, b"")
                        return
                    if data[0] == _P:  # POST, PUT, PATCH: a body follows; else, further requests do
                        self._begin(data[:end], data[end:])
                        return
            self._buffer += data
            self._advance()
            if self.output.paused:  # the last response is not read: what follows it waits, and is bounded
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
        elif state is CLOSING:
            if self._closing is not None:
                self._closing.received(len(data))
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
            return self._buffer.find(b"\r\n\r\n") >= 0  # a whole request waits for its turn
        return state is LEAVING or (self._closing is not None and not self._closing.lingering)

    def connection_lost(self, exc: Exception | None) -> None:
        """The transport is closed, by whichever side."""
        response, self.response = self.response, None
        if self.state is not CLOSED:
            hang_up(self.transport)  # unless that is done, or not ours to do
            self.state = CLOSED
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
        self._forget()

    def _forget(self) -> None:
        worker = self.worker
        if self in worker.connections:
            worker.cells[_CONNECTIONS] -= 1
            worker.forget(self)

    def pause_writing(self) -> None:
        """The client reads more slowly than the application writes: `send` waits, for as long as it reads at all."""
        self.output.paused = True
        if self.state is REQUEST:
            self.deadline = self._timeouts.write()

    def resume_writing(self) -> None:
        """What was to be written is (nearly) written.

        What follows from it comes soon, not now: a transport of asyncio's that is closed in here closes twice.
        """
        self.output.paused = False
        self.output.wake_writers()
        if self.state is REQUEST:
            self.expect_body()
        elif self.state is CLOSING:
            self.worker.loop.call_soon(self._flushed)
        elif self.state is IDLE:
            self.worker.loop.call_soon(self._settle)

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
                left = left - 1 if self.worker.phase is _SERVING else 0
        finally:
            output.batching = False
            output.flush()
        if self.state is IDLE and left < BATCH:
            self.adjust_reading()
            if not left or output.paused:
                self.worker.loop.call_soon(self._settle)

    def _start_next(self) -> bool:
        """Start the request at the buffer's beginning if its head is whole; True if more may be done."""
        buffer, config = self._buffer, self.worker.config
        known = buffer.scanned
        try:
            head = buffer.take_head(self.worker.max_head_size, config.max_target_size, self.requests)
        except BadRequest as refused:
            self._refuse(refused)
            return False
        if head:
            self._begin(head, b"")
            return True
        if self.eof:
            self._close()
        elif buffer.scanned and not known:  # a head has begun
            self.deadline = self._timeouts.head()
        return False

    def _begin(self, data: bytes, rest: bytes) -> None:
        """Start the request whose whole head is `data`; `rest` followed it."""
        worker = self.worker
        cells = worker.cells
        try:
            head = worker.heads.read(data, cells)
        except BadRequest as refused:
            refused = endless_target(data, worker.config.max_target_size) or refused
            self._refuse(refused, with_body=not data.startswith(b"HEAD "))
            return
        if head.path == worker.health_path and head.method in health.METHODS:
            self._answer_health(head, rest)
            return
        if worker.published[0] > worker.shared.applied:
            worker.catch_up()
        if head.websocket and not head.body:
            self._upgrade(head, rest)
            return
        if worker.max_concurrency and cells[_IN_FLIGHT] >= worker.max_concurrency:
            self._overloaded(head, rest)
            return
        request = Request(self, worker, head)
        self.response = response = Response(self, worker, request)
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
            if not body.whole:
                self.deadline = self._timeouts.body(body)
            if self._buffer or body.unread > READ_LIMIT or self.read_paused:
                self.adjust_reading()
        context = worker.context.copy()
        cells[_IN_FLIGHT] += 1  # until the end of run_cycle(); now, since a task that is not eager begins later
        cycle = run_cycle(worker, request, response)
        if _EAGER:
            task = asyncio.Task(cycle, loop=worker.loop, context=context, eager_start=True)  # type: ignore[call-arg,unused-ignore]
        else:
            task = worker.loop.create_task(cycle, context=context)
        if not task.done():
            request.task = task
            worker.tasks.add(task)
            task.add_done_callback(worker.tasks.discard)

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
            pause = len(self._buffer) > READ_LIMIT + self.worker.max_head_size
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
                self.deadline = self.worker.loop.time() + DISCARD_TIME
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
        worker = self.worker
        self.state = IDLE
        self.deadline = worker.loop.time() + worker.keep_alive
        if not self.output.batching and (self._buffer or self.read_paused or self.eof or worker.phase is not _SERVING):
            self.adjust_reading()
            worker.loop.call_soon(self._settle)

    def _settle(self) -> None:
        """An idle connection goes on, leaves, or ends, as the worker's phase has it."""
        if self.state is not IDLE:
            return
        self.output.flush()
        worker = self.worker
        if worker.phase is _SERVING or self.eof:
            self._advance()
            self.adjust_reading()
        elif self.transport.get_write_buffer_size():
            # Comes again from resume_writing when every byte is with the kernel.
            self.transport.set_write_buffer_limits(0)
        elif worker.phase is WorkerPhase.HANDING_OVER:
            if worker.hand_over is not None:
                worker.hand_over(self)
        elif self._buffer:
            self._advance()
            self.adjust_reading()
        elif is_readable(self.transport):
            self.deadline = worker.loop.time() + PEEK_TIME
        elif not self.requests:
            self.deadline = min(self.deadline, worker.loop.time() + FRESH_TIME)
        else:
            self._finish()

    def _refuse(self, refused: BadRequest, with_body: bool = True) -> None:
        """Answer what is no request that could be served, and close."""
        self._buffer.clear()
        self.output.write(refusals.bad_request(self.worker, self.client, self.scheme, refused, with_body))
        self._finish()

    def _refuse_body(self, response: Response, refused: BadRequest) -> None:
        """The request's body is malformed: say so if nothing else has been said, and end the connection."""
        unanswered = response.state is WAITING or response.state is STARTED
        in_time = unanswered or self.state is DISCARDING
        if unanswered:
            response.status = refused.status
            self.output.write(refusals.bad_body(self.worker, response.head, refused))
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
        worker = self.worker
        close = self._ends_with(head, rest)
        self.output.write(health.response(worker, head, close))
        self._responded_at_once(close, rest)

    def _ends_with(self, head: Head, rest: bytes) -> bool:
        """Whether a response of the server's own, which reads no body, is the connection's last."""
        worker = self.worker
        return (
            not head.keep_alive
            or head.body != 0
            or ((worker.announce_close or worker.phase is WorkerPhase.CLOSING) and not (rest or self._buffer))
            or not worker.config.keep_alive
        )

    def _responded_at_once(self, close: bool, rest: bytes) -> None:
        self.requests += 1
        if close:
            self._finish()
        else:
            self._buffer += rest
            self._rest()

    def _overloaded(self, head: Head, rest: bytes) -> None:
        """As many requests are in progress as the worker takes: this one is refused."""
        close = self._ends_with(head, rest)
        self.output.write(refusals.overloaded(self.worker, self.client, self.scheme, head, close))
        self._responded_at_once(close, rest)

    def _upgrade(self, head: Head, rest: bytes) -> None:
        """Give the transport to a WebSocket connection, together with what has been read behind the request."""
        worker, transport = self.worker, self.transport
        self.output.flush()
        leftover = rest + self._buffer
        self._buffer.clear()
        if self.read_paused:
            self.read_paused = False
            transport.resume_reading()
        self._become(UPGRADED)
        self.deadline = INFINITY
        forwarded = worker.forwarding.understand(head.headers, self.client) if self.trusted else None
        websocket = WebSocketConnection(worker, head, self.client, self.server, self.scheme, forwarded)
        worker.connections.discard(self)
        worker.connections.add(websocket)
        transport.set_protocol(websocket)
        websocket.connection_made(transport)
        if leftover:
            websocket.go_on(leftover)

    # ---- deadlines

    def asked_at(self) -> float:
        """When the request in progress began (time.perf_counter, s), or infinity."""
        return INFINITY if self.response is None else self.response.request.begun

    def expect_body(self) -> None:
        """Begin the time in which the next of the request's body must arrive; none if it has all arrived."""
        body = None if self.response is None else self.response.request.body
        if body is not None:
            body.arrived = 0
        if not self.output.paused:  # else the deadline is the response's; comes again from resume_writing
            self.deadline = self._timeouts.body(body)

    def expire(self) -> None:
        """The deadline has passed."""
        self.deadline = INFINITY
        state, timeouts = self.state, self._timeouts
        if state is IDLE:
            verdict = timeouts.idle_expired(self._buffer.holds_part_of_head(), self.requests)
            if verdict is Expiry.REFUSE:
                self._refuse(BadRequest(408, "The request head took too long to arrive."))
            elif verdict is Expiry.CUT:
                self._close()
                self.transport.abort()
            elif verdict is Expiry.FINISH:
                self._finish()
            else:
                self.deadline = timeouts.deadline
        elif state is REQUEST:
            if self.response is not None:
                self._expire_request(self.response)
        elif state is DISCARDING:
            self.response = None
            self._finish()
        elif self._closing is not None:
            self._closing.expire()
            self.deadline = self._closing.deadline

    def _expire_request(self, response: Response) -> None:
        verdict = self._timeouts.request_expired(response.request.body, self.read_paused)
        if verdict is Expiry.REFUSE:
            self._refuse_body(response, BadRequest(408, "The request body arrives too slowly."))
        elif verdict is Expiry.CUT:  # the response ends here, visibly short
            self.response = None
            self._become(CLOSING)
            response.lose()
            self.output.wake_writers()
            self._reset()
        else:
            self.deadline = self._timeouts.deadline

    # ---- ends

    def _finish(self) -> None:
        """The last response is written: end politely (law 9)."""
        closing = self._begin_closing()
        if self.transport.is_closing():
            closing.close()
        else:
            self.adjust_reading()
            closing.shut_down()
        self.deadline = closing.deadline

    def _close(self) -> None:
        """Nothing is to be said any more; what is written is flushed."""
        closing = self._begin_closing()
        closing.close()
        self.deadline = closing.deadline

    def _begin_closing(self) -> PoliteClose:
        self._become(CLOSING)
        self._buffer.clear()
        self.output.flush()
        self._closing = closing = PoliteClose(self.worker, self.output, self.eof)
        return closing

    def _flushed(self) -> None:
        if self._closing is not None and self.state is CLOSING:
            self._closing.flushed()
            self.deadline = self._closing.deadline

    def response_cut(self, reset: bool) -> None:
        """End the connection so that the client sees that the response is not whole.

        What was written is still sent, unless the end of the connection itself would end the body (`reset`).
        """
        self.response = None
        if self.state is not REQUEST:
            return
        if reset:
            self._become(CLOSING)
            self._reset()
        else:
            self._close()

    def _reset(self) -> None:
        """End at once, and so that the client cannot take it for the end of the body."""
        self.output.drop_held()
        if reset(self.transport):
            self._become(CLOSED)
        self.transport.abort()

    def cut(self) -> bool:
        """At the graceful timeout: end at once, cancelling the application's task. True if anything was cut."""
        state, response = self.state, self.response
        if state is LEAVING or state is CLOSED or state is NEW or state is UPGRADED:
            return False
        if state is REQUEST and response is not None:
            until_close, task = response.until_close, response.request.task
            self.response = None
            response.lose()
            if task is not None:
                task.cancel()
            self.state = CLOSING
            if until_close:
                self._reset()
            else:
                self.output.drop_held()
                self.transport.abort()
            return True
        self.output.flush()
        unfinished = bool(self._buffer) or self.output.unwritten() > 0
        self.response = None
        if state is not CLOSING:
            self._become(CLOSING)
        self.deadline = INFINITY
        self._buffer.clear()
        self.output.drop_held()
        self.transport.abort()
        return unfinished

    def let_go(self, instead: Any) -> asyncio.Transport:
        """In a forked child: see `serve_asgi.http.worker_context.ClientConnection`."""
        transport, self.transport, self.output.transport = self.transport, instead, instead
        return transport

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

    def can_leave(self) -> bool:
        """Whether `leave()` is possible now: no request in progress, all that is written with the kernel, the client
        still there.
        """
        return self.state is IDLE and not self.eof and not self.transport.is_closing() and self.output.unwritten() == 0

    def leave(self) -> tuple[int, HandOverRecord]:
        """Stop reading and writing; a duplicate of the descriptor (the caller owns it) and the record.

        Only while `can_leave()`; afterwards the worker calls `stay()` or `gone()`. Raises OSError, with nothing
        changed, if there is no descriptor to be had.
        """
        assert self.can_leave(), "leave() needs can_leave()"
        fd = os.dup(self.transport.get_extra_info("socket").fileno())
        record = HandOverRecord(
            bytes(self._buffer), self.client, self.server, self.deadline, self.requests, self.scheme, self.trusted
        )
        self._become(LEAVING)
        self._record = record
        self.deadline = INFINITY
        self.adjust_reading()
        return fd, record

    def stay(self) -> None:
        """The hand-over failed: go on exactly as before."""
        record, self._record = self._record, None
        if self.state is not LEAVING or record is None:
            return  # the client has gone meanwhile
        self._become(IDLE)
        self.deadline = record.deadline
        self.transport.set_write_buffer_limits()
        self.adjust_reading()
        self.worker.loop.call_soon(self._resume)

    def _resume(self) -> None:
        if self.worker.phase is WorkerPhase.CLOSING:
            self._settle()
        else:
            self._advance()
            self.adjust_reading()

    def gone(self) -> None:
        """The hand-over is committed: drop this end. The client sees nothing: a duplicate lives elsewhere."""
        if self.state is not LEAVING:
            return
        self._become(CLOSED)
        self._forget()
        self.still_sending = None  # the client has not gone
        self.transport.abort()  # closes the descriptor; no shutdown, which would reach the duplicate too
