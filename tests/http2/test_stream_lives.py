"""Streams of an HTTP/2 connection that go on in another worker, with the connection: servers of one process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from serve_asgi.http import survival
from serve_asgi.http.connection_states import ConnectionState
from serve_asgi.http.h2.error_codes import ErrorCode
from serve_asgi.http.h2.frames import MAX_STREAM_ID, reset_frame
from serve_asgi.http.h2.limits import CONNECTION_WINDOW
from serve_asgi.http.hand_over_record import HandOverRecord
from serve_asgi.http.survival_record import SurvivalRecord, pack_streams, unpack_streams
from serve_asgi.http.worker_context import Receive, Scope, Send, WorkerPhase
from serve_asgi.http2 import stream_lives
from serve_asgi.http2.connection import Http2Connection
from serve_asgi.ipc.packets import check_http2_state
from serve_asgi.ipc.scoreboard import Cell
from tests.connection_server import Log
from tests.http.h2.peer import POST
from tests.http.http_server import body, start
from tests.http.numbers_application import EVENTS, Numbers, piece, retire, serve_again, survive
from tests.http2.frame_client import data
from tests.http2.http2_server import Http2Client, Http2Server
from tests.http2.test_websockets import Recording, Socket

Serve = Callable[..., Http2Server]


@pytest.fixture(autouse=True)
def _no_least_life(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lives may be as short as a test."""
    monkeypatch.setattr(survival, "LEAST_LIFE", 0.0)


def on(numbers: Numbers, serve: Serve, **config: Any) -> Http2Server:
    server = numbers.on(serve, **{"survive_window": 0.0, **config})
    assert isinstance(server, Http2Server)
    return server


def pair(serve: Serve, **config: Any) -> tuple[Numbers, Numbers, Http2Server, Http2Server]:
    old, new = Numbers(last=20), Numbers(last=20)
    return old, new, on(old, serve, **config), on(new, serve, **config)


def numbers(first: int, last: int) -> bytes:
    return b"".join(piece(number) for number in range(first, last))


def expect(client: Http2Client, stream_id: int, last: int) -> None:
    """All numbers up to there have come, in order."""
    wanted = numbers(0, last)
    answer = client.wait_for_content(stream_id, len(wanted))
    assert bytes(answer.content) == wanted
    assert answer.reset is None


def depart(server: Http2Server) -> tuple[Http2Connection, int, HandOverRecord]:
    """The worker retires, and its one connection is offered to another one."""
    departing = retire(server)
    server.until(lambda: bool(departing) and departing[-1].can_leave())
    descriptor, record = server.run(departing[-1].leave)
    return departing[-1], descriptor, record


def move(old: Http2Server, new: Http2Server) -> Http2Connection:
    """The connection's hand-over, from beginning to end; the old worker serves again."""
    connection, descriptor, record = depart(old)
    old.run(connection.gone)
    old.until(lambda: old.cell(Cell.CONNECTIONS) == 0)
    serve_again(old)
    check_http2_state(record.http2 or {})
    taken = new.take(descriptor, HandOverRecord.from_json(record.to_json()))
    assert isinstance(taken, Http2Connection)
    return taken


def test_streams_go_on_in_another_worker(serve2: Serve) -> None:
    """All of the connection at once, beside short requests."""
    first, second, *servers = pair(serve2)
    logs = [Log(), Log()]
    for server, log in zip(servers, logs, strict=True):
        server.worker.access_log = log  # type: ignore[assignment]
    client = servers[0].client()
    streams = [client.get(b"/", (b"cookie", b"a=b"), (b"te", b"trailers")) for _ in range(3)]
    here = 0
    for count in (3, 6, 9, 12):
        (first, second)[here].allow(count)
        for stream_id in streams:
            expect(client, stream_id, count)
        assert bytes(client.wait(client.get(b"/short")).content) == b"/short"
        move(servers[here], servers[1 - here])
        here = 1 - here
    (first, second)[here].allow(20)
    for stream_id in streams:
        assert bytes(client.wait(stream_id).content) == numbers(0, 20)
        assert client.answers[stream_id].ended
    assert bytes(client.wait(client.get(b"/after")).content) == b"/after"
    assert client.goaways() == []
    assert sum(server.cell(Cell.SURVIVED) for server in servers) == 12
    assert sum(server.cell(Cell.NOT_SURVIVED) for server in servers) == 0
    assert sum(server.cell(Cell.REQUESTS) for server in servers) == 8
    lines = [each for log in logs for each in log.records if each[2] == b"/" or each[2] == "/"]
    assert [line[4:6] for line in lines] == [(200, len(numbers(0, 20)))] * 3
    lives = [*first.lives, *second.lives]
    assert [life.version for life in lives if life.resumed] == [7] * 12
    scopes = [{**scope, "extensions": None, "server": None} for scope in (*first.scopes, *second.scopes)]
    assert scopes.count(scopes[0]) == 15
    servers[0].until(lambda: sum(server.cell(Cell.IN_FLIGHT) for server in servers) == 0)


