"""The connections of a worker in a thread with a loop of its own: what the servers of tests/http and tests/websocket
share.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import uvloop

from serve_asgi.app.retiring import RetiringFlag
from serve_asgi.config.options import Config
from serve_asgi.http.request_timeouts import RequestTimeouts
from serve_asgi.http.worker_context import ASGIApplication, WorkerContext
from serve_asgi.ipc.peer_address import Address
from serve_asgi.ipc.scoreboard import Cell, Scoreboard
from serve_asgi.logs.access_log import NOBODY, LoggedRequest, LoggedResponse
from tests.rows import cells

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "uvloop": uvloop.new_event_loop,
    "asyncio": asyncio.new_event_loop,
}
TICK = 0.05
TIMEOUT = 10.0
T = TypeVar("T")


class Log:
    """An access log that keeps what it is given."""

    def __init__(self) -> None:
        self.records: list[tuple[Any, ...]] = []

    def record(
        self,
        client: Address,
        head: LoggedRequest,
        status: int,
        size: int,
        begun: float,
        response: LoggedResponse = NOBODY,
    ) -> None:
        seconds = time.perf_counter() - begun
        target = head.target.decode("latin-1")
        self.records.append((client, head.method, target, head.version, status, size, seconds, head.headers))


class ConnectionServer:
    """`run` brings a function, `wait_for` a coroutine into the server's thread, once `start` has returned."""

    def __init__(self, app: ASGIApplication, loop_name: str, default_headers: bytes, **config: Any) -> None:
        self.loop = LOOPS[loop_name]()
        self.scoreboard = Scoreboard.create(1, 1)
        self.retiring = RetiringFlag()
        self.worker = WorkerContext(app, Config(**config), self.loop, self.scoreboard, cells(), self.retiring)
        self.worker.default_headers = default_headers
        self.errors: list[dict[str, Any]] = []
        self.loop.set_exception_handler(lambda _, context: self.errors.append(context))
        self._started = threading.Event()
        self._thread = threading.Thread(target=self.main)

    def main(self) -> None:
        """What runs in the thread, to the end of the loop. It or what it starts calls `has_started`."""
        raise NotImplementedError

    def start(self) -> None:
        """Return when the server has started."""
        self._thread.start()
        assert self._started.wait(TIMEOUT)

    def has_started(self) -> None:
        """In the thread: clients may come."""
        self._started.set()

    def join(self) -> None:
        """Wait for the thread's end, which has been asked for; nothing may have gone wrong in it."""
        self._thread.join(TIMEOUT)
        assert not self._thread.is_alive()
        self.scoreboard.words.release()
        self.scoreboard.close()
        assert self.errors == []

    def tick(self) -> None:
        """What the worker's housekeeping does once a second, faster."""
        now = self.loop.time()
        for connection in list(self.worker.connections):
            if connection.deadline <= now:
                connection.expire()
        if self.worker.config.request_timeout:
            RequestTimeouts(self.worker.config.request_timeout).sweep(self.worker.connections)
        self.loop.call_later(TICK, self.tick)

    def run(self, function: Callable[[], T]) -> T:
        """Call the function in the server's thread."""

        async def call() -> T:
            return function()

        return asyncio.run_coroutine_threadsafe(call(), self.loop).result(TIMEOUT)

    def wait_for(self, awaited: Awaitable[T], timeout: float = TIMEOUT) -> T:
        """Await something in the server's thread."""

        async def wait() -> T:
            return await awaited

        return asyncio.run_coroutine_threadsafe(wait(), self.loop).result(timeout)

    def settled(self, condition: Callable[[], bool], timeout: float = TIMEOUT) -> bool:
        """Whether the condition comes true, as seen from the server's thread."""

        async def poll() -> bool:
            end = self.loop.time() + timeout
            while not condition():
                if self.loop.time() > end:
                    return False
                await asyncio.sleep(0.002)
            return True

        return self.wait_for(poll(), timeout + 5)

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait until the condition holds, as seen from the server's thread."""
        assert self.settled(condition), "it does not come true"

    def cell(self, cell: Cell) -> int:
        """Read between two turns of the server's loop: a client can have an answer before it has been counted."""
        if threading.current_thread() is self._thread or not self._thread.is_alive():
            return self._cell(cell)
        return self.run(lambda: self._cell(cell))

    def _cell(self, cell: Cell) -> int:
        self.worker.note_counts()
        return int(self.worker.cells[cell])
