"""One HTTP request and its response: what an application is called with.

It owns the request's content until the application takes it, and the application's task. The response is
`serve_asgi.http.response`'s. It must not know how connections persist, travel or close.
"""

from __future__ import annotations

import asyncio
import logging
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

from serve_asgi.http.request_head import CHUNKED, Head
from serve_asgi.http.response import (
    COMING,
    DONE,
    EARLY_HINT,
    LOST,
    STARTED,
    WAITING,
    Answer,
    Content,
    Framing,
)
from serve_asgi.http.response_head import CONTINUE
from serve_asgi.http.worker_context import ClientDisconnected, Message, Service
from serve_asgi.ipc import forked_children as forks
from serve_asgi.ipc.scoreboard import Cell
from serve_asgi.logs.exceptions import all_tell, exc_info, is_a, is_from_outside, was_told
from serve_asgi.logs.request_ids import named, of_request, traceparent
from serve_asgi.logs.server_log import about

if TYPE_CHECKING:
    from serve_asgi.http.connection import Http1Connection

ASGI_VERSION: Final = "3.0"
SPEC_VERSION: Final = "2.4"
"""Of the WebSocket part of ASGI: from 2.4 on, send() after the client has gone raises an OSError."""

HTTP_SPEC_VERSION: Final = "2.3"
"""Of the HTTP part, as uvicorn has it: told of 2.4, Starlette no longer ends a stream whose client has gone while it
waits for something to send, and `send` may raise where a background task was to follow (docs/reference/asgi.md)."""

HALF_CLOSED_TIME: Final = 1.0
"""A client that ends its side behind its request is taken for gone so much later (s), unless the connection ends."""

DISCARD_LIMIT: Final = 65536
"""Unread request content up to this size (bytes) is read and dropped after the response; more ends the connection."""

SMALL_PIECE: Final = 2048
"""Pieces of content that wait for the application are joined up to this size (bytes): what is held is their content."""

_log: Final = logging.getLogger("serve.error")

_IN_FLIGHT: Final = int(Cell.IN_FLIGHT)


# Names bound to the module are faster than attributes of the enum.
WHOLE: Final = Content.WHOLE
TAKEN: Final = Content.TAKEN
_FRAMING: Final = Framing.NONE


