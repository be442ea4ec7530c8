"""One life of a response on a stream of an HTTP/2 connection that is to survive its worker.

What may be said in a life, and what is left of it, is `serve_asgi.http.surviving_response`'s; when the lives of a
connection's streams end, which they do together, `serve_asgi.http2.stream_lives`'. It owns how far a life is on that
way. It must not know other streams.
"""

from __future__ import annotations

import enum
from typing import Protocol

from serve_asgi.http.request_receive import Request
from serve_asgi.http.response import Response, ResponseSink
from serve_asgi.http.response_states import PARTED, PARTING, RESUMING, STARTED, STREAMING, WAITING
from serve_asgi.http.survival_record import SurvivalRecord, field_bytes
from serve_asgi.http.surviving_response import SurvivingResponse
from serve_asgi.http.worker_context import WorkerContext, WorkerPhase


class LivingStream(ResponseSink, Protocol):
    """The stream, as far as the lives of its response need it."""

    @property
    def scheme(self) -> str:
        """Of the client's side."""

    def life_changed(self) -> None:
        """The connection is to look whether it can leave now."""


class LifeStage(enum.Enum):
    """How far a stream is on its way to a next life."""

    STAYS = "stays"  # it is not to survive, or never can
    NOT_YET = "not yet"  # it cannot go on elsewhere at the moment; soon it can, or is over
    READY = "ready"  # its life may end
    PARTING = "parting"  # the application has been told
    PARTED = "parted"  # the life has ended, and the next may begin


class StreamLife(SurvivingResponse):
    """One life. With `before`, it goes on where that one has ended."""

    __slots__ = ("_stream",)

    def __init__(
        self, stream: LivingStream, worker: WorkerContext, response: Response, before: SurvivalRecord | None = None
    ) -> None:
        super().__init__(stream, worker, response, before)
        self._stream = stream

    @property
    def stage(self) -> LifeStage:
        """How far it is."""
        state, wanted = self.response.state, self.survival.wanted
        if state is PARTED:
            return LifeStage.PARTED
        if state is PARTING:
            return LifeStage.PARTING
        if state is RESUMING or (wanted and state is WAITING):
            return LifeStage.NOT_YET
        if wanted and (state is STREAMING or state is STARTED) and self._can_move():
            return LifeStage.READY
        return LifeStage.STAYS

    def retire(self) -> None:
        """The worker retires, or the application opts in while it does."""
        if self.survival.wanted:
            self.may_end()

    def may_end(self) -> None:
        """What may have been in the way of the end is over."""
        if self._worker.phase is WorkerPhase.HANDING_OVER:
            self._stream.life_changed()

    def begin_end(self) -> None:
        """In stage READY, when the moment of all streams has come: tell the application."""
        self._begin_end()

    def move_on(self) -> None:
        """This life has ended."""
        self._stream.life_changed()

    def _head(self, request: Request) -> bytes:
        return field_bytes(request.head, self._stream.scheme, self._worker.request_ids.name, request.identity())
