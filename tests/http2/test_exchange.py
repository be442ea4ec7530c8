"""Requests and responses on streams: what an application is told of its client, and what the client gets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from serve_asgi.http.h2 import frames
from serve_asgi.http.h2.error_codes import ErrorCode
from serve_asgi.http.h2.limits import STREAM_WINDOW
from serve_asgi.http.worker_context import Message, Receive, Scope, Send
from serve_asgi.http2.connection import Http2Connection
from serve_asgi.ipc.scoreboard import Cell
from tests.connection_server import Log
from tests.http.h2.peer import GET, POST
from tests.http.http_server import body, echo, read, respond, start
from tests.http2.frame_client import data
from tests.http2.http2_server import Http2Server

Serve = Callable[..., Http2Server]


def test_a_request_is_answered(serve2: Serve) -> None:
    server = serve2(echo)
    client = server.client()
    answer = client.wait(client.post(b"/x", b"content"))
    assert (answer.status, bytes(answer.content), answer.ended, answer.reset) == (200, b"POST /x content", True, None)
    assert answer.fields == {
        b"date": b"Sun, 22 Nov 2026 04:29:00 GMT",
        b"server": b"serve",
        b"content-length": b"15",
    }
    assert bytes(client.wait(client.get(b"/y")).content) == b"GET /y "


def test_what_it_was_to_read_comes_in_one_frame_and_what_it_sends_by_the_byte(serve2: Serve) -> None:
    server = serve2(echo)
    client = server.client()
    stream_id, head = client.head(POST, False, b"/p")
    for byte in head + data(stream_id, b"abc") + data(stream_id, b"def", True):
        client.send(bytes([byte]))
    assert bytes(client.wait(stream_id).content) == b"POST /p abcdef"


def test_a_body_that_comes_with_its_head_is_there_when_the_application_is_called(serve2: Serve) -> None:
    seen: list[tuple[str, bytes, bool]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        message = await receive()
        seen.append((scope["path"], message["body"], message["more_body"]))
        await respond(send, b"")

    client = serve2(app).client()
    (first, head1), (second, head2), (third, head3) = (client.head(POST, False, path) for path in (b"/1", b"/2", b"/3"))
    bodies = (
        data(first, b"ab"),
        data(first, b"c", True),
        data(second, b"d"),
        data(third, b"e", True),
        data(second, b"f"),
    )
    client.send(head1, bodies[0], bodies[1], head2, bodies[2], head3, bodies[3], bodies[4])
    for stream_id in (first, second, third):
        client.wait(stream_id)
    assert seen == [("/1", b"abc", False), ("/2", b"df", True), ("/3", b"e", False)]


def test_the_scope_says_http_2(serve2: Serve) -> None:
    seen: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope)
        await respond(send, b"")

    server = serve2(app)
    client = server.client()
    client.wait(client.get(b"/a%20b?c=d", (b"cookie", b"a=1"), (b"cookie", b"b=2"), (b"te", b"trailers")))
    (scope,) = seen
    assert (scope["http_version"], scope["method"], scope["scheme"]) == ("2", "GET", "http")
    assert (scope["path"], scope["raw_path"], scope["query_string"]) == ("/a b", b"/a%20b", b"c=d")
    assert scope["headers"] == [(b"host", b"a"), (b"cookie", b"a=1; b=2"), (b"te", b"trailers")]
    assert scope["client"][0] == "127.0.0.1"
    assert scope["server"] == server.address
    assert "http.response.trailers" in scope["extensions"]
    assert "http.response.push" not in scope["extensions"]


# ---- the client goes


class Watched:
    """Notes what `receive` and `send` do once the client has gone."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.errors: list[str] = []
        self.begun = asyncio.Event()
        self.ended = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if scope["path"] == "/stream":
                await send(start())
                await send(body(b"first", more=True))
            self.begun.set()
            while True:
                message = await receive()
                self.messages.append(message["type"])
                if message["type"] == "http.disconnect":
                    break
            try:
                if scope["path"] != "/stream":
                    await send(start())
                await send(body(b"in vain", more=True))
            except OSError as error:
                self.errors.append(type(error).__name__)
        finally:
            self.ended += 1


@pytest.mark.parametrize("path", [b"/stream", b"/wait"])
def test_a_reset_is_a_disconnect_of_that_request_alone(serve2: Serve, path: bytes) -> None:
    app = Watched()
    server = serve2(app)
    client = server.client()
    stream_id, other = client.get(path), client.get(b"/stream")
    client.wait_for_content(other, 5)
    client.reset(stream_id)
    server.until(lambda: app.ended == 1)
    assert app.messages == ["http.request", "http.request", "http.disconnect"]
    client.sync()
    assert not client.answers[other].over
    assert server.cell(Cell.HTTP2_RESETS_RECEIVED) == 1
    server.until(lambda: len(server.newest().streams._handlers) == 1)


