"""Whatever comes over HTTP/2, however it is cut, and whatever the application does: nothing hangs, nothing is left."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from random import Random

import pytest

from serve_asgi.http.h2 import frames
from serve_asgi.http.hand_over_record import HandOverRecord
from serve_asgi.http.worker_context import WorkerPhase
from serve_asgi.ipc.scoreboard import Cell
from tests.fuzzing.h2_inputs import BLOCKS, script
from tests.http.memory import Application, Behaviour, Host, Then
from tests.http2.http2_server import CheckedHttp2Connection
from tests.http2.two_workers import StickyTransport

RUNS = 400


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    host = Host("httptools", h2_hold=0.2, write_timeout=60.0)
    yield host
    host.close()


def steps(random: Random) -> bytes:
    """Input of `script`: mostly requests, with bodies and what belongs to them."""
    found = b""
    last = -1
    for _ in range(random.randrange(1, 25)):
        stream, flags, more = random.randrange(1, 32), random.randrange(256), random.randrange(256)
        kind = random.random() if last > 0 else 0.0
        if random.random() < 0.95:
            stream = max(1, last - random.choice([0, 0, 0, 2, 4]))
        if kind < 0.5:
            if random.random() < 0.95:
                stream = last = last + 2
            block = random.choice([0, 0, 0, 0, 0, 1, 1, 1, 3, 3, 5, random.randrange(len(BLOCKS))])
            found += bytes((0x80, stream, random.choice([0, 1, 1]), block))
        elif kind < 0.75:
            found += bytes((0x40, stream, random.choice([0, 0, 0, 1, 1, flags]), random.choice([0, 4, 4, more])))
        else:
            kinds = (frames.RST_STREAM, frames.SETTINGS, frames.PING, frames.GOAWAY, frames.WINDOW_UPDATE)
            size = {frames.PING: 8, frames.SETTINGS: 6, frames.GOAWAY: 8}
            what = random.choice(kinds)
            payload = bytes(random.randrange(4) for _ in range(size.get(what, 4)))
            found += bytes((what, stream if size.get(what, 4) == 4 else 0, 0, len(payload))) + payload
    return found


class Talk:
    """One connection and its input."""

    def __init__(self, host: Host, seed: int) -> None:
        self.host = host
        self.random = random = Random(seed)
        self.sent = script(steps(random))
        host.application = Application(random.choice(list(Behaviour)))
        self.departing: list[CheckedHttp2Connection] = []
        host.worker.hand_over = self.departing.append
        self.attach(None, bytearray())

    def attach(self, record: HandOverRecord | None, output: bytearray) -> None:
        self.connection = CheckedHttp2Connection(self.host.worker, record)
        self.transport = StickyTransport(self.host.loop, self.connection)
        self.transport.output = output
        self.connection.connection_made(self.transport)

    def run(self) -> None:
        """All pieces, with turns of the loop and hand-overs between them."""
        sent, random = self.sent, self.random
        while sent and not self.transport.closed:
            size = random.choice([1, 5, 9, 30, 200, len(sent)])
            if self.transport.is_reading():
                self.host.loop.call_soon(self.connection.data_received, sent[:size])
                sent = sent[size:]
            if random.random() < 0.5:
                self.host.loop.settle()
            if random.random() < 0.1:
                self.transport.stuck = not self.transport.stuck
                if not self.transport.stuck:
                    self.transport.unstick()
            if random.random() < 0.2:
                self.host.loop.settle()
                self.travel()

    def travel(self) -> None:
        """Go to a worker that is this one again."""
        if self.connection.can_leave():
            descriptor, record = self.connection.leave()
            os.close(descriptor)
            if self.random.random() < 0.3:
                self.connection.stay()
            else:
                self.connection.gone()
                self.attach(HandOverRecord.from_json(json.loads(json.dumps(record.to_json()))), self.transport.output)
            self.host.loop.settle()

    def end(self) -> None:
        """In some way, and then for good."""
        host, worker = self.host, self.host.worker
        host.loop.settle()
        if self.transport.stuck and self.random.random() < 0.7:
            self.transport.unstick()
        then = self.random.choice(list(Then))
        if then is Then.CLIENT_ENDS and not self.transport.closed and not self.connection.eof_received():
            self.transport.close()
        elif then is Then.WORKER_CLOSES:
            worker.phase = self.random.choice([WorkerPhase.CLOSING, WorkerPhase.HANDING_OVER])
            for connection in list(worker.connections):
                connection.retire()
        host.loop.settle()
        frames_of(bytes(self.transport.output))
        if then is Then.TIME_PASSES:
            for _ in range(12):
                host.loop.now += 100.0
                for connection in list(worker.connections):
                    if connection.deadline <= host.loop.now:
                        connection.expire()
                host.loop.call_soon(lambda: None)
                host.loop.settle()
            waits = any(seen.end == "running" for seen in host.application.seen)
            assert waits or not worker.connections, "an idle connection is never closed"
        if not self.transport.closed:
            self.transport.abort()
        host.loop.settle()
        host.loop.now += 100.0
        host.loop.call_soon(lambda: None)
        host.loop.settle()
        worker.phase = WorkerPhase.SERVING
        assert host.loop.problems == [], host.loop.problems
        assert not worker.connections, "a closed connection is still known"
        assert not worker.tasks, "a task outlives its connection"
        assert worker.cells[Cell.IN_FLIGHT] == 0, "a request is still counted"
        assert worker.cells[Cell.CONNECTIONS] == 0


def frames_of(output: bytes) -> None:
    """Whole frames, and nothing behind a GOAWAY that says an error."""
    reader = frames.FrameReader(1 << 24)
    found = [(kind, bytes(payload)) for kind, _, _, payload in reader.frames(output)]
    assert reader.rest == b""
    errors = [index for index, (kind, payload) in enumerate(found) if kind == frames.GOAWAY and payload[7]]
    assert len(errors) <= 1
    assert not errors or errors[0] == len(found) - 1


@pytest.mark.parametrize("run", range(4))
def test_any_bytes(host: Host, run: int) -> None:
    for seed in range(run * RUNS, (run + 1) * RUNS):
        try:
            talk = Talk(host, seed)
            talk.run()
            talk.end()
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
