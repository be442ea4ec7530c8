"""Responses without content: to HEAD, and with 204, 205, 304. They are complete with their head, whatever is sent."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from serve_asgi.http.dropped_messages import DROP_TIME, ClientDisconnected
from serve_asgi.http.worker_context import Message, Receive, Scope, Send
from serve_asgi.ipc.scoreboard import Cell
from tests.http.http_server import GET, HttpServer, answering, body, read, respond, start
from tests.http.test_response import head

Serve = Callable[..., HttpServer]
HEAD = GET.replace(b"GET", b"HEAD")
PING = b"GET /after HTTP/1.1\r\nHost: a\r\n\r\n"
CHUNK = b"data: x\n\n"
REQUEST_AND_STATUS = [(HEAD, 200), (HEAD, 204), (HEAD, 304), (GET, 204), (GET, 205), (GET, 304)]
SECONDS = 10.0


class Streams:
    """Answers /after at once, and anything else with a stream that has no end unless its caller is told of one."""

    def __init__(self, status: int = 200, pause: float = 0.01) -> None:
        self.status = status
        self.pause = pause
        self.errors: list[BaseException] = []
        self.told: list[Message] = []
        self.ended = threading.Semaphore(0)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/after":
            await respond(send, b"after")
            return
        try:
            await send(start(self.status))
            while True:
                await send(body(CHUNK, more=True))
                await asyncio.sleep(self.pause)
        except BaseException as error:
            self.errors.append(error)
            self.told.append(await receive())
            raise
        finally:
            self.ended.release()


@pytest.mark.parametrize(("request_", "status"), REQUEST_AND_STATUS)
@pytest.mark.parametrize("pipelined", [False, True])
def test_the_next_request_does_not_wait_for_the_application(
    serve: Serve, request_: bytes, status: int, pipelined: bool, caplog: pytest.LogCaptureFixture
) -> None:
    app = Streams(status)
    server = serve(app)
    client = server.connect()
    client.send(request_ + PING if pipelined else request_)
    first = client.read_until(b"\r\n\r\n")
    assert first.startswith(b"HTTP/1.1 %d " % status)
    assert b"transfer-encoding" not in first
    assert (b"content-length: 0\r\n" in first) is (status == 205)
    if not pipelined:
        client.send(PING)
    assert client.answer()[2] == b"after"
    assert server.cell(Cell.IN_FLIGHT) == 1  # it has not been told yet
    assert app.ended.acquire(timeout=SECONDS)
    assert isinstance(app.errors[0], ClientDisconnected)
    assert app.told == [{"type": "http.disconnect"}]
    server.until(lambda: server.cell(Cell.IN_FLIGHT) == 0)
    assert server.cell(Cell.REQUESTS) == 2
    client.send(PING)
    assert client.answer()[2] == b"after"
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_one_that_waits_in_receive_is_told(serve: Serve) -> None:
    """As Starlette's and Django's streams do: one task sends, another listens."""
    told = threading.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await read(receive)
        await send(start())
        listening = asyncio.ensure_future(receive())
        while not listening.done():
            await send(body(CHUNK, more=True))
            await asyncio.sleep(0.01)
        assert listening.result() == {"type": "http.disconnect"}
        told.set()

    server = serve(app)
    client = server.connect()
    client.send(HEAD)
    client.read_until(b"\r\n\r\n")
    assert told.wait(SECONDS)
    server.until(lambda: server.cell(Cell.IN_FLIGHT) == 0)


@pytest.mark.parametrize(("request_", "status"), REQUEST_AND_STATUS)
@pytest.mark.parametrize("listening", [False, True])
def test_a_stream_that_ends_soon_notices_nothing(
    serve: Serve, request_: bytes, status: int, listening: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Starlette's middlewares make a stream of every response, and its background tasks run behind them."""
    after: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await read(receive)
        told = asyncio.ensure_future(receive())
        await send(start(status))
        for _ in range(3):
            await send(body(b"" if request_ is GET else CHUNK, more=True))
            await asyncio.sleep(0)
            assert not told.done()
        await send(body())
        assert (await told if listening else await receive()) == {"type": "http.disconnect"}
        told.cancel()
        after.append("background task")

    server = serve(app)
    client = server.connect()
    for count in (1, 2):
        client.send(request_)
        client.read_until(b"\r\n\r\n")
        server.until(lambda count=count: len(after) == count)  # type: ignore[misc]
    server.until(lambda: server.cell(Cell.IN_FLIGHT) == 0)
    assert not caplog.records


