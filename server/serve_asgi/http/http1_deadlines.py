"""What follows when a deadline of an HTTP/1.1 connection has passed, and when the time of a request's head begins.

It owns the meaning of the connection's one deadline in each of its states; the periods, and the verdicts on a client
that is slow, are `serve_asgi.http.timeouts`'. Rule: half a TLS record is taken for the beginning of a request, whose
head has to be whole in time, and however often it turns out to have been nothing, the connection does not get more than
its idle time and the time of one head. It must not know what a request is.
"""

from __future__ import annotations

import asyncio
import math
from typing import Final, Protocol

from serve_asgi.http.connection_states import CLOSING, DISCARDING, IDLE, PARTED, REQUEST
from serve_asgi.http.request_head import BadRequest
from serve_asgi.http.request_pipeline import PipelinedConnection, RequestPipeline
from serve_asgi.http.response import Response
from serve_asgi.http.timeouts import Expiry, Timeouts
from serve_asgi.http.worker_context import WorkerContext, WorkerPhase

INFINITY: Final = math.inf


class Http1TimedConnection(PipelinedConnection, Protocol):
    """The connection, as far as its deadlines need it."""

    worker: WorkerContext
    transport: asyncio.Transport
    pipeline: RequestPipeline
    timeouts: Timeouts

    def reset(self) -> None:
        """End at once, and so that the client cannot take it for the end of the body."""

    def expire_closing(self) -> None:
        """In state CLOSING: the deadline has passed."""


class RecordTimes:
    """Of the latest TLS record that has begun to come on an idle connection, and was not whole."""

    __slots__ = ("_before", "_until")

    def __init__(self) -> None:
        self._before = -1.0
        """The deadline when it began to come."""
        self._until = -1.0
        """Its own."""

    def begin(self, before: float, until: float) -> None:
        """Half a record has come, whose time is over at `until`; without it the connection had until `before`."""
        self._before, self._until = before, until

    def runs(self, deadline: float) -> bool:
        """Whether the deadline is that of the record."""
        return deadline == self._until

    def arriving(self, connection: Http1TimedConnection, half: bool) -> None:
        """The beginning of a record has come (`half`), or one that is whole and says nothing to the application."""
        if connection.state is not IDLE or connection.pipeline.buffer.holds_part_of_head():
            return
        deadline = connection.deadline
        again = deadline in (self._before, self._until)
        if half:
            before, until = self._before, connection.timeouts.head()
            if not again:
                before = deadline
            elif deadline == self._until:
                until = self._until
            else:
                until = min(until, before + connection.worker.config.head_timeout)
            connection.deadline = until
            self._before, self._until = before, until
        elif again:
            connection.deadline = self._before
            if connection.worker.phase is WorkerPhase.CLOSING:
                connection.settle()


def expire(connection: Http1TimedConnection, records: RecordTimes) -> None:
    """The deadline has passed."""
    due, connection.deadline = connection.deadline, INFINITY
    state, pipeline = connection.state, connection.pipeline
    if state is IDLE:
        _expire_idle(connection, records, due)
    elif state is REQUEST:
        if pipeline.response is not None:
            _expire_request(connection, pipeline.response)
    elif state is DISCARDING:
        pipeline.response = None
        connection.finish()
    elif state is PARTED:
        if connection.output.paused and pipeline.response is not None:
            _expire_request(connection, pipeline.response)
        else:
            connection.settle()
    else:
        connection.expire_closing()


def _expire_idle(connection: Http1TimedConnection, records: RecordTimes, due: float) -> None:
    pipeline, timeouts = connection.pipeline, connection.timeouts
    begun = pipeline.buffer.holds_part_of_head()
    if not begun and connection.tls is not None and connection.tls.holds_half_a_record():
        begun = records.runs(due)
        if not begun:  # it came while a request was in progress
            connection.deadline = due
            records.arriving(connection, True)
            return
    verdict = timeouts.idle_expired(begun, pipeline.requests)
    if verdict is Expiry.REFUSE:
        pipeline.refuse(connection, BadRequest(408, "The request head took too long to arrive."))
    elif verdict is Expiry.CUT:
        connection.close()
        connection.transport.abort()
    elif verdict is Expiry.FINISH:
        connection.finish()
    else:
        connection.deadline = timeouts.deadline


def _expire_request(connection: Http1TimedConnection, response: Response) -> None:
    pipeline, timeouts = connection.pipeline, connection.timeouts
    verdict = timeouts.request_expired(response.request.body, connection.read_paused)
    if verdict is Expiry.REFUSE:
        pipeline.refuse_body(connection, response, BadRequest(408, "The request body arrives too slowly."))
    elif verdict is Expiry.CUT:  # the response ends here, visibly short
        pipeline.response = None
        connection.become(CLOSING)
        response.lose()
        connection.output.wake_writers()
        connection.reset()
    else:
        connection.deadline = timeouts.deadline
