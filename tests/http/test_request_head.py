"""Requests as they arrive: heads in any pieces, targets, pipelining, refusals, limits."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serve_asgi.http.worker_context import Receive, Scope, Send
from serve_asgi.ipc.scoreboard import Cell
from tests.connection_server import Log
from tests.http.http_server import CLOSED, GET, HttpServer, echo, respond, response

Serve = Callable[..., HttpServer]


def keep(scopes: list[Scope]) -> Any:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scopes.append(scope)
        await respond(send, b"ok")

    return app


def test_scope(serve: Serve) -> None:
    scopes: list[Scope] = []
    server = serve(keep(scopes))
    server.worker.state["a"] = 1
    server.worker.generation, server.worker.slot = 7, 3
    client = server.connect()
    client.send(b"GET /a%20b/%C3%A9?c=%20d&e HTTP/1.1\r\nHost: h:1\r\nX-A:  1 \t\r\nX-a: 2\r\nX-B:\r\n\r\n")
    assert client.answer()[2] == b"ok"
    scope = scopes[0]
    assert scope == {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": scope["asgi"]["spec_version"]},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": "/a b/é",
        "raw_path": b"/a%20b/%C3%A9",
        "query_string": b"c=%20d&e",
        "root_path": "",
        "headers": [(b"host", b"h:1"), (b"x-a", b"1"), (b"x-a", b"2"), (b"x-b", b"")],
        "client": client.sock.getsockname(),
        "server": client.sock.getpeername(),
        "state": {"a": 1},
        "extensions": {
            "http.response.pathsend": {},
            "http.response.zerocopysend": {},
            "serve": {"generation": 7, "slot": 3, "connection": 1},
            "serve.survive": {},
        },
    }
    scope["state"]["b"] = {}
    assert server.worker.state == {"a": 1}


def test_scope_on_a_unix_socket(serve: Serve, tmp_path: Path) -> None:
    scopes: list[Scope] = []
    server = serve(keep(scopes), unix=tmp_path / "s")
    client = server.connect()
    client.send(GET)
    client.answer()
    assert scopes[0]["client"] is None
    assert scopes[0]["server"] == (str(tmp_path / "s"), None)


@pytest.mark.parametrize(
    ("target", "path", "raw_path"),
    [(b"/b", "/m/b", b"/m/b"), (b"/m/b", "/m/b", b"/m/b"), (b"/m", "/m", b"/m"), (b"/mm", "/m/mm", b"/m/mm")],
)
def test_root_path_is_part_of_the_path(serve: Serve, target: bytes, path: str, raw_path: bytes) -> None:
    scopes: list[Scope] = []
    server = serve(keep(scopes), root_path="/m")
    client = server.connect()
    client.send(GET.replace(b"/", target, 1))
    client.answer()
    assert (scopes[0]["root_path"], scopes[0]["path"], scopes[0]["raw_path"]) == ("/m", path, raw_path)


@pytest.mark.parametrize(
    ("line", "host", "path", "query"),
    [
        (b"GET http://other:1/x?y HTTP/1.1", b"other:1", "/x", b"y"),
        (b"GET HTTP://other HTTP/1.1", b"other", "/", b""),
        (b"GET https://other?q HTTP/1.1", b"other", "/", b"q"),
        (b"OPTIONS * HTTP/1.1", b"a", "*", b""),
        (b"GET //x/y HTTP/1.1", b"a", "//x/y", b""),
        (b"GET /?? HTTP/1.1", b"a", "/", b"?"),
    ],
)
def test_forms_of_the_target(serve: Serve, line: bytes, host: bytes, path: str, query: bytes) -> None:
    scopes: list[Scope] = []
    server = serve(keep(scopes))
    client = server.connect()
    client.send(line + b"\r\nHost: a\r\n\r\n")
    assert client.answer()[0] == 200
    scope = scopes[0]
    assert scope["headers"] == [(b"host", host)]
    assert (scope["path"], scope["query_string"]) == (path, query)


def test_head_split_at_every_byte(serve: Serve) -> None:
    server = serve(echo)
    request = b"POST /x?y=1 HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nX: \xff\r\n\r\nbody"
    client = server.connect()
    for split in range(1, len(request)):
        client.send(request[:split])
        server.run(lambda: None)  # the first part has very likely been read by then
        client.send(request[split:])
        assert client.read(len(response(b"POST /x body"))) == response(b"POST /x body")
    connection = server.connection()
    server.until(lambda: connection.pipeline.requests == len(request) - 1)


def test_head_byte_by_byte(serve: Serve) -> None:
    server = serve(echo)
    client = server.connect()
    request = b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    for byte in request + b"2\r\nab\r\n3;x=y\r\n\r\n\r\r\n0\r\nT: t\r\n\r\n":
        client.send(bytes((byte,)))
        server.run(lambda: None)
    assert client.answer()[2] == b"POST /x ab\r\n\r"


def test_pipelined_requests_are_answered_in_order_one_at_a_time(serve: Serve) -> None:
    running = most = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await respond(send, scope["path"].encode() + await _content(receive))
        running -= 1

    server = serve(app)
    client = server.connect()
    requests = [b"POST /%d HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n%d" % (i, i % 10) for i in range(400)]
    client.send(b"".join(requests))
    for i in range(400):
        assert client.answer()[2] == b"/%d%d" % (i, i % 10)
    assert most == 1
    server.until(lambda: server.cell(Cell.REQUESTS) == 400)
    assert client.silent()


async def _content(receive: Receive) -> bytes:
    return bytes((await receive())["body"])


def test_pipelined_behind_a_chunked_request(serve: Serve) -> None:
    server = serve(echo)
    client = server.connect()
    chunked = b"POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n6\r\n\r\n\r\nab\r\n0\r\n\r\n"
    client.send(chunked + GET + chunked + GET[:10])
    assert client.answer()[2] == b"POST /c \r\n\r\nab"
    assert client.answer()[2] == b"GET / "
    assert client.answer()[2] == b"POST /c \r\n\r\nab"
    client.send(GET[10:])
    assert client.answer()[2] == b"GET / "


def test_much_pipelining_pauses_reading_and_loses_nothing(serve: Serve) -> None:
    release: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/first":
            waiting = asyncio.get_running_loop().create_future()
            release.append(waiting)
            await waiting
        await respond(send, scope["path"].encode())

    server = serve(app)
    client = server.connect(SO_SNDBUF=65536)
    client.send(GET.replace(b"/", b"/first", 1))
    server.until(lambda: bool(release))
    requests = [GET.replace(b"/", b"/%d" % i, 1) for i in range(20_000)]
    connection = server.connection()
    data = b"".join(requests)
    sent = client.fill(data, lambda: not connection.transport.is_reading())
    assert sent < len(data)
    assert len(connection.pipeline.buffer) < 65536 + 256 * 1024 + 1
    server.run(lambda: release[0].set_result(None))
    rest = threading.Thread(target=client.send, args=(data[sent:],))
    rest.start()
    assert client.answer()[2] == b"/first"
    for i in range(len(requests)):
        assert client.answer()[2] == b"/%d" % i
    rest.join()


def test_empty_lines_before_a_request_are_skipped(serve: Serve) -> None:
    server = serve(echo)
    client = server.connect()
    client.send(b"\r\n" + GET)
    assert client.answer()[0] == 200
    client.send(b"\r")
    server.run(lambda: None)
    client.send(b"\n\r\n" + GET + b"\r\n")
    assert client.answer()[0] == 200
    client.send(GET)
    assert client.answer()[0] == 200


REFUSED = [
    (b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    (b"GET /  HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    (b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n", 400),
    (b"GET /\r\n", 400),
    (b"GET\r\n", 400),
    (b"GET / http/1.1\r\nHost: a\r\n\r\n", 400),
    (b"GET /\x80 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    (b"GET /#x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    (b"GET x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    (b"GET * HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    (b"GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    (b"GET http://u@a/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    (b"GET http:///x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", 501),
    (b"CONNECT /x HTTP/1.1\r\nHost: a\r\n\r\n", None),
    (b"FOO / HTTP/1.1\r\nHost: a\r\n\r\n", 501),
    (b"get / HTTP/1.1\r\nHost: a\r\n\r\n", 501),
    (b"SETUP / HTTP/1.1\r\nHost: a\r\n\r\n", 501),
    (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
    (b"GET / HTTP/0.9\r\nHost: a\r\n\r\n", 505),
    (b"GET / HTTP/1.1\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
    (b"GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", 400),
    (b"GET / HTTP/1.1\nHost: a\n\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a\n\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a\r\nX: a\x00b\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a\r\nX: a\x01b\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a\r\nX : a\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a\r\n: a\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\n X: a\r\nHost: a\r\n\r\n", 400),
    (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
    (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n", 400),
    (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n", 400),
    (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\n", 400),
    (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n", 400),
    (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", 400),
    (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x1\r\n\r\n", 400),
    (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n", 400),
    (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a,b\r\n\r\n", 400),
    (b"GET http://a,b/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", 400),
    (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501),
    (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n", 400),
    (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n", 400),
    (b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
    (b"\x00", 400),
    (b" GET / HTTP/1.1\r\n", 400),
    (b"SSH-2.0-OpenSSH_9.9\r\n", 400),
]


@pytest.mark.parametrize(("data", "status"), REFUSED)
def test_refused(serve: Serve, data: bytes, status: int | None) -> None:
    called: list[Scope] = []
    server = serve(keep(called))
    answer = server.ask(data)
    assert answer.startswith(b"HTTP/1.1 %d " % status if status else b"HTTP/1.1 ")
    head, _, text = answer.partition(b"\r\n\r\n")
    assert head.endswith(b"\r\nconnection: close")
    assert text.endswith(b".\n")
    assert called == []
    assert server.cell(Cell.REQUESTS) == 1
    assert server.cell(Cell.STATUS_4XX) + server.cell(Cell.STATUS_5XX) == 1


@pytest.mark.parametrize(("before", "http2"), [(b"", "off"), (GET, "on")])
def test_the_preface_of_http2_is_refused_where_it_has_no_place(serve: Serve, before: bytes, http2: str) -> None:
    answers = serve(echo, http2=http2).ask(before + b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    assert answers[len(response(b"GET / ")) if before else 0 :].startswith(b"HTTP/1.1 505 ")


def test_refused_behind_a_good_request(serve: Serve) -> None:
    answers = serve(echo).ask(GET + b"GET / HTTP/1.1\r\n\r\n" + GET)
    assert answers.startswith(response(b"GET / "))
    assert answers[len(response(b"GET / ")) :].startswith(b"HTTP/1.1 400 ")
    assert answers.count(b"content-length: ") == 2


def test_head_too_large(serve: Serve) -> None:
    server = serve(echo, max_head_size=2048)
    fits = b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 2016 + b"\r\n\r\n"
    assert len(fits) == 2048
    client = server.connect()
    client.send(fits)
    assert client.answer()[0] == 200
    for data in (fits[:-4] + b"xxx\r\n\r\n", fits[:-4] + b"x" * 5000, b"GET /" + b"x" * 3000):
        assert server.ask(data).startswith(b"HTTP/1.1 431 ")


def test_large_head_does_not_become_quadratic(serve: Serve) -> None:
    server = serve(echo)
    client = server.connect()
    head = GET[:-2] + b"X: " + b"y" * 60_000 + b"\r\n\r\n"
    for i in range(0, len(head), 100):
        client.send(head[i : i + 100])
    assert client.answer()[0] == 200


def test_half_a_head_is_answered_with_408(serve: Serve) -> None:
    server = serve(echo, head_timeout=0.2)
    client = server.connect()
    client.send(GET + GET[:7])
    assert client.answer()[0] == 200
    connection = server.connection()
    server.until(lambda: len(connection.pipeline.buffer) == 7)
    deadline = connection.deadline
    client.send(GET[7:9])  # the clock runs from the first byte
    server.run(lambda: None)
    assert connection.deadline in (deadline, server.run(lambda: connection.deadline))
    assert client.read_to_end().startswith(b"HTTP/1.1 408 ")


def test_other_upgrades_are_ignored(serve: Serve) -> None:
    client = serve(echo).connect()
    for request in (
        GET[:-2] + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMA\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 1\r\n\r\nx",
        GET[:-2] + b"Upgrade: websocket\r\n\r\n",
    ):
        client.send(request)
        assert client.answer()[0] == 200
    client.send(GET)
    assert client.answer()[0] == 200


def test_access_log(serve: Serve) -> None:
    server = serve(echo)
    log = Log()
    server.worker.access_log = log  # type: ignore[assignment]
    client = server.connect()
    client.send(b"POST /x?y HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nUser-Agent: u\r\n\r\nab")
    client.answer()
    client.send(b"GET /ping HTTP/1.1\r\nHost: a\r\n\r\n")
    client.answer()
    client.send(b"nonsense\r\n\r\n")
    assert client.read_to_end().endswith(b".\n")
    first, second = log.records
    seconds = first[6]
    headers = [(b"host", b"a"), (b"content-length", b"2"), (b"user-agent", b"u")]
    assert first == (client_address(first), "POST", "/x?y", "1.1", 200, 10, seconds, headers)
    assert 0 <= seconds < 10
    assert second[1:6] == ("-", "-", "1.1", 400, len("The request line is malformed.\n"))


def client_address(record: tuple[Any, ...]) -> tuple[str, int]:
    host, port = record[0]
    assert host == "127.0.0.1"
    return host, port


def test_refusal_closes_without_destroying_the_answer(serve: Serve) -> None:
    server = serve(echo)
    client = server.connect()
    client.send(b"GET / HTTP/1.1\r\n\r\n" + b"x" * 200_000)
    answer = client.read_to_end()  # a reset would raise here
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert CLOSED in answer
