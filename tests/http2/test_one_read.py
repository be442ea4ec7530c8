"""What one read of the socket brings: many requests, each whole, whose responses go out together and leave nothing."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from typing import Any, cast

from serve_asgi.http.worker_context import Message, Receive, Scope, Send
from serve_asgi.http2.exchange import Exchange
from tests.http.h2.peer import POST
from tests.http.http_server import echo, respond
from tests.http2.frame_client import data
from tests.http2.http2_server import Http2Client, Http2Server

Serve = Callable[..., Http2Server]
MANY = 16


def posts(client: Http2Client, count: int = MANY) -> list[int]:
    """So many requests with a body: all heads, then all bodies, as nghttp2 sends them; in one write."""
    begun = [client.head(POST, False, b"/p") for _ in range(count)]
    client.send(*(head for _, head in begun), *(data(stream_id, b"content", True) for stream_id, _ in begun))
    return [stream_id for stream_id, _ in begun]


def test_the_application_finds_the_body_that_came_with_its_request(serve2: Serve) -> None:
    received: list[Message] = []
    waits: list[object] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        receiving = receive().__await__()
        try:
            waits.append(next(receiving))
        except StopIteration as ended:
            received.append(ended.value)
        await respond(send, b"")

    server = serve2(app)
    client = server.client()
    for stream_id in posts(client):
        assert client.wait(stream_id).status == 200
    assert received == [{"type": "http.request", "body": b"content", "more_body": False}] * MANY
    assert not waits


def test_requests_of_one_read_count_for_max_concurrency_before_they_begin(serve2: Serve) -> None:
    server = serve2(echo, max_concurrency=2)
    client = server.client()
    statuses = [client.wait(stream_id).status for stream_id in posts(client, 4)]
    assert statuses == [200, 200, 503, 503]


class NotingTransport:
    """Counts what goes through it to `transport`."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self.writes = 0

    def write(self, data: bytes) -> None:
        self.writes += 1
        self.transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.transport, name)


def test_their_responses_go_out_in_one_write(serve2: Serve) -> None:
    server = serve2(echo)
    client = server.client()
    client.sync()
    output = server.connections[-1].output
    noting = NotingTransport(output.transport)
    output.transport = cast(asyncio.Transport, noting)
    for stream_id in posts(client):
        client.wait(stream_id)
    assert noting.writes == 1


def exchanges() -> int:
    """How many there are in this process."""
    return sum(type(kept) is Exchange for kept in gc.get_objects())


def test_a_request_that_is_over_leaves_nothing_for_the_garbage_collector(serve2: Serve) -> None:
    server = serve2(echo)
    client = server.client()
    gc.collect()
    before = exchanges()
    gc.disable()
    try:
        for stream_id in (*posts(client), *(client.get(b"/g") for _ in range(MANY))):
            client.wait(stream_id)
        client.sync()
        assert exchanges() == before
    finally:
        gc.enable()
