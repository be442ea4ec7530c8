"""What a WebSocket meets: broken frames, oversized messages, floods, and silent or slow clients."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import threading
import zlib

import pytest

from serve_asgi.http.worker_context import Receive, Scope, Send
from serve_asgi.ipc.scoreboard import Cell
from tests.websocket.test_session import Recorder, echo, loop_name
from tests.websocket.websocket_server import RawClient, WebSocketServer, frame, serving

__all__ = ["loop_name"]  # the fixture

DEFLATE = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"


def deflated(data: bytes) -> bytes:
    """RFC 7692 7.2.1, with the smallest window so that any negotiated one reads it."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -9)
    return (compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


def waiting_bytes(server: WebSocketServer) -> int:
    """How much waits for the application of the only connection."""
    (connection,) = server.websockets()
    return connection.messages.size


# Broken frames


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        (frame(1, b"x", mask=False), 1002),
        (frame(3, b"x"), 1002),
        (frame(11), 1002),
        (frame(1, b"x", rsv=4), 1002),
        (frame(1, b"x", rsv=1), 1002),
        (frame(0, b"x"), 1002),
        (frame(1, b"x", fin=False) + frame(1, b"y"), 1002),
        (frame(9, b"x" * 126), 1002),
        (frame(9, b"x", fin=False), 1002),
        (frame(8, b"x"), 1002),
        (frame(8, struct.pack("!H", 1005)), 1002),
        (frame(8, struct.pack("!H", 2999)), 1002),
        (frame(8, struct.pack("!H", 1000) + b"\xff"), 1007),
        (frame(1, b"\xff"), 1007),
        (frame(1, b"\xc3", fin=False) + frame(0, b"("), 1007),
        (frame(1, b"\xed\xa0\x80"), 1007),
        (frame(1, b"\xc3"), 1007),
        (frame(1, b"x" * 1001), 1009),
        (frame(2, b"x" * 70000), 1009),
        (frame(2, b"x" * 600, fin=False) + frame(0, b"x" * 600), 1009),
    ],
    ids=[
        "unmasked",
        "reserved data opcode",
        "reserved control opcode",
        "rsv1 without extension",
        "rsv3",
        "continuation of nothing",
        "new message within one",
        "long ping",
        "fragmented ping",
        "one-byte close",
        "close 1005",
        "close 2999",
        "close with invalid reason",
        "invalid text",
        "invalid text in fragments",
        "surrogate",
        "cut character",
        "large text",
        "large binary",
        "large in fragments",
    ],
)
def test_broken_frames_end_with_their_code(loop_name: str, wrong: bytes, code: int) -> None:
    app = Recorder()
    with serving(app, loop_name, ws_max_size=1000) as server, RawClient(server.port) as client:
        client.open()
        client.send(1, b"before")
        client.socket.sendall(wrong)
        assert client.close_code() == code
        client.close()
        assert app.disconnect(server)["code"] == code
        assert app.received[1] == {"type": "websocket.receive", "text": "before"}
        assert len(app.received) == 3
        assert server.gone()


def test_message_of_exactly_the_largest_size_passes(loop_name: str) -> None:
    with serving(echo, loop_name, ws_max_size=1000) as server, RawClient(server.port) as client:
        client.open()
        client.send(2, b"x" * 1000)
        client.send(2, b"y" * 500, fin=False)
        client.send(0, b"y" * 500)
        assert client.receive() == (2, b"x" * 1000)
        assert client.receive() == (2, b"y" * 1000)


def test_decompression_bomb_is_1009_before_it_is_unpacked(loop_name: str) -> None:
    app = Recorder()
    with serving(app, loop_name, ws_max_size=100_000) as server, RawClient(server.port) as client:
        client.open("/", DEFLATE)
        client.send(2, deflated(b"\0" * 50_000), rsv=4)
        client.send(2, deflated(b"\0" * 20_000_000), rsv=4)
        assert client.close_code() == 1009
        assert app.disconnect(server)["code"] == 1009
        assert app.received[1] == {"type": "websocket.receive", "bytes": b"\0" * 50_000}


