"""How long a connection is kept: advertised, kept a little longer, and never closed amid a request."""

from __future__ import annotations

import math

from serve_asgi.ipc.scoreboard import Cell
from tests.http.held_application import Held, Serve
from tests.http.http_server import (
    CLOSED,
    DEFAULT_HEADERS,
    GET,
    KEPT,
    echo,
)


def test_keep_alive_is_advertised(serve: Serve) -> None:
    for keep_alive, lines in (
        (75.0, KEPT),
        (5.9, b"connection: keep-alive\r\nkeep-alive: timeout=5\r\n"),
        (0.5, b"connection: keep-alive\r\n"),
        (0.0, CLOSED),
    ):
        client = serve(echo, keep_alive=keep_alive).connect()
        client.send(GET)
        assert client.answer()[1] == b"HTTP/1.1 200 OK\r\n" + DEFAULT_HEADERS + lines + b"content-length: 6\r\n\r\n"


def test_idle_connection_is_closed_a_little_later_than_advertised(serve: Serve) -> None:
    server = serve(echo, keep_alive=1)
    client = server.connect()
    client.send(GET)
    client.answer()
    connection = server.connection()
    left = server.run(lambda: connection.deadline - server.loop.time())
    assert 1.0 < left <= 2.0
    server.run(connection.expire)
    assert client.read_to_end() == b""


def test_request_that_arrives_at_the_deadline_is_served(serve: Serve) -> None:
    server = serve(echo)
    client = server.connect()
    client.send(GET)
    client.answer()
    connection = server.connection()

    def expire_with_unread_bytes() -> None:
        client.send(GET)
        connection.expire()

    server.run(expire_with_unread_bytes)
    assert client.answer()[2] == b"GET / "


def test_new_connection_without_a_request_is_closed(serve: Serve) -> None:
    server = serve(echo, first_byte_timeout=0.1)
    client = server.connect()
    assert client.read_to_end() == b""
    client.close()
    server.until(lambda: server.cell(Cell.CONNECTIONS) == 0)
    assert server.cell(Cell.REQUESTS) == 0


def test_deadline_does_not_fall_while_a_request_runs(serve: Serve) -> None:
    held = Held()
    server = serve(held)
    client = server.connect()
    client.send(GET)
    server.until(lambda: held.paths == ["/"])
    assert server.connection().deadline == math.inf
    server.run(held.go.set)
    assert client.answer()[0] == 200
