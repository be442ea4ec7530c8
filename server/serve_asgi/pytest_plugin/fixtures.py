"""What a test asks for by name (`serve_app`, `serve_command`, `serve_time`), and the clean hub that each has unasked.

Nothing of the server is imported before a test uses it, so that collecting other tests costs nothing.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from serve_asgi import Server
    from serve_asgi.http.worker_context import ASGIApplication
    from serve_asgi.pytest_plugin.movable_time import MovableTime
    from serve_asgi.pytest_plugin.server_command import ServerCommand


@pytest.fixture
def serve_app() -> Iterator[Callable[..., Server]]:
    """Serve an application within this process, in a thread with an event loop of its own, until the test ends.

    `serve_app(app, **options)` starts it and returns the `serve_asgi.Server`, with its `url`, `ws_url` and `port`; the
    kernel chooses the port unless one is given. All servers of a test share messages, state and schedules. (A test that
    is a coroutine may as well write `async with serve_asgi.Server(app, port=0)`, which serves in the test's own loop.)
    """
    from anyio.from_thread import start_blocking_portal

    from serve_asgi import Server

    with contextlib.ExitStack() as running:
        portal = running.enter_context(start_blocking_portal())

        def serve(app: ASGIApplication | str, **options: Any) -> Server:
            server = Server(app, **{"port": 0, **options})
            server.load()  # here, where usually no event loop runs: Django's ORM refuses to work in one
            return running.enter_context(portal.wrap_async_context_manager(server))

        yield serve


@pytest.fixture
def serve_command(tmp_path: Path) -> Iterator[Callable[..., ServerCommand]]:
    """Run `serve` as users do, as processes, until the test ends.

    `serve_command("app:asgi", "--workers", "2", directory=path)` returns when the server serves; see
    `serve_asgi.pytest_plugin.server_command.ServerCommand` for what can be asked of it: `url`, `reload()`, `stop()`, …
    Its output is part of a failed test's report.
    """
    from serve_asgi.pytest_plugin.server_command import ServerCommand

    with contextlib.ExitStack() as running:

        def start(*arguments: str, **how: Any) -> ServerCommand:
            return running.enter_context(ServerCommand(*arguments, **{"directory": tmp_path, **how}))

        yield start


@pytest.fixture
def serve_time() -> MovableTime:
    """The time of the schedules of this process: `await serve_time.advance(hours=1)` runs what comes due in an hour.

    A test that is no coroutine calls `serve_time.advance_sync`. Time goes on as usual in between.
    """
    from serve_asgi.pytest_plugin.movable_time import MovableTime

    return MovableTime()


@pytest.fixture(autouse=True)
def clean_hub() -> Iterator[None]:
    """No test finds the shared state, message handlers, schedules or moved time of another one.

    Functions of modules stay registered, as an application's are, whenever it is imported. The hub of a server that
    outlives the test, as one of a wider fixture, is left alone.
    """
    if "serve_asgi.app.hub_link" not in sys.modules:
        yield
        if "serve_asgi.app.hub_link" in sys.modules:
            _forget_hub()
        return
    from serve_asgi.pytest_plugin.registrations import Registrations

    _forget_hub()
    before = Registrations()
    yield
    _forget_hub()
    before.restore()


def _forget_hub() -> None:
    from serve_asgi.pytest_plugin.registrations import forget_hub

    forget_hub()
