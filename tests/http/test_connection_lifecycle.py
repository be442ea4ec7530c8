"""A connection's life: persistence, health, time limits, ends that lose nothing, retiring, hand-over, the cut."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serve_asgi.http import closing, request_pipeline
from serve_asgi.http.connection import Http1Connection
from serve_asgi.http.connection_states import ConnectionState
from serve_asgi.http.hand_over_record import HandOverRecord
from serve_asgi.http.worker_context import Receive, Scope, Send, WorkerContext, WorkerPhase
from serve_asgi.ipc.scoreboard import Cell
from tests.http.http_server import (
    CLOSED,
    DEFAULT_HEADERS,
    GET,
    KEPT,
    Client,
    HttpServer,
    Log,
    body,
    echo,
    read,
    respond,
    response,
    start,
)

Serve = Callable[..., HttpServer]


class Held:
    """An application whose answers wait until they are let go."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.go = asyncio.Event()
        self.cancelled = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.paths.append(scope["path"])
        try:
            if scope["path"] == "/stream":
                await send(start())
                await send(body(b"begun", more=True))
            await self.go.wait()
            if scope["path"] == "/stream":
                await send(body(b"ended"))
            else:
                await respond(send, scope["path"].encode() + await read(receive))
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


def get(path: bytes) -> bytes:
    return GET.replace(b"/", path, 1)


# ---- persistence and time limits


def test_keep_alive_is_advertised(serve: Serve) -> None:
    for keep_alive, lines in (
        (75.0, KEPT),
        (5.9, b"connection: keep-alive\r\nkeep-alive: timeout=5\r\n"),
        (0.5, b"connection: keep-alive\r\n"),
        (0.0, CLOSED),
    ):
        client = serve(echo, keep_alive=keep_alive).connect()
        client.send(GET)
        assert client.answer()[1] == b"HTTP/1.1 200 OK\r\n" + DEFAULT_HEADERS + lines + b"content-length: 6\r\n\r\n"


def test_idle_connection_is_closed_a_little_later_than_advertised(serve: Serve) -> None:
    server = serve(echo, keep_alive=1)
    client = server.connect()
    client.send(GET)
    client.answer()
    connection = server.connection()
    left = server.run(lambda: connection.deadline - server.loop.time())
    assert 1.0 < left <= 2.0
    server.run(connection.expire)
    assert client.read_to_end() == b""


def test_request_that_arrives_at_the_deadline_is_served(serve: Serve) -> None:
    server = serve(echo)
    client = server.connect()
    client.send(GET)
    client.answer()
    connection = server.connection()

    def expire_with_unread_bytes() -> None:
        client.send(GET)
        connection.expire()

    server.run(expire_with_unread_bytes)
    assert client.answer()[2] == b"GET / "


def test_new_connection_without_a_request_is_closed(serve: Serve) -> None:
    server = serve(echo, first_byte_timeout=0.1)
    client = server.connect()
    assert client.read_to_end() == b""
    client.close()
    server.until(lambda: server.cell(Cell.CONNECTIONS) == 0)
    assert server.cell(Cell.REQUESTS) == 0


def test_deadline_does_not_fall_while_a_request_runs(serve: Serve) -> None:
    held = Held()
    server = serve(held)
    client = server.connect()
    client.send(GET)
    server.until(lambda: held.paths == ["/"])
    assert server.connection().deadline == math.inf
    server.run(held.go.set)
    assert client.answer()[0] == 200


def test_close_answers(serve: Serve) -> None:
    server = serve(echo)
    client = server.connect()
    client.send(GET)
    assert KEPT in client.answer()[1]
    server.worker.announce_close = True
    client.send(GET)
    assert CLOSED in client.answer()[1]
    assert client.read_to_end() == b""


def test_client_that_never_ends_is_left_after_a_while(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closing, "LINGER_TIME", 0.2)
    server = serve(echo)
    client = server.connect()
    client.send(GET[:-2] + b"Connection: close\r\n\r\n")
    client.answer()
    connection = server.connection()
    server.until(lambda: connection.state is ConnectionState.CLOSED)
    assert server.cell(Cell.CONNECTIONS) == 0