def test_who_does_not_ask_gets_nothing(serve2: Serve) -> None:
    """And one connection's calls do not find another's."""
    first, _, *servers = pair(serve2)
    clients = [servers[0].client() for _ in range(2)]
    first.allow(1)
    scopes: list[Scope] = []
    for client in clients:
        client.wait_for_head(client.get())
        scopes.append(first.scopes[-1])
    numbered = servers[0].worker.numbered
    for scope, other in (scopes, scopes[::-1]):
        connection = numbered[scope["extensions"]["serve"]["connection"]]
        assert connection.lives is None
        assert connection.opt_in(scope["extensions"], 3) is not None
        assert connection.opt_in(other["extensions"], 3) is None
        assert connection.opt_in(dict(scope["extensions"]), 3) is None
    for client in clients:
        client.close()
    servers[0].until(lambda: not numbered)


def test_what_waits_for_a_window_goes_along(serve2: Serve) -> None:
    first, second, *servers = pair(serve2)
    client = servers[0].client({4: 15})
    streams = [client.get() for _ in range(2)]
    first.allow(6)
    for stream_id in streams:
        client.wait_for_content(stream_id, 15)
    servers[0].until(lambda: all(life.state.get("next") == 6 for life in first.lives))
    move(*servers)
    second.allow(20)
    client.sync()
    for stream_id in streams:
        assert bytes(client.answers[stream_id].content) == numbers(0, 20)[:15]
        client.widen(stream_id, 1000)
    for stream_id in streams:
        assert bytes(client.wait(stream_id).content) == numbers(0, 20)


def test_client_may_reset_what_has_parted(serve2: Serve) -> None:
    first, second, *servers = pair(serve2)
    client = servers[0].client()
    streams = [client.get() for _ in range(3)]
    first.allow(3)
    for stream_id in streams:
        expect(client, stream_id, 3)
    connection, descriptor, record = depart(servers[0])
    client.reset(streams[0])
    servers[0].run(connection.stay)  # it is read here
    servers[0].until(lambda: connection.core.open_streams() == streams[1:] and connection.can_leave())
    descriptor, record = servers[0].run(connection.leave)
    client.reset(streams[1])  # it is read there
    servers[0].run(connection.gone)
    servers[1].take(descriptor, record)
    second.allow(20)
    assert bytes(client.wait(streams[2]).content) == numbers(0, 20)
    assert client.goaways() == []
    servers[1].until(lambda: servers[1].cell(Cell.IN_FLIGHT) == 0)
    assert servers[0].cell(Cell.NOT_SURVIVED) == servers[1].cell(Cell.NOT_SURVIVED) == 0
    assert sum(server.cell(Cell.REQUESTS) for server in servers) == 3