def test_one_that_only_sends_is_ended_and_starves_nobody(serve: Serve) -> None:
    app = Streams(pause=0)
    server = serve(app)
    client = server.connect()
    client.send(HEAD)
    client.read_until(b"\r\n\r\n")
    for _ in range(50):
        client.send(PING)
        assert client.answer()[2] == b"after"
    assert app.ended.acquire(timeout=SECONDS)


def test_much_content_is_not_waited_for(serve: Serve) -> None:
    """A HEAD of a large file does not have it read to its end."""
    sizes: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await read(receive)
        told = asyncio.ensure_future(receive())
        await send(start())
        size = 0
        while not told.done():
            await send(body(b"x" * 65536, more=True))
            size += 65536
        sizes.append(size)

    server = serve(app)
    client = server.connect()
    begun = server.loop.time()
    client.send(HEAD)
    client.read_until(b"\r\n\r\n")
    server.until(lambda: bool(sizes))
    assert sizes[0] < 2 << 20 or server.loop.time() - begun > DROP_TIME  # the bound on bytes, or that on time


def test_a_call_is_told_at_once_when_its_client_leaves(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_asgi.http.dropped_messages.DROP_TIME", 1000.0)
    told: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/after":
            await respond(send, b"after")
            return
        await read(receive)
        await send(start())
        await send(body(CHUNK, more=True))
        told.append(await receive())

    server = serve(app)
    client = server.connect()
    client.send(HEAD + PING + HEAD)  # two calls behind, and none in progress
    for _ in range(3):
        client.read_until(b"\r\n\r\n")
    client.close()
    server.until(lambda: len(told) == 2 and not server.worker.connections)
    assert told == [{"type": "http.disconnect"}] * 2
    assert server.connection().pipeline.still_sending == set()


def test_clients_that_leave_leave_no_calls_behind(serve: Serve) -> None:
    app = Streams()
    server = serve(app)
    for _ in range(5):
        client = server.connect()
        client.send(HEAD)
        client.read_until(b"\r\n\r\n")
        client.close()
    for _ in range(5):
        assert app.ended.acquire(timeout=SECONDS)
    server.until(lambda: server.cell(Cell.IN_FLIGHT) == 0 and not server.worker.connections)
    assert server.cell(Cell.REQUESTS) == 5


@pytest.mark.parametrize("kind", ["pathsend", "zerocopysend", "streamed"])
@pytest.mark.parametrize(("request_", "status"), REQUEST_AND_STATUS)
def test_files(serve: Serve, tmp_path: Path, kind: str, request_: bytes, status: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100_000)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/after":
            await respond(send, b"after")
            return
        await send(start(status))
        if kind == "pathsend":
            await send({"type": "http.response.pathsend", "path": str(path)})
            return
        with path.open("rb") as file:
            message: Message = {"type": "http.response.zerocopysend", "file": file, "more_body": kind == "streamed"}
            await send(message)
            if kind == "streamed":
                await send({**message, "offset": 5, "more_body": True})
                await send({**message, "offset": 0, "more_body": False})

    server = serve(app)
    client = server.connect()
    client.send(request_ + PING)
    first = client.read_until(b"\r\n\r\n")
    assert first.startswith(b"HTTP/1.1 %d " % status)
    assert (b"content-length: 100000\r\n" in first) is (request_ is HEAD and status == 200 and kind != "streamed")
    assert client.answer()[2] == b"after"
    server.until(lambda: server.cell(Cell.IN_FLIGHT) == 0)


def test_the_rest_of_the_request_is_still_the_applications(serve: Serve) -> None:
    """Content that comes behind the answer belongs to the request, and the next request behind it."""
    taken: list[bytes] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/after":
            await respond(send, b"after")
            return
        await send(start(204))
        await send(body(more=True))
        taken.append(await read(receive))
        await send(body())

    server = serve(app)
    client = server.connect()
    client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n01234")
    client.read_until(b"\r\n\r\n")
    client.send(b"56789" + PING)
    assert client.answer()[2] == b"after"
    server.until(lambda: taken == [b"0123456789"])


@pytest.mark.parametrize(
    "fields",
    [
        b"Content-Length: 1000000\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Content-Length: 9\r\nExpect: 100-continue\r\n",
    ],
)
def test_content_of_which_nobody_knows_the_end_ends_the_connection(serve: Serve, fields: bytes) -> None:
    told: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start(204))
        await send(body(more=True))
        told.append(await receive())

    server = serve(app)
    client = server.connect()
    client.send(b"POST / HTTP/1.1\r\nHost: a\r\n" + fields + b"\r\n")
    answer = client.read_to_end()
    assert answer.startswith(b"HTTP/1.1 204 ")
    assert b"\r\nconnection: close\r\n" in answer
    assert answer.count(b"HTTP/1.1") == 1  # and no 100 behind it
    server.until(lambda: told == [{"type": "http.disconnect"}])


