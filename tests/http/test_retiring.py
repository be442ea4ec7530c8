"""Connections of a retiring worker: idle ones leave at once, busy ones after their responses."""

from __future__ import annotations

import asyncio
import os

import pytest

from serve_asgi.http.connection_states import ConnectionState
from serve_asgi.http.worker_context import Receive, Scope, Send, WorkerPhase
from serve_asgi.ipc.scoreboard import Cell
from tests.http.held_application import Held, Serve, get, retire
from tests.http.http_server import (
    CLOSED,
    GET,
    KEPT,
    echo,
    respond,
)


def test_idle_connection_departs_at_once(serve: Serve) -> None:
    server = serve(echo)
    client = server.connect()
    client.send(GET)
    client.answer()
    server.until(lambda: server.attached[-1].state is ConnectionState.IDLE)
    fresh = server.connect()
    server.until(lambda: len(server.attached) == 2)
    departing = retire(server, WorkerPhase.HANDING_OVER)
    server.until(lambda: set(departing) == set(server.attached))
    fresh.send(GET)  # until it has left, it is served here
    assert fresh.answer()[0] == 200


@pytest.mark.parametrize("path", [b"/x", b"/stream"])
def test_busy_connection_departs_after_its_answer_is_flushed(serve: Serve, path: bytes) -> None:
    held = Held()
    server = serve(held)
    client = server.connect()
    client.send(get(path) + get(b"/next"))
    server.until(lambda: len(held.paths) == 1)
    departing = retire(server, WorkerPhase.HANDING_OVER)
    server.wait_for(asyncio.sleep(0.02))
    assert departing == []
    server.run(held.go.set)
    if path == b"/x":
        status, head, content = client.answer()
        assert (status, content) == (200, b"/x")
        assert KEPT in head
    else:
        client.read_until(b"0\r\n\r\n")
    server.until(lambda: len(departing) == 1)
    connection = departing[0]
    assert server.run(connection.can_leave)
    descriptor, record = server.run(connection.leave)
    assert record.leftover == get(b"/next")  # not started here
    assert record.requests == 1
    assert held.paths == [path.decode()]
    server.run(connection.stay)
    os.close(descriptor)
    assert client.answer()[2] == b"/next"


def test_large_answer_is_flushed_before_the_departure(serve: Serve) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, b"x" * 10_000_000)

    server = serve(app)
    client = server.connect(SO_RCVBUF=65536)
    client.send(GET)
    connection = server.connection()
    server.until(lambda: connection.pipeline.requests == 1)
    departing = retire(server, WorkerPhase.HANDING_OVER)
    assert not server.run(connection.can_leave)
    server.wait_for(asyncio.sleep(0.05))
    assert departing == []
    assert len(client.answer()[2]) == 10_000_000
    server.until(lambda: departing == [connection] and connection.can_leave())


def test_half_sent_content_finishes_here(serve: Serve) -> None:
    server = serve(echo)
    client = server.connect()
    client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nab")
    server.until(lambda: server.cell(Cell.IN_FLIGHT) == 1)
    departing = retire(server, WorkerPhase.HANDING_OVER)
    assert departing == []
    client.send(b"cd")
    assert client.answer()[2] == b"POST / abcd"
    server.until(lambda: len(departing) == 1)


def test_connection_accepted_while_retiring_departs(serve: Serve) -> None:
    server = serve(echo)
    departing = retire(server, WorkerPhase.HANDING_OVER)
    server.connect()
    server.until(lambda: departing != [] and departing == server.attached)


def test_closing_worker_closes_idle_connections(serve: Serve) -> None:
    server = serve(echo)
    client = server.connect()
    client.send(GET)
    client.answer()
    connection = server.connection()
    server.until(lambda: connection.pipeline.requests == 1)
    retire(server, WorkerPhase.CLOSING)
    assert client.read_to_end() == b""


def test_closing_worker_serves_what_has_begun_to_arrive(serve: Serve) -> None:
    server = serve(echo)
    clients = [server.connect() for _ in range(3)]
    unread, half, fresh = clients
    for client in (unread, half):
        client.send(GET)
        client.answer()
    half.send(GET[:8])
    server.until(lambda: len(server.attached) == 3)
    server.until(lambda: sum(len(c.pipeline.buffer) for c in server.attached) == 8)

    def begin() -> None:
        unread.send(GET)  # in the kernel when the worker begins to retire
        server.worker.phase = WorkerPhase.CLOSING
        for connection in list(server.worker.connections):
            connection.retire()

    server.run(begin)
    half.send(GET[8:])
    fresh.send(GET)  # never served: waited for
    for client in clients:
        status, head, content = client.answer()
        assert (status, content) == (200, b"GET / ")
        assert CLOSED in head
        assert client.read_to_end() == b""


def test_closing_worker_does_not_wait_for_ever_for_a_first_request(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve_asgi.http.http1_departure.FRESH_TIME", 0.2)
    server = serve(echo)
    client = server.connect()
    server.until(lambda: len(server.attached) == 1)
    retire(server, WorkerPhase.CLOSING)
    assert client.read_to_end() == b""


def test_closing_worker_answers_what_it_has_read_and_announces_the_end(serve: Serve) -> None:
    held = Held()
    server = serve(held)
    client, stream = server.connect(), server.connect()
    client.send(get(b"/x") + get(b"/y"))
    stream.send(get(b"/stream"))
    stream.read_until(b"begun")
    server.until(lambda: len(held.paths) == 2)
    retire(server, WorkerPhase.CLOSING)
    server.run(held.go.set)
    for last in (False, True):
        status, head, _ = client.answer()
        assert status == 200
        assert (CLOSED in head) is last
    assert client.read_to_end() == b""
    assert stream.read_to_end().endswith(b"ended\r\n0\r\n\r\n")
