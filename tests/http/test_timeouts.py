"""Each limit of HTTP: what the client sees when it is crossed, and that what stays within it is served."""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable

import pytest

from serve_asgi.http import timeouts
from serve_asgi.http.connection_states import ConnectionState
from serve_asgi.http.worker_context import Receive, Scope, Send
from serve_asgi.ipc.scoreboard import Cell
from tests.connection_server import Log
from tests.http.http_server import GET, HttpServer, answering, body, echo, read, respond, start

Serve = Callable[..., HttpServer]
POST = b"POST / HTTP/1.1\r\nHost: a\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rate of content is looked at often."""
    monkeypatch.setattr(timeouts, "BODY_WINDOW", 0.2)


def status_line(answer: bytes) -> bytes:
    return answer.split(b"\r\n", 1)[0]


async def never_reads(scope: Scope, receive: Receive, send: Send) -> None:
    await asyncio.sleep(0.6)
    await respond(send, b"late")


# ---- heads


def test_connection_without_a_byte_is_closed_in_silence(serve: Serve) -> None:
    server = serve(echo, first_byte_timeout=0.1, head_timeout=9)
    assert server.connect().read_to_end() == b""


def test_head_that_drips_is_refused_however_often_it_moves(serve: Serve) -> None:
    server = serve(echo, head_timeout=0.3)
    client = server.connect()
    for byte in GET[:10]:
        client.send(bytes((byte,)))
        server.wait_for(asyncio.sleep(0.02))
    assert status_line(client.read_to_end()) == b"HTTP/1.1 408 Request Timeout"


def test_header_count(serve: Serve) -> None:
    server = serve(echo, max_headers=3)
    fits = b"GET / HTTP/1.1\r\nHost: a\r\nb: c\r\nConnection: close\r\n\r\n"
    assert status_line(server.ask(fits)) == b"HTTP/1.1 200 OK"
    assert status_line(server.ask(fits.replace(b"b: c", b"b: c\r\nb: c"))).split(b" ")[1] == b"431"


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "half"])
def test_target_length(serve: Serve, whole: bool) -> None:
    server = serve(echo, max_target_size=64)
    fits = b"GET /%b HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" % (b"x" * 63)
    assert status_line(server.ask(fits)) == b"HTTP/1.1 200 OK"
    longer = fits.replace(b"/x", b"/xx")
    if not whole:
        longer = b"GET /" + b"x" * 200  # no end in sight: refused without waiting for one
    assert status_line(server.ask(longer)).split(b" ")[1] == b"414"


def test_limits_hold_for_heads_that_repeat(serve: Serve) -> None:
    """What was refused once is refused again, also beside equal header fields that were served."""
    server = serve(echo, max_target_size=64)
    fields = b" HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    for _ in range(3):
        assert status_line(server.ask(b"GET /" + fields)) == b"HTTP/1.1 200 OK"
        assert status_line(server.ask(b"GET /" + b"x" * 70 + fields)).split(b" ")[1] == b"414"


# ---- content


@pytest.mark.parametrize("expect", [b"", b"Expect: 100-continue\r\n"], ids=["sent", "expect"])
def test_announced_content_that_is_too_large_is_refused_before_the_application_is_called(
    serve: Serve, expect: bytes
) -> None:
    server = serve(echo, max_body_size=10)
    assert server.ask(POST + b"Connection: close\r\nContent-Length: 10\r\n\r\n0123456789").endswith(
        b"POST / 0123456789"
    )
    answer = server.ask(POST + expect + b"Content-Length: 11\r\n\r\n" + (b"" if expect else b"01234567890"))
    assert status_line(answer).split(b" ")[1] == b"413"
    assert b"connection: close\r\n" in answer
    assert answer.count(b"HTTP/1.1") == 1


def test_chunked_content_that_becomes_too_large_is_refused(serve: Serve) -> None:
    server = serve(echo, max_body_size=10)
    client = server.connect()
    client.send(CHUNKED + b"a\r\n0123456789\r\n0\r\n\r\n")
    assert client.answer()[2] == b"POST / 0123456789"
    client.send(CHUNKED + b"a\r\n0123456789\r\n")
    client.send(b"1\r\n0\r\n")
    assert status_line(client.read_to_end()).split(b" ")[1] == b"413"


def test_chunked_content_that_becomes_too_large_behind_the_answers_beginning_cuts_it(serve: Serve) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        await send(body(b"begun", more=True))
        while (await receive())["type"] == "http.request":
            pass

    client = serve(app, max_body_size=10).connect()
    client.send(CHUNKED)
    client.read_until(b"begun\r\n")
    client.send(b"b\r\n01234567890\r\n")
    assert client.read_to_end() == b""  # no last chunk: the client sees that it is not whole


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("head", [POST + b"Content-Length: 1000\r\n\r\n", CHUNKED], ids=["length", "chunked"])
def test_content_that_drips_is_refused(serve: Serve, head: bytes) -> None:
    server = serve(echo, min_body_rate=1000)
    client = server.connect()
    client.send(head)
    client.send(b"1\r\n")
    assert status_line(client.read_to_end()) == b"HTTP/1.1 408 Request Timeout"
    server.until(lambda: server.cell(Cell.IN_FLIGHT) == 0)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("rate", [0, 10], ids=["any", "kept"])
def test_content_that_is_slow_but_not_too_slow_is_served(serve: Serve, rate: int) -> None:
    server = serve(echo, min_body_rate=rate)
    client = server.connect()
    client.send(POST + b"Content-Length: 12\r\n\r\n")
    for _ in range(6):
        server.wait_for(asyncio.sleep(0.1))
        client.send(b"ab")
    assert client.answer()[2] == b"POST / " + b"ab" * 6


