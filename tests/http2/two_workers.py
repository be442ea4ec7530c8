"""One HTTP/2 connection in memory that two workers pass to each other at any moment; its client never retries.

A history is a list of steps chosen by a seed. Nothing here depends on time or on the kernel.
"""

from __future__ import annotations

import asyncio
import json
import os
from random import Random
from typing import Any, Final

from serve_asgi.app.retiring import RetiringFlag
from serve_asgi.config.options import Config
from serve_asgi.http.h2.error_codes import ErrorCode
from serve_asgi.http.hand_over_record import HandOverRecord
from serve_asgi.http.survival import EXTENSION
from serve_asgi.http.worker_context import Receive, Scope, Send, WorkerContext, WorkerPhase
from serve_asgi.ipc.scoreboard import Cell, Scoreboard
from tests.http.memory import Loop, MemoryTransport
from tests.http2.frame_client import FrameClient, data
from tests.http2.http2_server import NO_LIMIT, CheckedHttp2Connection
from tests.rows import cells

HOLD: Final = 0.2
PHASES: Final = (
    WorkerPhase.SERVING,
    WorkerPhase.LENDING,
    WorkerPhase.HANDING_OVER,
    WorkerPhase.HANDING_OVER,
    WorkerPhase.HANDING_OVER,
    WorkerPhase.CLOSING,
)


QUICK: Final = ("now", "now", "now", "now", "now", "now", "deaf", "large", "wait")
SLOW: Final = ("now", "now", "now", "wait", "wait", "stream", "late", "deaf", "large")
"""How an application answers."""
LIVES: Final = ("live", "live", "tell")
"""The same where its streams may survive: a number each time that it is let go."""
LAST: Final = 6
"""How many numbers."""


class StickyTransport(MemoryTransport):
    """Takes nothing while it is `stuck`."""

    def __init__(self, loop: Loop, protocol: asyncio.BaseProtocol) -> None:
        super().__init__(loop, protocol)
        self.stuck = False
        self.ending = False
        self._waiting = bytearray()
        self._high = 65_536
        self._paused = False

    def get_write_buffer_size(self) -> int:
        return len(self._waiting)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = 65_536 if high is None else high
        self._judge()

    def _judge(self) -> None:
        protocol: Any = self.get_protocol()
        if not self._paused and len(self._waiting) > self._high:
            self._paused = True
            protocol.pause_writing()
        elif self._paused and len(self._waiting) <= self._high // 4:
            self._paused = False
            protocol.resume_writing()

    def write(self, data: bytes | bytearray | memoryview) -> None:  # type: ignore[override,unused-ignore]
        if self.closed:
            return
        assert not self.ended, "written behind the end"
        assert not self.ending, "written behind the end"
        if self.stuck or self._waiting:
            self._waiting += data
            self._judge()
        else:
            super().write(data)

    def unstick(self) -> None:
        self.stuck = False
        waiting, self._waiting = self._waiting, bytearray()
        if waiting and not self.ended:
            self.output += waiting
        self._judge()
        if self.ending:
            self.ended = True
        if self.closed and not self.ended:
            super().close()

    def write_eof(self) -> None:
        if self._waiting:
            self.ending = True
        else:
            super().write_eof()

    def close(self) -> None:
        if self._waiting:  # closes once everything is written; nobody waits for that here
            self.output += self._waiting
            self._waiting.clear()
        super().close()

    def abort(self) -> None:
        self._waiting.clear()
        super().close()


class MemoryClient(FrameClient):
    """Sends into `wire`."""

    def __init__(self) -> None:
        super().__init__()
        self.wire = bytearray()
        self.taken = 0
        """Bytes of the server's output that it has read."""

    def send(self, *data: bytes) -> None:
        self.wire += b"".join(data)


