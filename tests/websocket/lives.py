"""Several workers on one loop, between which WebSockets are handed over by a courier that does what it is told.

The connections, their framing, sessions and transports are the real ones; what stands in for the rest of a worker is
its phase, and the courier for the sender and the receiver of `serve_asgi.worker`. One history runs in one call of
`asyncio.run`, with its client on the same loop.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import random
import socket
from typing import Any, Final, cast

from websockets.client import ClientProtocol
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import State
from websockets.uri import parse_uri

from serve_asgi.app.retiring import RetiringFlag
from serve_asgi.app.survive import SurviveFunction
from serve_asgi.config.options import Config
from serve_asgi.http.hand_over_record import HandOverRecord
from serve_asgi.http.worker_context import ASGIApplication, WorkerContext, WorkerPhase
from serve_asgi.ipc.scoreboard import Cell, Scoreboard
from serve_asgi.worker.connection_opening import ConnectionOpening
from tests.rows import cells

PATIENCE: Final = 10.0


class Worker:
    """One worker: what its connections share, and the function `survive` of its process."""

    def __init__(self, app: Any, scoreboard: Scoreboard, courier: Courier, **config: Any) -> None:
        """`app` is called with this worker first."""

        async def call(scope: Any, receive: Any, send: Any) -> None:
            await app(self, scope, receive, send)

        called: ASGIApplication = call
        loop = asyncio.get_running_loop()
        self.retiring = RetiringFlag()
        self.context = WorkerContext(called, Config(**config), loop, scoreboard, cells(), self.retiring)
        self.context.hand_over = courier.take
        self.opening = ConnectionOpening(self.context, None)
        self.survive = SurviveFunction()
        self.survive.begin(self.context.numbered)

    def cell(self, cell: Cell) -> int:
        return int(self.context.cells[cell])

    def retire(self, reason: str = "reload") -> None:
        self.context.phase = WorkerPhase.HANDING_OVER
        self.retiring.begin(reason)
        self._tell()

    def close(self, reason: str = "reload") -> None:
        """Nobody takes its connections."""
        self.context.phase = WorkerPhase.CLOSING
        self.retiring.begin(reason)
        self._tell()

    def _tell(self) -> None:
        for connection in list(self.context.connections):
            connection.retire()

    def serve_again(self) -> None:
        self.context.phase = WorkerPhase.SERVING
        self.retiring.end()
        for connection in list(self.context.connections):
            connection.resume()

    def cut(self) -> int:
        """How many were cut."""
        return sum(connection.cut() for connection in list(self.context.connections))

    def tick(self) -> None:
        now = self.context.loop.time()
        for connection in list(self.context.connections):
            if connection.deadline <= now:
                connection.expire()

    def is_empty(self) -> bool:
        """Whether it could exit."""
        context = self.context
        gauges = self.cell(Cell.CONNECTIONS), self.cell(Cell.WEBSOCKETS)
        return not context.connections and not context.tasks and not context.numbered and gauges == (0, 0)


class Courier:
    """In place of sender and receiver: hands over, or does not, as it is told."""

    def __init__(self) -> None:
        self.waiting: list[Any] = []
        self.offered: list[tuple[Any, int, HandOverRecord]] = []
        self.moved = 0

    def take(self, connection: Any) -> None:
        """A connection asks to be handed over."""
        self.waiting.append(connection)

    def offer(self) -> None:
        """Offer one: it neither reads nor writes until `commit` or `withdraw`."""
        while self.waiting:
            connection = self.waiting.pop(0)
            if connection.can_leave():
                descriptor, record = connection.leave()
                self.offered.append((connection, descriptor, record))
                return

    def withdraw(self) -> None:
        """The receiver refuses, or does not answer: all come back, and are to be offered again."""
        for connection, descriptor, _ in self.offered:
            os.close(descriptor)
            connection.stay()
            self.waiting.append(connection)
        self.offered.clear()

    def keep(self) -> None:
        """Nobody can take those that wait: they will ask again."""
        waiting, self.waiting = self.waiting, []
        for connection in waiting:
            if connection.can_leave():
                connection.remain()

    async def commit(self, receiver: Worker) -> None:
        """What was offered goes on in `receiver`."""
        offered, self.offered = self.offered, []
        for connection, descriptor, record in offered:
            arrived = HandOverRecord.from_json(json.loads(json.dumps(record.to_json())))
            assert arrived == record
            connection.gone()
            self.moved += 1
            client = socket.socket(fileno=descriptor)
            client.setblocking(False)
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda arrived=arrived: receiver.opening.arrived(arrived),  # type: ignore[misc]
                client,
            )


class Client(asyncio.Protocol):
    """Speaks by the library `websockets`; whole messages and pongs in the order in which they come."""

    def __init__(self, deflate: bool) -> None:
        extensions = [ClientPerMessageDeflateFactory()] if deflate else None
        self.protocol = ClientProtocol(parse_uri("ws://localhost/"), extensions=extensions, max_size=None)
        self.transport: asyncio.Transport
        self.messages: list[str] = []
        self.pongs: list[bytes] = []
        self.opened = asyncio.Event()
        self.ended = False
        self._ends = False
        self._parts: list[bytes] = []
        self._held = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.protocol.send_request(self.protocol.connect())
        self.flush()

    def data_received(self, data: bytes) -> None:
        self.protocol.receive_data(data)
        for event in self.protocol.events_received():
            if isinstance(event, Response):
                assert event.status_code == 101
                self.opened.set()
            elif isinstance(event, Frame):
                self._frame(event)
        if not self._held:
            self.flush()

    def _frame(self, frame: Frame) -> None:
        if frame.opcode in (Opcode.TEXT, Opcode.CONT):
            self._parts.append(bytes(frame.data))
            if frame.fin:
                self.messages.append(b"".join(self._parts).decode())
                self._parts.clear()
        elif frame.opcode is Opcode.PONG:
            self.pongs.append(bytes(frame.data))

    def eof_received(self) -> bool:
        self.protocol.receive_eof()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended = True

    def is_open(self) -> bool:
        """Whether either side may send messages."""
        return not self.ended and not self._ends and self.protocol.state is State.OPEN

    def close(self) -> None:
        """Begin the closing handshake, unless it is over."""
        if self.is_open():
            self.protocol.send_close(1000)
            self.flush()

    def end(self) -> None:
        """Send nothing more, not even a close frame."""
        if self.is_open():
            self._ends = True
            self.transport.write_eof()

    def code(self) -> int | None:
        """The close code that the server sent, or None."""
        received = self.protocol.close_rcvd
        return None if received is None else int(received.code)

    def flush(self, pieces: random.Random | None = None) -> None:
        """Write what the library has; with `pieces` but a part of it, until the next call."""
        data = self._held + b"".join(self.protocol.data_to_send())
        cut = len(data) if pieces is None else pieces.randrange(len(data) + 1)
        self._held = data[cut:]
        if not self.transport.is_closing() and not self._ends and cut:
            self.transport.write(data[:cut])


@dataclasses.dataclass
class Told:
    """What the applications of all lives of one connection have seen and sent."""

    received: list[int] = dataclasses.field(default_factory=list)
    sent: int = 0
    lives: int = 0
    problems: list[str] = dataclasses.field(default_factory=list)
