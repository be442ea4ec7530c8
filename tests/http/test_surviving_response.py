"""Streamed responses that go on in another worker: the connection's side, between servers of one process."""

from __future__ import annotations

import asyncio
import itertools
import os
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from socket import SO_LINGER, SOL_SOCKET
from typing import Any

import pytest

from serve_asgi.http import survival
from serve_asgi.http.connection import Http1Connection
from serve_asgi.http.connection_states import ConnectionState
from serve_asgi.http.dropped_messages import ClientDisconnected
from serve_asgi.http.hand_over_record import HandOverRecord
from serve_asgi.http.response_states import ResponseState
from serve_asgi.http.survival import EXTENSION, REFUSAL, Survival
from serve_asgi.http.survival_record import SurvivalRecord
from serve_asgi.http.worker_context import ASGIApplication, Message, Receive, Scope, Send, WorkerPhase
from serve_asgi.ipc.scoreboard import Cell
from tests.connection_server import Log
from tests.http.held_application import get
from tests.http.http_server import GET, Client, HttpServer, answering, body, respond, start
from tests.http.numbers_application import EVENTS, Numbers, Serve, piece, retire, serve_again, survive


@pytest.fixture(autouse=True)
def _no_least_life(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lives may be as short as a test."""
    monkeypatch.setattr(survival, "LEAST_LIFE", 0.0)


@pytest.fixture(autouse=True)
def _one_parser(request: pytest.FixtureRequest) -> None:
    """The request's head is read again by the parser of the next worker: one spread of parsers and loops is enough."""


@pytest.fixture(params=["httptools-uvloop", "h11-asyncio"])
def serve(request: pytest.FixtureRequest) -> Iterator[Serve]:
    servers: list[HttpServer] = []
    http_name, loop_name = str(request.param).split("-")

    def begin(app: ASGIApplication, **config: Any) -> HttpServer:
        server = HttpServer(app, loop_name, http=http_name, **{"survive_window": 0.0, **config})
        servers.append(server)
        return server

    yield begin
    for server in servers:
        server.stop()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def depart(server: HttpServer) -> tuple[Http1Connection, int, HandOverRecord]:
    """The worker retires, and its one connection is offered to another one."""
    departing = retire(server)
    server.until(lambda: bool(departing) and departing[0].can_leave())
    descriptor, record = server.run(departing[0].leave)
    return departing[0], descriptor, record


def move(old: HttpServer, new: HttpServer) -> Http1Connection:
    """The connection's hand-over, from beginning to end; the old worker serves again."""
    connection, descriptor, record = depart(old)
    old.run(connection.gone)
    old.until(lambda: old.cell(Cell.CONNECTIONS) == 0)
    serve_again(old)
    return new.take(descriptor, HandOverRecord.from_json(record.to_json()))


def begin(numbers: Numbers, request: bytes = GET, count: int = 3, **config: Any) -> tuple[Client, bytes]:
    """A client that has read the head and `count` numbers."""
    client = numbers.server.connect(**config)
    client.send(request)
    numbers.allow(count)
    head = client.read_until(b"\r\n\r\n")
    return client, head


def expect(client: Client, first: int, last: int, framed: Callable[[bytes], bytes] = chunk) -> None:
    wanted = b"".join(framed(piece(number)) for number in range(first, last))
    assert client.read(len(wanted)) == wanted


def raw(data: bytes) -> bytes:
    return data


LENGTH = sum(len(piece(number)) for number in range(20))


@pytest.mark.parametrize("kind", ["chunked", "length", "until close"])
def test_stream_goes_on_in_another_worker(serve: Serve, kind: str) -> None:
    headers = [EVENTS, (b"content-length", b"%d" % LENGTH)] if kind == "length" else [EVENTS]
    first, second = Numbers(*headers, last=20), Numbers(*headers, last=20)
    servers = first.on(serve), second.on(serve)
    logs = [Log(), Log()]
    for server, log in zip(servers, logs, strict=True):
        server.worker.access_log = log  # type: ignore[assignment]
    request = GET if kind != "until close" else b"GET / HTTP/1.0\r\nHost: a\r\n\r\n"
    framed = chunk if kind == "chunked" else raw
    client, head = begin(first, request)
    assert (b"transfer-encoding: chunked" in head) is (kind == "chunked")
    at = 0
    here = 0
    for count in (3, 6, 9, 12):
        (first, second)[here].allow(count)
        expect(client, at, count, framed)
        at = count
        move(servers[here], servers[1 - here])
        here = 1 - here
    (first, second)[here].allow(20)
    expect(client, at, 20, framed)
    if kind == "until close":
        assert client.read_to_end() == b""
    else:
        assert client.read_until(b"0\r\n\r\n" if kind == "chunked" else b"") in (b"0\r\n\r\n", b"")
        client.send(get(b"/after"))
        assert client.answer()[2] == b"/after"
    lives = [*first.lives, *second.lives]
    assert [life.resumed for life in first.lives] == [False, True, True]
    assert [life.resumed for life in second.lives] == [True, True]
    assert {life.version for life in lives if life.resumed} == {7}
    assert sum(server.cell(Cell.SURVIVED) for server in servers) == 4
    assert sum(server.cell(Cell.NOT_SURVIVED) for server in servers) == 0
    answered = 1 if kind == "until close" else 2
    servers[0].until(lambda: sum(server.cell(Cell.REQUESTS) for server in servers) == answered)
    assert sum(server.cell(Cell.STATUS_2XX) for server in servers) == answered
    (line,) = (each for log in logs for each in log.records if each[2] == "/")
    assert line[4:6] == (200, LENGTH)
    scopes = [{**scope, "extensions": None, "server": None} for scope in (*first.scopes, *second.scopes)]
    assert scopes.count(scopes[0]) == 5
    servers[0].until(lambda: sum(server.cell(Cell.IN_FLIGHT) for server in servers) == 0)


def test_requests_behind_the_stream_are_answered_after_it(serve: Serve) -> None:
    old, new = Numbers(last=5), Numbers(last=5)
    servers = old.on(serve), new.on(serve)
    client, _ = begin(old, GET + get(b"/a") + GET[:7])
    expect(client, 0, 3)
    move(*servers)
    client.send(GET[7:].replace(b"/", b"/b", 1) if GET[:7].endswith(b" ") else GET[7:])
    new.allow(5)
    expect(client, 3, 5)
    client.read_until(b"0\r\n\r\n")
    assert client.answer()[2] == b"/a"
    assert client.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 200")


def test_body_that_was_not_received_is_the_next_lifes(serve: Serve) -> None:
    """And nothing of it is received twice."""
    moved: list[Scope] = []

    class Unread(Numbers):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            kept = survive(self.server, scope)
            moved.append(scope)
            if kept.resumed:
                self.received.append(await receive())
                gone = asyncio.ensure_future(receive())
                await send(start(200, EVENTS))
                await asyncio.sleep(0.01)
                assert not gone.done()
                await send(body(b"end"))
                assert (await gone)["type"] == "http.disconnect"
            else:
                await send(start(200, EVENTS))
                await send(body(piece(0), more=True))
                while self.server.worker.phase is not WorkerPhase.HANDING_OVER:
                    await asyncio.sleep(0.002)

    old, new = Unread(), Unread()
    servers = old.on(serve), new.on(serve)
    client = servers[0].connect()
    client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbo")
    client.read_until(piece(0))
    client.send(b"dyGET")
    servers[0].until(lambda: bool(servers[0].connection().pipeline.buffer))
    move(*servers)
    client.send(b" /next HTTP/1.1\r\nHost: a\r\n\r\n")
    assert client.read_until(b"0\r\n\r\n").endswith(chunk(b"end") + b"0\r\n\r\n")
    assert new.received == [{"type": "http.request", "body": b"body", "more_body": False}]


def test_life_ends_only_when_the_request_is_whole(serve: Serve) -> None:
    """A handler that streams what it is sent."""

    async def echo_upload(scope: Scope, receive: Receive, send: Send) -> None:
        kept = survive(server, scope)
        if not kept.resumed:
            await send(start(200, EVENTS))
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return
                await send(body(message["body"], more=True))
        await send(start(200, EVENTS))
        await send(body(b"again"))

    server = serve(echo_upload)
    client = server.connect()
    client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nab")
    client.read_until(chunk(b"ab"))
    departing = retire(server)
    server.wait_for(asyncio.sleep(0.05))
    assert server.connection().state is ConnectionState.REQUEST
    client.send(b"cd")
    server.until(lambda: bool(departing))
    server.run(departing[0].remain)
    answer = client.read_until(b"0\r\n\r\n")
    assert answer in (chunk(b"cd") + chunk(b"again") + b"0\r\n\r\n", chunk(b"again") + b"0\r\n\r\n")


@pytest.mark.parametrize("when", ["waiting", "started"])
def test_life_that_is_to_end_before_the_head_is_out(serve: Serve, when: str) -> None:
    """It ends when the application has given a head, which the client then gets, before anything of the body."""
    go: dict[str, asyncio.Event] = {name: asyncio.Event() for name in ("waiting", "started")}
    calls: list[Survival] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        kept = survive(server, scope)
        calls.append(kept)
        await receive()
        await go["waiting"].wait()
        await send(start(200, EVENTS))
        if kept.resumed:
            await send(body(b"second"))
        else:
            assert (await receive())["type"] == "http.disconnect"
            await send(body(b"first", more=True))

    server = serve(app)
    client = server.connect()
    client.send(GET)
    server.until(lambda: bool(calls))
    if when == "started":
        server.run(go["waiting"].set)
    departing = retire(server)
    server.wait_for(asyncio.sleep(0.02))
    assert bool(departing) is (when == "started")
    server.run(go["waiting"].set)
    server.until(lambda: bool(departing))
    assert client.read_until(chunk(b"first")).startswith(b"HTTP/1.1 200")
    server.run(departing[0].remain)
    assert client.read_until(b"0\r\n\r\n") == chunk(b"second") + b"0\r\n\r\n"


def test_file_under_way_is_sent_to_its_end(serve: Serve, tmp_path: Path) -> None:
    """The response goes on behind it in another life."""
    path = tmp_path / "file"
    content = os.urandom(8 << 20)
    path.write_bytes(content)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        kept = survive(server, scope)
        await send(start(200, EVENTS))
        if kept.resumed:
            await send(body(b"end"))
            return
        with path.open("rb") as file:
            await send({"type": "http.response.zerocopysend", "file": file, "more_body": True})
        with pytest.raises(ClientDisconnected), path.open("rb") as file:
            await send({"type": "http.response.zerocopysend", "file": file, "more_body": True})

    server = serve(app)
    client = server.connect(SO_RCVBUF=8192)
    client.send(GET)
    client.read_until(b"\r\n\r\n")
    departing = retire(server)
    server.wait_for(asyncio.sleep(0.02))
    connection = server.connection()
    assert connection.pipeline.response is not None
    assert connection.pipeline.response.state is ResponseState.FILE
    expected = chunk(content)
    assert client.read(len(expected)) == expected
    server.until(lambda: bool(departing))
    server.run(departing[0].remain)
    assert client.read_until(b"0\r\n\r\n") == chunk(b"end") + b"0\r\n\r\n"


def test_last_words_go_out_before_anything_of_the_next_life(serve: Serve) -> None:
    async def say(kept: Survival, send: Send) -> None:
        await send(body(b"bye", more=True))
        await send({"type": EXTENSION, "state": {"next": kept.state["next"], "said": "bye"}, "version": 9})

    old, new = Numbers(at_the_end=say), Numbers()
    servers = old.on(serve), new.on(serve)
    client, _ = begin(old)
    expect(client, 0, 3)
    move(*servers)
    new.allow(5)
    assert client.read(len(chunk(b"bye"))) == chunk(b"bye")
    expect(client, 3, 5)
    servers[1].until(lambda: bool(new.lives))
    assert new.lives[0].version == 9
    assert new.lives[0].state["said"] == "bye"


def test_response_that_is_completed_at_the_end_of_a_life(serve: Serve) -> None:
    """There is no next one, and the connection goes as an idle one."""

    async def end(kept: Survival, send: Send) -> None:
        await send(body(b"end"))

    old = Numbers(at_the_end=end)
    server = old.on(serve)
    client, _ = begin(old)
    expect(client, 0, 3)
    departing = retire(server)
    assert client.read_until(b"0\r\n\r\n") == chunk(b"end") + b"0\r\n\r\n"
    server.until(lambda: bool(departing))
    assert departing[0].state is ConnectionState.IDLE
    assert server.cell(Cell.REQUESTS) == 1
    assert server.cell(Cell.NOT_SURVIVED) == 0


@pytest.mark.parametrize("kind", ["chunked", "length", "trailers"])
def test_empty_end_of_who_was_told_is_passed_over(serve: Serve, kind: str) -> None:
    """Code that takes the client for gone ends its loop, and its framework the body."""
    headers = [EVENTS, (b"content-length", b"%d" % LENGTH)] if kind == "length" else [EVENTS]

    async def end(kept: Survival, send: Send) -> None:
        await send(body(b""))
        if kind == "trailers":
            await send({"type": "http.response.trailers", "headers": [(b"a", b"b")]})

    old, new = Numbers(*headers, last=20, at_the_end=end), Numbers(*headers, last=20)
    servers = old.on(serve), new.on(serve)
    client, _ = begin(old)
    framed = raw if kind == "length" else chunk
    expect(client, 0, 3, framed)
    move(*servers)
    new.allow(20)
    expect(client, 3, 20, framed)
    client.send(get(b"/after"))
    client.read_until(b"\r\n\r\n/after" if kind == "length" else b"/after")
    assert servers[0].cell(Cell.NOT_SURVIVED) == 0


@pytest.mark.parametrize("which", ["whole", "untold"])
def test_empty_end_of_what_is_whole_or_of_who_was_not_told_completes(serve: Serve, which: str) -> None:
    go = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        survive(server, scope)
        length = [(b"content-length", b"%d" % len(piece(0)))] if which == "whole" else []
        await send(start(200, EVENTS, *length))
        await send(body(piece(0), more=True))
        await go.wait()
        while which == "whole" and (await receive())["type"] != "http.disconnect":
            pass
        await send(body(b""))

    server = serve(app)
    client = server.connect()
    client.send(GET)
    client.read_until(piece(0))
    departing = retire(server)
    server.run(go.set)
    if which == "untold":
        assert client.read_until(b"0\r\n\r\n") == b"\r\n0\r\n\r\n"
    server.until(lambda: bool(departing))
    assert departing[0].state is ConnectionState.IDLE
    assert server.cell(Cell.REQUESTS) == 1


def test_handler_that_returns_by_itself_when_its_worker_retires(serve: Serve) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        kept = survive(server, scope)
        await send(start(200, EVENTS))
        await send(body(b"%d" % kept.state.get("life", 0), more=True))
        kept.state["life"] = kept.state.get("life", 0) + 1
        while server.worker.phase is WorkerPhase.SERVING:
            await asyncio.sleep(0.002)

    server = serve(app, survive_window=1000.0)
    client = server.connect()
    client.send(GET)
    client.read_until(chunk(b"0"))
    departing = retire(server)
    server.until(lambda: bool(departing))
    serve_again(server)
    assert client.read(len(chunk(b"1"))) == chunk(b"1")
    assert server.cell(Cell.SURVIVED) == 1


@pytest.mark.parametrize("old_version", [b"HTTP/1.1", b"HTTP/1.0"])
@pytest.mark.parametrize("fault", ["raises", "hangs", "unfit", "large"])
def test_life_that_does_not_end_well_is_cut(
    serve: Serve, fault: str, old_version: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "serve")

    async def end(kept: Survival, send: Send) -> None:
        if fault == "raises":
            raise ZeroDivisionError
        if fault == "hangs":
            await asyncio.sleep(60)
        kept.state = {"a": object()} if fault == "unfit" else {"a": "x" * 65536}

    old = Numbers(at_the_end=end)
    server = old.on(serve, survive_timeout=0.1)
    client, _ = begin(old, GET.replace(b"HTTP/1.1", old_version))
    framed = chunk if old_version == b"HTTP/1.1" else raw
    expect(client, 0, 3, framed)
    departing = retire(server)
    if old_version == b"HTTP/1.1":
        assert client.read_to_end() == b""  # without the last chunk
    else:
        with pytest.raises(ConnectionResetError):
            client.read_to_end()
    assert not departing
    server.until(lambda: server.cell(Cell.NOT_SURVIVED) == 1)
    assert server.cell(Cell.REQUESTS) == 1
    reason = {
        "raises": "its handler failed",
        "hangs": "had not returned 0.1 s after",
        "unfit": "cannot be written as JSON",
        "large": "keep it below 65536",
    }[fault]
    assert "the response to GET / did not survive: " in caplog.text
    assert reason in caplog.text
    for task in list(server.worker.tasks):
        server.run(task.cancel)


def test_handler_that_only_sends_is_told_by_send(serve: Serve) -> None:
    """What `send` has taken is out, and what it has refused is not."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        kept = survive(server, scope)
        number = kept.state.get("next", 0)
        await send(start(200, EVENTS))
        while True:
            await asyncio.sleep(0.01)
            await send(body(piece(number), more=number < 100))
            number += 1
            kept.state["next"] = number

    server = serve(app, survive_timeout=0.3)
    client = server.connect()
    client.send(GET)
    client.read_until(chunk(piece(3)))
    departing = retire(server)
    server.until(lambda: bool(departing))
    serve_again(server)
    expect(client, 4, 101)
    assert client.read(5) == b"0\r\n\r\n"
    assert server.cell(Cell.NOT_SURVIVED) == 0


def test_slow_reader(serve: Serve) -> None:
    """Writers are let go; the connection moves when the client has taken what was sent."""
    refused: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        kept = survive(server_of[scope["extensions"]["serve"]["slot"]], scope)
        number = kept.state.get("next", 0)
        await send(start(200, EVENTS))
        try:
            while number < 400:
                await send(body(large(number), more=number + 1 < 400))
                number += 1
                kept.state["next"] = number
        except ClientDisconnected:
            refused.append(number)
            raise

    def large(number: int) -> bytes:
        return b"%06d" % number * 10000

    server_of = [serve(app), serve(app)]
    server_of[1].worker.slot = 1
    old, new = server_of
    client = old.connect(SO_RCVBUF=8192)
    client.send(GET)
    client.read_until(b"\r\n\r\n")
    connection = old.connection()
    old.until(lambda: connection.output.paused)
    departing = retire(old)
    old.until(lambda: connection.state is ConnectionState.PARTED)
    assert len(refused) == 1
    assert not departing
    next_one = 0
    while not departing:
        expected = chunk(large(next_one))
        assert client.read(len(expected)) == expected
        next_one += 1
    old.until(departing[0].can_leave)
    descriptor, record = old.run(departing[0].leave)
    old.run(departing[0].gone)
    new.take(descriptor, record)
    for number in range(next_one, 400):
        expected = chunk(large(number))
        assert client.read(len(expected)) == expected, number
    assert client.read(5) == b"0\r\n\r\n"


def test_client_that_takes_nothing_between_two_lives_is_cut(serve: Serve) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        survive(server, scope)
        await send(start(200, EVENTS))
        while True:
            await send(body(bytes(100000), more=True))

    server = serve(app, write_timeout=0.2)
    client = server.connect(SO_RCVBUF=8192)
    client.send(GET)
    client.read_until(b"\r\n\r\n")
    connection = server.connection()
    server.until(lambda: connection.output.paused)
    retire(server)
    server.until(lambda: connection.state is ConnectionState.CLOSED)
    assert server.cell(Cell.REQUESTS) == 1


class Answering(Numbers):
    """New code, which answers with these messages."""

    def __init__(self, *messages: Message) -> None:
        super().__init__()
        self.answer = answering(*messages)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.answer(scope, receive, send)


TYPE = (b"content-type", b"text/html; charset=utf-8")
OTHER_ANSWERS = {
    "another status": ([start(404, EVENTS), body(b"no such route")], "now answers 404, where the client has had 200"),
    "another type": ([start(200, TYPE), body(b"<!doctype html>")], "now answers with text/html"),
    "no type": ([start(200), body(b"hello")], "now answers with no type"),
    "a length": ([start(200, EVENTS, (b"content-length", b"5")), body(b"hello")], "now answers with 5 bytes"),
    "an encoding": ([start(200, EVENTS, (b"content-encoding", b"gzip")), body(b"\x1f\x8b")], "now compresses it"),
    "nothing": ([], "its handler failed"),
    "a body at once": ([body(b"hello")], "its handler failed"),
    "wrong headers": ([start(200, (b"a", b"b\r\n"))], "its handler failed"),
    "a refusal": ([{"type": REFUSAL, "reason": "too old"}, start(200, EVENTS), body(b"hello")], "too old"),
    "a refusal later": ([start(200, EVENTS), {"type": REFUSAL}, body(b"hello")], "refused to go on with it"),
}


@pytest.mark.parametrize("what", OTHER_ANSWERS)
def test_new_code_that_cannot_go_on_gets_the_response_cut(
    serve: Serve, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "serve")
    messages, reason = OTHER_ANSWERS[what]
    old, new = Numbers(), Answering(*messages)
    servers = old.on(serve), new.on(serve)
    client, _ = begin(old)
    expect(client, 0, 3)
    move(*servers)
    assert client.read_to_end() == b""
    servers[1].until(lambda: servers[1].cell(Cell.NOT_SURVIVED) == 1)
    assert reason in caplog.text
    assert servers[1].cell(Cell.SURVIVED) == (1 if what == "a refusal later" else 0)
    assert servers[1].cell(Cell.REQUESTS) == 1
    assert servers[1].cell(Cell.IN_FLIGHT) == 0


def test_new_code_of_another_kind_resets_what_ends_with_the_connection(serve: Serve) -> None:
    old, new = Numbers(), Answering(start(404), body(b"no such route"))
    servers = old.on(serve), new.on(serve)
    client, _ = begin(old, GET.replace(b"HTTP/1.1", b"HTTP/1.0"))
    expect(client, 0, 3, raw)
    move(*servers)
    with pytest.raises(ConnectionResetError):
        client.read_to_end()


def test_refuse_of_the_public_function(serve: Serve) -> None:
    """In a first life it only takes the wish back."""

    class Refusing(Numbers):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            kept = survive(self.server, scope)
            kept.refuse("not this one")
            await send(start(200, EVENTS))
            await send(body(piece(0), more=True))
            await self.more.wait()
            await send(body())

    old, refusing = Numbers(), Refusing()
    servers = old.on(serve), refusing.on(serve)
    client, _ = begin(old)
    expect(client, 0, 3)
    move(*servers)
    assert client.read_to_end() == b""
    assert servers[1].cell(Cell.NOT_SURVIVED) == 1
    client = servers[1].connect()
    client.send(GET)
    client.read_until(chunk(piece(0)))
    assert not retire(servers[1])
    refusing.allow(1)
    assert client.read(5) == b"0\r\n\r\n"


def test_plain_messages(serve: Serve) -> None:
    """Without the public function, and in any order with http.response.start."""
    extensions: list[dict[str, Any]] = []
    opted_in = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        extension = scope["extensions"][EXTENSION]
        extensions.append(extension)
        state = extension.get("state") or {"lives": 0}
        if state["lives"] != 1:
            await send({"type": EXTENSION})
        await send(start(200, EVENTS))
        await send({"type": EXTENSION, "state": {"lives": state["lives"] + 1}, "version": state["lives"]})
        for wrong in ({"version": "1"}, {"state": {"a": {1, 2}}}, {"state": "x" * 65536}):
            with pytest.raises((TypeError, ValueError), match=EXTENSION):
                await send({"type": EXTENSION, **wrong})
        with pytest.raises(RuntimeError, match=r"Expected the message http\.response\.body"):
            await send({"type": "http.response.other"})
        await send(body(b"x", more=True))
        opted_in.set()
        await receive()
        assert (await receive())["type"] == "http.disconnect"

    server = serve(app)
    client = server.connect()
    client.send(GET)
    server.wait_for(opted_in.wait())
    for _ in range(3):
        departing = retire(server)
        server.until(lambda departing=departing: bool(departing))  # type: ignore[misc]
        server.run(opted_in.clear)
        serve_again(server)
        server.wait_for(opted_in.wait())
    assert extensions == [
        {},
        {"resumed": True, "state": {"lives": 1}, "version": 0},
        {"resumed": True, "state": {"lives": 2}, "version": 1},
        {"resumed": True, "state": {"lives": 3}, "version": 2},
    ]
    assert client.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 200")
    assert client.read(24) == chunk(b"x") * 4


def test_messages_that_are_wrong_or_of_no_use_between_two_lives(serve: Serve) -> None:
    """They raise, and change nothing; early hints are passed over."""
    hint = {"type": "http.response.early_hint", "links": [b"</a>; rel=preload"]}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        kept = survive(server, scope)
        if kept.resumed:
            await send(hint)
            for wrong in (body(b"x"), {"type": "http.response.trailers"}):
                with pytest.raises(RuntimeError, match=r"Expected the message http\.response\.start"):
                    await send(wrong)
        await send(start(200, EVENTS))
        await send(body(b"x", more=not kept.resumed))
        if not kept.resumed:
            await receive()
            assert (await receive())["type"] == "http.disconnect"
            await send(hint)
            for wrong in (start(), {"type": "http.response.trailers"}):
                with pytest.raises(RuntimeError, match=r"Expected the message http\.response\.body"):
                    await send(wrong)
            with pytest.raises(TypeError, match="bytes"):
                await send({"type": "http.response.body", "body": "text", "more_body": True})

    server = serve(app, early_hints=True)
    client = server.connect()
    client.send(GET)
    client.read_until(chunk(b"x"))
    departing = retire(server)
    server.until(lambda: bool(departing))
    serve_again(server)
    assert client.read_until(b"0\r\n\r\n") == chunk(b"x") + b"0\r\n\r\n"


def test_who_does_not_opt_in_stays(serve: Serve) -> None:
    """Also a next life that does not; and what the application compresses, until it is cut."""
    gone = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/gzip":
            survive(server, scope)
            await send(start(200, EVENTS, (b"content-encoding", b"gzip")))
        else:
            await send(start(200, EVENTS))
        await send(body(b"x", more=True))
        await receive()
        await receive()
        gone.set()

    server = serve(app)
    clients = [server.connect() for _ in range(2)]
    for client, path in zip(clients, (b"/", b"/gzip"), strict=True):
        client.send(get(path))
        client.read_until(chunk(b"x"))
    departing = retire(server)
    server.wait_for(asyncio.sleep(0.05))
    assert not departing
    assert not gone.is_set()
    assert server.cell(Cell.NOT_SURVIVED) == 0
    for connection in list(server.worker.connections):
        assert server.run(connection.cut)
    assert server.cell(Cell.NOT_SURVIVED) == 1


def test_no_life_ends_at_a_stop(serve: Serve) -> None:
    numbers = Numbers(last=4)
    server = numbers.on(serve)
    client, _ = begin(numbers)
    expect(client, 0, 3)
    retire(server, WorkerPhase.CLOSING)
    numbers.allow(4)
    expect(client, 3, 4)
    assert client.read_to_end() == b"0\r\n\r\n"
    assert len(numbers.lives) == 1
    assert server.cell(Cell.NOT_SURVIVED) == 0


def test_life_that_ends_while_the_worker_begins_to_stop_goes_on_here(serve: Serve) -> None:
    numbers = Numbers(last=4)
    server = numbers.on(serve)
    client, _ = begin(numbers)
    expect(client, 0, 3)
    departing = retire(server)
    server.until(lambda: bool(departing))
    retire(server, WorkerPhase.CLOSING)
    numbers.allow(4)
    expect(client, 3, 4)
    assert len(numbers.lives) == 2


def test_retirement_that_is_called_off(serve: Serve) -> None:
    """Before the moment, and while the application ends its life."""
    numbers = Numbers()
    server = numbers.on(serve, survive_window=1000.0)
    client, _ = begin(numbers)
    expect(client, 0, 3)
    retire(server)
    serve_again(server)
    server.worker.config = type(server.worker.config)(survive_window=0.0)
    numbers.allow(4)
    expect(client, 3, 4)
    assert len(numbers.lives) == 1
    hold = asyncio.Event()

    async def wait(kept: Survival, send: Send) -> None:
        await hold.wait()

    numbers.at_the_end = wait
    connection = server.connection()
    retire(server)
    server.until(lambda: connection.pipeline.response.state is ResponseState.PARTING)  # type: ignore[union-attr]
    serve_again(server)
    server.run(hold.set)
    server.until(lambda: len(numbers.lives) == 2)
    numbers.allow(6)
    expect(client, 4, 6)


def test_hand_over_that_fails(serve: Serve) -> None:
    """The connection stays between two lives until it is offered again, or goes on here."""
    numbers = Numbers()
    server = numbers.on(serve)
    client, _ = begin(numbers)
    expect(client, 0, 3)
    connection, descriptor, record = depart(server)
    os.close(descriptor)
    assert record.survives
    client.send(get(b"/a"))
    server.run(connection.stay)
    assert connection.state is ConnectionState.PARTED
    server.until(lambda: bool(connection.pipeline.buffer))
    server.until(connection.can_leave)
    descriptor, again = server.run(connection.leave)
    os.close(descriptor)
    assert SurvivalRecord.from_bytes(again.leftover).unread == get(b"/a")
    server.run(connection.stay)
    serve_again(server)
    numbers.last = 5
    numbers.allow(5)
    expect(client, 3, 5)
    client.read_until(b"0\r\n\r\n")
    assert client.answer()[2] == b"/a"


def test_client_that_goes_between_two_lives(serve: Serve) -> None:
    for step in ("parted", "leaving", "arrived"):
        old, new = Numbers(), Numbers()
        servers = old.on(serve), new.on(serve)
        client, _ = begin(old)
        expect(client, 0, 3)
        departing = retire(servers[0])
        servers[0].until(lambda departing=departing: bool(departing))  # type: ignore[misc]
        connection = departing[0]
        left = servers[0].run(connection.leave) if step != "parted" else None
        client.sock.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        if left is not None and step == "arrived":
            servers[0].run(connection.gone)
            arrived = servers[1].take(*left)
            servers[1].until(lambda arrived=arrived: arrived.state is ConnectionState.CLOSED)  # type: ignore[misc]
            assert sum(server.cell(Cell.REQUESTS) for server in servers) == 1
        elif left is not None:
            os.close(left[0])
            servers[0].run(connection.stay)
        servers[0].until(lambda: connection.state is ConnectionState.CLOSED)  # noqa: B023
        assert not servers[0].run(connection.cut)
        servers[0].run(connection.remain)
        servers[0].run(connection.retire)
        servers[0].run(connection.resume)


def test_cut_between_two_lives(serve: Serve) -> None:
    numbers = Numbers()
    server = numbers.on(serve)
    client, _ = begin(numbers)
    expect(client, 0, 3)
    departing = retire(server)
    server.until(lambda: bool(departing))
    assert server.run(departing[0].cut)
    assert client.read_to_end() == b""
    assert server.cell(Cell.NOT_SURVIVED) == 1


def test_half_closed_client_travels(serve: Serve) -> None:
    class Deaf(Numbers):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            kept = survive(self.server, scope)
            await send(start(200, EVENTS))
            await send(body(b"1" if kept.resumed else b"0", more=not kept.resumed))
            while not kept.resumed and self.server.worker.phase is WorkerPhase.SERVING:
                await asyncio.sleep(0.002)

    old, new = Deaf(), Deaf()
    servers = old.on(serve), new.on(serve)
    client = servers[0].connect()
    client.send(GET)
    client.read_until(chunk(b"0"))
    client.end()
    servers[0].until(lambda: servers[0].connection().eof)
    move(*servers)
    assert client.read_to_end() == chunk(b"1") + b"0\r\n\r\n"


def test_opting_in_late_or_for_another_request(serve: Serve) -> None:
    scopes: list[Scope] = []
    opting: list[Survival | None] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scopes.append(scope)
        if scope["path"] == "/old":
            opting.append(survive(server, scopes[0]))
        await respond(send, b"ok")
        opting.append(survive(server, scope))

    server = serve(app)
    client = server.connect()
    for path in (b"/", b"/old"):
        client.send(get(path))
        client.answer()
    server.until(lambda: len(opting) == 3)
    assert opting == [None, None, None]
    connection = server.connection()
    assert server.worker.numbered == {scopes[0]["extensions"]["serve"]["connection"]: connection}
    server.run(lambda: connection.refuse_life("nobody asks"))
    client.close()
    server.until(lambda: not server.worker.numbered)


def test_opting_in_when_the_worker_retires_already(serve: Serve) -> None:
    go = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start(200, EVENTS))
        await send(body(b"x", more=True))
        await go.wait()
        survive(server, scope)
        await receive()
        assert (await receive())["type"] == "http.disconnect"

    server = serve(app)
    client = server.connect()
    client.send(GET)
    client.read_until(chunk(b"x"))
    departing = retire(server)
    server.run(go.set)
    server.until(lambda: bool(departing))


def test_a_handler_in_a_thread_may_opt_in_and_refuse(serve: Serve) -> None:
    """As frameworks call those that are no coroutines."""
    old, refused = Numbers(), threading.Event()

    class Refusing(Numbers):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            kept = await asyncio.to_thread(survive, self.server, scope)
            await send(start(200, EVENTS))
            await asyncio.to_thread(kept.refuse, "from a thread")
            refused.set()
            await receive()

    servers = old.on(serve), Refusing().on(serve)
    client, _ = begin(old)
    expect(client, 0, 3)
    move(*servers)
    assert client.read_to_end() == b""
    assert refused.wait(30)
    assert servers[1].cell(Cell.NOT_SURVIVED) == 1


def test_send_after_a_life(serve: Serve) -> None:
    """In a task that the handler has left behind."""
    results: list[BaseException | None] = []
    waiting = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        kept = survive(server, scope)
        await send(start(200, EVENTS))
        if kept.resumed:
            await waiting.wait()
            await send(body(b"end"))
            return

        async def later() -> None:
            await waiting.wait()
            for message in (body(b"late", more=True), {"type": EXTENSION, "state": {}}):
                try:
                    await send(message)
                except OSError as error:
                    results.append(error)
            results.append(None if (await receive())["type"] == "http.disconnect" else OSError())

        server.worker.tasks.add(asyncio.ensure_future(later()))
        await send(body(b"x", more=True))
        await receive()
        await receive()

    server = serve(app)
    client = server.connect()
    client.send(GET)
    client.read_until(chunk(b"x"))
    departing = retire(server)
    server.until(lambda: bool(departing))
    serve_again(server)
    server.run(waiting.set)
    assert client.read_until(b"0\r\n\r\n") == chunk(b"end") + b"0\r\n\r\n"
    server.until(lambda: len(results) == 3)
    assert [type(each) for each in results] == [ClientDisconnected, ClientDisconnected, type(None)]


def test_trailers_and_request_id_travel(serve: Serve) -> None:
    scopes: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        server = servers[scope["extensions"]["serve"]["slot"]]
        kept = survive(server, scope)
        scopes.append(scope)
        await send(start(200, EVENTS, trailers=True))
        if not kept.resumed:
            await send(body(b"x", more=True))
            await receive()
            await receive()
            return
        await send(body(b"y"))
        await send({"type": "http.response.trailers", "headers": [(b"a", b"b")]})

    servers = [serve(app, request_id="echo"), serve(app, request_id="echo")]
    servers[1].worker.slot = 1
    client = servers[0].connect()
    client.send(GET[:-2] + b"TE: trailers\r\nConnection: te\r\n\r\n")
    head = client.read_until(chunk(b"x"))
    move(*servers)
    assert client.read_until(b"\r\n\r\n") == chunk(b"y") + b"0\r\na: b\r\n\r\n"
    assert len(scopes) == 2
    (identity,) = {dict(scope["headers"])[b"x-request-id"] for scope in scopes}
    assert b"x-request-id: " + identity in head


@pytest.mark.parametrize("spoilt", ["head", "response", "state"])
def test_record_that_makes_no_sense(serve: Serve, spoilt: str) -> None:
    """As another version of the server might send it: the connection ends, and nothing else."""
    old, new = Numbers(), Numbers()
    servers = old.on(serve), new.on(serve)
    client, _ = begin(old)
    expect(client, 0, 3)
    connection, descriptor, record = depart(servers[0])
    servers[0].run(connection.gone)
    values = SurvivalRecord.from_bytes(record.leftover)
    good: dict[str, Any] = {"head": values.head, "state": values.state, "response": values.response}
    good[spoilt] = {"head": b"\r\n", "state": b"{", "response": {}}[spoilt]
    bad = SurvivalRecord(version=None, unread=b"", **good)
    servers[1].take(descriptor, record.with_leftover(bad.to_bytes()))
    with pytest.raises(ConnectionResetError):
        client.read_to_end()
    servers[1].until(lambda: servers[1].cell(Cell.CONNECTIONS) == 0)
    assert servers[1].cell(Cell.NOT_SURVIVED) == 1


def test_life_is_not_shorter_than_a_second(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """A handler that returns at once does not travel without pause."""
    monkeypatch.setattr(survival, "LEAST_LIFE", 0.2)
    lives: list[float] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        kept = survive(server, scope)
        lives.append(server.loop.time())
        await send(start(200, EVENTS))
        await send(body(b"x", more=len(lives) < 4))
        while not kept.resumed and server.worker.phase is WorkerPhase.SERVING:
            await asyncio.sleep(0.002)

    server = serve(app, survive_window=1000.0)
    client = server.connect()
    client.send(GET)
    client.read_until(chunk(b"x"))

    def begin() -> None:
        server.worker.hand_over = lambda connection: connection.remain()
        server.worker.phase = WorkerPhase.HANDING_OVER
        for connection in list(server.worker.connections):
            connection.retire()

    server.run(begin)
    client.read_until(b"0\r\n\r\n")
    assert len(lives) == 4
    assert all(later - earlier > 0.19 for earlier, later in itertools.pairwise(lives))
