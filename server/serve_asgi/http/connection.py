"""HTTP/1.1 on one client connection: its life, from the attached transport to its end or its hand-over.

It owns the connection's state, its one deadline, and when its transport is read. Rules: a response that is not whole
never looks whole; a connection that ends is first read to its end, so that its last response arrives; one that is
handed over is neither read nor written. It is made of parts that know nothing of each other:

- `request_pipeline` has the requests: what has arrived, when each begins, what follows it; it sees the connection as
  `PipelinedConnection`, and each request and response sees it as `RequestSource` and `ResponseSink`;
- `write_buffer` is what responses are written through;
- `connection_states` has the states, `timeouts` the deadlines, `closing` the end, `hand_over` the way to another
  worker, `http1_life` what goes there in the middle of a response.

It asks its transport for no more than `asyncio.Transport` has, and for its socket by `client_socket` alone: whatever
stands between a socket and HTTP is attached by `connection_made` like a transport of the loop's. It must not know how
the worker accepts, retires or hands over, nor what a request is.
"""

from __future__ import annotations

import asyncio
import math
from typing import Any, Final, cast

from serve_asgi.http.client_socket import hang_up, is_readable
from serve_asgi.http.client_socket import reset as reset_socket
from serve_asgi.http.closing import PoliteClose
from serve_asgi.http.connection_states import (
    CLOSED,
    CLOSING,
    DISCARDING,
    IDLE,
    LEAVING,
    NEW,
    PARTED,
    REQUEST,
    UPGRADED,
    ConnectionState,
    check_transition,
)
from serve_asgi.http.hand_over import HandOver
from serve_asgi.http.hand_over_record import HandOverRecord
from serve_asgi.http.http1_life import Http1Life, begin_life
from serve_asgi.http.refusals import timed_out
from serve_asgi.http.request_body import RequestBody
from serve_asgi.http.request_head import BadRequest, Head
from serve_asgi.http.request_pipeline import RequestPipeline
from serve_asgi.http.request_timeouts import RequestTimeouts, is_unanswered, report
from serve_asgi.http.response import Response
from serve_asgi.http.response_head import CONTINUE
from serve_asgi.http.survival import Survival
from serve_asgi.http.survival_record import SurvivalRecord
from serve_asgi.http.timeouts import PEEK_TIME, Expiry, Timeouts
from serve_asgi.http.underlying_tls import UnderlyingTls, tls_of
from serve_asgi.http.worker_context import WorkerContext, WorkerPhase
from serve_asgi.http.write_buffer import WriteBuffer
from serve_asgi.ipc.peer_address import Address, own_end_of, peer_of
from serve_asgi.ipc.scoreboard import Cell
from serve_asgi.websocket.connection import WebSocketConnection

FRESH_TIME: Final = 2.0
"""A worker that retires with nobody to hand over to waits this long (s) for the first request of a new connection."""

INFINITY: Final = math.inf
NO_RECORD: Final = (-1.0, -1.0)
_CONNECTIONS: Final = int(Cell.CONNECTIONS)
_TLS_NOT_MOVED: Final = int(Cell.TLS_NOT_MOVED)
_SERVING: Final = WorkerPhase.SERVING
_RETIRING: Final = frozenset({WorkerPhase.HANDING_OVER, WorkerPhase.CLOSING})


