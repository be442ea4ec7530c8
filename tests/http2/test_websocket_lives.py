"""WebSockets on streams of an HTTP/2 connection that go on in another worker, with the connection and all its streams.

What is the same over HTTP/1.1 is tested over both in tests/test_surviving_websockets.py.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import random
import time
import zlib
from collections.abc import Callable
from typing import Any

import pytest

from serve_asgi.http import survival
from serve_asgi.http.h2.error_codes import ErrorCode
from serve_asgi.http.h2.limits import CONNECTION_WINDOW, STREAM_WINDOW
from serve_asgi.http.hand_over_record import HandOverRecord
from serve_asgi.http.survival_record import pack_streams, unpack_streams
from serve_asgi.http.worker_context import Receive, Scope, Send, WorkerPhase
from serve_asgi.http2 import stream_lives
from serve_asgi.http2.connection import Http2Connection
from serve_asgi.ipc.scoreboard import Cell
from serve_asgi.websocket import closing
from tests.http.http_server import body, respond, start
from tests.http.numbers_application import EVENTS, retire, serve_again, survive
from tests.http2.frame_client import data
from tests.http2.http2_server import NO_LIMIT, Http2Server
from tests.http2.test_websockets import Socket
from tests.rows import websockets_timed
from tests.websocket.websocket_server import frame

Serve = Callable[..., Http2Server]
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
DEFLATE = (b"sec-websocket-extensions", b"permessage-deflate; client_max_window_bits=12")


@pytest.fixture(autouse=True)
def _no_least_life(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lives may be as short as a test."""
    monkeypatch.setattr(survival, "LEAST_LIFE", 0.0)


class Counting:
    """WebSockets that number what they echo, and streams of numbers; one object is one worker's code."""

    def __init__(self, name: bytes = b"") -> None:
        self.name = name
        self.server: Http2Server
        self.calls: list[str] = []
        self.told = asyncio.Event()
        """A WebSocket at /late has been told."""
        self.go = asyncio.Event()
        """Lets those go on that wait."""

    def on(self, serve: Serve, **config: Any) -> Http2Server:
        options = {"survive_window": 0.0, "ws_retire": "early", "ws_retire_window": 0.0}
        self.server = serve(self, **{**options, **config})
        return self.server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.calls.append(scope["path"])
        if scope["type"] == "websocket":
            await self._socket(scope, receive, send)
        elif scope["path"] == "/events":
            await self._events(scope, receive, send)
        else:
            await respond(send, scope["path"].encode())

    async def _socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        kept: Any = None if path == "/plain" else survive(self.server, scope, 3)
        state = {} if kept is None else kept.state
        await receive()
        if path == "/slow":
            await self.go.wait()
        await send({"type": "websocket.accept"})
        if path == "/large" and not kept.resumed:
            await send({"type": "websocket.send", "bytes": bytes(50_000)})
        if path == "/never" or (path == "/deaf" and not kept.resumed):
            while self.server.worker.phase is not WorkerPhase.HANDING_OVER:
                await asyncio.sleep(0.002)
            return
        while (message := await receive())["type"] == "websocket.receive":
            number = state.get("number", 0) + 1
            said = message.get("bytes") or message["text"].encode()
            await send({"type": "websocket.send", "bytes": self.name + b"%d " % number + said})
            state["number"] = number
        if path in ("/late", "/hangs"):
            self.told.set()
            await self.go.wait()

    async def _events(self, scope: Scope, receive: Receive, send: Send) -> None:
        kept = survive(self.server, scope, 3)
        await send(start(200, EVENTS))
        await send(body(self.name, more=True))
        await receive()
        while (await receive())["type"] != "http.disconnect":
            pass
        kept.state["lives"] = kept.state.get("lives", 0) + 1


def pair(serve: Serve, **config: Any) -> tuple[tuple[Counting, Counting], tuple[Http2Server, Http2Server]]:
    """The code of two workers, and the workers."""
    first, second = Counting(b"a"), Counting(b"b")
    return (first, second), (first.on(serve, **config), second.on(serve, **config))


