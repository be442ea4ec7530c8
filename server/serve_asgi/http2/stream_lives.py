"""When the lives of an HTTP/2 connection's streams end, so that it can leave its worker with all of them.

It owns the moment in which the applications of all streams that are to survive are told, one for the connection; what
is waited for then; and the next lives, in another worker or in this one. Rules: nobody is told while a stream is open
that stays, since the connection could not leave; such a one is waited for as long as the connection holds back new
requests (`--h2-hold`), then the client is told to open another connection, and the lives that have ended go on here
until the others are over; nobody is waited for without an end. It must not know what is said in a life.

Connections without such streams do not have it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Final, Protocol

from serve_asgi.http import survival
from serve_asgi.http.h2.connection_value import unsent
from serve_asgi.http.h2.error_codes import ErrorCode
from serve_asgi.http.h2.receiving import Leaving
from serve_asgi.http.hand_over_record import MOST_LEFTOVER
from serve_asgi.http.request_head import BadRequest
from serve_asgi.http.survival import LifeEnd
from serve_asgi.http.survival_record import MovedStream
from serve_asgi.http.surviving_response import PARTED_TIME, WAITING_TIME
from serve_asgi.http.worker_context import WorkerContext, WorkerPhase
from serve_asgi.http2.departure import DepartingConnection, Departure
from serve_asgi.http2.exchange import Exchange
from serve_asgi.http2.stream_dispatch import DispatchingConnection, StreamDispatch
from serve_asgi.http2.stream_life import LifeStage, StreamLife
from serve_asgi.http2.websocket_life import WebSocketStreamLife
from serve_asgi.http2.websocket_stream import WebSocketStream, next_life
from serve_asgi.ipc.scoreboard import Cell

MOST_TRAVELS: Final = MOST_LEFTOVER - (1 << 20)
"""Bytes of all streams that travel at most: with what else there is they are no more than a receiver takes."""
RECORD_SIZE: Final = 1024
"""Bytes of a stream's record beside what is counted, at most."""

_GOAWAYS: Final = int(Cell.HTTP2_GOAWAYS)


class LivesConnection(DepartingConnection, DispatchingConnection, Protocol):
    """The connection, as far as the lives of its streams need it."""

    worker: WorkerContext
    streams: StreamDispatch
    departure: Departure


class StreamLives:
    """Of one connection, from when its worker retires while it has streams that are to survive, or from its arrival
    with such on."""

    __slots__ = ("_end", "_looking", "_since", "_timer", "_worker")

    def __init__(self, worker: WorkerContext, since: float) -> None:
        """`since`: when the connection came from another worker with its lives (loop time, s), or -infinity."""
        self._worker = worker
        self._since = since
        """When the lives began, but those of new streams."""
        self._end = LifeEnd(worker)
        """The moment: once it is overdue it has come."""
        self._timer: asyncio.TimerHandle | None = None
        self._looking = False

    def stop(self) -> None:
        """The connection has ended, or has gone."""
        self._end.cancel()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def changed(self, connection: LivesConnection) -> None:
        """Something has happened to a stream: look soon what can be done now."""
        if not self._looking:
            self._looking = True
            self._worker.loop.call_soon(self._look, connection)

    def _look(self, connection: LivesConnection) -> None:
        self._looking = False
        connection.settle()

    def _look_in(self, seconds: float, connection: LivesConnection) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._worker.loop.call_later(seconds, connection.settle)

    # ---- the way to the next lives

    def settle(self, connection: LivesConnection) -> bool:
        """Do what can be done now. Whether the connection has no more to do, as this is called again.

        In state IDLE or REQUEST; what the core had to say is written.
        """
        stages = stages_of(connection)
        found = set(stages.values())
        if found <= {LifeStage.STAYS}:
            self._end.cancel()
            return False
        worker, leaving = self._worker, connection.core.shutting_down
        if worker.phase is not WorkerPhase.HANDING_OVER or worker.hand_over is None or connection.is_stationary():
            self._end.cancel()
            self.go_on_here(connection)
            return False
        if LifeStage.PARTED not in found and not self._end.overdue:
            self._end.plan(self._since, connection.settle)
        elif leaving is Leaving.ANNOUNCED:  # the second GOAWAY follows
            self.go_on_here(connection)
            self._look_in(WAITING_TIME, connection)
        elif LifeStage.STAYS in found or LifeStage.NOT_YET in found:
            self._wait_for_others(connection, found)
        elif LifeStage.READY in found:
            for stream_id, stage in stages.items():
                life = life_of(connection, stream_id)
                if stage is LifeStage.READY and life is not None:
                    life.begin_end()
            connection.flush_soon()
        elif LifeStage.PARTING not in found:
            self._leave(connection, leaving)
        return True

    def _wait_for_others(self, connection: LivesConnection, found: set[LifeStage]) -> None:
        """Streams are open with which the connection cannot leave."""
        if LifeStage.PARTING not in found:
            if connection.core.shutting_down is Leaving.NO:
                connection.departure.hold_back(connection)
            else:
                self.go_on_here(connection)
        if LifeStage.NOT_YET in found:
            self._look_in(WAITING_TIME, connection)

    def _leave(self, connection: LivesConnection, leaving: Leaving) -> None:
        """All lives have ended."""
        now = self._worker.loop.time()
        wait = self._since + survival.LEAST_LIFE - now
        if wait > 0:
            self._look_in(wait, connection)
        elif self._size(connection) > MOST_TRAVELS:
            if leaving is Leaving.NO:
                self._worker.cells[_GOAWAYS] += 1
                connection.announce_end()
            self.go_on_here(connection)
        else:
            if leaving is Leaving.NO:
                connection.departure.hold_back(connection)
            self._look_in(PARTED_TIME, connection)
            connection.departure.offer(connection)

    @staticmethod
    def _size(connection: LivesConnection) -> int:
        size = 0
        for stream_id, _ in connection.streams.all():
            life = life_of(connection, stream_id)
            if life is not None:
                record = life.record()
                size += len(record.head) + len(record.state) + len(record.body) + RECORD_SIZE
                size += len(record.unread) + len(record.window)
                size += 2 * len(record.response["headers"]) if record.response else 0
                size += len(unsent(connection.core, stream_id))
        return size

    def go_on_here(self, connection: LivesConnection) -> None:
        """Begin the next lives of all that have ended, in this worker, and once in the time of a life at most."""
        parted = [stream_id for stream_id, stage in stages_of(connection).items() if stage is LifeStage.PARTED]
        if not parted:
            return
        now = self._worker.loop.time()
        wait = self._since + survival.LEAST_LIFE - now
        if wait > 0 and self._worker.phase is WorkerPhase.HANDING_OVER:
            self._look_in(wait, connection)
            return
        self._since = now
        self._end.cancel()
        connection.transport.set_write_buffer_limits()
        for stream_id in parted:
            life = life_of(connection, stream_id)
            if isinstance(life, WebSocketStreamLife):
                life.go_on_here()
            elif life is not None:
                begin_life(connection, MovedStream(stream_id, life.record(), b""))

    def held_in_vain(self, connection: LivesConnection) -> None:
        """The time is over for which new requests were held back: lives that have ended do not wait longer for a stream
        that cannot go on elsewhere yet."""
        if LifeStage.NOT_YET in stages_of(connection).values():
            self.go_on_here(connection)
        self.changed(connection)

    # ---- what travels

    def records(self, connection: LivesConnection) -> list[MovedStream]:
        """What the next lives begin with; nothing unless all have parted."""
        found: list[MovedStream] = []
        if not self._have_parted(connection):
            return found
        for stream_id, _ in connection.streams.all():
            life = life_of(connection, stream_id)
            if life is not None:
                found.append(MovedStream(stream_id, life.record(), unsent(connection.core, stream_id)))
        return found

    def may_leave(self, connection: LivesConnection) -> bool:
        """Whether all streams are between two lives, and the connection is to leave with them."""
        announced = connection.core.shutting_down is Leaving.ANNOUNCED
        return self._worker.phase is WorkerPhase.HANDING_OVER and not announced and self._have_parted(connection)

    @staticmethod
    def _have_parted(connection: LivesConnection) -> bool:
        return set(stages_of(connection).values()) == {LifeStage.PARTED}

    def hinder(self, connection: LivesConnection) -> bool:
        """Whether there is a stream with which the connection cannot leave."""
        return LifeStage.STAYS in stages_of(connection).values()


