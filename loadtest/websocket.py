"""WebSocket users: each opens a connection, exchanges numbered messages, and closes it.

The frames are those of the sans-I/O core of `websockets`; the bytes go through `Connection` like all others. A close
with 1001 or 1012 by the server tells the client to come back: that is no loss, as long as no sent message remains
without response. Any other end that the client has not begun is lost, as are the messages without response.
"""

from __future__ import annotations

import asyncio
import time
from random import Random
from typing import Final

from websockets.client import ClientProtocol
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.uri import parse_uri

from loadtest.client import ANSWER_TIMEOUT, CLOSE_TIMEOUT, Load
from loadtest.connection import Connection, Failure
from loadtest.ledger import Cause, Entry

COME_BACK: Final = (1001, 1012)
"""Going away, and service restart (RFC 6455 section 7.4.1, IANA's WebSocket Close Code Number Registry)."""


class WebSocket:
    """One WebSocket: `sent` messages wait for their responses."""

    def __init__(self, load: Load, connection: Connection, opening: Entry, deflate: bool) -> None:
        """Begin the handshake, whose answer is that to `opening`."""
        self._load = load
        self._kind = opening.kind
        self._connection = connection
        self._waiting: dict[int, tuple[Entry, str]] = {}
        self._changed = asyncio.Event()
        self._protocol = ClientProtocol(
            parse_uri(f"ws://loadtest/ws?id={opening.number}"),
            extensions=[ClientPerMessageDeflateFactory()] if deflate else None,
        )
        connection.asked_to_close = True  # what ends a WebSocket is judged here, and is no keep-alive reconnect
        connection.took = self._received
        connection.over.add_done_callback(lambda _: self._changed.set())
        self._waiting[opening.number] = (opening, "hello")
        self._protocol.send_request(self._protocol.connect())
        self._flush()

    @property
    def open(self) -> bool:
        """Whether messages may be sent."""
        return self._connection.usable and self._protocol.state is State.OPEN

    def send(self, text: str) -> None:
        """Send a message that is to be answered."""
        entry = self._load.ledger.begin(self._kind, time.monotonic())
        self._waiting[entry.number] = (entry, text)
        self._protocol.send_text(f"{entry.number} {text}".encode())
        self._flush()

    async def answered(self) -> bool:
        """Wait for all responses; False if they will not come."""
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                while self._waiting and self._alive():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            self._lose(Failure(Cause.TIMEOUT))
            return False
        return not self._waiting and self.open

    async def rest(self, seconds: float) -> None:
        """Sleep, unless the connection ends first."""
        await asyncio.wait([self._connection.over], timeout=seconds)

    async def close(self) -> None:
        """End it, or account for how the server has ended it."""
        begun_here = self.open
        if begun_here:
            self._protocol.send_close(1000)
            self._flush()
        await asyncio.wait([self._connection.over], timeout=CLOSE_TIMEOUT)
        self._judge(begun_here)
        self._load.note_end(self._connection)
        self._connection.close()

    def _alive(self) -> bool:
        refused = self._protocol.handshake_exc is not None
        return self._connection.usable and not refused and self._protocol.state in (State.CONNECTING, State.OPEN)

    def _received(self, data: bytes) -> None:
        self._protocol.receive_data(data)
        for event in self._protocol.events_received():
            if isinstance(event, Frame) and event.opcode is Opcode.TEXT:
                self._message(bytes(event.data).decode())
        self._flush()
        self._changed.set()

    def _message(self, text: str) -> None:
        number, pid, generation, rest = text.split(" ", 3)
        entry, sent = self._waiting.pop(int(number), (None, ""))
        if entry is None:
            self._load.ledger.oddities["a WebSocket message that answers nothing"] += 1
        elif rest != sent:
            self._load.ledger.failed(entry, time.monotonic(), Cause.WRONG, f"message {rest[:40]!r}")
        else:
            self._load.ledger.answered(entry, time.monotonic(), int(pid), int(generation))

    def _flush(self) -> None:
        for data in self._protocol.data_to_send():
            if data:
                self._connection.write(data)

    def _judge(self, begun_here: bool) -> None:
        code = self._protocol.close_rcvd.code if self._protocol.close_rcvd else 0
        what = (
            f"close code {code}"
            if code
            else str(self._protocol.handshake_exc or self._connection.ended or "no close frame")
        )
        if self._waiting:
            self._lose(Failure(Cause.CLOSED, f"{what}, unanswered"))
        elif code in COME_BACK:
            self._load.ledger.told_to_come_back.append(time.monotonic())
        elif not (begun_here and code == 1000):
            entry = self._load.ledger.begin(self._kind, time.monotonic())
            self._load.ledger.failed(entry, time.monotonic(), Cause.CLOSED, f"abnormal end: {what}")

    def _lose(self, failure: Failure) -> None:
        for entry, _ in self._waiting.values():
            self._load.ledger.failed(entry, time.monotonic(), failure.cause, failure.detail)
        self._waiting.clear()


async def chat(load: Load, kind: str, seconds: float, deflate: bool) -> None:
    """One WebSocket's life."""
    random = Random(load.random.random())
    opening = load.ledger.begin(kind, time.monotonic())
    try:
        connection = await load.connect(kind)
    except Failure as failure:
        load.ledger.failed(opening, time.monotonic(), failure.cause, failure.detail)
        return
    socket = WebSocket(load, connection, opening, deflate)
    end = time.monotonic() + seconds
    while await socket.answered() and load.running and time.monotonic() < end:
        await socket.rest(random.uniform(0.02, 0.3))
        if socket.open:
            for _ in range(random.randint(1, 3)):
                socket.send(random.randbytes(random.randrange(200)).hex())
    await socket.close()
