"""One request and its response on a stream of an HTTP/2 connection.

It owns the call of the application, what its body and its response do to the stream, and the stream's deadline. Rules:
the application has its back-pressure from the stream's window alone; a response that is not whole ends with RST_STREAM,
so that no client takes it for whole; a client that has its response and still sends a body is told to stop (RFC 9113
8.1). It must not know other streams, nor how the connection lives: what it needs of it is `StreamConnection`.
"""

from __future__ import annotations

import asyncio
import math
from typing import Any, Final, Protocol, cast

from serve_asgi.http import refusals
from serve_asgi.http.application_task import call_application
from serve_asgi.http.client_end import ClientEnd
from serve_asgi.http.h2.connection_core import ConnectionCore
from serve_asgi.http.h2.error_codes import ErrorCode
from serve_asgi.http.h2.events import Fields
from serve_asgi.http.h2.header_decoder import Field
from serve_asgi.http.h2.request_fields import read_request
from serve_asgi.http.h2.response_fields import STATUS_FIELDS
from serve_asgi.http.request_head import BadRequest, Head
from serve_asgi.http.request_pipeline import DISCARD_TIME
from serve_asgi.http.request_receive import Request
from serve_asgi.http.request_timeouts import RequestTimeouts, is_unanswered, report
from serve_asgi.http.response import Response
from serve_asgi.http.response_states import DONE, LOST, OVER, PARTED, RESUMING, STARTED, WAITING
from serve_asgi.http.survival import Survival
from serve_asgi.http.survival_record import SurvivalRecord, fields_of
from serve_asgi.http.timeouts import BODY_WINDOW
from serve_asgi.http.underlying_tls import UnderlyingTls
from serve_asgi.http.worker_context import WorkerContext
from serve_asgi.http2.own_responses import write_response
from serve_asgi.http2.response import Http2Response
from serve_asgi.http2.stream_body import StreamBody
from serve_asgi.http2.stream_life import LifeStage, StreamLife
from serve_asgi.ipc.peer_address import Address

MOST_WAITING: Final = 64 * 1024
"""Bytes of a response that may wait for the client's window before the application waits."""

INFINITY: Final = math.inf
_ENDED: Final = frozenset({DONE, LOST, OVER})


class StreamConnection(Protocol):
    """The connection, as far as what happens on one of its streams needs it."""

    worker: WorkerContext
    core: ConnectionCore
    client: Address
    server: Address
    scheme: str
    trusted: bool
    tls: UnderlyingTls | None
    eof: bool
    number: int
    """By which the application's calls find it (`serve_asgi.http.worker_context.WorkerContext.numbered`)."""

    @property
    def blocked(self) -> bool:
        """The transport takes no more, which is judged elsewhere."""

    def flush_soon(self) -> None:
        """Write what the core has to say, once, at the end of this turn of the loop."""

    def expect(self, deadline: float) -> None:
        """A handler has a deadline (loop time, s)."""

    def forget_stream(self, stream_id: int) -> None:
        """Nobody works for the stream any more."""

    def is_last(self) -> None:
        """A response is complete: perhaps it was to be the connection's last."""

    def lives_changed(self) -> None:
        """The worker retires, and something has happened to a stream that is to survive."""


