"""WebSockets as clients and applications see them: messages, handshake, denial, and every way to end."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import socket
import threading
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from serve_asgi.http.dropped_messages import ClientDisconnected
from serve_asgi.http.worker_context import Message, Receive, Scope, Send
from serve_asgi.ipc.scoreboard import Cell
from tests.connection_server import LOOPS
from tests.rows import websockets_timed
from tests.websocket.websocket_server import RawClient, WebSocketServer, frame, serving

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(params=[*LOOPS, "uvloop over HTTP/2"])
def loop_name(request: pytest.FixtureRequest) -> str:
    """Of a loop, and what WebSockets are spoken over; HTTP/1.1 if it does not say so."""
    return str(request.param)


@pytest.fixture(params=list(LOOPS))
def http1_loop_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Sends back what it gets until the client is gone."""
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({**message, "type": "websocket.send"})


class Recorder:
    """Runs a part of an application after the accept, and keeps what it received and how it ended."""

    def __init__(self, *sent: Message, accept: bool = True, wait: bool = True) -> None:
        self.sent = sent
        self.accept = accept
        self.wait = wait
        self.scope: Scope = {}
        self.received: list[Message] = []
        self.error: BaseException | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        try:
            self.received.append(await receive())
            if self.accept:
                await send({"type": "websocket.accept"})
            for message in self.sent:
                await send(message)
            while self.wait:
                self.received.append(await receive())
                if self.received[-1]["type"] == "websocket.disconnect":
                    return
        except BaseException as error:
            self.error = error
            raise

    def disconnect(self, server: WebSocketServer) -> Message:
        """The disconnect message, once it has come."""
        assert server.settled(lambda: bool(self.received) and self.received[-1]["type"] == "websocket.disconnect")
        return self.received[-1]


# Messages


def test_text_and_bytes_come_back_as_they_were(loop_name: str) -> None:
    with serving(echo, loop_name) as server, connect(server.url(), compression=None) as client:
        for message in ("", "žluť", "x" * 125, "x" * 126, "x" * 70000, b"", b"\0\xff", b"y" * 65535, b"y" * 65536):
            client.send(message)
            assert client.recv(10) == message


def test_compressed_messages_come_back_as_they_were(loop_name: str) -> None:
    with serving(echo, loop_name) as server, connect(server.url(), compression="deflate") as client:
        assert client.response is not None
        assert "permessage-deflate" in client.response.headers["Sec-WebSocket-Extensions"]
        for message in ("", "hello " * 10000, b"\0" * 1_000_000, "short"):
            client.send(message)
            assert client.recv(10) == message


def test_no_compression_when_it_is_off(loop_name: str) -> None:
    with serving(echo, loop_name, ws_deflate=False) as server, connect(server.url()) as client:
        assert client.response is not None
        assert "Sec-WebSocket-Extensions" not in client.response.headers
        client.send("x")
        assert client.recv(10) == "x"


def test_fragments_are_joined_and_pings_between_them_answered(loop_name: str) -> None:
    with serving(echo, loop_name) as server, RawClient(server.port) as client:
        client.open()
        client.send(1, "ž".encode()[:1], fin=False)  # a character cut in two
        client.send(9, b"now")
        client.send(0, b"", fin=False)
        client.send(0, "ž".encode()[1:] + b"lu", fin=False)
        client.send(0, b"t")
        assert client.receive() == (10, b"now")
        assert client.receive() == (1, "žlut".encode())


def test_frames_arrive_in_any_pieces(loop_name: str) -> None:
    with serving(echo, loop_name) as server, RawClient(server.port) as client:
        client.open()
        client.socket.setsockopt(6, 1, 1)  # TCP_NODELAY
        stream = frame(1, b"one") + frame(9, b"p") + frame(2, b"z" * 200) + frame(1, b"two")
        for cut in range(1, len(stream)):
            client.socket.sendall(stream[:cut])
            client.socket.sendall(stream[cut:])
        answers = sorted(client.receive() for _ in range(4 * (len(stream) - 1)))
        assert answers == sorted([(1, b"one"), (10, b"p"), (2, b"z" * 200), (1, b"two")] * (len(stream) - 1))


def test_bytes_sent_before_the_accept_are_not_lost(loop_name: str) -> None:
    with serving(echo, loop_name) as server, RawClient(server.port) as client:
        client.request()
        client.send(1, b"early")
        assert client.head().startswith("HTTP/1.1 101 ")
        assert client.receive() == (1, b"early")


