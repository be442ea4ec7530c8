"""Each deadline of an HTTP/2 connection and of its streams: what the client sees when it has passed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import pytest

from serve_asgi.http.h2 import frames
from serve_asgi.http.h2.error_codes import ErrorCode
from serve_asgi.http.worker_context import Receive, Scope, Send
from serve_asgi.http2 import deadlines, exchange
from serve_asgi.ipc.scoreboard import Cell
from tests.http.h2.peer import GET, POST
from tests.http.http_server import body, echo, read, respond, start
from tests.http2.frame_client import data
from tests.http2.http2_server import Http2Client, Http2Server

Serve = Callable[..., Http2Server]
LAST = (1 << 31) - 1
NO_ERROR = ErrorCode.NO_ERROR


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is waited for for long."""
    monkeypatch.setattr(exchange, "BODY_WINDOW", 0.2)
    monkeypatch.setattr(exchange, "DISCARD_TIME", 0.2)
    monkeypatch.setattr(deadlines, "FAREWELL_TIME", 0.2)


async def endless(scope: Scope, receive: Receive, send: Send) -> None:
    """Sends without end, but for /short."""
    if scope["path"] == "/short":
        await respond(send, b"short")
        return
    await send(start())
    while True:
        await send(body(bytes(8192), more=True))


# ---- the beginning


@pytest.mark.parametrize("sent", [b"", frames.PREFACE[:10], frames.PREFACE, frames.PREFACE + b"\x00\x00\x06"])
def test_a_client_that_does_not_begin_is_closed(serve2: Serve, sent: bytes) -> None:
    server = serve2(echo, first_byte_timeout=0.2, head_timeout=0.2)
    client = Http2Client(server.connect())
    client.send(sent)
    client.read_to_end()
    assert client.answers == {}
    server.until(lambda: not server.worker.connections)


def test_a_client_that_begins_and_asks_for_nothing_is_told_first(serve2: Serve) -> None:
    server = serve2(echo, first_byte_timeout=0.3, head_timeout=9)
    client = server.client()
    client.read_to_end()
    assert client.goaways() == [(LAST, NO_ERROR), (0, NO_ERROR)]


# ---- idle


def test_an_idle_connection_ends_in_two_steps(serve2: Serve) -> None:
    server = serve2(echo, keep_alive=0.1)
    client = server.client()
    client.wait(client.get())
    client.read_to_end()
    assert client.goaways() == [(LAST, NO_ERROR), (1, NO_ERROR)]
    server.until(lambda: not server.worker.connections)
    assert server.cell(Cell.HTTP2_GOAWAYS) == 0  # those count retiring workers


def test_a_request_that_crosses_the_first_goaway_is_served(serve2: Serve) -> None:
    server = serve2(echo, keep_alive=0.1)
    client = server.client()
    client.answers_pings = False
    client.wait(client.get())
    client.read_until(lambda: client.goaways())
    crossing = [client.get(b"/%d" % number) for number in range(5)]
    ping = client.of(frames.PING)[-1].payload
    client.send(frames.ping_frame(ping, True))
    for number, stream_id in enumerate(crossing):
        assert bytes(client.wait(stream_id).content) == b"GET /%d " % number
    client.read_to_end()
    assert client.goaways() == [(LAST, NO_ERROR), (11, NO_ERROR)]


@pytest.mark.usefixtures("quick")
def test_a_client_that_does_not_answer_the_first_goaway_gets_the_second(serve2: Serve) -> None:
    server = serve2(echo, keep_alive=0.1)
    client = server.client()
    client.answers_pings = False
    client.wait(client.get())
    client.read_to_end()
    assert client.goaways() == [(LAST, NO_ERROR), (1, NO_ERROR)]


@pytest.mark.usefixtures("quick")
def test_a_long_request_outlasts_the_farewell(serve2: Serve) -> None:
    go = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/wait":
            await go.wait()
        await respond(send, b"ok")

    server = serve2(app)
    client = server.client()
    client.answers_pings = False
    long = client.get(b"/wait")
    client.wait(client.get())
    server.worker.announce_close = True
    client.wait(client.get())
    client.read_until(lambda: len(client.goaways()) == 2)
    assert client.goaways() == [(LAST, NO_ERROR), (5, NO_ERROR)]
    server.run(go.set)
    assert bytes(client.wait(long).content) == b"ok"
    client.read_to_end()


