"""Where two rules of a connection meet: reading that is paused and travelling, unread answers and deadlines."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
import struct
from collections.abc import Callable
from typing import Any

import pytest

from serve_asgi.http import timeouts
from serve_asgi.http.client_socket import is_readable
from serve_asgi.http.connection_states import ConnectionState
from serve_asgi.http.hand_over_record import HandOverRecord
from serve_asgi.http.request_pipeline import READ_LIMIT
from serve_asgi.http.worker_context import Receive, Scope, Send, WorkerPhase
from serve_asgi.ipc.scoreboard import Cell
from tests.connection_server import TIMEOUT
from tests.http.http_server import FOREVER, GET, HttpServer, body, echo, read, respond, start

Serve = Callable[..., HttpServer]
LARGE = b"x" * (8 << 20)


async def large(scope: Scope, receive: Receive, send: Send) -> None:
    await respond(send, LARGE if scope["path"] == "/large" else b"small")


def give(server: HttpServer, leftover: bytes) -> tuple[Any, socket.socket]:
    """A connection that comes from another worker with these leftover bytes; our end and the client's."""
    client, ours = socket.socketpair()
    client.settimeout(TIMEOUT)
    ours.setblocking(False)
    record = HandOverRecord(leftover, ("192.0.2.1", 1), ("192.0.2.2", 2), FOREVER, 1)
    return server.take(ours.detach(), record), client


# ---- reading that is paused


def test_content_that_travelled_is_bounded_like_any_other(serve: Serve) -> None:
    """Reading that is paused while the connection is attached stays paused."""
    release = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await release.wait()
        await respond(send, b"%d" % len(await read(receive)))

    server = serve(app)
    content = b"x" * (4 << 20)
    request = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(content)
    connection, client = give(server, request + content[: READ_LIMIT * 2])
    with client:
        client.setblocking(False)
        rest = memoryview(content)[READ_LIMIT * 2 :]
        sent = 0
        for _ in range(50):
            with contextlib.suppress(BlockingIOError):
                sent += client.send(rest[sent : sent + 65536])
            server.run(lambda: None)
        assert server.run(lambda: connection.pipeline.response.request.body.unread) <= READ_LIMIT * 3
        server.run(release.set)
        client.settimeout(TIMEOUT)
        client.sendall(rest[sent:])
        assert b"%d" % len(content) in client.recv(65536)


def test_no_byte_is_read_while_leaving_after_a_long_leftover(serve: Serve) -> None:
    """A connection that arrived with more than may wait, and travels on at once, reads nothing that would be lost."""
    gate = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await gate.wait()
        await respond(send, b"ok")

    server = serve(app)
    departed: list[Any] = []
    server.run(lambda: setattr(server.worker, "hand_over", departed.append))
    connection, client = give(server, GET * 10_000)
    with client:
        server.until(lambda: connection.state is ConnectionState.REQUEST)
        server.run(lambda: setattr(server.worker, "phase", WorkerPhase.HANDING_OVER))
        server.run(gate.set)
        assert client.recv(65536).startswith(b"HTTP/1.1 200")
        server.until(lambda: departed == [connection])
        fd, record = server.run(connection.leave)
        os.close(fd)
        client.sendall(GET)
        for _ in range(3):
            server.wait_for(asyncio.sleep(0.01))
        assert server.run(lambda: bytes(connection.pipeline.buffer)) == record.leftover
        server.run(connection.gone)


def test_disconnect_is_seen_after_a_large_upload(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading goes on once the application has taken the content, so that the client's end is noticed."""
    monkeypatch.setattr("serve_asgi.http.request_receive.HALF_CLOSED_TIME", 0.1)
    seen = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await read(receive)
        assert (await receive())["type"] == "http.disconnect"
        seen.set()

    server = serve(app)
    client = server.connect()
    size = 200_000
    client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size)
    pipeline = server.connection().pipeline
    server.until(lambda: server.cell(Cell.IN_FLIGHT) == 1 and pipeline.response.request.body.left == 0)  # type: ignore[union-attr]
    client.close()
    server.wait_for(asyncio.wait_for(seen.wait(), TIMEOUT))