@pytest.mark.parametrize("size", [99_999, 100_000, 100_001])
def test_bomb_in_fragments(size: int) -> None:
    with serving(echo, "uvloop", ws_max_size=100_000) as server, RawClient(server.port) as client:
        client.open("/", DEFLATE)
        data = deflated(b"\0" * size)
        half = len(data) // 2
        client.send(2, data[:half], rsv=4, fin=False)
        client.send(0, data[half:])
        if size > 100_000:
            assert client.close_code() == 1009
        else:
            assert client.receive()[0] == 2


def test_garbage_in_place_of_compressed_data(loop_name: str) -> None:
    with serving(echo, loop_name) as server, RawClient(server.port) as client:
        client.open("/", DEFLATE)
        client.send(2, b"\xff" * 100, rsv=4)
        assert client.close_code() == 1002


def test_data_after_the_close_frame_is_ignored(loop_name: str) -> None:
    app = Recorder()
    with serving(app, loop_name) as server, RawClient(server.port) as client:
        client.open()
        client.socket.sendall(frame(8, b"\x03\xe8") + frame(1, b"late") + frame(8, b"\x03\xe9"))
        assert client.close_code() == 1000
        assert app.disconnect(server)["code"] == 1000
        assert len(app.received) == 2


def test_random_bytes_never_break_the_server(loop_name: str) -> None:
    with serving(echo, loop_name) as server:
        for _ in range(20):
            with RawClient(server.port) as client, contextlib.suppress(ConnectionError):
                client.open("/", DEFLATE)
                client.socket.sendall(os.urandom(2000))
                client.socket.shutdown(socket.SHUT_WR)
                client.to_the_end()
        assert server.gone()


# Keep-alive


def test_silent_client_is_closed_with_1011(loop_name: str) -> None:
    app = Recorder()
    with serving(app, loop_name, ws_ping_interval=0.1, ws_ping_timeout=0.2) as server:
        with RawClient(server.port) as client:
            client.open()
            assert client.receive() == (9, b"")
            assert client.close_code() == 1011
            assert app.disconnect(server)["code"] == 1006
        assert server.gone()


def test_client_that_answers_stays(loop_name: str) -> None:
    with (
        serving(echo, loop_name, ws_ping_interval=0.1, ws_ping_timeout=0.2) as server,
        RawClient(server.port) as client,
    ):
        client.open()
        for _ in range(6):
            assert client.receive() == (9, b"")
            client.send(10)
        client.send(1, b"still here")
        while (answer := client.receive()) == (9, b""):
            client.send(10)
        assert answer == (1, b"still here")


def test_no_pings_when_they_are_off(loop_name: str) -> None:
    with serving(echo, loop_name, ws_ping_interval=0) as server, RawClient(server.port) as client:
        client.open()
        assert server.run(lambda: {c.deadline for c in server.websockets()}) == {float("inf")}


def test_client_is_not_blamed_while_the_application_does_not_read(loop_name: str) -> None:
    go_on = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await go_on.wait()
        count = 0
        while (await receive())["type"] == "websocket.receive":
            count += 1
            if count == 100:
                await send({"type": "websocket.send", "text": "all"})

    options = {"ws_ping_interval": 0.1, "ws_ping_timeout": 0.1}
    with serving(app, loop_name, **options) as server, RawClient(server.port) as client:
        client.open()
        client.socket.sendall(b"".join(frame(2, b"x" * 2000) for _ in range(100)))
        assert client.receive() == (9, b"")
        server.settled(lambda: False, 0.5)  # several times the timeout

        def go_on_without_haste() -> None:
            for connection in server.websockets():
                connection._keep_alive._timeout = 60.0  # the machine may be slow
            go_on.set()

        server.run(go_on_without_haste)
        client.send(10)
        while (answer := client.receive()) == (9, b""):
            client.send(10)
        assert answer == (1, b"all")


# Back-pressure


