"""The content of requests: lengths, chunks, Expect, back-pressure, clients that leave, content that nobody reads."""

from __future__ import annotations

import asyncio
import contextvars
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from serve_asgi.http.dropped_messages import ClientDisconnected
from serve_asgi.http.worker_context import Message, Receive, Scope, Send
from serve_asgi.ipc.scoreboard import Cell
from tests.http.http_server import GET, HttpServer, body, echo, read, respond, response, start

Serve = Callable[..., HttpServer]
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


def post(length: int, fields: bytes = b"") -> bytes:
    return b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n%b\r\n" % (length, fields)


class Recorder:
    """An application that keeps every message that it receives, and answers at the end of the content."""

    def __init__(self) -> None:
        self.messages: list[Message] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            self.messages.append(message)
            if not message.get("more_body"):
                break
        if message["type"] == "http.request":
            await respond(send, b"ok")
            self.messages.append(await receive())


def test_no_content(serve: Serve) -> None:
    recorder = Recorder()
    server = serve(recorder)
    client = server.connect()
    for request in (GET, post(0)):
        client.send(request)
        assert client.answer()[2] == b"ok"
    server.until(lambda: len(recorder.messages) == 4)
    expected = [{"type": "http.request", "body": b"", "more_body": False}, {"type": "http.disconnect"}]
    assert recorder.messages == expected * 2


def test_content_comes_as_it_arrives(serve: Serve) -> None:
    recorder = Recorder()
    server = serve(recorder)
    client = server.connect()
    client.send(post(6))
    for number, piece in enumerate((b"ab", b"cd"), start=1):
        client.send(piece)
        server.until(lambda number=number: len(recorder.messages) == number)  # type: ignore[misc]
    client.send(b"ef" + GET)
    assert client.answer()[2] == b"ok"
    assert client.answer()[2] == b"ok"
    server.until(lambda: len(recorder.messages) >= 4)
    assert recorder.messages[:4] == [
        {"type": "http.request", "body": b"ab", "more_body": True},
        {"type": "http.request", "body": b"cd", "more_body": True},
        {"type": "http.request", "body": b"ef", "more_body": False},
        {"type": "http.disconnect"},
    ]


def test_large_content_arrives_whole(serve: Serve) -> None:
    server = serve(echo)
    content = bytes(range(256)) * 8192
    for request in (
        post(len(content)) + content,
        CHUNKED + b"".join(b"%x\r\n%b\r\n" % (5000, b"\r\n\r\n0" * 1000) for _ in range(400)) + b"0\r\n\r\n",
    ):
        client = server.connect()
        client.send(request)
        expected = content if b"Length" in request[:60] else b"\r\n\r\n0" * 400_000
        assert client.answer()[2] == b"POST / " + expected


CHUNKS = [
    (b"0\r\n\r\n", b""),
    (b"5\r\nhello\r\n0\r\n\r\n", b"hello"),
    (b"4\r\n\r\n\r\n\r\n0\r\n\r\n", b"\r\n\r\n"),
    (b"5\r\n0\r\n\r\n\r\n0\r\n\r\n", b"0\r\n\r\n"),
    (b"1;x=y\r\na\r\n000A;z\r\n0123456789\r\n0;last\r\n\r\n", b"a0123456789"),
    (b"2\r\n\r\n\r\n2\r\n\r\n\r\n0\r\nA: b\r\nC: d\r\n\r\n", b"\r\n\r\n"),
    (b"3\r\n\r\n\r\r\n1\r\n\n\r\n0\r\nX: y\r\n\r\n", b"\r\n\r\n"),
]


@pytest.mark.parametrize(("chunks", "content"), CHUNKS)
def test_chunks_split_everywhere(serve: Serve, chunks: bytes, content: bytes) -> None:
    server = serve(echo)
    client = server.connect()
    expected = response(b"POST / " + content)
    behind = response(b"GET / ")
    for split in range(len(chunks) + 1):
        client.send(CHUNKED + chunks[:split])
        server.run(lambda: None)
        client.send(chunks[split:] + GET)
        assert client.read(len(expected)) == expected
        assert client.read(len(behind)) == behind