# ---- frames and heads that come slowly


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("pings", [True, False])
@pytest.mark.parametrize("whole_frame", [True, False])
def test_half_a_head_has_the_time_of_a_head(serve2: Serve, whole_frame: bool, pings: bool) -> None:
    server = serve2(echo, head_timeout=0.3)
    client = server.client()
    client.answers_pings = pings and not whole_frame
    client.wait(client.get())
    block = client.encoder.encode(GET)
    head = frames.frame(frames.HEADERS, frames.END_STREAM, 3, block)
    client.send(head if whole_frame else head[:-1])
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        client.read_to_end()
    assert client.goaways()[0] == (LAST, NO_ERROR)
    server.until(lambda: not server.worker.connections)


@pytest.mark.usefixtures("quick")
def test_a_frame_that_drips_does_not_get_more_time(serve2: Serve) -> None:
    server = serve2(echo, head_timeout=0.3)
    client = server.client()
    client.wait(client.get())
    head = frames.frame(frames.HEADERS, frames.END_STREAM, 3, bytes(1000))
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        for byte in head:
            client.send(bytes([byte]))
            if not client.silent(0.02):
                break
        else:
            raise AssertionError("it was never told")


def test_frames_that_come_whole_do_not_shorten_the_idle_time(serve2: Serve) -> None:
    server = serve2(echo, head_timeout=0.1)
    client = server.client()
    client.wait(client.get())
    ping = frames.ping_frame(bytes(8), False)
    client.send(ping[:5])
    server.until(lambda: server.newest().core.in_the_middle)
    client.send(ping[5:])
    client.read_until(lambda: client.of(frames.PING))
    server.wait_for(asyncio.sleep(0.4))
    assert client.goaways() == []
    assert client.wait(client.get()).status == 200


# ---- bodies that come slowly


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("more", [(), ((b"content-length", b"1000"),)])
def test_a_body_that_drips_is_answered_408(serve2: Serve, more: tuple[tuple[bytes, bytes], ...]) -> None:
    server = serve2(echo, min_body_rate=1000)
    client = server.client()
    slow = client.post(b"/", None, *more)
    client.send(data(slow, b"abc"))
    answer = client.wait(slow)
    assert (answer.status, answer.ended) == (408, True)
    client.read_until(lambda: client.of(frames.RST_STREAM, slow))
    assert client.of(frames.RST_STREAM, slow)[0].code is NO_ERROR
    assert client.wait(client.get()).status == 200
    server.until(lambda: server.cell(Cell.IN_FLIGHT) == 0)


@pytest.mark.usefixtures("quick")
def test_a_body_that_is_slow_but_not_too_slow_is_served(serve2: Serve) -> None:
    server = serve2(echo, min_body_rate=10)
    client = server.client()
    slow = client.post()
    for _ in range(6):
        server.wait_for(asyncio.sleep(0.1))
        client.send(data(slow, b"abcd"))
    client.send(data(slow, b"", True))
    assert bytes(client.wait(slow).content) == b"POST / " + b"abcd" * 6


@pytest.mark.usefixtures("quick")
def test_a_body_that_nobody_lets_in_is_not_slow(serve2: Serve) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(0.6)
        await respond(send, b"%d" % len(await read(receive)))

    server = serve2(app, min_body_rate=1000)
    client = server.client()
    full = client.post()
    client.send(data(full, bytes(128 * 1024)))
    waits, head = client.head(POST, False, b"/", [(b"expect", b"100-continue")])
    client.send(head)
    client.read_until(lambda: client.of(frames.WINDOW_UPDATE, full) and client.answers[waits].interim)
    client.send(data(full, b"x", True), data(waits, b"abc", True))
    assert bytes(client.wait(full).content) == b"%d" % (128 * 1024 + 1)
    assert bytes(client.wait(waits).content) == b"3"


@pytest.mark.usefixtures("quick")
def test_the_rest_of_a_body_behind_the_response_has_its_time(serve2: Serve) -> None:
    async def deaf(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, b"enough")

    server = serve2(deaf)
    client = server.client()
    stream_id = client.post(b"/", None, (b"content-length", b"10"))
    assert client.wait(stream_id).ended
    client.read_until(lambda: client.of(frames.RST_STREAM, stream_id))
    assert client.of(frames.RST_STREAM, stream_id)[0].code is NO_ERROR
    server.until(lambda: not server.newest().streams._handlers)


# ---- clients that do not read


