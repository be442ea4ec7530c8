"""HTTP/2 on one client connection: its life, from the attached transport to its end or its hand-over.

It owns the connection's state, its one deadline, when its transport is read and written, and who works for which
stream. What the bytes mean is the core's (`serve_asgi.http.h2`), what is done on a stream is its handler's
(`serve_asgi.http2.exchange`). Rules: what one turn of the loop brings goes out in one write; no stream is lost when the
connection ends: the client is told by GOAWAY in two steps (RFC 9113 6.8), and what it has begun meanwhile is served;
one that is handed over is neither read nor written.

On its way to another worker it has to rest for a moment, all requests answered. So a retiring worker lets the core hold
back what begins new ones, for `--h2-hold` at most: then the connection leaves, and the other worker goes on with what
was held; or else the client is told to open another one. It must not know how the worker accepts, retires or hands
over.
"""

from __future__ import annotations

import asyncio
import math
from typing import Any, Final, cast

from serve_asgi.http import health, refusals
from serve_asgi.http.client_socket import hang_up, is_readable
from serve_asgi.http.closing import PoliteClose
from serve_asgi.http.connection_states import (
    CLOSED,
    CLOSING,
    IDLE,
    LEAVING,
    NEW,
    REQUEST,
    ConnectionState,
    check_transition,
)
from serve_asgi.http.h2.connection_core import ConnectionCore
from serve_asgi.http.h2.connection_value import export_connection, import_connection
from serve_asgi.http.h2.error_codes import ErrorCode
from serve_asgi.http.h2.events import (
    ClientLeaves,
    ConnectionLost,
    Event,
    StreamData,
    StreamEnd,
    StreamRefusal,
    StreamRequest,
    StreamReset,
)
from serve_asgi.http.h2.receiving import Leaving
from serve_asgi.http.h2.request_fields import MalformedRequest
from serve_asgi.http.hand_over import HandOver
from serve_asgi.http.hand_over_record import HandOverRecord
from serve_asgi.http.request_head import BadRequest, Head
from serve_asgi.http.timeouts import PEEK_TIME
from serve_asgi.http.underlying_tls import UnderlyingTls, tls_of
from serve_asgi.http.worker_context import WorkerContext, WorkerPhase
from serve_asgi.http.write_buffer import WriteBuffer
from serve_asgi.http2.exchange import Exchange
from serve_asgi.http2.own_responses import OwnResponse
from serve_asgi.http2.stream_handler import StreamHandler
from serve_asgi.ipc.peer_address import Address, own_end_of, peer_of
from serve_asgi.ipc.scoreboard import Cell

FAREWELL_TIME: Final = 5.0
"""How long (s) a client may take to answer the PING behind the first GOAWAY; then the last stream is said anyway."""
FRESH_TIME: Final = 2.0
"""A connection that cannot move, or that nobody takes, waits this long (s) for the client to begin."""
READ_LIMIT: Final = 256 * 1024
"""Bytes of frames that may wait for the transport before reading pauses."""

INFINITY: Final = math.inf
_CONNECTIONS: Final = int(Cell.CONNECTIONS)
_TLS_NOT_MOVED: Final = int(Cell.TLS_NOT_MOVED)
_BEGUN: Final = int(Cell.HTTP2_CONNECTIONS)
_STREAMS: Final = int(Cell.HTTP2_STREAMS)
_RESETS_RECEIVED: Final = int(Cell.HTTP2_RESETS_RECEIVED)
_RESETS_SENT: Final = int(Cell.HTTP2_RESETS_SENT)
_FAULTS: Final = int(Cell.HTTP2_FAULTS)
_MOVED: Final = int(Cell.HTTP2_MOVED)
_GOAWAYS: Final = int(Cell.HTTP2_GOAWAYS)
_IN_FLIGHT: Final = int(Cell.IN_FLIGHT)
_SERVING: Final = WorkerPhase.SERVING
_RETIRING: Final = frozenset({WorkerPhase.HANDING_OVER, WorkerPhase.CLOSING})