def begin(server: Http2Server, phase: WorkerPhase = WorkerPhase.HANDING_OVER) -> list[Any]:
    """The worker retires."""
    server.run(lambda: server.retiring.begin("reload"))
    return retire(server, phase)


def leave(server: Http2Server, departing: list[Any]) -> tuple[Http2Connection, int, HandOverRecord]:
    server.until(lambda: bool(departing) and departing[-1].can_leave())
    descriptor, record = server.run(departing[-1].leave)
    return departing[-1], descriptor, record


def move(old: Http2Server, new: Http2Server, departing: list[Any] | None = None) -> Http2Connection:
    """The connection's hand-over, from beginning to end; the old worker serves again."""
    connection, descriptor, record = leave(old, begin(old) if departing is None else departing)
    old.run(connection.gone)
    old.until(lambda: old.cell(Cell.CONNECTIONS) == 0 and old.cell(Cell.WEBSOCKETS) == 0)
    old.run(old.retiring.end)
    serve_again(old)
    taken = new.take(descriptor, HandOverRecord.from_json(record.to_json()))
    assert isinstance(taken, Http2Connection)
    return taken


def counts(*servers: Http2Server) -> tuple[int, int]:
    """Next lives begun, and those that were to begin and did not."""
    return sum(each.cell(Cell.SURVIVED) for each in servers), sum(each.cell(Cell.NOT_SURVIVED) for each in servers)


def ask(socket: Socket, text: bytes, answer: bytes) -> None:
    socket.send(TEXT, text)
    assert socket.receive() == (BINARY, answer)


def test_all_of_a_connection_goes_on_together(serve2: Serve) -> None:
    """WebSockets, one of them in the middle of a message, and streams, beside short requests, there and back."""
    _, servers = pair(serve2)
    client = servers[0].client()
    sockets = [Socket(client, b"/%d" % number).open() for number in range(3)]
    opened = time.monotonic()
    events = [client.get(b"/events") for _ in range(2)]
    expected = b"a"
    for turn in range(4):
        name = b"ab"[turn % 2 : turn % 2 + 1]
        for number, socket in enumerate(sockets):
            ask(socket, b"x%d" % number, name + b"%d x%d" % (2 * turn + 1, number))
        whole = frame(TEXT, b"in pieces %d" % turn)
        sockets[0].client.send(data(sockets[0].stream_id, whole[:9]))
        sockets[1].client.send(data(sockets[1].stream_id, frame(TEXT, b"two", fin=False)))
        sockets[2].send(PING, b"here")
        assert sockets[2].receive() == (PONG, b"here")
        for stream_id in events:
            client.wait_for_content(stream_id, len(expected))
            assert bytes(client.answers[stream_id].content) == expected
        assert bytes(client.wait(client.get(b"/short")).content) == b"/short"
        move(servers[turn % 2], servers[1 - turn % 2])
        name = b"ba"[turn % 2 : turn % 2 + 1]
        expected += name
        sockets[0].client.send(data(sockets[0].stream_id, whole[9:]))
        sockets[1].client.send(data(sockets[1].stream_id, frame(0, b" parts")))
        sockets[2].send(TEXT, b"one")
        for socket, said in zip(sockets, (b"in pieces %d" % turn, b"two parts", b"one"), strict=True):
            assert socket.receive() == (BINARY, name + b"%d " % (2 * turn + 2) + said)
    assert counts(*servers) == (20, 0)
    assert client.goaways() == []
    lasted = time.monotonic() - opened
    for socket in sockets:
        socket.send(CLOSE, b"\x03\xe8", ended=True)
        assert socket.close_code() == 1000
    servers[0].until(lambda: servers[0].cell(Cell.WEBSOCKETS) == 0)
    assert servers[0].cell(Cell.WEBSOCKETS_OPENED) == 3
    accepted, ended, duration = websockets_timed(*(each.worker.cells for each in servers))
    assert (accepted, ended) == (3, 3)
    assert duration >= 3 * lasted
    core = servers[0].newest().core
    servers[0].until(lambda: core.open_streams() == events)
    assert core.receiver.streams.busy == set(events)


