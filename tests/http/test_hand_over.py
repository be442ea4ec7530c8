"""A connection that is handed over: it travels with what it has read, or stays."""

from __future__ import annotations

import asyncio
import math
import os
import socket
import struct
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from serve_asgi.http.connection import Http1Connection
from serve_asgi.http.connection_states import ConnectionState
from serve_asgi.http.hand_over_record import HandOverRecord
from serve_asgi.http.worker_context import WorkerContext, WorkerPhase
from serve_asgi.ipc.scoreboard import Cell
from tests.http.held_application import Held, Serve, get, retire
from tests.http.http_server import (
    GET,
    HttpServer,
    echo,
    response,
)


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
