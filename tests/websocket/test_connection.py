"""How a WebSocket ends: after the answers to earlier messages, while the worker retires, at the graceful timeout."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from serve_asgi.http.worker_context import Message, Receive, Scope, Send
from serve_asgi.ipc.scoreboard import Cell
from tests.websocket.test_limits import waiting_bytes
from tests.websocket.test_session import Recorder, echo, loop_name
from tests.websocket.websocket_server import RawClient, frame, serving

__all__ = ["loop_name"]  # the fixture

# The client's end comes after the answers to its messages


async def slow(scope: Scope, receive: Receive, send: Send) -> None:
    """An echo that takes its time."""
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await asyncio.sleep(0.02)
        await send({**message, "type": "websocket.send"})


@pytest.mark.parametrize(
    ("end", "code"),
    [(frame(8, b"\x03\xe8"), 1000), (frame(3), 1002), (frame(1, b"\xff"), 1007)],
    ids=["close", "wrong frame", "wrong text"],
)
def test_messages_before_the_end_are_answered_first(loop_name: str, end: bytes, code: int) -> None:
    with serving(slow, loop_name) as server, RawClient(server.port) as client:
        client.open()
        client.socket.sendall(b"".join(frame(1, b"%d" % i) for i in range(5)) + end + frame(1, b"never read"))
        for i in range(5):
            assert client.receive() == (1, b"%d" % i)
        assert client.close_code() == code
        client.close()
        assert server.gone()


def test_client_that_says_all_at_once_and_shuts_down_its_side_is_answered(loop_name: str) -> None:
    with serving(slow, loop_name) as server, RawClient(server.port) as client:
        client.open()
        client.socket.sendall(frame(1, b"question") + frame(8, b"\x03\xe8"))
        client.socket.shutdown(socket.SHUT_WR)
        assert client.receive() == (1, b"question")
        assert client.close_code() == 1000
        assert server.gone()


def test_application_that_never_takes_them_is_told_and_the_client_released(
    loop_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve_asgi.websocket.connection.FINISH_TIMEOUT", 0.2)
    go_on = asyncio.Event()
    received: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await go_on.wait()
        while not received or received[-1]["type"] != "websocket.disconnect":
            received.append(await receive())

    with serving(app, loop_name) as server, RawClient(server.port) as client:
        client.open()
        client.socket.sendall(frame(1, b"unread") + frame(8, b"\x0f\xa1bye"))
        assert client.close_code() == 4001
        client.close()
        assert server.gone()
        server.run(go_on.set)
        assert server.settled(lambda: not server.worker.tasks)
    assert received == [
        {"type": "websocket.receive", "text": "unread"},
        {"type": "websocket.disconnect", "code": 4001, "reason": "bye"},
    ]


@pytest.mark.parametrize(
    "last",
    [{"type": "websocket.close", "code": 4002}, None, RuntimeError("oops")],
    ids=["closes", "returns", "raises"],
)
def test_application_may_end_before_it_has_taken_them(
    loop_name: str, last: Message | Exception | None, caplog: pytest.LogCaptureFixture
) -> None:
    """The client has said how it ends, and is answered with that (RFC 6455 5.5.1)."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await receive()
        await asyncio.sleep(0.05)
        if isinstance(last, Exception):
            raise last
        if last is not None:
            await send(last)

    with serving(app, loop_name) as server, RawClient(server.port) as client:
        client.open()
        client.socket.sendall(frame(1, b"one") + frame(1, b"two") + frame(8, b"\x0f\xa1bye"))
        assert client.close_code() == 4001
        client.close()
        assert server.gone()
    assert ("oops" in caplog.text) is isinstance(last, Exception)


def test_cut_answers_the_clients_end(loop_name: str) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await asyncio.Event().wait()

    with serving(app, loop_name) as server, RawClient(server.port) as client:
        client.open()
        client.socket.sendall(frame(1, b"unread") + frame(8, b"\x0f\xa1bye"))
        assert server.settled(lambda: waiting_bytes(server) > 0)
        (connection,) = server.run(server.websockets)
        server.retire("reload", 30)  # changes nothing any more
        assert server.run(connection.cut) is True
        assert client.close_code() == 4001
        assert server.gone()


def test_client_that_vanishes_meanwhile(loop_name: str) -> None:
    """The application is told of the close frame that it had sent."""
    go_on = asyncio.Event()
    received: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await go_on.wait()
        while not received or received[-1]["type"] != "websocket.disconnect":
            received.append(await receive())
            await send({"type": "websocket.send", "text": "nobody gets this"})

    with serving(app, loop_name) as server:
        with RawClient(server.port) as client:
            client.open()
            client.socket.sendall(frame(1, b"unread") + frame(8, b"\x0f\xa1"))
            assert server.settled(lambda: waiting_bytes(server) > 0)
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        server.run(go_on.set)
        assert server.gone()
        assert server.settled(lambda: not server.worker.tasks)
    assert received[-1] == {"type": "websocket.disconnect", "code": 4001, "reason": ""}