def test_a_stream_whose_window_stays_shut_is_reset_and_the_others_go_on(serve2: Serve) -> None:
    server = serve2(endless, write_timeout=0.3)
    client = server.client()
    shut = client.get(b"/endless")
    assert client.wait(shut).reset is ErrorCode.CANCEL
    assert len(client.answers[shut].content) == 65_535
    assert bytes(client.wait(client.get(b"/short")).content) == b"short"
    server.until(lambda: server.cell(Cell.IN_FLIGHT) == 0)


def test_a_connection_whose_window_stays_shut_loses_the_streams_that_wait_for_it(serve2: Serve) -> None:
    server = serve2(endless, write_timeout=0.3)
    client = server.client({4: 1 << 20}, 0)
    streams = [client.get(b"/endless") for _ in range(5)]
    for stream_id in streams:
        assert client.wait(stream_id).reset is ErrorCode.CANCEL
    server.until(lambda: server.cell(Cell.IN_FLIGHT) == 0 and not server.worker.tasks)


def test_a_stream_that_waits_for_its_turn_is_not_held_against_a_client_that_reads(serve2: Serve) -> None:
    server = serve2(endless, write_timeout=0.8)
    client = server.client({4: 1 << 24}, 0)
    urgent = client.get(b"/endless", (b"priority", b"u=0"))
    starved = client.get(b"/endless", (b"priority", b"u=7"))
    client.wait_for_content(urgent, 65_535)
    for number in range(1, 9):
        client.widen(0, 5000)
        client.wait_for_content(urgent, 65_535 + 5000 * number)
        server.wait_for(asyncio.sleep(0.15))
    assert client.answers[starved].reset is None
    assert client.wait(urgent).reset is ErrorCode.CANCEL  # now nobody takes anything
    assert client.wait(starved).reset is ErrorCode.CANCEL


def test_a_response_of_the_servers_own_that_nobody_takes_is_reset(serve2: Serve) -> None:
    server = serve2(echo, write_timeout=0.3, max_headers=3)
    client = server.client({4: 0})
    stream_id = client.get(b"/", *[(b"x", b"y")] * 10)
    assert client.wait(stream_id).reset is ErrorCode.CANCEL
    assert client.answers[stream_id].status == 431
    server.until(lambda: not server.newest().streams._handlers)


def test_a_stream_that_gets_a_little_window_again_and_again_is_served(serve2: Serve) -> None:
    server = serve2(endless, write_timeout=0.8)
    client = server.client({4: 1000})
    slow = client.get(b"/endless")
    for number in range(1, 9):
        client.wait_for_content(slow, 1000 * number)
        server.wait_for(asyncio.sleep(0.15))
        client.widen(slow, 1000)
    assert client.answers[slow].reset is None


@pytest.mark.parametrize("busy", [True, False])
def test_a_client_that_reads_nothing_is_cut(serve2: Serve, busy: bool) -> None:
    """Also if it goes on asking, and whether or not a request is in progress."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/wait":
            await receive()
            await receive()
            return
        await respond(send, bytes(60_000))

    server = serve2(app, write_timeout=0.3)
    client = server.client({4: 1 << 20}, SO_RCVBUF=4096)
    connection = server.newest()
    for _ in range(300):
        client.get(b"/large")
        if server.run(lambda: connection.output.paused):
            break
    assert server.run(lambda: connection.output.paused)
    if busy:
        client.get(b"/wait")
    server.until(lambda: not server.worker.connections)
    server.until(lambda: server.cell(Cell.IN_FLIGHT) == 0)
    with pytest.raises(ConnectionResetError):
        client.read_to_end()


def test_a_client_that_floods_and_reads_nothing_is_cut_as_well(serve2: Serve) -> None:
    """What it is told of that it does not read either."""
    server = serve2(endless, write_timeout=0.3)
    client = server.client({4: 1 << 30}, SO_RCVBUF=4096)
    client.get(b"/endless")
    connection = server.newest()
    server.until(lambda: connection.output.paused)
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        client.send(frames.ping_frame(bytes(8), False) * 2000)
    server.until(lambda: not server.worker.connections)


def test_a_client_that_reads_slowly_is_served(serve2: Serve) -> None:
    size = 4_000_000

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, bytes(size))

    server = serve2(app, write_timeout=0.8)
    client = server.client({4: 1 << 30}, SO_RCVBUF=65536)
    stream_id = client.get()
    for part in range(500_000, size + 1, 500_000):
        client.wait_for_content(stream_id, part)
        server.wait_for(asyncio.sleep(0.15))
    assert client.answers[stream_id].ended
