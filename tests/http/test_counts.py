"""What is counted of requests and connections: bytes as they were on the wire, and how long each request took."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from serve_asgi.http import response
from serve_asgi.http.worker_context import Receive, Scope, Send
from serve_asgi.ipc.scoreboard import DURATION_BOUNDS, STREAM_BOUNDS, Cell
from tests.http.http_server import GET, HttpServer, body, echo, serving, start

Serve = Callable[..., HttpServer]
POST = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n%b"


def buckets(server: HttpServer) -> list[int]:
    server.cell(Cell.DURATION_0)  # brings the row up to date
    return [server.worker.cells[Cell.DURATION_0 + number] for number in range(len(DURATION_BOUNDS) + 1)]


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
    slept = 0.0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal slept
        begun = time.perf_counter()
        await asyncio.sleep(float(scope["query_string"] or 0))
        slept += time.perf_counter() - begun
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
    assert server.cell(Cell.DURATION_TOTAL) >= slept * 1e9 - 1


@pytest.mark.parametrize("kind", ["late", "pieces", "stream", "file"])
def test_a_stream_is_not_in_the_latency_of_requests(kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whose last byte comes long after the first, however many pieces there are."""
    monkeypatch.setattr(response, "STREAM_TIME", 0.6)
    path = tmp_path / "file"
    path.write_bytes(bytes(20_000_000))

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(0.7 if kind == "late" else 0.01)
        await send(start())
        if kind == "file":
            await send({"type": "http.response.pathsend", "path": str(path)})
            return
        for _ in range(3):
            await send(body(b"x", more=True))
        await asyncio.sleep(0.7 if kind == "stream" else 0)
        await send(body(b"end"))

    with serving(app, "uvloop") as server:
        client = server.connect(SO_RCVBUF=4096)
        client.send(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        client.read_until(b"\r\n\r\n")
        if kind == "file":
            time.sleep(0.7)  # which the response then takes at least
        client.read_to_end()
        server.until(lambda: server.cell(Cell.REQUESTS) == 1)
        streams = 1 if kind in ("stream", "file") else 0
        assert sum(buckets(server)) == 1 - streams
        cells = server.worker.cells
        assert sum(cells[Cell.STREAM_FIRST_0 : Cell.STREAM_FIRST_0 + len(DURATION_BOUNDS) + 1]) == streams
        assert sum(cells[Cell.STREAM_TIME_0 : Cell.STREAM_TIME_0 + len(STREAM_BOUNDS) + 1]) == streams
        assert bool(streams) is (cells[Cell.STREAM_FIRST_TOTAL] < cells[Cell.STREAM_TIME_TOTAL])


def test_health_checks_and_what_was_no_request_have_no_duration(serve: Serve) -> None:
    server = serve(echo)
    client = server.connect()
    client.send(b"GET /ping HTTP/1.1\r\nhost: a\r\n\r\n")
    assert client.answer()[0] == 200
    client.send(b"nonsense\r\n\r\n")
    assert client.answer()[0] == 400
    assert sum(buckets(server)) == 0


async def varied(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers each path in a way of its own, after all of the request; echoes WebSocket messages."""
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "bytes": message["bytes"]})
        return
    while (await receive()).get("more_body"):
        pass
    if scope["path"] == "/stream":
        await send(start())
        for size in (1, 500, 40_000):
            await send(body(b"x" * size, more=True))
        await send(body(b""))
    else:
        await send(start())
        await send(body(b"ok"))


def test_bytes_of_everything_on_one_connection(serve: Serve) -> None:
    server = serve(varied)
    pieces = [
        GET * 3,
        b"HEAD / HTTP/1.1\r\nhost: a\r\n\r\n" + GET[:9],
        GET[9:] + b"GET /stream HTTP/1.1\r\nhost: a\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\n",
        b"abcGET /ping HTTP/1.1\r\nhost: a\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        b"nonsense\r\n\r\n",
    ]
    received = server.ask(*pieces)
    assert server.cell(Cell.BYTES_SENT) == len(received)
    assert server.cell(Cell.BYTES_RECEIVED) == sum(map(len, pieces))
    assert server.cell(Cell.REQUESTS) == 9  # health checks are none
    assert (server.cell(Cell.STATUS_2XX), server.cell(Cell.STATUS_4XX)) == (8, 1)
    assert sum(buckets(server)) == 8


def test_what_comes_with_the_handshake_of_a_websocket_counts_once(serve: Serve) -> None:
    server = serve(varied)
    client = server.connect()
    request = (
        b"GET / HTTP/1.1\r\nhost: a\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
        b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    ) + b"\x82\x83\0\0\0\0abc"
    client.send(request)
    received = client.read_until(b"\x82\x03abc")
    assert server.cell(Cell.BYTES_RECEIVED) == len(request)
    assert server.cell(Cell.BYTES_SENT) == len(received)
    assert (server.cell(Cell.REQUESTS), server.cell(Cell.STATUS_1XX), server.cell(Cell.WEBSOCKETS)) == (1, 1, 1)
    assert server.cell(Cell.IN_FLIGHT) == 0
    client.close()
    server.until(lambda: server.cell(Cell.WEBSOCKETS) == server.cell(Cell.CONNECTIONS) == 0)
