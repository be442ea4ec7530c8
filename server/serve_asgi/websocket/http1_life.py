"""One life of a WebSocket that has its connection to itself (HTTP/1.1): when it ends, and how the connection moves.

It owns the moment of the end, and the steps from there to the hand-over, or to the next life in the same worker:

PARTED -> LEAVING   all is with the kernel: the connection is handed over, or has to wait (back to PARTED).

What ends and begins with a life is `serve_asgi.websocket.surviving`'s. It must not know how the worker finds a
receiver: to whoever hands connections over it is a `serve_asgi.worker.hand_over_sender.MovableConnection`.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

from serve_asgi.http.client_socket import duplicate
from serve_asgi.http.hand_over_record import HandOverRecord
from serve_asgi.http.survival_record import SurvivalRecord
from serve_asgi.http.underlying_tls import tls_of
from serve_asgi.http.worker_context import WorkerContext, WorkerPhase
from serve_asgi.websocket.states import CLOSED, HANDSHAKE, LEAVING, OPEN, PARTED, PARTING, RESUMING
from serve_asgi.websocket.surviving import PartingConnection, SurvivingWebSocket, begin_life


class MovingConnection(PartingConnection, Protocol):
    """The connection, as far as its hand-over needs it."""

    trusted: bool

    def forget(self) -> None:
        """The worker has one connection less."""


class Http1WebSocketLife(SurvivingWebSocket):
    """One life."""

    __slots__ = ("_moving",)

    def __init__(
        self, connection: MovingConnection, worker: WorkerContext, record: SurvivalRecord | None, state: object = None
    ) -> None:
        super().__init__(connection, worker, record, state)
        self._moving = connection

    # ---- the moment

    def opened(self) -> None:
        """The connection is open in this life: its end may be due already."""
        if self._end.overdue:
            self.end_life()

    def retire(self) -> None:
        """The worker retires, and connections are handed over. May be called again."""
        if self._connection.state is PARTED:
            self.depart()
        elif self.leaves and self._connection.state in (HANDSHAKE, RESUMING, OPEN):
            self._end.plan(self.survival.begun, self.end_life)

    def resume(self) -> None:
        """The worker serves again."""
        if self._connection.state is PARTED:
            self.depart()
        elif self._connection.state is not PARTING:
            self._end.cancel()

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
            begin_life(connection, self._worker, self.record())
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

    def _head(self) -> bytes:
        return self._connection.request.moved_head()

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
        connection = self._moving
        record = connection.request.hand_over_record(self.record().to_bytes(), connection.trusted)
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
            begin_life(self._connection, self._worker, self.record())

    def _after_staying(self) -> None:
        """It is offered again, unless the worker serves again or has given up."""
        if self._worker.phase is not WorkerPhase.HANDING_OVER:
            self.depart()

    def gone(self) -> None:
        """The hand-over is committed: drop this end. The client sees nothing: a duplicate lives elsewhere."""
        connection = self._moving
        if connection.state is LEAVING:
            connection.enter(CLOSED)
            connection.forget()
            connection.transport.abort()  # closes the descriptor; no shutdown, which would reach the duplicate too