class NumberedApplication:
    """Answers each request with its number; how and when, its path says."""

    def __init__(self) -> None:
        self.calls: dict[int, int] = {}
        self.waiting: dict[int, asyncio.Event] = {}
        self.disconnected: set[int] = set()
        self.workers: list[WorkerContext] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        _, number_text, manner = scope["path"].split("/")
        number = int(number_text)
        self.calls[number] = self.calls.get(number, 0) + 1
        if manner in LIVES:
            await self._live(number, manner, scope, receive, send)
            return
        start = {"type": "http.response.start", "status": 200, "headers": [(b"x-number", number_text.encode())]}
        content = b"%d:" % number
        if manner == "stream":
            await send(start)
            await send({"type": "http.response.body", "body": b"begun:", "more_body": True})
        if manner in ("wait", "stream", "late"):
            event = self.waiting[number] = asyncio.Event()
            await event.wait()
            del self.waiting[number]
        if manner == "large":
            content += bytes(200_000)
        if manner != "deaf":
            more = True
            while more:
                message = await receive()
                if message["type"] != "http.request":
                    self.disconnected.add(number)
                    return
                content += message["body"]
                more = message["more_body"]
        if manner != "stream":
            await send(start)
        await send({"type": "http.response.body", "body": content})
        if manner == "late":  # works on behind its response
            event = self.waiting[number] = asyncio.Event()
            await event.wait()
            del self.waiting[number]

    async def _live(self, number: int, manner: str, scope: Scope, receive: Receive, send: Send) -> None:
        index = (scope["extensions"][EXTENSION].get("state") or [0])[0]
        kept: Any = None
        if manner == "live":
            serve = scope["extensions"]["serve"]
            connection = self.workers[serve["slot"]].numbered.get(serve["connection"])
            kept = None if connection is None else connection.opt_in(scope["extensions"], None)
        await send({"type": EXTENSION, "state": [index]})
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-number", b"%d" % number)]})
        body = b""
        gone = asyncio.ensure_future(self._until_gone(number, receive))
        while index < LAST:
            event = self.waiting[number] = asyncio.Event()
            let_go = asyncio.ensure_future(event.wait())
            await asyncio.wait([gone, let_go], return_when=asyncio.FIRST_COMPLETED)
            del self.waiting[number]
            let_go.cancel()
            if gone.done():
                await asyncio.gather(let_go, return_exceptions=True)
                return
            body = b"%d;" % index
            await send({"type": "http.response.body", "body": body * 1000, "more_body": True})
            index += 1
            if kept is None:
                await send({"type": EXTENSION, "state": [index]})
            else:
                kept.state = [index]
        await send({"type": "http.response.body", "body": b""})
        await gone

    async def _until_gone(self, number: int, receive: Receive) -> None:
        while (await receive())["type"] == "http.request":
            pass
        self.disconnected.add(number)