def test_a_request_that_comes_together_with_its_reset_is_a_disconnect(serve2: Serve) -> None:
    app = Watched()
    server = serve2(app)
    client = server.client()
    stream_id, head = client.head(path=b"/wait")
    client.send(head, frames.reset_frame(stream_id, ErrorCode.CANCEL))
    server.until(lambda: app.ended == 1)
    assert app.messages[-1] == "http.disconnect"
    assert not server.newest().streams._handlers


@pytest.mark.parametrize("path", [b"/stream", b"/wait"])
def test_the_connections_end_is_a_disconnect_of_all(serve2: Serve, path: bytes) -> None:
    app = Watched()
    server = serve2(app)
    client = server.client()
    for _ in range(5):
        client.get(path)
    client.sync()
    client.close()
    server.until(lambda: app.ended == 5 and not server.worker.connections and not server.worker.tasks)
    assert server.cell(Cell.IN_FLIGHT) == 0


def test_a_client_that_ends_its_side_gets_all_its_responses_and_the_end(serve2: Serve) -> None:
    server = serve2(echo)
    client = server.client()
    streams = [client.post(b"/%d" % number, b"x") for number in range(5)]
    client.end()
    assert [bytes(client.wait(stream_id).content) for stream_id in streams] == [
        b"POST /%d x" % number for number in range(5)
    ]
    client.read_to_end()
    server.until(lambda: not server.worker.connections)


def test_half_a_request_is_never_whole_when_the_client_ends_its_side(serve2: Serve) -> None:
    app = Watched()
    server = serve2(app)
    client = server.client()
    stream_id = client.post(b"/wait")
    client.send(data(stream_id, b"some"))
    client.sync()
    client.end()
    assert client.wait(stream_id).reset is ErrorCode.CANCEL
    client.read_to_end()
    server.until(lambda: app.ended == 1 and not server.worker.connections)


def test_a_response_that_waits_for_its_window_is_whole_though_its_request_never_will_be(serve2: Serve) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, bytes(60_000))

    server = serve2(app)
    client = server.client({4: 30_000})
    stream_id = client.post()
    client.wait_for_content(stream_id, 30_000)
    client.widen(stream_id, 20_000)
    client.end()
    answer = client.wait_for_content(stream_id, 50_000)
    assert answer.reset is None
    server.until(lambda: server.newest().eof)
    server.run(lambda: None)
    assert server.newest().core.waits(stream_id)  # for a window that can no longer come


# ---- back-pressure


@pytest.mark.parametrize("where", ["stream", "connection", "transport"])
def test_an_application_waits_for_a_client_that_does_not_read(serve2: Serve, where: str) -> None:
    sent = 0
    piece = bytes(8192)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal sent
        if scope["path"] == "/short":
            await respond(send, b"short")
            return
        await send(start())
        while True:
            await send(body(piece, more=True))
            sent += len(piece)
            if where == "transport":
                await asyncio.sleep(0)

    server = serve2(app)
    if where == "transport":
        client = server.client({4: (1 << 31) - 1}, SO_RCVBUF=65536)
    else:
        client = server.client({}, 0 if where == "connection" else 1 << 24)
    stream_id = client.get(b"/endless")
    if where != "transport":
        client.wait_for_content(stream_id, 65_535)
        assert client.answers[stream_id].content.count(0) == 65_535
    before = -1

    def stands() -> bool:
        nonlocal before
        before, again = sent, before
        return before == again and before > 0

    connection = server.newest()
    server.until(stands)
    core, output = connection.core, connection.output
    held = server.run(lambda: (core.unwritten, sum(map(core.queued, core.open_streams())), output.unwritten()))
    assert held[0] <= 512 * 1024
    assert held[1] <= 128 * 1024
    assert held[2] <= 1 << 20
    if where == "stream":
        assert bytes(client.wait(client.get(b"/short")).content) == b"short"
    count = sent
    if where == "transport":
        while len(client.answers[stream_id].content) < count + 100_000:
            client.read_some()
    else:
        client.widen(stream_id, 1 << 20)
        client.widen(0, 1 << 20)
        client.wait_for_content(stream_id, 65_535 + (1 << 20))
    server.until(lambda: sent > count)
    assert client.answers[stream_id].reset is None


