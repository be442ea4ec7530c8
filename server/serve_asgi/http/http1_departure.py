"""What an idle HTTP/1.1 connection does as its worker's phase has it: go on, leave for another worker, or end.

It owns that choice, and what is in the record of a connection that leaves. Rules: it leaves, or ends, when the kernel
has every byte; what has arrived is answered, by the worker that goes on with it; nobody is closed who may be sending a
request. It must not know how the worker finds a receiver, nor what a request is.
"""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

from serve_asgi.http.client_socket import is_readable
from serve_asgi.http.connection_states import PARTED
from serve_asgi.http.hand_over_record import HandOverRecord
from serve_asgi.http.http1_life import Http1Life
from serve_asgi.http.request_pipeline import PipelinedConnection, RequestPipeline
from serve_asgi.http.timeouts import PEEK_TIME
from serve_asgi.http.worker_context import WorkerContext, WorkerPhase

FRESH_TIME: Final = 2.0
"""A worker that retires with nobody to hand over to waits this long (s) for the first request of a new connection."""


class Http1DepartingConnection(PipelinedConnection, Protocol):
    """The connection, as far as its departure needs it."""

    worker: WorkerContext
    transport: asyncio.Transport
    pipeline: RequestPipeline
    life: Http1Life | None

    def can_leave(self) -> bool:
        """Whether it could be handed over now."""

    def serve(self) -> None:
        """Start the requests that have arrived, and read on."""

    def record_arriving(self, half: bool) -> None:
        """The beginning of a TLS record has come, if `half`."""


def settle(connection: Http1DepartingConnection) -> None:
    """In state IDLE: go on, leave, or end."""
    connection.output.flush()
    if connection.tls is not None:
        connection.tls.flush()
    worker, phase, transport = connection.worker, connection.worker.phase, connection.transport
    if phase is WorkerPhase.SERVING or connection.eof:
        connection.serve()
    elif phase is WorkerPhase.LENDING:
        lend(connection)
    elif transport.get_write_buffer_size():
        # Comes again from resume_writing when every byte is with the kernel.
        transport.set_write_buffer_limits(0)
    elif phase is WorkerPhase.HANDING_OVER and not connection.is_stationary():
        if worker.hand_over is not None:
            worker.hand_over(connection)
    elif connection.pipeline.buffer:
        connection.serve()
    elif phase is WorkerPhase.HANDING_OVER and not worker.last_call:
        pass  # it cannot go with the others, and is not closed idle: the response to its next request is its last
    elif connection.tls is not None and connection.tls.holds_half_a_record():
        connection.record_arriving(True)
    elif is_readable(transport):
        connection.deadline = worker.loop.time() + PEEK_TIME
    elif not connection.pipeline.requests:
        connection.deadline = min(connection.deadline, worker.loop.time() + FRESH_TIME)
    else:
        connection.finish()


def lend(connection: Http1DepartingConnection) -> None:
    """Go to the canary if it is to have another connection, and this one is idle; else go on here."""
    worker = connection.worker
    idle = not connection.pipeline.buffer and not connection.is_stationary() and connection.can_leave()
    if idle and worker.to_lend > 0 and worker.hand_over is not None:
        worker.to_lend -= 1
        worker.hand_over(connection)
    else:
        connection.serve()


def record_of(connection: Http1DepartingConnection) -> HandOverRecord:
    """What travels with one that leaves, idle or between two lives of a response."""
    pipeline, life = connection.pipeline, connection.life if connection.state is PARTED else None
    leftover = bytes(pipeline.buffer)
    return HandOverRecord(
        leftover if life is None else life.record(leftover).to_bytes(),
        connection.client,
        connection.server,
        connection.deadline,
        pipeline.requests,
        connection.scheme,
        connection.trusted,
        survives=life is not None,
    )
