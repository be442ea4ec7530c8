"""How a connection is closed: announced, flushed, and read to its end within limits."""

from __future__ import annotations

import asyncio

import pytest

from serve_asgi.http import closing, request_pipeline
from serve_asgi.http.connection_states import ConnectionState
from serve_asgi.http.worker_context import Receive, Scope, Send
from serve_asgi.ipc.scoreboard import Cell
from tests.http.held_application import Serve
from tests.http.http_server import (
    CLOSED,
    GET,
    KEPT,
    echo,
    respond,
)


def test_close_answers(serve: Serve) -> None:
    server = serve(echo)
    client = server.connect()
    client.send(GET)
    assert KEPT in client.answer()[1]
    server.worker.announce_close = True
    client.send(GET)
    assert CLOSED in client.answer()[1]
    assert client.read_to_end() == b""


def test_client_that_never_ends_is_left_after_a_while(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closing, "LINGER_TIME", 0.2)
    server = serve(echo)
    client = server.connect()
    client.send(GET[:-2] + b"Connection: close\r\n\r\n")
    client.answer()
    connection = server.connection()
    server.until(lambda: connection.state is ConnectionState.CLOSED)
    assert server.cell(Cell.CONNECTIONS) == 0


def test_client_that_sends_on_after_its_answer_reads_it(serve: Serve) -> None:
    server = serve(echo)
    client = server.connect()
    client.send(GET[:-2] + b"Connection: close\r\n\r\n" + b"x" * 300_000)
    connection = server.connection()
    server.until(lambda: connection._closing is not None and connection._closing.lingering)
    client.send(b"x" * 300_000)
    assert client.read_to_end().endswith(b"GET / ")


def test_client_that_sends_without_end_after_its_answer_is_left(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closing, "LINGER_LIMIT", 100_000)
    server = serve(echo)
    client = server.connect()
    client.send(GET[:-2] + b"Connection: close\r\n\r\n")
    client.answer()

    def send_without_end() -> None:
        while True:
            client.send(b"x" * 65536)

    with pytest.raises(OSError, match=r"reset|[Bb]roken pipe"):
        send_without_end()
    server.until(lambda: server.cell(Cell.CONNECTIONS) == 0)


def test_last_answer_is_flushed_to_a_slow_reader(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closing, "LINGER_TIME", 0.1)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, b"x" * 20_000_000)

    server = serve(app)
    client = server.connect(SO_RCVBUF=65536)
    client.send(GET[:-2] + b"Connection: close\r\n\r\n")
    connection = server.connection()
    server.until(lambda: connection.state is ConnectionState.CLOSING)
    server.wait_for(asyncio.sleep(0.3))  # longer than the time to linger, which has not begun
    assert connection.state is ConnectionState.CLOSING
    assert len(client.read_to_end().partition(b"\r\n\r\n")[2]) == 20_000_000


def test_reader_that_stops_is_cut(serve: Serve) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, b"x" * 20_000_000)

    server = serve(app, write_timeout=0.2)
    client = server.connect(SO_RCVBUF=65536)
    client.send(GET[:-2] + b"Connection: close\r\n\r\n")
    connection = server.connection()
    server.until(lambda: connection.state is ConnectionState.CLOSED)
    assert client.sock.fileno() > 0


def test_rest_of_an_answered_request_has_a_time_limit(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_pipeline, "DISCARD_TIME", 0.1)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, b"early")

    server = serve(app)
    client = server.connect()
    client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nab")
    assert client.answer()[2] == b"early"
    assert client.read_to_end() == b""


def test_half_closed_client_that_wants_the_end(serve: Serve) -> None:
    server = serve(echo)
    for request in (GET[:-2] + b"Connection: close\r\n\r\n", GET + b"nonsense\r\n\r\n", b"HEAD / HTTP/1.1\r\n\r\n"):
        client = server.connect()
        client.send(request)
        client.end()
        assert client.read_to_end().startswith(b"HTTP/1.1 ")
    server.until(lambda: server.cell(Cell.CONNECTIONS) == 0)


def test_slow_reader_that_goes_on_is_not_cut(serve: Serve) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, b"x" * 20_000_000)

    server = serve(app)
    client = server.connect(SO_RCVBUF=65536)
    client.send(GET[:-2] + b"Connection: close\r\n\r\n")
    connection = server.connection()
    server.until(lambda: connection.state is ConnectionState.CLOSING)
    head = client.read_until(b"\r\n\r\n")
    got = 0
    for _ in range(3):
        before = server.run(connection.transport.get_write_buffer_size)
        got += len(client.read(4_000_000))
        server.until(lambda before=before: connection.transport.get_write_buffer_size() < before)  # type: ignore[misc]
        server.run(connection.expire)
        assert connection.state is ConnectionState.CLOSING
    assert got + len(client.read_to_end()) == 20_000_000
    assert CLOSED in head