def test_an_upload_that_nobody_reads_is_bounded_by_the_windows_and_goes_on_when_it_is_read(serve2: Serve) -> None:
    go = asyncio.Event()
    got = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal got
        await go.wait()
        while True:
            message = await receive()
            got += len(message["body"])
            if not message["more_body"]:
                break
        await respond(send, b"%d" % got)

    server = serve2(app)
    client = server.client()
    stream_id = client.post()
    size = frames.LEAST_MAX_FRAME_SIZE
    for _ in range(STREAM_WINDOW // size):
        client.send(data(stream_id, bytes(size)))
    client.sync()
    assert client.of(frames.WINDOW_UPDATE, stream_id) == []
    server.run(go.set)
    client.read_until(lambda: client.of(frames.WINDOW_UPDATE, stream_id))
    granted = sum(int.from_bytes(said.payload, "big") for said in client.of(frames.WINDOW_UPDATE, stream_id))
    assert granted == STREAM_WINDOW
    client.send(data(stream_id, bytes(1000), True))
    assert bytes(client.wait(stream_id).content) == b"%d" % (STREAM_WINDOW + 1000)


def test_a_client_that_ignores_the_window_loses_that_stream(serve2: Serve) -> None:
    forever = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/get":
            await respond(send, b"yes")
        else:
            await forever.wait()

    server = serve2(app)
    client = server.client()
    stream_id = client.post()
    client.send(data(stream_id, bytes(STREAM_WINDOW + 1)))
    assert client.wait(stream_id).reset is ErrorCode.FLOW_CONTROL_ERROR
    assert bytes(client.wait(client.get(b"/get")).content) == b"yes"
    # What nobody takes any more is granted to the connection again: uploads go on, however many have failed.
    for _ in range(20):
        other = client.post()
        client.send(data(other, bytes(STREAM_WINDOW)))
        client.reset(other)
    assert bytes(client.wait(client.get(b"/get")).content) == b"yes"
    (connection,) = server.run(lambda: list(server.worker.connections))
    assert isinstance(connection, Http2Connection)
    assert connection.core.receiver.streams.window.waiting == 0
    server.run(forever.set)


# ---- limits


def test_one_stream_too_many_is_refused_and_counts_until_its_application_has_returned(serve2: Serve) -> None:
    go = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await go.wait()
        await respond(send, b"ok")

    server = serve2(app, h2_max_streams=3)
    client = server.client()
    client.sync()
    assert client.settings[3] == 3
    first = [client.get() for _ in range(3)]
    assert client.wait(client.get()).reset is ErrorCode.REFUSED_STREAM
    client.reset(first[0])
    assert client.wait(client.get()).reset is ErrorCode.REFUSED_STREAM  # its application works on
    server.run(go.set)
    assert [client.wait(stream_id).status for stream_id in first[1:]] == [200, 200]
    assert client.wait(client.get()).status == 200


def test_more_requests_than_the_worker_takes_are_answered_503(serve2: Serve) -> None:
    go = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await go.wait()
        await respond(send, b"ok")

    server = serve2(app, max_concurrency=2)
    server.worker.access_log = log = Log()  # type: ignore[assignment]
    client = server.client()
    first = [client.get(), client.get()]
    answer = client.wait(client.get(b"/third"))
    assert (answer.status, answer.fields[b"retry-after"]) == (503, b"1")
    assert b"connection" not in answer.fields
    assert b"keep-alive" not in answer.fields
    server.run(go.set)
    assert [client.wait(stream_id).status for stream_id in first] == [200, 200]
    assert server.cell(Cell.REFUSED) == 1
    assert sorted(record[4] for record in log.records) == [200, 200, 503]


@pytest.mark.parametrize("whole", [True, False])
def test_requests_of_one_moment_are_counted_at_once(serve2: Serve, whole: bool) -> None:
    go = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await go.wait()
        await respond(send, b"ok")

    server = serve2(app, max_concurrency=2)
    client = server.client()
    pieces, streams = [], []
    for number in range(6):
        has_body = number % 2 == 0
        stream_id, head = client.head(POST if has_body else GET, not has_body)
        streams.append(stream_id)
        pieces.append(head + (data(stream_id, b"x", True) if has_body and whole else b""))
    client.send(*pieces)
    for stream_id in streams[2:]:
        client.wait(stream_id)
    server.run(go.set)
    assert sorted(client.wait(stream_id).status for stream_id in streams) == [200, 200, 503, 503, 503, 503]


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_that_is_too_large_is_answered_413(serve2: Serve, announced: bool) -> None:
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        message: Message = {"more_body": True}
        while message.get("more_body"):
            message = await receive()
            seen.append(message["type"])
        await respond(send, b"")

    server = serve2(app, max_body_size=1000)
    client = server.client()
    more = [(b"content-length", b"2000")] if announced else []
    stream_id = client.post(b"/", None, *more)
    if not announced:
        client.send(data(stream_id, bytes(2000)))
    answer = client.wait(stream_id)
    assert answer.status == 413
    if announced:
        assert seen == []
    else:
        server.until(lambda: seen == ["http.disconnect"])
    assert bytes(client.wait(client.post(b"/", b"small")).content) == b""


def test_a_body_that_is_too_large_may_come_with_its_head(serve2: Serve) -> None:
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append((await receive())["type"])
        await respond(send, b"")

    server = serve2(app, max_body_size=1000)
    client = server.client()
    stream_id, head = client.head(POST, False, b"/")
    client.send(head + data(stream_id, bytes(2000)))
    assert client.wait(stream_id).status == 413
    server.until(lambda: seen == ["http.disconnect"])
    client.send(data(stream_id, bytes(2000), True))
    assert client.wait(client.post(b"/", b"small")).status == 200
    server.until(lambda: server.worker.cells[Cell.IN_FLIGHT] == 0)


def test_a_head_that_is_too_large_is_answered_431_and_the_connection_goes_on(serve2: Serve) -> None:
    server = serve2(echo, max_head_size=16384, max_target_size=8000)
    server.worker.access_log = log = Log()  # type: ignore[assignment]
    client = server.client()
    client.sync()
    assert client.settings[6] == 16384
    assert client.wait(client.get(b"/", (b"x", b"y" * 17_000))).status == 431
    assert client.wait(client.get(b"/" + b"x" * 9000)).status == 414
    assert client.wait(client.get()).status == 200
    assert [record[4] for record in log.records] == [431, 414, 200]


def test_the_health_path_is_answered_by_the_server(serve2: Serve) -> None:
    server = serve2(echo, health_path="/healthz")
    client = server.client()
    assert client.wait(client.get(b"/healthz")).status == 200
    assert server.cell(Cell.REQUESTS) == 0
    assert client.wait(client.get(b"/other")).status == 200


# ---- what goes on behind a response


async def deaf(scope: Scope, receive: Receive, send: Send) -> None:
    await respond(send, b"enough")


def test_a_body_that_is_not_wanted_ends_with_no_error_behind_the_response(serve2: Serve) -> None:
    server = serve2(deaf)
    client = server.client()
    stream_id = client.post()  # of unknown length
    answer = client.wait(stream_id)
    assert (answer.status, bytes(answer.content), answer.ended) == (200, b"enough", True)
    client.read_until(lambda: client.of(frames.RST_STREAM, stream_id))
    assert client.of(frames.RST_STREAM, stream_id)[0].code is ErrorCode.NO_ERROR
    client.send(data(stream_id, b"on its way", True))
    assert client.wait(client.get()).status == 200


def test_a_small_body_that_is_announced_may_come_behind_the_response(serve2: Serve) -> None:
    server = serve2(deaf)
    client = server.client()
    stream_id = client.post(b"/", None, (b"content-length", b"10"))
    assert client.wait(stream_id).status == 200
    client.sync()
    assert client.of(frames.RST_STREAM) == []
    client.send(data(stream_id, b"0123456789", True))
    client.sync()
    assert client.of(frames.RST_STREAM) == []
    server.until(lambda: not server.newest().streams._handlers)


def test_an_application_may_read_its_request_while_it_answers(serve2: Serve) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        more = True
        while more:
            message: Any = await receive()
            more = message["more_body"]
            await send(body(message["body"], more=more))

    server = serve2(app)
    client = server.client()
    stream_id = client.post()
    for number in range(1, 30):
        client.send(data(stream_id, b"%03d" % number))
        assert client.wait_for_content(stream_id, 3 * number).content[-3:] == b"%03d" % number
    client.send(data(stream_id, b"", True))
    assert client.wait(stream_id).ended


async def reading(scope: Scope, receive: Receive, send: Send) -> None:
    await respond(send, await read(receive))


def test_large_bodies_in_both_directions_at_once(serve2: Serve) -> None:
    server = serve2(reading)
    client = server.client({4: 1 << 24})
    content = bytes(range(256)) * 300
    streams = [client.post(b"/", content) for _ in range(6)]
    for stream_id in streams:
        assert bytes(client.wait(stream_id).content) == content
