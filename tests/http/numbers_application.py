"""An application whose streams of numbers survive, and a worker that retires or serves again, for both protocols."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from serve_asgi.http.survival import Survival
from serve_asgi.http.worker_context import Message, Receive, Scope, Send, WorkerPhase
from tests.http.http_server import HttpServer, body, respond, start

Serve = Callable[..., HttpServer]
EVENTS = (b"content-type", b"text/event-stream")


def survive(server_of: dict[int, HttpServer] | HttpServer, scope: Scope, version: int | None = None) -> Any:
    """What `serve_asgi.survive` does, which is one worker's."""
    assert isinstance(server_of, HttpServer)
    extensions = scope["extensions"]
    connection = server_of.worker.numbered.get(extensions["serve"]["connection"])
    return None if connection is None else connection.opt_in(extensions, version)


class Numbers:
    """Streams numbers, each when it is let go; the state says which is the next. One object is one worker's code."""

    def __init__(self, *headers: tuple[bytes, bytes], last: int = 10**9, **options: Any) -> None:
        self.headers = headers or (EVENTS,)
        self.last = last
        self.status = options.get("status", 200)
        self.server: HttpServer
        self.allowed = 0
        self.more = asyncio.Event()
        self.lives: list[Survival] = []
        self.scopes: list[Scope] = []
        self.received: list[Message] = []
        self.ended = 0
        self.at_the_end: Callable[[Survival, Send], Any] | None = options.get("at_the_end")

    def on(self, serve: Serve, **config: Any) -> HttpServer:
        self.server = serve(self, **config)
        return self.server

    def allow(self, count: int) -> None:
        def more() -> None:
            self.allowed = count
            self.more.set()

        self.server.run(more)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] != "/":
            await respond(send, scope["path"].encode())
            return
        kept = survive(self.server, scope, 7)
        self.scopes.append(scope)
        self.lives.append(kept)
        self.received.append(await receive())
        await send(start(self.status, *self.headers))
        gone = asyncio.ensure_future(self._until_gone(receive))
        number = kept.state.get("next", 0)
        while not gone.done() and number < self.last:
            if number >= self.allowed:
                self.more.clear()
                waiting = asyncio.ensure_future(self.more.wait())
                await asyncio.wait([gone, waiting], return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
                continue
            await send(body(piece(number), more=number + 1 < self.last))
            number += 1
            kept.state["next"] = number
        if gone.done() and self.at_the_end is not None:
            await self.at_the_end(kept, send)
        self.ended += 1

    async def _until_gone(self, receive: Receive) -> None:
        while (message := await receive())["type"] != "http.disconnect":
            self.received.append(message)


def piece(number: int) -> bytes:
    return b"data: %d\n\n" % number


def retire(server: HttpServer, phase: WorkerPhase = WorkerPhase.HANDING_OVER) -> list[Any]:
    """Let the worker retire; the list fills with the connections that are to be handed over."""
    departing: list[Any] = []

    def begin() -> None:
        server.worker.hand_over = departing.append
        server.worker.phase = phase
        for connection in list(server.worker.connections):
            connection.retire()

    server.run(begin)
    return departing


def serve_again(server: HttpServer) -> None:
    def begin() -> None:
        server.worker.phase = WorkerPhase.SERVING
        for connection in list(server.worker.connections):
            connection.resume()

    server.run(begin)