@pytest.mark.parametrize(
    "chunks",
    [
        b"5\nhello\r\n0\r\n\r\n",
        b"x\r\nhello\r\n0\r\n\r\n",
        b"-1\r\nhello\r\n",
        b"\r\n\r\n",
        b"5\r\nhelloX\r\n0\r\n\r\n",
        b"5\r\nhello\n0\r\n\r\n",
        b"0\r\n\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"0\r\nA : b\r\n\r\n",
        b"1;" + b"x" * 70_000 + b"\r\n",
        b"0\r\n" + b"A: " + b"x" * 70_000 + b"\r\n\r\n",
        b"1;xxxxxxxxxxxxxxx\r\nA\r\n" * 10_000,
    ],
)
def test_malformed_chunks_are_refused(serve: Serve, chunks: bytes) -> None:
    recorder = Recorder()
    server = serve(recorder)
    answer = server.ask(CHUNKED, chunks)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"\r\nconnection: close\r\n" in answer
    assert answer.count(b"HTTP/1.1 ") == 1
    server.until(lambda: server.cell(Cell.IN_FLIGHT) == 0)
    if recorder.messages:  # the application was called before the defect arrived: it hears of the end
        assert recorder.messages[-1] == {"type": "http.disconnect"}
    assert server.cell(Cell.REQUESTS) == server.cell(Cell.STATUS_4XX) == 1


def test_malformed_chunk_in_the_middle_of_an_answer_cuts_it(serve: Serve) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        await send(body(b"some", more=True))
        assert (await receive())["type"] == "http.disconnect"

    server = serve(app)
    client = server.connect()
    client.send(CHUNKED)
    client.read_until(b"some")
    client.send(b"nonsense\r\n")
    assert client.read_to_end() == b"\r\n"  # no last chunk
    assert server.cell(Cell.REQUESTS) == 1


# ---- Expect: 100-continue


def test_100_is_sent_when_the_application_receives(serve: Serve) -> None:
    go = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await go.wait()
        await respond(send, await read(receive))

    server = serve(app)
    client = server.connect()
    client.send(post(2, b"Expect: 100-Continue\r\n"))
    server.until(lambda: server.cell(Cell.IN_FLIGHT) == 1)
    assert client.silent()
    server.run(go.set)
    assert client.read_until(CONTINUE) == CONTINUE
    client.send(b"ab" + GET)
    assert client.read(len(response(b"ab"))) == response(b"ab")
    assert client.answer()[2] == b""


def test_100_is_sent_after_a_start_that_is_not_written(serve: Serve) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        await send(body(await read(receive)))

    client = serve(app).connect()
    client.send(post(2, b"Expect: 100-continue\r\n"))
    assert client.read_until(CONTINUE) == CONTINUE
    client.send(b"ab")
    assert client.answer()[2] == b"ab"


@pytest.mark.parametrize(
    "request_", [GET[:-2] + b"Expect: 100-continue\r\n\r\n", post(2, b"Expect: 100-continue\r\n") + b"ab"]
)
def test_no_100_when_the_content_is_there(serve: Serve, request_: bytes) -> None:
    client = serve(echo).connect()
    client.send(request_)
    assert client.read(12) == b"HTTP/1.1 200"


def test_no_100_for_http_1_0(serve: Serve) -> None:
    server = serve(echo)
    client = server.connect()
    client.send(b"POST / HTTP/1.0\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
    server.until(lambda: server.cell(Cell.IN_FLIGHT) == 1)
    assert client.silent()
    client.send(b"ab")
    assert client.read_to_end().startswith(b"HTTP/1.1 200")


def test_no_100_after_the_answer_began(serve: Serve) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        await send(body(b"x", more=True))
        await send(body(await read(receive)))

    client = serve(app).connect()
    client.send(post(2, b"Expect: 100-continue\r\n"))
    assert CONTINUE not in client.read_until(b"\r\nx\r\n")
    client.send(b"ab")
    assert client.read_until(b"0\r\n\r\n") == b"2\r\nab\r\n0\r\n\r\n"


def test_answer_instead_of_100_closes(serve: Serve) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, b"no", 413)

    answer = serve(app).ask(post(2, b"Expect: 100-continue\r\n"))
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"\r\nconnection: close\r\n" in answer


# ---- content that the application does not read


async def deaf(scope: Scope, receive: Receive, send: Send) -> None:
    await respond(send, scope["path"].encode())


def test_small_rest_is_dropped_and_the_connection_goes_on(serve: Serve) -> None:
    server = serve(deaf)
    client = server.connect()
    client.send(post(60_000) + b"x" * 10)
    assert client.answer()[1].count(b"keep-alive") == 2
    client.send(b"x" * 59_990 + GET + post(3) + b"abc" + GET)
    for _ in range(3):
        assert client.answer()[2] == b"/"


