"""HTTP/1.1 on one client connection: its life, from the attached transport to its end or its hand-over.

It owns the connection's state, its one deadline, and when its transport is read. Rules: a response that is not whole
never looks whole; a connection that ends is first read to its end, so that its last response arrives; one that is
handed over is neither read nor written. What it has in common with one of HTTP/2 is `client_connection`'s. It is made
of parts that know nothing of each other:

- `request_pipeline` has the requests: what has arrived, when each begins, what follows it; it sees the connection as
  `PipelinedConnection`, and each request and response sees it as `RequestSource` and `ResponseSink`;
- `write_buffer` is what responses are written through;
- `connection_states` has the states, `timeouts` the periods and `http1_deadlines` what follows them, `closing` the end,
  `http1_departure` what the worker's phases do to it, `hand_over` the way to another worker, `http1_life` what goes
  there in the middle of a response.

It asks its transport for no more than `asyncio.Transport` has, and for its socket by `client_socket` alone: whatever
stands between a socket and HTTP is attached by `connection_made` like a transport of the loop's. It must not know how
the worker accepts, retires or hands over, nor what a request is.
"""

from __future__ import annotations

import asyncio
import math
from typing import Final

from serve_asgi.http import http1_departure
from serve_asgi.http.client_connection import HttpConnection
from serve_asgi.http.client_socket import reset as reset_socket
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
)
from serve_asgi.http.hand_over import HandOver
from serve_asgi.http.hand_over_record import HandOverRecord
from serve_asgi.http.http1_deadlines import RecordTimes, expire
from serve_asgi.http.http1_life import Http1Life, begin_life
from serve_asgi.http.refusals import timed_out
from serve_asgi.http.request_body import RequestBody
from serve_asgi.http.request_head import Head
from serve_asgi.http.request_pipeline import RequestPipeline
from serve_asgi.http.request_timeouts import RequestTimeouts, is_unanswered, report
from serve_asgi.http.response import Response
from serve_asgi.http.response_head import CONTINUE
from serve_asgi.http.survival import Survival
from serve_asgi.http.survival_record import SurvivalRecord
from serve_asgi.http.timeouts import Timeouts
from serve_asgi.http.worker_context import WorkerContext, WorkerPhase
from serve_asgi.websocket.connection import WebSocketConnection

INFINITY: Final = math.inf
_SERVING: Final = WorkerPhase.SERVING


class Http1Connection(HttpConnection):
    """One client connection; see `serve_asgi.http.worker_context.ClientConnection` for what the worker asks of it.

    With a `record` it continues where another worker left off: addresses, deadline, number of requests and leftover
    bytes are the record's, and the leftover is processed as soon as the transport is attached. With a `survival` that
    is in the middle of a response, and the application is called for its next life.
    """

    __slots__ = ("pipeline", "records", "timeouts")

    life: Http1Life | None
    """Of the response in progress, if that is to survive."""

    def __init__(
        self, worker: WorkerContext, record: HandOverRecord | None = None, survival: SurvivalRecord | None = None
    ) -> None:
        super().__init__(worker, HandOver(record, survival))
        self.timeouts = Timeouts(worker, self.output)
        self.pipeline = RequestPipeline(worker, self.output, self.timeouts)
        self.deadline = INFINITY
        self.records = RecordTimes()

    # ---- what the transport says

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Attached: serve, or continue where the other worker left off."""
        self.attach(transport)
        worker = self.worker
        record, survival = self.hand_over.arrived(), self.hand_over.next_life()
        if survival is None:
            self.become(IDLE)
        if record is None:
            self.ask_for_ends()
            self.deadline = worker.loop.time() + worker.config.first_byte_timeout
        else:
            self.take_ends_from(record)
            self.pipeline.requests = record.requests
            self.deadline = record.deadline
            if self.tls is not None and self.tls.holds_half_a_record():
                self.records.begin(record.deadline, record.deadline)
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
            self.drop_received(len(data))
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
        return state is LEAVING or state is PARTED or self.awaits_end_of_writing()

    def lose(self) -> None:
        """Nothing is heard of the client any more."""
        self.deadline = INFINITY
        self.pipeline.lose()
        self._drop_life()

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
            self.worker.loop.call_soon(self.go_on_closing)
        elif self.state is IDLE or self.state is PARTED:
            self.worker.loop.call_soon(self.settle)

    def adjust_reading(self) -> None:
        """Pause reading while too much has arrived that nobody has taken, or while leaving; read on otherwise."""
        pause = self.state is LEAVING or self.pipeline.is_full(self.state)
        if pause is not self.read_paused and self.switch_reading(pause) and not pause and self.state is REQUEST:
            self.expect_body()

    # ---- between two requests

    def settle(self) -> None:
        """A connection that is idle, or between two lives, goes on, leaves, or ends, as the worker's phase has it."""
        if self.state is IDLE:
            http1_departure.settle(self)
        elif self.state is PARTED and self.life is not None:
            self.life.move_on()

    def serve(self) -> None:
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
        if not self.records.runs(self.deadline):
            self.deadline = self.timeouts.head()

    def record_arriving(self, half: bool) -> None:
        """The beginning of a TLS record has come (`half`), or one that is whole and says nothing to the application."""
        self.records.arriving(self, half)

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
        expire(self, self.records)

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
        self.become(CLOSING)
        self.pipeline.buffer.clear()
        self.finish_politely()

    def close(self) -> None:
        """There is nothing more to say: what is written is flushed."""
        self.become(CLOSING)
        self.pipeline.buffer.clear()
        closing = self.begin_closing()
        closing.close()
        self.deadline = closing.deadline

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

    # ---- hand-over

    def retire(self) -> None:
        """The worker's phase has left SERVING: leave as soon as that loses nothing. May be called again."""
        if self.life is not None:
            self.life.retire()
        self.settle()

    def resume(self) -> None:
        """The worker serves again: the phase says so, and the end of a life that was planned is off."""
        self.hand_over.refused = False
        if self.life is not None:
            self.life.call_off()
            self.settle()

    def remain(self) -> None:
        """Nobody can take this connection now: it is served here until `retire()` is called again."""
        if self.state is IDLE:
            self.transport.set_write_buffer_limits()
            self.serve()
        elif self.state is PARTED and self.life is not None:
            self.life.go_on_here()

    def can_leave(self) -> bool:
        """Whether `leave()` is possible now: no request in progress, or one between two lives; all that is written with
        the kernel; the client still there.
        """
        return ((self.state is IDLE and not self.eof) or self.state is PARTED) and self.is_written()

    def leave(self) -> tuple[int, HandOverRecord]:
        """Stop reading and writing; a duplicate of the descriptor (the caller owns it) and the record.

        Only while `can_leave()`; afterwards the worker calls `stay()` or `gone()`. Raises OSError, with nothing
        changed, if there is no descriptor to be had.
        """
        assert self.can_leave(), "leave() needs can_leave()"
        return self.hand_over.leave(self, http1_departure.record_of(self))

    def stay(self) -> None:
        """The hand-over failed: go on exactly as before."""
        if self.hand_over.stay(self):
            self.transport.set_write_buffer_limits()
            self.worker.loop.call_soon(self._resume)

    def _resume(self) -> None:
        if self.worker.phase is WorkerPhase.CLOSING:
            self.settle()
        else:
            self.serve()

    def gone(self) -> None:
        """The hand-over is committed: drop this end. The client sees nothing: a duplicate lives elsewhere."""
        if self.hand_over.commit(self):
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
