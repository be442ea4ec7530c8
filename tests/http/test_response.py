"""Responses: framing, what the application may send and what it may not, and how it ends badly."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Any

import pytest

from serve_asgi.http.worker_context import ASGIApplication, Message, Receive, Scope, Send
from serve_asgi.ipc.scoreboard import Cell
from tests.http.http_server import (
    CLOSED,
    DEFAULT_HEADERS,
    GET,
    KEPT,
    HttpServer,
    answering,
    body,
    respond,
    response,
    start,
)

Serve = Callable[..., HttpServer]
HEAD = GET.replace(b"GET", b"HEAD")
GET_1_0 = b"GET / HTTP/1.0\r\n\r\n"
PLAIN = b"content-type: text/plain; charset=utf-8\r\n"
ERROR = response(b"Internal Server Error", status=b"500 Internal Server Error", fields=PLAIN)


def head(framing: bytes, connection: bytes = KEPT, status: bytes = b"200 OK", fields: bytes = b"") -> bytes:
    return b"HTTP/1.1 " + status + b"\r\n" + fields + DEFAULT_HEADERS + connection + framing + b"\r\n"


def exactly(server: HttpServer, request: bytes, expected: bytes) -> None:
    """The answer is `expected` and the connection goes on."""
    client = server.connect()
    client.send(request)
    assert client.read(len(expected)) == expected
    client.send(b"GET /ping HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert client.read_to_end().startswith(b"HTTP/1.1 200 OK\r\n" + DEFAULT_HEADERS + b"content-type: application/json")


FRAMED: list[tuple[list[Message], bytes, bytes]] = [
    ([start(), body(b"hello")], GET, head(b"content-length: 5\r\n") + b"hello"),
    ([start(), body()], GET, head(b"content-length: 0\r\n")),
    ([start(HTTPStatus.CREATED), body()], GET, head(b"content-length: 0\r\n", status=b"201 Created")),
    ([start(599), body()], GET, head(b"content-length: 0\r\n", status=b"599 ")),
    (
        [start(200, (b"X-A", b"1"), (b"x-a", b"2")), body()],
        GET,
        head(b"content-length: 0\r\n", fields=b"x-a: 1\r\nx-a: 2\r\n"),
    ),
    (
        [start(200, (b"content-length", b"5")), body(b"hello")],
        GET,
        head(b"", fields=b"content-length: 5\r\n") + b"hello",
    ),
    (
        [start(200, (b"content-length", b"5")), body(b"he", more=True), body(b"", more=True), body(b"llo")],
        GET,
        head(b"", fields=b"content-length: 5\r\n") + b"hello",
    ),
    (
        [start(), body(b"hello", more=True), body(b"", more=True), body(b"w" * 17)],
        GET,
        head(b"transfer-encoding: chunked\r\n") + b"5\r\nhello\r\n11\r\n" + b"w" * 17 + b"\r\n0\r\n\r\n",
    ),
    ([start(), body(b"", more=True), body()], GET, head(b"transfer-encoding: chunked\r\n") + b"0\r\n\r\n"),
    (
        [start(200, (b"transfer-encoding", b"chunked")), body(b"a")],
        GET,
        head(b"transfer-encoding: chunked\r\n") + b"1\r\na\r\n0\r\n\r\n",
    ),
    *(
        ([start(200, *fields), body(b"a")], GET, head(b"transfer-encoding: chunked\r\n") + b"1\r\na\r\n0\r\n\r\n")
        for fields in (
            [(b"content-length", b"1"), (b"transfer-encoding", b"chunked")],
            [(b"Transfer-Encoding", b" Chunked"), (b"content-length", b"7"), (b"Content-Length", b"7")],
        )
    ),
    (
        [start(200, (b"transfer-encoding", b"identity"), (b"content-length", b" 1 ")), body(b"a")],
        GET,
        head(b"", fields=b"content-length: 1\r\n") + b"a",
    ),
    (
        [
            start(
                200,
                (bytearray(b"X-A"), memoryview(b"1")),  # type: ignore[arg-type]
                (bytearray(b"Content-Length"), bytearray(b"1")),  # type: ignore[arg-type]
                (b"connection", memoryview(b"x")),  # type: ignore[arg-type]
            ),
            body(b"a"),
        ],
        GET,
        head(b"", fields=b"x-a: 1\r\ncontent-length: 1\r\nconnection: x\r\n") + b"a",
    ),
    ([start(), body(b"hello")], HEAD, head(b"content-length: 5\r\n")),
    ([start(), body()], HEAD, head(b"")),
    ([start(), body(b"a", more=True), body(b"b")], HEAD, head(b"")),
    ([start(200, (b"content-length", b"9")), body()], HEAD, head(b"", fields=b"content-length: 9\r\n")),
    ([start(200, (b"content-length", b"9")), body(b"x")], HEAD, head(b"", fields=b"content-length: 9\r\n")),
    ([start(204), body()], GET, head(b"", status=b"204 No Content")),
    ([start(204, (b"content-length", b"0")), body()], GET, head(b"", status=b"204 No Content")),
    ([start(205), body()], GET, head(b"content-length: 0\r\n", status=b"205 Reset Content")),
    (
        [start(304, (b"content-length", b"7")), body()],
        GET,
        head(b"", status=b"304 Not Modified", fields=b"content-length: 7\r\n"),
    ),
    ([start(304), body(b"", more=True), body()], GET, head(b"", status=b"304 Not Modified")),
    ([start(), body(b"x" * 100_000)], GET, head(b"content-length: 100000\r\n") + b"x" * 100_000),
    (
        [start(200, (b"connection", b"keep-alive"), (b"keep-alive", b"timeout=5")), body()],
        GET,
        head(b"content-length: 0\r\n"),
    ),
    (
        [start(426, (b"upgrade", b"x"), (b"connection", b"Upgrade")), body()],
        GET,
        head(b"content-length: 0\r\n", status=b"426 Upgrade Required", fields=b"upgrade: x\r\nconnection: upgrade\r\n"),
    ),
    (
        [start(), {"type": "http.response.body", "body": memoryview(b"mem")}],
        GET,
        head(b"content-length: 3\r\n") + b"mem",
    ),
    (
        [start(), {"type": "http.response.body", "body": bytearray(b"arr")}],
        GET,
        head(b"content-length: 3\r\n") + b"arr",
    ),
    (
        [{"type": "http.response.start", "status": 200, "headers": None}, {"type": "http.response.body", "body": None}],
        GET,
        head(b"content-length: 0\r\n"),
    ),
    (
        [{"type": "http.response.start", "status": 200}, {"type": "http.response.body"}],
        GET,
        head(b"content-length: 0\r\n"),
    ),
    ([start(200, [b"x-list", b"1"]), body()], GET, head(b"content-length: 0\r\n", fields=b"x-list: 1\r\n")),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("messages", "request_", "expected"), FRAMED)
def test_framing(serve: Serve, messages: list[Message], request_: bytes, expected: bytes) -> None:
    exactly(serve(answering(*messages)), request_, expected)


ENDING: list[tuple[list[Message], bytes, bytes]] = [
    ([start(), body(b"hi")], GET_1_0, head(b"content-length: 2\r\n", CLOSED) + b"hi"),
    ([start(), body(b"hi", more=True), body(b"!")], GET_1_0, head(b"", CLOSED) + b"hi!"),
    (
        [start(200, (b"transfer-encoding", b"chunked")), body(b"hi")],
        GET_1_0,
        head(b"content-length: 2\r\n", CLOSED) + b"hi",
    ),
    (
        [start(), body(b"hi", more=True), body(b"!")],
        GET_1_0.replace(b"\r\n\r\n", b"\r\nConnection: keep-alive\r\n\r\n"),
        head(b"", CLOSED) + b"hi!",
    ),
    ([start(), body()], GET[:-2] + b"Connection: x, Close\r\n\r\n", head(b"content-length: 0\r\n", CLOSED)),
    ([start(200, (b"connection", b"close")), body()], GET, head(b"content-length: 0\r\n", CLOSED)),
    ([start(200, (b"Connection", b"keep-alive, Close")), body()], GET, head(b"content-length: 0\r\n", CLOSED)),
]


@pytest.mark.parametrize(("messages", "request_", "expected"), ENDING)
def test_framing_and_end(serve: Serve, messages: list[Message], request_: bytes, expected: bytes) -> None:
    assert serve(answering(*messages)).ask(request_) == expected


def test_http_1_0_keep_alive(serve: Serve) -> None:
    client = serve(answering(start(), body(b"hi"))).connect()
    for _ in range(2):
        client.send(b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n")
        expected = response(b"hi")
        assert client.read(len(expected)) == expected


def test_length_given_twice_is_sent_once(serve: Serve) -> None:
    """RFC 9110 8.6; parsers of clients refuse two."""
    server = serve(answering(start(200, (b"content-length", b"1"), (b"Content-Length", b"1")), body(b"x")))
    client = server.connect()
    client.send(GET)
    assert client.answer()[1].count(b"content-length: 1\r\n") == 1


class Field:
    """A pair that can be hashed and changed."""

    def __init__(self, value: bytes) -> None:
        self.value = value

    def __iter__(self) -> Iterator[bytes]:
        return iter((b"x-field", self.value))


@pytest.mark.parametrize(
    "pair", [Field, lambda value: (b"x-field", value), lambda value: [b"x-field", value]], ids=["own", "tuple", "list"]
)
@pytest.mark.parametrize("lazy", [False, True])
def test_fields_that_change_are_sent_as_they_are(serve: Serve, pair: Callable[[bytes], Any], lazy: bool) -> None:
    """No memory of earlier responses is asked about what is not the same for ever."""
    field = pair(b"1")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal field
        if isinstance(field, Field):
            field.value = scope["query_string"]
        else:
            field = pair(scope["query_string"])
        headers = (each for each in [field]) if lazy else [field]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send(body(b"x"))

    client = serve(app).connect()
    for value in (b"1", b"2", b"2", b"1"):
        client.send(GET.replace(b"/ ", b"/?%b " % value))
        assert b"\r\nx-field: %b\r\n" % value in client.answer()[1]


def test_error_amid_the_fields_is_an_error(serve: Serve) -> None:
    def fields() -> Iterator[tuple[bytes, bytes]]:
        yield b"x-first", b"1"
        raise TypeError("wrong")

    server = serve(answering({"type": "http.response.start", "status": 200, "headers": fields()}, body(b"x")))
    client = server.connect()
    client.send(GET)
    assert client.answer()[0] == 500


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ([(b"date", b"x")], b"date: x\r\nserver: serve\r\n"),
        ([(b"Server", b"x")], b"server: x\r\ndate: Sun, 22 Nov 2026 04:29:00 GMT\r\n"),
        ([(b"server", b"x"), (b"date", b"y")], b"server: x\r\ndate: y\r\n"),
    ],
)
def test_own_date_and_server(serve: Serve, fields: list[tuple[bytes, bytes]], expected: bytes) -> None:
    client = serve(answering(start(200, *fields), body())).connect()
    client.send(GET)
    assert client.answer()[1] == b"HTTP/1.1 200 OK\r\n" + expected + KEPT + b"content-length: 0\r\n\r\n"


# ---- trailers

TE = GET[:-2] + b"TE: trailers\r\n\r\n"


def trailers(*headers: tuple[bytes, bytes], more: bool = False) -> Message:
    return {"type": "http.response.trailers", "headers": list(headers), "more_trailers": more}


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (TE, head(b"transfer-encoding: chunked\r\n") + b"2\r\nab\r\n0\r\nx: 1\r\ny: 2\r\n\r\n"),
        (GET, head(b"transfer-encoding: chunked\r\n") + b"2\r\nab\r\n0\r\n\r\n"),
        (TE.replace(b"GET", b"HEAD"), head(b"content-length: 2\r\n")),
    ],
)
def test_trailers(serve: Serve, request_: bytes, expected: bytes) -> None:
    messages = [start(trailers=True), body(b"ab"), trailers((b"X", b"1"), more=True), trailers((b"y", b"2"))]
    exactly(serve(answering(*messages)), request_, expected)


def test_trailers_are_offered_to_clients_that_take_them(serve: Serve) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, b"%d" % ("http.response.trailers" in scope["extensions"]))

    client = serve(app).connect()
    for request, expected in ((TE, b"1"), (GET, b"0"), (TE.replace(b"1.1", b"1.0"), b"0")):
        client.send(request)
        assert client.answer()[2] == expected


def test_missing_trailers_cut_the_answer(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    server = serve(answering(start(trailers=True), body(b"ab")))
    assert server.ask(TE) == head(b"transfer-encoding: chunked\r\n") + b"2\r\nab\r\n"
    assert "without completing" in caplog.text


# ---- wrong use of send

WRONG: list[tuple[list[Message], type[Exception], str]] = [
    ([{"type": "nonsense"}], RuntimeError, "http.response.start"),
    ([body()], RuntimeError, "http.response.start"),
    ([{"type": "http.response.start"}], RuntimeError, "no status"),
    ([start(100)], ValueError, "status"),
    ([start(101)], ValueError, "status"),
    ([start(99)], ValueError, "status"),
    ([start(600)], ValueError, "status"),
    ([{"type": "http.response.start", "status": "200"}], ValueError, "status"),
    ([start(200, (b"x", b"a\r\nb: c"))], ValueError, "CR, LF"),
    ([start(200, (b"x", b"a\nb"))], ValueError, "CR, LF"),
    ([start(200, (b"x", b"a\rb"))], ValueError, "CR, LF"),
    ([start(200, (b"x", b"a\0b"))], ValueError, "NUL"),
    ([start(200, (b"date", b"a\nb"))], ValueError, "CR, LF"),
    ([start(200, (b"connection", b"x\r\ny: z"))], ValueError, "CR, LF"),
    ([start(200, (b"x\r\ny", b"a"))], ValueError, "name"),
    ([start(200, (b"x y", b"a"))], ValueError, "name"),
    ([start(200, (b"", b"a"))], ValueError, "name"),
    ([start(200, (b"x:", b"a"))], ValueError, "name"),
    ([start(200, ("x", b"a"))], TypeError, "bytes"),  # type: ignore[arg-type]
    ([start(200, (b"x", "a"))], TypeError, "bytes"),  # type: ignore[arg-type]
    ([start(200, (b"connection", "a"))], TypeError, "bytes"),  # type: ignore[arg-type]
    ([start(200, (b"content-length", b"x"))], ValueError, "Content-Length"),
    ([start(200, (b"content-length", b"-1"))], ValueError, "Content-Length"),
    ([start(200, (b"content-length", b"9223372036854775808"))], ValueError, "Content-Length"),
    ([start(200, (b"content-length", b"1"), (b"content-length", b"2"))], ValueError, "Content-Length"),
    ([start(200, (b"transfer-encoding", b"gzip"))], ValueError, "chunked"),
    ([start(), start()], RuntimeError, "http.response.body"),
    ([start(), {"type": "http.response.body", "body": "text"}], TypeError, "bytes"),
    ([start(200, (b"content-length", b"1")), body(b"ab")], RuntimeError, "longer"),
    ([start(200, (b"content-length", b"3")), body(b"ab")], RuntimeError, "shorter"),
    ([start(200, (b"content-length", b"1")), body(b"ab", more=True)], RuntimeError, "longer"),
]


def raising(messages: list[Message], caught: list[BaseException], swallow: bool) -> ASGIApplication:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/fine":
            await respond(send, b"fine")
            return
        for message in messages[:-1]:
            await send(message)
        try:
            await send(messages[-1])
        except Exception as error:
            caught.append(error)
            if not swallow:
                raise

    return app


@pytest.mark.parametrize("swallow", [False, True])
@pytest.mark.parametrize(("messages", "error", "text"), WRONG)
def test_wrong_message_before_anything_is_written_is_500(
    serve: Serve,
    messages: list[Message],
    error: type[Exception],
    text: str,
    swallow: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caught: list[BaseException] = []
    server = serve(raising(messages, caught, swallow))
    client = server.connect()
    client.send(GET)
    assert client.read(len(ERROR)) == ERROR
    assert type(caught[0]) is error
    assert text in str(caught[0])
    client.send(GET.replace(b"/", b"/fine", 1))
    assert client.answer()[2] == b"fine"
    assert server.cell(Cell.STATUS_5XX) == 1
    assert ("returned without" if swallow else text) in caplog.text


LATE: list[tuple[list[Message], bytes, type[Exception], str]] = [
    ([start(), body(b"ab", more=True), start()], b"2\r\nab\r\n", RuntimeError, "http.response.body"),
    ([start(), body(b"ab", more=True), {"type": "http.response.body", "body": 1}], b"2\r\nab\r\n", TypeError, "bytes"),
    ([start(200, (b"content-length", b"3")), body(b"ab", more=True), body(b"cd")], b"ab", RuntimeError, "longer"),
    (
        [start(200, (b"content-length", b"3")), body(b"ab", more=True), body(b"cd", more=True)],
        b"ab",
        RuntimeError,
        "longer",
    ),
    ([start(200, (b"content-length", b"3")), body(b"ab", more=True), body()], b"ab", RuntimeError, "shorter"),
    ([start(trailers=True), body(b"ab"), body()], b"2\r\nab\r\n", RuntimeError, "http.response.trailers"),
    ([start(trailers=True), body(b"ab"), trailers((b"content-length", b"1"))], b"2\r\nab\r\n", ValueError, "trailer"),
    ([start(trailers=True), body(b"ab"), trailers((b"x", b"1\r\n"))], b"2\r\nab\r\n", ValueError, "CR, LF"),
]


@pytest.mark.parametrize("swallow", [False, True])
@pytest.mark.parametrize(("messages", "written", "error", "text"), LATE)
def test_wrong_message_in_an_answer_cuts_it(
    serve: Serve, messages: list[Message], written: bytes, error: type[Exception], text: str, swallow: bool
) -> None:
    caught: list[BaseException] = []
    server = serve(raising(messages, caught, swallow))
    answer = server.ask(TE + GET)  # what is pipelined behind it is not answered
    assert answer.endswith(b"\r\n\r\n" + written)
    assert answer.count(b"HTTP/1.1") == 1
    assert type(caught[0]) is error
    assert text in str(caught[0])


def test_cut_answer_that_ends_with_the_connection_is_reset(serve: Serve) -> None:
    client = serve(raising([start(), body(b"ab", more=True), start()], [], False)).connect()
    client.send(GET_1_0)
    with pytest.raises(ConnectionResetError):
        client.read_to_end()


@pytest.mark.parametrize("message", [body(), start(), {"type": "nonsense"}, trailers()])
def test_message_after_the_end_raises_and_harms_nobody(
    serve: Serve, message: Message, caplog: pytest.LogCaptureFixture
) -> None:
    caught: list[BaseException] = []
    server = serve(raising([start(), body(b"ok"), message], caught, False))
    client = server.connect()
    for _ in range(2):
        client.send(GET)
        assert client.answer()[2] == b"ok"
    server.until(lambda: len(caught) == 2)
    assert "after the response was complete" in str(caught[0])
    assert server.cell(Cell.STATUS_2XX) == 2


# ---- applications that end badly


class Boom(Exception):
    pass


@pytest.mark.parametrize("error", [Boom, asyncio.CancelledError, SystemExit])
@pytest.mark.parametrize("sent", [[], [start()], [start(204)], [start(200, (b"content-length", b"9"))]])
def test_exception_before_the_answer_is_500(
    serve: Serve, sent: list[Message], error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in sent:
            await send(message)
        raise error

    server = serve(app)
    exactly(server, GET, ERROR)
    assert server.cell(Cell.STATUS_5XX) == 1
    assert server.cell(Cell.IN_FLIGHT) == 0
    record = caplog.records[0]
    assert record.name == "serve.error"
    assert record.exc_info is not None
    assert record.exc_info[0] is error


def test_exception_after_the_answer_is_logged_only(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, b"ok")
        raise Boom

    server = serve(app)
    exactly(server, GET, response(b"ok"))
    server.until(lambda: "Boom" in caplog.text)


def test_exception_in_the_answer_cuts_it_after_what_was_sent(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        await send(body(b"ab", more=True))
        raise Boom

    assert serve(app).ask(GET) == head(b"transfer-encoding: chunked\r\n") + b"2\r\nab\r\n"
    assert "Boom" in caplog.text


@pytest.mark.parametrize("sent", [[], [start()]])
def test_return_without_an_answer_is_500(serve: Serve, sent: list[Message], caplog: pytest.LogCaptureFixture) -> None:
    exactly(serve(answering(*sent)), GET, ERROR)
    assert "returned without" in caplog.text


def test_return_in_the_answer_cuts_it(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    server = serve(answering(start(200, (b"content-length", b"9")), body(b"ab", more=True)))
    assert server.ask(GET).endswith(b"\r\n\r\nab")
    assert "without completing" in caplog.text
    assert server.cell(Cell.STATUS_2XX) == server.cell(Cell.REQUESTS) == 1


def test_what_the_application_does_after_its_answer_holds_nobody_up(serve: Serve) -> None:
    release: list[asyncio.Future[None]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, b"ok")
        release.append(asyncio.get_running_loop().create_future())
        await release[-1]

    server = serve(app)
    client = server.connect()
    client.send(GET * 2)
    assert client.answer()[2] == b"ok"
    assert client.answer()[2] == b"ok"
    server.until(lambda: server.cell(Cell.IN_FLIGHT) == len(release) == 2)
    assert len(server.worker.tasks) == 2
    for waiting in release:
        server.loop.call_soon_threadsafe(waiting.set_result, None)
    server.until(lambda: server.cell(Cell.IN_FLIGHT) == 0 and not server.worker.tasks)


def test_counters(serve: Serve) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, b"", int(scope["path"][1:]))

    server = serve(app)
    client = server.connect()
    for status in (200, 204, 301, 404, 404, 503):
        client.send(GET.replace(b"/", b"/%d" % status, 1))
        assert client.answer()[0] == status
    cells = (Cell.STATUS_2XX, Cell.STATUS_3XX, Cell.STATUS_4XX, Cell.STATUS_5XX, Cell.REQUESTS, Cell.CONNECTIONS)
    server.until(lambda: [server.cell(cell) for cell in cells] == [2, 1, 2, 1, 6, 1])
    client.close()
    server.until(lambda: server.cell(Cell.CONNECTIONS) == 0)
    assert server.worker.connections == set()


# ---- back-pressure


def test_send_waits_for_a_slow_reader(serve: Serve) -> None:
    sent = 0
    total = 400

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal sent
        await send(start())
        for _ in range(total):
            await send(body(b"x" * 65536, more=True))
            sent += 1
        await send(body())

    server = serve(app)
    client = server.connect(SO_RCVBUF=65536)
    client.send(GET)
    connection = server.connection()
    server.until(lambda: connection.output.paused)
    seen = -1
    while seen != sent:  # until it has come to rest
        seen = sent
        server.wait_for(asyncio.sleep(0.05))
    assert sent < total - 100
    assert connection.transport.get_write_buffer_size() < 300_000
    client.read_until(b"\r\n\r\n")
    content = client.read(len((b"10000\r\n" + b"x" * 65536 + b"\r\n") * total + b"0\r\n\r\n"))
    assert content.count(b"x") == total * 65536
    assert sent == total


def test_pipelined_answers_wait_for_a_slow_reader(serve: Serve) -> None:
    calls = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal calls
        calls += 1
        await respond(send, b"x" * 300_000)

    server = serve(app)
    client = server.connect(SO_RCVBUF=65536)
    client.send(GET * 100)
    connection = server.connection()
    server.until(lambda: connection.output.paused)
    server.wait_for(asyncio.sleep(0.1))
    assert calls < 50
    for _ in range(100):
        assert client.answer()[0] == 200
    assert calls == 100


def test_send_that_waits_hears_of_the_disconnect(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_asgi.http.dropped_messages.DROP_TIME", 0.1)
    errors: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send(start())
            while True:
                await send(body(b"x" * 65536, more=True))
        except OSError as error:
            errors.append(error)
            raise

    server = serve(app)
    client = server.connect(SO_RCVBUF=65536)
    client.send(GET)
    connection = server.connection()
    server.until(lambda: connection.output.paused)
    client.close()
    server.until(lambda: len(errors) == 1 and server.cell(Cell.IN_FLIGHT) == 0)