@pytest.mark.parametrize("request_", [post(10_000_000) + b"x" * 10, CHUNKED + b"1\r\n"])
def test_large_or_unknown_rest_ends_the_connection(serve: Serve, request_: bytes) -> None:
    server = serve(deaf)
    client = server.connect()
    client.send(request_)
    answer = client.read_to_end()
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"\r\nconnection: close\r\n" in answer


def test_client_that_uploads_on_reads_the_early_answer(serve: Serve) -> None:
    server = serve(deaf)
    client = server.connect()
    client.send(post(10_000_000) + b"x" * 500_000)
    assert client.read_to_end().endswith(b"/")  # a reset would raise


def test_discarded_chunks_are_checked(serve: Serve) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        await send(body(b"a", more=True))
        await send(body(b"b"))

    client = serve(app).connect()
    client.send(CHUNKED)
    assert client.read_to_end().endswith(b"0\r\n\r\n")  # the length of the rest is unknown: closed


# ---- back-pressure


def test_unread_content_pauses_reading(serve: Serve) -> None:
    go = asyncio.Event()
    sizes: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await go.wait()
        total = 0
        while True:
            message = await receive()
            sizes.append(len(message["body"]))
            total += sizes[-1]
            if not message["more_body"]:
                break
        await respond(send, b"%d" % total)

    server = serve(app)
    client = server.connect(SO_SNDBUF=65536)
    size = 20_000_000
    client.send(post(size))
    connection = server.connection()
    sent = client.fill(b"x" * size, lambda: not connection.transport.is_reading())
    assert sent < size
    assert connection.pipeline.response is not None
    assert connection.pipeline.response.request.body is not None
    assert connection.pipeline.response.request.body.unread <= 65536 + 256 * 1024
    server.run(go.set)
    client.send(b"x" * (size - sent))
    assert client.answer()[2] == b"%d" % size
    assert max(sizes) <= 65536 + 256 * 1024


@pytest.mark.parametrize(
    ("head", "piece"),
    [(CHUNKED, b"2\r\naa\r\n"), (CHUNKED, b"1;x\r\na\r\n"), (post(1 << 30), b"a")],
    ids=["chunks", "extensions", "segments"],
)
@pytest.mark.parametrize("at_once", [True, False])
def test_small_pieces_of_unread_content_cost_no_more_than_their_bytes(
    serve: Serve, head: bytes, piece: bytes, at_once: bool
) -> None:
    """Objects count as well: one of two bytes takes 56."""
    go_on = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await go_on.wait()
        await respond(send, b"ok")

    server = serve(app)
    client = server.connect()
    client.send(head)
    connection = server.connection()
    server.until(lambda: connection.pipeline.response is not None)
    assert connection.pipeline.response is not None
    arrived = connection.pipeline.response.request.body
    assert arrived is not None
    content = 0
    for _ in range(200):
        pieces = piece * (200 if at_once else 1)
        client.send(pieces)
        content += pieces.count(b"a")
        server.until(lambda content=content: arrived.unread == content or connection.read_paused)  # type: ignore[misc]
    held = server.run(lambda: sum(map(sys.getsizeof, arrived._pieces or ())) + sys.getsizeof(arrived._pieces))
    assert held < 2 * arrived.unread + 4096
    server.run(go_on.set)
    assert client.answer()[0] == 200


def test_requests_do_not_see_each_others_context(serve: Serve) -> None:
    variable = contextvars.ContextVar("variable", default=b"none")
    seen: list[bytes] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(variable.get())
        variable.set(scope["path"].encode())
        await asyncio.sleep(0.01)  # so that reading is paused, and resumed from here
        await read(receive)
        await respond(send, b"ok")

    server = serve(app)
    client = server.connect()
    for _ in range(3):
        client.send(post(1_000_000) + b"x" * 1_000_000)
        client.answer()
    assert seen == [b"none"] * 3


# ---- clients that leave


class Watcher:
    """Waits for the disconnect, then tries to send."""

    def __init__(self, *messages: Message) -> None:
        self.messages = messages
        self.error: BaseException | None = None
        self.received: list[Message] = []
        self.done = threading.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        for message in self.messages:
            await send(message)
        try:
            while True:
                message = await receive()
                self.received.append(message)
                if message["type"] == "http.disconnect":
                    break
            self.received.append(await receive())
            while True:
                await send(body(b"x" * 1000, more=True) if self.messages else start())
                await asyncio.sleep(0.001)
        except BaseException as error:
            self.error = error
            raise
        finally:
            self.done.set()


