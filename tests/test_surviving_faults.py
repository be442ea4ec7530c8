"""Deaths and standstills at every step of the hand-over of a WebSocket that survives, and of a streamed response.

What may be lost is the connection, visibly: a client that still has its connection has every message, once and in
order, whichever process died or stood still.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from serve_asgi.worker.hand_over_sender import TAKE_TIMEOUT
from tests.hand_over_traps import TRAPS, only_once, stopped_worker
from tests.running import PATIENCE, RunningServer, running, state_of, until

APPLICATION = (
    TRAPS
    + """
import asyncio
from serve_asgi import survive
from serve_asgi.websocket.surviving import SurvivingWebSocket
from serve_asgi.http.connection import Http1Connection

VERSION = 1


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            kind = (await receive())["type"]
            await send({"type": kind + ".complete"})
            if kind == "lifespan.shutdown":
                return
    await (echo if scope["type"] == "websocket" else count)(scope, receive, send)


async def echo(scope, receive, send):
    kept = survive(scope)
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        kept.state["number"] = number = kept.state.get("number", 0) + 1
        await send({"type": "websocket.send", "text": f"{VERSION} {number} {message['text']}"})


async def count(scope, receive, send):
    kept = survive(scope)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    number = kept.state.get("number", 0)
    while True:
        await send({"type": "http.response.body", "body": b"%d %d\\n" % (VERSION, number + 1), "more_body": True})
        number = kept.state["number"] = number + 1
        await asyncio.sleep(0.02)
"""
)
QUICK = ("--workers", "1", "--survive-window", "0")

STEPS = {
    "the old worker, when a life ends": (1, "trap(SurvivingWebSocket, 'end_life', once(ACT))"),
    "the old worker, when a life has ended": (1, "trap(SurvivingWebSocket, 'depart', once(ACT))"),
    "the old worker, when it lets go": (1, "trap(HandOverSender, '_offer', once(ACT))"),
    "the old worker, after its offer": (1, "trap(HandOverSender, '_offer', once(ACT), before=False)"),
    "the old worker, on the take": (1, "trap(HandOverSender, '_answered', once(ACT))"),
    "the old worker, after the commit": (1, "trap(HandOverSender, '_committed', once(ACT), before=False)"),
    "the new worker, on the offer": (2, "trap(HandOverReceiver, '_offered', packet('offer', once(ACT)))"),
    "the new worker, after the take": (
        2,
        "trap(HandOverReceiver, '_offered', packet('offer', once(ACT)), before=False)",
    ),
    "the new worker, on the commit": (2, "trap(HandOverReceiver, '_offered', packet('commit', once(ACT)))"),
    "the new worker, after the commit": (2, "trap(HandOverReceiver, '_attach', once(ACT), before=False)"),
}
"""Who dies or stands still, and when: the generation and the trap."""


class Stream:
    """Reads a response that does not end."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._socket = socket.create_connection(address, PATIENCE)
        self._socket.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        self._data = b""
        self.numbers: list[int] = []
        self.version = 0

    def read(self) -> bool:
        """Read on; False at the connection's end."""
        try:
            piece = self._socket.recv(65536)
        except ConnectionError:
            return False
        self._data += piece
        *lines, self._data = self._data.split(b"\n")
        for line in lines:
            words = line.split()
            if len(words) == 2 and words[0].isdigit() and words[1].strip(b"\r").isdigit():
                self.version = int(words[0])
                self.numbers.append(int(words[1]))
        return bool(piece)

    def check(self) -> None:
        assert self.numbers == list(range(1, len(self.numbers) + 1))

    def close(self) -> None:
        self._socket.close()


def _said(peer: ClientConnection, number: int) -> int:
    """Say something; the version that has answered, or 0 if the connection has ended."""
    try:
        peer.send(f"message {number}")
        answered = peer.recv(PATIENCE)
    except ConnectionClosed:
        return 0
    assert isinstance(answered, str)
    version, _, rest = answered.partition(" ")
    assert rest == f"{number} message {number}"
    return int(version)


def _deploy(server: RunningServer, generation: int, trap: str) -> None:
    text = APPLICATION.replace("VERSION = 1", "VERSION = 2")
    (server.directory / "app.py").write_text(text + (only_once(trap) if generation == 2 else ""))
    server.reload()


def _go_through(tmp_path: Path, step: str, act: str) -> tuple[bool, bool]:
    """Whether the WebSocket and the stream have lived through it; nothing may be lost or doubled on one that has."""
    generation, trap = STEPS[step]
    trap = "\n" + trap.replace("ACT", act) + "\n"
    (tmp_path / "app.py").write_text(APPLICATION + (only_once(trap.strip()) if generation == 1 else ""))
    with running("app:app", *QUICK, directory=tmp_path) as server:
        host, port = server.address()
        stream = Stream((host, port))
        with connect(f"ws://{host}:{port}/", ping_interval=None) as peer:
            number = 1
            version = _said(peer, number)
            assert version == 1
            assert stream.read()
            _deploy(server, generation, trap.strip())
            if act == "stop":
                stopped = stopped_worker(server)
                threading.Event().wait(2 * TAKE_TIMEOUT)  # the other side has withdrawn, or waits
                os.kill(stopped, signal.SIGCONT)
            while version == 1:
                number += 1
                version = _said(peer, number)
            alive = True
            while stream.version < 2 and alive:
                alive = stream.read()
            stream.check()
            server.wait_until(lambda status: [w["generation"] for w in status["workers"]] == [2])
            stream.close()
        server.wait_until(lambda status: sum(w["connections"] for w in status["workers"]) == 0)
        pids = server.worker_pids()
        assert server.stop() == 0
        until(lambda: not [pid for pid in pids if state_of(pid)], "all have gone")
        return version == 2, alive


@pytest.mark.parametrize("step", STEPS)
def test_a_worker_dies(tmp_path: Path, step: str) -> None:
    _go_through(tmp_path, step, "die")


@pytest.mark.parametrize("step", [step for step in STEPS if "life" not in step])
def test_a_worker_stands_still_and_goes_on(tmp_path: Path, step: str) -> None:
    """Nobody is lost: what was offered is taken back, or waits."""
    assert _go_through(tmp_path, step, "stop") == (True, True)
