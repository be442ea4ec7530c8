"""Any history of WebSockets on one HTTP/2 connection: whatever each side does when, all of it ends, and is told once.

A history is a list of steps chosen by a seed. Nothing here depends on time or on the kernel.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import random
import struct
from random import Random

import pytest

from serve_asgi.app.retiring import RetiringFlag
from serve_asgi.config.options import Config
from serve_asgi.http.h2.error_codes import ErrorCode
from serve_asgi.http.worker_context import Receive, Scope, Send, WorkerContext, WorkerPhase
from serve_asgi.ipc.scoreboard import Cell, Scoreboard
from tests.http.memory import Loop
from tests.http2.frame_client import data
from tests.http2.http2_server import NO_LIMIT, CheckedHttp2Connection
from tests.http2.test_websockets import CONNECT, VERSION
from tests.http2.two_workers import MemoryClient, StickyTransport
from tests.rows import cells

RUNS = 8
EACH = 25
MANNERS = ("echo", "echo", "echo", "late", "deaf", "floods", "closes", "returns", "raises", "denies", "refuses")
"""What an application does."""


@dataclasses.dataclass
class Told:
    """What one call of the application was told, and did."""

    received: list[bytes] = dataclasses.field(default_factory=list)
    codes: list[int] = dataclasses.field(default_factory=list)
    go_on: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)
    ended: bool = False


class Application:
    """By the path of the request."""

    def __init__(self) -> None:
        self.calls: dict[int, Told] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        _, number, manner = scope["path"].split("/")
        assert int(number) not in self.calls
        told = self.calls[int(number)] = Told()
        try:
            await self._run(manner, told, receive, send)
        finally:
            told.ended = True

    async def _run(self, manner: str, told: Told, receive: Receive, send: Send) -> None:
        assert (await receive())["type"] == "websocket.connect"
        if manner == "late":
            await told.go_on.wait()
        if manner == "refuses":
            await send({"type": "websocket.close"})
            return
        if manner == "denies":
            await send({"type": "websocket.http.response.start", "status": 403})
            for _ in range(3):
                await send({"type": "websocket.http.response.body", "body": b"no" * 30_000, "more_body": True})
            await send({"type": "websocket.http.response.body"})
            return
        await send({"type": "websocket.accept"})
        if manner == "deaf":
            await told.go_on.wait()
        while (message := await receive())["type"] == "websocket.receive":
            content = message["bytes"] if "bytes" in message else message["text"].encode()
            told.received.append(content)
            if manner == "raises":
                raise ZeroDivisionError
            if manner == "returns":
                return
            if manner == "closes":
                await send({"type": "websocket.close", "code": 4000})
                continue
            for _ in range(20 if manner == "floods" else 1):
                await send({"type": "websocket.send", "bytes": content})
        told.codes.append(message["code"])
        assert (await receive()) == message
        await send({"type": "websocket.send", "bytes": b"nobody gets this"})


class History:
    """One connection's life."""

    def __init__(self, seed: int, steps: int) -> None:
        self.random = Random(seed)
        random.seed(seed)  # by which the worker chooses when each WebSocket closes
        self.loop = Loop()
        self.scoreboard = Scoreboard.create(1, 1)
        self.application = Application()
        config = Config(ws_retire="early", ws_retire_window=3, ws_max_size=300_000, health=False)
        self.worker = WorkerContext(self.application, config, self.loop, self.scoreboard, cells(), RetiringFlag())
        self.client = MemoryClient()
        self.client.begin({4: self.random.choice([65_535, 65_535, 1 << 20, 1000, 1])}, NO_LIMIT)
        self.connection = CheckedHttp2Connection(self.worker)
        self.transport = StickyTransport(self.loop, self.connection)
        self.connection.connection_made(self.transport)
        self.open: list[int] = []
        """Streams on which the client may send."""
        self.manners: dict[int, tuple[int, str]] = {}
        self.sent: dict[int, list[bytes]] = {}
        self.rest: dict[int, bytes] = {}
        """Of a frame of which the beginning was sent."""
        self.garbled: set[int] = set()
        """Streams on which it has sent anything."""
        self.delivered = 0
        weights = {
            self._ask: 5,
            self._message: 12,
            self._rest_of_frame: 6,
            self._deliver: 20,
            self._read: 10,
            self._turn: 15,
            self._widen: 8,
            self._ping: 2,
            self._close: 2,
            self._end: 1,
            self._reset: 2,
            self._garbage: 1,
            self._release: 3,
            self._stick: 2,
            self._pass_time: 3,
            self._phase: 1,
        }
        for step in self.random.choices(list(weights), list(weights.values()), k=steps):
            step()
        self._finish()
        self._judge()

    # ---- steps

    def _ask(self) -> None:
        if self.client.goaways() or len(self.open) >= 40:
            return
        number, manner = len(self.manners), self.random.choice(MANNERS)
        path = b"/%d/%b" % (number, manner.encode())
        ended = self.random.random() < 0.03
        stream_id, head = self.client.head(CONNECT, ended, path, [VERSION])
        self.client.send(head)
        self.manners[stream_id] = number, manner
        self.sent[stream_id] = []
        if not ended:
            self.open.append(stream_id)

    def _some(self) -> int:
        return self.random.choice(self.open) if self.open else 0

    def _room(self, stream_id: int) -> int:
        """What the window has left, roughly: what was sent may not have come yet."""
        window = self.connection.core.receiver.streams.by_id.get(stream_id)
        left = 0 if window is None or window.receive_window is None else window.receive_window.left
        return min(left, self.connection.core.receiver.streams.window.left) - len(self.client.wire)

    def _send(self, stream_id: int, content: bytes) -> bool:
        if self._room(stream_id) < len(content):
            return False
        self.client.send(data(stream_id, content))
        return True

    def _frame(self, opcode: int, payload: bytes) -> bytes:
        """With a mask that the seed gives."""
        size, key = len(payload), self.random.randbytes(4)
        length = bytes([0x80 | size]) if size < 126 else struct.pack("!BH", 0x80 | 126, size)
        masked = int.from_bytes(payload) ^ int.from_bytes((key * (size // 4 + 1))[:size])
        return bytes([0x80 | opcode]) + length + key + masked.to_bytes(size)

    def _message(self) -> None:
        stream_id = self._some()
        if stream_id and stream_id not in self.rest:
            size = self.random.choice([0, 1, 10, 100, 1000, 5000, 40_000])
            payload = struct.pack(">I", len(self.sent[stream_id])) + bytes(size)
            whole = self._frame(2, payload)
            cut = self.random.choice([len(whole), len(whole), self.random.randrange(1, len(whole))])
            if self._send(stream_id, whole[:cut]):
                self.sent[stream_id].append(payload)
                if whole[cut:]:
                    self.rest[stream_id] = whole[cut:]

    def _rest_of_frame(self) -> None:
        if self.rest:
            stream_id = self.random.choice(sorted(self.rest))
            if self._send(stream_id, self.rest[stream_id]):
                del self.rest[stream_id]

    def _ping(self) -> None:
        stream_id = self._some()
        if stream_id and stream_id not in self.rest:
            self._send(
                stream_id, self._frame(9, b"x" * self.random.choice([0, 10, 125])) * self.random.choice([1, 1, 50])
            )

    def _close(self) -> None:
        stream_id = self._some()
        if stream_id and stream_id not in self.rest and self._send(stream_id, self._frame(8, b"\x03\xe8")):
            self.open.remove(stream_id)
            if self.random.random() < 0.7:
                self.client.send(data(stream_id, b"", True))

    def _end(self) -> None:
        if stream_id := self._some():
            self.open.remove(stream_id)
            self.rest.pop(stream_id, None)
            self.client.send(data(stream_id, b"", True))

    def _reset(self) -> None:
        if stream_id := self._some():
            self.open.remove(stream_id)
            self.rest.pop(stream_id, None)
            self.client.reset(stream_id)

    def _garbage(self) -> None:
        stream_id = self._some()
        if stream_id and self._send(stream_id, self.random.randbytes(self.random.choice([1, 5, 300]))):
            self.open.remove(stream_id)
            self.rest.pop(stream_id, None)
            self.garbled.add(stream_id)

    def _deliver(self, everything: bool = False) -> None:
        wire = self.client.wire
        if wire and self.transport.is_reading():
            size = len(wire) if everything else self.random.choice([1, 5, 9, 40, 1000, len(wire), len(wire)])
            piece = bytes(wire[:size])
            del wire[:size]
            self.delivered += len(piece)
            self.connection.data_received(piece)

    def _read(self) -> None:
        output = self.transport.output
        self.client.receive(bytes(output[self.client.taken :]))
        self.client.taken = len(output)

    def _turn(self) -> None:
        self.loop.call_soon(self.loop.stop)
        self.loop.run_forever()

    def _widen(self) -> None:
        streams = [stream_id for stream_id, answer in self.client.answers.items() if not answer.over]
        if streams:
            self.client.widen(self.random.choice(streams), self.random.choice([1, 1000, 100_000]))

    def _release(self) -> None:
        if self.application.calls:
            self.random.choice(list(self.application.calls.values())).go_on.set()

    def _stick(self) -> None:
        if self.transport.stuck:
            self.transport.unstick()
        elif not self.transport.closed and not self.transport.ended:
            self.transport.stuck = self.random.random() < 0.5

    def _pass_time(self, step: float | None = None) -> None:
        self.loop.now += self.random.choice([0.01, 0.5, 3.0, 10.0]) if step is None else step
        self._turn()
        if self.connection in self.worker.connections and self.connection.deadline <= self.loop.now:
            self.connection.expire()

    def _phase(self) -> None:
        worker = self.worker
        if worker.phase is WorkerPhase.SERVING and self.random.random() < 0.5:
            worker.retiring.begin("reload")  # type: ignore[attr-defined]  # the real one
            worker.phase = WorkerPhase.HANDING_OVER
            self.connection.retire()
        elif worker.phase is WorkerPhase.HANDING_OVER:
            worker.phase = WorkerPhase.SERVING
            worker.retiring.end()  # type: ignore[attr-defined]
            self.connection.resume()

    # ---- the end

    def _finish(self) -> None:
        """In one of three ways: everything comes to its end, the connection is lost, or it is cut."""
        manner = self.random.choice(["settle", "lose", "cut"])
        if manner == "settle":
            self.transport.unstick()
            for stream_id in list(self.open):
                self.client.reset(stream_id)
            for _ in range(10):
                self._deliver(everything=True)
                for told in self.application.calls.values():
                    told.go_on.set()
                self.loop.settle()
                self._read()
                for stream_id, answer in self.client.answers.items():
                    if not answer.over:
                        self.client.widen(stream_id, 10_000_000)
            for _ in range(30):
                self._pass_time(3.0)
                self.loop.settle()
                self._read()
        if manner == "cut" and self.connection in self.worker.connections:
            self.connection.cut()
        else:
            self.transport.abort()
        self.loop.settle()
        for told in self.application.calls.values():
            told.go_on.set()
        for _ in range(3):
            self.loop.settle()
            self.loop.now += 3  # in which who still sends hears that nobody gets it
            self._turn()
        self.loop.settle()
        self._read()

    def _judge(self) -> None:
        assert self.loop.problems == [], self.loop.problems
        assert not self.worker.tasks
        assert not self.worker.connections
        assert self.worker.cells[Cell.WEBSOCKETS] == 0
        assert self.worker.cells[Cell.CONNECTIONS] == 0
        assert self.connection.streams._handlers == {}
        if self.connection.core.lost is not None:
            assert self.connection.core.lost.code is ErrorCode.ENHANCE_YOUR_CALM, self.connection.core.lost
        self.worker.note_counts()
        assert self.worker.cells[Cell.BYTES_RECEIVED] == self.delivered
        for stream_id, (number, manner) in self.manners.items():
            told = self.application.calls.get(number)
            if told is None:
                continue
            assert told.ended
            assert len(told.codes) <= 1
            if stream_id in self.garbled:
                continue
            sent, received = self.sent[stream_id], told.received
            assert received == sent[: len(received)], "what was sent comes in order, each once"
            if manner in ("echo", "late"):
                self._judge_echo(stream_id, sent)
        self.loop.close()
        self.scoreboard.words.release()
        self.scoreboard.close()

    def _judge_echo(self, stream_id: int, sent: list[bytes]) -> None:
        answer = self.client.answers[stream_id]
        if answer.status == 200:
            stream = b"".join(_plain(payload) for payload in sent)
            content = _without_control_frames(bytes(answer.content))
            assert stream.startswith(content) or content.startswith(stream)


def _plain(payload: bytes) -> bytes:
    """The frame of the server's that echoes it."""
    size = len(payload)
    return (bytes([0x82, size]) if size < 126 else bytes([0x82, 126]) + struct.pack("!H", size)) + payload


def _without_control_frames(content: bytes) -> bytes:
    found, at = b"", 0
    while at + 2 <= len(content):
        size, start = content[at + 1], 2
        if size == 126:
            size, start = struct.unpack("!H", content[at + 2 : at + 4].ljust(2, b"\0"))[0], 4
        if not content[at] & 0x08:
            found += content[at : at + start + size]
        at += start + size
    return found


@pytest.mark.parametrize("run", range(RUNS))
def test_any_history_ends_well(run: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    for seed in range(run * EACH, (run + 1) * EACH):
        try:
            History(seed, 300)
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
    assert "please report" not in caplog.text
    assert {record.exc_info[0] for record in caplog.records if record.exc_info} <= {ZeroDivisionError}
