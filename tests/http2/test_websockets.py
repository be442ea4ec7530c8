"""WebSockets over HTTP/2 (RFC 8441), frame by frame: what is not the same as over HTTP/1.1.

What is the same is tested over both in tests/websocket.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import struct
from collections.abc import Callable, Iterator

import pytest

from serve_asgi.http.h2 import frames
from serve_asgi.http.h2.error_codes import ErrorCode
from serve_asgi.http.h2.header_decoder import Field
from serve_asgi.http.h2.limits import STREAM_WINDOW
from serve_asgi.http.h2.settings import Setting
from serve_asgi.http.worker_context import Message, Receive, Scope, Send, WorkerPhase
from serve_asgi.ipc.scoreboard import Cell
from tests.connection_server import Log
from tests.http.http_server import read, respond
from tests.http2.frame_client import Answer, data
from tests.http2.http2_server import Http2Client, Http2Server
from tests.websocket.websocket_server import frame

Serve = Callable[..., Http2Server]
CONNECT: list[Field] = [
    (b":method", b"CONNECT"),
    (b":protocol", b"websocket"),
    (b":scheme", b"http"),
    (b":path", b"/"),
    (b":authority", b"a"),
]
VERSION: Field = (b"sec-websocket-version", b"13")
CLOSE = frame(8, b"\x03\xe8")


class Socket:
    """The client's end of one."""

    def __init__(self, client: Http2Client, path: bytes = b"/", *fields: Field, ended: bool = False) -> None:
        """Asks for it."""
        self.client = client
        self.stream_id, head = client.head(CONNECT, ended, path, [VERSION, *fields])
        self.answer: Answer = client.answers[self.stream_id]
        client.send(head)

    def open(self) -> Socket:
        """Wait for the response, which accepts."""
        assert self.client.wait_for_head(self.stream_id).status == 200
        return self

    def send(self, opcode: int, payload: bytes = b"", *, ended: bool = False) -> None:
        """One frame."""
        self.client.send(data(self.stream_id, frame(opcode, payload), ended))

    def end(self) -> None:
        """Nothing more comes."""
        self.client.send(data(self.stream_id, b"", True))

    def frames(self) -> Iterator[tuple[int, bytes]]:
        """The frames that have come so far, each once, and as far as they are whole."""
        content = self.answer.content
        while len(content) >= 2:
            size, start = content[1], 2
            if size == 126:
                size, start = struct.unpack("!H", content[2:4])[0], 4
            elif size == 127:
                size, start = struct.unpack("!Q", content[2:10])[0], 10
            if len(content) < start + size:
                return
            found = content[0] & 0x0F, bytes(content[start : start + size])
            del content[: start + size]
            yield found

    def receive(self) -> tuple[int, bytes]:
        """Wait for a frame: its opcode and payload."""
        while (found := next(self.frames(), None)) is None:
            assert not self.answer.over, self.answer
            self.client.read_some()
        return found

    def close_code(self) -> int:
        """Read frames up to the close frame; its code."""
        while (found := self.receive())[0] != 8:
            pass
        return int.from_bytes(found[1][:2], "big")


