# cython: annotation_typing=True
"""A request as its application has it: the scope, and what `receive` says.

It owns the scope, the application's task, and whoever waits in `receive`. Rules: `receive` gives the body in the order
in which it came, and http.disconnect once all is over; a client that has ended its side and waits for its response is
not taken to be gone at once. It must not know how the response is written, nor how connections persist or close: what
it needs of the connection is `RequestSource`.
"""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import Final, Protocol

from serve_asgi.http.request_body import RequestBody
from serve_asgi.http.request_head import Head
from serve_asgi.http.survival import EXTENSION
from serve_asgi.http.underlying_tls import UnderlyingTls, tls_extension
from serve_asgi.http.worker_context import Message, WorkerContext
from serve_asgi.ipc.peer_address import Address
from serve_asgi.logs.request_ids import traceparent

ASGI_VERSION: Final = "3.0"
HTTP_SPEC_VERSION: Final = "2.3"
"""Of the HTTP part of ASGI, as uvicorn has it: told of 2.4, Starlette no longer ends a stream whose client has gone
while it waits for something to send, and `send` may raise where a background task was to follow
(docs/reference/asgi.md)."""

EARLY_HINT: Final = "http.response.early_hint"

HALF_CLOSED_TIME: Final = 1.0
"""A client that ends its side after its request is taken to be gone this much later (s), unless the connection ends."""


_ASGI: Final = {"version": ASGI_VERSION, "spec_version": HTTP_SPEC_VERSION}


class RequestSource(Protocol):
    """The connection, as far as a request needs it."""

    @property
    def client(self) -> Address:
        """Who is connected."""

    @property
    def server(self) -> Address:
        """Our end."""

    @property
    def scheme(self) -> str:
        """Of the client's side, as far as the connection itself shows."""

    @property
    def trusted(self) -> bool:
        """Whether the forwarding fields of its requests are believed."""

    @property
    def tls(self) -> UnderlyingTls | None:
        """What stands between the socket and it."""

    @property
    def number(self) -> int:
        """By which an application's call finds it (`serve_asgi.http.worker_context.WorkerContext.numbered`)."""

    @property
    def read_paused(self) -> bool:
        """Nothing is read from it."""

    def has_ended(self) -> bool:
        """Whether the client has shut down its side."""

    def new_body(self, head: Head) -> RequestBody:
        """What holds the body that this head announces."""

    def adjust_reading(self) -> None:
        """Body has been taken: there may be room to read on."""

    def ask_for_body(self) -> None:
        """Tell the client to send its body (100): its time begins."""