class Http2Connection(asyncio.Protocol):
    """One client connection; see `serve_asgi.http.worker_context.ClientConnection` for what the worker asks of it.

    With a `record` it continues where another worker left off.
    """

    __slots__ = (
        "_arrived",
        "_batching",
        "_closing",
        "_counted",
        "_farewell_due",
        "_flush_due",
        "_hand_over",
        "_handlers",
        "_hold_ends",
        "_idle_until",
        "_rest_due",
        "client",
        "core",
        "deadline",
        "eof",
        "output",
        "read_paused",
        "scheme",
        "server",
        "state",
        "tls",
        "transport",
        "trusted",
        "worker",
    )

    transport: asyncio.Transport

    def __init__(self, worker: WorkerContext, record: HandOverRecord | None = None) -> None:
        self.worker = worker
        config = worker.config
        self.core = ConnectionCore(worker.max_head_size, worker.check_head, config.h2_max_streams)
        self.output = WriteBuffer(worker)
        self._hand_over = HandOver(record)
        self._closing: PoliteClose | None = None
        self._handlers: dict[int, StreamHandler] = {}
        self._arrived = b""
        """What was read before the connection could begin, or after it has left."""
        self._batching = False
        """What has come is being looked at: what is written waits for the end of that."""
        self._flush_due = False
        self._hold_ends: asyncio.TimerHandle | None = None
        self._idle_until = INFINITY
        """The deadline of a connection on which nothing is in progress."""
        self._rest_due = INFINITY
        """When a frame that has begun to come must be whole, while nothing is in progress."""
        self._farewell_due = INFINITY
        """When the last stream is said, though the client has not answered the first GOAWAY."""
        self._counted = False
        """The worker has it among its connections already."""
        self.client: Address = None
        self.server: Address = None
        """Both are asked of the transport in `connection_made` unless whoever makes the connection knows them."""
        self.scheme = "http"
        self.trusted = False
        self.tls: UnderlyingTls | None = None
        self.state = NEW
        self.deadline = INFINITY
        self.eof = False
        """The client has shut down its write side. It may still read: what it has sent whole is answered."""
        self.read_paused = False

    def become(self, state: ConnectionState) -> None:
        """Change the state, by a way that the table has."""
        check_transition(self.state, state)
        self.state = state

    # ---- what the transport says

    def continue_from(
        self, client: Address, server: Address, scheme: str, trusted: bool, transport: asyncio.Transport, data: bytes
    ) -> None:
        """Go on with a connection of HTTP/1.1 that has turned out to speak HTTP/2 from its beginning: `data`."""
        self.client, self.server, self.scheme, self.trusted = client, server, scheme, trusted
        self._counted = True
        self._arrived = data
        self.connection_made(transport)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Attached: serve, or continue where the other worker left off."""
        self.transport = self.output.transport = cast(asyncio.Transport, transport)
        self.tls = tls_of(transport)
        worker, record = self.worker, self._hand_over.arrived()
        worker.connections.add(self)
        if not self._counted:
            worker.cells[_CONNECTIONS] += 1
        self.become(IDLE)
        now = worker.loop.time()
        if record is None or record.http2 is None:
            self._begin(record, now)
        else:
            self.client, self.server, self.scheme = record.client, record.server, record.scheme
            self.trusted = worker.forwarding.trusts(record.client) if record.trusted is None else record.trusted
            import_connection(self.core, record.http2)
            self._arrived = record.leftover
            self.deadline = self._idle_until = record.deadline
        if self._arrived or worker.phase is not _SERVING or self.core.waiting:
            worker.loop.call_soon(self._go_on)  # uvloop begins to read after this, whatever it has said of reading

    def _begin(self, record: HandOverRecord | None, now: float) -> None:
        """A new connection, of which a `record` may know the ends."""
        worker, transport = self.worker, self.transport
        if record is not None:
            self.client, self.server, self.scheme = record.client, record.server, record.scheme
            self.trusted = worker.forwarding.trusts(record.client) if record.trusted is None else record.trusted
            self.deadline = record.deadline
        elif self._counted:
            self.deadline = now + worker.config.head_timeout
        else:
            self.client = self.client or peer_of(transport)
            self.server = self.server or own_end_of(transport)
            self.trusted = worker.forwarding.trusts(self.client)
            self.deadline = now + worker.config.first_byte_timeout
        self._idle_until = self.deadline
        worker.cells[_BEGUN] += 1
        self.core.begin(worker.max_head_size, worker.config.h2_max_streams)

    def _go_on(self) -> None:
        """Process what another worker, or HTTP/1.1, had read."""
        if self.state is not IDLE:
            return
        self._receive_what_came()
        if self.state is IDLE or self.state is REQUEST:
            self.settle()

    def _receive_what_came(self) -> None:
        data, self._arrived = self._arrived, b""
        self._receive(data)
        if self.eof:
            self._client_has_ended()

    def data_received(self, data: bytes) -> None:
        """Bytes from the client."""
        self.worker.received += len(data)
        state = self.state
        if state is IDLE or state is REQUEST:
            if self._arrived:  # what came before it waits for its turn
                self._arrived += data
            else:
                self._receive(data)
        elif state is CLOSING:
            if self._closing is not None:
                self._closing.received(len(data))
        else:
            self._arrived += data  # LEAVING: nothing is lost if it stays after all

    def _receive(self, data: bytes) -> None:
        """Look at what has come, do what follows from it, and write what that brings, all at once."""
        self._batching = True
        try:
            self._handle(self.core.receive(data))
        finally:
            self._batching = False
            self.flush()
        if self.state is IDLE:
            if not self.core.in_the_middle:
                self._rest_due = INFINITY
            elif self._rest_due == INFINITY:
                self._expect_rest()
        if self.core.shutting_down is not Leaving.NO:
            self._end_if_over()
        if self.core.unwritten > READ_LIMIT:
            self.adjust_reading()

    def eof_received(self) -> bool:
        """The client has shut down its write side; True keeps the transport for what is still to be written."""
        self.eof = True
        if (self.state is IDLE or self.state is REQUEST) and not self._arrived:
            self._client_has_ended()
        if self.state is CLOSING:
            return self._closing is not None and not self._closing.lingering
        return self.state is not IDLE or bool(self._arrived) or self.core.waiting

    def _client_has_ended(self) -> None:
        """Answer what has come whole, also of what was held back; nothing else will."""
        self._serve()
        for handler in list(self._handlers.values()):
            handler.receive_eof()
        self.core.finish_shutdown()
        self.flush()
        self._end_if_over()

    def connection_lost(self, exc: Exception | None) -> None:
        """The transport is closed, by either side."""
        if self.state is CLOSING and self.worker.phase in _RETIRING and self.is_stationary():
            self.worker.cells[_TLS_NOT_MOVED] += 1
        if self.state is not CLOSED:
            hang_up(self.transport)  # unless that is done, or not ours to do
            self.state = CLOSED
        self._end_handlers()
        output = self.output
        output.paused = False
        output.drop_held()
        self.forget()

    def _end_handlers(self) -> None:
        """Nothing is heard of the client any more."""
        self.deadline = INFINITY
        self._stop_holding()
        handlers, self._handlers = self._handlers, {}
        for handler in handlers.values():
            handler.lose()

    def forget(self) -> None:
        """The worker has one connection less."""
        worker = self.worker
        if self in worker.connections:
            worker.cells[_CONNECTIONS] -= 1
            worker.forget(self)

    def pause_writing(self) -> None:
        """The client reads more slowly than is written: the core keeps what there is."""
        self.output.paused = True
        self.output.watch_client()
        self.expect(self.worker.loop.time() + self.worker.config.write_timeout)

    def resume_writing(self) -> None:
        """What was to be written is (nearly) written.

        What follows from it comes soon, not now: a transport of asyncio's that is closed in here closes twice.
        """
        self.output.paused = False
        self.worker.loop.call_soon(self._resumed)

    def _resumed(self) -> None:
        if self.state is CLOSING:
            if self._closing is not None:
                self._closing.flushed()
                self.deadline = self._closing.deadline
        elif self.state is IDLE or self.state is REQUEST:
            if self.state is IDLE:  # the time begins when the last response has been read
                self.deadline = self._idle_until = self.worker.loop.time() + self.worker.keep_alive
            self.flush()
            self.settle()

    @property
    def blocked(self) -> bool:
        """Whether the transport takes no more."""
        return self.output.paused

    def adjust_reading(self) -> None:
        """Pause reading while too much waits to be written, or while leaving; read on otherwise."""
        pause = self.state is LEAVING or self.core.unwritten > READ_LIMIT
        if pause is not self.read_paused and not self.transport.is_closing() and not self.eof:
            self.read_paused = pause
            if pause:
                self.transport.pause_reading()
            else:
                self.transport.resume_reading()

    # ---- what the client has done

    def _handle(self, events: list[Event]) -> None:
        """Do what follows from each event, in their order."""
        handlers = self._handlers
        for event in events:
            kind = type(event)
            if kind is StreamRequest:
                self._begin_request(cast(StreamRequest, event))
            elif kind is StreamData:
                stream_id, data = cast(StreamData, event)
                handler = handlers.get(stream_id)
                if handler is None:
                    self.core.consumed(stream_id, len(data))
                else:
                    handler.receive_data(data)
            elif kind is StreamEnd:
                stream_id, trailers = cast(StreamEnd, event)
                handler = handlers.get(stream_id)
                if handler is not None:
                    handler.receive_end(trailers)
            elif kind is StreamReset:
                stream_id, _, reason = cast(StreamReset, event)
                if not reason:
                    self.worker.cells[_RESETS_RECEIVED] += 1
                handler = handlers.get(stream_id)
                if handler is not None:
                    handler.receive_reset()
            else:
                self._handle_rare(event)

    def _handle_rare(self, event: Event) -> None:
        if isinstance(event, StreamRefusal):
            stream_id, refused, method, _ = event
            code = ErrorCode.PROTOCOL_ERROR if isinstance(refused, MalformedRequest) else ErrorCode.NO_ERROR
            response = refusals.bad_request(self.worker, self, refused, method != b"HEAD")
            self._respond_itself(stream_id, response, code)
        elif isinstance(event, ClientLeaves):
            self.core.finish_shutdown()
            self.worker.loop.call_soon(self._end_if_over)
        elif isinstance(event, ConnectionLost):
            self.worker.cells[_FAULTS] += 1
            self._end_handlers()

    def _begin_request(self, event: StreamRequest) -> None:
        worker, stream_id, head = self.worker, event.stream_id, event.head
        worker.cells[_STREAMS] += 1
        if head.path == worker.health_path and head.method in health.METHODS:
            self._respond_itself(stream_id, health.response(worker, head, False))
            return
        if worker.published[0] > worker.shared.applied:
            worker.catch_up()
        if head.websocket:
            self._begin_websocket(stream_id, head)
            return
        if worker.max_concurrency and worker.cells[_IN_FLIGHT] >= worker.max_concurrency:
            self._respond_itself(stream_id, refusals.overloaded(worker, self, head, False))
            return
        if self.state is IDLE:
            self._begin_work()
        exchange = Exchange(self, stream_id)
        if exchange.begin(event):
            self._handlers[stream_id] = exchange
        elif not self._handlers:
            self._rest()

    def _begin_work(self) -> None:
        """A request is in progress."""
        self.state = REQUEST
        self.deadline = self._farewell_due
        if self.worker.phase is not _SERVING:
            self.worker.loop.call_soon(self.settle)  # others may follow before it has ended, and the connection leaves

    def _begin_websocket(self, stream_id: int, head: Head) -> None:
        """RFC 8441."""
        refused = BadRequest(501, "WebSockets over HTTP/2 are not supported.")
        self._respond_itself(stream_id, refusals.bad_request(self.worker, self, refused))

    def _respond_itself(self, stream_id: int, response: bytes, code: ErrorCode = ErrorCode.NO_ERROR) -> None:
        """Answer without the application, by a response that is given as HTTP/1.1 has it."""
        own = OwnResponse(self, stream_id, code)
        if self.state is IDLE:
            self._begin_work()
        if own.begin(response):
            self._handlers[stream_id] = own
        elif not self._handlers:
            self._rest()
        self.flush_soon()

    def forget_stream(self, stream_id: int) -> None:
        """Nobody works for the stream any more."""
        if self._handlers.pop(stream_id, None) is not None and not self._handlers:
            self._rest()

    def is_last(self) -> None:
        """A response is complete: the connection's last if the worker says so to all clients."""
        if self.worker.announce_close and self.core.shutting_down is Leaving.NO:
            self._announce_end()

    def _rest(self) -> None:
        """No request is in progress any more. What is next is decided soon, not inside the application's `send`."""
        if self.state is not REQUEST:
            return
        worker = self.worker
        self.state = IDLE
        self._idle_until = worker.loop.time() + worker.keep_alive
        self.deadline = min(self._idle_until, self._farewell_due)
        self._rest_due = INFINITY
        if worker.phase is not _SERVING or self.eof or self.core.shutting_down is not Leaving.NO or self.core.holding:
            worker.loop.call_soon(self.settle)

    # ---- writing

    def flush_soon(self) -> None:
        """Write what the core has to say, once, at the end of this turn of the loop."""
        if not self._batching and not self._flush_due:
            self._flush_due = True
            self.worker.loop.call_soon(self._flush_now)

    def _flush_now(self) -> None:
        self._flush_due = False
        self.flush()
        if self.read_paused:
            self.adjust_reading()

    def flush(self) -> None:
        """Write what the core has to say, unless the transport takes nothing."""
        core, output = self.core, self.output
        if resets := core.take_resets():
            self.worker.cells[_RESETS_SENT] += resets
        if core.waiting and not output.paused and self.state is not CLOSED:
            output.write(core.take_output())
            for stream_id in core.take_drained():
                handler = self._handlers.get(stream_id)
                if handler is not None:
                    handler.drained()
            if core.waiting:
                self.flush_soon()
        if core.lost is not None and not core.waiting and (self.state is IDLE or self.state is REQUEST):
            self.finish()

    # ---- between requests

    def settle(self) -> None:
        """Go on, leave or end, as the worker's phase has it, if that is possible now."""
        if self.state is not IDLE and self.state is not REQUEST:
            return
        self.flush()
        if self.tls is not None:
            self.tls.flush()
        worker, core = self.worker, self.core
        if self._end_if_over() or core.shutting_down is not Leaving.NO:
            return
        if worker.phase is _SERVING or self.eof:
            self._serve()
        elif worker.phase is WorkerPhase.LENDING:
            self._lend()
        elif worker.phase is WorkerPhase.HANDING_OVER and not self.is_stationary():
            self._leave_soon()
        elif not core.settled and not worker.last_call:  # its first request is on its way
            self._idle_until = min(self._idle_until, worker.loop.time() + FRESH_TIME)
            self.expect(self._idle_until)
        elif worker.phase is WorkerPhase.CLOSING or worker.last_call or core.requests:
            worker.cells[_GOAWAYS] += 1
            self._announce_end()

    def _end_if_over(self) -> bool:
        """End the connection if the last stream has been said, and has ended."""
        core = self.core
        over = core.shutting_down is Leaving.FINAL and core.resting and not core.waiting
        if over and (self.state is IDLE or self.state is REQUEST):
            self.finish()
        return over

    def _serve(self) -> None:
        """Go on with what was held back, if anything was."""
        self._stop_holding()
        if self.core.holding:
            self._batching = True
            try:
                self._handle(self.core.release())
            finally:
                self._batching = False
                self.flush()
        self.adjust_reading()

    def _lend(self) -> None:
        """Go to the canary if it is to have another connection, and this one rests; else go on here."""
        worker = self.worker
        if worker.to_lend > 0 and worker.hand_over is not None and self.can_leave() and not self.is_stationary():
            worker.to_lend -= 1
            worker.hand_over(self)
        else:
            self._serve()

    def _leave_soon(self) -> None:
        """Leave now, or hold back what begins new requests until those in progress have ended."""
        worker, core = self.worker, self.core
        if core.resting and self.state is IDLE:
            if self.transport.get_write_buffer_size() or self.output.unwritten():
                self.output.flush()
                self.transport.set_write_buffer_limits(0)  # comes again from resume_writing
            if worker.hand_over is not None and self.output.unwritten() == 0:
                worker.hand_over(self)
        elif self._hold_ends is None:
            core.hold()
            self._hold_ends = worker.loop.call_later(worker.config.h2_hold, self._hold_no_longer)
        elif not core.holding:  # more has come than may wait
            self._hold_no_longer()

    def _hold_no_longer(self) -> None:
        """The requests in progress take longer: the client is told to open another connection, and served meanwhile."""
        if self.state is not IDLE and self.state is not REQUEST:
            return
        waits_for_its_turn = self.core.resting
        self._serve()
        if not waits_for_its_turn and self.worker.phase is not _SERVING:
            self.worker.cells[_GOAWAYS] += 1
            self._announce_end()

    def _stop_holding(self) -> None:
        if self._hold_ends is not None:
            self._hold_ends.cancel()
            self._hold_ends = None

    # ---- deadlines

    def expect(self, deadline: float) -> None:
        """A handler has a deadline."""
        if deadline < self.deadline:
            self.deadline = deadline

    def _expect_rest(self) -> None:
        """A frame has begun to come: it is to be whole in the time of a head."""
        self._rest_due = self.worker.loop.time() + self.worker.config.head_timeout
        self.expect(self._rest_due)

    def record_arriving(self, half: bool) -> None:
        """The beginning of a TLS record has come (`half`), or one that is whole and says nothing to the application."""
        if half and self.state is IDLE and self._rest_due == INFINITY:
            self._expect_rest()

    def asked_at(self) -> float:
        """When the oldest request in progress began (time.perf_counter, s), or infinity."""
        return min([handler.begun for handler in self._handlers.values()], default=INFINITY)

    def expire(self) -> None:
        """The deadline has passed."""
        self.deadline = INFINITY
        if self.state is CLOSING:
            if self._closing is not None:
                self._closing.expire()
                self.deadline = self._closing.deadline
        elif self.output.paused and self.output.stalled():
            self.reset()
        elif self.state is IDLE:
            self._expire_idle()
        elif self.state is REQUEST:
            self._expire_handlers()

    def _expire_handlers(self) -> None:
        now = self.worker.loop.time()
        if self.output.paused:
            self.expect(now + self.worker.config.write_timeout)
        for handler in list(self._handlers.values()):
            if handler.deadline <= now:
                handler.expire()
            self.expect(handler.deadline)
        self._bid_farewell(now)
        self.expect(self._farewell_due)

    def _expire_idle(self) -> None:
        """The client asks for nothing, or has not begun as it must, or has not answered our farewell."""
        worker, output = self.worker, self.output
        now = worker.loop.time()
        if self._bid_farewell(now):
            return
        due = min(self._idle_until, self._farewell_due, self._rest_due)
        if now < due:  # the deadline was that of something else, which has ended
            self.deadline = due
        elif output.unwritten():
            output.watch_client()
            self.deadline = now + worker.config.write_timeout
        elif not self.core.settled:
            self.finish()
        elif is_readable(self.transport):
            self.deadline = now + PEEK_TIME
        elif self.core.shutting_down is Leaving.NO:
            self._rest_due = INFINITY
            self._announce_end()

    def _bid_farewell(self, now: float) -> bool:
        """Take the second step, if it is time for it, though the client has not answered the first one."""
        if now < self._farewell_due:
            return False
        self._farewell_due = INFINITY
        self.core.finish_shutdown()
        self.flush()
        self._end_if_over()
        return True

    # ---- ends

    def _announce_end(self) -> None:
        """Tell the client to begin nothing more here; what is on its way is served."""
        if self.eof or not self.core.settled:
            self.core.finish_shutdown()
        else:
            self.core.announce_shutdown()
            self._farewell_due = self.worker.loop.time() + FAREWELL_TIME
            self.expect(self._farewell_due)
        self.flush_soon()
        self.worker.loop.call_soon(self._end_if_over)

    def finish(self) -> None:
        """Everything is said: end politely."""
        self.become(CLOSING)
        self._end_handlers()
        self.output.flush()
        self._closing = closing = PoliteClose(self.worker, self.output, self.eof)
        if self.transport.is_closing():
            closing.close()
        else:
            if self.read_paused:
                self.adjust_reading()
            closing.shut_down()
        self.deadline = closing.deadline

    def reset(self) -> None:
        """End at once: the client takes nothing."""
        self.become(CLOSING)
        self._end_handlers()
        self.output.drop_held()
        self.transport.abort()

    def cut(self) -> bool:
        """At the graceful timeout: end at once, cancelling the applications' tasks. True if anything was cut."""
        if self.state is not IDLE and self.state is not REQUEST and self.state is not CLOSING:
            return False
        unfinished = self.output.unwritten() > 0 or self.core.waiting
        cut = [handler.cut() for handler in list(self._handlers.values())]
        self.core.finish_shutdown()
        if not self.output.paused:
            self.flush()
            self.output.flush()
        if self.state is not CLOSING:
            self.become(CLOSING)
        self._end_handlers()
        self.output.drop_held()
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self.transport.close()
        return any(cut) or unfinished

    def let_go(self, instead: Any) -> asyncio.Transport:
        """In a forked child: see `serve_asgi.http.worker_context.ClientConnection`."""
        transport, self.transport, self.output.transport = self.transport, instead, instead
        return transport

    # ---- hand-over

    def retire(self) -> None:
        """The worker's phase has left SERVING: leave as soon as that loses nothing. May be called again."""
        for handler in list(self._handlers.values()):
            handler.retire()
        self.settle()

    def resume(self) -> None:
        """The worker serves again."""
        self.settle()

    def remain(self) -> None:
        """Nobody can take this connection now: it is served here until `retire()` is called again."""
        if self.state is IDLE:
            self.transport.set_write_buffer_limits()
            self._serve()

    def can_leave(self) -> bool:
        """Whether `leave()` is possible now: nothing in progress; all that is written with the kernel; the client still
        there.
        """
        core = self.core
        return (
            self.state is IDLE
            and not self.eof
            and core.resting
            and not core.waiting
            and core.lost is None
            and core.shutting_down is Leaving.NO
            and not self.transport.is_closing()
            and self.output.unwritten() == 0
            and (self.tls is None or self.tls.can_move())
        )

    def is_stationary(self) -> bool:
        """Whether no other process could go on with it: it ends when this worker does (TLS 1.2)."""
        return self.tls is not None and self.tls.stays()

    def leave(self) -> tuple[int, HandOverRecord]:
        """Stop reading and writing; a duplicate of the descriptor (the caller owns it) and the record.

        Only while `can_leave()`; afterwards the worker calls `stay()` or `gone()`. Raises OSError, with nothing
        changed, if there is no descriptor to be had.
        """
        assert self.can_leave(), "leave() needs can_leave()"
        value, unread = export_connection(self.core)
        record = HandOverRecord(
            unread + self._arrived,
            self.client,
            self.server,
            self.deadline,
            self.core.requests,
            self.scheme,
            self.trusted,
            http2=value,
        )
        left = self._hand_over.leave(self, record)
        self._stop_holding()
        return left

    def stay(self) -> None:
        """The hand-over failed: go on exactly as before."""
        if self._hand_over.stay(self):
            self.transport.set_write_buffer_limits()
            self.worker.loop.call_soon(self._resume)

    def _resume(self) -> None:
        if self.state is not IDLE and self.state is not REQUEST:
            return
        self._serve()
        self._receive_what_came()
        if self.worker.phase is WorkerPhase.CLOSING:
            self.settle()

    def gone(self) -> None:
        """The hand-over is committed: drop this end. The client sees nothing: a duplicate lives elsewhere."""
        if self._hand_over.commit(self):
            self.worker.cells[_MOVED] += 1
            self._end_handlers()