class History:
    """One connection's life. `close` judges it."""

    def __init__(self, seed: int, lives: bool = False) -> None:
        """`lives`: some streams are to survive."""
        self.random = Random(seed)
        self.lives = lives
        self.quick = seed % 2 == 0
        """Requests end soon, so that the connection can move often."""
        self.breaks = seed % 5 == 0
        """The client may end its side, or the connection be lost."""
        self.log: list[str] = []
        self.loop = Loop()
        self.scoreboard = Scoreboard.create(2, 2)
        self.application = NumberedApplication()
        self.workers = [self._worker() for _ in range(2)]
        self.departing: list[list[CheckedHttp2Connection]] = [[], []]
        for worker, departing in zip(self.workers, self.departing, strict=True):
            worker.hand_over = departing.append
        self.holder = 0
        self.offer: tuple[CheckedHttp2Connection, HandOverRecord] | None = None
        self.client = MemoryClient()
        self.client.begin({4: self.random.choice([65_535, 65_535, 1 << 20, 1000])}, NO_LIMIT)
        self.ended = False
        """The client has shut down its side."""
        self.lost = False
        self.eof_due = False
        self.unread_since = 0.0
        self.requests: dict[int, tuple[int, str, bytes]] = {}
        """By stream: the number, the manner, what has been sent of the body."""
        self.open_bodies: set[int] = set()
        self.resets: set[int] = set()
        self.moves = 0
        self.moves_of_lives = 0
        self._attach(0, None, bytearray())

    def _worker(self) -> WorkerContext:
        config = Config(health=False, h2_hold=HOLD, min_body_rate=0, survive_window=0.0)
        worker = WorkerContext(self.application, config, self.loop, self.scoreboard, cells(), RetiringFlag())
        worker.slot = len(self.application.workers)
        self.application.workers.append(worker)
        return worker

    def _attach(self, holder: int, record: HandOverRecord | None, output: bytearray) -> None:
        self.holder = holder
        connection = CheckedHttp2Connection(self.workers[holder], record)
        self.transport = StickyTransport(self.loop, connection)
        self.transport.output = output
        connection.connection_made(self.transport)

    @property
    def connection(self) -> CheckedHttp2Connection:
        found = self.transport.get_protocol()
        assert isinstance(found, CheckedHttp2Connection)
        return found

    # ---- steps

    def run(self, steps: int) -> None:
        """Take so many of them."""
        choices = [
            (self._ask, 10),
            (self._send_body, 6),
            (self._deliver, 14),
            (self._read, 8),
            (self._release, 8),
            (self._turn, 10),
            (self._change_phase, 5),
            (self._depart, 12),
            (self._decide_offer, 10),
            (self._reset, 1),
            (self._ping, 1),
            (self._stick, 2),
            (self._pass_time, 3),
            (self._widen, 4),
            (self._burst, 1),
            (self._end, 0.5 if self.breaks else 0),
            (self._lose, 0.2 if self.breaks else 0),
        ]
        functions = [function for function, _ in choices]
        weights = [weight for _, weight in choices]
        for _ in range(steps):
            (step,) = self.random.choices(functions, weights)
            step()
            if self.lost:
                break

    def _say(self, text: str) -> None:
        self.log.append(text)

    def _ask(self) -> None:
        if self.ended or self.client.goaways() or len(self.requests) - self._answered() >= 50:
            return
        number = len(self.requests)
        manner = self.random.choice(QUICK if self.quick else SLOW)
        if self.lives:
            manner = self.random.choice(LIVES if self.random.random() < 0.4 else ("now", "now", "now", manner))
        has_body = self.random.random() < (0.03 if self.lives else 0.1 if self.quick else 0.4)
        path = b"/%d/%b" % (number, manner.encode())
        if has_body:
            stream_id = self.client.post(path)
            self.open_bodies.add(stream_id)
        else:
            stream_id = self.client.get(
                path, *[(b"x-%d" % self.random.randrange(30), b"y" * self.random.randrange(60))]
            )
        self.requests[stream_id] = number, manner, b""
        self._say(f"ask {stream_id} {path.decode()} {has_body}")

    def _burst(self) -> None:
        """More requests than are begun in one turn of the loop."""
        for _ in range(40):
            self._ask()
        self._deliver(everything=True)

    def _answered(self) -> int:
        return sum(answer.over for answer in self.client.answers.values())

    def _send_body(self) -> None:
        if not self.open_bodies or self.ended:
            return
        stream_id = self.random.choice(sorted(self.open_bodies))
        content = bytes([self.random.randrange(256)]) * self.random.choice([0, 1, 10, 1000, 5000])
        number, manner, sent = self.requests[stream_id]
        last = self.random.random() < 0.6 or len(sent) > 50_000
        self.client.send(data(stream_id, content, last))
        self.requests[stream_id] = number, manner, sent + content
        if last:
            self.open_bodies.discard(stream_id)
        self._say(f"body {stream_id} {len(content)} {last}")

    def _deliver(self, everything: bool = False) -> None:
        if not self.transport.is_reading() or self.transport.closed or (not self.client.wire and not self.eof_due):
            return
        wire = self.client.wire
        if wire:
            size = len(wire)
            if not everything:
                size = self.random.choice([1, 2, 9, 20, 100, size, size, size])
            piece = bytes(wire[:size])
            del wire[:size]
            self._say(f"deliver {len(piece)} to {self.holder}")
            self.connection.data_received(piece)
        elif self.eof_due:
            self.eof_due = False
            self._say("eof")
            if not self.connection.eof_received():
                self.transport.close()

    def _read(self) -> None:
        output = self.transport.output
        self.client.receive(bytes(output[self.client.taken :]))
        self.client.taken = len(output)

    def _release(self, number: int | None = None) -> None:
        waiting = self.application.waiting
        if waiting:
            number = self.random.choice(sorted(waiting)) if number is None else number
            self._say(f"release {number}")
            waiting[number].set()

    def _turn(self) -> None:
        self.loop.call_soon(self.loop.stop)
        self.loop.run_forever()

    def _change_phase(self) -> None:
        index = self.random.randrange(2) if self.random.random() < 0.3 else self.holder
        worker = self.workers[index]
        phase = self.random.choice(PHASES)
        if phase is WorkerPhase.CLOSING and (self.quick or self.random.random() < 0.8):
            phase = WorkerPhase.HANDING_OVER
        before, worker.phase = worker.phase, phase
        self._say(f"phase {index} {phase.name}")
        worker.to_lend = 1
        for connection in list(worker.connections):
            assert isinstance(connection, CheckedHttp2Connection)
            if phase is WorkerPhase.SERVING:
                if before is not WorkerPhase.SERVING:
                    connection.resume()
            else:
                connection.retire()

    def _depart(self) -> None:
        departing = self.departing[self.holder]
        if not departing or self.offer is not None:
            return
        connection = departing.pop(0)
        if not connection.can_leave():
            return
        if self.random.random() < 0.2:
            self._say("remain")
            connection.remain()
            return
        descriptor, record = connection.leave()
        os.close(descriptor)
        self._say(f"leave {self.holder}")
        self.offer = connection, record

    def _decide_offer(self) -> None:
        if self.offer is None:
            return
        connection, record = self.offer
        self.offer = None
        if self.random.random() < 0.3:
            self._say("stay")
            connection.stay()
            if self.random.random() < 0.5:
                self.departing[self.holder].append(connection)
                self._depart()
            return
        output = self.transport.output
        connection.gone()
        self._say("gone")
        self.moves += 1
        self.moves_of_lives += record.survives
        travelled = HandOverRecord.from_json(json.loads(json.dumps(record.to_json())))
        self._attach(1 - self.holder, travelled, output)

    def _reset(self) -> None:
        open_streams = [stream_id for stream_id, answer in self.client.answers.items() if not answer.over]
        if not open_streams or self.ended:
            return
        stream_id = self.random.choice(open_streams)
        if stream_id in self.resets:
            return
        self.resets.add(stream_id)
        self.open_bodies.discard(stream_id)
        self.client.reset(stream_id)
        self._say(f"reset {stream_id}")

    def _ping(self) -> None:
        if not self.ended:
            self.client.send(b"\x00\x00\x08\x06\x00\x00\x00\x00\x0012345678")

    def _widen(self) -> None:
        open_streams = [
            stream_id
            for stream_id, answer in self.client.answers.items()
            if not answer.over and stream_id not in self.resets
        ]
        if open_streams and not self.ended:
            self.client.widen(self.random.choice(open_streams), 50_000)

    def _stick(self) -> None:
        if self.transport.stuck:
            self.transport.unstick()
        elif not self.transport.closed and not self.transport.ended:
            self.transport.stuck = self.random.random() < 0.5
        self._say(f"stuck {self.transport.stuck}")

    def _pass_time(self) -> None:
        """Never so much that a client that reads and sends is taken for one that does not."""
        step = self.random.choice([0.01, 0.1, 0.3, 3.0])
        self._read()
        if step > HOLD:
            if self.transport.stuck:
                self.transport.unstick()
            for _ in range(3):
                self._deliver(everything=True)
                self.loop.settle()
                self._read()
        self._say(f"time {step}")
        self.loop.now += step
        self._turn()
        for worker in self.workers:
            for connection in list(worker.connections):
                if connection.deadline <= self.loop.now:
                    self._say("expires")
                    connection.expire()

    def _end(self) -> None:
        """The client shuts down its side."""
        if not self.ended:
            self._say("end")
            self.ended = self.eof_due = True

    def _lose(self) -> None:
        """The connection is lost."""
        self._say("lost")
        self.lost = True
        if self.offer is not None:
            self._decide_offer()
        self.transport.abort()

    # ---- the end

    def settle(self) -> None:
        """Let everything that was begun come to its end: both workers serve, all is read, all is released."""
        self._say("settle")
        while self.offer is not None:
            self._decide_offer()
        for worker in self.workers:
            if worker.phase is not WorkerPhase.CLOSING:
                worker.phase = WorkerPhase.SERVING
                for connection in list(worker.connections):
                    assert isinstance(connection, CheckedHttp2Connection)
                    connection.resume()
        if self.transport.stuck:
            self.transport.unstick()
        if not self.ended:
            for stream_id in sorted(self.open_bodies):
                self.client.send(data(stream_id, b"", True))
            self.open_bodies.clear()
        for _ in range(20):
            self._deliver(everything=True)
            self.loop.settle()
            self._read()
            for number in list(self.application.waiting):
                self._release(number)
            for stream_id, answer in self.client.answers.items():
                if not answer.over and stream_id not in self.resets and not self.ended:
                    self.client.widen(stream_id, 100_000)
            self.loop.settle()
            self._read()
            if self.transport.closed or not any(
                not answer.over and stream_id not in self.resets for stream_id, answer in self.client.answers.items()
            ):
                break
        self.loop.now += HOLD + 0.1
        self._turn()
        self.loop.settle()
        self._read()

    def judge(self) -> None:
        """Nothing lost, nothing twice."""
        assert self.loop.problems == [], self.loop.problems
        for stream_id, (number, manner, sent) in self.requests.items():
            answer = self.client.answers[stream_id]
            calls = self.application.calls.get(number, 0)
            if stream_id in self.resets or self.lost:
                assert calls <= 1 or manner in LIVES, f"{number} was called {calls} times"
                continue
            assert calls == 1 or (calls and manner in LIVES), f"{number} ({stream_id}) was called {calls} times"
            if stream_id in self.open_bodies:  # never whole: the client has ended its side
                continue
            if self.ended and manner in LIVES:  # it has heard a second later that the client is gone, and has returned
                continue
            assert answer.reset in (None, ErrorCode.NO_ERROR), f"{number} ({manner}) was reset: {answer.reset}"
            if self.ended and not answer.ended and len(answer.content) >= 1000:
                continue  # no window, and the client has ended its side and can open none
            assert answer.ended, f"{number} ({stream_id}, {manner}) was not answered whole: {str(answer)[:300]}"
            assert answer.fields.get(b"x-number") == b"%d" % number, str(answer)[:300]
            content = b"%d:" % number + (bytes(200_000) if manner == "large" else b"")
            if manner in LIVES:
                assert bytes(answer.content) == b"".join(b"%d;" % index * 1000 for index in range(LAST)), (
                    number,
                    manner,
                )
            elif manner == "deaf":
                assert bytes(answer.content) == content
            else:
                begun = b"begun:" if manner == "stream" else b""
                assert bytes(answer.content) == begun + content + sent, (number, manner)
        codes = {code for _, code in self.client.goaways()}
        assert codes <= {ErrorCode.NO_ERROR}, self.client.goaways()

    def close(self) -> None:
        """End the connection, and look at what is left of it."""
        if not self.transport.closed:
            self.transport.close()
        for _ in range(3):
            self.loop.settle()
            for number in list(self.application.waiting):
                self._release(number)
        self.loop.now += 10.0
        self._turn()
        self.loop.settle()
        for worker in self.workers:
            assert not worker.connections, "a closed connection is still known"
            assert not worker.tasks, "a task outlives its connection"
            assert worker.cells[Cell.IN_FLIGHT] == 0, "a request is still counted"
            assert worker.cells[Cell.CONNECTIONS] == 0, "a connection is still counted"
        self.scoreboard.words.release()
        self.scoreboard.close()
        self.loop.close()


def history(seed: int, steps: int = 150, lives: bool = False) -> History:
    """One, judged."""
    one = History(seed, lives)
    try:
        one.run(steps)
        one.settle()
        one.judge()
    except BaseException as error:
        error.add_note(f"seed {seed}:\n" + "\n".join(one.log[-60:]))
        raise
    one.close()
    return one
