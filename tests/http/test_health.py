"""The health endpoint on a connection, and what is refused without a body."""

from __future__ import annotations

import dataclasses

import pytest

from serve_asgi.http.worker_context import Receive, Scope, Send
from serve_asgi.ipc.scoreboard import Cell
from tests.connection_server import Log
from tests.http.held_application import Serve, get
from tests.http.http_server import CLOSED, DEFAULT_HEADERS, echo, respond


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /ping HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /ping?x=y HTTP/1.1\r\nHost: a\r\n\r\n",
        b"HEAD /ping HTTP/1.1\r\nHost: a\r\n\r\n",
        b"OPTIONS /ping HTTP/1.0\r\n\r\n",
        b"GET /ping HTTP/1.0\r\n\r\n",
    ],
)
def test_health(serve: Serve, request_: bytes) -> None:
    called: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        called.append(scope["method"])
        await respond(send, b"app")

    server = serve(app)
    log = Log()
    server.worker.access_log = log  # type: ignore[assignment]

    def ask(request: bytes) -> tuple[bytes, bytes]:
        client = server.connect()
        client.send(request)
        client.end()
        head, _, content = client.read_to_end().partition(b"\r\n\r\n")
        return head, content

    bodiless = request_.startswith(b"HEAD")
    head, content = ask(request_)
    assert head.startswith(b"HTTP/1.1 200 OK\r\n" + DEFAULT_HEADERS)
    assert b"\r\ncontent-type: application/json\r\n" in head
    assert content == (b"" if bodiless else b'{"status":"ok"}\n')
    assert (CLOSED in head + b"\r\n") == (b"1.0" in request_)

    server.scoreboard.draining_since = 1
    head, content = ask(request_)
    assert head.startswith(b"HTTP/1.1 503 ")
    assert b"content-length: 22" in head
    assert content == (b"" if bodiless else b'{"status":"draining"}\n')
    for live in (b"/ping?live", b"/ping?a=b&live=1"):
        head, _ = ask(request_.replace(b"/ping?x=y", b"/ping").replace(b"/ping", live))
        assert head.startswith(b"HTTP/1.1 200 ")

    server.scoreboard.draining_since = 0
    server.scoreboard.agent_missing = True
    assert ask(request_)[0].startswith(b"HTTP/1.1 200 ")
    server.worker.config = dataclasses.replace(server.worker.config, agent_required=True)
    head, content = ask(request_)
    assert head.startswith(b"HTTP/1.1 503 ")
    assert content == (b"" if bodiless else b'{"status":"agent missing"}\n')

    assert called == []
    assert log.records == []
    assert [server.cell(c) for c in (Cell.REQUESTS, Cell.STATUS_2XX, Cell.STATUS_5XX, Cell.IN_FLIGHT)] == [0, 0, 0, 0]
    assert ask(request_.replace(request_.split()[0], b"POST"))[1] == b"app"


def test_health_options(serve: Serve) -> None:
    server = serve(echo, health_path="/up", drain_status=500)
    client = server.connect()
    client.send(get(b"/ping") + get(b"/up") + get(b"/up/"))
    assert client.answer()[2] == b"GET /ping "
    assert client.answer()[2] == b'{"status":"ok"}\n'
    assert client.answer()[2] == b"GET /up/ "
    server.scoreboard.draining_since = 1
    client.send(get(b"/up"))
    assert client.answer()[0] == 500
    off = serve(echo, health=False).connect()
    off.send(get(b"/ping"))
    assert off.answer()[2] == b"GET /ping "


def test_health_request_with_content_closes(serve: Serve) -> None:
    answer = serve(echo).ask(b"GET /ping HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello")
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert CLOSED in answer


def test_refused_head_request_has_no_content(serve: Serve) -> None:
    answer = serve(echo).ask(b"HEAD / HTTP/1.1\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.endswith(b"\r\n\r\n")