def test_client_that_sends_on_after_its_answer_reads_it(serve: Serve) -> None:
    server = serve(echo)
    client = server.connect()
    client.send(GET[:-2] + b"Connection: close\r\n\r\n" + b"x" * 300_000)
    connection = server.connection()
    server.until(lambda: connection._closing is not None and connection._closing.lingering)
    client.send(b"x" * 300_000)
    assert client.read_to_end().endswith(b"GET / ")


def test_client_that_sends_without_end_after_its_answer_is_left(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closing, "LINGER_LIMIT", 100_000)
    server = serve(echo)
    client = server.connect()
    client.send(GET[:-2] + b"Connection: close\r\n\r\n")
    client.answer()

    def send_without_end() -> None:
        while True:
            client.send(b"x" * 65536)

    with pytest.raises(OSError, match=r"reset|[Bb]roken pipe"):
        send_without_end()
    server.until(lambda: server.cell(Cell.CONNECTIONS) == 0)


def test_last_answer_is_flushed_to_a_slow_reader(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closing, "LINGER_TIME", 0.1)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, b"x" * 20_000_000)

    server = serve(app)
    client = server.connect(SO_RCVBUF=65536)
    client.send(GET[:-2] + b"Connection: close\r\n\r\n")
    connection = server.connection()
    server.until(lambda: connection.state is ConnectionState.CLOSING)
    server.wait_for(asyncio.sleep(0.3))  # longer than the time to linger, which has not begun
    assert connection.state is ConnectionState.CLOSING
    assert len(client.read_to_end().partition(b"\r\n\r\n")[2]) == 20_000_000


def test_reader_that_stops_is_cut(serve: Serve) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, b"x" * 20_000_000)

    server = serve(app, write_timeout=0.2)
    client = server.connect(SO_RCVBUF=65536)
    client.send(GET[:-2] + b"Connection: close\r\n\r\n")
    connection = server.connection()
    server.until(lambda: connection.state is ConnectionState.CLOSED)
    assert client.sock.fileno() > 0


# ---- health


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /ping HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /ping?x=y HTTP/1.1\r\nHost: a\r\n\r\n",
        b"HEAD /ping HTTP/1.1\r\nHost: a\r\n\r\n",
        b"OPTIONS /ping HTTP/1.0\r\n\r\n",
        b"GET /ping HTTP/1.0\r\n\r\n",
    ],
)
def test_health(serve: Serve, request_: bytes) -> None:
    called: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        called.append(scope["method"])
        await respond(send, b"app")

    server = serve(app)
    log = Log()
    server.worker.access_log = log  # type: ignore[assignment]

    def ask(request: bytes) -> tuple[bytes, bytes]:
        client = server.connect()
        client.send(request)
        client.end()
        head, _, content = client.read_to_end().partition(b"\r\n\r\n")
        return head, content

    bodiless = request_.startswith(b"HEAD")
    head, content = ask(request_)
    assert head.startswith(b"HTTP/1.1 200 OK\r\n" + DEFAULT_HEADERS)
    assert b"\r\ncontent-type: application/json\r\n" in head
    assert content == (b"" if bodiless else b'{"status":"ok"}\n')
    assert (CLOSED in head + b"\r\n") == (b"1.0" in request_)

    server.scoreboard.draining_since = 1
    head, content = ask(request_)
    assert head.startswith(b"HTTP/1.1 503 ")
    assert b"content-length: 22" in head
    assert content == (b"" if bodiless else b'{"status":"draining"}\n')
    for live in (b"/ping?live", b"/ping?a=b&live=1"):
        head, _ = ask(request_.replace(b"/ping?x=y", b"/ping").replace(b"/ping", live))
        assert head.startswith(b"HTTP/1.1 200 ")

    assert called == []
    assert log.records == []
    assert [server.cell(c) for c in (Cell.REQUESTS, Cell.STATUS_2XX, Cell.STATUS_5XX, Cell.IN_FLIGHT)] == [0, 0, 0, 0]
    assert ask(request_.replace(request_.split()[0], b"POST"))[1] == b"app"