@pytest.mark.parametrize("error", [RuntimeError("a mistake"), None])
def test_mistakes_behind_the_response_are_logged_and_cost_the_client_nothing(
    serve: Serve, error: Exception | None, caplog: pytest.LogCaptureFixture
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/after":
            await respond(send, b"after")
            return
        await send(start())
        await send(body(CHUNK, more=True))
        if error:
            raise error

    server = serve(app)
    client = server.connect()
    client.send(HEAD)
    client.read_until(b"\r\n\r\n")
    client.send(PING)
    assert client.answer()[2] == b"after"
    assert len(caplog.records) == 1
    assert ("raised an exception" if error else "without completing") in caplog.text
    assert server.cell(Cell.REQUESTS) == 2
    assert server.cell(Cell.STATUS_5XX) == 0


def test_wrong_messages_behind_the_response_raise(serve: Serve) -> None:
    raised: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        await send(body(CHUNK, more=True))
        for message in (start(), {"type": "nonsense"}, {"type": "http.response.pathsend", "path": "/"}):
            with pytest.raises(RuntimeError) as caught:
                await send(message)
            raised.append(str(caught.value))
        await send(body())

    server = serve(app)
    client = server.connect()
    client.send(HEAD)
    client.read_until(b"\r\n\r\n")
    server.until(lambda: len(raised) == 3)


def test_the_graceful_timeout_ends_a_call_that_is_never_told(serve: Serve) -> None:
    """The worker cancels the tasks that are left, as after any response that is complete."""
    waiting = threading.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        await send(body(CHUNK, more=True))
        waiting.set()
        await asyncio.Event().wait()

    server = serve(app)
    client = server.connect()
    client.send(HEAD)
    client.read_until(b"\r\n\r\n")
    assert waiting.wait(SECONDS)
    connection = server.connection()
    server.until(connection.can_leave)  # nothing of it holds the connection
    assert len(server.worker.tasks) == 1


# ---- content where there is none

NO_CONTENT = [
    (204, b"204 No Content", b""),
    (205, b"205 Reset Content", b"content-length: 0\r\n"),
    (304, b"304 Not Modified", b""),
]


@pytest.mark.parametrize("length", [None, b"4"])
@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(("status", "line", "framing"), NO_CONTENT)
def test_content_is_dropped(
    serve: Serve,
    status: int,
    line: bytes,
    framing: bytes,
    streamed: bool,
    length: bytes | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """`JSONResponse(None, 204)` of Starlette sends `null`, with its length."""
    fields = [(b"content-length", length)] if length else []
    messages = (
        [start(status, *fields), body(b"null", more=True), body()]
        if streamed
        else [start(status, *fields), body(b"null")]
    )
    server = serve(answering(*messages))
    client = server.connect()
    given = b"content-length: 4\r\n" if length and status == 304 else b""  # of the content of a 200 (RFC 9110 8.6)
    for path in (b"/items/1", b"/items/2", b"/items/3f2c", b"/others"):
        client.send(GET.replace(b"/", path, 1))
        expected = head(framing, status=line, fields=given)
        assert client.read(len(expected)) == expected
    server.until(lambda: server.cell(Cell.IN_FLIGHT) == 0)
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2
    assert f"{status} response to GET /items/*." in told[0]
    assert f"{status} response to GET /others." in told[1]
    assert server.cell(Cell.STATUS_5XX) == 0


def test_the_routes_that_are_told_are_bounded(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    client = serve(answering(start(204), body(b"null"))).connect()
    for number in range(200):
        path = "".join(chr(97 + int(digit)) for digit in str(number))
        client.send(GET.replace(b"/", b"/" + path.encode(), 1))
        client.read_until(b"\r\n\r\n")
    assert len(caplog.records) == 64
    assert "No more routes" in caplog.records[-1].getMessage()


def test_content_for_head_is_no_mistake(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    client = serve(answering(start(204), body(b"null"))).connect()
    client.send(HEAD)
    assert client.read_until(b"\r\n\r\n") == head(b"", status=b"204 No Content")
    assert not caplog.records
