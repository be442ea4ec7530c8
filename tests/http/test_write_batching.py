"""Answers of one turn of the loop are written together, and none is lost or kept waiting for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

from serve_asgi.http import write_batching as batching
from serve_asgi.http.worker_context import Receive, Scope, Send, WorkerPhase
from serve_asgi.http.write_batching import PATIENCE, Holder, WriteBatch
from tests.http.http_server import GET, HttpServer, respond

Serve = Callable[..., HttpServer]


class Writes(Holder):
    """Counts the moments at which it was written."""

    def __init__(self) -> None:
        self.flushed: list[float] = []

    def flush(self) -> None:
        self.flushed.append(time.perf_counter())


async def ping(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["path"] == "/block":
        time.sleep(2 * PATIENCE)  # noqa: ASYNC251  # a blocking application
    await respond(send, b"pong")


def test_answers_of_one_turn_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "PATIENCE", 60.0)  # as long as no turn takes, also where this process has to wait

    async def main() -> None:
        turn = WriteBatch(asyncio.get_running_loop())
        first, second = Writes(), Writes()
        turn.add(first)
        turn.add(second)
        assert first.flushed == second.flushed == []
        await asyncio.sleep(0)
        assert len(first.flushed) == len(second.flushed) == 1

    asyncio.run(main())


def test_slow_requests_keep_no_answer_waiting() -> None:
    """The first answer cannot know; those of the next second are written at once."""

    async def main() -> None:
        turn = WriteBatch(asyncio.get_running_loop())
        first, second, third = Writes(), Writes(), Writes()
        turn.add(first)
        time.sleep(2 * PATIENCE)  # noqa: ASYNC251  # a blocking application
        turn.add(second)
        assert len(first.flushed) == len(second.flushed) == 1
        turn.add(third)
        assert len(third.flushed) == 1

    asyncio.run(main())


def test_client_that_ends_its_side_behind_its_request_is_answered(serve: Serve) -> None:
    """Request and end are read in one go, so that the answer is still held when the end is seen."""
    server = serve(ping)
    for _ in range(50):
        client = server.connect()
        client.send(GET)
        client.end()
        assert client.read_to_end().endswith(b"pong")


def test_many_clients_at_one_moment(serve: Serve) -> None:
    server = serve(ping)
    clients = [server.connect() for _ in range(20)]
    for path in (b"/", b"/block", b"/"):
        for client in clients:
            client.send(GET.replace(b"/ ", path + b" "))
        assert [client.answer()[2] for client in clients] == [b"pong"] * 20


def test_worker_that_begins_to_retire_writes_what_is_held(serve: Serve) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, b"last")
        worker.phase = WorkerPhase.CLOSING
        for connection in list(worker.connections):
            connection.retire()

    server = serve(app)
    worker = server.worker
    client = server.connect()
    client.send(GET)
    assert client.read_to_end().endswith(b"last")


def test_graceful_timeout_amid_the_turn_cuts_no_answer_that_is_complete(serve: Serve) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, b"last")
        for connection in list(worker.connections):
            assert not connection.cut()

    server = serve(app)
    worker = server.worker
    client = server.connect()
    client.send(GET)
    assert client.answer()[2] == b"last"
