"""A WebSocket over one stream of an HTTP/2 connection (RFC 8441): the extended CONNECT, and the handler of its stream.

It owns what HTTP/2 makes different for a WebSocket: the response to the request is fields with `:status`, and the
connection beneath is shared, which the worker counts and closes by itself, and which moves to another worker with all
its streams (`serve_asgi.http2.websocket_life`). Everything else (frames, states, deadlines, what the application is
told) is `serve_asgi.websocket.connection`'s, over a `StreamTransport`. It must not know frames of HTTP/2, nor what
other streams there are.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any, Final, cast

from serve_asgi.http.client_socket import acknowledged, unacknowledged
from serve_asgi.http.h2.events import Fields
from serve_asgi.http.h2.request_fields import read_request
from serve_asgi.http.request_head import Head
from serve_asgi.http.survival import Survival
from serve_asgi.http.survival_record import SurvivalRecord, fields_of
from serve_asgi.http2.own_responses import fields_of_head
from serve_asgi.http2.stream_life import LifeStage
from serve_asgi.http2.stream_transport import StreamCarrier, StreamTransport
from serve_asgi.http2.websocket_life import WebSocketStreamLife
from serve_asgi.ipc.scoreboard import Cell
from serve_asgi.websocket.compression import Deflate
from serve_asgi.websocket.connection import WebSocketConnection
from serve_asgi.websocket.handshake import Handshake
from serve_asgi.websocket.states import (
    BETWEEN_LIVES,
    CLOSED,
    CLOSING,
    FINISHING,
    LINGERING,
    OPEN,
    PARTED,
    RESUMING,
)
from serve_asgi.websocket.surviving import begin_life
from serve_asgi.websocket.write_flow import WriteFlow

_ENDING: Final = frozenset((FINISHING, CLOSING, LINGERING))
_BEFORE_A_LIFE: Final = frozenset((PARTED, RESUMING))
_WEBSOCKETS: Final = int(Cell.WEBSOCKETS)


class StreamWriteFlow(WriteFlow):
    """Whether the client takes what is written to a stream, on a connection that carries other streams as well."""

    __slots__ = ("_before", "_carrier", "_target")

    def __init__(self, carrier: StreamCarrier) -> None:
        super().__init__(carrier.worker.loop)
        self._carrier = carrier
        self._before = self._target = 0
        """Bytes of the whole connection, at the last look: those that the client had taken, and all."""

    def is_behind(self, transport: asyncio.Transport) -> bool:
        """See `WriteFlow`; also whether it has taken some, and not all, of what others had written by the last look."""
        connection = self._carrier.transport
        taken, before, target = acknowledged(connection), self._before, self._target
        self._before, self._target = taken, taken + unacknowledged(connection)
        return super().is_behind(transport) or before < taken < target

    def is_stalled(self, transport: asyncio.Transport, now: float, timeout: float) -> bool:
        """See `WriteFlow`; where the client takes nothing of the whole connection, that is the connection's matter."""
        if self._carrier.blocked and now >= self.deadline:
            self.watch(transport, now + timeout)
            return False
        return super().is_stalled(transport, now, timeout)


