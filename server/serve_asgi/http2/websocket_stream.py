"""A WebSocket over one stream of an HTTP/2 connection (RFC 8441): the extended CONNECT, and the handler of its stream.

It owns what HTTP/2 makes different for a WebSocket: the response to the request is fields with `:status`, the
connection beneath is shared, which the worker counts and closes by itself, and no stream moves to another worker, so
that the WebSocket ends with 1012 when its worker retires. Everything else (frames, states, deadlines, what the
application is told) is `serve_asgi.websocket.connection`'s, over a `StreamTransport`. It must not know frames of
HTTP/2, nor what other streams there are.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Final, cast

from serve_asgi.http.client_socket import acknowledged, unacknowledged
from serve_asgi.http.h2.events import Fields, StreamRequest
from serve_asgi.http.survival import Survival
from serve_asgi.http2.own_responses import fields_of_head
from serve_asgi.http2.stream_transport import StreamCarrier, StreamTransport
from serve_asgi.ipc.scoreboard import Cell
from serve_asgi.websocket.connection import WebSocketConnection
from serve_asgi.websocket.surviving import SurvivingWebSocket
from serve_asgi.websocket.write_flow import WriteFlow

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

    can_survive = False
    begun = math.inf
    """See `StreamHandler`: a WebSocket may last."""

    __slots__ = (
        "_carrier",
        "_deadline",
        "_responded",
        "_stream_id",
        "drained",
        "lose",
        "receive_data",
        "receive_end",
        "receive_eof",
        "receive_reset",
    )

    def __init__(self, carrier: StreamCarrier, request: StreamRequest) -> None:
        """`request` has begun just now; call `begin` then."""
        self._carrier = carrier
        self._stream_id = request.stream_id
        self._responded = False
        worker, head = carrier.worker, request.head
        super().__init__(
            worker,
            head,
            carrier.client,
            carrier.server,
            carrier.scheme,
            worker.forwarding.understand(head.headers, carrier.client) if carrier.trusted else None,
            None if carrier.tls is None else carrier.tls.info,
            carrier.trusted,
        )
        self.output = StreamWriteFlow(carrier)
        transport = self.transport = StreamTransport(carrier, request.stream_id, self)
        self.receive_data: Callable[[bytes], None] = transport.receive_data
        self.receive_end: Callable[[Fields], None] = transport.receive_end
        self.receive_eof: Callable[[], None] = transport.receive_eof
        self.receive_reset: Callable[[], None] = transport.receive_reset
        self.drained: Callable[[], None] = transport.drained
        self.lose: Callable[[], None] = transport.lose

    def begin(self, ended: bool) -> None:
        """Judge the handshake and start the application. `ended`: the client has ended its side with the request."""
        self.connection_made(self.transport)
        if self._task is None:
            self._carrier.core.done(self._stream_id)
        else:
            self._task.add_done_callback(self._has_returned)
        if ended:
            self.receive_end([])

    def _has_returned(self, task: asyncio.Task[None]) -> None:
        self._carrier.core.done(self._stream_id)

    def forget(self) -> None:
        """The stream has ended."""
        if self._accepted:
            self._worker.cells[_WEBSOCKETS] -= 1
        self._carrier.forget_stream(self._stream_id)

    @property
    def deadline(self) -> float:
        """When `expire` is due (loop time, s), or infinity."""
        return self._deadline

    @deadline.setter
    def deadline(self, deadline: float) -> None:
        self._deadline = deadline
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

    def survive(self) -> SurvivingWebSocket:
        """The application speaks of survival, which it was not offered. Raises RuntimeError."""
        raise RuntimeError(
            "A WebSocket over HTTP/2 does not survive its worker; see whether scope['extensions'] has serve.survive "
            "before you send messages of that name."
        )

    def opt_in(self, extensions: object, version: int | None) -> Survival | None:
        """See `serve_asgi.http.survival.SurvivableConnection`."""
        return None
