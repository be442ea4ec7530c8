"""How an HTTP/2 connection leaves for another worker, or ends because its worker retires.

It owns what the worker's phases do to the connection, and the way of a hand-over. On that way the connection has to
rest for a moment, all requests answered. So a retiring worker lets the core hold back what begins new ones, for
`--h2-hold` at most: then the connection leaves, and the other worker goes on with what was held; or else the client is
told to open another one. Rules: one that is handed over is neither read nor written; what was held back is served,
wherever the connection goes on. It must not know how the worker finds a receiver, nor what a request is.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final, Protocol

from serve_asgi.http.connection_states import IDLE, PARTED, REQUEST
from serve_asgi.http.h2.connection_core import ConnectionCore
from serve_asgi.http.h2.connection_value import export_connection
from serve_asgi.http.h2.receiving import Leaving
from serve_asgi.http.hand_over import HandOver, LeavingConnection
from serve_asgi.http.hand_over_record import HandOverRecord
from serve_asgi.http.survival_record import MovedStream, pack_streams
from serve_asgi.http.worker_context import WorkerContext, WorkerPhase
from serve_asgi.http.write_buffer import WriteBuffer
from serve_asgi.http2.deadlines import Deadlines
from serve_asgi.ipc.peer_address import Address
from serve_asgi.ipc.scoreboard import Cell

FRESH_TIME: Final = 2.0
"""A connection that cannot move, or that nobody takes, waits this long (s) for the client to begin."""

_MOVED: Final = int(Cell.HTTP2_MOVED)
_GOAWAYS: Final = int(Cell.HTTP2_GOAWAYS)


class Lives(Protocol):
    """Of streams that are to survive (`serve_asgi.http2.stream_lives`)."""

    def settle(self, connection: Any) -> bool:
        """Do what can be done now. Whether the connection has no more to do."""

    def changed(self, connection: Any) -> None:
        """Look soon what can be done now."""

    def held_in_vain(self, connection: Any) -> None:
        """The time is over for which new requests were held back."""

    def hinder(self, connection: Any) -> bool:
        """Whether there is a stream with which the connection cannot leave."""

    def may_leave(self, connection: Any) -> bool:
        """Whether all streams are between two lives, and the connection is to leave with them."""

    def records(self, connection: Any) -> list[MovedStream]:
        """What the next lives begin with, if all streams are between two."""


class DepartingConnection(LeavingConnection, Protocol):
    """The connection, as far as its departure needs it."""

    worker: WorkerContext
    core: ConnectionCore
    output: WriteBuffer
    deadlines: Deadlines
    arrived: bytes
    client: Address
    server: Address
    scheme: str
    trusted: bool
    eof: bool
    hand_over: HandOver

    @property
    def lives(self) -> Lives | None:
        """Of its streams that are to survive."""

    def is_stationary(self) -> bool:
        """Whether no other process could go on with it."""

    def is_written(self) -> bool:
        """Whether the kernel has every byte, and the transport is open."""

    def flush(self) -> None:
        """Write what the core has to say."""

    def release(self) -> None:
        """Go on with what was held back."""

    def receive_arrived(self) -> None:
        """Go on with what has come meanwhile."""

    def end_if_over(self) -> bool:
        """End the connection if the last stream has been said, and has ended."""

    def announce_end(self) -> None:
        """Tell the client to begin nothing more here."""

    def settle(self) -> None:
        """Go on, leave or end, as the worker's phase has it."""