@pytest.mark.parametrize("seed", range(3))
def test_frames_cut_anywhere_by_hand_overs_come_once_and_in_order(serve2: Serve, seed: int) -> None:
    """Also by those that are withdrawn, and with windows of any size."""
    choose = random.Random(seed)
    _, servers = pair(serve2)
    client = servers[0].client({4: choose.choice((100, 5000, 1 << 20))}, NO_LIMIT)
    sockets = [Socket(client, b"/%d" % number).open() for number in range(5)]
    said: dict[int, list[bytes]] = {socket.stream_id: [] for socket in sockets}
    rest = {socket.stream_id: b"" for socket in sockets}

    def send_some(count: int) -> None:
        for stream_id in choose.choices(list(rest), k=count):
            if not rest[stream_id]:
                said[stream_id].append(b"%d " % len(said[stream_id]) + b"z" * choose.choice((0, 10, 3000)))
                rest[stream_id] = frame(TEXT, said[stream_id][-1])
            size = choose.randint(1, len(rest[stream_id]))
            client.send(data(stream_id, rest[stream_id][:size]))
            rest[stream_id] = rest[stream_id][size:]
            if choose.random() < 0.3:
                client.widen(stream_id, 2000)

    for turn in range(6):
        old, new = servers[turn % 2], servers[1 - turn % 2]
        send_some(20)
        departing = begin(old)
        send_some(10)
        connection, descriptor, record = leave(old, departing)
        send_some(5)
        if choose.random() < 0.3:
            os.close(descriptor)
            old.run(connection.stay)
            connection, descriptor, record = leave(old, departing)
        old.run(connection.gone)
        old.run(old.retiring.end)
        serve_again(old)
        new.take(descriptor, HandOverRecord.from_json(record.to_json()))
    for socket in sockets:
        client.widen(socket.stream_id, 1 << 20)
        client.send(data(socket.stream_id, rest[socket.stream_id]))
        for number, each in enumerate(said[socket.stream_id], 1):
            opcode, answer = socket.receive()
            assert (opcode, answer[1:]) == (BINARY, b"%d " % number + each)
    assert client.goaways() == []


@pytest.mark.parametrize("told_first", [False, True])
def test_client_closes_one_while_the_others_leave(serve2: Serve, told_first: bool) -> None:
    """Before the lives end: they wait for that. Or when they have: the next life answers it."""
    _, servers = pair(serve2)
    client = servers[0].client()
    closes, stays = (Socket(client, path).open() for path in (b"/a", b"/b"))
    for socket in (closes, stays):
        ask(socket, b"x", b"a1 x")
    departing: list[Any] | None = None
    if told_first:
        departing = begin(servers[0])
        servers[0].until(lambda: bool(departing))
    closes.send(CLOSE, b"\x03\xe8", ended=True)
    if not told_first:
        assert closes.close_code() == 1000
    move(servers[0], servers[1], departing)
    ask(stays, b"y", b"b2 y")
    if told_first:
        assert closes.close_code() == 1000
    servers[1].until(lambda: servers[1].cell(Cell.WEBSOCKETS) == 1)
    assert client.goaways() == []


def test_what_was_not_received_goes_along_and_holds_its_window(serve2: Serve) -> None:
    """Whole messages, what is behind them and was not looked at, and the windows that all of it holds."""
    _, servers = pair(serve2)
    client = servers[0].client({4: 1 << 20}, NO_LIMIT)
    socket = Socket(client, b"/deaf").open()
    messages = [bytes([number]) * 10_000 for number in range(12)]
    for message in messages:
        socket.send(BINARY, message)
    client.sync()
    taken = move(*servers)
    for number, message in enumerate(messages):
        opcode, said = socket.receive()
        assert (opcode, said) == (BINARY, b"b%d " % (number + 1) + message)
    client.sync()
    stream = taken.core.receiver.streams.by_id[socket.stream_id].receive_window
    assert stream is not None
    for window, size in ((stream, STREAM_WINDOW), (taken.core.receiver.streams.window, CONNECTION_WINDOW)):
        left, waiting, consumed = window.to_json()
        assert (waiting, left + consumed) == (0, size)