class WebSocketStream(WebSocketConnection):
    """One of them, `serve_asgi.http2.stream_handler.StreamHandler` to the connection."""

    begun = math.inf
    """See `StreamHandler`: a WebSocket may last."""

    __slots__ = (
        "_calls",
        "_carrier",
        "_responded",
        "_stream_id",
        "drained",
        "lose",
        "receive_data",
        "receive_end",
        "receive_eof",
        "receive_reset",
    )

    def __init__(
        self, carrier: StreamCarrier, stream_id: int, head: Head, record: SurvivalRecord | None = None
    ) -> None:
        """A request has begun just now: call `begin` then. With a `record` it goes on where another worker left off:
        call `arrive`."""
        self._carrier = carrier
        self._stream_id = stream_id
        self._responded = record is not None
        self._calls = 0
        """Calls of the application that have not returned."""
        worker = carrier.worker
        super().__init__(
            worker,
            head,
            carrier.client,
            carrier.server,
            carrier.scheme,
            worker.forwarding.understand(head.headers, carrier.client) if carrier.trusted else None,
            None if carrier.tls is None else carrier.tls.info,
            carrier.trusted,
            record,
        )
        self.number = carrier.number
        self.output = StreamWriteFlow(carrier)
        transport = self.transport = StreamTransport(carrier, stream_id, self)
        self.receive_data: Callable[[bytes], None] = transport.receive_data
        self.receive_end: Callable[[Fields], None] = transport.receive_end
        self.receive_eof: Callable[[], None] = transport.receive_eof
        self.receive_reset: Callable[[], None] = transport.receive_reset
        self.drained: Callable[[], None] = transport.drained
        self.lose: Callable[[], None] = transport.lose

    def begin(self, ended: bool) -> None:
        """Judge the handshake and start the application. `ended`: the client has ended its side with the request."""
        self.connection_made(self.transport)
        self._look_who_works()
        if ended:
            self.receive_end([])

    def arrive(self) -> None:
        """Begin the next life of what another worker has had.

        Raises LookupError, TypeError or ValueError, with nothing begun, for a record that makes no sense here.
        """
        self.connection_made(self.transport)

    def _call_application(self, handshake: Handshake) -> asyncio.Task[None] | None:
        self._calls += 1
        task = super()._call_application(handshake)
        if task is None:
            self._has_returned()
        else:
            task.add_done_callback(self._has_returned)
        return task

    def _has_returned(self, task: asyncio.Task[None] | None = None) -> None:
        self._calls -= 1
        self._look_who_works()

    def _look_who_works(self) -> None:
        """Say so if nobody works for the stream any more."""
        if not self._calls and self.state not in _BEFORE_A_LIFE:
            self._carrier.core.done(self._stream_id)

    def accept(self, response: bytes, deflate: Deflate | None) -> None:
        """The WebSocket is open with this response."""
        if self._worker.retiring.is_set() and not self.is_to_survive():  # it will be closed soon, and opened again
            self._carrier.leave_to_another()
        super().accept(response, deflate)

    def forget(self) -> None:
        """The stream has ended."""
        if self._accepted:
            self._worker.cells[_WEBSOCKETS] -= 1
        self.surviving = None  # which refers to this
        self._look_who_works()
        self._carrier.forget_stream(self._stream_id)

    def is_open(self) -> bool:
        """Whether the WebSocket is open."""
        return self.state is OPEN

    def set_deadline(self, deadline: float) -> None:
        """See `WebSocketConnection`; the connection beneath is told."""
        self.deadline = deadline
        self._carrier.expect(deadline)

    def _respond(self, data: bytes) -> None:
        if not self._responded:
            self._responded = True
            head, _, data = data.partition(b"\r\n\r\n")
            cast(StreamTransport, self.transport).respond(fields_of_head(head))
        if data:
            self._write(data)

    def retire(self) -> None:
        """The worker's phase has changed: it retires, or serves again."""
        if self._worker.retiring.is_set():
            super().retire()
        else:
            self.resume()

    # ---- lives of one that is to survive

    @property
    def scheme(self) -> str:
        """Of the client's side."""
        return self._carrier.scheme

    @property
    def stage(self) -> LifeStage:
        """How far it is on its way to a next life."""
        if self.state in _ENDING:
            return LifeStage.NOT_YET
        return self.surviving.stage if isinstance(self.surviving, WebSocketStreamLife) else LifeStage.STAYS

    def is_to_survive(self) -> bool:
        """Whether its application wishes that, or has in a life before."""
        return self.surviving is not None and (self.surviving.survival.wanted or self.state in BETWEEN_LIVES)

    def life(self, record: SurvivalRecord | None, state: object = None) -> WebSocketStreamLife:
        """A life of it; `record` and `state` are of the one before, if there was one."""
        return WebSocketStreamLife(self, self._worker, record, state)

    def life_changed(self) -> None:
        """The connection is to look whether it can leave now."""
        self._carrier.lives_changed()

    def opt_in(self, extensions: object, version: int | None) -> Survival | None:
        """See `serve_asgi.http.survival.SurvivableConnection`."""
        if extensions is not self.extensions or self.stays():
            return None
        return self.survive().survival.opt_in(version)

    def stays(self) -> bool:
        """Whether no other process could go on with it (TLS 1.2)."""
        tls = self._carrier.tls
        return tls is not None and tls.stays()

    def take_held(self) -> dict[str, Any]:
        """Have what has come and was not given to it be `early` as well; what else of the stream is to travel."""
        transport = cast(StreamTransport, self.transport)
        self.early += transport.take_held()
        return {"transport": transport.to_json()}

    def gone(self) -> None:
        """The connection has gone to another worker between two lives: nothing is heard of the stream here any more."""
        cast(StreamTransport, self.transport).gone()
        self.enter(CLOSED)
        self.surviving = None
        self._worker.cells[_WEBSOCKETS] -= 1

    def _arrive(self, record: SurvivalRecord) -> None:
        worker, transport = self._worker, cast(StreamTransport, self.transport)
        transport.restore((record.websocket or {})["stream"]["transport"])
        self.reading_paused = True
        begin_life(self, worker, record)
        transport.look_at_what_waits()
        worker.cells[_WEBSOCKETS] += 1
        if worker.retiring.is_set():
            self.retire()


def next_life(carrier: StreamCarrier, stream_id: int, record: SurvivalRecord) -> WebSocketStream:
    """A WebSocket that survives another worker; what of its messages waits for a window is with the core again.

    Raises BadRequest, LookupError, TypeError or ValueError for a record that makes no sense here.
    """
    head, _ = read_request(fields_of(record.head), False)
    if not head.websocket:
        raise ValueError("the request is for no WebSocket")
    head.forwarding = carrier.worker.forwarding.mentioned(head.headers)
    websocket = WebSocketStream(carrier, stream_id, head, record)
    websocket.arrive()
    return websocket