def test_reading_pauses_while_the_application_does_not_receive(loop_name: str) -> None:
    go_on = asyncio.Event()
    total = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal total
        await receive()
        await send({"type": "websocket.accept"})
        await go_on.wait()
        while (message := await receive())["type"] == "websocket.receive":
            total += len(message["bytes"])

    piece = b"".join(frame(2, b"x" * 1000, mask=True) for _ in range(100))
    pieces = 200  # 20 MB in all, far more than sockets buffer
    sent = 0

    def flood(client: RawClient) -> None:
        nonlocal sent
        for _ in range(pieces):
            client.socket.sendall(piece)
            sent += 1
        client.send(8)

    with serving(app, loop_name) as server, RawClient(server.port) as client:
        client.open()
        thread = threading.Thread(target=flood, args=(client,))
        thread.start()
        held = -1
        while held != sent:  # until the flood stands still
            held = sent
            server.settled(lambda: False, 0.3)
        assert sent < pieces
        assert server.run(lambda: waiting_bytes(server)) < 600_000  # the limit and one read of the loop
        server.run(go_on.set)
        assert client.close_code() == 1005
        thread.join(10)
        assert server.settled(lambda: total == pieces * 100_000)


def test_send_waits_while_the_client_does_not_read(loop_name: str) -> None:
    sent = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal sent
        await receive()
        await send({"type": "websocket.accept"})
        for _ in range(300):
            await send({"type": "websocket.send", "bytes": b"x" * 100_000})
            sent += 1

    with serving(app, loop_name) as server, RawClient(server.port, receive_buffer=65536) as client:
        client.open()
        held = -1
        while held != sent:
            held = sent
            server.settled(lambda: False, 0.3)
        assert 0 < sent < 300
        for _ in range(300):
            assert client.receive() == (2, b"x" * 100_000)
        assert client.receive() == (8, b"\x03\xe8")


def test_pings_of_a_client_that_does_not_read_take_no_memory(loop_name: str) -> None:
    blocked = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        blocked.set()
        await send({"type": "websocket.send", "bytes": b"x" * 8_000_000})
        await receive()

    with serving(app, loop_name) as server, RawClient(server.port, receive_buffer=65536) as client:
        client.open()
        assert server.settled(blocked.is_set)
        client.socket.sendall(b"".join(frame(9, b"%05d" % i * 25) for i in range(20_000)))
        client.send(1, b"now")
        assert server.settled(lambda: waiting_bytes(server) > 0)  # all the pings are read
        assert client.receive() == (2, b"x" * 8_000_000)
        pongs = []
        while (got := client.receive())[0] == 10:
            pongs.append(got[1])
        assert got[0] == 8  # the application received and returned
        assert 0 < len(pongs) < 20_000 / 2  # RFC 6455 5.5.3: the latest is enough
        assert pongs[-1] == b"19999" * 25


@pytest.mark.parametrize("options", [{}, {"ws_ping_interval": 0}], ids=["pings", "no pings"])
def test_client_that_takes_nothing_is_cut(loop_name: str, options: dict[str, float]) -> None:
    """`--write-timeout`, also where a client keeps talking, so that pings would tell nothing."""
    app = Recorder(*[{"type": "websocket.send", "bytes": b"x" * 1_000_000}] * 30)
    with (
        serving(app, loop_name, write_timeout=1, **options) as server,
        RawClient(server.port, receive_buffer=65536) as client,
    ):
        client.open()
        stop = threading.Event()

        def talk() -> None:
            with contextlib.suppress(ConnectionError):
                while not stop.wait(0.05):
                    client.send(1, b"still here")

        thread = threading.Thread(target=talk)
        thread.start()
        try:
            assert server.gone()
            assert app.disconnect(server)["code"] == 1006
        finally:
            stop.set()
            thread.join(10)
        with contextlib.suppress(ConnectionError):
            answer = client.to_the_end()
            assert len(answer) < 30_000_000  # and no end that looks like one


