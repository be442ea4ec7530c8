"""What the tests of client connections share: each runs over both parsers and both loops."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from serve_asgi.http.worker_context import ASGIApplication
from tests.connection_server import LOOPS
from tests.http.http_server import HttpServer


@pytest.fixture(params=["httptools", "h11"])
def http_name(request: pytest.FixtureRequest) -> str:
    """The parser."""
    return str(request.param)


@pytest.fixture(params=list(LOOPS))
def http_loop(request: pytest.FixtureRequest) -> str:
    """The event loop."""
    return str(request.param)


@pytest.fixture
def serve(http_name: str, http_loop: str) -> Iterator[Callable[..., HttpServer]]:
    """Starts servers, `serve(app, **config)`, that are stopped at the end."""
    servers: list[HttpServer] = []

    def start(app: ASGIApplication, **config: Any) -> HttpServer:
        server = HttpServer(app, http_loop, http=http_name, **config)
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.stop()