# Retiring


def test_early_retiring_closes_over_the_window_with_1012(loop_name: str) -> None:
    app = Recorder()
    with serving(app, loop_name, ws_retire="early", ws_retire_window=0.3) as server:
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(connect(server.url())) for _ in range(5)]
            server.retire("reload", 30)
            for client in clients:
                with pytest.raises(ConnectionClosed):
                    client.recv(10)
                assert client.close_code == 1012
        assert app.disconnect(server)["code"] == 1012
        assert server.gone()


def test_stopping_closes_with_1001(loop_name: str) -> None:
    with serving(echo, loop_name, ws_retire="early", ws_retire_window=0) as server, connect(server.url()) as client:
        server.retire("stop", 30)
        with pytest.raises(ConnectionClosed):
            client.recv(10)
        assert client.close_code == 1001


def test_late_retiring_waits_for_the_window(loop_name: str) -> None:
    with serving(echo, loop_name, ws_retire="late", ws_retire_window=1.5) as server, connect(server.url()) as client:
        server.retire("reload", 2.0)
        client.send("served meanwhile")
        assert client.recv(10) == "served meanwhile"
        with pytest.raises(ConnectionClosed):
            client.recv(10)
        assert client.close_code == 1012
        assert server.run(lambda: server.worker.retire_deadline > server.loop.time())  # before the graceful timeout


def test_application_that_knows_may_end_by_itself(loop_name: str) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await server.retiring.wait()
        await send({"type": "websocket.close", "code": 4100})

    with serving(app, loop_name) as server, connect(server.url()) as client:
        server.retire("reload", 30)
        with pytest.raises(ConnectionClosed):
            client.recv(10)
        assert client.close_code == 4100


def test_connection_that_comes_while_the_worker_retires_retires_too(loop_name: str) -> None:
    with serving(echo, loop_name, ws_retire="early", ws_retire_window=0.1) as server:
        server.retire("reload", 30)
        with connect(server.url()) as client:
            with pytest.raises(ConnectionClosed):
                client.recv(10)
            assert client.close_code == 1012


def test_application_that_accepts_after_the_moment_is_closed_at_once(loop_name: str) -> None:
    go_on = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await go_on.wait()
        await echo(scope, receive, send)

    with serving(app, loop_name, ws_retire="early", ws_retire_window=0) as server, RawClient(server.port) as client:
        client.request()
        assert server.settled(lambda: len(server.websockets()) == 1)
        server.retire("reload", 30)
        server.settled(lambda: False, 0.1)
        server.run(go_on.set)
        assert client.head().startswith("HTTP/1.1 101 ")
        assert client.receive() == (8, b"\x03\xf4")


def test_cut_says_1012_and_cancels_the_application(loop_name: str) -> None:
    app = Recorder()
    with serving(app, loop_name) as server, RawClient(server.port) as client:
        client.open()
        server.retiring.begin("reload")
        (connection,) = server.run(server.websockets)
        assert server.run(connection.cut) is True
        assert client.close_code() == 1012
        assert server.gone()
        assert server.run(connection.cut) is False
        assert server.settled(lambda: not server.worker.tasks)
    assert isinstance(app.error, asyncio.CancelledError)


def test_cut_does_not_wait_for_a_client_that_does_not_read(loop_name: str) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "bytes": b"x" * 20_000_000})

    with serving(app, loop_name) as server, RawClient(server.port, receive_buffer=65536) as client:
        client.open()
        assert server.settled(lambda: server.cell(Cell.WEBSOCKETS) == 1)
        (connection,) = server.run(server.websockets)
        assert server.run(connection.cut) is True
        assert server.gone()
        assert server.settled(lambda: not server.worker.tasks)


def test_cut_before_the_answer(loop_name: str) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.Event().wait()

    with serving(app, loop_name) as server, RawClient(server.port) as client:
        client.request()
        assert server.settled(lambda: len(server.websockets()) == 1)
        (connection,) = server.run(server.websockets)
        assert server.run(connection.cut) is True
        with pytest.raises(ConnectionResetError) if server.over_http2 else contextlib.nullcontext():
            assert client.to_the_end() == b""
        assert server.gone()


def test_cut_tells_the_application_that_survives_its_cancelling(loop_name: str) -> None:
    seen: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        with contextlib.suppress(asyncio.CancelledError):
            await receive()
        seen.append(await receive())

    with serving(app, loop_name) as server, RawClient(server.port) as client:
        client.open()
        (connection,) = server.run(server.websockets)
        server.run(connection.cut)
        assert server.settled(lambda: bool(seen))
    assert seen == [{"type": "websocket.disconnect", "code": 1012, "reason": ""}]