@pytest.mark.parametrize("request_", [GET, post(5) + b"abc", CHUNKED + b"3\r\na"])
@pytest.mark.parametrize("begun", [False, True])
def test_client_disconnects(
    serve: Serve, request_: bytes, begun: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve_asgi.http.dropped_messages.DROP_TIME", 0.1)
    watcher = Watcher(start(), body(b"begun", more=True)) if begun else Watcher()
    server = serve(watcher)
    client = server.connect()
    client.send(request_)
    server.until(lambda: server.cell(Cell.IN_FLIGHT) == 1)
    client.sock.setsockopt(1, 13, b"\x01\0\0\0\0\0\0\0")  # SOL_SOCKET, SO_LINGER: reset
    client.close()
    assert watcher.done.wait(10)
    assert watcher.received[-2:] == [{"type": "http.disconnect"}] * 2
    assert isinstance(watcher.error, ClientDisconnected)
    assert isinstance(watcher.error, OSError)
    server.until(lambda: server.cell(Cell.CONNECTIONS) == 0 and server.cell(Cell.IN_FLIGHT) == 0)
    assert server.cell(Cell.REQUESTS) == 1
    assert "raised" not in caplog.text


def test_half_closed_client_gets_its_answers(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_asgi.http.request_receive.HALF_CLOSED_TIME", 0.1)

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        assert await read(receive) == b""
        assert (await receive())["type"] == "http.disconnect"
        await respond(send, scope["path"].encode())

    server = serve(slow)
    client = server.connect()
    client.send(GET + GET.replace(b"/", b"/second", 1) + GET[:9])
    client.end()
    answers = client.read_to_end()
    assert answers == response(b"/") + response(b"/second")
    server.until(lambda: server.cell(Cell.CONNECTIONS) == 0)


def test_half_closed_in_the_middle_of_the_content(serve: Serve) -> None:
    recorder = Recorder()
    server = serve(recorder)
    client = server.connect()
    client.send(post(5) + b"ab")
    server.until(lambda: len(recorder.messages) == 1)
    client.end()
    assert client.read_to_end() == b""
    server.until(lambda: server.cell(Cell.CONNECTIONS) == 0 and server.cell(Cell.IN_FLIGHT) == 0)
    assert recorder.messages[1:] == [{"type": "http.disconnect"}]


def test_several_tasks_may_receive(serve: Serve) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await read(receive)
        listening = [asyncio.ensure_future(_as_coroutine(receive)) for _ in range(3)]
        await asyncio.sleep(0)
        listening[0].cancel()
        await respond(send, b"ok")
        results: list[Any] = await asyncio.gather(*listening, return_exceptions=True)
        kinds.extend(r["type"] if isinstance(r, dict) else type(r).__name__ for r in results)

    async def _as_coroutine(receive: Receive) -> Message:
        return await receive()

    kinds: list[str] = []
    server = serve(app)
    client = server.connect()
    client.send(GET)
    assert client.answer()[0] == 200
    server.until(lambda: kinds == ["CancelledError", "http.disconnect", "http.disconnect"])


@pytest.mark.parametrize("wrapped", ["group", "cause", "context"])
def test_error_made_of_a_disconnect_is_not_logged(
    serve: Serve, wrapped: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve_asgi.http.dropped_messages.DROP_TIME", 0.1)
    raised = threading.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        try:
            while True:
                await send(body(b"x", more=True))
                await asyncio.sleep(0.001)
        except OSError as error:
            raised.set()
            if wrapped == "group":
                raise BaseExceptionGroup("several", [error, error]) from None
            if wrapped == "cause":
                raise LookupError from error
            raise LookupError  # noqa: B904 (its context is the error)

    server = serve(app)
    client = server.connect()
    client.send(GET)
    client.read_until(b"x")
    client.sock.setsockopt(1, 13, b"\x01\0\0\0\0\0\0\0")  # SOL_SOCKET, SO_LINGER: reset
    client.close()
    assert raised.wait(10)
    server.until(lambda: server.cell(Cell.IN_FLIGHT) == 0)
    assert caplog.text == ""