# The handshake


def test_scope(loop_name: str) -> None:
    app = Recorder()
    with serving(app, loop_name, root_path="/root") as server:
        server.worker.state["db"] = "a pool"
        server.worker.generation, server.worker.slot = 7, 3
        with connect(server.url("/a%20b/%C5%BE?q=1&r=%20"), subprotocols=[Subprotocol("v1"), Subprotocol("v2")]):
            scope = app.scope
        assert app.disconnect(server)["code"] == 1000
    headers = dict(scope.pop("headers"))
    assert headers[b"host"].startswith(b"127.0.0.1:")
    assert scope.pop("client")[0] == "127.0.0.1"
    assert tuple(scope.pop("server")) == ("127.0.0.1", server.own_port)
    assert scope == {
        "type": "websocket",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "2" if server.over_http2 else "1.1",
        "scheme": "ws",
        "path": "/root/a b/ž",
        "raw_path": b"/root/a%20b/%C5%BE",
        "query_string": b"q=1&r=%20",
        "root_path": "/root",
        "subprotocols": ["v1", "v2"],
        "state": {"db": "a pool"},
        "extensions": {
            "serve": {"generation": 7, "slot": 3, "connection": 2 if server.over_http2 else 1},
            "websocket.http.response": {},
            "serve.survive": {},
        },
    }
    assert scope["state"] is not server.worker.state
    assert app.received[0] == {"type": "websocket.connect"}


def test_subprotocol_and_headers_of_the_accept(loop_name: str) -> None:
    headers = [(b"x-a", b"1"), (b"X-A", b"2"), (b"server", b"mine")]
    app = Recorder({"type": "websocket.accept", "subprotocol": "v2", "headers": headers}, accept=False)
    offer = [Subprotocol("v1"), Subprotocol("v2")]
    with serving(app, loop_name) as server, connect(server.url(), subprotocols=offer) as client:
        assert client.subprotocol == "v2"
        assert client.response is not None
        assert client.response.headers.get_all("x-a") == ["1", "2"]
        assert client.response.headers.get_all("server") == ["mine"]


def test_headers_that_mean_nothing_in_an_accept_are_dropped(loop_name: str) -> None:
    """Middlewares add them to every response."""
    headers = [(b"Content-Length", b"0"), (b"connection", b"close"), (b"transfer-encoding", b"chunked"), (b"x-a", b"1")]
    app = Recorder({"type": "websocket.accept", "headers": headers}, accept=False)
    with serving(app, loop_name) as server, connect(server.url()) as client:
        assert client.response is not None
        got = {name.lower(): value for name, value in client.response.headers.raw_items()}
        assert not {"content-length", "transfer-encoding"} & set(got)
        assert (got["connection"], got["x-a"]) == ("Upgrade", "1")


@pytest.mark.parametrize(
    ("accept", "error"),
    [
        ({"subprotocol": "other"}, ValueError),
        ({"headers": [(b"x", b"a\r\nset-cookie: b")]}, ValueError),
        ({"headers": [(b"x\r\ny", b"a")]}, ValueError),
        ({"headers": [(b"x", b"\0")]}, ValueError),
        ({"headers": [("x", "text")]}, TypeError),
        ({"headers": [(b"sec-websocket-protocol", b"v1")]}, ValueError),
        ({"headers": [(b"Upgrade", b"h2c")]}, ValueError),
    ],
)
def test_accept_that_would_lie_is_refused(
    accept: dict[str, Any], error: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    app = Recorder({"type": "websocket.accept", **accept}, accept=False)
    with serving(app, "uvloop") as server, RawClient(server.port) as client:
        client.request("/", "Sec-WebSocket-Protocol: v1")
        assert client.head().startswith("HTTP/1.1 500 ")
        client.to_the_end()
        client.close()
        assert isinstance(app.error, error)
        assert server.gone()
    assert type(app.error).__name__ in caplog.text


@pytest.mark.parametrize(
    ("key", "version", "status"),
    [("", "13", 400), ("short", "13", 400), ("!" * 24, "13", 400), (None, "", 400), (None, "8", 426)],
)
def test_invalid_handshake_never_reaches_the_application(
    http1_loop_name: str, key: str | None, version: str, status: int
) -> None:
    app = Recorder()
    with serving(app, http1_loop_name) as server, RawClient(server.port) as client:
        client.request(key=key, version=version)
        head = client.head().lower()
        assert head.startswith(f"http/1.1 {status} ")
        assert "connection: close" in head
        assert ("sec-websocket-version: 13" in head) == (status == 426)
        client.to_the_end()
        client.close()
        assert server.gone()
        assert server.cell(Cell.STATUS_4XX) == 1
    assert not app.received


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (["Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="], 400),  # a second key
        (["Sec-WebSocket-Version: 13"], 426),  # a second version
        (["Sec-WebSocket-Protocol: a b"], 400),
        (["Sec-WebSocket-Protocol: ,"], 400),
        (["Sec-WebSocket-Extensions: permessage-deflate; ="], 400),
    ],
    ids=str,
)
def test_handshake_that_is_ambiguous_or_malformed_is_refused(lines: list[str], status: int) -> None:
    """RFC 6455 4.2.1, 11.3"""
    app = Recorder()
    with serving(app, "uvloop") as server, RawClient(server.port) as client:
        client.request("/", *lines)
        assert client.head().startswith(f"HTTP/1.1 {status} ")
    assert not app.received


