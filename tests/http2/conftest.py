"""What the tests of HTTP/2 connections share: each runs over both loops."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from serve_asgi.http import closing
from serve_asgi.http.worker_context import ASGIApplication
from tests.connection_server import LOOPS
from tests.http2.http2_server import Http2Server


@pytest.fixture(autouse=True)
def short_linger(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that does not close its end is not waited for for long."""
    monkeypatch.setattr(closing, "LINGER_TIME", 0.1)


@pytest.fixture(params=list(LOOPS))
def http2_loop(request: pytest.FixtureRequest) -> str:
    """The event loop."""
    return str(request.param)


@pytest.fixture
def serve2(http2_loop: str) -> Iterator[Callable[..., Http2Server]]:
    """Starts servers, `serve2(app, **config)`, that are stopped at the end."""
    servers: list[Http2Server] = []

    def start(app: ASGIApplication, **config: Any) -> Http2Server:
        server = Http2Server(app, http2_loop, **config)
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.stop()
