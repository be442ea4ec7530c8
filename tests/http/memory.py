"""A client connection in memory: the real connection object, a transport that keeps what is written, a loop that waits
for nothing.

For tests that run thousands of connections: nothing here depends on time or on the kernel, so that the same bytes in
the same pieces always give the same outcome.
"""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import itertools
import json
import os
import re
import socket
from collections.abc import Iterable
from typing import Any, Final

from serve_asgi.app.retiring import RetiringFlag
from serve_asgi.config.options import Config
from serve_asgi.http.connection import Http1Connection
from serve_asgi.http.hand_over_record import HandOverRecord
from serve_asgi.http.worker_context import Receive, Scope, Send, WorkerContext, WorkerPhase
from serve_asgi.ipc.scoreboard import Cell, Scoreboard
from tests.rows import cells

PARSERS: Final = ("httptools", "h11")
TURNS: Final = 10_000
"""More turns of the loop than any input here can need: a connection that is still not at rest hangs."""


class Loop(asyncio.SelectorEventLoop):
    """Its clock stands still until it is told to go on, and it never sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0
        super().__init__()
        self.problems: list[dict[str, Any]] = []
        self.set_exception_handler(lambda _, context: self.problems.append(context))

    def time(self) -> float:
        """Seconds, as set."""
        return self.now

    def settle(self) -> None:
        """Run until nothing is left to do now."""
        for _ in range(TURNS):
            if not getattr(self, "_ready"):  # noqa: B009
                return
            self.call_soon(self.stop)
            self.run_forever()
        raise AssertionError("The connection does not come to rest.")


class _NoSocket:
    """Has a descriptor that can be duplicated, and of which nothing can be asked."""

    family = socket.AF_UNIX
    type = socket.SOCK_STREAM

    def __init__(self) -> None:
        self._file = open(os.devnull)  # noqa: SIM115

    def fileno(self) -> int:
        return self._file.fileno()


_NO_SOCKET: Final = _NoSocket()


class MemoryTransport(asyncio.Transport):
    """Takes everything at once."""

    def __init__(self, loop: Loop, protocol: asyncio.BaseProtocol) -> None:
        super().__init__({"peername": ("192.0.2.1", 1234), "sockname": ("192.0.2.2", 80), "socket": _NO_SOCKET})
        self._loop = loop
        self._protocol = protocol
        self.output = bytearray()
        self.reading = True
        self.ended = False
        """The write side is shut down, or everything is closed."""
        self.closed = False

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def is_closing(self) -> bool:
        return self.closed

    def is_reading(self) -> bool:
        return self.reading and not self.closed

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return 0, 0

    def write(self, data: bytes | bytearray | memoryview) -> None:  # type: ignore[override,unused-ignore]
        assert not self.ended, f"written after the end: {bytes(data)!r}"
        self.output += data

    def writelines(self, list_of_data: Iterable[Any]) -> None:
        for data in list_of_data:
            self.write(data)

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.ended = True

    def close(self) -> None:
        self.ended = True
        if not self.closed:
            self.closed = True
            self._loop.call_soon(self._protocol.connection_lost, None)

    def abort(self) -> None:
        self.close()


@dataclasses.dataclass
class Seen:
    """A request as the application saw it."""

    method: str
    path: bytes
    query: bytes
    version: str
    headers: list[tuple[bytes, bytes]]
    content: bytes = b""
    end: str = "running"
    """Or "whole", or "lost": the client, or the connection, gave up on it."""

    @property
    def line(self) -> str:
        """In short."""
        target = self.path + (b"?" + self.query if self.query else b"")
        return f"{self.method} {target.decode()}" + (f" {self.content.decode('latin-1')}" if self.content else "")


class Behaviour(enum.IntEnum):
    """What an application does with a request."""

    READS = 0  # all content, then answers with the number of the request
    DEAF = 1  # answers without reading
    STREAMS = 2  # two chunks, the second after reading
    SLOW = 3  # as READS, but some turns of the loop later
    RAISES = 4
    RAISES_LATE = 5  # behind the beginning of an answer
    SILENT = 6  # returns without an answer
    LIES = 7  # answers with less than its Content-Length


class Application:
    """Notes what it sees. The answer names the number of the request in a field."""

    def __init__(self, behaviour: Behaviour = Behaviour.READS) -> None:
        self.seen: list[Seen] = []
        self.behaviour = behaviour

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        method, version = scope.get("method", "GET"), scope["http_version"]
        seen = Seen(method, scope["raw_path"], scope["query_string"], version, list(scope["headers"]))
        number = b"%d" % len(self.seen)
        self.seen.append(seen)
        if scope["type"] == "websocket":
            seen.end = "whole"
            await self._websocket(self.behaviour, receive, send)
            return
        behaviour = self.behaviour
        start: dict[str, Any] = {"type": "http.response.start", "status": 200, "headers": [(b"x-request", number)]}
        whole = {"type": "http.response.body", "body": number}
        if behaviour is Behaviour.RAISES:
            raise ZeroDivisionError
        if behaviour is Behaviour.STREAMS or behaviour is Behaviour.RAISES_LATE:
            await send(start)
            await send({**whole, "more_body": True})
            if behaviour is Behaviour.RAISES_LATE:
                raise ZeroDivisionError
            if await self._read(seen, receive):
                await send(whole)
            return
        if behaviour is Behaviour.SLOW:
            for _ in range(5):
                await asyncio.sleep(0)
        if behaviour is not Behaviour.DEAF and not await self._read(seen, receive):
            return
        if behaviour is Behaviour.SILENT:
            return
        size = len(number) + (behaviour is Behaviour.LIES)
        start["headers"].append((b"content-length", b"%d" % size))
        await send(start)
        await send(whole)

    async def _read(self, seen: Seen, receive: Receive) -> bool:
        while True:
            message = await receive()
            if message["type"] != "http.request":
                seen.end = "lost"
                return False
            seen.content += message["body"]
            if not message["more_body"]:
                seen.end = "whole"
                return True

    async def _websocket(self, behaviour: Behaviour, receive: Receive, send: Send) -> None:
        """Echoes, if it is to read; otherwise the nearest to what the behaviour says."""
        await receive()
        if behaviour is Behaviour.RAISES:
            raise ZeroDivisionError
        if behaviour is Behaviour.SILENT:
            await send({"type": "websocket.close"})
            return
        await send({"type": "websocket.accept"})
        if behaviour is Behaviour.RAISES_LATE:
            raise ZeroDivisionError
        if behaviour is Behaviour.DEAF:
            return
        if behaviour is Behaviour.STREAMS:
            await send({"type": "websocket.send", "text": "a"})
            await send({"type": "websocket.send", "bytes": b"b" * 500})
        if behaviour is Behaviour.LIES:
            await send({"type": "websocket.close", "code": 4000, "reason": "enough"})
            return
        while (message := await receive())["type"] == "websocket.receive":
            if behaviour is Behaviour.SLOW:
                await asyncio.sleep(0)
            await send({**message, "type": "websocket.send"})


class Then(enum.IntEnum):
    """What happens when all pieces have arrived."""

    NOTHING = 0
    CLIENT_ENDS = 1  # shuts down its write side
    TIME_PASSES = 2  # more than any deadline
    WORKER_CLOSES = 3  # retires, with nobody to hand over to


class Host:
    """What many connections in memory share. To be closed."""

    def __init__(self, http: str, **config: Any) -> None:
        self.loop = Loop()
        self._scoreboard = Scoreboard.create(1, 1)
        self.application = Application()
        config = {"http": http, "health": False, "ws_ping_interval": 0.0, **config}
        row = cells()
        self.worker = WorkerContext(self._call, Config(**config), self.loop, self._scoreboard, row, RetiringFlag())

    async def _call(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.application(scope, receive, send)

    def close(self) -> None:
        """Give everything back."""
        self.loop.settle()
        self._scoreboard.words.release()
        self._scoreboard.close()
        self.loop.close()

    def talk(
        self,
        pieces: Iterable[bytes],
        behaviour: Behaviour = Behaviour.READS,
        then: Then = Then.NOTHING,
        travels: bool = False,
    ) -> Outcome:
        """What becomes of a connection on which these pieces arrive, one after another.

        With `travels` it is handed over, to a worker that is this one again, behind each piece where that is possible.
        """
        self.application = application = Application(behaviour)
        loop, worker = self.loop, self.worker
        connection = Http1Connection(worker)
        transport = MemoryTransport(loop, connection)
        connection.connection_made(transport)
        loop.settle()
        waiting = b""
        for piece in pieces:
            waiting += piece
            while waiting and transport.is_reading():
                deliver(transport, waiting)
                waiting = b""
                loop.settle()
                if travels:
                    transport = self._hand_over(transport)
        self._go_on(transport, then)
        outcome = Outcome(
            [dataclasses.replace(seen) for seen in application.seen], bytes(transport.output), transport.ended
        )
        if not transport.closed:
            transport.close()
            loop.settle()
        worker.phase = WorkerPhase.SERVING
        assert not worker.connections, "a closed connection is still known"
        assert not worker.tasks, "a task outlives its connection"
        assert worker.cells[Cell.IN_FLIGHT] == 0, "a request is still counted"
        assert loop.problems == [], loop.problems
        return outcome

    def _hand_over(self, transport: MemoryTransport) -> MemoryTransport:
        connection = transport.get_protocol()
        if not isinstance(connection, Http1Connection) or not connection.can_leave():
            return transport
        descriptor, record = connection.leave()
        os.close(descriptor)
        connection.gone()
        self.loop.settle()
        record = HandOverRecord.from_json(json.loads(json.dumps(record.to_json())))
        successor = Http1Connection(self.worker, record)
        new = MemoryTransport(self.loop, successor)
        new.output = transport.output
        successor.connection_made(new)
        self.loop.settle()
        return new

    def _go_on(self, transport: MemoryTransport, then: Then) -> None:
        worker, loop = self.worker, self.loop
        if then is Then.CLIENT_ENDS:
            if not transport.closed and not transport.get_protocol().eof_received():  # type: ignore[attr-defined]
                transport.close()
            loop.settle()
        elif then is Then.TIME_PASSES:
            for _ in range(4):
                loop.now += 1000.0
                for connection in list(worker.connections):
                    if connection.deadline <= loop.now:
                        connection.expire()
                loop.settle()
            if isinstance(transport.get_protocol(), Http1Connection):
                assert not worker.connections or not transport.is_reading(), "an idle connection is never closed"
        elif then is Then.WORKER_CLOSES:
            worker.phase = WorkerPhase.CLOSING
            for connection in list(worker.connections):
                connection.retire()
            loop.settle()


def deliver(transport: MemoryTransport, data: bytes) -> None:
    """Hand the bytes to whichever protocol has the transport, as a loop does."""
    protocol = transport.get_protocol()
    if isinstance(protocol, asyncio.BufferedProtocol):
        while data and transport.is_reading() and transport.get_protocol() is protocol:
            buffer = memoryview(protocol.get_buffer(len(data)))
            size = min(len(buffer), len(data))
            buffer[:size] = data[:size]
            protocol.buffer_updated(size)
            data = data[size:]
        if data:
            deliver(transport, data)
    else:
        protocol.data_received(data)  # type: ignore[attr-defined]


_CHUNKED: Final = re.compile(rb"(?:1\r\n[0-9]\r\n|2\r\n[0-9]{2}\r\n)*(0\r\n\r\n)?")
_HEAD: Final = re.compile(rb"HTTP/1\.1 ([0-9]{3}) [^\r\n]*\r\n((?:[^\r\n]+\r\n)*)\r\n")


@dataclasses.dataclass
class Outcome:
    """What the application saw, what the client got, and whether the server has ended the connection."""

    seen: list[Seen]
    output: bytes
    ended: bool

    def answers(self) -> list[tuple[int, int | None]]:
        """Status of each final response, and the number of the request that it answers (None: the server's own).

        Also checks that the output is made of whole responses, and in order.
        """
        found: list[tuple[int, int | None]] = []
        output = self.output
        while output:
            head = _HEAD.match(output)
            assert head is not None, f"this is no response: {output[:200]!r}"
            status = int(head[1])
            output = output[head.end() :]
            if status == 100:
                continue
            if status == 101:
                found.append((status, None))
                break
            fields = dict(line.split(b": ", 1) for line in head[2].splitlines())
            number = int(fields[b"x-request"]) if b"x-request" in fields else None
            answered = None if number is None and status != 500 else sum(one[0] in (200, 500) for one in found)
            method = None if answered is None or answered >= len(self.seen) else self.seen[answered].method
            whole = True
            if method == "HEAD" or (number is None and not output):
                pass
            elif b"content-length" in fields:
                length = int(fields[b"content-length"])
                whole = len(output) >= length
                output = output[length:]
            elif fields.get(b"transfer-encoding") == b"chunked":
                content = _CHUNKED.match(output)
                assert content is not None, f"this is no chunked content: {output[:200]!r}"
                whole = content[1] is not None
                output = output[content.end() :]
            else:
                assert fields[b"connection"] == b"close"
                output = b""
            going_on = not self.ended and self.seen[-1].end == "running"
            assert whole or (not output and (self.ended or going_on)), "a response is not whole"
            found.append((status, number))
        return found

    def check(self) -> None:
        """What holds for every input: one response at most for each request, in order, and an end behind a refusal."""
        answers = self.answers()
        given = 0
        refusals = []
        for status, number in answers:
            if number is None and status != 500:
                refusals.append(status)
                continue
            assert number in (None, given), f"answers out of order: {answers}"
            given += 1  # a 500 is for a request whose application failed
        assert given <= len(self.seen)
        assert len(refusals) <= 1, f"more than one refusal: {refusals}"
        if refusals:
            assert answers[-1][1] is None, "an answer behind a refusal"
            assert self.ended or refusals == [101], "open after a refusal"


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    """The data in pieces, cut at these places."""
    edges = sorted({0, len(data), *(place for place in places if 0 < place < len(data))})
    return [data[first:second] for first, second in itertools.pairwise(edges)]