@pytest.mark.parametrize(
    "request_",
    [
        b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n",
        b"GET / HTTP/1.0\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 0\r\n",
    ],
)
def test_what_does_not_ask_for_a_websocket_is_http(request_: bytes) -> None:
    """RFC 9110 7.8: an Upgrade without its Connection option, in HTTP/1.0 or for another protocol is passed over."""
    kinds: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        kinds.append(scope["type"])
        await send({"type": "http.response.start", "status": 204})
        await send({"type": "http.response.body"})

    rest = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    with serving(app, "uvloop") as server, RawClient(server.port) as client:
        client.socket.sendall(request_ + rest)
        assert client.head().startswith("HTTP/1.1 204 ")
    assert kinds == ["http"]


def test_origin_and_cookies_reach_the_application_as_sent(loop_name: str) -> None:
    app = Recorder()
    with serving(app, loop_name) as server, RawClient(server.port) as client:
        client.open("/", "Origin: null", "Cookie: a=b; c=d", "X-Two: 1", "X-Two: 2")
    headers = app.scope["headers"]
    assert (b"origin", b"null") in headers
    assert (b"cookie", b"a=b; c=d") in headers
    assert [value for name, value in headers if name == b"x-two"] == [b"1", b"2"]


def test_tokens_of_the_handshake_in_any_case_and_company() -> None:
    with serving(echo, "uvloop") as server, RawClient(server.port) as client:
        client.socket.sendall(
            b"GET / HTTP/1.1\r\nHost: a\r\nCONNECTION: keep-alive , UPGRADE\r\nupgrade: h2c, WebSocket\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        head = client.head()
        assert head.startswith("HTTP/1.1 101 ")
        assert "sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in head  # RFC 6455 1.3


def test_counters_and_access_log(loop_name: str) -> None:
    with serving(echo, loop_name) as server:
        with connect(server.url("/x?y")) as client:
            client.send("a")
            client.recv(10)
            assert server.cell(Cell.WEBSOCKETS) == 1
        assert server.gone()
        assert server.cell(Cell.REQUESTS) == 1
        assert server.cell(Cell.STATUS_2XX if server.over_http2 else Cell.STATUS_1XX) == 1
        assert websockets_timed(server.worker.cells)[:2] == (1, 1)
        assert server.cell(Cell.DURATION_TOTAL) == 0 == sum(server.worker.durations)
        asked = ("CONNECT", "/x?y", "2", 200, 0) if server.over_http2 else ("GET", "/x?y", "1.1", 101, 0)
        assert [record[1:6] for record in server.log.records] == [asked]


# Denial


def test_close_before_the_accept_is_403(loop_name: str) -> None:
    app = Recorder({"type": "websocket.close", "code": 4000}, accept=False)
    with serving(app, loop_name) as server:
        with pytest.raises(InvalidStatus) as refused, connect(server.url()):
            pass
        assert refused.value.response.status_code == 403
        assert app.disconnect(server)["code"] == 1006
        assert server.gone()
        assert server.cell(Cell.STATUS_4XX) == 1
        assert server.cell(Cell.WEBSOCKETS) == 0


def test_denial_response_in_one_piece(loop_name: str) -> None:
    app = Recorder(
        {"type": "websocket.http.response.start", "status": 401, "headers": [(b"WWW-Authenticate", b"Basic")]},
        {"type": "websocket.http.response.body", "body": b"who are you?"},
        accept=False,
    )
    with serving(app, loop_name) as server, RawClient(server.port) as client:
        client.request()
        assert client.to_the_end() == (
            b"HTTP/1.1 401 Unauthorized\r\nwww-authenticate: Basic\r\nserver: test\r\n"
            b"content-length: 12\r\nconnection: close\r\n\r\nwho are you?"
        )
        assert app.disconnect(server)["code"] == 1006
        assert server.log.records[0][4:6] == (401, 12)


def test_denial_response_in_pieces_is_chunked(loop_name: str) -> None:
    app = Recorder(
        {"type": "websocket.http.response.start", "status": 403, "headers": []},
        {"type": "websocket.http.response.body", "body": b"one", "more_body": True},
        {"type": "websocket.http.response.body", "body": b"", "more_body": True},
        {"type": "websocket.http.response.body", "body": b"two" * 100_000, "more_body": True},
        {"type": "websocket.http.response.body"},
        accept=False,
    )
    with serving(app, loop_name) as server, RawClient(server.port) as client:
        client.request()
        if server.over_http2:
            assert "content-length" not in client.head()
            assert client.to_the_end() == b"one" + b"two" * 100_000
        else:
            assert "transfer-encoding: chunked" in client.head()
            assert client.to_the_end() == b"3\r\none\r\n493e0\r\n" + b"two" * 100_000 + b"\r\n0\r\n\r\n"


@pytest.mark.parametrize("body", [b"too long", b"a"])
def test_denial_of_the_wrong_length_is_cut(loop_name: str, body: bytes, caplog: pytest.LogCaptureFixture) -> None:
    app = Recorder(
        {"type": "websocket.http.response.start", "status": 403, "headers": [(b"content-length", b"3")]},
        {"type": "websocket.http.response.body", "body": body},
        accept=False,
    )
    with serving(app, loop_name) as server, RawClient(server.port) as client:
        client.request()
        try:
            answer = client.to_the_end()
        except ConnectionResetError:
            answer = b""
        assert not answer.endswith(body)
        assert server.gone()
    assert "than its content-length" in caplog.text


@pytest.mark.parametrize("raises", [True, False])
def test_application_that_ends_without_an_answer_is_500(
    loop_name: str, raises: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        if raises:
            raise KeyError("a fault of the application")

    with serving(app, loop_name) as server:
        with pytest.raises(InvalidStatus) as refused, connect(server.url()):
            pass
        assert refused.value.response.status_code == 500
        assert server.gone()
    assert ("a fault of the application" if raises else "without answering") in caplog.text


# Ends


def test_client_closes(loop_name: str) -> None:
    app = Recorder()
    with serving(app, loop_name) as server:
        with connect(server.url()) as client:
            client.close(4001, "enough")
            assert client.close_code == 4001
        assert app.disconnect(server) == {"type": "websocket.disconnect", "code": 4001, "reason": "enough"}
        assert server.gone()


def test_close_without_a_code_is_1005(loop_name: str) -> None:
    app = Recorder()
    with serving(app, loop_name) as server, RawClient(server.port) as client:
        client.open()
        client.send(8)
        assert client.close_code() == 1005
        assert app.disconnect(server)["code"] == 1005


def test_client_vanishes(loop_name: str) -> None:
    app = Recorder()
    with serving(app, loop_name) as server:
        with RawClient(server.port) as client:
            client.open()
            client.send(1, b"last words")
        assert app.disconnect(server)["code"] == 1006
        assert app.received[1] == {"type": "websocket.receive", "text": "last words"}
        assert server.gone()


@pytest.mark.parametrize(("message", "code"), [({}, 1000), ({"code": 4000, "reason": "žluť"}, 4000)])
def test_application_closes(loop_name: str, message: dict[str, Any], code: int) -> None:
    app = Recorder({"type": "websocket.close", **message})
    with serving(app, loop_name) as server:
        with connect(server.url()) as client:
            with pytest.raises(ConnectionClosed):
                client.recv(10)
            assert client.close_code == code
            assert client.close_reason == message.get("reason", "")
        assert app.disconnect(server)["code"] == code
        assert server.gone()


@pytest.mark.parametrize("close", [{"code": 1005}, {"code": 1006}, {"code": 999}, {"reason": "x" * 124}])
def test_close_that_cannot_be_sent_is_an_error(close: dict[str, Any]) -> None:
    app = Recorder({"type": "websocket.close", **close})
    with serving(app, "uvloop") as server:
        with connect(server.url()) as client:
            with pytest.raises(ConnectionClosed):
                client.recv(10)
            assert client.close_code == 1011
        assert server.gone()
    assert isinstance(app.error, ValueError)


def test_application_returns(loop_name: str) -> None:
    app = Recorder(wait=False)
    with serving(app, loop_name) as server, RawClient(server.port) as client:
        client.open()
        opcode, payload = client.receive()
        assert (opcode, payload) == (8, b"\x03\xe8")
        client.send(8, payload)
        assert client.to_the_end() == b""
        client.close()
        assert server.gone()


def test_application_raises(loop_name: str, caplog: pytest.LogCaptureFixture) -> None:
    app = Recorder({"type": "websocket.send"})
    with serving(app, loop_name) as server, RawClient(server.port) as client:
        client.open("/where")
        assert client.receive() == (8, b"\x03\xf3")
        client.send(8, b"\x03\xf3")
        assert client.to_the_end() == b""
        client.close()
        assert server.gone()
    assert isinstance(app.error, ValueError)
    assert "/where" in caplog.text
    assert "one of bytes and text" in caplog.text


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ({"type": "websocket.send", "text": b"bytes"}, TypeError),
        ({"type": "websocket.send", "bytes": "text"}, TypeError),
        ({"type": "websocket.send", "text": "\ud800"}, UnicodeEncodeError),
        ({"type": "websocket.accept"}, RuntimeError),
        ({"type": "http.response.start", "status": 200}, RuntimeError),
    ],
)
def test_wrong_use_of_send_is_an_error(message: Message, error: type[Exception]) -> None:
    app = Recorder(message)
    with serving(app, "uvloop") as server:
        with connect(server.url()) as client:
            with pytest.raises(ConnectionClosed):
                client.recv(10)
            assert client.close_code == 1011
        assert server.gone()
    assert isinstance(app.error, error)


