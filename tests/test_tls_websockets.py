"""WebSockets with large messages and slow clients over a reload: over TLS, and HTTP/2, they end as plain ones do."""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.http2.websocket_bridge import WebSocketBridge
from tests.plain_and_tls import AUTHORITY, TRUSTING, addresses, serving_both
from tests.running import PATIENCE, RunningServer

SCHEMES: Final = ("ws", "wss", "wss over HTTP/2")
OFFERING_H2: Final = AUTHORITY.client_context()
OFFERING_H2.set_alpn_protocols(["h2"])
LARGE: Final = 1024 * 1024
MANY: Final = 12
"""More large messages than the kernel takes of a connection whose client does not read."""
APPLICATION = """
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            kind = (await receive())["type"]
            await send({"type": kind + ".complete"})
            if kind == "lifespan.shutdown":
                return
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        for _ in range(int(scope["path"][1:])):
            await send({"type": "websocket.send", "bytes": message.get("bytes"), "text": message.get("text")})
"""


@pytest.fixture(params=["uvloop", "asyncio"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RunningServer]:
    (tmp_path / "app.py").write_text(APPLICATION)
    with serving_both(tmp_path, "--loop", request.param, "--ws-retire", "early") as server:
        yield server


@pytest.fixture
def bridge(server: RunningServer) -> Iterator[WebSocketBridge]:
    bridge = WebSocketBridge(addresses(server)["https"][1], OFFERING_H2)
    yield bridge
    bridge.stop()


@contextlib.contextmanager
def opened(
    server: RunningServer, bridge: WebSocketBridge, scheme: str, times: int, **more: Any
) -> Iterator[ClientConnection]:
    """A WebSocket on which each message comes back so many times; its kernel takes little."""
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    if scheme == "wss":
        _, port = addresses(server)["https"]
        more["ssl"] = TRUSTING
    else:
        port = addresses(server)["http"][1] if scheme == "ws" else bridge.port
        scheme = "ws"
    raw.connect(("127.0.0.1", port))
    with connect(f"{scheme}://localhost:{port}/{times}", sock=raw, max_size=None, **more) as peer:
        yield peer


def test_large_messages_slow_clients_and_a_reload(server: RunningServer, bridge: WebSocketBridge) -> None:
    with contextlib.ExitStack() as peers:

        def of_all(times: int, **more: Any) -> list[ClientConnection]:
            return [peers.enter_context(opened(server, bridge, scheme, times, **more)) for scheme in SCHEMES]

        check(server, of_all(1), of_all(1, compression=None), of_all(MANY, max_queue=1), of_all(1))
    server.wait_for_workers(1)
    for scheme in SCHEMES:
        with opened(server, bridge, scheme, 1) as peer:
            peer.send("again")
            assert peer.recv(PATIENCE) == "again"
    assert server.status()["totals"]["cut"] == 0
    assert server.stop() == 0
    assert "Traceback" not in server.log()


def check(
    server: RunningServer,
    echoes: list[ClientConnection],
    uncompressed: list[ClientConnection],
    slow: list[ClientConnection],
    half_way: list[ClientConnection],
) -> None:
    """Large messages on all of them, then a reload."""
    noise = os.urandom(LARGE)
    for peer in (*echoes, *uncompressed):
        for message in ("ä" * (LARGE // 2), noise):
            peer.send(message)
            assert peer.recv(PATIENCE) == message
            pieces = LARGE // 16 // len(message[:1].encode() if isinstance(message, str) else b"x")
            peer.send(message[at : at + pieces] for at in range(0, len(message), pieces))
            assert peer.recv(PATIENCE) == message
    for peer in slow:
        peer.send(noise)
        assert peer.recv(PATIENCE) == noise
    reloaded = threading.Event()
    ends: queue.Queue[int | None] = queue.Queue()

    def send_in_halves(peer: ClientConnection) -> None:
        def halves() -> Iterator[bytes]:
            yield noise[: LARGE // 2]
            reloaded.wait(PATIENCE)
            for _ in range(1000):
                yield b"x"
                time.sleep(0.01)

        try:
            peer.send(halves())
        except ConnectionClosed as end:
            ends.put(end.rcvd.code if end.rcvd else None)

    threads = [threading.Thread(target=send_in_halves, args=(peer,)) for peer in half_way]
    for thread in threads:
        thread.start()
    server.reload()
    reloaded.set()
    codes = [end_of(peer, [])[0] for peer in (*echoes, *uncompressed)]
    taken = [end_of(peer, [noise] * MANY, pause=0.05) for peer in slow]
    codes += [code for code, _ in taken]
    for thread in threads:
        thread.join(PATIENCE)
    codes += [ends.get_nowait() for _ in half_way]
    assert codes == [1012] * 4 * len(SCHEMES)
    assert all(0 < count < MANY for _, count in taken), "the application was still sending"


def end_of(peer: ClientConnection, messages: list[bytes], pause: float = 0.0) -> tuple[int | None, int]:
    """Read to the end, with a pause before each message; the close code, and how many of `messages` came, whole."""
    count = 0
    try:
        while True:
            time.sleep(pause)
            assert peer.recv(PATIENCE) == messages[count]
            count += 1
    except ConnectionClosed as end:
        return end.rcvd.code if end.rcvd else None, count