class Http1Connection(asyncio.Protocol):
    """One client connection; see `serve_asgi.http.worker_context.ClientConnection` for what the worker asks of it.

    With a `record` it continues where another worker left off: addresses, deadline, number of requests and leftover
    bytes are the record's, and the leftover is processed as soon as the transport is attached. With a `survival` that
    is in the middle of a response, and the application is called for its next life.
    """

    __slots__ = (
        "_closing",
        "_hand_over",
        "_record_times",
        "client",
        "deadline",
        "eof",
        "life",
        "number",
        "output",
        "pipeline",
        "read_paused",
        "scheme",
        "server",
        "state",
        "timeouts",
        "tls",
        "transport",
        "trusted",
        "worker",
    )

    transport: asyncio.Transport

    def __init__(
        self, worker: WorkerContext, record: HandOverRecord | None = None, survival: SurvivalRecord | None = None
    ) -> None:
        self.worker = worker
        self.output = output = WriteBuffer(worker)
        self.timeouts = timeouts = Timeouts(worker, output)
        self.pipeline = RequestPipeline(worker, output, timeouts)
        self._hand_over = HandOver(record, survival)
        self._closing: PoliteClose | None = None
        self.client: Address = None
        self.server: Address = None
        """Both are asked of the transport in `connection_made` unless whoever makes the connection knows them."""
        self.scheme = "http"
        """Of the client's side, as far as the connection itself shows."""
        self.trusted = False
        """Whether the forwarding fields of its requests are believed."""
        self.tls: UnderlyingTls | None = None
        """What stands between the socket and this connection; None if that is nothing."""
        self.state = NEW
        self.number = 0
        """By which the application's call finds it: `serve_asgi.http.worker_context.WorkerContext.numbered`."""
        self.life: Http1Life | None = None
        """Of the response in progress, if that is to survive."""
        self.deadline = INFINITY
        self._record_times = NO_RECORD
        """The deadline when a TLS record began to come, and the one of that record."""
        self.eof = False
        """The client has shut down its write side. It may still read: what it has sent whole is answered."""
        self.read_paused = False

    def become(self, state: ConnectionState) -> None:
        """Change the state, by a way that the table has."""
        check_transition(self.state, state)
        self.state = state

    # ---- what the transport says

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Attached: serve, or continue where the other worker left off."""
        self.transport = self.output.transport = cast(asyncio.Transport, transport)
        self.tls = tls_of(transport)
        worker = self.worker
        worker.connections.add(self)
        worker.cells[_CONNECTIONS] += 1
        self.number = worker.number(self)
        record, survival = self._hand_over.arrived(), self._hand_over.next_life()
        if survival is None:
            self.become(IDLE)
        if record is None:
            self.client = self.client or peer_of(transport)
            self.server = self.server or own_end_of(transport)
            self.trusted = worker.forwarding.trusts(self.client)
            self.deadline = worker.loop.time() + worker.config.first_byte_timeout
        else:
            self.client, self.server, self.scheme = record.client, record.server, record.scheme
            self.trusted = worker.forwarding.trusts(record.client) if record.trusted is None else record.trusted
            self.pipeline.requests = record.requests
            self.deadline = record.deadline
            if self.tls is not None and self.tls.holds_half_a_record():
                self._record_times = record.deadline, record.deadline
            if survival is not None:
                begin_life(self, survival)
                return
            if record.leftover:
                self.pipeline.buffer += record.leftover
                worker.loop.call_soon(self._go_on, record)
                return
        if worker.phase is not _SERVING:
            worker.loop.call_soon(self.settle)

    def _go_on(self, record: HandOverRecord) -> None:
        """Process what the other worker had read.

        Not in `connection_made`: uvloop begins to read after it, whatever it has said of reading.
        """
        if self.state is not IDLE:
            return
        self.settle()
        if self.state is IDLE and self.pipeline.requests == record.requests:
            self.deadline = min(self.deadline, record.deadline)  # half a head: its time is not renewed

    def data_received(self, data: bytes) -> None:
        """Bytes from the client."""
        self.worker.received += len(data)
        state = self.state
        if state is IDLE:
            self.pipeline.receive(self, data)
        elif state is REQUEST or state is DISCARDING:
            self.pipeline.receive_body(self, data)
        elif state is CLOSING:
            if self._closing is not None:
                self._closing.received(len(data))
        else:
            self.pipeline.buffer += data  # LEAVING: nothing is lost if it stays after all
            if state is PARTED:
                self.adjust_reading()

    def eof_received(self) -> bool:
        """The client has shut down its write side; True keeps the transport for what is still to be written."""
        self.eof = True
        state = self.state
        if state is REQUEST:
            response = self.pipeline.response
            assert response is not None
            if response.request.body_is_coming():  # this request will never be whole
                response.lose()
                self.response_cut(reset=response.until_close)
                return False
            response.request.wake()
            return True
        if state is IDLE:
            self.output.flush()
            return self.pipeline.buffer.find(b"\r\n\r\n") >= 0  # a whole request waits for its turn
        return state is LEAVING or state is PARTED or (self._closing is not None and not self._closing.lingering)

    def connection_lost(self, exc: Exception | None) -> None:
        """The transport is closed, by either side."""
        stays = self.tls is not None and self.tls.stays()
        if stays and self.state is CLOSING and self.worker.phase in _RETIRING:
            self.worker.cells[_TLS_NOT_MOVED] += 1
        if self.state is not CLOSED:
            hang_up(self.transport)  # unless that is done, or not ours to do
            self.state = CLOSED
        self.deadline = INFINITY
        self.pipeline.lose()
        self._drop_life()
        output = self.output
        output.paused = False
        output.drop_held()
        output.wake_writers()
        self.forget()

    def forget(self) -> None:
        """The worker has one connection less."""
        worker = self.worker
        if self in worker.connections:
            worker.cells[_CONNECTIONS] -= 1
            worker.numbered.pop(self.number, None)
            worker.forget(self)

    def pause_writing(self) -> None:
        """The client reads more slowly than the application writes: `send` waits, for as long as it reads at all."""
        self.output.paused = True
        if self.state is REQUEST or self.state is PARTED:
            self.deadline = self.timeouts.write()

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
        elif self.state is IDLE or self.state is PARTED:
            self.worker.loop.call_soon(self.settle)

    def adjust_reading(self) -> None:
        """Pause reading while too much has arrived that nobody has taken, or while leaving; read on otherwise."""
        pause = self.state is LEAVING or self.pipeline.is_full(self.state)
        if pause is not self.read_paused and not self.transport.is_closing() and not self.eof:
            self.read_paused = pause
            if pause:
                self.transport.pause_reading()
            else:
                self.transport.resume_reading()
                if self.state is REQUEST:
                    self.expect_body()

    # ---- between two requests

    def settle(self) -> None:
        """A connection that is idle, or between two lives, goes on, leaves, or ends, as the worker's phase has it."""
        if self.state is not IDLE:
            if self.state is PARTED and self.life is not None:
                self.life.move_on()
            return
        self.output.flush()
        if self.tls is not None:
            self.tls.flush()
        worker = self.worker
        if worker.phase is _SERVING or self.eof:
            self._serve()
        elif worker.phase is WorkerPhase.LENDING:
            self._lend()
        elif self.transport.get_write_buffer_size():
            # Comes again from resume_writing when every byte is with the kernel.
            self.transport.set_write_buffer_limits(0)
        elif worker.phase is WorkerPhase.HANDING_OVER and not self.is_stationary():
            if worker.hand_over is not None:
                worker.hand_over(self)
        elif self.pipeline.buffer:
            self._serve()
        elif worker.phase is WorkerPhase.HANDING_OVER and not worker.last_call:
            pass  # it cannot go with the others, and is not closed idle: the response to its next request is its last
        elif self.tls is not None and self.tls.holds_half_a_record():
            self.record_arriving(True)
        elif is_readable(self.transport):
            self.deadline = worker.loop.time() + PEEK_TIME
        elif not self.pipeline.requests:
            self.deadline = min(self.deadline, worker.loop.time() + FRESH_TIME)
        else:
            self.finish()

    def _lend(self) -> None:
        """Go to the canary if it is to have another connection, and this one is idle; else go on here."""
        worker = self.worker
        idle = not self.pipeline.buffer and not self.is_stationary() and self.can_leave()
        if idle and worker.to_lend > 0 and worker.hand_over is not None:
            worker.to_lend -= 1
            worker.hand_over(self)
        else:
            self._serve()

    def _serve(self) -> None:
        """Start the requests that have arrived, and read on."""
        self.pipeline.advance(self)
        self.adjust_reading()

    def upgrade(self, head: Head, leftover: bytes) -> None:
        """Give the transport to a WebSocket connection, together with what has been read after the request."""
        worker, transport = self.worker, self.transport
        self._give_up_transport()
        forwarded = worker.forwarding.understand(head.headers, self.client) if self.trusted else None
        tls = None if self.tls is None else self.tls.info
        websocket = WebSocketConnection(
            worker, head, self.client, self.server, self.scheme, forwarded, tls, self.trusted
        )
        websocket.number = self.number
        worker.numbered[self.number] = websocket
        worker.connections.discard(self)
        worker.connections.add(websocket)
        transport.set_protocol(websocket)
        websocket.connection_made(transport)
        if leftover:
            websocket.go_on(leftover)

    def upgrade_to_http2(self, data: bytes) -> None:
        """Give the transport to an HTTP/2 connection, which begins with `data`."""
        from serve_asgi.http2.connection import Http2Connection  # who does not speak it does not pay for it

        worker, transport = self.worker, self.transport
        self._give_up_transport()
        worker.numbered.pop(self.number, None)
        worker.connections.discard(self)
        http2 = Http2Connection(worker)
        transport.set_protocol(http2)
        http2.continue_from(self.client, self.server, self.scheme, self.trusted, transport, data)

    def _give_up_transport(self) -> None:
        """Another protocol has it from now on."""
        self.output.flush()
        if self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()
        self.become(UPGRADED)
        self.deadline = INFINITY

    # ---- the response in progress

    def response_complete(self, response: Response) -> None:
        """The response is complete (written to the transport)."""
        if self.life is not None:
            self._drop_life()
        self.pipeline.complete(self, response)

    def response_left(self, response: Response) -> None:
        """An application that went on after its response has ended, or has been told that nobody listens."""
        self.pipeline.left(response)

    def requests_wait(self) -> bool:
        """Whether more has been read after the present request: it is answered before the connection is closed."""
        return bool(self.pipeline.buffer)

    def response_cut(self, reset: bool) -> None:
        """End the connection so that the client sees that the response is not whole.

        What was written is still sent, unless the end of the connection itself would end the body (`reset`).
        """
        self.pipeline.response = None
        self._drop_life()
        if self.state is not REQUEST and self.state is not PARTED:
            return
        if reset:
            self.become(CLOSING)
            self.reset()
        else:
            self.close()

    # ---- deadlines

    def head_begun(self) -> None:
        """The beginning of a request's head has come; perhaps its time runs already, from the beginning of a record."""
        if self.deadline != self._record_times[1]:
            self.deadline = self.timeouts.head()

    def record_arriving(self, half: bool) -> None:
        """The beginning of a TLS record has come (`half`), or one that is whole and says nothing to the application.

        What has begun is taken for a request, whose head has to be whole in time. However often it turns out to have
        been nothing, the connection does not get more than its idle time and the time of one head.
        """
        if self.state is not IDLE or self.pipeline.buffer.holds_part_of_head():
            return
        rest, before = self._record_times
        again = self.deadline in self._record_times
        if half:
            until = self.timeouts.head()
            if again:
                until = before if self.deadline == before else min(until, rest + self.worker.config.head_timeout)
            else:
                rest = self.deadline
            self.deadline = until
            self._record_times = rest, until
        elif again:
            self.deadline = rest
            if self.worker.phase is WorkerPhase.CLOSING:
                self.settle()

    def asked_at(self) -> float:
        """When the request in progress began (time.perf_counter, s), or infinity."""
        return INFINITY if self.pipeline.response is None else self.pipeline.response.request.begun

    def new_body(self, head: Head) -> RequestBody:
        """What holds the body that this head announces."""
        return RequestBody(head, self.worker.config.max_body_size, self.worker.max_head_size)

    def ask_for_body(self) -> None:
        """Tell the client to send its body (RFC 9110 10.1.1): its time begins."""
        self.output.write(CONTINUE)
        self.expect_body()

    def expect_body(self) -> None:
        """Begin the time in which the next of the request's body must arrive; none if it has all arrived."""
        body = None if self.pipeline.response is None else self.pipeline.response.request.body
        if body is not None:
            body.arrived = 0
        if not self.output.paused:  # else the deadline is the response's; comes again from resume_writing
            self.deadline = self.timeouts.body(body)

    def expire(self) -> None:
        """The deadline has passed."""
        due, self.deadline = self.deadline, INFINITY
        state, timeouts = self.state, self.timeouts
        if state is IDLE:
            begun = self.pipeline.buffer.holds_part_of_head()
            if not begun and self.tls is not None and self.tls.holds_half_a_record():
                begun = due == self._record_times[1]
                if not begun:  # it came while a request was in progress
                    self.deadline = due
                    self.record_arriving(True)
                    return
            verdict = timeouts.idle_expired(begun, self.pipeline.requests)
            if verdict is Expiry.REFUSE:
                self.pipeline.refuse(self, BadRequest(408, "The request head took too long to arrive."))
            elif verdict is Expiry.CUT:
                self.close()
                self.transport.abort()
            elif verdict is Expiry.FINISH:
                self.finish()
            else:
                self.deadline = timeouts.deadline
        elif state is REQUEST:
            if self.pipeline.response is not None:
                self._expire_request(self.pipeline.response)
        elif state is DISCARDING:
            self.pipeline.response = None
            self.finish()
        elif state is PARTED:
            if self.output.paused and self.pipeline.response is not None:
                self._expire_request(self.pipeline.response)
            else:
                self.settle()
        elif self._closing is not None:
            self._closing.expire()
            self.deadline = self._closing.deadline

    def _expire_request(self, response: Response) -> None:
        verdict = self.timeouts.request_expired(response.request.body, self.read_paused)
        if verdict is Expiry.REFUSE:
            self.pipeline.refuse_body(self, response, BadRequest(408, "The request body arrives too slowly."))
        elif verdict is Expiry.CUT:  # the response ends here, visibly short
            self.pipeline.response = None
            self.become(CLOSING)
            response.lose()
            self.output.wake_writers()
            self.reset()
        else:
            self.deadline = self.timeouts.deadline

    def end_overdue(self, timeouts: RequestTimeouts) -> None:
        """End the request in progress if it has taken too long: 503 if the client has seen nothing of a response."""
        response = self.pipeline.response
        if self.state is not REQUEST or response is None:
            return
        survives = self.life is not None and self.life.survival.wanted
        if not (seconds := timeouts.overdue(response, survives)):
            return
        report(response, seconds)
        task = response.request.task
        if self.life is not None:
            self.life.cut()
        self.pipeline.response = None
        if is_unanswered(response):
            response.status = 503
            self.output.write(timed_out(self.worker, response.head))
            response.refuse()
            self.finish()
        else:
            self.become(CLOSING)
            response.lose()
            self.output.wake_writers()
            self.reset()
        if task is not None:
            task.cancel()

    # ---- ends

    def finish(self) -> None:
        """The last response is written: end politely."""
        closing = self._begin_closing()
        if self.transport.is_closing():
            closing.close()
        else:
            self.adjust_reading()
            closing.shut_down()
        self.deadline = closing.deadline

    def close(self) -> None:
        """There is nothing more to say: what is written is flushed."""
        closing = self._begin_closing()
        closing.close()
        self.deadline = closing.deadline

    def _begin_closing(self) -> PoliteClose:
        self.become(CLOSING)
        self.pipeline.buffer.clear()
        self.output.flush()
        self._closing = closing = PoliteClose(self.worker, self.output, self.eof)
        return closing

    def _flushed(self) -> None:
        if self._closing is not None and self.state is CLOSING:
            self._closing.flushed()
            self.deadline = self._closing.deadline

    def reset(self) -> None:
        """End at once, and so that the client cannot take it for the end of the body."""
        self.output.drop_held()
        if reset_socket(self.transport):
            self.become(CLOSED)
        self.transport.abort()

    def cut(self) -> bool:
        """At the graceful timeout: end at once, cancelling the application's task. True if anything was cut."""
        state, response = self.state, self.pipeline.response
        if state is LEAVING or state is CLOSED or state is NEW or state is UPGRADED:
            return False
        if (state is REQUEST or state is PARTED) and response is not None:
            until_close, task = response.until_close, response.request.task
            if self.life is not None:
                self.life.cut()
            self.pipeline.response = None
            response.lose()
            if task is not None:
                task.cancel()
            self.state = CLOSING
            if until_close:
                self.reset()
            else:
                self.output.drop_held()
                self.transport.abort()
            return True
        self.output.flush()
        unfinished = bool(self.pipeline.buffer) or self.output.unwritten() > 0
        self.pipeline.response = None
        if state is not CLOSING:
            self.become(CLOSING)
        self.deadline = INFINITY
        self.pipeline.buffer.clear()
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
        if self.life is not None:
            self.life.retire()
        self.settle()

    def resume(self) -> None:
        """The worker serves again: the phase says so, and the end of a life that was planned is off."""
        self._hand_over.refused = False
        if self.life is not None:
            self.life.call_off()
            self.settle()

    def refused_for_good(self) -> None:
        """Nobody can go on with it: while the worker retires, the response to its next request is its last."""
        self._hand_over.refused = self.worker.phase in _RETIRING

    def remain(self) -> None:
        """Nobody can take this connection now: it is served here until `retire()` is called again."""
        if self.state is IDLE:
            self.transport.set_write_buffer_limits()
            self._serve()
        elif self.state is PARTED and self.life is not None:
            self.life.go_on_here()

    def can_leave(self) -> bool:
        """Whether `leave()` is possible now: no request in progress, or one between two lives; all that is written with
        the kernel; the client still there.
        """
        return (
            ((self.state is IDLE and not self.eof) or self.state is PARTED)
            and not self.transport.is_closing()
            and self.output.unwritten() == 0
            and (self.tls is None or self.tls.can_move())
        )

    def is_stationary(self) -> bool:
        """Whether no other process could go on with it (TLS 1.2, or refused): it ends when this worker does."""
        return self._hand_over.refused or (self.tls is not None and self.tls.stays())

    def leave(self) -> tuple[int, HandOverRecord]:
        """Stop reading and writing; a duplicate of the descriptor (the caller owns it) and the record.

        Only while `can_leave()`; afterwards the worker calls `stay()` or `gone()`. Raises OSError, with nothing
        changed, if there is no descriptor to be had.
        """
        assert self.can_leave(), "leave() needs can_leave()"
        pipeline = self.pipeline
        leftover, parted = bytes(pipeline.buffer), self.life if self.state is PARTED else None
        record = HandOverRecord(
            leftover if parted is None else parted.record(leftover).to_bytes(),
            self.client,
            self.server,
            self.deadline,
            pipeline.requests,
            self.scheme,
            self.trusted,
            survives=parted is not None,
        )
        return self._hand_over.leave(self, record)

    def stay(self) -> None:
        """The hand-over failed: go on exactly as before."""
        if self._hand_over.stay(self):
            self.transport.set_write_buffer_limits()
            self.worker.loop.call_soon(self._resume)

    def _resume(self) -> None:
        if self.worker.phase is WorkerPhase.CLOSING:
            self.settle()
        else:
            self._serve()

    def gone(self) -> None:
        """The hand-over is committed: drop this end. The client sees nothing: a duplicate lives elsewhere."""
        if self._hand_over.commit(self):
            self.pipeline.response = self.pipeline.still_sending = None  # the client has not gone
            self._drop_life()

    # ---- lives of a response that is to survive

    def opt_in(self, extensions: object, version: int | None) -> Survival | None:
        """See `serve_asgi.http.survival.SurvivableConnection`."""
        life = self.life_of_response()
        return None if life is None else life.opt_in(extensions, version)

    def life_of_response(self) -> Http1Life | None:
        """Of the one in progress, whether it is to survive or not; None if there is none, or none that could."""
        response = self.pipeline.response
        if self.state is not REQUEST or response is None or self.is_stationary():
            return None
        if self.life is None:
            self.life = Http1Life(self, self.worker, response)
        return self.life

    def refuse_life(self, reason: str) -> None:
        """See `serve_asgi.http.survival.SurvivableConnection`."""
        if self.life is not None:
            self.life.refuse_life(reason)

    def _drop_life(self) -> None:
        if self.life is not None:
            self.life.call_off()
            self.life = None