class Request:
    """One request."""

    __slots__ = (
        "_connection",
        "_gone",
        "_identity",
        "_told",
        "_waits_for_gone",
        "_worker",
        "begun",
        "body",
        "client",
        "ended",
        "head",
        "scope",
        "taken",
        "task",
        "waiters",
    )

    def __init__(self, connection: RequestSource, worker: WorkerContext, head: Head) -> None:
        self._connection = connection
        end = self._connection  # of whose type more is known than of the argument's
        self._worker = worker
        self.head = head
        self.begun = perf_counter()
        """When it began (time.perf_counter, s)."""
        self.task: asyncio.Task[None] | None = None
        """Runs the application, if that has not returned before its first wait."""
        self.body = end.new_body(head) if head.body else None
        self.taken = False
        """The application has had the whole body."""
        self.ended = False
        """Set when the response is complete, or lost: `receive` says from then on that the client has gone."""
        self.waiters: list[asyncio.Future[None]] | None = None
        """Who waits in `receive`: to be told by `wake` when there is something new."""
        self._gone = self._waits_for_gone = False
        """Whether the client that has shut down its side is taken to be gone, or will be soon."""
        self._told = False
        """Whether `receive` has said that the response has ended, or its life."""
        # Plain data, and the request's own at every depth: what one application's call changes, no other call sees.
        self.scope = scope = head.scope()
        scope["asgi"] = _ASGI.copy()
        scope["scheme"] = end.scheme
        scope["root_path"] = worker.root_path
        if worker.root_path and not (head.text + "/").startswith(worker.root_path + "/"):
            # A proxy may or may not have taken the mount point off; the application always sees the whole path.
            scope["path"] = worker.root_path + head.text
            scope["raw_path"] = worker.raw_root_path + head.path
        scope["headers"] = head.headers[:]  # the head is shared with equal requests
        scope["client"] = end.client
        scope["server"] = end.server
        scope["state"] = worker.state.copy() if worker.state else {}
        scope["extensions"] = {
            "http.response.pathsend": {},
            "http.response.zerocopysend": {},
            "serve": {"generation": worker.generation, "slot": worker.slot, "connection": end.number},
            EXTENSION: {},
        }
        if worker.early_hints:
            self.scope["extensions"][EARLY_HINT] = {}
        if end.tls is not None:
            self.scope["extensions"]["tls"] = tls_extension(end.tls.info)
            if end.tls.stays():
                del self.scope["extensions"][EXTENSION]
        if head.te_trailers:
            self.scope["extensions"]["http.response.trailers"] = {}
        self._identity = (
            worker.request_ids.keep_or_generate(self.scope["headers"]) if worker.request_ids.generates else ""
        )
        self.client = end.client
        """Whose request it is: the connection's client, or who a trusted proxy says."""
        if head.forwarding and end.trusted:
            forwarded = worker.forwarding.understand(head.headers, end.client)
            if forwarded is not None:
                forwarded.apply(self.scope)
                self.client = forwarded.client

    # ---- the application's side

    def next_message(self) -> Message | None:
        """What ASGI `receive` returns: http.request while there is body to take, http.disconnect once all is over.

        None while there is nothing to say: `until_woken` waits, and then there may be.
        """
        if self.ended:
            self._told = True
            return {"type": "http.disconnect"}
        body = self.body
        if body is None:
            if not self.taken:
                self.taken = True
                if self._connection.read_paused:
                    self._connection.adjust_reading()
                return {"type": "http.request", "body": b"", "more_body": False}
        elif body.unread or (body.whole and not self.taken):
            data, more = body.take(), not body.whole
            if not more:
                self.taken = True
            if more or self._connection.read_paused:  # also after the last: the client's end is to be noticed
                self._connection.adjust_reading()
            return {"type": "http.request", "body": data, "more_body": more}
        if self._connection.has_ended() and self._taken_for_gone():
            return {"type": "http.disconnect"}
        if body is not None and body.awaits_continue and body.may_continue:
            # RFC 9110 10.1.1: while no byte of the final response is written. Not held back after a mere
            # http.response.start, since client and application would wait for each other.
            body.awaits_continue = False
            self._connection.ask_for_body()
        return None

    def _taken_for_gone(self) -> bool:
        """Whether the client, which has shut down its side and may still be reading, has been waited for long enough.

        Frameworks end their work at http.disconnect, and a client that waits for its response is to have it.
        """
        if not self._waits_for_gone:
            self._waits_for_gone = True
            self._worker.loop.call_later(HALF_CLOSED_TIME, self._take_for_gone)
        return self._gone

    def _take_for_gone(self) -> None:
        self._gone = True
        self.wake()

    async def until_woken(self) -> None:
        """Wait for `wake`; several may."""
        waiter: asyncio.Future[None] = self._worker.loop.create_future()
        if self.waiters is None:
            self.waiters = []
        self.waiters.append(waiter)
        try:
            await waiter
        finally:  # frameworks ask whether the client is still there by a `receive` that they cancel, many times
            if self.waiters and waiter in self.waiters:
                self.waiters.remove(waiter)

    # ---- the connection's and the response's side

    def resume(self, begun: float, unread: bytes) -> None:
        """It has `begun` in an earlier life, which has not received `unread` of its body."""
        self.begun = begun
        if self.body is not None:
            self.body.resume(unread)

    def body_is_coming(self) -> bool:
        """Whether not all of the body has arrived."""
        return self.body is not None and not self.body.whole

    def knows_of_end(self) -> bool:
        """Whether the application has received that the response has ended, or its life."""
        return self._told

    def client_has_ended(self) -> bool:
        """Whether the client has shut down its side."""
        return self._connection.has_ended()

    def wake(self) -> None:
        """Let `receive` look again."""
        waiters, self.waiters = self.waiters, None
        for waiter in waiters or ():
            if not waiter.done():
                waiter.set_result(None)

    # ---- what logs name it by

    def identity(self) -> str:
        """The request's id, or ""."""
        return self._identity or self._worker.request_ids.carried(self.head.headers)

    def trace(self) -> str:
        """Its traceparent, or ""."""
        return traceparent(self.head.headers)

    def path(self) -> str:
        """As the application has it; the scope is the application's, which may have put anything into it."""
        path = self.scope.get("path")
        return path if type(path) is str else self.head.text

    def client_scheme(self) -> str:
        """What the client speaks."""
        scheme = self.scope.get("scheme")
        return scheme if type(scheme) is str else self._connection.scheme