def test_health_options(serve: Serve) -> None:
    server = serve(echo, health_path="/up", drain_status=500)
    client = server.connect()
    client.send(get(b"/ping") + get(b"/up") + get(b"/up/"))
    assert client.answer()[2] == b"GET /ping "
    assert client.answer()[2] == b'{"status":"ok"}\n'
    assert client.answer()[2] == b"GET /up/ "
    server.scoreboard.draining_since = 1
    client.send(get(b"/up"))
    assert client.answer()[0] == 500
    off = serve(echo, health=False).connect()
    off.send(get(b"/ping"))
    assert off.answer()[2] == b"GET /ping "


def test_health_request_with_content_closes(serve: Serve) -> None:
    answer = serve(echo).ask(b"GET /ping HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello")
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert CLOSED in answer


# ---- retiring


def retire(server: HttpServer, phase: WorkerPhase) -> list[Http1Connection]:
    """Put the server into the phase; the list fills with the connections that want to depart."""
    departing: list[Http1Connection] = []

    def begin() -> None:
        server.worker.hand_over = departing.append
        server.worker.phase = phase
        for connection in list(server.worker.connections):
            connection.retire()

    server.run(begin)
    return departing


def test_idle_connection_departs_at_once(serve: Serve) -> None:
    server = serve(echo)
    client = server.connect()
    client.send(GET)
    client.answer()
    server.until(lambda: server.attached[-1].state is ConnectionState.IDLE)
    fresh = server.connect()
    server.until(lambda: len(server.attached) == 2)
    departing = retire(server, WorkerPhase.HANDING_OVER)
    server.until(lambda: set(departing) == set(server.attached))
    fresh.send(GET)  # until it has left, it is served here
    assert fresh.answer()[0] == 200


@pytest.mark.parametrize("path", [b"/x", b"/stream"])
def test_busy_connection_departs_after_its_answer_is_flushed(serve: Serve, path: bytes) -> None:
    held = Held()
    server = serve(held)
    client = server.connect()
    client.send(get(path) + get(b"/next"))
    server.until(lambda: len(held.paths) == 1)
    departing = retire(server, WorkerPhase.HANDING_OVER)
    server.wait_for(asyncio.sleep(0.02))
    assert departing == []
    server.run(held.go.set)
    if path == b"/x":
        status, head, content = client.answer()
        assert (status, content) == (200, b"/x")
        assert KEPT in head
    else:
        client.read_until(b"0\r\n\r\n")
    server.until(lambda: len(departing) == 1)
    connection = departing[0]
    assert server.run(connection.can_leave)
    descriptor, record = server.run(connection.leave)
    assert record.leftover == get(b"/next")  # not started here
    assert record.requests == 1
    assert held.paths == [path.decode()]
    server.run(connection.stay)
    os.close(descriptor)
    assert client.answer()[2] == b"/next"


def test_large_answer_is_flushed_before_the_departure(serve: Serve) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, b"x" * 10_000_000)

    server = serve(app)
    client = server.connect(SO_RCVBUF=65536)
    client.send(GET)
    connection = server.connection()
    server.until(lambda: connection.pipeline.requests == 1)
    departing = retire(server, WorkerPhase.HANDING_OVER)
    assert not server.run(connection.can_leave)
    server.wait_for(asyncio.sleep(0.05))
    assert departing == []
    assert len(client.answer()[2]) == 10_000_000
    server.until(lambda: departing == [connection] and connection.can_leave())


def test_half_sent_content_finishes_here(serve: Serve) -> None:
    server = serve(echo)
    client = server.connect()
    client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nab")
    server.until(lambda: server.cell(Cell.IN_FLIGHT) == 1)
    departing = retire(server, WorkerPhase.HANDING_OVER)
    assert departing == []
    client.send(b"cd")
    assert client.answer()[2] == b"POST / abcd"
    server.until(lambda: len(departing) == 1)