@pytest.mark.usefixtures("quick")
def test_content_that_nobody_lets_in_is_not_slow(serve: Serve) -> None:
    """Neither while the application does not take it, nor while the client waits for 100."""
    server = serve(never_reads, min_body_rate=1000)
    client = server.connect()
    client.send(POST + b"Content-Length: 300000\r\n\r\n")
    connection = server.connection()
    client.fill(b"x" * 300000, full=lambda: connection.read_paused)
    assert client.read_until(b"late")
    waiting = server.connect()
    waiting.send(POST + b"Expect: 100-continue\r\nContent-Length: 3\r\n\r\n")
    assert waiting.answer()[2] == b"late"


# ---- answers


def test_reader_that_stops_amid_a_stream_is_cut_and_the_application_hears_of_it(serve: Serve) -> None:
    ended = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        try:
            for _ in range(2000):
                await send(body(b"x" * 65536, more=True))
        finally:
            ended.set()

    server = serve(app, write_timeout=0.2)
    client = server.connect(SO_RCVBUF=4096)
    client.send(GET)
    server.wait_for(asyncio.wait_for(ended.wait(), 10))
    connection = server.connection()
    server.until(lambda: connection.state is ConnectionState.CLOSED)
    assert server.cell(Cell.IN_FLIGHT) == 0
    with pytest.raises(ConnectionResetError):
        client.read_to_end()


def test_reader_that_is_slow_is_served(serve: Serve) -> None:
    """What is measured is a standstill, not the whole time."""
    size = 4_000_000

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start(200, (b"content-length", b"%d" % size)))
        for _ in range(size // 50_000):
            await send(body(b"x" * 50_000, more=True))
        await send(body())

    server = serve(app, write_timeout=0.4)
    client = server.connect(SO_RCVBUF=65536)
    client.send(GET)
    client.read_until(b"\r\n\r\n")
    left = size
    while left:
        part = min(left, 500_000)
        client.read(part)
        left -= part
        server.wait_for(asyncio.sleep(0.15))


# ---- requests in progress


def test_more_requests_than_allowed_are_told_to_come_again(serve: Serve) -> None:
    free = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await read(receive)
        if scope["path"] == "/wait":
            await free.wait()
        await respond(send, b"done")

    server = serve(app, max_concurrency=2)
    waiting = [server.connect() for _ in range(2)]
    for client in waiting:
        client.send(GET.replace(b"/ ", b"/wait "))
    server.until(lambda: server.cell(Cell.IN_FLIGHT) == 2)
    busy = server.connect()
    for _ in range(2):  # the connection persists
        busy.send(GET)
        status, head, _ = busy.answer()
        assert (status, b"retry-after: 1\r\n" in head, b"connection: keep-alive\r\n" in head) == (503, True, True)
    busy.send(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n" + GET.replace(b"/ ", b"/ping "))
    busy.read_until(b"\r\n\r\n")
    assert busy.answer()[0] == 200  # health is still answered
    busy.send(POST + b"Content-Length: 5\r\n\r\n12345")
    assert b"connection: close\r\n" in busy.read_to_end()
    server.run(free.set)
    for client in waiting:
        assert client.answer()[0] == 200
    again = server.connect()
    again.send(GET)
    assert again.answer()[0] == 200


def test_requests_of_one_moment_are_counted_at_once(serve: Serve) -> None:
    """Also where tasks begin in the loop's next turn (before Python 3.12)."""
    free = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await free.wait()
        await respond(send, b"done")

    server = serve(app, max_concurrency=2)
    clients = [server.connect() for _ in range(6)]
    server.until(lambda: server.cell(Cell.CONNECTIONS) == 6)

    def at_once() -> None:
        for client in clients:
            client.send(GET)
        for connection in server.attached:
            assert select.select([connection.transport.get_extra_info("socket").fileno()], [], [], 10)[0]

    server.run(at_once)
    server.until(lambda: sum(connection.pipeline.requests for connection in server.attached) == 4)
    server.run(free.set)
    assert sorted(client.answer()[0] for client in clients) == [200, 200, 503, 503, 503, 503]


def test_refusal_of_a_busy_server_is_logged_as_it_was_sent(serve: Serve) -> None:
    free = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await free.wait()
        await respond(send, b"done")

    server = serve(app, max_concurrency=1)
    log = Log()
    server.run(lambda: setattr(server.worker, "access_log", log))
    first, busy = server.connect(), server.connect()
    first.send(GET)
    server.until(lambda: server.cell(Cell.IN_FLIGHT) == 1)
    busy.send(GET.replace(b"GET", b"HEAD"))
    busy.read_until(b"\r\n\r\n")
    server.until(lambda: [record[4:6] for record in log.records] == [(503, 0)])
    server.run(free.set)
    assert first.answer()[0] == 200


def test_header_injection_is_refused(serve: Serve) -> None:
    for name, value in ((b"a", b"b\r\nc: d"), (b"a", b"b\nc"), (b"a", b"b\0"), (b"a\r\nb", b"c"), (b"a: b", b"c")):
        for times in range(2):  # also when the same comes again
            answer = serve(answering(start(200, (name, value)), body())).ask(GET[:-2] + b"Connection: close\r\n\r\n")
            assert status_line(answer) == b"HTTP/1.1 500 Internal Server Error", (name, value, times)
