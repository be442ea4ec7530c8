"""How a WebSocket survives its worker: the end of one life of it, its hand-over, and the beginning of the next life.

A life is one call of the application (`serve_asgi.websocket.session`). This owns the steps between two of them, for one
connection that its application wishes to survive or that has done so already:

OPEN -> PARTING     the moment has come: nothing is read any more, what was read and not received is for the next life,
                    and the application is told that the connection ends;
PARTING -> PARTED   it has returned: its state is known, and what it sent goes out;
PARTED -> LEAVING   all is with the kernel: the connection is handed over, or has to wait (back to PARTED);
PARTED -> RESUMING  the worker serves again: the next life begins here;
RESUMING -> OPEN    the application of the next life has accepted what is open already.

Whatever prevents that ends the connection as it would have ended without (code 1012), counted and logged. It must not
know what frames look like, nor how the worker retires: what it needs of the connection is `PartingConnection`; to
whoever hands connections over it is a `serve_asgi.worker.hand_over_sender.MovableConnection`.
"""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING, Final, Protocol

from serve_asgi.http.client_socket import duplicate
from serve_asgi.http.hand_over_record import MOST_LEFTOVER, HandOverRecord
from serve_asgi.http.survival import (
    HANDED_OVER,
    RESTART,
    LifeEnd,
    SurvivableConnection,
    Survival,
    UnfitState,
    encode_state,
)
from serve_asgi.http.survival_record import SurvivalRecord
from serve_asgi.http.underlying_tls import tls_of
from serve_asgi.http.worker_context import WorkerContext, WorkerPhase
from serve_asgi.websocket.closing import retire_code
from serve_asgi.websocket.compression import Deflate
from serve_asgi.websocket.framing import MessageFraming
from serve_asgi.websocket.receive_queue import ReceiveQueue
from serve_asgi.websocket.states import (
    CLOSED,
    HANDSHAKE,
    LEAVING,
    OPEN,
    PARTED,
    PARTING,
    RESUMING,
    WebSocketState,
)
from serve_asgi.websocket.write_flow import WriteFlow

if TYPE_CHECKING:
    from serve_asgi.websocket.request import WebSocketRequest

MOST_UNREAD: Final = MOST_LEFTOVER - (1 << 20)
"""Bytes of the client's that travel at most: with the rest of the record they are no more than a receiver takes."""


class PartingConnection(SurvivableConnection, Protocol):
    """The connection, as far as its survival needs it."""

    state: WebSocketState
    transport: asyncio.Transport
    framing: MessageFraming
    messages: ReceiveQueue
    output: WriteFlow
    request: WebSocketRequest
    deadline: float
    early: bytes
    """What waits to be read as frames: it is the next life's, or the application has not accepted yet."""
    trusted: bool
    surviving: SurvivingWebSocket | None

    def enter(self, state: WebSocketState) -> None:
        """Change the state, by a way that the table has."""

    def pause_reading(self) -> None:
        """Read nothing of the client any more."""

    def begin_life(self, survival: SurvivingWebSocket) -> None:
        """Call the application again, soon; in state RESUMING, what comes is `early`."""

    def resume_life(self) -> None:
        """The application has accepted what is open already."""

    def close(self, code: int, reason: str) -> None:
        """Begin the closing handshake."""

    def forget(self) -> None:
        """The worker has one connection less."""