class WithOthers(Numbers):
    """Some requests are ordinary ones, and last until they are let go."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.go = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] != "/long":
            await super().__call__(scope, receive, send)
            return
        await send(start(200, EVENTS))
        await send(body(b"begun", more=True))
        await self.go.wait()
        await send(body(b"ended"))


def test_long_request_has_the_client_open_another_connection(serve2: Serve) -> None:
    """What survives is told only when that is over, and goes to the other worker all the same."""
    first, second = WithOthers(last=20), Numbers(last=20)
    old, new = on(first, serve2, h2_hold=0.05), on(second, serve2)
    client = old.client()
    stream_id, long = client.get(), client.get(b"/long")
    first.allow(3)
    expect(client, stream_id, 3)
    client.wait_for_content(long, 5)
    departing = retire(old)
    client.read_until(lambda: len(client.goaways()) == 2)
    first.allow(5)
    expect(client, stream_id, 5)
    assert first.ended == 0
    assert departing == []
    old.run(first.go.set)
    assert bytes(client.wait(long).content) == b"begunended"
    old.until(lambda: bool(departing) and departing[-1].can_leave())
    descriptor, record = old.run(departing[-1].leave)
    old.run(departing[-1].gone)
    new.take(descriptor, record)
    second.allow(20)
    assert bytes(client.wait(stream_id).content) == numbers(0, 20)
    client.read_to_end()
    assert new.cell(Cell.SURVIVED) == 1


def test_lives_that_have_ended_go_on_here_beside_a_long_request(serve2: Serve) -> None:
    """The request has begun while they were told."""
    first = WithOthers(last=20)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await first(scope, receive, send)
        if scope["path"] == "/" and len(first.lives) == 1:
            assert first.ended == 1
            client.get(b"/long")
            await asyncio.sleep(0.05)

    server = serve2(app, survive_window=0.0, h2_hold=0.02)
    first.server = server
    client = server.client()
    stream_id = client.get()
    first.allow(3)
    expect(client, stream_id, 3)
    departing = retire(server)
    client.read_until(lambda: bool(client.goaways()))
    first.allow(10)
    expect(client, stream_id, 10)
    assert [life.resumed for life in first.lives] == [False, True]
    server.run(first.go.set)
    server.until(lambda: bool(departing) and departing[-1].can_leave())
    descriptor, record = server.run(departing[-1].leave)
    server.run(departing[-1].gone)
    second = Numbers(last=20)
    on(second, serve2).take(descriptor, record)
    second.allow(20)
    assert bytes(client.wait(stream_id).content) == numbers(0, 20)
    assert server.cell(Cell.NOT_SURVIVED) == 0


@pytest.mark.parametrize("how", ["remain", "serve again", "stay"])
def test_nobody_takes_it(serve2: Serve, how: str) -> None:
    first, _, server, _ = pair(serve2)
    client = server.client()
    streams = [client.get() for _ in range(2)]
    first.allow(3)
    for stream_id in streams:
        expect(client, stream_id, 3)
    departing = retire(server)
    server.until(lambda: bool(departing) and departing[-1].can_leave())
    short = client.get(b"/short")
    client.sync()
    if how == "remain":
        server.run(departing[-1].remain)
    elif how == "stay":
        server.run(departing[-1].leave)
        server.run(departing[-1].stay)
        server.run(departing[-1].remain)
    server.until(lambda: len(first.lives) == (2 if how == "serve again" else 4))
    serve_again(server)
    first.allow(20)
    for stream_id in streams:
        assert bytes(client.wait(stream_id).content) == numbers(0, 20)
    assert bytes(client.wait(short).content) == b"/short"
    assert client.goaways() == []
    assert len(first.lives) >= 4
    assert server.cell(Cell.NOT_SURVIVED) == 0


def test_handler_that_does_not_end_costs_its_stream_alone(serve2: Serve) -> None:
    hang = asyncio.Event()

    class Hangs(Numbers):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            if scope["path"] == "/hangs":
                survive(self.server, scope)
                await send(start(200, EVENTS))
                await send(body(b"begun", more=True))
                await hang.wait()
            else:
                await super().__call__(scope, receive, send)

    first, second = Hangs(last=20), Numbers(last=20)
    servers = on(first, serve2, survive_timeout=0.1), on(second, serve2)
    client = servers[0].client()
    stream_id, hanging = client.get(), client.get(b"/hangs")
    first.allow(3)
    expect(client, stream_id, 3)
    client.wait_for_content(hanging, 5)
    move(*servers)
    assert client.wait(hanging).reset is ErrorCode.INTERNAL_ERROR
    assert servers[0].cell(Cell.NOT_SURVIVED) == 1
    second.allow(20)
    assert bytes(client.wait(stream_id).content) == numbers(0, 20)
    servers[0].run(hang.set)
    servers[0].until(lambda: servers[0].cell(Cell.IN_FLIGHT) == 0)
    assert client.goaways() == []


def test_requests_are_served_while_handlers_take_their_time(serve2: Serve) -> None:
    leave = asyncio.Event()

    async def slowly(kept: Any, send: Send) -> None:
        await leave.wait()

    first, second = Numbers(last=20, at_the_end=slowly), Numbers(last=20)
    servers = on(first, serve2), on(second, serve2)
    client = servers[0].client()
    stream_id = client.get()
    first.allow(3)
    expect(client, stream_id, 3)
    departing = retire(servers[0])
    servers[0].until(lambda: servers[0].newest().lives is not None)
    for _ in range(3):
        assert bytes(client.wait(client.get(b"/short")).content) == b"/short"
    assert not departing
    servers[0].run(leave.set)
    servers[0].until(lambda: bool(departing) and departing[-1].can_leave())
    held = client.get(b"/held")
    client.sync()
    descriptor, record = servers[0].run(departing[-1].leave)
    servers[0].run(departing[-1].gone)
    servers[1].take(descriptor, record)
    assert bytes(client.wait(held).content) == b"/held"
    second.allow(20)
    assert bytes(client.wait(stream_id).content) == numbers(0, 20)
    assert client.goaways() == []
    assert servers[1].cell(Cell.REQUESTS) == 2


def test_new_code_that_answers_otherwise_writes_into_nothing(serve2: Serve) -> None:
    first, second = Numbers(last=20), Numbers((b"content-type", b"text/html"), last=20)
    servers = on(first, serve2), on(second, serve2)
    client = servers[0].client()
    streams = [client.get() for _ in range(2)]
    first.allow(3)
    for stream_id in streams:
        expect(client, stream_id, 3)
    move(*servers)
    second.allow(20)
    for stream_id in streams:
        answer = client.wait(stream_id)
        assert answer.reset is ErrorCode.INTERNAL_ERROR
        assert bytes(answer.content) == numbers(0, 3)
    assert servers[1].cell(Cell.NOT_SURVIVED) == 2
    assert bytes(client.wait(client.get(b"/after")).content) == b"/after"


def test_record_that_makes_no_sense_costs_its_stream_alone(serve2: Serve) -> None:
    first, second, *servers = pair(serve2)
    client = servers[0].client()
    streams = [client.get() for _ in range(3)]
    first.allow(3)
    for stream_id in streams:
        expect(client, stream_id, 3)
    connection, descriptor, record = depart(servers[0])
    moved, unread = unpack_streams(record.leftover)
    moved[0] = moved[0]._replace(record=SurvivalRecord(b"", b"{}", None, b"", response={}))
    del moved[1]
    servers[0].run(connection.gone)
    servers[1].take(descriptor, record.with_leftover(pack_streams(moved, unread)))
    second.allow(20)
    assert [client.wait(stream_id).reset for stream_id in streams] == [ErrorCode.INTERNAL_ERROR] * 2 + [None]
    assert bytes(client.answers[streams[2]].content) == numbers(0, 20)
    assert servers[1].cell(Cell.NOT_SURVIVED) == 1


def test_body_that_was_not_received_is_the_next_lifes(serve2: Serve) -> None:
    class Unread(Numbers):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            kept = survive(self.server, scope)
            await send(start(200, EVENTS))
            if kept.resumed:
                self.received.append(await receive())
                await send(body(b"end"))
            else:
                await send(body(b"begun", more=True))
                while self.server.worker.phase is not WorkerPhase.HANDING_OVER:
                    await asyncio.sleep(0.002)

    first, second = Unread(), Unread()
    servers = on(first, serve2), on(second, serve2)
    client = servers[0].client()
    stream_id = client.post(b"/", b"x" * 100_000)
    client.wait_for_content(stream_id, 5)
    client.sync()
    taken = move(*servers)
    assert bytes(client.wait(stream_id).content) == b"begunend"
    assert second.received == [{"type": "http.request", "body": b"x" * 100_000, "more_body": False}]
    left = taken.core.receiver.streams.window
    assert (left.waiting, left.to_json()[2] + left.left) == (0, CONNECTION_WINDOW)


def test_too_much_to_travel(serve2: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_lives, "MOST_TRAVELS", 3000)
    first, _, server, _ = pair(serve2)
    client = server.client()
    streams = [client.get() for _ in range(3)]
    first.allow(3)
    for stream_id in streams:
        expect(client, stream_id, 3)
    departing = retire(server)
    client.read_until(lambda: bool(client.goaways()))
    first.allow(20)
    for stream_id in streams:
        assert bytes(client.wait(stream_id).content) == numbers(0, 20)
    assert departing == []


def test_it_is_not_lent(serve2: Serve) -> None:
    first, _, server, _ = pair(serve2)
    client = server.client()
    stream_id = client.get()
    first.allow(3)
    expect(client, stream_id, 3)
    server.worker.to_lend = 5
    departing = retire(server, WorkerPhase.LENDING)
    first.allow(20)
    assert bytes(client.wait(stream_id).content) == numbers(0, 20)
    server.until(lambda: bool(departing))
    assert len(first.lives) == 1


def test_nobody_is_left_to_hand_over_to(serve2: Serve) -> None:
    """Between the end of a life and its hand-over."""
    first, _, server, _ = pair(serve2)
    client = server.client()
    stream_id = client.get()
    first.allow(3)
    expect(client, stream_id, 3)
    departing = retire(server)
    server.until(lambda: bool(departing))
    retire(server, WorkerPhase.CLOSING)
    client.read_until(lambda: bool(client.goaways()))
    first.allow(20)
    assert bytes(client.wait(stream_id).content) == numbers(0, 20)
    client.read_to_end()
    assert [life.resumed for life in first.lives] == [False, True]


def test_graceful_timeout_cuts(serve2: Serve) -> None:
    first, _, server, _ = pair(serve2, survive_window=60.0)
    client = server.client()
    stream_id = client.get()
    first.allow(3)
    expect(client, stream_id, 3)
    server.worker.retire_deadline = server.loop.time() + 60.0
    retire(server)
    assert server.run(server.newest().cut)
    assert client.wait(stream_id).reset is ErrorCode.INTERNAL_ERROR
    assert server.cell(Cell.NOT_SURVIVED) == 1


def test_application_that_asks_by_messages_while_the_worker_retires(serve2: Serve) -> None:
    """And ends each life by itself, at once: it does not go round without a pause."""
    lives: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        lives.append(scope["extensions"][survival.EXTENSION])
        await send(start(200, EVENTS))
        await send({"type": survival.EXTENSION, "state": [len(lives)], "version": 2})
        await send(body(b"%d" % len(lives), more=True))

    first = serve2(app, survive_window=0.0)
    second = serve2(app, survive_window=0.0)
    client = first.client()
    departing = retire(first)
    stream_id = client.get()
    first.until(lambda: bool(departing) and departing[-1].can_leave())
    descriptor, record = first.run(departing[-1].leave)
    first.run(departing[-1].gone)
    second.take(descriptor, record)
    client.wait_for_content(stream_id, 2)
    assert lives == [{}, {"resumed": True, "state": [1], "version": 2}]
    assert client.wait(stream_id).reset is ErrorCode.INTERNAL_ERROR  # this worker does not retire


def test_reset_that_comes_with_a_whole_request_is_told(serve2: Serve) -> None:
    """Also where the application ends only when its client has gone."""
    received: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start(200, EVENTS))
        await send(body(b"begun", more=True))
        while not received or received[-1] != "http.disconnect":
            received.append((await receive())["type"])

    server = serve2(app)
    client = server.client()
    stream_id, head = client.head(POST, False)
    client.send(head, data(stream_id, b"abc", True), reset_frame(stream_id, ErrorCode.CANCEL))
    server.until(lambda: received[-1:] == ["http.disconnect"] and server.cell(Cell.IN_FLIGHT) == 0)
    server.until(lambda: server.newest().state is ConnectionState.IDLE)


@pytest.mark.parametrize("again", [False, True])
def test_a_websocket_beside_them_is_opened_again_on_another_connection(serve2: Serve, again: bool) -> None:
    """The client is told to before its WebSocket is closed: here it would be closed again and again."""
    first, second, sockets = Numbers(last=20), Numbers(last=20), Recording()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await (sockets if scope["type"] == "websocket" else first)(scope, receive, send)

    first.server = old = serve2(app, survive_window=0.0, ws_retire="early", ws_retire_window=0.0)
    new = on(second, serve2)
    client = old.client()
    stream_id = client.get(b"/")
    first.allow(3)
    expect(client, stream_id, 3)
    open_sockets = [Socket(client, b"/socket").open()]
    old.run(lambda: old.retiring.begin("reload"))
    if again:
        retire(old)
        open_sockets.append(Socket(client, b"/again").open())
        assert client.goaways()[0] == (MAX_STREAM_ID, ErrorCode.NO_ERROR)
    departing = retire(old)
    for socket in open_sockets:
        assert socket.close_code() == 1012
        socket.send(8, (1012).to_bytes(2, "big"), ended=True)
    assert client.goaways()[0] == (MAX_STREAM_ID, ErrorCode.NO_ERROR)
    old.until(lambda: bool(departing) and departing[-1].can_leave())
    descriptor, record = old.run(departing[-1].leave)
    old.run(departing[-1].gone)
    new.take(descriptor, HandOverRecord.from_json(record.to_json()))
    second.allow(20)
    assert bytes(client.wait(stream_id).content) == numbers(0, 20)
    assert [code for _, code in client.goaways()] == [ErrorCode.NO_ERROR] * 2
