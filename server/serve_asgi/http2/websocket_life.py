"""One life of a WebSocket on a stream of an HTTP/2 connection that is to survive its worker.

What ends and begins with a life is `serve_asgi.websocket.surviving`'s; when the lives of a connection's streams end,
which they do together, and how the connection moves with them `serve_asgi.http2.stream_lives`'. It owns how far a life
is on that way, and what of the stream travels with it. It must not know other streams.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

from serve_asgi.http.survival_record import SurvivalRecord, field_bytes
from serve_asgi.http.worker_context import WorkerContext, WorkerPhase
from serve_asgi.http2.stream_life import LifeStage
from serve_asgi.websocket.states import HANDSHAKE, OPEN, PARTED, PARTING, RESUMING
from serve_asgi.websocket.surviving import PartingConnection, SurvivingWebSocket, begin_life


class PartingStream(PartingConnection, Protocol):
    """The WebSocket, as far as its lives need it."""

    @property
    def scheme(self) -> str:
        """Of the client's side."""

    def stays(self) -> bool:
        """Whether no other process could go on with it (TLS 1.2)."""

    def take_held(self) -> dict[str, Any]:
        """Have what has come and was not given to it be `early` as well; what else of the stream is to travel."""

    def life_changed(self) -> None:
        """The connection is to look whether it can leave now."""


class WebSocketStreamLife(SurvivingWebSocket):
    """One life."""

    __slots__ = ("_stream",)

    def __init__(
        self, stream: PartingStream, worker: WorkerContext, record: SurvivalRecord | None, state: object = None
    ) -> None:
        super().__init__(stream, worker, record, state)
        self._stream = stream

    @property
    def stage(self) -> LifeStage:
        """How far it is."""
        state, wanted = self._stream.state, self.survival.wanted
        if state is PARTED:
            return LifeStage.PARTED
        if state is PARTING:
            return LifeStage.PARTING
        if state is RESUMING or (wanted and state is HANDSHAKE):
            return LifeStage.NOT_YET
        return LifeStage.READY if wanted and state is OPEN else LifeStage.STAYS

    @property
    def leaves(self) -> bool:
        """See `SurvivingWebSocket`."""
        return super().leaves and not self._stream.stays()

    def opened(self) -> None:
        """The WebSocket is open in this life: the moment of all streams may have come already."""
        if self.leaves:
            self._stream.life_changed()

    def retire(self) -> None:
        """The worker retires, or the application opts in while it does."""
        self._stream.life_changed()

    def resume(self) -> None:
        """The worker serves again."""
        self._stream.life_changed()

    def begin_end(self) -> None:
        """In stage READY, when the moment of all streams has come: tell the application."""
        self.end_life()

    def depart(self) -> None:
        """This life has ended."""
        output = self._stream.output
        if output.pongs and self._stream.state is PARTED:
            pongs, output.pongs = output.pongs, b""
            self._worker.sent += len(pongs)
            self._stream.transport.write(pongs)  # what waits for the client's window goes along
        self._stream.life_changed()

    def fail(self, reason: str) -> None:
        """It does not survive: the WebSocket ends as it would have ended without."""
        super().fail(reason)
        self._stream.life_changed()

    def go_on_here(self) -> None:
        """After the end: begin the next life in the same worker, if that still serves."""
        if self._worker.phase is WorkerPhase.CLOSING:
            self.fail("no worker takes it")
        else:
            begin_life(self._stream, self._worker, self.record())

    def record(self) -> SurvivalRecord:
        """What the next life begins with."""
        stream = self._stream.take_held()
        record = super().record()
        return dataclasses.replace(record, websocket={**(record.websocket or {}), "stream": stream})

    def _head(self) -> bytes:
        request = self._stream.request
        return field_bytes(request.head, self._stream.scheme, self._worker.request_ids.name, request.identity())
