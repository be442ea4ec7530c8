"""`run`: serve an ASGI application until INT or TERM, in an event loop of its own.

It owns what `Server` leaves to the program: the event loop, the two signals and the log. The signals' handlers are
restored at the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, Final, Unpack

from serve_asgi.app.agent import agent
from serve_asgi.app.agent_task import AgentTarget, import_agent
from serve_asgi.config.options import Config
from serve_asgi.http.worker_context import ASGIApplication
from serve_asgi.in_process.keyword_options import RunOptions, read_options
from serve_asgi.in_process.server import Server
from serve_asgi.logs import server_log
from serve_asgi.worker.event_loop import loop_factory

ENDING: Final = (signal.SIGINT, signal.SIGTERM)

log = logging.getLogger("serve")


def run(app: ASGIApplication | str, **options: Unpack[RunOptions]) -> None:
    """Serve an application in this process until INT (Ctrl-C) or TERM; return when it has stopped.

    For scripts and debuggers: there is one process, in which breakpoints work. The first signal lets requests finish
    within `graceful_timeout`, a second one does not wait. Within a running event loop (a notebook) use `Server`.

    Args:
        app: The application, or its name as `module:attribute`.
        options: As for `Server`; also `loop` ("auto" takes uvloop where it is installed) and `log_level`, `log_format`,
            `log_file`. By default http://127.0.0.1:8000.

    Raises:
        TypeError: There is no such option here; the message says what to write instead.
        RuntimeError: An event loop is running here.
        serve_asgi.errors.UsageError: A value cannot be, an address is in use, and the like.
        serve_asgi.errors.StartError: The application cannot be imported, or its lifespan startup failed.

    Example:
        ```python
        if __name__ == "__main__":
            serve_asgi.run(app, port=8000)
        ```
    """
    config = read_options(options, runs=True)
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        pass
    else:
        raise RuntimeError("an event loop is running here: use `async with serve_asgi.Server(app) as server:` in it")
    run_configured(app, config)


def run_configured(app: ASGIApplication | str, config: Config) -> None:
    """The same with a configuration that was read elsewhere, from the command line; with its agent, if it has one."""
    server = Server.of(app, config)
    with _logging(config), _restored_signals():
        server.load()
        found = import_agent(config.agent) if config.agent else None
        with asyncio.Runner(loop_factory=loop_factory(config.loop)) as runner:
            runner.run(_serve(server, found))


async def _serve(server: Server, found: tuple[Any, str, ModuleType] | None) -> None:
    """Serve until a signal, with the agent, if there is one."""
    task = asyncio.current_task()
    assert task is not None

    def ask() -> None:
        if server.stopping:
            server.hurry()
        elif server.started:
            server.ask_to_stop()
        else:
            task.cancel()

    _handle_signals(asyncio.get_running_loop(), ask)
    try:
        await server.start()
        async with agent.running(AgentTarget(*found)) if found is not None else contextlib.nullcontext():
            await server.serve()
    except asyncio.CancelledError:
        log.info("stopped before it had started", extra=server_log.about("server_stopped"))


def _handle_signals(loop: asyncio.AbstractEventLoop, ask: Callable[[], None]) -> None:
    """Call `ask` in the loop at each signal; only the main thread can have signals."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number in ENDING:
        try:
            loop.add_signal_handler(number, ask)
        except NotImplementedError:  # Windows
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(ask))


@contextlib.contextmanager
def _restored_signals() -> Iterator[None]:
    """Leave the handlers of the signals as they were."""
    before = {number: signal.getsignal(number) for number in ENDING}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def _logging(config: Config) -> Iterator[None]:
    """Log to stderr or the file of `log_file`, unless the program has set logging up for itself."""
    if logging.root.handlers or logging.getLogger("serve").handlers:
        yield
        return
    server_log.configure(config, "server")
    try:
        yield
    finally:
        server_log.unconfigure()
