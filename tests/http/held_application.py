"""An application whose responses wait, and a worker that begins to retire."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from serve_asgi.http.connection import Http1Connection
from serve_asgi.http.worker_context import Receive, Scope, Send, WorkerPhase
from tests.http.http_server import (
    GET,
    HttpServer,
    body,
    read,
    respond,
    start,
)

Serve = Callable[..., HttpServer]


class Held:
    """An application whose answers wait until they are let go."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.go = asyncio.Event()
        self.cancelled = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.paths.append(scope["path"])
        try:
            if scope["path"] == "/stream":
                await send(start())
                await send(body(b"begun", more=True))
            await self.go.wait()
            if scope["path"] == "/stream":
                await send(body(b"ended"))
            else:
                await respond(send, scope["path"].encode() + await read(receive))
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


def get(path: bytes) -> bytes:
    return GET.replace(b"/", path, 1)


# ---- retiring


def retire(server: HttpServer, phase: WorkerPhase) -> list[Http1Connection]:
    """Put the server into the phase; the list fills with the connections that want to depart."""
    departing: list[Http1Connection] = []

    def begin() -> None:
        server.worker.hand_over = departing.append
        server.worker.phase = phase
        for connection in list(server.worker.connections):
            connection.retire()

    server.run(begin)
    return departing