class Exchange(Answer):
    """One request and its response."""

    __slots__ = ("_gone", "_pieces", "_waiters", "awaits_continue", "left", "scope", "task", "unread")

    def __init__(self, connection: Http1Connection, service: Service, head: Head) -> None:
        self.connection = connection
        self.service = service
        self.head = head
        self.state = WAITING
        self.status = 0
        self.sent = 0
        self.close = False
        self._framing = _FRAMING
        self.begun = perf_counter()
        self.task: asyncio.Task[None] | None = None
        self.left = head.body
        """Bytes of the request's content still to arrive, 0 for none, CHUNKED where only its end will tell."""
        self.content = COMING if head.body else WHOLE
        self.unread = 0
        """Bytes of content that have arrived and that the application has not taken."""
        self._pieces: list[bytes] = []
        self.awaits_continue = head.expect_continue
        """The client holds its content back until it is told 100, which it has not been."""
        self._waiters: list[asyncio.Future[None]] | None = None
        raw_path, path, root_path = head.path, head.text, service.root_path
        if root_path and not (path + "/").startswith(root_path + "/"):
            # A proxy may or may not have taken the mount point off; the application always sees the whole path.
            path = root_path + path
            raw_path = service.raw_root_path + raw_path
        # Plain data, and the request's own at every depth: what one application's call changes, no other call sees.
        self.scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": ASGI_VERSION, "spec_version": HTTP_SPEC_VERSION},
            "http_version": head.version,
            "method": head.method,
            "scheme": connection.scheme,
            "path": path,
            "raw_path": raw_path,
            "query_string": head.query,
            "root_path": root_path,
            "headers": head.headers.copy(),  # the head is shared with equal requests
            "client": connection.client,
            "server": connection.server,
            "state": service.state.copy() if service.state else {},
            "extensions": {
                "http.response.pathsend": {},
                "http.response.zerocopysend": {},
                "serve": {"generation": service.generation, "slot": service.slot},
            },
        }
        if service.early_hints:
            self.scope["extensions"][EARLY_HINT] = {}
        if head.te_trailers:
            self.scope["extensions"]["http.response.trailers"] = {}
        self.client = connection.client
        if head.forwarding and connection.trusted:
            forwarded = service.forwarding.understand(head.headers, connection.client)
            if forwarded is not None:
                forwarded.apply(self.scope)
                self.client = forwarded.client

    _gone: bool
    """Not set until `receive` finds that the client has shut down its side."""

    # ---- the application's task

    async def run(self) -> None:
        """Call the application and see to it that the response has an end. Its starter has counted it in.

        Whatever the application raises, the client gets its end (law 13): what is said of it comes before, and cannot
        prevent it.
        """
        try:
            await self.service.app(self.scope, self.receive, self.send)
            if self.state is not DONE and self.state is not LOST:
                self._abandoned()
        except BaseException as error:
            forks.leave(error)
            if is_from_outside(error, self.task):  # the loop is closed, and this coroutine with it
                raise
            self._failed(error)
        finally:
            self.service.cells[_IN_FLIGHT] -= 1

    def _abandoned(self) -> None:
        if self.connection.eof and self.content is TAKEN:  # `receive` has told it that the client is gone
            _log.debug("The application ended because the client had gone.", extra=about("client_disconnected"))
        elif self.state is WAITING:
            self._report("returned without answering", "request_unanswered")
        else:
            self._report("returned without completing its response to", "request_unanswered")
        self._end()

    def _failed(self, error: BaseException) -> None:
        try:
            self._tell_of(error)
        except BaseException:  # the application has the scope, and may have put anything into it
            _log.error("The application failed; it is not known in which request.", extra=about("application_failed"))
        finally:
            self._end()

    def _tell_of(self, error: BaseException) -> None:
        cancelled = is_a(error, asyncio.CancelledError)
        in_vain = self.content is COMING or cancelled or all_tell(error, ClientDisconnected)
        if self.state is LOST and in_vain:  # COMING: half a request, of which frameworks make errors of their own
            text = "The application ended because the client had gone."
            _log.debug(text, exc_info=exc_info(error), extra=about("client_disconnected"))
        else:
            what = "was cancelled" if cancelled else "raised an exception"
            self._report(f"{what} while answering", "application_failed", error)

    def _end(self) -> None:
        """The response has its end now, if it has none: the right one, or else that of the connection."""
        try:
            self.end_badly()
        except BaseException as error:
            self.lose()
            self.connection.transport.abort()
            text = "a response could not be completed, and its connection was closed; please report this"
            logging.getLogger("serve").error(text, exc_info=exc_info(error), extra=about("internal_error"))

    def _report(self, what: str, event: str, error: BaseException | None = None) -> None:
        """Log what the application did wrong, and at which request."""
        method, path = self.head.method, self.scope.get("path")
        if type(path) is not str:  # the scope is the application's
            path = self.head.text
        request_id, trace = self.identity(), traceparent(self.head.headers)
        _log.error(
            "The application %s %s %s%s.",
            what,
            method,
            path,
            named(request_id, trace),
            exc_info=None if error is None or was_told(error) else exc_info(error),
            extra=about(event, **of_request(method, path, request_id, trace)),
        )

    def client_scheme(self) -> str:
        """What the client speaks."""
        scheme = self.scope.get("scheme")
        return scheme if type(scheme) is str else self.connection.scheme  # the scope is the application's

    # ---- the request

    async def receive(self) -> Message:
        """ASGI `receive`: http.request while there is content to take, then http.disconnect once all is over."""
        while True:
            if self.state is DONE or self.state is LOST:
                return {"type": "http.disconnect"}
            if self._pieces or self.content is WHOLE:
                return self._take()
            if self.connection.eof and self._taken_for_gone():
                return {"type": "http.disconnect"}
            if self.awaits_continue and (self.state is WAITING or self.state is STARTED):
                # RFC 9110 10.1.1: while no byte of the final response is written. Not held back after a mere
                # http.response.start, since client and application would wait for each other.
                self.awaits_continue = False
                self.connection.write(CONTINUE)
                self.connection.expect_content()
            await self._wait()

    def _taken_for_gone(self) -> bool:
        """Whether the client, which has shut down its side and may still be reading, has been waited for long enough.

        Frameworks end their work at http.disconnect, and a client that waits for its answer is to have it.
        """
        if not hasattr(self, "_gone"):
            self._gone = False
            self.service.loop.call_later(HALF_CLOSED_TIME, self._take_for_gone)
        return self._gone

    def _take_for_gone(self) -> None:
        self._gone = True
        self.wake()

    def _take(self) -> Message:
        pieces = self._pieces
        if len(pieces) == 1:
            body = pieces[0]
        else:
            body = b"".join(pieces)
        self._pieces = []
        self.unread = 0
        more = self.content is COMING
        if not more:
            self.content = TAKEN
        if more or self.connection.read_paused:  # also behind the last of it: the client's end is to be seen
            self.connection.mind_reading()
        return {"type": "http.request", "body": body, "more_body": more}

    async def _wait(self) -> None:
        """Until `wake()`; several may wait."""
        waiter: asyncio.Future[None] = self.service.loop.create_future()
        if self._waiters is None:
            self._waiters = []
        self._waiters.append(waiter)
        try:
            await waiter
        finally:  # frameworks ask whether the client is still there by a `receive` that they cancel, many times
            if self._waiters and waiter in self._waiters:
                self._waiters.remove(waiter)

    def wake(self) -> None:
        """Let `receive` look again."""
        waiters, self._waiters = self._waiters, None
        for waiter in waiters or ():
            if not waiter.done():
                waiter.set_result(None)

    def push(self, data: bytes) -> None:
        """A piece of the request's content has arrived. What comes after the response's end is dropped."""
        self.awaits_continue = False
        if self.state is not DONE and data:
            pieces = self._pieces
            if pieces and len(pieces[-1]) + len(data) <= SMALL_PIECE:
                pieces[-1] += data  # an object for each would cost many times its content
            else:
                pieces.append(data)
            self.unread += len(data)
            if self._waiters:
                self.wake()

    def whole(self) -> None:
        """The request's content is complete."""
        self.left = 0
        self.content = WHOLE
        if self._waiters:
            self.wake()

    def discardable(self) -> bool:
        """Whether the rest of the content is announced, small, and surely on its way.

        A client that expected 100 and got a final status may or may not send its content (RFC 9110 10.1.1), so that
        nobody knows where the next request begins.
        """
        return self.left != CHUNKED and self.left <= DISCARD_LIMIT and not self.awaits_continue