def test_connection_accepted_while_retiring_departs(serve: Serve) -> None:
    server = serve(echo)
    departing = retire(server, WorkerPhase.HANDING_OVER)
    server.connect()
    server.until(lambda: departing != [] and departing == server.attached)


def test_closing_worker_closes_idle_connections(serve: Serve) -> None:
    server = serve(echo)
    client = server.connect()
    client.send(GET)
    client.answer()
    connection = server.connection()
    server.until(lambda: connection.pipeline.requests == 1)
    retire(server, WorkerPhase.CLOSING)
    assert client.read_to_end() == b""


def test_closing_worker_serves_what_has_begun_to_arrive(serve: Serve) -> None:
    server = serve(echo)
    clients = [server.connect() for _ in range(3)]
    unread, half, fresh = clients
    for client in (unread, half):
        client.send(GET)
        client.answer()
    half.send(GET[:8])
    server.until(lambda: len(server.attached) == 3)
    server.until(lambda: sum(len(c.pipeline.buffer) for c in server.attached) == 8)

    def begin() -> None:
        unread.send(GET)  # in the kernel when the worker begins to retire
        server.worker.phase = WorkerPhase.CLOSING
        for connection in list(server.worker.connections):
            connection.retire()

    server.run(begin)
    half.send(GET[8:])
    fresh.send(GET)  # never served: waited for
    for client in clients:
        status, head, content = client.answer()
        assert (status, content) == (200, b"GET / ")
        assert CLOSED in head
        assert client.read_to_end() == b""


