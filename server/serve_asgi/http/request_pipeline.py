"""From the bytes that a client sends to requests, one after another, and what follows each of them.

It owns what has arrived and belongs to no request yet, the response in progress, and the count of those before it. It
decides when a request begins, who answers it (the application, a WebSocket, or the server itself: health, refusals),
and whether the connection goes on after it. What a client pipelines stays raw bytes until its turn comes, and moves to
another worker as such. Rules: no byte is lost or read twice; two requests of one connection are never answered at the
same time; the hot path is one `receive`, one call of the application, one write.

It must not know transports, nor how a connection rests, closes or moves: what it needs of the connection is
`PipelinedConnection`, which each call is given, so that the two do not refer to each other in a circle.
"""

from __future__ import annotations

import math
from typing import Final, Protocol

from serve_asgi.http import health, refusals
from serve_asgi.http.application_task import call_application
from serve_asgi.http.connection_states import DISCARDING, IDLE, PARTED, REQUEST, ConnectionState
from serve_asgi.http.http1_response import Http1Response, Http1Sink
from serve_asgi.http.request_body import RequestBody
from serve_asgi.http.request_buffer import RequestBuffer
from serve_asgi.http.request_head import PRIOR_KNOWLEDGE, BadRequest, Head, endless_target
from serve_asgi.http.request_receive import Request, RequestSource
from serve_asgi.http.response import Response
from serve_asgi.http.response_states import DONE, OVER, STARTED, WAITING
from serve_asgi.http.survival_record import SurvivalRecord
from serve_asgi.http.timeouts import Timeouts
from serve_asgi.http.worker_context import WorkerContext, WorkerPhase
from serve_asgi.http.write_buffer import WriteBuffer
from serve_asgi.ipc.scoreboard import Cell
from serve_asgi.logs.server_log import about

READ_LIMIT: Final = 65536
"""Bytes that may wait unread (a body that the application has not taken; requests pipelined) before reading pauses."""

DISCARD_TIME: Final = 15.0
"""How long (s) the rest of a request that was answered early may take to arrive."""

BATCH: Final = 32
"""Pipelined requests that are answered in a row before others have their turn."""

INFINITY: Final = math.inf
_IN_FLIGHT: Final = int(Cell.IN_FLIGHT)
_SERVING: Final = WorkerPhase.SERVING
CLIENT_HELLO: Final = b"\x16\x03"
"""What TLS begins with (RFC 8446, 5.1)."""
_CR: Final = 13
_P: Final = ord("P")


class PipelinedConnection(RequestSource, Http1Sink, Protocol):
    """The connection, as far as its requests need it."""

    state: ConnectionState
    deadline: float

    @property
    def eof(self) -> bool:
        """The client has shut down its side."""

    def become(self, state: ConnectionState) -> None:
        """Change the state, by a way that the table has."""

    def head_begun(self) -> None:
        """The beginning of a request's head has come."""

    def settle(self) -> None:
        """No request is in progress: go on, leave, or end, as the worker's phase has it."""

    def upgrade(self, head: Head, leftover: bytes) -> None:
        """The request asks for a WebSocket: from now on the transport is not ours."""

    def upgrade_to_http2(self, data: bytes) -> None:
        """The client speaks HTTP/2, from its beginning, `data`: from now on the transport is not ours."""

    def finish(self) -> None:
        """The last response is written: end politely."""

    def close(self) -> None:
        """End, without waiting for the client."""