def test_client_that_reads_slowly_is_served_and_not_pinged_to_death(loop_name: str) -> None:
    """It takes longer than both timeouts, and a ping would wait behind the message."""
    size = 12_000_000
    app = Recorder({"type": "websocket.send", "bytes": b"x" * size})
    options = {"write_timeout": 2, "ws_ping_interval": 0.2, "ws_ping_timeout": 0.2}
    with serving(app, loop_name, **options) as server, RawClient(server.port, receive_buffer=65536) as client:
        client.open()
        begun = server.loop.time()
        got = len(client.buffer)
        while got < size + 10:
            data = client.socket.recv(1_000_000)
            assert data, f"the end after {got} bytes"
            got += len(data)
            if server.loop.time() - begun < 3 or size - got < 2_000_000:
                server.settled(lambda: False, 0.05)  # slow again when the rest is the kernel's, with a ping behind it
        assert len(server.worker.connections) == 1


def test_many_senders_do_not_fill_the_memory_of_a_client_that_does_not_read(loop_name: str) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        message = {"type": "websocket.send", "bytes": b"x" * 100_000}
        await asyncio.gather(*(send(message) for _ in range(200)))

    with serving(app, loop_name) as server, RawClient(server.port, receive_buffer=65536) as client:
        client.open()
        (connection,) = server.run(server.websockets)
        server.settled(lambda: False, 0.5)
        held = server.run(lambda: connection.transport.get_write_buffer_size())
        assert 0 < held < 400_000
        for _ in range(200):
            assert client.receive() == (2, b"x" * 100_000)
        assert client.receive() == (8, b"\x03\xe8")


def test_denial_that_is_not_read_is_cut(loop_name: str) -> None:
    app = Recorder(
        {"type": "websocket.http.response.start", "status": 403},
        *[{"type": "websocket.http.response.body", "body": b"x" * 1_000_000, "more_body": True}] * 30,
        accept=False,
    )
    with (
        serving(app, loop_name, write_timeout=1) as server,
        RawClient(server.port, receive_buffer=65536) as client,
    ):
        client.request()
        assert server.gone()
        assert app.disconnect(server)["code"] == 1006


def test_denial_that_is_read_slowly_is_finished(loop_name: str) -> None:
    size = 12_000_000
    app = Recorder(
        {"type": "websocket.http.response.start", "status": 403},
        {"type": "websocket.http.response.body", "body": b"x" * size},
        accept=False,
    )
    with serving(app, loop_name, write_timeout=2) as server, RawClient(server.port, receive_buffer=65536) as client:
        client.request()
        client.head()
        begun = server.loop.time()
        got = len(client.buffer)
        while got < size:
            data = client.socket.recv(1_000_000)
            assert data, f"the end after {got} bytes"
            got += len(data)
            if server.loop.time() - begun < 3:
                server.settled(lambda: False, 0.05)


# Floods of what costs little to send


def test_flood_of_pings_is_answered_in_order(loop_name: str) -> None:
    with serving(echo, loop_name) as server, RawClient(server.port) as client:
        client.open()
        count = 50_000
        flood = threading.Thread(target=client.socket.sendall, args=(frame(9) * (count - 1) + frame(9, b"last"),))
        flood.start()
        for _ in range(count - 1):
            assert client.receive() == (10, b"")
        assert client.receive() == (10, b"last")
        flood.join(10)


def test_flood_of_empty_fragments_takes_no_memory(loop_name: str) -> None:
    with serving(echo, loop_name) as server, RawClient(server.port) as client:
        client.open()
        client.send(1, b"a", fin=False)
        client.socket.sendall(frame(0, fin=False) * 50_000)
        client.send(0, b"b")
        assert client.receive() == (1, b"ab")


def test_flood_of_empty_messages_pauses_reading(loop_name: str) -> None:
    go_on = asyncio.Event()
    count = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal count
        await receive()
        await send({"type": "websocket.accept"})
        await go_on.wait()
        while (await receive())["type"] == "websocket.receive":
            count += 1

    total = 400_000  # 2.4 MB
    with serving(app, loop_name) as server, RawClient(server.port) as client:
        client.open()
        flood = threading.Thread(target=client.socket.sendall, args=(frame(2) * total,))
        flood.start()
        held = -1
        while held != (held := server.run(lambda: waiting_bytes(server))):
            server.settled(lambda: False, 0.3)
        assert held < 256 * 1024 // 6 * 256 * 2  # what two reads of the loop can hold
        server.run(go_on.set)
        flood.join(20)
        client.send(8)
        assert client.close_code() == 1005
        assert server.settled(lambda: count == total, 20)