class Exchange(ClientEnd):
    """One of them: source of the request, sink of the response, and what that is written through.

    It is `serve_asgi.http.request_receive.RequestSource` and `serve_asgi.http2.response.ResponseStream`.
    """

    __slots__ = (
        "_code",
        "_returned",
        "_sent",
        "_waiters",
        "connection",
        "core",
        "deadline",
        "paused",
        "request",
        "response",
        "stream_id",
    )

    life: StreamLife | None
    """Of the response, if that is to survive."""
    request: Request
    response: Http2Response

    def __init__(self, connection: StreamConnection, stream_id: int) -> None:
        self.connection = connection
        here = self.connection  # of whose type more is known than of the argument's
        self.core = connection.core
        self.stream_id = stream_id
        self.client = here.client
        self.server = here.server
        self.scheme = here.scheme
        self.trusted = here.trusted
        self.tls = here.tls
        self.number = here.number
        self.life = None
        self.read_paused = False  # a stream never is: its window closes
        self.paused = False
        """Enough of the response waits for the client's window."""
        self.deadline = INFINITY
        self._waiters: list[asyncio.Future[bool]] = []
        self._sent = -1
        """How far the client had come with it when the deadline was set; -1: none of it waited."""
        self._returned = False
        """The application has."""
        self._code: ErrorCode | None = None
        """With which the stream is reset once everything has gone out."""

    def prepare(self, head: Head) -> None:
        """Make what the application is called with. What has come of the body may then be given to it."""
        worker = self.connection.worker
        self.request = Request(self, worker, head)
        self.response = Http2Response(self, worker, self.request)

    def begin(self) -> bool:
        """Call the application. Whether anything is left to do afterwards.

        The stream may be closed by what came together with the request, and will be told next (`receive_reset`).
        """
        request, response = self.request, self.response
        if request.body is not None:
            self.expect_body()
        task = call_application(self.connection.worker, request, response)
        if task.done():
            self._returned = True
            self.core.done(self.stream_id)
            if self.core.is_open(self.stream_id):
                return True
            self._release()
            return False
        task.add_done_callback(self._has_returned)
        return self.core.is_open(self.stream_id) or response.state not in _ENDED

    def _has_returned(self, task: asyncio.Task[None]) -> None:
        self._returned = True
        if self.response.state is not PARTED:  # else somebody goes on to work for it
            self.core.done(self.stream_id)
            self._rest()

    def _rest(self) -> None:
        """Nothing is left to do once the stream is closed. A call that goes on after that is no longer its business."""
        if not self.core.is_open(self.stream_id):
            self.connection.forget_stream(self.stream_id)
            if self._returned:
                self._release()

    def _release(self) -> None:
        """Nobody asks for them any more; and they know this: a cycle."""
        self.request = self.response = self.life = cast(Any, None)

    # ---- RequestSource

    def has_ended(self) -> bool:
        """Whether the client has shut down its side of the connection."""
        return self.connection.eof

    @property
    def begun(self) -> float:
        """When the request began (time.perf_counter, s)."""
        return self.request.begun

    def new_body(self, head: Head) -> StreamBody:
        """What holds the body that this head announces."""
        return StreamBody(head, self.connection.worker.config.max_body_size, self._consumed)

    def _consumed(self, size: int) -> None:
        self.core.consumed(self.stream_id, size)
        self.connection.flush_soon()

    def adjust_reading(self) -> None:
        """That the application has taken some of the body, the body has said (`_consumed`)."""

    def ask_for_body(self) -> None:
        """Tell the client to send its body (RFC 9110 10.1.1): its time begins."""
        self.send_interim([STATUS_FIELDS[100]])
        self.expect_body()

    # ---- lives of a response that is to survive

    def resume(self, record: SurvivalRecord) -> None:
        """Be the next life of a response. Its application is called by `call`.

        Raises BadRequest, LookupError, TypeError or ValueError for a record that makes no sense here.
        """
        worker, values = self.connection.worker, record.response or {}
        if worker.published[0] > worker.shared.applied:
            worker.catch_up()
        head, _ = read_request(fields_of(record.head), not values["request_body"])
        head.forwarding = worker.forwarding.mentioned(head.headers)
        self.request = request = Request(self, worker, head)
        request.resume(values["begun"], record.body)
        self.response = response = Http2Response(self, worker, request)
        response.resume(values)
        self.life = StreamLife(self, worker, response, record)
        self.core.take_up(self.stream_id)
        if self.core.waits(self.stream_id):
            self.paused = True
            self._watch()

    def call(self) -> None:
        """Call the application of a next life, unless the client has gone."""
        if self.response.state is RESUMING:
            call_application(self.connection.worker, self.request, self.response).add_done_callback(self._has_returned)
        else:
            self.core.done(self.stream_id)

    def opt_in(self, extensions: object, version: int | None) -> Survival | None:
        """See `serve_asgi.http.survival.SurvivableConnection`; None also if these are another stream's."""
        request = getattr(self, "request", None)  # this may be another thread
        if request is None or request.scope.get("extensions") is not extensions:
            return None
        life = self.life_of_response()
        return None if life is None else life.opt_in(extensions, version)

    def life_of_response(self) -> StreamLife | None:
        """Of the response, whether it is to survive or not; None if it cannot, or is over."""
        if self.response.state in _ENDED or (self.tls is not None and self.tls.stays()):
            return None
        if self.life is None:
            self.life = StreamLife(self, self.connection.worker, self.response)
        return self.life

    def life_changed(self) -> None:
        """The connection is to look whether it can leave now."""
        self.connection.lives_changed()

    def refuse_life(self, reason: str) -> None:
        """See `serve_asgi.http.survival.SurvivableConnection`."""
        if self.life is not None:
            self.life.refuse_life(reason)

    # ---- what the connection says of the stream

    def receive_data(self, data: bytes) -> None:
        """Some of the request's body."""
        body = self.request.body
        if body is None or self._code is not None:
            self.core.consumed(self.stream_id, len(data))
            return
        try:
            body.feed(data)
        except BadRequest as refused:
            self._refuse_body(refused)
            return
        self.request.wake()

    def receive_end(self, trailers: Fields) -> None:
        """The request is whole; its trailers are nothing that ASGI has a place for."""
        body = self.request.body
        if isinstance(body, StreamBody):
            body.end()
            self.request.wake()
            if self.life is not None:
                self.life.may_end()
        self._rest()

    def receive_reset(self) -> None:
        """The stream is over before its time."""
        self.lose()
        self._rest()

    def receive_eof(self) -> None:
        """A request that is not whole never will be."""
        if not self.request.body_is_coming():
            self.request.wake()
        elif self.response.state is DONE:
            self.reset_behind(ErrorCode.NO_ERROR)
        else:
            self.response.lose()
            self.core.reset(self.stream_id, ErrorCode.CANCEL)
            self._rest()

    def drained(self) -> None:
        """Nothing of the response waits any more."""
        self._sent = -1
        self._wake()
        if self._code is not None:
            self.core.reset(self.stream_id, self._code)
        self._rest()

    def lose(self) -> None:
        """The client has gone, or wants no more of it."""
        if self.response.state is PARTED:
            self.core.done(self.stream_id)
        self.response.lose()
        if self.life is not None:
            self.life.call_off()
        self._wake()

    @property
    def stage(self) -> LifeStage:
        """How far it is on its way to a next life."""
        return LifeStage.STAYS if self.life is None else self.life.stage

    def is_to_survive(self) -> bool:
        """Whether its application wishes that, and it can."""
        return self.life is not None and self.life.survival.wanted

    def retire(self) -> None:
        """A request in progress is finished here, unless it is to survive."""
        if self.life is not None:
            self.life.retire()

    def cut(self) -> bool:
        """At the graceful timeout: the client sees that the response is not whole."""
        if self.response.state is DONE or self.response.state is LOST:
            return False
        task = self.request.task
        if self.life is not None:
            self.life.cut()
        self.response.lose()
        self.core.reset(self.stream_id, ErrorCode.INTERNAL_ERROR)
        if task is not None:
            task.cancel()
        return True

    def end_overdue(self, timeouts: RequestTimeouts) -> None:
        """End the request if it has taken too long: 503 if the client has seen nothing of a response."""
        response = self.response
        if response.state is PARTED or not (seconds := timeouts.overdue(response, self.is_to_survive())):
            return
        report(response, seconds)
        task = self.request.task
        if self.life is not None:
            self.life.cut()
        if is_unanswered(response):
            response.status = 503
            write_response(self.core, self.stream_id, refusals.timed_out(self.connection.worker, response.head))
            response.refuse()
            self.core.discard(self.stream_id)
            self.reset_behind(ErrorCode.NO_ERROR)
        else:
            response.lose()
            self.abort()
            self._rest()
        self.connection.flush_soon()
        if task is not None:
            task.cancel()

    # ---- ResponseStream

    @property
    def output(self) -> Exchange:
        """The stream is written through this."""
        return self

    def response_complete(self, response: Response) -> None:
        """All of it has been given to the core; in state OVER, the application still sends."""
        body = response.request.body
        if body is not None and not body.whole:
            if response.state is not OVER:
                body.drop()
            self.core.discard(self.stream_id)
            if body.discardable():
                self._look_again(DISCARD_TIME)
            else:
                self.reset_behind(ErrorCode.NO_ERROR)
        if response.request.task is not None:  # else `begin` has not returned, and says itself what is left
            self._rest()
        self.connection.is_last()

    def response_left(self, response: Response) -> None:
        """One that was in state OVER no longer is."""
        if response.request.body is not None:
            response.request.body.drop()

    def response_cut(self, reset: bool) -> None:
        """The response ends here, and is not whole."""
        self.abort()
        self._rest()

    def _refuse_body(self, refused: BadRequest) -> None:
        """The body cannot be taken: say so, if nothing else has been said."""
        response, worker = self.response, self.connection.worker
        if response.state is WAITING or response.state is STARTED:
            response.status = refused.status
            write_response(self.core, self.stream_id, refusals.bad_body(worker, response.head, refused))
            response.refuse()
            self.core.discard(self.stream_id)
            self.reset_behind(ErrorCode.NO_ERROR)
        elif response.state is not DONE:
            response.refuse()
            self.core.reset(self.stream_id, ErrorCode.CANCEL)
        self.connection.flush_soon()

    def reset_behind(self, code: ErrorCode) -> None:
        """Reset the stream once everything that was sent has gone out."""
        if self.core.waits(self.stream_id):
            self._code = code
        else:
            self.core.reset(self.stream_id, code)
            self._rest()

    # ---- PieceOutput

    def send_interim(self, fields: list[Field]) -> None:
        """An interim response."""
        self.core.send_interim(self.stream_id, fields)
        self.connection.flush_soon()

    def send_head(self, fields: list[Field], ended: bool) -> None:
        """The head; `ended`: nothing follows it."""
        self.core.send_head(self.stream_id, fields, ended)
        if ended:
            self.connection.flush_soon()

    def send_response(self, fields: list[Field], body: bytes) -> None:
        """The head and the whole body, perhaps empty."""
        waiting = self.core.send_response(self.stream_id, fields, body)
        if waiting:
            self._wait_for_window(waiting)
        self.connection.flush_soon()

    def send_data(self, data: bytes, ended: bool) -> None:
        """Some of the body; `ended`: the last of it, and no trailers follow."""
        waiting = self.core.send_data(self.stream_id, data, ended)
        if waiting:
            self._wait_for_window(waiting)
        self.connection.flush_soon()

    def _wait_for_window(self, waiting: int) -> None:
        """So many bytes of the response wait."""
        self.paused = waiting > MOST_WAITING
        if self._sent < 0:
            self._watch()

    def send_trailers(self, fields: list[Field]) -> None:
        """The end, behind the body."""
        self.core.send_trailers(self.stream_id, fields)
        self.connection.flush_soon()

    def write_large(self, data: bytes, /) -> None:
        """A piece of a file."""
        self.send_data(data, False)

    async def writable(self) -> None:
        """Wait until the client's window has taken what waits, or the stream is over; ends at `write_timeout`."""
        while self.paused:
            waiter: asyncio.Future[bool] = self.connection.worker.loop.create_future()
            self._waiters.append(waiter)
            if await waiter:
                return

    def release_writers(self) -> None:
        """Let those who wait in `writable` go on."""
        self._wake()

    def _wake(self) -> None:
        self.paused = False
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(True)

    def is_closing(self) -> bool:
        """Whether nothing can be written any more."""
        return not self.core.is_open(self.stream_id)

    def abort(self) -> None:
        """Reset the stream: its response is not whole."""
        self.core.reset(self.stream_id, ErrorCode.INTERNAL_ERROR)
        self._wake()
        self.connection.flush_soon()

    # ---- the deadline

    def _look_again(self, seconds: float) -> None:
        self.deadline = min(self.deadline, self.connection.worker.loop.time() + seconds)
        self.connection.expect(self.deadline)

    def expect_body(self) -> None:
        """Begin the time in which the next of the request's body must arrive."""
        body = self.request.body
        if body is not None and not body.whole and self.connection.worker.config.min_body_rate:
            body.arrived = 0
            self._look_again(BODY_WINDOW)

    def _watch(self) -> None:
        """Some of the response waits for the client's window: it must take something in time."""
        self._sent = self.core.progress(self.stream_id)
        self._look_again(self.connection.worker.config.write_timeout)

    def expire(self) -> None:
        """The deadline has passed: the client takes nothing, or sends nothing, or is not at fault."""
        self.deadline = INFINITY
        if self.core.waits(self.stream_id):
            if self.core.progress(self.stream_id) == self._sent and not self.connection.blocked:
                self.core.reset(self.stream_id, ErrorCode.CANCEL)
                self.lose()
                self._rest()
                self.connection.flush_soon()
            else:
                self._watch()
            return
        body = self.request.body
        if body is None or body.whole:
            return
        if self.response.state is DONE or self.response.state is LOST:
            self.reset_behind(ErrorCode.NO_ERROR)
            self.connection.flush_soon()
        elif self._is_slow(body.arrived):
            self._refuse_body(BadRequest(408, "The request body arrives too slowly."))
        else:
            self.expect_body()

    def _is_slow(self, arrived: int) -> bool:
        """Whether the client could have sent more, and is the one who is waited for."""
        body, config = self.request.body, self.connection.worker.config
        waited_for = body is not None and not body.awaits_continue and self.core.may_receive(self.stream_id)
        return waited_for and arrived < config.min_body_rate * BODY_WINDOW
