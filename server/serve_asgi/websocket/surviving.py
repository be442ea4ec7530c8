"""One life of a WebSocket that is to survive its worker: how it ends, what it leaves, and how the next one begins.

A life is one call of the application (`serve_asgi.websocket.session`). This owns the steps between two of them, for one
WebSocket that its application wishes to survive or that has done so already:

OPEN -> PARTING     the moment has come: nothing is read any more, what was read and not received is for the next life,
                    and the application is told that the connection ends;
PARTING -> PARTED   it has returned: its state is known, and what it sent goes out;
PARTED -> RESUMING  the next life begins, in another worker or in this one;
RESUMING -> OPEN    the application of the next life has accepted what is open already.

Whatever prevents that ends the WebSocket as it would have ended without (code 1012), counted and logged. It must not
know what frames look like, nor when a life ends and how it goes to another worker: that is each protocol's own
(`serve_asgi.websocket.http1_life`, `serve_asgi.http2.websocket_life`). What it needs of the WebSocket is
`PartingConnection`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Protocol

from serve_asgi.http.hand_over_record import MOST_LEFTOVER
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
from serve_asgi.http.worker_context import WorkerContext, WorkerPhase
from serve_asgi.websocket.closing import retire_code
from serve_asgi.websocket.compression import Deflate
from serve_asgi.websocket.framing import MessageFraming
from serve_asgi.websocket.receive_queue import ReceiveQueue
from serve_asgi.websocket.states import OPEN, PARTED, PARTING, RESUMING, WebSocketState
from serve_asgi.websocket.write_flow import WriteFlow

if TYPE_CHECKING:
    from serve_asgi.websocket.request import WebSocketRequest

MOST_UNREAD: Final = MOST_LEFTOVER - (1 << 20)
"""Bytes of the client's that travel at most: with the rest of the record they are no more than a receiver takes."""


class PartingConnection(SurvivableConnection, Protocol):
    """The WebSocket, as far as its survival needs it."""

    state: WebSocketState
    transport: asyncio.Transport
    framing: MessageFraming
    messages: ReceiveQueue
    output: WriteFlow
    request: WebSocketRequest
    early: bytes
    """What waits to be read as frames: it is the next life's, or the application has not accepted yet."""
    surviving: SurvivingWebSocket | None

    def enter(self, state: WebSocketState) -> None:
        """Change the state, by a way that the table has."""

    def set_deadline(self, deadline: float) -> None:
        """When it is to be looked at (loop time, s), or infinity."""

    def pause_reading(self) -> None:
        """Read nothing of the client any more."""

    def life(self, record: SurvivalRecord | None, state: object = None) -> SurvivingWebSocket:
        """A life of it; `record` and `state` are of the one before, if there was one."""

    def begin_life(self, survival: SurvivingWebSocket) -> None:
        """Call the application again, soon; in state RESUMING, what comes is `early`."""

    def resume_life(self) -> None:
        """The application has accepted what is open already."""

    def close(self, code: int, reason: str) -> None:
        """Begin the closing handshake."""


class SurvivingWebSocket:
    """Of one life of one WebSocket: from when its application has spoken of survival, or from the beginning of a next
    life on. What `raise NotImplementedError` is the protocol's."""

    __slots__ = ("_connection", "_end", "_state", "_worker", "survival")

    def __init__(
        self, connection: PartingConnection, worker: WorkerContext, record: SurvivalRecord | None, state: object = None
    ) -> None:
        """`record` and `state` are of the life before, if there was one."""
        self._connection = connection
        self._worker = worker
        self._end = LifeEnd(worker)
        self._state = b""
        """Once the life has ended."""
        now = worker.loop.time()
        if record is None:
            self.survival = Survival(connection, now)
        else:
            self.survival = Survival(connection, now, True, state, record.version)

    # ---- the beginning of a life

    def accept(self, subprotocol: str | None) -> None:
        """The application of a next life accepts."""
        if subprotocol is not None and subprotocol != self._connection.request.subprotocol:
            self.fail(f"the new version of the application chose the subprotocol {subprotocol!r}, not as before")
        else:
            self._connection.resume_life()

    # ---- its end

    @property
    def leaves(self) -> bool:
        """Whether the life is to end for the sake of another one, as its worker retires."""
        return self.survival.wanted and self._worker.phase is WorkerPhase.HANDING_OVER

    def cancel(self) -> None:
        """The connection is over, or nothing is handed over any more."""
        self._end.cancel()

    def end_life(self) -> None:
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
        connection.set_deadline(connection.output.deadline)
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
            self.end_life()
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
            connection.framing = framing_of(self.record(), self._worker.config.ws_max_size)
            connection.transport.set_write_buffer_limits()
        if connection.state in (RESUMING, OPEN, PARTING, PARTED) and not connection.transport.is_closing():
            connection.close(retire_code(retires), "")

    # ---- what each protocol has of its own

    def opened(self) -> None:
        """The WebSocket is open in this life: its end may be due already."""
        raise NotImplementedError

    def retire(self) -> None:
        """The worker retires, and connections are handed over. May be called again."""
        raise NotImplementedError

    def resume(self) -> None:
        """The worker serves again."""
        raise NotImplementedError

    def depart(self) -> None:
        """This life has ended: have the next one begin in another worker, or here."""
        raise NotImplementedError

    # ---- what travels

    def record(self) -> SurvivalRecord:
        """What the next life begins with."""
        connection, deflate = self._connection, self._connection.framing.deflate
        subprotocol = connection.request.subprotocol
        return SurvivalRecord(
            *(self._head(), self._state, self.survival.writes_version, connection.early),
            websocket={
                "subprotocol": subprotocol,
                "deflate": None if deflate is None else deflate.moved(),
                "opened": connection.request.opened,
            },
            window=b"" if deflate is None else deflate.window,
        )

    def _head(self) -> bytes:
        """The request's head for the record."""
        raise NotImplementedError


def begin_life(connection: PartingConnection, worker: WorkerContext, record: SurvivalRecord) -> None:
    """Begin the next life of a WebSocket, in whichever worker. Raises LookupError, TypeError or ValueError for a record
    that makes no sense here."""
    assert record.websocket is not None
    connection.enter(RESUMING)
    connection.request.subprotocol = record.websocket["subprotocol"]
    connection.request.opened_elsewhere(record.websocket)
    connection.framing = framing_of(record, worker.config.ws_max_size)
    connection.early = record.unread
    connection.messages = ReceiveQueue()
    state, unreadable = None, ""
    try:
        state = record.decoded_state()
    except (ValueError, RecursionError) as error:
        unreadable = f"its state cannot be read again ({error})"
    survival = connection.life(record, state)
    connection.begin_life(survival)
    if unreadable:
        survival.fail(unreadable)


def framing_of(record: SurvivalRecord, max_size: int) -> MessageFraming:
    """The framing of a next life: it reads `record.unread` first."""
    assert record.websocket is not None
    negotiated = record.websocket["deflate"]
    return MessageFraming(None if negotiated is None else Deflate.resumed(negotiated, record.window), max_size)