# Floods outside the open state


def test_flood_before_the_accept_is_not_read_without_end(loop_name: str) -> None:
    go_on = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await go_on.wait()
        await echo(scope, receive, send)

    with serving(app, loop_name) as server, RawClient(server.port) as client:
        client.request()
        stream = frame(2, b"x" * 60_000)
        client.socket.setblocking(False)
        sent = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                sent += client.socket.send(stream[sent % len(stream) :])
                server.run(lambda: None)
        client.socket.setblocking(True)
        server.run(go_on.set)
        rest = stream[sent % len(stream) :]
        thread = threading.Thread(target=client.socket.sendall, args=(rest,))
        thread.start()
        assert client.head().startswith("HTTP/1.1 101 ")
        for _ in range((sent + len(rest)) // len(stream)):
            assert client.receive() == (2, b"x" * 60_000)
        thread.join(10)


def test_flood_after_the_end_is_cut(loop_name: str) -> None:
    def flood(client: RawClient) -> None:
        for _ in range(100):
            client.socket.sendall(b"x" * 65536)

    app = Recorder({"type": "websocket.close"}, accept=False)
    with serving(app, loop_name) as server, RawClient(server.port) as client:
        client.request()
        assert client.head().startswith("HTTP/1.1 403 ")
        with pytest.raises(ConnectionError):
            flood(client)
        assert server.gone()


# What the application has not asked for


@pytest.mark.parametrize("end", ["close frame", "application", "reset"])
def test_bombs_are_unpacked_one_by_one_as_they_are_asked_for(loop_name: str, end: str) -> None:
    """And what came before the end is still given out, as it is without compression."""
    go_on = asyncio.Event()
    sizes: list[int] = []
    largest = 4 << 20

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await go_on.wait()
        if end == "application":
            return
        while (message := await receive())["type"] == "websocket.receive":
            sizes.append(len(message["bytes"]))
        sizes.append(-message["code"])

    with serving(app, loop_name, ws_max_size=largest) as server, RawClient(server.port) as client:
        client.open("/", DEFLATE)
        bomb = frame(2, deflated(bytes(largest)), rsv=4)
        client.socket.sendall(bomb * 5 + (frame(8, b"\x03\xe8") if end != "reset" else b""))
        (connection,) = server.websockets()
        server.until(lambda: connection.messages.behind and server.cell(Cell.BYTES_RECEIVED) > 5 * len(bomb))
        assert server.run(lambda: waiting_bytes(server)) <= 64 * 1024
        framing = connection.framing
        assert server.run(lambda: len(framing._message or b"") + len(framing._rest)) < 2 * 64 * 1024 + 5 * 5 * len(bomb)
        if end == "reset":
            server.run(lambda: connection.transport.abort())
            assert server.gone()
        server.run(go_on.set)
        if end == "application":
            assert client.close_code() == 1000
            assert server.gone()  # soon: the client's close frame was found behind the rest
        else:
            assert server.settled(lambda: sizes == [largest] * 5 + [-1006 if end == "reset" else -1000])


def test_message_that_is_asked_for_may_be_of_any_allowed_size(loop_name: str) -> None:
    with serving(echo, loop_name) as server, RawClient(server.port) as client:
        client.open("/", DEFLATE)
        for data in (bytes(3 << 20), os.urandom(1 << 20), b"x"):
            packed = deflated(data)
            client.socket.sendall(frame(2, packed[: len(packed) // 2], rsv=4, fin=False))
            client.socket.sendall(frame(0, packed[len(packed) // 2 :]))
            opcode, got = client.receive()
            assert opcode == 2
            assert zlib.decompressobj(-15).decompress(got + b"\0\0\xff\xff") in (data, b"")