class Recording:
    """Accepts, echoes, and keeps what it was told, by the path of the request."""

    def __init__(self) -> None:
        self.scopes: dict[str, Scope] = {}
        self.received: dict[str, list[Message]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await respond(send, await read(receive))
            return
        path = scope["path"]
        self.scopes[path] = scope
        received = self.received[path] = [await receive()]
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            received.append(message)
            await send({**message, "type": "websocket.send"})
        received.append(message)

    def ends(self, server: Http2Server, path: str = "/") -> list[int]:
        """The codes of its ends, once there is one."""
        server.until(lambda: self.received.get(path, [{}])[-1].get("type") == "websocket.disconnect")
        return [message["code"] for message in self.received[path] if message["type"] == "websocket.disconnect"]


def at_rest(server: Http2Server) -> bool:
    """Whether no WebSocket and no call of an application is left, on connections that go on."""
    core = server.newest().core
    return server.settled(
        lambda: not server.worker.tasks and server.worker.cells[Cell.WEBSOCKETS] == 0 and core.resting
    )


# ---- the handshake


def test_a_websocket_from_its_request_to_its_end(serve2: Serve) -> None:
    """RFC 8441 5.1; the connection goes on."""
    app = Recording()
    server = serve2(app)
    server.worker.access_log = log = Log()  # type: ignore[assignment]  # the same method, no file behind it
    client = server.client()
    socket = Socket(client, b"/chat?x=1", (b"sec-websocket-key", b"none of its business"), (b"origin", b"http://b"))
    socket.open()
    assert client.settings[Setting.ENABLE_CONNECT_PROTOCOL] == 1
    assert socket.answer.fields == {b"date": b"Sun, 22 Nov 2026 04:29:00 GMT", b"server": b"serve"}
    socket.send(1, b"hello")
    assert socket.receive() == (1, b"hello")
    socket.send(8, b"\x03\xe8", ended=True)
    assert socket.close_code() == 1000
    client.read_until(lambda: socket.answer.ended)
    assert app.ends(server, "/chat") == [1000]
    assert at_rest(server)
    assert not client.of(frames.RST_STREAM)
    assert client.wait(client.post(b"/", b"beside")).content == b"beside"
    scope = app.scopes["/chat"]
    assert (scope["type"], scope["http_version"], scope["scheme"], scope["query_string"]) == (
        *("websocket", "2", "ws"),
        b"x=1",
    )
    assert scope["extensions"]["serve.survive"] == {}
    assert scope["extensions"]["serve"]["connection"] == server.newest().number
    assert log.records[0][1:6] == ("CONNECT", "/chat?x=1", "2", 200, 0)
    assert server.cell(Cell.WEBSOCKETS_OPENED) == 1


@pytest.mark.parametrize(
    ("fields", "version_said"),
    [
        ([], False),
        ([(b"sec-websocket-version", b"8")], True),
        ([VERSION, VERSION], True),
        ([VERSION, (b"sec-websocket-protocol", b"a b")], False),
        ([VERSION, (b"sec-websocket-extensions", b"permessage-deflate; =")], False),
    ],
)
def test_a_handshake_that_is_not_valid_is_refused(serve2: Serve, fields: list[Field], version_said: bool) -> None:
    """Of another version as well: 426 would have to say what to upgrade to (RFC 9110 15.5.22)."""
    app = Recording()
    server = serve2(app)
    client = server.client()
    stream_id, head = client.head(CONNECT, False, more=fields)
    client.send(head)
    answer = client.wait(stream_id)
    assert answer.status == 400
    assert (answer.fields.get(b"sec-websocket-version") == b"13") is version_said
    assert b"upgrade" not in answer.fields
    assert not app.scopes
    client.sync()


def test_subprotocol_headers_and_compression_are_agreed_on(serve2: Serve) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        headers = [(b"x-a", b"1"), (b"connection", b"close"), (b"content-length", b"0")]
        await send({"type": "websocket.accept", "subprotocol": scope["subprotocols"][1], "headers": headers})
        await receive()

    client = serve2(app).client()
    offered = (b"sec-websocket-protocol", b"v1, v2"), (b"sec-websocket-extensions", b"permessage-deflate")
    fields = Socket(client, b"/", *offered).open().answer.fields
    assert fields[b"sec-websocket-protocol"] == b"v2"
    assert fields[b"sec-websocket-extensions"].startswith(b"permessage-deflate")
    assert fields[b"x-a"] == b"1"
    assert not {b"connection", b"content-length", b"upgrade", b"sec-websocket-accept"} & set(fields)


def test_a_denial_is_an_ordinary_response(serve2: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its stream ends, and a client that does not end it as well is told that nothing more is wanted (RFC 9113 8.1)."""
    monkeypatch.setattr("serve_asgi.websocket.connection.LINGER_TIMEOUT", 0.1)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.http.response.start", "status": 401, "headers": [(b"x-a", b"1")]})
        await send({"type": "websocket.http.response.body", "body": b"who ", "more_body": True})
        await send({"type": "websocket.http.response.body", "body": b"are you?"})

    server = serve2(app)
    client = server.client()
    socket = Socket(client)
    answer = client.wait(socket.stream_id)
    assert (answer.status, bytes(answer.content), answer.fields[b"x-a"]) == (401, b"who are you?", b"1")
    client.read_until(lambda: client.of(frames.RST_STREAM, socket.stream_id))
    assert client.of(frames.RST_STREAM)[0].code is ErrorCode.NO_ERROR
    assert at_rest(server)


# ---- ends


def test_a_request_that_ends_its_stream_at_once_has_no_websocket(serve2: Serve) -> None:
    received: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        received.extend([await receive(), await receive()])

    server = serve2(app)
    client = server.client()
    answer = client.wait(Socket(client, ended=True).stream_id)
    assert (answer.status, answer.reset) == (0, ErrorCode.CANCEL)
    server.until(lambda: len(received) == 2)
    assert received[1]["code"] == 1006
    assert at_rest(server)


def test_a_client_that_ends_its_stream_without_a_close_frame(serve2: Serve) -> None:
    """RFC 8441 5: END_STREAM is what the end of the connection is over TCP."""
    app = Recording()
    server = serve2(app)
    client = server.client()
    socket = Socket(client).open()
    socket.end()
    answer = client.wait(socket.stream_id)
    assert (answer.ended, answer.reset) == (True, None)
    assert app.ends(server) == [1006]
    assert at_rest(server)


def test_a_client_that_leaves_the_connection(serve2: Serve) -> None:
    app = Recording()
    server = serve2(app)
    for number, leave in enumerate((Http2Client.end, Http2Client.close)):
        client = server.client()
        for each in range(3):
            Socket(client, b"/%d%d" % (number, each)).open()
        leave(client)
        for each in range(3):
            assert app.ends(server, f"/{number}{each}") == [1006]
        server.until(lambda: not server.worker.connections)
    assert server.cell(Cell.WEBSOCKETS) == 0


def test_a_reset_at_any_moment(serve2: Serve) -> None:
    """The application is told once, nothing is left behind, and the connection goes on."""
    app = Recording()
    server = serve2(app)
    client = server.client()
    steps: list[Callable[[Socket], object]] = [
        lambda socket: None,
        Socket.open,
        lambda socket: socket.send(1, b"one"),
        lambda socket: client.send(data(socket.stream_id, frame(2, b"x" * 1000)[:500])),
        lambda socket: client.send(data(socket.stream_id, bytes(508))),
        lambda socket: socket.receive(),
        lambda socket: client.send(data(socket.stream_id, CLOSE)),
        lambda socket: client.sync(),
    ]
    for count, together in itertools.product(range(1, len(steps) + 1), (False, True)):
        path = f"/{count}{together}"
        socket = Socket(client, path.encode())
        for step in steps[:count]:
            step(socket)
        if together:  # the end and the next beginning in one breath
            client.send(frames.reset_frame(socket.stream_id, ErrorCode.CANCEL), client.head()[1])
        else:
            client.reset(socket.stream_id)
        client.sync()
        assert at_rest(server)
        if path in app.received:
            assert app.ends(server, path) == [1000 if count >= 7 else 1006]
    Socket(client).open().send(1, b"still")
    assert not client.goaways()


def test_a_request_that_is_reset_in_one_breath(serve2: Serve) -> None:
    app = Recording()
    server = serve2(app)
    client = server.client()
    stream_id, head = client.head(CONNECT, False, more=[VERSION])
    client.send(head, data(stream_id, frame(1, b"early")), frames.reset_frame(stream_id, ErrorCode.CANCEL))
    client.sync()
    assert app.ends(server) == [1006]
    assert at_rest(server)


def test_calls_that_go_on_after_a_reset_count(serve2: Serve) -> None:
    """Who asks and resets gets no more work done at once than others (CVE-2023-44487)."""
    go_on = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await go_on.wait()

    server = serve2(app, h2_max_streams=3)
    client = server.client()
    for _ in range(3):
        client.reset(Socket(client).stream_id)
    refused = Socket(client)
    assert client.wait(refused.stream_id).reset is ErrorCode.REFUSED_STREAM
    server.run(go_on.set)
    server.until(lambda: not server.worker.tasks)
    another = Socket(client)
    client.sync()
    assert another.answer.reset is not ErrorCode.REFUSED_STREAM


def test_one_that_has_ended_is_freed_without_the_collector(serve2: Serve) -> None:
    """However it has ended."""
    server = serve2(Recording())
    client = server.client()

    def left() -> list[str]:
        kinds = {"WebSocketStream", "StreamTransport", "WebSocketSession", "WebSocketRequest", "MessageFraming"}
        return [name for each in gc.get_objects() if (name := type(each).__name__) in kinds]

    def use(end: Callable[[Socket], object]) -> None:
        socket = Socket(client).open()
        socket.send(1, b"hello")
        assert socket.receive() == (1, b"hello")
        end(socket)
        client.wait(socket.stream_id)
        client.sync()

    gc.collect()
    gc.disable()
    try:
        use(lambda socket: socket.send(8, b"\x03\xe8", ended=True))
        use(Socket.end)
        resetting = Socket(client).open()
        client.reset(resetting.stream_id)
        client.sync()
        assert at_rest(server)
        server.until(lambda: not left())
    finally:
        gc.enable()


# ---- many on one connection


def test_many_on_one_connection_beside_requests(serve2: Serve) -> None:
    app = Recording()
    server = serve2(app)
    client = server.client({Setting.INITIAL_WINDOW_SIZE: 1 << 20})
    sockets = [Socket(client, b"/%d" % number) for number in range(20)]
    for number, socket in enumerate(sockets):
        socket.open()
        socket.send(1, b"from %d" % number)
    posts = {client.post(b"/", b"%d" % number * 20_000): number for number in range(10)}
    for number, socket in enumerate(sockets):
        socket.send(2, bytes([number]) * 3000)
    for stream_id, number in posts.items():
        assert client.wait(stream_id).content == b"%d" % number * 20_000
    for number, socket in enumerate(sockets):
        assert socket.receive() == (1, b"from %d" % number)
        assert socket.receive() == (2, bytes([number]) * 3000)
    assert server.cell(Cell.WEBSOCKETS) == 20
    for socket in sockets[::2]:
        socket.send(8, b"\x03\xe8", ended=True)
    for socket in sockets[1::2]:
        client.reset(socket.stream_id)
    for socket in sockets[::2]:
        assert socket.close_code() == 1000
    assert at_rest(server)
    assert not client.goaways()


def test_bytes_are_counted_once_as_they_were_on_the_wire(serve2: Serve) -> None:
    server = serve2(Recording())
    client = server.client()
    socket = Socket(client).open()
    client.sync()
    before = server.cell(Cell.BYTES_RECEIVED), server.cell(Cell.BYTES_SENT)
    socket.send(2, bytes(1000))
    assert socket.receive() == (2, bytes(1000))
    received = server.cell(Cell.BYTES_RECEIVED) - before[0]
    sent = server.cell(Cell.BYTES_SENT) - before[1]
    assert (received, sent) == (9 + 8 + 1000, 9 + 4 + 1000)


# ---- windows


def test_a_window_of_one_byte(serve2: Serve) -> None:
    client = serve2(Recording()).client({Setting.INITIAL_WINDOW_SIZE: 1})
    socket = Socket(client).open()
    socket.send(1, b"one by one")
    for size in range(1, 12):
        client.wait_for_content(socket.stream_id, size)
        client.widen(socket.stream_id, 1)
    assert socket.receive() == (1, b"one by one")
    assert {len(said.payload) for said in client.of(frames.DATA)} == {1}


def test_an_application_waits_for_the_clients_window(serve2: Serve) -> None:
    sent = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal sent
        if scope["type"] == "http":
            await respond(send, b"beside")
            return
        await receive()
        await send({"type": "websocket.accept"})
        for _ in range(100):
            await send({"type": "websocket.send", "bytes": bytes(10_000)})
            sent += 1
        await send({"type": "websocket.close"})

    server = serve2(app)
    client = server.client({Setting.INITIAL_WINDOW_SIZE: 0})
    socket = Socket(client).open()
    client.sync()
    assert sent < 10
    assert server.run(lambda: server.newest().core.queued(socket.stream_id)) < 80_000
    request = client.get()
    client.widen(request, 100)
    assert client.wait(request).content == b"beside"
    for _ in range(100):
        client.widen(socket.stream_id, 10_004)
    for _ in range(100):
        assert socket.receive() == (2, bytes(10_000))
    client.widen(socket.stream_id, 10)
    assert socket.close_code() == 1000


def test_a_client_that_takes_nothing_loses_its_stream_alone(serve2: Serve) -> None:
    """`--write-timeout`."""
    app = Recording()
    server = serve2(app, write_timeout=0.3)
    client = server.client({Setting.INITIAL_WINDOW_SIZE: 10_000})
    socket, other = Socket(client, b"/stuck").open(), Socket(client, b"/other").open()
    socket.send(2, bytes(100_000))
    answer = client.wait(socket.stream_id)
    assert answer.reset is ErrorCode.CANCEL
    assert app.ends(server, "/stuck") == [1006]
    other.send(1, b"still here")
    assert other.receive() == (1, b"still here")


def test_a_client_that_takes_a_little_is_not_cut(serve2: Serve) -> None:
    server = serve2(Recording(), write_timeout=0.3)
    client = server.client({Setting.INITIAL_WINDOW_SIZE: 10_000})
    socket = Socket(client).open()
    socket.send(2, bytes(100_000))
    for _ in range(30):
        client.silent(0.05)
        client.widen(socket.stream_id, 3000)
    client.widen(socket.stream_id, 10_000)
    assert socket.receive() == (2, bytes(100_000))


def test_the_client_sends_no_more_than_the_application_takes(serve2: Serve) -> None:
    go_on = asyncio.Event()
    sizes: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await go_on.wait()
        while (message := await receive())["type"] == "websocket.receive":
            sizes.append(len(message["bytes"]))

    server = serve2(app)
    client = server.client()
    socket = Socket(client).open()
    message = frame(2, bytes(4088))  # 4,096 bytes with its head
    count = STREAM_WINDOW // len(message)
    client.send(*[data(socket.stream_id, message)] * count)
    client.sync()
    assert not client.of(frames.WINDOW_UPDATE, socket.stream_id), "the window is open though nothing was taken"
    core = server.newest().core
    assert not server.run(lambda: core.may_receive(socket.stream_id))
    client.send(data(socket.stream_id, b"", False), frames.ping_frame(b"whatever", False))
    server.run(go_on.set)
    client.read_until(lambda: client.of(frames.WINDOW_UPDATE, socket.stream_id))
    server.until(lambda: sizes == [4088] * count)
    socket.send(2, b"more", ended=False)
    socket.send(8, b"\x03\xe8", ended=True)
    assert socket.close_code() == 1000
    assert sizes[-1] == 4
    assert at_rest(server)


def test_more_than_the_window_is_refused_and_costs_the_stream(serve2: Serve) -> None:
    """RFC 9113 6.9.1; what came before is still the application's."""
    go_on = asyncio.Event()
    received: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await go_on.wait()
        while not received or received[-1]["type"] != "websocket.disconnect":
            received.append(await receive())

    server = serve2(app)
    client = server.client()
    socket = Socket(client).open()
    message = frame(2, bytes(4088))
    count = STREAM_WINDOW // len(message)
    client.send(*[data(socket.stream_id, message)] * (count + 1))
    assert client.wait(socket.stream_id).reset is ErrorCode.FLOW_CONTROL_ERROR
    server.run(go_on.set)
    server.until(lambda: bool(received) and received[-1]["type"] == "websocket.disconnect")
    assert len(received) == count + 1
    assert received[-1]["code"] == 1006
    client.sync()


# ---- floods


def test_a_flood_of_empty_data_ends_the_connection(serve2: Serve) -> None:
    app = Recording()
    server = serve2(app)
    client = server.client()
    socket = Socket(client).open()
    client.send(data(socket.stream_id, b"") * 5000)
    client.read_until(client.goaways)
    assert client.goaways()[0][1] is ErrorCode.ENHANCE_YOUR_CALM
    assert app.ends(server) == [1006]


def test_a_flood_of_pings_by_a_client_that_does_not_read(serve2: Serve) -> None:
    """Only the latest are answered (RFC 6455 5.5.3), as over HTTP/1.1."""
    app = Recording()
    server = serve2(app)
    client = server.client({Setting.INITIAL_WINDOW_SIZE: 0})
    socket = Socket(client).open()
    for number in range(1200):
        client.send(data(socket.stream_id, frame(9, b"%100d" % number)))
    client.sync()
    assert 64 * 1024 < server.run(lambda: server.newest().core.queued(socket.stream_id)) < 70_000
    socket.send(1, b"end")
    client.widen(socket.stream_id, 1 << 20)
    seen = [socket.receive()]
    while seen[-1] != (1, b"end"):
        seen.append(socket.receive())
    assert (10, b"%100d" % 1199) in seen


# ---- deadlines, and the worker


def test_a_client_that_answers_no_ping(serve2: Serve) -> None:
    app = Recording()
    server = serve2(app, ws_ping_interval=0.1, ws_ping_timeout=0.2)
    client = server.client()
    silent = Socket(client, b"/silent").open()
    assert silent.receive() == (9, b"")
    assert silent.close_code() == 1011
    client.read_until(lambda: silent.answer.ended)
    assert app.ends(server, "/silent") == [1006]
    client.sync()


def test_a_ping_that_waits_behind_others_is_not_held_against_the_client(serve2: Serve) -> None:
    """Its kernel takes what a large response has put before the ping, and that takes longer than an answer may."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await respond(send, bytes(8_000_000))
            return
        await receive()
        await send({"type": "websocket.accept"})
        while (await receive())["type"] == "websocket.receive":
            pass

    server = serve2(app, ws_ping_interval=0.2, ws_ping_timeout=0.7)
    client = server.client({Setting.INITIAL_WINDOW_SIZE: 1 << 30}, SO_RCVBUF=65536)
    socket = Socket(client).open()
    request = client.get()
    received = client.answers[request].content
    while len(received) < 8_000_000:
        server.settled(lambda: False, 0.01)  # it reads slowly
        client.receive(client.sock.recv(25_000))
        for opcode, _ in socket.frames():
            assert opcode == 9
            socket.send(10)
    client.sync()
    assert server.cell(Cell.WEBSOCKETS) == 1


@pytest.mark.parametrize(("reason", "code"), [("reload", 1012), ("stop", 1001)])
def test_a_worker_that_retires_ends_it_and_the_connection_after_it(serve2: Serve, reason: str, code: int) -> None:
    app = Recording()
    server = serve2(app, ws_retire="early", ws_retire_window=0.2)
    client = server.client()
    sockets = [Socket(client, b"/%d" % number).open() for number in range(3)]

    def retire() -> None:
        server.retiring.begin(reason)
        server.worker.phase = WorkerPhase.CLOSING
        for connection in list(server.worker.connections):
            connection.retire()

    server.run(retire)
    late = client.post(b"/", b"late")
    for number, socket in enumerate(sockets):
        assert socket.close_code() == code
        socket.send(8, code.to_bytes(2, "big"), ended=True)
        assert app.ends(server, f"/{number}") == [code]
    assert client.wait(late).content == b"late"
    client.read_to_end()
    assert [code for _, code in client.goaways()] == [ErrorCode.NO_ERROR] * 2
    assert server.settled(lambda: not server.worker.connections)


def test_a_worker_that_serves_again_lets_it_be(serve2: Serve) -> None:
    server = serve2(Recording(), ws_retire="early", ws_retire_window=0.4, h2_hold=30)
    client = server.client()
    socket = Socket(client).open()

    def retire_and_resume() -> None:
        worker = server.worker
        server.retiring.begin("reload")
        worker.phase = WorkerPhase.HANDING_OVER
        for connection in list(worker.connections):
            connection.retire()
        worker.phase = WorkerPhase.SERVING
        server.retiring.end()
        for connection in list(worker.connections):
            connection.resume()

    server.run(retire_and_resume)
    assert client.silent(0.6)
    socket.send(1, b"here")
    assert socket.receive() == (1, b"here")
    assert not client.goaways()


def test_the_graceful_timeout(serve2: Serve) -> None:
    app = Recording()
    server = serve2(app)
    client = server.client()
    sockets = [Socket(client, b"/%d" % number).open() for number in range(3)]

    def cut() -> bool:
        server.retiring.begin("reload")
        return server.newest().cut()

    assert server.run(cut)
    for socket in sockets:
        assert socket.close_code() == 1012
        assert client.wait(socket.stream_id).ended
    client.read_to_end()
    assert at_rest(server)
