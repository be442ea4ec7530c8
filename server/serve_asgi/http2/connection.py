"""HTTP/2 on one client connection: its life, from the attached transport to its end or its hand-over.

It owns the connection's state, and when its transport is read, written and ended. What the bytes mean is the core's
(`serve_asgi.http.h2`), who works for which stream `serve_asgi.http2.stream_dispatch`'s, when something is overdue
`serve_asgi.http2.deadlines`', and how the connection leaves its worker `serve_asgi.http2.departure`'s. Rules: what one
turn of the loop brings goes out in one write; no stream is lost when the connection ends: the client is told by GOAWAY
in two steps (RFC 9113 6.8), and what it has begun meanwhile is served. What it has in common with one of HTTP/1.1 is
`serve_asgi.http.client_connection`'s. It must not know how the worker accepts, retires or hands over.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Final

from serve_asgi.http.client_connection import HttpConnection
from serve_asgi.http.client_socket import reset as reset_socket
from serve_asgi.http.connection_states import (
    CLOSED,
    CLOSING,
    IDLE,
    LEAVING,
    REQUEST,
)
from serve_asgi.http.h2.connection_core import ConnectionCore
from serve_asgi.http.h2.connection_value import import_connection
from serve_asgi.http.h2.limits import REQUESTS_AT_ONCE
from serve_asgi.http.h2.receiving import Leaving
from serve_asgi.http.hand_over import HandOver
from serve_asgi.http.hand_over_record import HandOverRecord
from serve_asgi.http.survival import Survival
from serve_asgi.http.survival_record import unpack_streams
from serve_asgi.http.worker_context import WorkerContext, WorkerPhase
from serve_asgi.http2.deadlines import Deadlines
from serve_asgi.http2.departure import Departure, can_leave
from serve_asgi.http2.stream_dispatch import StreamDispatch
from serve_asgi.http2.stream_lives import StreamLives, arrive
from serve_asgi.ipc.peer_address import Address
from serve_asgi.ipc.scoreboard import Cell

if TYPE_CHECKING:
    from serve_asgi.http.request_timeouts import RequestTimeouts

READ_LIMIT: Final = 256 * 1024
"""Bytes of frames that may wait for the transport before reading pauses."""

INFINITY: Final = math.inf
_BEGUN: Final = int(Cell.HTTP2_CONNECTIONS)
_GOAWAYS: Final = int(Cell.HTTP2_GOAWAYS)
_RESETS_SENT: Final = int(Cell.HTTP2_RESETS_SENT)
_NOT_LEAVING: Final = Leaving.NO
_SERVING: Final = WorkerPhase.SERVING
_RETIRING: Final = frozenset({WorkerPhase.HANDING_OVER, WorkerPhase.CLOSING})


class Http2Connection(HttpConnection):
    """One client connection; see `serve_asgi.http.worker_context.ClientConnection` for what the worker asks of it.

    With a `record` it continues where another worker left off.
    """

    __slots__ = (
        "_batching",
        "_counted",
        "_flush_due",
        "arrived",
        "core",
        "deadlines",
        "departure",
        "lives",
        "streams",
    )

    def __init__(self, worker: WorkerContext, record: HandOverRecord | None = None) -> None:
        super().__init__(worker, HandOver(record))
        config = worker.config
        self.core = ConnectionCore(
            worker.max_head_size, worker.check_head, config.h2_max_streams, at_once=REQUESTS_AT_ONCE
        )
        self.streams = StreamDispatch()
        self.deadline = INFINITY
        self.deadlines = Deadlines(worker)
        self.departure = Departure()
        self.lives: StreamLives | None = None
        """Of the streams that are to survive, once the worker retires."""
        self.arrived = b""
        """What was read before the connection could begin, or after it has left."""
        self._batching = False
        """What has come is being looked at: what is written waits for the end of that."""
        self._flush_due = False
        self._counted = False
        """The worker has it among its connections already."""

    # ---- what the transport says

    def continue_from(
        self, client: Address, server: Address, scheme: str, trusted: bool, transport: asyncio.Transport, data: bytes
    ) -> None:
        """Go on with a connection of HTTP/1.1 that has turned out to speak HTTP/2 from its beginning: `data`."""
        self.client, self.server, self.scheme, self.trusted = client, server, scheme, trusted
        self._counted = True
        self.arrived = data
        self.connection_made(transport)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Attached: serve, or continue where the other worker left off."""
        self.attach(transport, self._counted)
        worker, record = self.worker, self.hand_over.arrived()
        self.become(IDLE)
        if record is None or record.http2 is None:
            self._begin(record)
        else:
            self.take_ends_from(record)
            import_connection(self.core, record.http2)
            self.deadlines.begin(self, record.deadline)
            if record.survives:
                self.lives = StreamLives(worker, worker.loop.time())
                streams, self.arrived = unpack_streams(record.leftover)
                arrive(self, streams)
            else:
                self.arrived = record.leftover
        if self.arrived or worker.phase is not _SERVING or self.core.waiting:
            worker.loop.call_soon(self._go_on)  # uvloop begins to read after this, whatever it has said of reading

    def _begin(self, record: HandOverRecord | None) -> None:
        """A new connection, of which a `record` may know the ends."""
        worker = self.worker
        now = worker.loop.time()
        if record is not None:
            self.take_ends_from(record)
            self.deadlines.begin(self, record.deadline)
        elif self._counted:
            self.deadlines.begin(self, now + worker.config.first_byte_timeout)
        else:
            self.ask_for_ends()
            self.deadlines.begin(self, now + worker.config.first_byte_timeout)
        worker.cells[_BEGUN] += 1
        self.core.begin(worker.max_head_size, worker.config.h2_max_streams)

    def _go_on(self) -> None:
        """Process what another worker, or HTTP/1.1, had read, or what was too much for one turn of the loop."""
        if self.state is not IDLE and self.state is not REQUEST:
            return
        self.receive_arrived()
        if self.state is IDLE or self.state is REQUEST:
            self.settle()

    def receive_arrived(self) -> None:
        """Go on with what had to wait."""
        data, self.arrived = self.arrived, b""
        self._receive(data)
        if self.eof and not self.core.more:
            self._client_has_ended()

    def data_received(self, data: bytes) -> None:
        """Bytes from the client."""
        self.worker.received += len(data)
        state = self.state
        if state is IDLE or state is REQUEST:
            if self.arrived:  # what came before it waits for its turn
                self.arrived += data
            else:
                self._receive(data)
        elif state is CLOSING:
            self.drop_received(len(data))
        else:
            self.arrived += data  # LEAVING: nothing is lost if it stays after all

    def _receive(self, data: bytes) -> None:
        """Look at what has come, do what follows from it, and write what that brings, all at once."""
        core = self.core
        self._batching = True
        try:
            self.streams.handle(self, core.receive(data))
        finally:
            self._batching = False
            self.flush()
        if self.state is IDLE:
            self.deadlines.frame_arriving(self, core.in_the_middle)
        receiver = core.receiver
        if receiver.leaving is not _NOT_LEAVING:
            self.end_if_over()
        if receiver.more:
            self.worker.loop.call_soon(self._go_on)
        if core.unwritten > READ_LIMIT or receiver.more or self.read_paused:
            self.adjust_reading()

    def release(self) -> None:
        """Go on with what the core has held back."""
        self._batching = True
        try:
            self.streams.handle(self, self.core.release())
        finally:
            self._batching = False
            self.flush()

    def eof_received(self) -> bool:
        """The client has shut down its write side; True keeps the transport for what is still to be written."""
        self.eof = True
        if (self.state is IDLE or self.state is REQUEST) and not self.arrived and not self.core.more:
            self._client_has_ended()
        if self.state is CLOSING:
            return self.awaits_end_of_writing()
        return self.state is not IDLE or bool(self.arrived) or self.core.more or self.core.waiting

    def _client_has_ended(self) -> None:
        """Answer what has come whole, also of what was held back; nothing else will."""
        self.departure.serve(self)
        self.streams.receive_eof()
        self.core.finish_shutdown()
        self.flush()
        self.end_if_over()

    def lose(self) -> None:
        """Nothing is heard of the client any more."""
        self.deadline = INFINITY
        self.departure.stop_holding()
        self.core.abandon()
        if self.lives is not None:
            self.lives.stop()
        self.streams.lose()

    def pause_writing(self) -> None:
        """The client reads more slowly than is written: the core keeps what there is."""
        self.output.paused = True
        self.deadlines.writing_paused(self)

    def resume_writing(self) -> None:
        """What was to be written is (nearly) written.

        What follows from it comes soon, not now: a transport of asyncio's that is closed in here closes twice.
        """
        self.output.paused = False
        self.deadlines.writing_resumed()
        self.worker.loop.call_soon(self._resumed)

    def _resumed(self) -> None:
        if self.state is CLOSING:
            self.go_on_closing()
        elif self.state is IDLE or self.state is REQUEST:
            if self.state is IDLE:  # the time begins when the last response has been read
                self.deadlines.rest(self)
            self.flush()
            if self.read_paused:
                self.adjust_reading()
            self.settle()

    @property
    def blocked(self) -> bool:
        """Whether the transport takes no more."""
        return self.output.paused

    def adjust_reading(self) -> None:
        """Pause reading while too much waits to be written, or while leaving; read on otherwise."""
        pause = self.state is LEAVING or self.core.more or self.core.unwritten > READ_LIMIT
        self.switch_reading(pause)

    # ---- requests in progress

    def begin_work(self) -> None:
        """A request is in progress."""
        if self.state is IDLE:
            self.state = REQUEST
            self.deadlines.work(self)
            if self.worker.phase is not _SERVING:  # others may follow before it has ended, and the connection leaves
                self.worker.loop.call_soon(self.settle)

    def forget_stream(self, stream_id: int) -> None:
        """Nobody works for the stream any more."""
        if self.streams.forget(stream_id):
            self.rest()
        elif self.lives is not None:
            self.lives.changed(self)

    def opt_in(self, extensions: object, version: int | None) -> Survival | None:
        """See `serve_asgi.http.survival.SurvivableConnection`."""
        return self.streams.opt_in(extensions, version)

    def refuse_life(self, reason: str) -> None:
        """What the application of a stream says of its life it says to that stream's."""

    def lives_changed(self) -> None:
        """The worker retires, and something has happened to a stream that is to survive."""
        if self.lives is None:
            self.lives = StreamLives(self.worker, -INFINITY)
        self.lives.changed(self)

    def is_last(self) -> None:
        """A response is complete: the connection's last if the worker says so to all clients."""
        if self.worker.announce_close and self.core.shutting_down is Leaving.NO:
            self.worker.loop.call_soon(self.announce_end)  # what was held back begins then, and not within a `send`

    def rest(self) -> None:
        """No request is in progress any more. What is next is decided soon, not inside the application's `send`."""
        if self.state is not REQUEST:
            return
        worker, core = self.worker, self.core
        self.state = IDLE
        self.deadlines.rest(self)
        if worker.phase is not _SERVING or self.eof or core.shutting_down is not Leaving.NO or core.holding:
            worker.loop.call_soon(self.settle)

    def end_overdue(self, timeouts: RequestTimeouts) -> None:
        """End the requests in progress that have taken too long."""
        self.streams.end_overdue(timeouts)

    def asked_at(self) -> float:
        """When the oldest request in progress began (time.perf_counter, s), or infinity."""
        return self.streams.asked_at()

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
        state = self.state
        if state is not IDLE and state is not REQUEST:
            return
        if core.waiting and not output.paused:
            output.write(core.take_output())
            self.streams.drained(core.take_drained())
            if core.waiting:
                self.flush_soon()
        if core.receiver.lost is not None and not core.waiting:
            self.finish()

    # ---- deadlines

    def expect(self, deadline: float) -> None:
        """A handler has a deadline."""
        if deadline < self.deadline:
            self.deadline = deadline

    def record_arriving(self, half: bool) -> None:
        """The beginning of a TLS record has come (`half`), or one that is whole and says nothing to the application."""
        if half and self.state is IDLE:
            self.deadlines.frame_arriving(self, True)

    def expire(self) -> None:
        """The deadline has passed."""
        if self.state is IDLE or self.state is REQUEST:
            self.deadlines.expire(self)
        elif self.state is CLOSING:
            self.expire_closing()
        else:
            self.deadline = INFINITY

    # ---- ends

    def announce_end(self) -> None:
        """Tell the client to begin nothing more here; what is on its way, or was held back, is served."""
        if (self.state is not IDLE and self.state is not REQUEST) or self.core.shutting_down is not Leaving.NO:
            return
        self.departure.serve(self)
        if self.eof or not self.core.settled:
            self.core.finish_shutdown()
        else:
            self.core.announce_shutdown()
            self.deadlines.farewell(self)
        self.flush_soon()
        self.worker.loop.call_soon(self.end_if_over)

    def leave_to_another(self) -> None:
        """The worker retires: tell the client to begin on another connection what it begins next."""
        if self.worker.phase in _RETIRING and self.core.shutting_down is Leaving.NO:
            self.worker.cells[_GOAWAYS] += 1
            self.announce_end()

    def end_soon(self) -> None:
        """The client begins nothing more: end once what there is has been answered."""
        self.worker.loop.call_soon(self._end_soon)

    def _end_soon(self) -> None:
        if self.state is IDLE or self.state is REQUEST:
            self.departure.serve(self)
            self.core.finish_shutdown()
            self.flush()
            self.end_if_over()

    def end_if_over(self) -> bool:
        """End the connection if the last stream has been said, and has ended."""
        core = self.core
        over = core.shutting_down is Leaving.FINAL and core.resting and not core.waiting
        if over and (self.state is IDLE or self.state is REQUEST):
            self.finish()
        return over

    def finish(self) -> None:
        """Everything is said: end politely."""
        self.become(CLOSING)
        self.lose()
        self.finish_politely()

    def reset(self) -> None:
        """End at once: the client takes nothing."""
        self.lose()
        self.output.drop_held()
        if reset_socket(self.transport):
            self.become(CLOSED)
        else:
            self.become(CLOSING)
        self.transport.abort()

    def cut(self) -> bool:
        """At the graceful timeout: end at once, cancelling the applications' tasks. True if anything was cut."""
        if self.state is not IDLE and self.state is not REQUEST and self.state is not CLOSING:
            return False
        unfinished = self.output.unwritten() > 0 or self.core.waiting
        cut = self.streams.cut()
        self.core.finish_shutdown()
        if not self.output.paused:
            self.flush()
            self.output.flush()
        if self.state is not CLOSING:
            self.become(CLOSING)
        self.lose()
        self.output.drop_held()
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self.transport.close()
        return cut or unfinished

    # ---- the worker's phases, and the hand-over

    def settle(self) -> None:
        """Go on, leave or end, as the worker's phase has it, if that is possible now."""
        self.departure.settle(self)

    def retire(self) -> None:
        """The worker's phase has left SERVING: leave as soon as that loses nothing. May be called again."""
        self.streams.retire(self)
        self.settle()

    def resume(self) -> None:
        """The worker serves again."""
        self.hand_over.refused = False
        self.retire()

    def remain(self) -> None:
        """Nobody can take this connection now: it is served here until `retire()` is called again."""
        if self.state is IDLE:
            self.transport.set_write_buffer_limits()
            self.departure.serve(self)
        elif self.state is REQUEST and self.lives is not None:
            self.departure.serve(self)
            self.lives.go_on_here(self)
        if self.hand_over.refused:
            self.settle()

    def can_leave(self) -> bool:
        """Whether `leave()` is possible now."""
        return can_leave(self)

    def leave(self) -> tuple[int, HandOverRecord]:
        """Stop reading and writing; a duplicate of the descriptor (the caller owns it) and the record.

        Only while `can_leave()`; afterwards the worker calls `stay()` or `gone()`. Raises OSError, with nothing
        changed, if there is no descriptor to be had.
        """
        assert self.can_leave(), "leave() needs can_leave()"
        return self.departure.leave(self)

    def stay(self) -> None:
        """The hand-over failed: go on exactly as before."""
        self.departure.stay(self)

    def gone(self) -> None:
        """The hand-over is committed: drop this end. The client sees nothing: a duplicate lives elsewhere."""
        if self.departure.gone(self):
            self.streams.drop()
            self.lose()