class Departure:
    """Of one connection."""

    __slots__ = ("_hold_ends",)

    def __init__(self) -> None:
        self._hold_ends: asyncio.TimerHandle | None = None

    def settle(self, connection: DepartingConnection) -> None:
        """Go on, leave or end, as the worker's phase has it, if that is possible now."""
        if connection.state is not IDLE and connection.state is not REQUEST:
            return
        connection.flush()
        if connection.tls is not None:
            connection.tls.flush()
        worker, core = connection.worker, connection.core
        if connection.end_if_over():
            return
        if (connection.lives is not None and connection.lives.settle(connection)) or (
            core.shutting_down is not Leaving.NO
        ):
            return
        if worker.phase is WorkerPhase.SERVING or connection.eof:
            self.serve(connection)
        elif worker.phase is WorkerPhase.LENDING:
            self._lend(connection)
        elif worker.phase is WorkerPhase.HANDING_OVER and not connection.is_stationary():
            self._leave_soon(connection)
        elif not core.settled and not worker.last_call:  # its first request is on its way
            connection.deadlines.rest_shorter(connection, FRESH_TIME)
        elif worker.phase is WorkerPhase.CLOSING or worker.last_call or core.requests:
            worker.cells[_GOAWAYS] += 1
            connection.announce_end()

    def serve(self, connection: DepartingConnection) -> None:
        """Go on with what was held back, if anything was."""
        self.stop_holding()
        if connection.core.holding:
            connection.release()
        connection.adjust_reading()

    def _lend(self, connection: DepartingConnection) -> None:
        """Go to the canary if it is to have another connection, and this one rests; else go on here."""
        worker = connection.worker
        if worker.to_lend > 0 and worker.hand_over is not None and self._may_be_lent(connection):
            worker.to_lend -= 1
            worker.hand_over(connection)
        else:
            self.serve(connection)

    @staticmethod
    def _may_be_lent(connection: DepartingConnection) -> bool:
        return can_leave(connection) and not connection.is_stationary()

    def _leave_soon(self, connection: DepartingConnection) -> None:
        """Leave now, or hold back what begins new requests until those in progress have ended."""
        if connection.core.resting and connection.state is IDLE:
            self.offer(connection)
        else:
            self.hold_back(connection)

    @staticmethod
    def offer(connection: DepartingConnection) -> None:
        """Leave as soon as the kernel has every byte."""
        worker, output = connection.worker, connection.output
        if connection.transport.get_write_buffer_size() or output.unwritten():
            output.flush()
            connection.transport.set_write_buffer_limits(0)  # comes again from resume_writing
        if worker.hand_over is not None and output.unwritten() == 0:
            worker.hand_over(connection)

    def hold_back(self, connection: DepartingConnection) -> None:
        """Hold back what begins new requests, for a while."""
        worker, core = connection.worker, connection.core
        if self._hold_ends is None:
            core.hold()
            self._hold_ends = worker.loop.call_later(worker.config.h2_hold, self._hold_no_longer, connection)
        elif not core.holding:  # more has come than may wait
            self._hold_no_longer(connection)

    def _hold_no_longer(self, connection: DepartingConnection) -> None:
        """The requests in progress take longer: the client is told to open another connection, and served meanwhile."""
        if connection.state is not IDLE and connection.state is not REQUEST:
            return
        worker, lives = connection.worker, connection.lives
        waits_for_its_turn = connection.core.resting or (lives is not None and not lives.hinder(connection))
        self.serve(connection)
        if not waits_for_its_turn and worker.phase is not WorkerPhase.SERVING:
            worker.cells[_GOAWAYS] += 1
            connection.announce_end()
        if lives is not None:
            lives.held_in_vain(connection)

    def stop_holding(self) -> None:
        """The time for which it holds back requests does not matter any more."""
        if self._hold_ends is not None:
            self._hold_ends.cancel()
            self._hold_ends = None

    # ---- hand-over: see `serve_asgi.worker.hand_over_sender.MovableConnection`

    def leave(self, connection: DepartingConnection) -> tuple[int, HandOverRecord]:
        """Stop reading and writing; a duplicate of the descriptor (the caller owns it) and the record.

        Raises OSError, with nothing changed, if there is no descriptor to be had.
        """
        streams = [] if connection.lives is None else connection.lives.records(connection)
        value, unread = export_connection(connection.core, [moved.stream_id for moved in streams])
        unread += connection.arrived
        record = HandOverRecord(
            pack_streams(streams, unread) if streams else unread,
            connection.client,
            connection.server,
            connection.deadline,
            connection.core.requests,
            connection.scheme,
            connection.trusted,
            survives=bool(streams),
            http2=value,
        )
        if streams:
            connection.become(PARTED)
        try:
            left = connection.hand_over.leave(connection, record)
        except OSError:
            if streams:
                connection.become(REQUEST)
            raise
        self.stop_holding()
        return left

    def stay(self, connection: DepartingConnection) -> None:
        """The hand-over failed: go on exactly as before."""
        if connection.hand_over.stay(connection):
            if connection.state is PARTED:
                connection.become(REQUEST)
            connection.transport.set_write_buffer_limits()
            connection.worker.loop.call_soon(self._resume, connection)

    def _resume(self, connection: DepartingConnection) -> None:
        if connection.state is not IDLE and connection.state is not REQUEST:
            return
        self.serve(connection)
        connection.receive_arrived()
        if connection.worker.phase is WorkerPhase.CLOSING or connection.lives is not None:
            connection.settle()

    def gone(self, connection: DepartingConnection) -> bool:
        """The hand-over is committed: drop this end. False if the client has gone meanwhile."""
        if not connection.hand_over.commit(connection):
            return False
        connection.worker.cells[_MOVED] += 1
        return True


def can_leave(connection: DepartingConnection) -> bool:
    """Whether it can leave now: nothing in progress, or all between two lives; all that is written with the kernel; the
    client still there.
    """
    core = connection.core
    if connection.state is IDLE:
        may = not connection.eof and core.resting and core.shutting_down is Leaving.NO
    else:
        lives = connection.lives
        may = connection.state is REQUEST and lives is not None and lives.may_leave(connection)
    return may and not core.waiting and core.lost is None and connection.is_written()