def life_of(connection: LivesConnection, stream_id: int) -> StreamLife | WebSocketStreamLife | None:
    """Of the response, or the WebSocket, on a stream."""
    handler = connection.streams.handler(stream_id)
    if isinstance(handler, WebSocketStream):
        return handler.surviving if isinstance(handler.surviving, WebSocketStreamLife) else None
    return handler.life if isinstance(handler, Exchange) else None


def stages_of(connection: LivesConnection) -> dict[int, LifeStage]:
    """How far each stream is."""
    return {
        stream_id: handler.stage if isinstance(handler, (Exchange, WebSocketStream)) else LifeStage.STAYS
        for stream_id, handler in connection.streams.all()
    }


def arrive(connection: LivesConnection, streams: Iterable[MovedStream]) -> None:
    """Another worker has handed the connection over, between two lives of these."""
    known = set()
    for moved in streams:
        known.add(moved.stream_id)
        begin_life(connection, moved)
    for stream_id in connection.core.open_streams():
        if stream_id not in known:
            connection.core.reset(stream_id, ErrorCode.INTERNAL_ERROR)


def begin_life(connection: LivesConnection, moved: MovedStream) -> None:
    """Call the application again, in this worker, soon, for a response whose life has ended in another one, or here, or
    for a WebSocket that has come from another one."""
    core, stream_id, record = connection.core, moved.stream_id, moved.record
    if moved.unsent:
        core.send_data(stream_id, moved.unsent, False)
    exchange = Exchange(connection, stream_id)
    websocket: WebSocketStream | None = None
    try:
        if record.websocket is None:
            exchange.resume(record)
        else:
            websocket = next_life(connection, stream_id, record)
    except (BadRequest, LookupError, TypeError, ValueError) as error:
        reason = f"what another worker has left of it makes no sense here ({error!r})"
        connection.worker.did_not_survive("a response" if record.websocket is None else "a WebSocket", reason)
        core.reset(stream_id, ErrorCode.INTERNAL_ERROR)
        connection.forget_stream(stream_id)
        connection.flush_soon()
        return
    connection.begin_work()
    if websocket is not None:
        connection.streams.put(stream_id, websocket)
        return
    connection.streams.put(stream_id, exchange)
    connection.worker.loop.call_soon(exchange.call)  # uvloop begins to read after this, whatever it has said of reading
