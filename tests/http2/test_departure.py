"""What the phases of a worker do to an HTTP/2 connection: it leaves, stays, ends, or serves on."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Callable

import pytest

from serve_asgi.http.h2 import frames
from serve_asgi.http.h2.error_codes import ErrorCode
from serve_asgi.http.hand_over_record import HandOverRecord
from serve_asgi.http.worker_context import Receive, Scope, Send, WorkerPhase
from serve_asgi.http2 import departure
from serve_asgi.http2.connection import Http2Connection
from serve_asgi.ipc.scoreboard import Cell
from tests.http.held_application import Held
from tests.http.http_server import echo, respond
from tests.http2.frame_client import data
from tests.http2.http2_server import Http2Client, Http2Server

Serve = Callable[..., Http2Server]
LAST = (1 << 31) - 1
NO_ERROR = ErrorCode.NO_ERROR


def enter(server: Http2Server, phase: WorkerPhase) -> list[Http2Connection]:
    """Put the worker into the phase; the list fills with the connections that want to leave."""
    departing: list[Http2Connection] = []

    def begin() -> None:
        server.worker.hand_over = departing.append
        server.worker.phase = phase
        for connection in list(server.worker.connections):
            if phase is WorkerPhase.SERVING:
                connection.resume()
            else:
                connection.retire()

    server.run(begin)
    return departing


def move(server: Http2Server, connection: Http2Connection, to: Http2Server) -> None:
    """Hand the connection over, as two workers do."""

    descriptor, record = server.run(connection.leave)
    server.run(connection.gone)
    to.take(descriptor, HandOverRecord.from_json(json.loads(json.dumps(record.to_json()))))


def test_an_idle_connection_goes_on_elsewhere_as_if_nothing_had_happened(serve2: Serve) -> None:
    first, second = serve2(echo), serve2(echo)
    client = first.client()
    for number in range(20):
        client.wait(client.get(b"/%d" % number, (b"x-number", b"%d" % number), (b"x-same", b"same")))
    for home, away in ((first, second), (second, first)) * 3:
        departing = enter(home, WorkerPhase.HANDING_OVER)
        home.until(lambda departing=departing: departing != [])  # type: ignore[misc]
        move(home, departing[0], away)
        enter(home, WorkerPhase.SERVING)
        for number in range(20):
            answer = client.wait(client.post(b"/", b"%d" % number, (b"x-same", b"same")))
            assert bytes(answer.content) == b"POST / %d" % number
        home.until(lambda home=home: not home.worker.connections)  # type: ignore[misc]
    assert client.goaways() == []
    assert len(client.of(frames.SETTINGS)) == 2  # the first, and the acknowledgement
    assert first.cell(Cell.HTTP2_MOVED) + second.cell(Cell.HTTP2_MOVED) == 6
    assert first.cell(Cell.HTTP2_CONNECTIONS) + second.cell(Cell.HTTP2_CONNECTIONS) == 1


def test_requests_that_come_meanwhile_are_held_and_served_by_the_next(serve2: Serve) -> None:
    held = Held()
    first, second = serve2(held, h2_hold=5.0), serve2(echo)
    client = first.client()
    waiting = client.get(b"/x")
    first.until(lambda: held.paths == ["/x"])
    departing = enter(first, WorkerPhase.HANDING_OVER)
    later = [client.post(b"/%d" % number, b"later") for number in range(10)]
    client.sync()
    assert held.paths == ["/x"]
    assert departing == []
    first.run(held.go.set)
    assert bytes(client.wait(waiting).content) == b"/x"
    first.until(lambda: len(departing) == 1)
    move(first, departing[0], second)
    for number, stream_id in enumerate(later):
        assert bytes(client.wait(stream_id).content) == b"POST /%d later" % number
    assert held.paths == ["/x"]
    assert client.goaways() == []


def test_if_the_open_ones_last_longer_the_client_is_told_and_all_are_served(serve2: Serve) -> None:
    held = Held()
    server = serve2(held, h2_hold=0.1)
    client = server.client()
    waiting = client.get(b"/stream")
    client.wait_for_content(waiting, 5)
    departing = enter(server, WorkerPhase.HANDING_OVER)
    later = [client.get(b"/%d" % number) for number in range(10)]
    client.read_until(lambda: client.goaways())
    server.until(lambda: len(held.paths) == 11)
    server.run(held.go.set)
    for stream_id in [waiting, *later]:
        assert client.wait(stream_id).ended
    client.read_to_end()
    assert client.goaways() == [(LAST, NO_ERROR), (later[-1], NO_ERROR)]
    assert departing == []
    assert server.cell(Cell.HTTP2_GOAWAYS) == 1


def test_one_that_stays_serves_what_it_has_held(serve2: Serve) -> None:
    held = Held()
    server = serve2(held, h2_hold=5.0)
    client = server.client()
    waiting = client.get(b"/x")
    server.until(lambda: held.paths == ["/x"])
    departing = enter(server, WorkerPhase.HANDING_OVER)
    later = client.get(b"/later")
    client.sync()
    server.run(held.go.set)
    client.wait(waiting)
    server.until(lambda: len(departing) == 1)
    connection = departing[0]

    def leave_and_stay() -> None:
        descriptor, _ = connection.leave()
        os.close(descriptor)

    server.run(leave_and_stay)
    unread = client.get(b"/unread")
    server.run(connection.stay)
    assert [bytes(client.wait(stream_id).content) for stream_id in (later, unread)] == [b"/later", b"/unread"]
    server.run(connection.remain)
    assert bytes(client.wait(client.get(b"/remains")).content) == b"/remains"


def test_a_client_that_ends_its_side_while_it_leaves_is_answered_by_the_next(serve2: Serve) -> None:
    held = Held()
    first, second = serve2(held, h2_hold=5.0), serve2(echo)
    client = first.client()
    waiting = client.get(b"/x")
    first.until(lambda: held.paths == ["/x"])
    departing = enter(first, WorkerPhase.HANDING_OVER)
    later = client.get(b"/later")
    client.sync()
    first.run(held.go.set)
    client.wait(waiting)
    first.until(lambda: len(departing) == 1)
    connection = departing[0]
    descriptor, record = first.run(connection.leave)
    client.end()
    first.run(connection.gone)
    second.take(descriptor, HandOverRecord.from_json(json.loads(json.dumps(record.to_json()))))
    assert bytes(client.wait(later).content) == b"GET /later "
    client.read_to_end()
    second.until(lambda: not second.worker.connections)


def test_a_client_that_ends_its_side_while_requests_are_held_is_answered(serve2: Serve) -> None:
    held = Held()
    server = serve2(held, h2_hold=5.0)
    client = server.client()
    waiting = client.get(b"/x")
    server.until(lambda: held.paths == ["/x"])
    enter(server, WorkerPhase.HANDING_OVER)
    later = client.get(b"/later")
    client.sync()
    client.end()
    server.until(lambda: len(held.paths) == 2)
    server.run(held.go.set)
    assert client.wait(waiting).ended
    assert client.wait(later).ended
    client.read_to_end()
    server.until(lambda: not server.worker.connections)


def test_a_client_that_goes_while_it_leaves(serve2: Serve) -> None:
    server = serve2(echo)
    client = server.client()
    client.wait(client.get())
    departing = enter(server, WorkerPhase.HANDING_OVER)
    server.until(lambda: departing != [])
    descriptor, _ = server.run(departing[0].leave)
    os.close(descriptor)
    client.close()
    server.run(departing[0].stay)
    server.until(lambda: not server.worker.connections)
    server.run(departing[0].gone)


@pytest.mark.parametrize("size", [1, 10, 17, 24, 30, 40, 60])
def test_it_leaves_amid_a_frame(serve2: Serve, size: int) -> None:
    first, second = serve2(echo), serve2(echo)
    client = first.client()
    client.wait(client.get())
    stream_id, head = client.head()
    client.send(head[:size])
    if size < len(head):
        first.until(lambda: first.newest().core.in_the_middle)
    else:
        client.wait(stream_id)
    departing = enter(first, WorkerPhase.HANDING_OVER)
    first.until(lambda: departing != [])
    move(first, departing[0], second)
    client.send(head[size:])
    assert client.wait(stream_id).status == 200


@pytest.mark.parametrize("size", range(0, 60, 7))
def test_it_leaves_amid_its_beginning(serve2: Serve, size: int) -> None:
    first, second = serve2(echo), serve2(echo)
    client = Http2Client(first.connect())
    beginning = frames.PREFACE + frames.settings_frame({4: 70_000}) + client.head(path=b"/x")[1]
    client.send(beginning[:size])
    first.until(lambda: first.worker.received == size)
    connection = first.newest()
    if first.run(connection.can_leave):
        departing = enter(first, WorkerPhase.HANDING_OVER)
        first.until(lambda: departing != [])
        move(first, departing[0], second)
    client.send(beginning[size:])
    assert client.wait(1).status == 200


# ---- phases


def test_a_worker_that_closes_tells_idle_clients_in_two_steps(serve2: Serve) -> None:
    server = serve2(echo)
    client = server.client()
    client.wait(client.get())
    enter(server, WorkerPhase.CLOSING)
    client.read_to_end()
    assert client.goaways() == [(LAST, NO_ERROR), (1, NO_ERROR)]
    assert server.cell(Cell.HTTP2_GOAWAYS) == 1


def test_a_worker_that_closes_waits_for_a_first_request_not_for_ever(
    serve2: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(departure, "FRESH_TIME", 0.2)
    server = serve2(echo)
    silent, late = Http2Client(server.connect()), Http2Client(server.connect())
    server.until(lambda: len(server.worker.connections) == 2)
    enter(server, WorkerPhase.CLOSING)
    late.begin({})
    assert late.wait(late.get()).status == 200
    late.read_to_end()
    silent.read_to_end()


def test_a_worker_that_closes_serves_what_is_in_progress_and_on_its_way(serve2: Serve) -> None:
    held = Held()
    server = serve2(held)
    client = server.client()
    client.answers_pings = False
    streams = [client.get(b"/x"), client.get(b"/stream"), client.post(b"/body")]
    client.wait_for_content(streams[1], 5)
    enter(server, WorkerPhase.CLOSING)
    client.read_until(lambda: client.goaways())
    streams.append(client.get(b"/crossing"))
    client.send(frames.ping_frame(client.of(frames.PING)[-1].payload, True))
    client.send(data(streams[2], b"content", True))
    server.until(lambda: len(held.paths) == 4)
    server.run(held.go.set)
    assert [bytes(client.wait(stream_id).content) for stream_id in streams] == [
        b"/x",
        b"begunended",
        b"/bodycontent",
        b"/crossing",
    ]
    client.read_to_end()
    assert client.goaways()[-1] == (streams[-1], NO_ERROR)


def test_a_worker_that_serves_again_goes_on_with_what_was_held(serve2: Serve) -> None:
    held = Held()
    server = serve2(held, h2_hold=5.0)
    client = server.client()
    waiting = client.get(b"/x")
    server.until(lambda: held.paths == ["/x"])
    enter(server, WorkerPhase.HANDING_OVER)
    later = client.get(b"/later")
    client.sync()
    assert held.paths == ["/x"]
    enter(server, WorkerPhase.SERVING)
    server.until(lambda: held.paths == ["/x", "/later"])
    server.run(held.go.set)
    assert client.wait(waiting).ended
    assert client.wait(later).ended
    assert client.goaways() == []
    assert client.wait(client.get()).ended


def test_more_than_may_be_held_is_served_here(serve2: Serve) -> None:
    held = Held()
    server = serve2(held, h2_hold=5.0)
    client = server.client()
    waiting = client.get(b"/x")
    server.until(lambda: held.paths == ["/x"])
    enter(server, WorkerPhase.HANDING_OVER)
    later = client.post(b"/large")
    client.send(data(later, bytes(100_000), True))
    server.until(lambda: held.paths == ["/x", "/large"])
    server.run(held.go.set)
    assert client.wait(waiting).ended
    answer = client.wait_for_content(later, 65_535 - 2)
    client.widen(later, 1 << 20)
    client.wait(later)
    assert len(answer.content) == 100_006


def test_a_canary_is_lent_one_connection_that_rests(serve2: Serve) -> None:
    held = Held()
    server = serve2(held)
    busy, idle, other = server.client(), server.client(), server.client()
    held_stream = busy.get(b"/stream")
    busy.wait_for_content(held_stream, 5)
    for client in (idle, other):
        client.sync()
    server.worker.to_lend = 1
    departing = enter(server, WorkerPhase.LENDING)
    assert len(departing) == 1
    assert server.worker.to_lend == 0
    server.run(held.go.set)
    assert busy.wait(held_stream).ended
    assert [client.wait(client.get()).status for client in (busy, idle, other)] == [200, 200, 200]
    assert [client.goaways() for client in (busy, idle, other)] == [[], [], []]


@pytest.mark.parametrize("path", [b"/", b"/ping"])
def test_draining_announces_the_end_behind_a_response(serve2: Serve, path: bytes) -> None:
    server = serve2(echo, health_path="/ping")
    client = server.client()
    client.wait(client.get())
    server.worker.announce_close = True
    client.sync()
    assert client.goaways() == []
    assert client.wait(client.get(path)).status == 200
    client.read_to_end()
    assert client.goaways() == [(LAST, NO_ERROR), (3, NO_ERROR)]


@pytest.mark.parametrize("path", [b"/x", b"/stream"])
def test_a_cut_is_seen_by_the_client(serve2: Serve, path: bytes) -> None:
    held = Held()
    server = serve2(held)
    client = server.client()
    stream_id = client.get(path)
    server.until(lambda: len(held.paths) == 1)
    connection = server.newest()
    assert server.run(connection.cut)
    with contextlib.suppress(ConnectionResetError):
        client.read_to_end()
    assert client.answers[stream_id].reset is ErrorCode.INTERNAL_ERROR
    assert client.goaways() == [(1, NO_ERROR)]
    server.until(lambda: held.cancelled == 1 and server.cell(Cell.IN_FLIGHT) == 0)
    server.until(lambda: server.cell(Cell.CONNECTIONS) == 0)
    assert not server.run(connection.cut)


def test_a_cut_of_an_idle_connection_cuts_nothing(serve2: Serve) -> None:
    server = serve2(echo)
    client = server.client()
    client.wait(client.get())
    assert not server.run(server.newest().cut)
    client.read_to_end()


def test_a_cut_of_what_nobody_reads(serve2: Serve) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, bytes(20_000_000))

    server = serve2(app)
    client = server.client({4: 1 << 30}, SO_RCVBUF=65536)
    client.get()
    connection = server.newest()
    server.until(lambda: connection.output.paused)
    assert server.run(connection.cut)
    server.until(lambda: server.cell(Cell.CONNECTIONS) == 0 and server.cell(Cell.IN_FLIGHT) == 0)


def test_in_a_forked_child_the_connection_has_no_transport(serve2: Serve) -> None:
    server = serve2(echo)
    client = server.client()
    client.wait(client.get())
    connection = server.newest()
    transport = connection.transport
    instead = object()
    assert server.run(lambda: connection.let_go(instead)) is transport
    assert connection.transport is instead
    assert connection.output.transport is instead
    server.run(lambda: connection.let_go(transport))
    assert client.wait(client.get()).status == 200


def test_calls_that_go_on_behind_their_responses_count_where_they_run(serve2: Serve) -> None:
    """In the worker, and for `--max-concurrency` there; in the next one the connection begins with none."""

    class App:
        def __init__(self) -> None:
            self.go = asyncio.Event()

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await respond(send, b"ok")
            await self.go.wait()

    apps = App(), App()
    first, second = (serve2(app, h2_max_streams=2, max_concurrency=3) for app in apps)
    client = first.client()
    for server in (first, second):
        for _ in range(2):
            assert bytes(client.wait(client.get()).content) == b"ok"
        assert client.wait(client.get()).reset is ErrorCode.REFUSED_STREAM
        assert server.cell(Cell.IN_FLIGHT) == 2
        if server is first:
            departing = enter(first, WorkerPhase.HANDING_OVER)
            first.until(lambda departing=departing: departing != [])  # type: ignore[misc]
            move(first, departing[0], second)
    assert first.cell(Cell.IN_FLIGHT) == 2
    other = second.client()
    assert other.wait(other.get()).status == 200
    assert other.wait(other.get()).status == 503
    first.run(apps[0].go.set)
    first.until(lambda: first.cell(Cell.IN_FLIGHT) == 0)
    second.run(apps[1].go.set)


def test_trailers_that_come_behind_a_held_request_reach_theirs_and_the_connection_leaves(serve2: Serve) -> None:
    first, second = serve2(echo, h2_hold=60.0), serve2(echo)
    client = first.client()
    uploading = client.post(b"/first")
    client.send(data(uploading, b"body"))
    client.sync()
    departing = enter(first, WorkerPhase.HANDING_OVER)
    behind = client.get(b"/behind")
    trailers = client.encoder.encode([(b"x-sum", b"1")])
    client.send(frames.frame(frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, uploading, trailers))
    assert bytes(client.wait(uploading).content) == b"POST /first body"
    assert client.wait(behind).ended
    first.until(lambda: departing != [])
    move(first, departing[0], second)
    assert client.wait(client.get(b"/moved")).ended
    assert client.goaways() == []


def test_held_requests_survive_a_worker_that_closes_after_all(serve2: Serve) -> None:
    held = Held()
    server = serve2(held, h2_hold=5.0)
    client = server.client()
    waiting = client.get(b"/x")
    server.until(lambda: held.paths == ["/x"])
    enter(server, WorkerPhase.HANDING_OVER)
    later = client.get(b"/later")
    client.sync()
    enter(server, WorkerPhase.CLOSING)
    client.read_until(lambda: client.goaways())
    server.until(lambda: held.paths == ["/x", "/later"])
    server.run(held.go.set)
    assert client.wait(waiting).ended
    assert client.wait(later).ended
    client.read_to_end()


def test_a_client_that_leaves_by_goaway_gets_what_it_has_asked_for(serve2: Serve) -> None:
    held = Held()
    server = serve2(held)
    client = server.client()
    waiting = client.get(b"/x")
    client.send(frames.go_away_frame(0, 0, ""))
    client.sync()
    server.run(held.go.set)
    assert client.wait(waiting).ended
    client.read_to_end()
    server.until(lambda: not server.worker.connections)


def test_an_idle_client_that_leaves_by_goaway_is_closed(serve2: Serve) -> None:
    server = serve2(echo)
    client = server.client()
    client.wait(client.get())
    client.send(frames.go_away_frame(0, 0, ""))
    client.read_to_end()
    server.until(lambda: not server.worker.connections)


def test_a_retired_connection_with_bytes_to_write_leaves_once_they_are_written(serve2: Serve) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, bytes(10_000_000))

    server = serve2(app, h2_hold=5.0)
    client = server.client({4: 1 << 30}, SO_RCVBUF=65536)
    stream_id = client.get()
    connection = server.newest()
    server.until(lambda: connection.output.paused)
    departing = enter(server, WorkerPhase.HANDING_OVER)
    server.wait_for(asyncio.sleep(0.05))
    assert departing == []
    assert len(client.wait(stream_id).content) == 10_000_000
    server.until(lambda: departing != [] and departing[-1].can_leave())