def test_client_that_only_sends_does_not_fill_memory(serve: Serve) -> None:
    """What is pipelined behind an answer that the client does not read is bounded."""
    server = serve(large)
    client = server.connect(SO_RCVBUF=4096)
    client.send(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
    connection = server.connection()
    server.until(lambda: connection.pipeline.requests == 1 and connection.output.paused)
    client.fill(GET * 1_000_000, lambda: connection.read_paused)
    assert server.run(lambda: len(connection.pipeline.buffer)) < 1 << 20


# ---- answers that the client reads slowly


def test_request_pipelined_behind_a_slow_download_is_served(serve: Serve) -> None:
    """The keep-alive time is no limit for the reading of an answer, nor for the request that waits behind it."""
    server = serve(large, keep_alive=1)
    client = server.connect(SO_RCVBUF=65536)
    client.send(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n" + GET)
    connection = server.connection()
    server.until(lambda: connection.pipeline.requests == 1 and connection.output.paused)
    head = client.read_until(b"\r\n\r\n")
    server.run(lambda: setattr(connection, "deadline", 0.0))
    server.until(lambda: connection.deadline != 0.0)
    assert b"connection: keep-alive" in head
    assert client.read(len(LARGE)) == LARGE
    assert client.answer()[2] == b"small"


def test_download_is_not_idle(serve: Serve) -> None:
    """A client that reads its answer for longer than the keep-alive time may ask again afterwards."""
    server = serve(large, keep_alive=1)
    client = server.connect(SO_RCVBUF=65536)
    client.send(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
    connection = server.connection()
    server.until(lambda: connection.pipeline.requests == 1 and connection.output.paused)
    server.run(lambda: setattr(connection, "deadline", 0.0))
    server.until(lambda: connection.deadline != 0.0)
    assert client.answer()[2] == LARGE
    client.send(GET)
    assert client.answer()[2] == b"small"


@pytest.mark.parametrize("half_closed", [False, True])
def test_idle_client_that_does_not_read_its_answer_is_cut(serve: Serve, half_closed: bool) -> None:
    """Law 5: also the wait for a client that has ended its side, or that just never reads, has an end."""
    server = serve(large, keep_alive=1, write_timeout=0.2)
    client = server.connect(SO_RCVBUF=4096)
    client.send(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
    connection = server.connection()
    server.until(lambda: connection.pipeline.requests == 1)
    if half_closed:
        client.end()
        server.until(lambda: connection.eof)
    server.run(lambda: setattr(connection, "deadline", 0.0))
    server.until(lambda: connection.state is ConnectionState.CLOSED)
    assert server.cell(Cell.CONNECTIONS) == 0


def test_reader_that_takes_from_the_kernel_alone_is_not_cut(serve: Serve) -> None:
    """The kernel holds megabytes, and asks for more when a third of them has gone."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        while True:
            await send(body(LARGE, more=True))

    server = serve(app, write_timeout=1000)
    client = server.connect(SO_RCVBUF=65536)
    client.send(GET)
    client.read_until(b"\r\n\r\n")
    connection = server.connection()
    server.until(lambda: connection.output.paused)
    server.wait_for(asyncio.sleep(0.1))  # until the kernel's buffers are full
    for _ in range(10):
        before, deadline = server.run(lambda: (connection.output.unacknowledged(), connection.deadline))
        client.read(len(client.pending) + 100_000)
        # The acknowledgement may come a little later, or more have been written by then, which begins a new time.
        server.until(lambda: connection.output.unacknowledged() < before or connection.deadline != deadline)  # noqa: B023
        server.run(lambda: connection.expire() if connection.deadline == deadline else None)  # noqa: B023
        assert server.run(lambda: connection.state) is ConnectionState.REQUEST
    client.close()


def test_time_for_reading_goes_on_while_content_arrives(serve: Serve) -> None:
    """A client that sends and never reads is not spared because its content is taken."""
    arrived = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def stream() -> None:
            with contextlib.suppress(OSError):
                while True:
                    await send(body(LARGE, more=True))

        await send(start())
        streaming = asyncio.ensure_future(stream())
        await arrived.wait()
        while (await receive())["type"] != "http.disconnect":
            pass
        await streaming

    server = serve(app, write_timeout=0.5)
    client = server.connect(SO_RCVBUF=4096)
    client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 300_000)
    connection = server.connection()
    server.until(lambda: connection.output.paused and connection.read_paused)
    server.run(arrived.set)
    server.until(lambda: connection.state is ConnectionState.CLOSED)


@pytest.mark.parametrize("late", [False, True])
def test_half_closed_client_reads_a_large_last_answer(serve: Serve, late: bool) -> None:
    """The end comes when the last byte is written: the transport is not closed from within its own callback."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        (connection,) = server.worker.connections
        while not late and not connection.eof:  # type: ignore[attr-defined]
            await asyncio.sleep(0)
        await send(start(200, (b"connection", b"close")) if late else start())
        await send(body(LARGE))

    server = serve(app)
    client = server.connect(SO_RCVBUF=65536)
    client.send(GET)
    if late:
        connection = server.connection()
        server.until(lambda: connection.state is ConnectionState.CLOSING)
    client.end()
    client.read_until(b"\r\n\r\n")
    server.until(lambda: server.connection().eof)
    assert client.read_to_end() == LARGE
    server.until(lambda: server.connection().state is ConnectionState.CLOSED)


def test_deadline_of_a_connection_that_has_just_been_reset(serve: Serve) -> None:
    server = serve(echo)
    client = server.connect()
    client.send(GET)
    client.answer()
    connection = server.connection()
    server.until(lambda: connection.state is ConnectionState.IDLE)

    def expire() -> None:
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        while not select.select([connection.transport.get_extra_info("socket").fileno()], [], [], TIMEOUT)[0]:
            pass
        connection.expire()

    server.run(expire)
    server.until(lambda: connection.state is ConnectionState.CLOSED)


def test_end_amid_the_content_does_not_end_the_answer(serve: Serve) -> None:
    """HTTP/1.0: the content of the answer ends with the connection, and this one is not whole."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        await send(body(b"part", more=True))
        while (await receive())["type"] != "http.disconnect":
            pass

    client = serve(app).connect()
    client.send(b"POST / HTTP/1.0\r\nContent-Length: 10\r\n\r\n12")
    client.read_until(b"part")
    client.end()
    with pytest.raises(ConnectionResetError):
        client.read_to_end()


def test_time_for_content_begins_when_it_is_asked_for(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that waits for 100 has the whole window from then on."""
    monkeypatch.setattr(timeouts, "BODY_WINDOW", FOREVER)
    ask = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await ask.wait()
        await respond(send, await read(receive))

    server = serve(app)
    client = server.connect()
    client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
    connection = server.connection()
    server.until(lambda: connection.state is ConnectionState.REQUEST)
    monkeypatch.setattr(timeouts, "BODY_WINDOW", 1000.0)
    server.run(ask.set)
    client.read_until(b"100 Continue\r\n\r\n")
    assert server.run(lambda: connection.deadline) < FOREVER
    client.send(b"abc")
    assert client.answer()[2] == b"abc"


# ---- the application's side


def test_polling_for_the_disconnect_takes_no_memory(serve: Serve) -> None:
    """A `receive` that is cancelled, as frameworks do to ask whether the client is there, leaves nothing behind."""
    kept: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await read(receive)
        for _ in range(100):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(receive(), 0)
            task = asyncio.ensure_future(receive())
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
        kept.append(len(server.connection().pipeline.response.request.waiters or ()))  # type: ignore[union-attr]
        await respond(send, b"ok")

    server = serve(app)
    client = server.connect()
    client.send(GET)
    assert client.answer()[2] == b"ok"
    assert kept == [0]


class Unusual(BaseException):
    """Neither an Exception nor one of Python's own."""


@pytest.mark.parametrize(
    "error", [Unusual("odd"), KeyboardInterrupt(), BaseExceptionGroup("several", [Unusual("odd")])], ids=repr
)
@pytest.mark.parametrize("late", [False, True])
def test_no_exception_leaves_the_client_without_an_answer(
    serve: Serve, caplog: pytest.LogCaptureFixture, error: BaseException, late: bool
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if late:
            await asyncio.sleep(0)
        raise error

    server = serve(app)
    client = server.connect()
    client.send(GET)
    assert client.answer()[0] == 500
    assert "raised an exception" in caplog.text
    server.until(lambda: server.cell(Cell.IN_FLIGHT) == 0)


def test_refused_content_of_a_head_request_has_no_content_in_its_answer(serve: Serve) -> None:
    server = serve(echo)
    head = b"HEAD / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    answer = server.ask(head, b"zz\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.endswith(b"\r\n\r\n")


# ---- descriptors


def test_bytes_at_the_deadline_are_seen_without_a_descriptor_to_spare(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looking into the kernel's buffer needs none, so that a request is not closed upon when there is none left."""
    server = serve(echo)
    client = server.connect()
    client.send(GET)
    client.answer()
    connection = server.connection()

    def none_left(fd: int) -> int:
        raise OSError(24, "Too many open files")

    def look() -> bool:
        connection.transport.pause_reading()
        client.send(GET)
        with monkeypatch.context() as patched:
            patched.setattr(os, "dup", none_left)
            seen = is_readable(connection.transport)
        connection.transport.resume_reading()
        return seen

    assert server.run(look)
    assert client.answer()[0] == 200


def test_write_limits_return_when_the_connection_remains(serve: Serve) -> None:
    """A connection that was to be flushed and then stays does not wait for each byte ever after."""
    server = serve(large)
    client = server.connect()
    client.send(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
    connection = server.connection()
    server.until(lambda: connection.pipeline.requests == 1)

    def nobody(traveller: Any) -> None:
        traveller.remain()

    def retire() -> None:
        server.worker.hand_over = nobody
        server.worker.phase = WorkerPhase.HANDING_OVER
        connection.retire()

    server.run(retire)
    assert client.answer()[2] == LARGE
    server.until(lambda: connection.transport.get_write_buffer_limits()[1] > 0)
