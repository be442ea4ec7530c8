"""Who works for which stream of an HTTP/2 connection, and what he is told of what the client does.

It owns the handlers of all streams, and the choice of who handles a new one: the application, a WebSocket, or the
server itself. Rules: events are dealt with in their order, but for a request with a body the application is called
behind all of those that came with it, so that it finds what has come of the body and need not wait for it (a client
with several requests sends their heads first); a stream that nobody works for costs nothing more than its window. It
must not know how the connection reads, writes, ends or leaves: what it needs of it is `StreamConnection`.
"""

from __future__ import annotations

import math
from typing import Final, Protocol

from serve_asgi.http import health, refusals
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
from serve_asgi.http.h2.request_fields import MalformedRequest
from serve_asgi.http.request_timeouts import RequestTimeouts
from serve_asgi.http.survival import Survival
from serve_asgi.http2.exchange import Exchange
from serve_asgi.http2.own_responses import OwnResponse
from serve_asgi.http2.stream_handler import StreamHandler
from serve_asgi.http2.stream_transport import StreamCarrier
from serve_asgi.http2.websocket_stream import WebSocketStream
from serve_asgi.ipc.scoreboard import Cell

_STREAMS: Final = int(Cell.HTTP2_STREAMS)
_RESETS_RECEIVED: Final = int(Cell.HTTP2_RESETS_RECEIVED)
_FAULTS: Final = int(Cell.HTTP2_FAULTS)
_IN_FLIGHT: Final = int(Cell.IN_FLIGHT)


class DispatchingConnection(StreamCarrier, Protocol):
    """The connection, as far as its streams need it."""

    def begin_work(self) -> None:
        """A request is in progress."""

    def rest(self) -> None:
        """None is."""

    def end_soon(self) -> None:
        """The client begins nothing more: end once what there is has been answered."""


