"""One life of a response over HTTP/1.1 that is to survive its worker: when it ends, and how its connection moves.

It owns the moment of the end, and the steps from there to the hand-over, or to the next life in the same worker. What
may be said in a life, and what is left of it, is `serve_asgi.http.surviving_response`'s. Rule: a connection leaves when
the kernel has every byte. It must not know how the worker finds a receiver.
"""

from __future__ import annotations

import asyncio
import math
from typing import Protocol

from serve_asgi.http import survival
from serve_asgi.http.application_task import call_application
from serve_asgi.http.connection_states import CLOSING, PARTED, REQUEST
from serve_asgi.http.request_head import BadRequest
from serve_asgi.http.request_pipeline import PipelinedConnection, RequestPipeline
from serve_asgi.http.request_receive import Request
from serve_asgi.http.response import Response
from serve_asgi.http.response_states import RESUMING, WAITING
from serve_asgi.http.survival_record import SurvivalRecord, head_bytes
from serve_asgi.http.surviving_response import PARTED_TIME, WAITING_TIME, SurvivingResponse
from serve_asgi.http.timeouts import Timeouts
from serve_asgi.http.worker_context import WorkerContext, WorkerPhase


class StreamingConnection(PipelinedConnection, Protocol):
    """The connection, as far as the lives of its response need it."""

    transport: asyncio.Transport
    worker: WorkerContext
    pipeline: RequestPipeline
    timeouts: Timeouts
    life: Http1Life | None

    def reset(self) -> None:
        """End at once, and so that the client cannot take it for the end of the body."""


class Http1Life(SurvivingResponse):
    """One life. With `before`, it goes on where that one has ended."""

    __slots__ = ("_connection",)

    def __init__(
        self,
        connection: StreamingConnection,
        worker: WorkerContext,
        response: Response,
        before: SurvivalRecord | None = None,
    ) -> None:
        super().__init__(connection, worker, response, before)
        self._connection = connection

    def retire(self) -> None:
        """The worker retires, or the application opts in while it does: plan the end."""
        if self.survival.wanted and self._worker.phase is WorkerPhase.HANDING_OVER:
            self._end.plan(self.survival.begun, self._come_to_an_end)

    def may_end(self) -> None:
        """What may have been in the way of the end is over."""
        if self._end.overdue:
            self._come_to_an_end()

    def _come_to_an_end(self) -> None:
        if self.response.state is WAITING:
            self._worker.loop.call_later(WAITING_TIME, self.may_end)
        else:
            self._begin_end()

    def _head(self, request: Request) -> bytes:
        return head_bytes(request.head, self._worker.request_ids.name, request.identity())

    def move_on(self) -> None:
        """Have the connection handed over as soon as the kernel has every byte; go on here if the worker serves on."""
        worker, connection = self._worker, self._connection
        if connection.state is not PARTED:
            connection.become(PARTED)
        if worker.phase is not WorkerPhase.HANDING_OVER or worker.hand_over is None:
            self.go_on_here()
            return
        connection.output.flush()
        if connection.tls is not None:
            connection.tls.flush()
        now = worker.loop.time()
        wait = self.survival.begun + survival.LEAST_LIFE - now
        if connection.transport.get_write_buffer_size():
            connection.transport.set_write_buffer_limits(0)  # comes again from resume_writing
        elif wait > 0:
            worker.loop.call_later(wait, connection.settle)
        else:
            connection.deadline = now + PARTED_TIME
            worker.hand_over(connection)

    def go_on_here(self) -> None:
        """Begin the next life in the same worker."""
        self._connection.transport.set_write_buffer_limits()
        begin_life(self._connection, self.record(b""))


def begin_life(connection: StreamingConnection, record: SurvivalRecord) -> None:
    """Call the application again, in this worker, for a response whose life has ended in another one, or here."""
    worker, pipeline = connection.worker, connection.pipeline
    connection.become(REQUEST)
    connection.deadline = connection.timeouts.write() if connection.output.paused else math.inf
    try:
        response = pipeline.resume(connection, record)
        connection.life = Http1Life(connection, worker, response, record)
    except (BadRequest, LookupError, TypeError, ValueError) as error:
        worker.did_not_survive("a response", f"what another worker has left of it makes no sense here ({error!r})")
        connection.become(CLOSING)
        connection.reset()
        return

    def call() -> None:
        if pipeline.response is response and response.state is RESUMING:  # the client has not gone
            connection.adjust_reading()
            call_application(worker, response.request, response)

    worker.loop.call_soon(call)  # not in `connection_made`: uvloop begins to read after it, whatever it has said
