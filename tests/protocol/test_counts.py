"""What is counted of requests and connections: bytes as they were on the wire, and how long each request took."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from server.protocol.service import Receive, Scope, Send
from server.scoreboard import DURATION_BOUNDS, Cell
from tests.protocol.http_server import GET, HttpServer, body, echo, start

Serve = Callable[..., HttpServer]
POST = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n%b"


def buckets(server: HttpServer) -> list[int]:
    return [server.service.cells[Cell.DURATION_0 + number] for number in range(len(DURATION_BOUNDS) + 1)]


def test_bytes_are_those_on_the_wire(serve: Serve) -> None:
    server = serve(echo)
    client = server.connect()
    sent = received = 0
    for size in (0, 10, 5_000, 70_000):
        request = POST % (size, b"x" * size)
        client.send(request)
        _, head, content = client.answer()
        assert len(content) >= size
        sent += len(request)
        received += len(head) + len(content)
    server.until(lambda: server.cell(Cell.BYTES_SENT) == received)
    assert server.cell(Cell.BYTES_RECEIVED) == sent


@pytest.mark.parametrize("size", [1_000, 300_000])
def test_bytes_of_files_count_as_well(serve: Serve, tmp_path: Path, size: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(size))

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start(200, (b"content-length", b"%d" % size)))
        await send({"type": "http.response.pathsend", "path": str(path)})

    server = serve(app)
    client = server.connect()
    client.send(GET)
    _, head, content = client.answer()
    assert content == path.read_bytes()
    server.until(lambda: server.cell(Cell.BYTES_SENT) == len(head) + size)


def test_every_request_falls_into_one_bucket_of_durations(serve: Serve) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(float(scope["query_string"] or 0))
        await send(start())
        await send(body(b"ok"))

    server = serve(app)
    client = server.connect()
    for _ in range(5):
        client.send(GET)
        assert client.answer()[0] == 200
    client.send(b"GET /?0.3 HTTP/1.1\r\nhost: a\r\n\r\n")
    assert client.answer()[0] == 200
    server.until(lambda: server.cell(Cell.REQUESTS) == 6)
    counts = buckets(server)
    assert sum(counts) == 6
    assert sum(counts[DURATION_BOUNDS.index(0.2) + 1 :]) >= 1
    assert server.cell(Cell.DURATION_TOTAL) >= 3e8


def test_health_checks_and_what_was_no_request_have_no_duration(serve: Serve) -> None:
    server = serve(echo)
    client = server.connect()
    client.send(b"GET /ping HTTP/1.1\r\nhost: a\r\n\r\n")
    assert client.answer()[0] == 200
    client.send(b"nonsense\r\n\r\n")
    assert client.answer()[0] == 400
    assert sum(buckets(server)) == 0