def test_application_that_takes_nothing_over_many_lives_holds_no_more_than_in_one(serve2: Serve) -> None:
    """Its client is not let send a window more in each."""
    _, servers = pair(serve2)
    client = servers[0].client()
    socket = Socket(client, b"/never").open()
    message = frame(BINARY, bytes(8000))
    for turn in range(5):
        old, new = servers[turn % 2], servers[1 - turn % 2]
        client.sync()
        window = old.newest().core.receiver.streams.by_id[socket.stream_id].receive_window
        room = STREAM_WINDOW if window is None else window.left
        for _ in range(room // len(message)):
            client.send(data(socket.stream_id, message))
        client.sync()
        connection, descriptor, record = leave(old, begin(old))
        assert STREAM_WINDOW / 2 < len(record.leftover) < 2 * STREAM_WINDOW
        old.run(connection.gone)
        old.run(old.retiring.end)
        serve_again(old)
        new.take(descriptor, record)


def test_compression_refers_to_what_the_first_worker_has_read(serve2: Serve) -> None:
    _, servers = pair(serve2)
    client = servers[0].client()
    socket = Socket(client, b"/", DEFLATE).open()
    compress = zlib.compressobj(wbits=-12)
    inflate = zlib.decompressobj(wbits=-15)

    def packed(text: bytes) -> bytes:
        return (compress.compress(text) + compress.flush(zlib.Z_SYNC_FLUSH))[:-4]

    def ask_packed(text: bytes, answer: bytes) -> None:
        client.send(data(socket.stream_id, frame(TEXT, packed(text), rsv=4)))
        opcode, said = socket.receive()
        assert (opcode, inflate.decompress(said + b"\0\0\xff\xff")) == (BINARY, answer)

    text = b"a text that is long enough to be referred to"
    ask_packed(text, b"a1 " + text)
    move(*servers)
    inflate = zlib.decompressobj(wbits=-15)  # what is compressed begins afresh
    assert len(packed(text)) < 10
    ask_packed(text, b"b2 " + text)


def test_what_waits_for_a_window_goes_along(serve2: Serve) -> None:
    _, servers = pair(serve2)
    client = servers[0].client({4: 1000})
    socket = Socket(client, b"/large").open()
    client.wait_for_content(socket.stream_id, 1000)
    move(*servers)
    socket.send(TEXT, b"after")
    client.widen(socket.stream_id, 100_000)
    assert socket.receive() == (BINARY, bytes(50_000))
    assert socket.receive() == (BINARY, b"b1 after")


@pytest.mark.parametrize("where", ["old", "new"])
@pytest.mark.parametrize("how", ["end", "reset"])
def test_client_ends_its_stream_between_two_lives(serve2: Serve, how: str, where: str) -> None:
    _, servers = pair(serve2)
    client = servers[0].client()
    sockets = [Socket(client, b"/%d" % number).open() for number in range(2)]
    for socket in sockets:
        ask(socket, b"x", b"a1 x")
    connection, descriptor, record = leave(servers[0], begin(servers[0]))
    if how == "end":
        sockets[0].send(TEXT, b"last")
        sockets[0].send(CLOSE, b"\x03\xe8", ended=True)
    else:
        client.reset(sockets[0].stream_id)
    if where == "old":
        servers[0].run(connection.stay)  # it is read here
        websockets = 2 if how == "end" else 1
        servers[0].until(lambda: servers[0].cell(Cell.WEBSOCKETS) == websockets and connection.can_leave())
        client.sync()
        servers[0].until(connection.can_leave)
        descriptor, record = servers[0].run(connection.leave)
    servers[0].run(connection.gone)
    servers[1].take(descriptor, record)
    ask(sockets[1], b"y", b"b2 y")
    if how == "end":
        assert sockets[0].receive() == (BINARY, b"b2 last")
        assert sockets[0].close_code() == 1000
        assert client.wait(sockets[0].stream_id).ended
    servers[1].until(lambda: servers[1].cell(Cell.WEBSOCKETS) == 1)
    assert client.goaways() == []


def test_one_that_has_not_asked_is_opened_again_elsewhere(serve2: Serve) -> None:
    _, servers = pair(serve2)
    client = servers[0].client()
    survives, plain = (Socket(client, path).open() for path in (b"/", b"/plain"))
    ask(survives, b"x", b"a1 x")
    departing = begin(servers[0])
    assert plain.close_code() == 1012
    assert len(client.goaways()) >= 1
    plain.send(CLOSE, (1012).to_bytes(2, "big"), ended=True)
    move(*servers, departing)
    ask(survives, b"y", b"b2 y")
    assert counts(*servers) == (1, 0)


def test_new_one_that_asks_while_the_worker_retires_goes_along(serve2: Serve) -> None:
    codes, servers = pair(serve2)
    client = servers[0].client()
    late = Socket(client, b"/late").open()
    departing = begin(servers[0])
    servers[0].until(codes[0].told.is_set)
    new = Socket(client, b"/new").open()
    new.send(TEXT, b"x")
    servers[0].run(codes[0].go.set)
    move(*servers, departing)
    assert new.receive() == (BINARY, b"b1 x")
    ask(late, b"y", b"b1 y")
    assert client.goaways() == []


@pytest.mark.parametrize("how", ["remain", "serve again", "stay"])
def test_nobody_takes_it(serve2: Serve, how: str) -> None:
    codes, (server, _) = pair(serve2)
    client = server.client()
    sockets = [Socket(client, b"/%d" % number).open() for number in range(2)]
    events = client.get(b"/events")
    for socket in sockets:
        ask(socket, b"x", b"a1 x")
    departing = begin(server)
    server.until(lambda: bool(departing) and departing[-1].can_leave())
    for socket in sockets:
        socket.send(TEXT, b"held")
    short = client.get(b"/short")
    client.sync()
    if how == "stay":
        server.run(departing[-1].leave)
        server.run(departing[-1].stay)
    if how != "serve again":
        server.run(departing[-1].remain)
        server.until(lambda: len(codes[0].calls) >= 6)
    server.run(server.retiring.end)
    serve_again(server)
    for socket in sockets:
        assert socket.receive() == (BINARY, b"a2 held")
        ask(socket, b"y", b"a3 y")
    assert bytes(client.wait(short).content) == b"/short"
    assert len(client.answers[events].content) >= 2
    assert client.goaways() == []
    assert counts(server)[1] == 0


def test_nobody_is_left_to_hand_over_to(serve2: Serve) -> None:
    """Between the end of a life and its hand-over."""
    _, (server, _) = pair(serve2)
    client = server.client()
    socket = Socket(client, b"/").open()
    ask(socket, b"x", b"a1 x")
    departing = begin(server)
    server.until(lambda: bool(departing) and departing[-1].can_leave())
    retire(server, WorkerPhase.CLOSING)
    assert socket.close_code() == 1012
    socket.send(CLOSE, (1012).to_bytes(2, "big"), ended=True)
    client.read_to_end()
    assert counts(server) == (0, 1)
    server.until(lambda: not server.worker.connections and server.cell(Cell.WEBSOCKETS) == 0)


def test_handler_that_does_not_end_costs_its_websocket_alone(serve2: Serve) -> None:
    codes, servers = pair(serve2, survive_timeout=0.1)
    client = servers[0].client()
    good, hangs = (Socket(client, path).open() for path in (b"/", b"/hangs"))
    ask(good, b"x", b"a1 x")
    departing = begin(servers[0])
    assert hangs.close_code() == 1012
    good.send(TEXT, b"meanwhile")
    hangs.send(CLOSE, (1012).to_bytes(2, "big"), ended=True)
    move(*servers, departing)
    assert good.receive() == (BINARY, b"b2 meanwhile")
    assert counts(*servers) == (1, 1)
    assert client.goaways() == []
    servers[0].run(codes[0].go.set)
    servers[0].until(lambda: not servers[0].worker.tasks)


def test_close_that_is_not_answered_does_not_keep_the_others_between_their_lives(
    serve2: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(closing, "CLOSE_TIMEOUT", 60.0)
    _, servers = pair(serve2, survive_timeout=0.1, h2_hold=0.05)
    client = servers[0].client()
    good, hangs = (Socket(client, path).open() for path in (b"/", b"/hangs"))
    ask(good, b"x", b"a1 x")
    departing = begin(servers[0])
    assert hangs.close_code() == 1012
    ask(good, b"y", b"a2 y")  # in a next life here
    assert departing == []
    hangs.send(CLOSE, (1012).to_bytes(2, "big"), ended=True)
    move(*servers, departing)
    ask(good, b"z", b"b3 z")
    assert counts(*servers) == (2, 1)


def test_one_that_has_not_been_accepted_is_waited_for(serve2: Serve) -> None:
    codes, servers = pair(serve2)
    client = servers[0].client()
    open_one = Socket(client, b"/").open()
    slow = Socket(client, b"/slow")
    servers[0].until(lambda: len(codes[0].calls) == 2)
    departing = begin(servers[0])
    ask(open_one, b"x", b"a1 x")
    servers[0].run(codes[0].go.set)
    codes[1].go.set()
    slow.open()
    move(*servers, departing)
    ask(slow, b"x", b"b1 x")
    ask(open_one, b"x", b"b2 x")
    assert client.goaways() == []


def test_record_that_makes_no_sense_costs_its_stream_alone(serve2: Serve) -> None:
    _, servers = pair(serve2)
    client = servers[0].client()
    sockets = [Socket(client, b"/%d" % number).open() for number in range(6)]
    connection, descriptor, record = leave(servers[0], begin(servers[0]))
    moved, unread = unpack_streams(record.leftover)
    good = moved[0].record
    other = [
        dataclasses.replace(good, head=b""),
        dataclasses.replace(good, head=b":method: GET\r\n:path: /\r\n:scheme: http\r\n:authority: a"),
        dataclasses.replace(good, websocket={"subprotocol": None, "deflate": None}),
        dataclasses.replace(good, websocket={**(good.websocket or {}), "stream": {"transport": ["x"]}}),
        dataclasses.replace(good, state=b"{"),
    ]
    moved[1:] = [each._replace(record=bad) for each, bad in zip(moved[1:], other, strict=True)]
    servers[0].run(connection.gone)
    servers[1].take(descriptor, record.with_leftover(pack_streams(moved, unread)))
    ask(sockets[0], b"x", b"b1 x")
    for socket in sockets[1:5]:
        assert client.wait(socket.stream_id).reset is ErrorCode.INTERNAL_ERROR
    assert sockets[5].close_code() == 1012
    assert counts(*servers) == (1, 5)
    assert client.goaways() == []


def test_too_much_to_travel(serve2: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_lives, "MOST_TRAVELS", 3000)
    _, (server, _) = pair(serve2)
    client = server.client()
    sockets = [Socket(client, b"/%d" % number).open() for number in range(3)]
    departing = begin(server)
    client.read_until(lambda: bool(client.goaways()))
    for socket in sockets:
        ask(socket, b"x", b"a1 x")
    assert departing == []


def test_graceful_timeout_between_two_lives(serve2: Serve) -> None:
    _, (server, _) = pair(serve2)
    client = server.client()
    socket = Socket(client, b"/").open()
    departing = begin(server)
    server.until(lambda: bool(departing) and departing[-1].can_leave())
    assert server.run(server.newest().cut)
    assert socket.close_code() == 1012
    client.read_to_end()
    assert counts(server) == (0, 1)
    server.until(lambda: not server.worker.connections and server.cell(Cell.WEBSOCKETS) == 0)
