"""`Server`: an ASGI application served by the calling process, in its running event loop.

It owns the life of one such server, from the sockets to the last descriptor, and leaves nothing behind. Its parts are a
worker's own; what is missing is what needs other processes: hand-over, recycling, the watchdog. It takes no signals and
sets up no logging, which are the program's (`serve_asgi.in_process.run` does both).
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import itertools
import logging
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final, Unpack

import anyio

from serve_asgi.app import loading
from serve_asgi.app.retiring import RetiringFlag, flag_of_server
from serve_asgi.app.survive import survive
from serve_asgi.config.options import Config
from serve_asgi.errors import StartError, UsageError
from serve_asgi.http.worker_context import ASGIApplication, WorkerContext
from serve_asgi.in_process.client_acceptor import ClientAcceptor
from serve_asgi.in_process.connection_care import ConnectionCare
from serve_asgi.in_process.keyword_options import ServerOptions, read_options
from serve_asgi.in_process.listening import Listening, secure_contexts
from serve_asgi.in_process.local_hub import join_hub, leave_hub
from serve_asgi.ipc.scoreboard import HEADER_WORDS, ROW_WORDS, WORD, Cell
from serve_asgi.logs import access_log_standard
from serve_asgi.logs.server_log import about
from serve_asgi.worker.connection_opening import ConnectionOpening
from serve_asgi.worker.lifespan import Lifespan

if TYPE_CHECKING:
    from socket import socket
    from types import TracebackType

    from serve_asgi.app.local_mode import LocalLink
    from serve_asgi.http.static_files import StaticFiles
    from serve_asgi.logs.access_log import AccessLog
    from serve_asgi.tls.server_contexts import ServerContexts

_numbers: Final = itertools.count(1)
"""Of servers: the connections of one have numbers of their own."""
CONNECTIONS_EACH: Final = 1 << 40
END_TIME: Final = 1.0
"""Seconds for a lifespan that was cancelled to be over."""

log = logging.getLogger("serve")


class LocalBoard:
    """In the place of the scoreboard: nothing drains, and no other process has changed the shared state."""

    draining_since = 0
    agent_missing = False

    def __init__(self) -> None:
        self.words = memoryview(bytearray(HEADER_WORDS * WORD)).cast("Q")


class Server:
    """An ASGI application, served by this process within its running event loop.

    For tests, notebooks, debuggers, and programs that have an API beside what they do. HTTP/1.1, HTTP/2, WebSocket,
    TLS, the limits and the lifespan are those of `serve`, and `messenger`, `shared`, `schedule` and `agent` work within
    the process. It takes no signals, has no other processes, and there may be several at once.

    Example:
        ```python
        async with serve_asgi.Server(app, port=0) as server:
            async with httpx.AsyncClient(base_url=server.url) as client:
                assert (await client.get("/")).status_code == 200
        ```
    """

    def __init__(self, app: ASGIApplication | str, **options: Unpack[ServerOptions]) -> None:
        """Nothing happens before `start`, or `async with`.

        Args:
            app: The application, or its name as `module:attribute`.
            options: Those of the command line, with underscores: `host`, `port` (0 lets the kernel choose), `bind`,
                `tls_cert`, `max_body_size`, … There is no access log unless `access_log` is true, requests have
                5 s to end at a stop (`graceful_timeout`), and WebSockets are closed at once. The environment and
                configuration files are not read.

        Raises:
            TypeError: There is no such option here; the message says what to write instead.
            serve_asgi.errors.UsageError: A value, or the combination, cannot be.
        """
        self._set_up(app, read_options(options))

    @classmethod
    def of(cls, app: ASGIApplication | str, config: Config) -> Server:
        """One with a configuration that was read elsewhere, from the command line."""
        server = cls.__new__(cls)
        server._set_up(app, config)
        return server

    @classmethod
    @contextlib.contextmanager
    def in_thread(cls, app: ASGIApplication | str, **options: Unpack[ServerOptions]) -> Iterator[Server]:
        """One that serves from a thread with an event loop of its own, until the `with` block ends.

        For code that blocks while it waits for an answer: a cell of a notebook with `httpx.get(server.url)`, a test
        that is no coroutine. Takes and raises what `Server` does.
        """
        from anyio.from_thread import start_blocking_portal

        server = cls(app, **options)
        server.load()  # here, where usually no event loop runs
        with start_blocking_portal() as portal, portal.wrap_async_context_manager(server):
            yield server

    def _set_up(self, app: ASGIApplication | str, config: Config) -> None:
        self.config = config
        """The options, with their defaults."""
        self.urls: tuple[str, ...] = ()
        """Where it listens, as URLs without a path; empty while it does not. A unix socket is `unix:/path`."""
        self._given = app
        self._app: ASGIApplication | None = None
        self._stop_asked: asyncio.Event | None = None
        self._stopped = False
        self._listening: Listening | None = None
        self._lifespan: Lifespan | None = None
        self._acceptor: ClientAcceptor | None = None
        self._care: ConnectionCare | None = None
        self._tls: ServerContexts | None = None
        self._access_log: AccessLog | None = None
        self._hub: LocalLink | None = None
        self._static: StaticFiles | None = None

    async def __aenter__(self) -> Server:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def url(self) -> str:
        """Where it listens, as a URL without a path: `http://127.0.0.1:8000`; the first address if there are several.

        Raises RuntimeError if it does not run.
        """
        if not self.urls:
            raise RuntimeError("the server does not run: use it within `async with`, or await start() first")
        return self.urls[0]

    @property
    def ws_url(self) -> str:
        """The same for WebSockets: `ws://127.0.0.1:8000`."""
        return "ws" + self.url.removeprefix("http")

    @property
    def port(self) -> int:
        """The port of `url`, which the kernel has chosen if it was given as 0."""
        return int(self.url.rpartition(":")[2])

    @property
    def started(self) -> bool:
        """Whether it accepts clients."""
        return bool(self.urls)

    async def start(self) -> None:
        """Run the application's lifespan startup and listen; return when clients may come.

        A server is started once.

        Raises:
            serve_asgi.errors.StartError: The application cannot be imported, or its startup failed.
            serve_asgi.errors.UsageError: An address is in use, a certificate cannot be read, and the like.
            TimeoutError: Startup has taken longer than `startup_timeout`.
        """
        if self._stop_asked is not None:
            raise RuntimeError("a server is started once: make another one")
        self._stop_asked = asyncio.Event()
        try:
            await self._start()
        except BaseException as error:
            await self.stop()
            if isinstance(error, StartError) and error.detail:
                error.add_note(error.detail)
            raise

    async def _start(self) -> None:
        loop, config = asyncio.get_running_loop(), self.config
        self._hub = join_hub(loop)
        self.load()
        app = self._app
        assert app is not None
        listening = self._listening = Listening(config)
        self._tls = secure_contexts(config)
        front = self._with_static_files(app) if config.static else app
        if config.https_redirect:
            front = _redirecting(front, listening.sockets)
        flag = RetiringFlag()
        surroundings = contextvars.copy_context()
        surroundings.run(flag_of_server.set, flag)
        cells = memoryview(bytearray(ROW_WORDS * WORD)).cast("Q")
        context = WorkerContext(front, config, loop, LocalBoard(), cells, flag)
        context.context = surroundings
        context.numbers = next(_numbers) * CONNECTIONS_EACH
        context.numbered = survive.shared_connections()
        self._access_log = context.access_log = access_log_standard.open_access_log(config)
        opening = ConnectionOpening(context, self._tls)
        self._care = ConnectionCare(context, flag)
        self._lifespan = Lifespan(app, config.lifespan, context.state)
        starting = loop.create_task(self._lifespan.startup(), context=surroundings)
        async with asyncio.timeout(config.startup_timeout):
            await starting
        listening.listen(config.backlog)

        def accepted() -> None:
            cells[Cell.ACCEPTED] += 1

        self._acceptor = ClientAcceptor(loop, listening.sockets, opening.accepted, context.has_room, accepted)
        self._care.begin()
        await self._acceptor.start()
        self.urls = tuple(listening.urls)
        log.info("serving on %s", ", ".join(self.urls), extra=about("sockets_opened", addresses=list(self.urls)))

    def load(self) -> None:
        """Import the application, if it was given by its name; `start` does so otherwise.

        Called before an event loop runs, for an application that cannot be imported within one: Django's, if it makes
        queries meanwhile.

        Raises:
            serve_asgi.errors.UsageError: There is no such module or attribute, or it is no application; what the
                application's own code raises is passed on.
        """
        if self._app is not None:
            return
        config, given = self.config, self._given
        how = config.factory, config.interface, config.wsgi_threads
        if isinstance(given, str):
            self._app = loading.load(given, *how)
        else:
            name = getattr(given, "__qualname__", None) or f"the {type(given).__name__}"
            self._app = loading.adapted(given, name, *how)

    def _with_static_files(self, app: ASGIApplication) -> ASGIApplication:
        from serve_asgi.http.static_files import StaticFiles  # who has none does not pay for it

        config = self.config
        self._static = StaticFiles(app, config.static, config.root_path, config.static_max_age)
        return self._static

    async def serve(self) -> None:
        """Start, unless that has been done, and serve until `stop` is called or this is cancelled."""
        if self._stop_asked is None:
            await self.start()
        assert self._stop_asked is not None
        try:
            await self._stop_asked.wait()
        finally:
            await self.stop()

    def ask_to_stop(self) -> None:
        """Have `serve` stop the server and return; for a signal handler or a callback of the loop."""
        if self._stop_asked is not None:
            self._stop_asked.set()

    @property
    def stopping(self) -> bool:
        """Whether it has begun to stop, or has stopped."""
        return self._stopped

    def hurry(self) -> None:
        """While it stops: cut what is in progress now, instead of after `graceful_timeout`."""
        if self._care is not None:
            self._care.cut()

    async def stop(self) -> None:
        """Accept no more, finish the requests within `graceful_timeout`, cut the rest, run the lifespan's shutdown.

        When it returns nothing of the server is left: no task, socket or descriptor. It may be called again, and does
        not end before all that, even if it is cancelled meanwhile.
        """
        if self._stop_asked is None or self._stopped:
            return
        self._stopped = True
        self._stop_asked.set()
        with anyio.CancelScope(shield=True):
            await self._stop()

    async def _stop(self) -> None:
        served, self.urls = bool(self.urls), ()
        if served:
            log.info("stopping", extra=about("stopping"))
        if self._acceptor is not None:
            self._acceptor.stop()
            await self._acceptor.settled()
        if self._listening is not None:
            self._listening.close()
        if self._care is not None:
            await self._care.end_connections()
        if self._lifespan is not None:
            await self._finish(self._lifespan)
        if self._care is not None:
            self._care.end()
        await leave_hub(self._hub, self.config.graceful_timeout)
        if self._access_log is not None:
            self._access_log.close()
        if self._tls is not None:
            self._tls.close()
        if self._static is not None:
            self._static.close()
        self._listening = self._lifespan = self._acceptor = self._care = None
        self._tls = self._access_log = self._hub = self._static = None
        if served:
            log.info("stopped", extra=about("server_stopped"))

    async def _finish(self, lifespan: Lifespan) -> None:
        """Run the lifespan's shutdown, and leave nothing of it."""
        timeout = self.config.shutdown_timeout
        with anyio.move_on_after(timeout) as deadline:
            await lifespan.shutdown()
        if deadline.cancelled_caught:
            text = "lifespan shutdown had not ended after %g s (shutdown_timeout)"
            log.warning(text, timeout, extra=about("shutdown_timed_out", seconds=timeout))
        with anyio.move_on_after(END_TIME):
            await lifespan.end()


def _redirecting(app: ASGIApplication, sockets: Mapping[socket, bool]) -> ASGIApplication:
    """The application behind one that sends clients of plain addresses to the first address that speaks TLS."""
    from serve_asgi.http.https_redirect import HttpsRedirect

    secure = next((each for each, speaks_tls in sockets.items() if speaks_tls), None)
    if secure is None or all(sockets.values()):
        raise UsageError("https_redirect needs a plain address and one that speaks TLS: give both with bind")
    return HttpsRedirect(app, secure.getsockname()[1])