def test_closing_worker_does_not_wait_for_ever_for_a_first_request(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve_asgi.http.connection.FRESH_TIME", 0.2)
    server = serve(echo)
    client = server.connect()
    server.until(lambda: len(server.attached) == 1)
    retire(server, WorkerPhase.CLOSING)
    assert client.read_to_end() == b""


def test_closing_worker_answers_what_it_has_read_and_announces_the_end(serve: Serve) -> None:
    held = Held()
    server = serve(held)
    client, stream = server.connect(), server.connect()
    client.send(get(b"/x") + get(b"/y"))
    stream.send(get(b"/stream"))
    stream.read_until(b"begun")
    server.until(lambda: len(held.paths) == 2)
    retire(server, WorkerPhase.CLOSING)
    server.run(held.go.set)
    for last in (False, True):
        status, head, _ = client.answer()
        assert status == 200
        assert (CLOSED in head) is last
    assert client.read_to_end() == b""
    assert stream.read_to_end().endswith(b"ended\r\n0\r\n\r\n")


# ---- hand-over


def depart(server: HttpServer) -> tuple[Http1Connection, int, HandOverRecord]:
    connection = server.connection()
    server.until(connection.can_leave)
    descriptor, record = server.run(connection.leave)
    return connection, descriptor, record


def test_connection_travels_and_the_client_sees_nothing(serve: Serve) -> None:
    old, new = serve(echo), serve(echo)
    client = old.connect()
    client.send(GET)
    client.answer()
    first = old.connection()
    old.until(lambda: first.pipeline.requests == 1)
    connection, descriptor, record = depart(old)
    assert not os.get_inheritable(descriptor)
    ends = client.sock.getsockname(), client.sock.getpeername()
    assert record == HandOverRecord(b"", *ends, record.deadline, 1, "http", trusted=True)
    client.send(GET)  # lies in the kernel while it travels
    old.wait_for(asyncio.sleep(0.02))
    assert client.silent()
    old.run(connection.gone)
    wall, busy = time.monotonic(), old.run(time.thread_time)
    old.wait_for(asyncio.sleep(0.1))
    busy = old.run(time.thread_time) - busy
    assert busy < 0.5 * (time.monotonic() - wall)  # the old loop is not woken for the duplicate's bytes
    assert client.silent()
    assert old.cell(Cell.CONNECTIONS) == 0
    assert old.worker.connections == set()
    taken = new.take(descriptor, record)
    assert client.answer()[2] == b"GET / "
    client.send(GET)
    assert client.answer()[2] == b"GET / "
    new.until(lambda: taken.pipeline.requests == 3)
    assert (taken.client, taken.server) == (record.client, record.server)
    assert new.cell(Cell.CONNECTIONS) == 1
    assert old.cell(Cell.REQUESTS) == 1


@pytest.mark.parametrize("split", [1, 10, len(GET) - 3, len(GET) - 1, len(GET), len(GET) + 4, 2 * len(GET)])
def test_leftover_bytes_travel(serve: Serve, split: int) -> None:
    old, new = serve(echo), serve(echo)
    client = old.connect()
    stream = get(b"/a") + get(b"/b")
    connection = old.connection()
    old.run(lambda: connection.pipeline.buffer.extend(stream[:split]))  # as a retiring worker leaves pipelined requests
    connection, descriptor, record = depart(old)
    assert record.leftover == stream[:split]
    old.run(connection.gone)
    client.send(stream[split:])
    new.take(descriptor, HandOverRecord.from_json(record.to_json()))
    assert client.answer()[2] == b"GET /a "
    assert client.answer()[2] == b"GET /b "
    assert client.silent()


def test_time_for_half_a_head_is_not_renewed(serve: Serve) -> None:
    old, new = serve(echo, head_timeout=30), serve(echo, head_timeout=30)
    client = old.connect()
    client.send(GET[:5])
    connection = old.connection()
    old.until(lambda: len(connection.pipeline.buffer) == 5)
    deadline = connection.deadline
    assert deadline <= time.monotonic() + 30
    connection, descriptor, record = depart(old)
    assert record.deadline == deadline
    assert connection.deadline == math.inf
    old.run(connection.gone)
    taken = new.take(descriptor, record)
    assert taken.deadline == deadline
    client.send(GET[5:7])
    new.wait_for(asyncio.sleep(0.02))
    assert taken.deadline == deadline
    new.run(taken.expire)
    assert client.read_to_end().startswith(b"HTTP/1.1 408 ")


def test_hand_over_that_failed(serve: Serve) -> None:
    server = serve(echo)
    client = server.connect()
    client.send(GET[:5])
    connection = server.connection()
    server.until(lambda: len(connection.pipeline.buffer) == 5)
    before = connection.deadline
    _, descriptor, record = depart(server)
    os.close(descriptor)
    client.send(GET[5:])
    server.wait_for(asyncio.sleep(0.05))
    assert client.silent()
    server.run(connection.stay)
    assert client.answer()[2] == b"GET / "
    assert record.deadline == before
    server.run(connection.stay)  # nothing to do
    client.send(GET)
    assert client.answer()[0] == 200


def test_client_leaves_during_the_hand_over(serve: Serve) -> None:
    server = serve(echo)
    for after in ("stay", "gone"):
        client = server.connect()
        server.until(lambda: server.cell(Cell.CONNECTIONS) == 1)
        connection, descriptor, _ = depart(server)
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        server.wait_for(asyncio.sleep(0.02))
        os.close(descriptor)
        server.run(getattr(connection, after))
        server.until(lambda connection=connection: connection.state is ConnectionState.CLOSED)  # type: ignore[misc]
        server.until(lambda: server.cell(Cell.CONNECTIONS) == 0)
        server.run(connection.gone)
        server.run(connection.stay)
        server.run(connection.expire)
        server.run(connection.retire)
        assert not server.run(connection.cut)


def test_transport_lost_during_the_hand_over(serve: Serve) -> None:
    server = serve(echo)
    for after in ("stay", "gone"):
        server.connect()
        server.until(lambda: server.cell(Cell.CONNECTIONS) == 1)
        connection, descriptor, _ = depart(server)
        server.run(connection.transport.abort)
        server.until(lambda connection=connection: connection.state is ConnectionState.CLOSED)  # type: ignore[misc]
        server.run(getattr(connection, after))
        assert server.cell(Cell.CONNECTIONS) == 0
        os.close(descriptor)


def test_no_descriptor_left_for_the_hand_over(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(echo)
    client = server.connect()
    connection = server.connection()
    server.until(connection.can_leave)

    def leave() -> None:
        def no_more(fd: int) -> int:
            raise OSError(24, "Too many open files")

        with monkeypatch.context() as patch:
            patch.setattr(os, "dup", no_more)
            connection.leave()

    with pytest.raises(OSError, match="Too many"):
        server.run(leave)
    client.send(GET)
    assert client.answer()[0] == 200


def test_stay_in_a_worker_that_closes(serve: Serve) -> None:
    server = serve(echo)
    client = server.connect()
    client.send(GET)
    client.answer()
    first = server.connection()
    server.until(lambda: first.pipeline.requests == 1)
    connection, descriptor, _ = depart(server)
    os.close(descriptor)
    server.worker.phase = WorkerPhase.CLOSING
    server.run(connection.stay)
    assert client.read_to_end() == b""


def test_unix_connection_travels(serve: Serve, tmp_path: Path) -> None:
    old, new = serve(echo, unix=tmp_path / "a"), serve(echo, unix=tmp_path / "b")
    client = old.connect()
    client.send(GET)
    client.answer()
    first = old.connection()
    old.until(lambda: first.pipeline.requests == 1)
    connection, descriptor, record = depart(old)
    assert record.server == (str(tmp_path / "a"), None)
    old.run(connection.gone)
    taken = new.take(descriptor, record)
    client.send(GET)
    assert client.answer()[0] == 200
    assert taken.server == record.server


def test_travelling_under_pipelined_load(serve: Serve) -> None:
    """One client pipelines without pause while its connection goes back and forth between two workers."""
    servers = [serve(echo), serve(echo)]
    client = servers[0].connect()
    count = 3000
    requests = b"".join(get(b"/%d" % i) for i in range(count))

    def send() -> None:
        for i in range(0, len(requests), 777):
            client.send(requests[i : i + 777])

    sender = threading.Thread(target=send)
    connection = servers[0].connection()
    sender.start()
    here = 0
    moves = 0
    answered = 0
    while answered < count:
        server = servers[here]

        left: list[Any] = []

        def depart(traveller: Http1Connection, worker: WorkerContext = server.worker, left: list[Any] = left) -> None:
            left.append(traveller.leave())
            traveller.gone()
            worker.phase = WorkerPhase.SERVING

        def retire(connection: Http1Connection = connection, worker: WorkerContext = server.worker) -> None:
            worker.hand_over = depart
            worker.phase = WorkerPhase.HANDING_OVER
            connection.retire()

        server.run(retire)
        server.until(lambda left=left: bool(left))  # type: ignore[misc]
        here = 1 - here
        moves += 1
        connection = servers[here].take(*left[0])
        for _ in range(20):
            if answered < count:
                assert client.answer()[2] == b"GET /%d " % answered
                answered += 1
    sender.join()
    assert moves == count // 20
    assert moves > 0
    total = sum(server.cell(Cell.REQUESTS) for server in servers)
    assert total == count


# ---- the graceful timeout


def test_cut_cancels_and_never_ends_the_answer_as_if_whole(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    held = Held()
    server = serve(held)
    client = server.connect()
    client.send(get(b"/stream"))
    client.read_until(b"begun\r\n")
    connection = server.connection()
    assert server.run(connection.cut)
    with contextlib.suppress(ConnectionResetError):
        assert client.read_to_end() == b""
    server.until(lambda: held.cancelled == 1 and server.cell(Cell.IN_FLIGHT) == 0)
    server.until(lambda: server.cell(Cell.CONNECTIONS) == 0)
    assert caplog.text == ""
    assert server.cell(Cell.REQUESTS) == 1


def test_cut_of_an_answer_that_ends_with_the_connection_is_a_reset(serve: Serve) -> None:
    server = serve(Held())
    client = server.connect()
    client.send(b"GET /stream HTTP/1.0\r\n\r\n")
    client.read_until(b"begun")
    assert server.run(server.connection().cut)
    with pytest.raises(ConnectionResetError):
        client.read_to_end()


def test_cut_tells_whether_something_was_unfinished(serve: Serve) -> None:
    server = serve(echo)
    for data, unfinished in ((b"", False), (GET[:5], True)):
        client = server.connect()
        client.send(data)
        server.until(lambda: server.cell(Cell.CONNECTIONS) == 1)
        server.until(lambda data=data: server.attached[-1].pipeline.buffer == data)  # type: ignore[misc]
        assert server.run(server.connection().cut) is unfinished
        server.until(lambda: server.cell(Cell.CONNECTIONS) == 0)
        assert not server.run(server.connection().cut)


def test_cut_of_unwritten_bytes(serve: Serve) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, b"x" * 20_000_000)

    server = serve(app)
    for fields in (b"", b"Connection: close\r\n"):
        client: Client = server.connect(SO_RCVBUF=65536)
        client.send(GET[:-2] + fields + b"\r\n")
        server.until(lambda: server.cell(Cell.CONNECTIONS) == 1)
        server.until(lambda: server.attached[-1].pipeline.requests == 1)
        assert server.run(server.connection().cut)
        server.until(lambda: server.cell(Cell.CONNECTIONS) == 0)


def test_descriptors_do_not_leak(serve: Serve) -> None:
    server = serve(echo)

    def count() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = -1
    for i in range(30):
        if i == 2:  # the loop keeps one of its own from its first connection on
            server.until(lambda: server.cell(Cell.CONNECTIONS) == 0)
            before = count()
        client = server.connect()
        client.send(GET if i % 2 else GET[:-2] + b"Connection: close\r\n\r\n")
        assert client.answer()[2] == response(b"GET / ")[-6:]
        client.close()
    server.until(lambda: server.cell(Cell.CONNECTIONS) == 0)
    server.until(lambda: count() <= before)


# ---- corners


def test_rest_of_an_answered_request_has_a_time_limit(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_pipeline, "DISCARD_TIME", 0.1)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, b"early")

    server = serve(app)
    client = server.connect()
    client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nab")
    assert client.answer()[2] == b"early"
    assert client.read_to_end() == b""


def test_half_closed_client_that_wants_the_end(serve: Serve) -> None:
    server = serve(echo)
    for request in (GET[:-2] + b"Connection: close\r\n\r\n", GET + b"nonsense\r\n\r\n", b"HEAD / HTTP/1.1\r\n\r\n"):
        client = server.connect()
        client.send(request)
        client.end()
        assert client.read_to_end().startswith(b"HTTP/1.1 ")
    server.until(lambda: server.cell(Cell.CONNECTIONS) == 0)


def test_refused_head_request_has_no_content(serve: Serve) -> None:
    answer = serve(echo).ask(b"HEAD / HTTP/1.1\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.endswith(b"\r\n\r\n")


def test_slow_reader_that_goes_on_is_not_cut(serve: Serve) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, b"x" * 20_000_000)

    server = serve(app)
    client = server.connect(SO_RCVBUF=65536)
    client.send(GET[:-2] + b"Connection: close\r\n\r\n")
    connection = server.connection()
    server.until(lambda: connection.state is ConnectionState.CLOSING)
    head = client.read_until(b"\r\n\r\n")
    got = 0
    for _ in range(3):
        before = server.run(connection.transport.get_write_buffer_size)
        got += len(client.read(4_000_000))
        server.until(lambda before=before: connection.transport.get_write_buffer_size() < before)  # type: ignore[misc]
        server.run(connection.expire)
        assert connection.state is ConnectionState.CLOSING
    assert got + len(client.read_to_end()) == 20_000_000
    assert CLOSED in head


def test_connection_that_nobody_can_take_remains(serve: Serve) -> None:
    held = Held()
    server = serve(held)
    client = server.connect()
    client.send(get(b"/a") + get(b"/b"))
    server.until(lambda: len(held.paths) == 1)
    departing = retire(server, WorkerPhase.HANDING_OVER)
    server.run(held.go.set)
    assert client.answer()[2] == b"/a"
    server.until(lambda: len(departing) == 1)
    assert held.paths == ["/a"]
    server.run(departing[0].remain)
    assert client.answer()[2] == b"/b"
