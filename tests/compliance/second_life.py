"""An echo on which every WebSocket is in its second life before the client's first frame is echoed.

    python -m tests.compliance.second_life 9001

The first worker retires all the time: the life of each connection ends as soon as it is accepted, and the connection
goes on in a second worker of this process, by the record that would have travelled to another one. What the client
sends meanwhile is read by one or the other, as it happens to come.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import uvloop

from serve_asgi.http import survival
from serve_asgi.http.connection import Http1Connection
from serve_asgi.http.worker_context import Receive, Scope, Send
from serve_asgi.ipc.scoreboard import Cell, Scoreboard
from tests.websocket.lives import Courier, Worker


async def echo(_: Worker, scope: Scope, receive: Receive, send: Send) -> None:
    """Sends back what it gets, and wishes to survive."""
    await receive()
    await send({"type": "serve.survive"})
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({**message, "type": "websocket.send"})


class SecondLives:
    """Two workers; clients come to the first one."""

    def __init__(self, **config: Any) -> None:
        """In the loop in which it is to serve."""
        survival.LEAST_LIFE = 0.0  # type: ignore[misc]  # a case lasts a moment
        self.scoreboard = Scoreboard.create(1, 1)
        courier = Deliverer(self)
        self.first = Worker(echo, self.scoreboard, courier, survive_window=0.0, **config)
        self.second = Worker(echo, self.scoreboard, courier, **config)
        self.first.retire()

    def connection(self) -> Http1Connection:
        """For a client that has come."""
        return Http1Connection(self.first.context)

    def survived(self) -> int:
        """Connections that have begun their second life."""
        return self.second.cell(Cell.SURVIVED)


class Deliverer(Courier):
    """Hands over at once what has had its first life."""

    def __init__(self, workers: SecondLives) -> None:
        super().__init__()
        self._workers = workers
        self._tasks: set[asyncio.Task[None]] = set()

    def take(self, connection: Any) -> None:
        if isinstance(connection, Http1Connection):  # there is no request yet: it is served where it is
            connection.remain()
            return
        super().take(connection)
        self.offer()
        task = asyncio.get_running_loop().create_task(self.commit(self._workers.second))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _tick(workers: SecondLives) -> None:
    while True:
        await asyncio.sleep(1.0)
        workers.second.tick()
        workers.first.tick()
        print(f"\r{workers.survived()} second lives", end="", flush=True)


async def _serve(port: int) -> None:
    workers = SecondLives()
    server = await asyncio.get_running_loop().create_server(workers.connection, "127.0.0.1", port)
    async with server:
        await _tick(workers)


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1])))
