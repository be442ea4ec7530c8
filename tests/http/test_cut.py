"""What the graceful timeout cuts never passes for complete."""

from __future__ import annotations

import contextlib

import pytest

from serve_asgi.http.worker_context import Receive, Scope, Send
from serve_asgi.ipc.scoreboard import Cell
from tests.http.held_application import Held, Serve, get
from tests.http.http_server import (
    GET,
    Client,
    echo,
    respond,
)


def test_cut_cancels_and_never_ends_the_answer_as_if_whole(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    held = Held()
    server = serve(held)
    client = server.connect()
    client.send(get(b"/stream"))
    client.read_until(b"begun\r\n")
    connection = server.connection()
    assert server.run(connection.cut)
    with contextlib.suppress(ConnectionResetError):
        assert client.read_to_end() == b""
    server.until(lambda: held.cancelled == 1 and server.cell(Cell.IN_FLIGHT) == 0)
    server.until(lambda: server.cell(Cell.CONNECTIONS) == 0)
    assert caplog.text == ""
    assert server.cell(Cell.REQUESTS) == 1


def test_cut_of_an_answer_that_ends_with_the_connection_is_a_reset(serve: Serve) -> None:
    server = serve(Held())
    client = server.connect()
    client.send(b"GET /stream HTTP/1.0\r\n\r\n")
    client.read_until(b"begun")
    assert server.run(server.connection().cut)
    with pytest.raises(ConnectionResetError):
        client.read_to_end()


def test_cut_tells_whether_something_was_unfinished(serve: Serve) -> None:
    server = serve(echo)
    for data, unfinished in ((b"", False), (GET[:5], True)):
        client = server.connect()
        client.send(data)
        server.until(lambda: server.cell(Cell.CONNECTIONS) == 1)
        server.until(lambda data=data: server.attached[-1].pipeline.buffer == data)  # type: ignore[misc]
        assert server.run(server.connection().cut) is unfinished
        server.until(lambda: server.cell(Cell.CONNECTIONS) == 0)
        assert not server.run(server.connection().cut)


def test_cut_of_unwritten_bytes(serve: Serve) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, b"x" * 20_000_000)

    server = serve(app)
    for fields in (b"", b"Connection: close\r\n"):
        client: Client = server.connect(SO_RCVBUF=65536)
        client.send(GET[:-2] + fields + b"\r\n")
        server.until(lambda: server.cell(Cell.CONNECTIONS) == 1)
        server.until(lambda: server.attached[-1].pipeline.requests == 1)
        assert server.run(server.connection().cut)
        server.until(lambda: server.cell(Cell.CONNECTIONS) == 0)
