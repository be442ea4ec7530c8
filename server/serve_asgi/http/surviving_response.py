"""One life of a streamed response that is to survive its worker: how it ends, what it leaves, and how the next begins.

It owns what is left of the response between two calls of the application (`SurvivalRecord`), and the judgement whether
what the next one begins is the same response. Rules: nobody's life ends while something of it cannot go on elsewhere (a
file under way, a request whose body is still coming, content that the application compresses); what cannot go on is cut
so that the client sees it, and counted; what does not belong to the response that the client is reading is never
written into it. It must not know when a connection's lives end and how it moves: that is each protocol's own
(`serve_asgi.http.http1_life`, `serve_asgi.http2.stream_life`).
"""

from __future__ import annotations

import dataclasses
from typing import Final

from serve_asgi.http.request_receive import Request
from serve_asgi.http.response import Response, ResponseSink, as_bytes
from serve_asgi.http.response_head import encode_headers
from serve_asgi.http.response_states import FILE, PARTED, PARTING, RESUMING, STARTED, STREAMING
from serve_asgi.http.survival import (
    EXTENSION,
    LifeEnd,
    Survival,
    UnfitState,
    encode_state,
    gone_on,
    is_running,
)
from serve_asgi.http.survival_record import SurvivalRecord
from serve_asgi.http.worker_context import Message, WorkerContext, WorkerPhase
from serve_asgi.ipc.scoreboard import Cell

PLAIN: Final = frozenset((b"", b"identity"))
"""What `Content-Encoding` may say of a response whose content another life can go on with (RFC 9110 8.4)."""

WAITING_TIME: Final = 0.1
"""A life that was to end before its http.response.start has come is looked at again after so long (s)."""

PARTED_TIME: Final = 1.0
"""A connection that waits for its hand-over between two lives is offered again after so long (s)."""