class RequestPipeline:
    """Of one connection."""

    __slots__ = ("_output", "_timeouts", "_worker", "buffer", "requests", "response", "still_sending")

    def __init__(self, worker: WorkerContext, output: WriteBuffer, timeouts: Timeouts) -> None:
        self._worker = worker
        self._output = output
        self._timeouts = timeouts
        self.buffer = RequestBuffer()
        """What has arrived and belongs to no request yet."""
        self.requests = 0
        """Requests answered on this connection, also by other workers before."""
        self.response: Response | None = None
        """Of the request in progress."""
        self.still_sending: set[Response] | None = None
        """Those that are over and whose application goes on sending; they are told when the client goes."""

    # ---- bytes

    def receive(self, connection: PipelinedConnection, data: bytes) -> None:
        """Bytes have arrived while no request is in progress."""
        if not self.buffer and not self._output.paused and data[0] != _CR:
            end = data.find(b"\r\n\r\n") + 4
            if 3 < end <= self._worker.max_head_size:
                if end == len(data):
                    self._begin(connection, data, b"")
                    return
                if data[0] == _P:  # POST, PUT, PATCH: a body follows; else, further requests do
                    self._begin(connection, data[:end], data[end:])
                    return
        self.buffer += data
        self.advance(connection)
        if self._output.paused:  # the last response is not read: what follows it waits, and is bounded
            connection.adjust_reading()

    def receive_body(self, connection: PipelinedConnection, data: bytes) -> None:
        """Bytes have arrived after the head of the request in progress: of its body, or of further requests."""
        response = self.response
        assert response is not None
        body = response.request.body
        if body is not None and not body.whole:
            self._feed_body(connection, response, body, data)
        else:
            self.buffer += data
        connection.adjust_reading()

    def is_full(self, state: ConnectionState) -> bool:
        """Whether too much has arrived that nobody has taken."""
        response = self.response
        if (state is REQUEST or state is PARTED) and response is not None:
            body = response.request.body
            return (body is not None and body.unread > READ_LIMIT) or len(self.buffer) > READ_LIMIT
        return state is IDLE and len(self.buffer) > READ_LIMIT + self._worker.max_head_size

    def lose(self) -> None:
        """The client has gone: the applications that serve it are told, and what has arrived is dropped."""
        response, self.response = self.response, None
        self.buffer.clear()
        if response is not None:
            response.lose()
        if self.still_sending:
            for each in list(self.still_sending):
                each.lose()

    # ---- from bytes to requests

    def advance(self, connection: PipelinedConnection) -> None:
        """Start the requests whose heads are whole, one after another; say until when the next head must be."""
        output = self._output
        if connection.state is not IDLE or output.paused:
            return  # comes again when the transport takes more, or after the response
        left = BATCH
        output.batching = True
        try:
            while left and self._start_next(connection) and connection.state is IDLE and not output.paused:
                left = left - 1 if self._worker.phase is _SERVING else 0
        finally:
            output.batching = False
            output.flush()
        if connection.state is IDLE and left < BATCH:
            connection.adjust_reading()
            if not left or output.paused:
                self._worker.loop.call_soon(connection.settle)

    def _start_next(self, connection: PipelinedConnection) -> bool:
        """Start the request at the buffer's beginning if its head is whole; True if more may be done."""
        buffer, config = self.buffer, self._worker.config
        known = buffer.scanned
        try:
            head = buffer.take_head(self._worker.max_head_size, config.max_target_size, self.requests)
        except BadRequest as refused:
            self.refuse(connection, refused)
            return False
        if head:
            self._begin(connection, head, b"")
            return True
        if connection.eof:
            connection.close()
        elif buffer.scanned and not known:
            connection.head_begun()
        return False

    def _begin(self, connection: PipelinedConnection, data: bytes, rest: bytes) -> None:
        """Start the request whose whole head is `data`; `rest` followed it."""
        worker = self._worker
        try:
            head = worker.heads.read(data)
        except BadRequest as refused:
            if data == PRIOR_KNOWLEDGE and self._begins_http2(connection):
                connection.upgrade_to_http2(data + rest + self.buffer)
                self.buffer.clear()
                return
            refused = endless_target(data, worker.config.max_target_size) or refused
            self.refuse(connection, refused, data)
            return
        if head.path == worker.health_path and head.method in health.METHODS:
            last = self._is_last(connection, head, rest)
            self._respond_itself(connection, health.response(worker, head, last), last, rest)
            return
        if worker.published[0] > worker.shared.applied:
            worker.catch_up()
        if head.websocket and not head.body:
            leftover = rest + self.buffer
            self.buffer.clear()
            connection.upgrade(head, leftover)
            return
        if worker.max_concurrency and worker.cells[_IN_FLIGHT] >= worker.max_concurrency:
            last = self._is_last(connection, head, rest)
            refusal = refusals.overloaded(worker, connection, head, last)
            self._respond_itself(connection, refusal, last, rest)
            return
        request = Request(connection, worker, head)
        self.response = response = Http1Response(connection, worker, request)
        connection.state = REQUEST
        connection.deadline = INFINITY
        body = request.body
        if body is None:
            if rest:
                self.buffer += rest
            if self.buffer:
                connection.adjust_reading()
        else:
            if self.buffer:
                rest = bytes(self.buffer)
                self.buffer.clear()
            if rest:
                self._feed_body(connection, response, body, rest)
                if connection.state is not REQUEST:
                    return  # malformed
            if not body.whole:
                connection.deadline = self._timeouts.body(body)
            if self.buffer or body.unread > READ_LIMIT or connection.read_paused:
                connection.adjust_reading()
        call_application(worker, request, response)

    def _begins_http2(self, connection: PipelinedConnection) -> bool:
        """Whether the beginning of HTTP/2 is in its place (RFC 9113 3.3): TLS negotiates that before (ALPN)."""
        return not self.requests and connection.tls is None and self._worker.config.http2 == "on"

    def _feed_body(self, connection: PipelinedConnection, response: Response, body: RequestBody, data: bytes) -> None:
        """Bytes of the request's body have arrived, perhaps more than it."""
        try:
            rest = body.feed(data)
        except BadRequest as refused:
            self.refuse_body(connection, response, refused)
            return
        if response.request.waiters and (body.unread or body.whole):
            response.request.wake()
        if rest is not None:
            if rest:
                self.buffer += rest
            if connection.life is not None:
                connection.life.may_end()
            if connection.state is DISCARDING:
                self.response = None
                self._rest(connection)

    def resume(self, connection: PipelinedConnection, record: SurvivalRecord) -> Response:
        """The next life of a response, which the caller lets begin by `call`.

        Raises BadRequest, LookupError, TypeError or ValueError for a record that makes no sense here.
        """
        worker = self._worker
        values = record.response or {}
        request = Request(connection, worker, worker.read_again(record.head))
        request.resume(values["begun"], record.body)
        response = Http1Response(connection, worker, request)
        response.resume(values)
        self.buffer += record.unread
        self.response = response
        if worker.published[0] > worker.shared.applied:
            worker.catch_up()
        return response

    # ---- what follows a request

    def complete(self, connection: PipelinedConnection, response: Response) -> None:
        """The response is complete (written to the transport)."""
        self.requests += 1
        if response.state is OVER:
            if self.still_sending is None:
                self.still_sending = set()
            self.still_sending.add(response)
        body = response.request.body
        if response.close:
            self.response = None
            if response.head.keep_alive or body is not None or self.buffer:
                connection.finish()
            else:
                connection.close()  # the client has said that this was its last: nothing more comes to be reset
        elif body is not None and not body.whole:
            if body.discardable():
                if response.state is DONE:
                    body.drop()
                connection.become(DISCARDING)
                connection.deadline = self._worker.loop.time() + DISCARD_TIME
                connection.adjust_reading()
            else:
                self.response = None
                connection.finish()
        else:
            self.response = None
            self._rest(connection)

    def left(self, response: Response) -> None:
        """An application that went on after its response has ended, or has been told that nobody listens."""
        if self.still_sending:
            self.still_sending.discard(response)
        if response.request.body is not None:
            response.request.body.drop()

    def _rest(self, connection: PipelinedConnection) -> None:
        """No request is in progress any more. What is next is decided soon, not inside the application's `send`."""
        worker = self._worker
        connection.state = IDLE
        connection.deadline = worker.time() + worker.keep_alive
        if not self._output.batching and (
            self.buffer or connection.read_paused or connection.eof or worker.phase is not _SERVING
        ):
            connection.adjust_reading()
            worker.loop.call_soon(connection.settle)

    # ---- responses of the server's own

    def refuse(self, connection: PipelinedConnection, refused: BadRequest, head: bytes = b"") -> None:
        """Answer what is no request that could be served, and close. `head`: if that has been taken from the buffer."""
        if connection.tls is None and (head or self.buffer).startswith(CLIENT_HELLO):
            self._close_tls(connection)
            return
        self.buffer.clear()
        with_body = not head.startswith(b"HEAD ")
        response = refusals.bad_request(self._worker, connection, refused, with_body)
        self._output.write(response)
        connection.finish()

    def _close_tls(self, connection: PipelinedConnection) -> None:
        """A client speaks TLS where it is not spoken: it could not read an answer; the operator can."""
        who = "a unix socket" if connection.client is None else connection.client[0]
        self._worker.tls_at_plain_address.info(
            "closed a connection from %s: it speaks TLS, and this address does not; use http://, or an https:// "
            "address (--tls-cert)",
            who,
            extra=about("tls_misdirected", peer=who),
        )
        self.buffer.clear()
        connection.close()

    def refuse_body(self, connection: PipelinedConnection, response: Response, refused: BadRequest) -> None:
        """The request's body is malformed: say so if nothing else has been said, and end the connection."""
        unanswered = response.state is WAITING or response.state is STARTED
        in_time = unanswered or connection.state is DISCARDING
        if unanswered:
            response.status = refused.status
            self._output.write(refusals.bad_body(self._worker, response.head, refused))
        response.refuse()
        self.response = None
        if in_time:
            connection.finish()
        else:
            connection.response_cut(reset=response.until_close)

    def _ends_here(self, connection: PipelinedConnection) -> bool:
        """Whether the worker retires, and the connection does not go to another one."""
        worker = self._worker
        phase = worker.phase
        return (
            worker.announce_close
            or phase is WorkerPhase.CLOSING
            or (phase is WorkerPhase.HANDING_OVER and connection.is_stationary())
        )

    def _is_last(self, connection: PipelinedConnection, head: Head, rest: bytes) -> bool:
        """Whether a response of the server's own, which reads no body, is the connection's last."""
        worker = self._worker
        return (
            not head.keep_alive
            or head.body != 0
            or (self._ends_here(connection) and not (rest or self.buffer))
            or not worker.config.keep_alive
        )

    def _respond_itself(self, connection: PipelinedConnection, response: bytes, last: bool, rest: bytes) -> None:
        """Answer without the application."""
        self._output.write(response)
        self.requests += 1
        if last:
            connection.finish()
        else:
            self.buffer += rest
            self._rest(connection)