class SurvivingWebSocket:
    """Of one life of one connection: from when its application has spoken of survival, or from the beginning of a next
    life on."""

    __slots__ = ("_connection", "_end", "_state", "_worker", "subprotocol", "survival")

    def __init__(
        self, connection: PartingConnection, worker: WorkerContext, record: SurvivalRecord | None, state: object = None
    ) -> None:
        """`record` and `state` are of the life before, if there was one."""
        self._connection = connection
        self._worker = worker
        self._end = LifeEnd(worker)
        self._state = b""
        """Once the life has ended."""
        self.subprotocol: str | None = None
        """What was agreed on."""
        now = worker.loop.time()
        if record is None:
            self.survival = Survival(connection, now)
        else:
            assert record.websocket is not None
            self.survival = Survival(connection, now, True, state, record.version)
            self.subprotocol = record.websocket["subprotocol"]

    # ---- the beginning of a life

    def accept(self, subprotocol: str | None) -> None:
        """The application of a next life accepts."""
        if subprotocol is not None and subprotocol != self.subprotocol:
            self.fail(f"the new version of the application chose the subprotocol {subprotocol!r}, not as before")
        else:
            self._connection.resume_life()

    def opened(self) -> None:
        """The connection is open in this life: its end may be due already."""
        if self._end.overdue:
            self._end_life()

    # ---- its end

    @property
    def leaves(self) -> bool:
        """Whether the life is to end for the sake of another one, as its worker retires."""
        return self.survival.wanted and self._worker.phase is WorkerPhase.HANDING_OVER

    def retire(self) -> None:
        """The worker retires, and connections are handed over. May be called again."""
        if self._connection.state is PARTED:
            self.depart()
        elif self.leaves and self._connection.state in (HANDSHAKE, RESUMING, OPEN):
            self._end.plan(self.survival.begun, self._end_life)

    def resume(self) -> None:
        """The worker serves again."""
        if self._connection.state is PARTED:
            self.depart()
        elif self._connection.state is not PARTING:
            self._end.cancel()

    def cancel(self) -> None:
        """The connection is over, or nothing is handed over any more."""
        self._end.cancel()

    def _end_life(self) -> None:
        """The moment has come."""
        connection = self._connection
        if connection.state is not OPEN:
            return  # overdue: as soon as it is
        framing, messages = connection.framing, connection.messages
        if not framing.can_move():
            self.fail("what its client's next message refers to is not known, as survival was asked for late")
            return
        unread = framing.unread(messages.queue)
        if len(unread) > MOST_UNREAD:
            self.fail(f"{len(unread)} bytes of its client's messages wait, more than are handed over")
            return
        connection.pause_reading()
        connection.enter(PARTING)
        connection.deadline = connection.output.deadline
        connection.early = unread
        messages.end_life()
        self._end.begin(self._too_late)
        connection.output.wake()  # who waits to send has sent: it goes on before it hears of the end
        messages.tell_disconnect(RESTART, HANDED_OVER)

    def _too_late(self) -> None:
        self.fail("its application did not end its part within --survive-timeout")

    def check_sending(self) -> None:
        """Raises ClientDisconnected if what this life sends no longer goes out. In state PARTING."""
        self._end.check_sending(self._connection.output.paused)

    def application_returned(self) -> bool:
        """The application has returned. False if that is no end of a life for the sake of another one."""
        if self._connection.state is OPEN and self.leaves:  # by itself, told by `retiring`
            self._end_life()
        if self._connection.state is not PARTING:
            return False
        try:
            self._state = encode_state(self.survival.state)
        except UnfitState as unfit:
            self.fail(str(unfit))
        else:
            self._end.cancel()
            self.survival.end()
            self._connection.enter(PARTED)
            self.depart()
        return True

    def count_end(self, reason: str) -> None:
        """The connection has the ordinary end as its worker retires."""
        if self.survival.wanted and self._worker.retiring.reason != "stop":
            self._worker.did_not_survive("a WebSocket", reason)

    def fail(self, reason: str) -> None:
        """It does not survive: the connection ends as it would have ended without."""
        self._end.cancel()
        retires = self._worker.retiring.reason
        if retires != "stop":
            self._worker.did_not_survive("a WebSocket", reason)
        connection = self._connection
        if connection.state is PARTING or connection.state is PARTED:
            connection.framing = framing_of(self._record(), self._worker.config.ws_max_size)
            connection.transport.set_write_buffer_limits()
        if connection.state in (RESUMING, OPEN, PARTING, PARTED) and not connection.transport.is_closing():
            connection.close(retire_code(retires), "")

    # ---- the way to the next life

    def depart(self) -> None:
        """Leave, as soon as everything is written; or begin the next life here, if the worker serves again."""
        connection, phase = self._connection, self._worker.phase
        transport = connection.transport
        if not self._has_parted() or transport.is_closing():
            return
        if phase is WorkerPhase.CLOSING:
            self.fail("no worker takes it")
        elif phase is not WorkerPhase.HANDING_OVER:
            transport.set_write_buffer_limits()
            begin_life(connection, self._worker, self._record())
        elif transport.get_write_buffer_size() or connection.output.pongs:
            transport.set_write_buffer_limits(0)  # comes again from resume_writing when every byte is with the kernel
        elif self._tls_allows() and self._worker.hand_over is not None:
            self._worker.hand_over(self)

    def _has_parted(self) -> bool:
        """Whether this life, and not a later one, has ended, and its connection is still here."""
        return self._connection.state is PARTED and self._connection.surviving is self

    def _tls_allows(self) -> bool:
        tls = tls_of(self._connection.transport)
        if tls is None:
            return True
        tls.flush()
        if not tls.can_move():
            self.fail("its TLS cannot be handed over now")
            return False
        return True

    def _record(self) -> SurvivalRecord:
        """What the next life begins with."""
        connection, deflate = self._connection, self._connection.framing.deflate
        negotiated = {"subprotocol": self.subprotocol, "deflate": None if deflate is None else deflate.moved()}
        return SurvivalRecord(
            *(connection.request.moved_head(), self._state, self.survival.writes_version, connection.early),
            websocket=negotiated,
            window=b"" if deflate is None else deflate.window,
        )

    # ---- its hand-over

    def can_leave(self) -> bool:
        """Whether `leave()` is possible now."""
        connection = self._connection
        transport = connection.transport
        if not self._has_parted() or transport.is_closing() or transport.get_write_buffer_size():
            return False
        tls = tls_of(transport)
        return not connection.output.pongs and (tls is None or tls.can_move())

    def leave(self) -> tuple[int, HandOverRecord]:
        """Neither read nor write any more; a duplicate of the descriptor (the caller owns it) and the record.

        Raises OSError, with nothing changed, if there is no descriptor to be had.
        """
        connection = self._connection
        record = connection.request.hand_over_record(self._record().to_bytes(), connection.trusted)
        descriptor = duplicate(connection.transport)
        connection.enter(LEAVING)
        tls = tls_of(connection.transport)
        if tls is not None:
            record = dataclasses.replace(record, tls=tls.move().to_json())
        return descriptor, record

    def stay(self) -> None:
        """The hand-over failed."""
        if self._connection.state is LEAVING:
            self._connection.enter(PARTED)
            tls = tls_of(self._connection.transport)
            if tls is not None:
                tls.unmove()
            self._worker.loop.call_soon(self._after_staying)

    def refused_for_good(self) -> None:
        """Nobody can go on with it: `remain()` follows, and lives go on here until the graceful timeout."""

    def remain(self) -> None:
        """Nobody can take it now: the next life begins here, and is to end again a little later; or the connection
        ends."""
        if self._worker.phase is not WorkerPhase.HANDING_OVER:
            self.depart()
        elif self._has_parted() and not self._connection.transport.is_closing():
            self._connection.transport.set_write_buffer_limits()
            begin_life(self._connection, self._worker, self._record())

    def _after_staying(self) -> None:
        """It is offered again, unless the worker serves again or has given up."""
        if self._worker.phase is not WorkerPhase.HANDING_OVER:
            self.depart()

    def gone(self) -> None:
        """The hand-over is committed: drop this end. The client sees nothing: a duplicate lives elsewhere."""
        connection = self._connection
        if connection.state is LEAVING:
            connection.enter(CLOSED)
            connection.forget()
            connection.transport.abort()  # closes the descriptor; no shutdown, which would reach the duplicate too


def begin_life(connection: PartingConnection, worker: WorkerContext, record: SurvivalRecord) -> None:
    """Begin the next life of a connection, in whichever worker."""
    connection.enter(RESUMING)
    connection.framing = framing_of(record, worker.config.ws_max_size)
    connection.early = record.unread
    connection.messages = ReceiveQueue()
    state, unreadable = None, ""
    try:
        state = record.decoded_state()
    except (ValueError, RecursionError) as error:
        unreadable = f"its state cannot be read again ({error})"
    survival = SurvivingWebSocket(connection, worker, record, state)
    connection.begin_life(survival)
    if unreadable:
        survival.fail(unreadable)


def framing_of(record: SurvivalRecord, max_size: int) -> MessageFraming:
    """The framing of a next life: it reads `record.unread` first."""
    assert record.websocket is not None
    negotiated = record.websocket["deflate"]
    return MessageFraming(None if negotiated is None else Deflate.resumed(negotiated, record.window), max_size)