class SurvivingResponse:
    """One life. With `before`, it goes on where that one has ended. What `raise NotImplementedError` is the
    protocol's."""

    __slots__ = ("_end", "_end_passed_over", "_record", "_sink", "_worker", "response", "survival")

    def __init__(
        self, sink: ResponseSink, worker: WorkerContext, response: Response, before: SurvivalRecord | None = None
    ) -> None:
        self._sink = sink
        self._worker = worker
        self._end = LifeEnd(worker)
        self._end_passed_over = False
        """The application has ended the body once it knew that its life ends."""
        self._record: SurvivalRecord | None = None
        self.response = response
        if before is None:  # perf_counter is the loop's clock (CLOCK_MONOTONIC)
            self.survival = Survival(self, response.request.begun)
        else:
            self.survival = Survival(self, worker.loop.time(), True, before.decoded_state(), before.version)
            response.request.scope["extensions"][EXTENSION] = self.survival.extension()

    # ---- what the application says

    def opt_in(self, extensions: object, version: int | None) -> Survival | None:
        """See `serve_asgi.http.survival.SurvivableConnection`."""
        if self.response.request.scope.get("extensions") is not extensions:
            return None
        survival = self.survival.opt_in(version)
        if self._worker.phase is WorkerPhase.HANDING_OVER:
            self._worker.loop.call_soon_threadsafe(self.retire)  # a handler that is no coroutine runs in a thread
        return survival

    def update(self, message: Message) -> None:
        """The message with which the application opts in and gives the state. Raises TypeError or ValueError."""
        self.survival.update(message)
        self.retire()

    def refuse_life(self, reason: str) -> None:
        """See `serve_asgi.http.survival.SurvivableConnection`. In a first life: it no longer wishes to survive."""
        self.survival.wanted = False
        if not is_running(self._worker.loop):
            self._worker.loop.call_soon_threadsafe(self.refuse_life, reason)
        elif self.response.state in (RESUMING, STREAMING, FILE) and self.survival.resumed:
            self.fail(reason or "the application refused to go on with it")

    def send(self, message: Message, kind: object) -> None:
        """A message at the beginning or at the end of this life. Raises what `Response.send` does."""
        response = self.response
        if response.state is RESUMING and kind == "http.response.start":
            self._start(message)
        elif response.state is PARTING and kind == "http.response.body":
            body, more = as_bytes(message.get("body", b"")), message.get("more_body", False)
            if not body and not more and response.request.knows_of_end() and response.body_may_follow():
                self._end_passed_over = True  # that is how code cleans up that takes the client for gone
                return
            self._end.check_sending(response.output.paused)
            response.write_next(body, more)
        elif self._end_passed_over and kind == "http.response.trailers":
            pass
        elif response.state is PARTING and kind == "http.response.zerocopysend":
            raise gone_on()
        else:
            expected = "start" if response.state is RESUMING else "body"
            raise RuntimeError(f"Expected the message http.response.{expected}, got {kind!r}.")

    def _start(self, message: Message) -> None:
        """The client has had this http.response.start, if it is of the same response."""
        why = difference(self.response, message)
        if why:
            self.fail(why)
            return
        self._worker.cells[Cell.SURVIVED] += 1
        self.response.state = STREAMING
        self.may_end()

    # ---- what each protocol has of its own

    def retire(self) -> None:
        """The worker retires, or the application opts in while it does: plan the end."""
        raise NotImplementedError

    def may_end(self) -> None:
        """What may have been in the way of the end is over."""
        raise NotImplementedError

    def move_on(self) -> None:
        """This life has ended: have the next one begin in another worker, or here."""
        raise NotImplementedError

    def _head(self, request: Request) -> bytes:
        """The request's head for the record."""
        raise NotImplementedError

    # ---- its end

    def call_off(self) -> None:
        """The worker serves again, or the response is over: an end that has not begun does not come."""
        if self.response.state is not PARTING:
            self._end.cancel()

    def _can_move(self) -> bool:
        response = self.response
        encoding = response.response_header(b"content-encoding").lower()
        return not response.request.body_is_coming() and encoding in PLAIN

    def _begin_end(self) -> None:
        """The moment has come: tell the application, unless something is in the way until `may_end`."""
        response = self.response
        if response.state is STARTED and self._can_move():
            response.write_head()  # and this is called again
        elif response.state is STREAMING and self._can_move():
            response.state = PARTING
            self._end.begin(self._too_late)
            # In this order: who waits in `send` has sent, and goes on before `receive` has anybody cancel it.
            response.output.release_writers()
            response.request.ended = True
            response.request.wake()

    def _ends_by_itself(self) -> bool:
        """Whether a handler has returned to go on elsewhere, told by `retiring`."""
        response = self.response
        if not self.survival.wanted or self._worker.phase is not WorkerPhase.HANDING_OVER or not self._can_move():
            return False
        if response.state is STARTED:
            response.write_head()
        return response.state in (STREAMING, PARTING)

    def end(self) -> bool:
        """The application's call has ended. Whether its life has with it, so that the response goes on in another."""
        response = self.response
        if response.state is not PARTING and not self._ends_by_itself():
            return False
        self._end.cancel()
        try:
            state = encode_state(self.survival.state)
        except UnfitState as error:
            self.fail(str(error))
            return True
        request = response.request
        response.state = PARTED
        request.ended = True
        request.wake()
        self._record = SurvivalRecord(
            self._head(request),
            state,
            self.survival.writes_version,
            b"",
            response={**response.travels(), "begun": request.begun, "request_body": request.body is not None},
            body=b"" if request.body is None else request.body.take(),
        )
        self.move_on()
        return True

    def record(self, unread: bytes = b"") -> SurvivalRecord:
        """After the end: what the next life begins with; `unread` has arrived and belongs to no request yet."""
        assert self._record is not None, "a life that has not ended"
        return dataclasses.replace(self._record, unread=unread)

    def _too_late(self) -> None:
        if self.response.state is PARTING:
            timeout = self._worker.config.survive_timeout
            self.fail(f"its handler had not returned {timeout:g} s after it was told (--survive-timeout)")

    def fail(self, reason: str) -> None:
        """It cannot go on: the client sees it end before it is whole."""
        response = self.response
        self._end.cancel()
        self._did_not_survive(reason)
        response.lose()
        self._sink.response_cut(response.until_close)

    def cut(self) -> None:
        """For the connection: the graceful timeout ends it."""
        if self.survival.wanted and self._worker.phase is WorkerPhase.HANDING_OVER:
            encoding = self.response.response_header(b"content-encoding").lower()
            self._did_not_survive(
                "it had not come to a point where another worker can go on, within --graceful-timeout"
                if encoding in PLAIN
                else f"the application compresses it ({encoding.decode('latin-1')}), and cannot go on with that"
            )

    def _did_not_survive(self, reason: str) -> None:
        request = self.response.request
        self._worker.did_not_survive(f"the response to {request.head.method} {request.path()}", reason)


def difference(response: Response, message: Message) -> str:
    """Why the http.response.start of a next life is not of the response that the client is reading; "" if it may be.

    A route that no longer exists answers 404, or with the start page of an application in the browser. Raises TypeError
    or ValueError for headers that are none.
    """
    status = message.get("status")
    if status != response.status:
        return f"the application now answers {status!r}, where the client has had {response.status}"
    block, length, _ = encode_headers(message.get("headers") or (), False)
    if header_of(block, b"content-encoding").lower() not in PLAIN:
        return "the application now compresses it"
    if length >= 0 and not response.has_length():
        return f"the application now answers with {length} bytes, where the client has been told of no length"
    now, before = (
        media_type(each) for each in (header_of(block, b"content-type"), response.response_header(b"content-type"))
    )
    if now != before:
        return f"the application now answers with {now or 'no type'}, where the client has had {before or 'none'}"
    return ""


def header_of(block: bytes, name: bytes) -> bytes:
    """The value of a header in what `encode_headers` has made, or b""."""
    _, found, after = block.partition(b"\r\n" + name + b": ")
    return after.partition(b"\r\n")[0] if found else b""


def media_type(value: bytes) -> str:
    """Without its parameters (RFC 9110 8.3.1)."""
    return value.partition(b";")[0].strip().lower().decode("latin-1")