class StreamDispatch:
    """Of one connection."""

    __slots__ = ("_beginning", "_handlers")

    def __init__(self) -> None:
        self._handlers: dict[int, StreamHandler] = {}
        self._beginning: Exchange | None = None
        """Its application is being called, and perhaps ends at once."""

    # ---- what the client has done

    def handle(self, connection: DispatchingConnection, events: list[Event]) -> None:
        """Do what follows from each event, in their order."""
        handlers = self._handlers
        with_body: list[Exchange] = []
        for event in events:
            if type(event) is StreamRequest:
                self._begin_request(connection, event, with_body)
            elif type(event) is StreamData:
                handler = handlers.get(event.stream_id)
                if handler is None:
                    connection.core.consumed(event.stream_id, len(event.data))
                else:
                    handler.receive_data(event.data)
            elif type(event) is StreamEnd:
                handler = handlers.get(event.stream_id)
                if handler is not None:
                    handler.receive_end(event.trailers)
            elif type(event) is StreamReset:
                if not event.reason:
                    connection.worker.cells[_RESETS_RECEIVED] += 1
                handler = handlers.get(event.stream_id)
                if handler is not None:
                    handler.receive_reset()
            else:
                self._handle_rare(connection, event)
        for exchange in with_body:
            self._call(exchange)
            if exchange.stream_id in self._handlers and not connection.core.is_open(exchange.stream_id):
                exchange.receive_reset()  # it has come with the request
        if not self._handlers:
            connection.rest()

    def _handle_rare(self, connection: DispatchingConnection, event: Event) -> None:
        worker = connection.worker
        if isinstance(event, StreamRefusal):
            stream_id, refused, method, _ = event
            code = ErrorCode.PROTOCOL_ERROR if isinstance(refused, MalformedRequest) else ErrorCode.NO_ERROR
            response = refusals.bad_request(worker, connection, refused, method != b"HEAD")
            self._respond(connection, stream_id, response, code)
        elif isinstance(event, ClientLeaves):
            connection.end_soon()
        elif isinstance(event, ConnectionLost):
            worker.cells[_FAULTS] += 1
            self.lose()

    def _begin_request(
        self, connection: DispatchingConnection, event: StreamRequest, with_body: list[Exchange]
    ) -> None:
        """One for which the application is to be called later is put into `with_body`."""
        worker, stream_id, head = connection.worker, event.stream_id, event.head
        worker.cells[_STREAMS] += 1
        if head.path == worker.health_path and head.method in health.METHODS:
            self._respond(connection, stream_id, health.response(worker, head, False))
            return
        if worker.published[0] > worker.shared.applied:
            worker.catch_up()
        if head.websocket:
            connection.begin_work()
            websocket = self._handlers[stream_id] = WebSocketStream(connection, stream_id, head)
            websocket.begin(event.ended)
            return
        if worker.max_concurrency and worker.cells[_IN_FLIGHT] + len(with_body) >= worker.max_concurrency:
            self._respond(connection, stream_id, refusals.overloaded(worker, connection, head, False))
            return
        connection.begin_work()
        exchange = Exchange(connection, stream_id)
        exchange.prepare(head)
        if event.ended:
            self._call(exchange)
        else:
            self._handlers[stream_id] = exchange
            with_body.append(exchange)

    def _call(self, exchange: Exchange) -> None:
        """Call the application."""
        handlers = self._handlers
        self._beginning = exchange
        going_on = exchange.begin()
        self._beginning = None
        if going_on:
            handlers[exchange.stream_id] = exchange
        else:
            handlers.pop(exchange.stream_id, None)

    def _respond(
        self,
        connection: DispatchingConnection,
        stream_id: int,
        response: bytes,
        code: ErrorCode = ErrorCode.NO_ERROR,
    ) -> None:
        """Answer without the application, by a response that is given as HTTP/1.1 has it."""
        connection.begin_work()
        own = OwnResponse(connection, stream_id, code)
        if own.begin(response):
            self._handlers[stream_id] = own
        connection.flush_soon()
        connection.is_last()

    # ---- handlers

    def all(self) -> list[tuple[int, StreamHandler]]:
        """Each stream that somebody works for, and who does."""
        return list(self._handlers.items())

    def handler(self, stream_id: int) -> StreamHandler | None:
        """Who works for the stream."""
        return self._handlers.get(stream_id)

    def put(self, stream_id: int, handler: StreamHandler) -> None:
        """Somebody else works for the stream from now on."""
        self._handlers[stream_id] = handler

    def drop(self) -> None:
        """The connection has gone to another worker, with all its streams."""
        handlers, self._handlers = self._handlers, {}
        for handler in handlers.values():
            if isinstance(handler, WebSocketStream):
                handler.gone()

    def opt_in(self, extensions: object, version: int | None) -> Survival | None:
        """See `serve_asgi.http.survival.SurvivableConnection`: the stream is found by its `extensions`."""
        beginning = self._beginning
        handlers = list(self._handlers.values())  # perhaps in another thread
        for handler in handlers if beginning is None else (beginning, *handlers):
            found = handler.opt_in(extensions, version)
            if found is not None:
                return found
        return None

    def forget(self, stream_id: int) -> bool:
        """Nobody works for the stream any more. Whether it was the last that somebody worked for."""
        return self._handlers.pop(stream_id, None) is not None and not self._handlers

    def drained(self, stream_ids: list[int]) -> None:
        """Nothing of what was sent on these streams waits any more."""
        for stream_id in stream_ids:
            handler = self._handlers.get(stream_id)
            if handler is not None:
                handler.drained()

    def receive_eof(self) -> None:
        """The client has shut down its side."""
        for handler in list(self._handlers.values()):
            handler.receive_eof()

    def retire(self, connection: DispatchingConnection) -> None:
        """The worker's phase has changed.

        A WebSocket that is not to survive is closed then, and its client opens it again at once: on another connection,
        if this one stays here for the sake of streams that are to survive.
        """
        closing: list[WebSocketStream] = []
        waits = False
        for handler in list(self._handlers.values()):
            survives = isinstance(handler, (Exchange, WebSocketStream)) and handler.is_to_survive()
            waits = waits or survives
            if isinstance(handler, WebSocketStream) and not survives:
                closing.append(handler)
            else:
                handler.retire()
        if waits and any(websocket.is_open() for websocket in closing):
            connection.leave_to_another()
        for websocket in closing:
            websocket.retire()

    def cut(self) -> bool:
        """At the graceful timeout. Whether anything was cut."""
        cut = [handler.cut() for handler in list(self._handlers.values())]
        return any(cut)

    def lose(self) -> None:
        """Nothing is heard of the client any more."""
        handlers, self._handlers = self._handlers, {}
        for handler in handlers.values():
            handler.lose()

    def expire(self, now: float) -> float:
        """Let those expire whose deadlines have passed (loop time, s); the earliest of the others."""
        for handler in list(self._handlers.values()):
            if handler.deadline <= now:
                handler.expire()
        return min([handler.deadline for handler in self._handlers.values()], default=math.inf)

    def end_overdue(self, timeouts: RequestTimeouts) -> None:
        """End the requests that have taken too long."""
        for handler in list(self._handlers.values()):
            if isinstance(handler, Exchange):
                handler.end_overdue(timeouts)

    def asked_at(self) -> float:
        """When the oldest request in progress began (time.perf_counter, s), or infinity."""
        return min([handler.begun for handler in self._handlers.values()], default=math.inf)