@pytest.mark.parametrize("grouped", [True, False])
def test_send_after_the_end_raises_oserror_and_is_not_logged(
    loop_name: str, grouped: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve_asgi.http.dropped_messages.DROP_TIME", 0.1)
    seen: list[BaseException] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await receive()
        try:
            while True:  # never yields: the end must be found without the loop's help
                await send({"type": "websocket.send", "text": "x"})
        except OSError as error:
            seen.append(error)
            if grouped:
                raise ExceptionGroup("tasks", [error]) from None
            raise

    with serving(app, loop_name) as server:
        with RawClient(server.port) as client:
            client.open()
            client.send(8, b"\x03\xe8")
            client.close_code()
        assert server.gone()
        assert server.settled(lambda: not server.worker.tasks)
    assert isinstance(seen[0], ClientDisconnected)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_client_that_does_not_answer_our_close_is_left_after_the_deadline(
    loop_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve_asgi.websocket.connection.CLOSE_TIMEOUT", 0.1)
    monkeypatch.setattr("serve_asgi.websocket.connection.LINGER_TIMEOUT", 0.1)
    app = Recorder({"type": "websocket.close"})
    with serving(app, loop_name) as server, RawClient(server.port) as client:
        client.open()
        assert client.close_code() == 1000  # and the end of the stream
        assert server.gone()  # though the client keeps its side open


def test_asyncio_runs_the_application_in_one_task(loop_name: str) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(receive(), 0.01)  # a receive that was given up loses nothing
        await send({"type": "websocket.send", "text": "ready"})
        message = await receive()
        await send({"type": "websocket.send", "text": message["text"]})
        await receive()

    with serving(app, loop_name) as server, connect(server.url()) as client:
        assert client.recv(10) == "ready"
        client.send("kept")
        assert client.recv(10) == "kept"


def test_denial_is_finished_for_a_client_that_has_shut_down_its_side(loop_name: str) -> None:
    go_on = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.http.response.start", "status": 403})
        await go_on.wait()
        await send({"type": "websocket.http.response.body", "body": b"no"})

    with serving(app, loop_name) as server, RawClient(server.port) as client:
        client.request()
        assert server.settled(lambda: len(server.worker.tasks) == 1)
        client.socket.shutdown(socket.SHUT_WR)
        server.settled(lambda: False, 0.05)
        server.run(go_on.set)
        assert client.to_the_end() == (
            b"HTTP/1.1 403 Forbidden\r\nserver: test\r\ncontent-length: 2\r\nconnection: close\r\n\r\nno"
        )
        assert server.gone()


def test_client_that_goes_before_the_answer_is_counted(loop_name: str) -> None:
    app = Recorder(accept=False)
    with serving(app, loop_name) as server:
        with RawClient(server.port) as client:
            client.request("/gone")
            assert server.settled(lambda: bool(app.received))
        assert app.disconnect(server)["code"] == 1006
        assert server.gone()
        assert server.cell(Cell.REQUESTS) == 1
        asked = ("CONNECT", "/gone", "2") if server.over_http2 else ("GET", "/gone", "1.1")
        assert [record[1:6] for record in server.log.records] == [(*asked, 499, 0)]


def test_malformed_extension_offer_is_400(loop_name: str) -> None:
    with serving(echo, loop_name) as server, RawClient(server.port) as client:
        client.request("/", "Sec-WebSocket-Extensions: ;;")
        assert client.head().startswith("HTTP/1.1 400 ")


@pytest.mark.parametrize(
    "sent",
    [
        [{"type": "websocket.send", "text": "before the accept"}],
        [{"type": "websocket.http.response.body", "body": b"before the start"}],
        [{"type": "websocket.http.response.start", "status": 403}, {"type": "websocket.accept"}],
    ],
)
def test_answer_out_of_place_is_an_error(sent: list[Message]) -> None:
    app = Recorder(*sent, accept=False)
    with serving(app, "uvloop") as server, RawClient(server.port) as client:
        client.request()
        with contextlib.suppress(ConnectionResetError):
            answer = client.to_the_end()
            assert answer == b"" if len(sent) == 2 else answer.startswith(b"HTTP/1.1 500 ")
        client.close()
        assert server.gone()
    assert isinstance(app.error, RuntimeError)


class Unusual(BaseException):
    """Neither an Exception nor one of Python's own."""


@pytest.mark.parametrize("error", [Unusual("odd"), KeyboardInterrupt()], ids=repr)
def test_no_exception_leaves_the_client_without_a_close(
    loop_name: str, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await receive()
        raise error

    with serving(app, loop_name) as server, RawClient(server.port) as client:
        client.open()
        client.send(1, b"go")
        opcode, payload = client.receive()
        assert (opcode, payload[:2]) == (8, b"\x03\xf3")  # 1011
        client.close()
        assert server.gone()
    assert "The application failed at the WebSocket /" in caplog.text


@pytest.mark.parametrize("chained", ["cause", "context"])
def test_error_made_of_a_disconnect_is_not_logged(
    loop_name: str, chained: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frameworks raise an exception of their own in place of ours."""
    monkeypatch.setattr("serve_asgi.http.dropped_messages.DROP_TIME", 0.1)
    ended = threading.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        try:
            while True:
                await send({"type": "websocket.send", "text": "x"})
                await asyncio.sleep(0.001)
        except OSError as error:
            ended.set()
            if chained == "cause":
                raise LookupError from error
            raise LookupError  # noqa: B904 (its context is the error)

    with serving(app, loop_name) as server:
        with RawClient(server.port) as client:
            client.open()
            client.receive()
        assert ended.wait(10)
        assert server.gone()
        assert server.settled(lambda: not server.worker.tasks)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_websocket_sees_no_context_of_the_requests_before_it(http1_loop_name: str) -> None:
    """A transport's callbacks run in the context of whoever resumed its reading."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(variable.get())
        variable.set("set")
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            await send({"type": "websocket.close"})
            return
        while (await receive())["more_body"]:
            await asyncio.sleep(0)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body"})

    with serving(app, http1_loop_name) as server, RawClient(server.port) as client:
        size = 1 << 20
        client.socket.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size)
        client.socket.sendall(b"x" * size)
        assert client.head().startswith("HTTP/1.1 200 ")
        client.open()
        assert client.receive() == (8, b"\x03\xe8")
    assert seen == ["unset", "unset"]
