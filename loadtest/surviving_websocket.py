"""WebSockets that survive reloads: numbered messages in both directions, and not one connection more than needed.

Half of the users keep one WebSocket for the whole run, the others close theirs after some seconds. Some messages are
large, some in fragments with pings between them; a fifth of what is written goes out in pieces with pauses of up to a
second, so that a message is half received when its worker retires; every fourth user now and then does not read, and
its kernel keeps little, so that the application cannot send. The end of a
connection that the client has not begun is a reconnect, whatever its code; before it ends a connection itself, the
client asks how many ticks there have been, so that the last one cannot be lost unseen.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Callable
from random import Random
from typing import Final, Protocol

from websockets.client import ClientProtocol
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.uri import parse_uri

from loadtest.app import CANNOT, filler, tick_size
from loadtest.client import ANSWER_TIMEOUT, CLOSE_TIMEOUT, UNANNOUNCED, Client, Load
from loadtest.connection import Failure
from loadtest.ledger import Cause, Entry
from loadtest.surviving import Survivor

KIND: Final = "surviving WebSocket"
MANNERS: Final = ("at once", "last words", "slowly", "last words slowly", "raising", "closing", "retiring")
"""How a handler takes it that it is handed over (`loadtest.app`)."""
EVERY: Final = 0.15
"""Mean seconds between two ticks of the application, and between two bursts of the client."""
LEAST: Final = 2
"""Characters of the smallest filler."""


def offered(random: Random, deflate: bool | None) -> ClientPerMessageDeflateFactory | None:
    """What a client offers of permessage-deflate (RFC 7692 7.1), with some parameters or none; half do if None."""
    if deflate is False or (deflate is None and random.random() < 0.5):
        return None
    return ClientPerMessageDeflateFactory(
        server_no_context_takeover=random.random() < 0.2,
        client_no_context_takeover=random.random() < 0.2,
        server_max_window_bits=random.choice((None, None, 10, 15)),
        client_max_window_bits=random.choice((True, True, 10, 15)),
    )


class SocketConnection(Protocol):
    """What a WebSocket speaks over: a connection (`loadtest.connection.Connection`), or a stream of one."""

    took: Callable[[bytes], None] | None
    over: asyncio.Future[None]
    ended: Cause | None
    asked_to_close: bool
    unannounced: bool

    @property
    def usable(self) -> bool:
        """Whether something may be sent."""

    def write(self, data: bytes) -> None:
        """Send it; an empty piece does nothing."""

    def narrow(self) -> None:
        """Let little wait on the way here."""

    def pause_reading(self, seconds: float) -> None:
        """Read nothing for so long."""

    def close(self) -> None:
        """The client goes."""


class SurvivingSocket:
    """The client's side of one WebSocket that survives."""

    def __init__(
        self, load: Load, random: Random, connection: SocketConnection, opening: Entry, kind: str = KIND
    ) -> None:
        """Begin the handshake, whose answer is that to `opening`."""
        self.survivor = Survivor(kind)
        self._kind = kind
        load.ledger.survivors.append(self.survivor)
        self._load = load
        self._random = random
        self._connection = connection
        self._opened = opening.number
        self._waiting: dict[int, tuple[Entry, int, bool]] = {0: (opening, LEAST - 2, True)}
        self._parts: list[bytes] = []
        self._is_text = True
        self._answered = asyncio.Event()
        self._outgoing: deque[bytes] = deque()
        self._more = asyncio.Event()
        self._pings: deque[bytes] = deque()
        self._count = itertools.count(1)
        self._narrow = random.random() < 0.25
        if self._narrow:
            connection.narrow()
        self._ending = False  # the client has begun to end it
        plain = "&plain=1" if random.random() < 0.5 else ""
        manner = random.choice(MANNERS).replace(" ", "+")
        uri = f"ws://loadtest/surviving?id={opening.number}&every={EVERY / load.scale:.3f}&manner={manner}{plain}"
        deflate = offered(random, load.deflate)
        self._protocol = ClientProtocol(
            parse_uri(uri), extensions=None if deflate is None else [deflate], max_size=1 << 22
        )
        connection.took = self._received
        connection.over.add_done_callback(lambda _: self._answered.set())
        self._protocol.send_request(self._protocol.connect())
        self._flush()
        self._writing = asyncio.ensure_future(self._write())

    @property
    def open(self) -> bool:
        """Whether messages may be sent."""
        return self._connection.usable and self._protocol.state is State.OPEN

    async def converse(self, seconds: float) -> None:
        """Send messages until the time is over, the run ends, or the server ends the connection."""
        end = time.monotonic() + seconds
        await self._answers(0)
        while self.open and self._load.running and time.monotonic() < end:
            for _ in range(self._random.randint(1, 3)):
                self._send(self._random.choice((10, 100, 100, 1000)))
            if self._random.random() < 0.03:
                self._send(self._random.randrange(50_000, 300_000))
            if self._narrow and self._random.random() < 0.1:
                self._connection.pause_reading(self._random.uniform(0.1, 1.5))
            await self._rest(self._random.uniform(0.2, 1.8) * EVERY / self._load.scale)

    async def end(self) -> None:
        """Ask for the rest, end the connection, and account for everything."""
        if self.open:
            self._send(LEAST, last=True)
        await self._answers(ANSWER_TIMEOUT)
        if self.open and not self._waiting:
            self._ending = self._connection.asked_to_close = True
            self._protocol.send_close(1000)
            self._flush()
        await asyncio.wait([self._connection.over], timeout=CLOSE_TIMEOUT)
        self._judge()
        self._writing.cancel()
        if self._connection.unannounced:
            self._load.ledger.oddities[UNANNOUNCED] += 1
        self._connection.close()

    async def _answers(self, timeout: float) -> None:
        """Wait until nothing waits for its answer; for that of the handshake alone if `timeout` is 0."""
        try:
            async with asyncio.timeout(timeout or ANSWER_TIMEOUT):
                while (self._waiting if timeout else 0 in self._waiting) and self._connection.usable:
                    self._answered.clear()
                    await self._answered.wait()
        except TimeoutError:
            pass

    async def _rest(self, seconds: float) -> None:
        await asyncio.wait([self._connection.over], timeout=seconds)

    # what goes out

    def _send(self, size: int, *, last: bool = False) -> None:
        """One numbered message, whole or in fragments (RFC 6455 5.4)."""
        entry = self._load.ledger.begin(self._kind, time.monotonic())
        sequence = next(self._count)
        back = -1 if last else self._random.choice((0, 10, 300, 300, 2000))
        if not last and self._random.random() < 0.02:
            back = self._random.randrange(50_000, 300_000)
        is_text = self._random.random() < 0.5
        self._waiting[sequence] = (entry, max(back, 0), is_text)
        self.survivor.sent += 1
        data = f"{sequence} {entry.number} {back} {size} {filler(entry.number, size)}".encode()
        send_first = self._protocol.send_text if is_text else self._protocol.send_binary
        if self._random.random() < 0.8:
            send_first(data)
        else:
            cuts = sorted(self._random.randrange(len(data)) for _ in range(self._random.randint(1, 4)))
            parts = [data[a:b] for a, b in itertools.pairwise([0, *cuts, len(data)])]
            send_first(parts[0], fin=False)
            for number, part in enumerate(parts[1:], 2):
                if self._random.random() < 0.5:
                    self._ping()
                self._protocol.send_continuation(part, fin=number == len(parts))
        if self._random.random() < 0.1:
            self._ping()
        self._flush()

    def _ping(self) -> None:
        content = self._random.randbytes(8)
        self._pings.append(content)
        self.survivor.pings += 1
        self._protocol.send_ping(content)

    def _flush(self) -> None:
        self._outgoing += self._protocol.data_to_send()
        self._more.set()

    async def _write(self) -> None:
        """Write what there is, some of it in pieces. An empty one means that the client's side ends."""
        while True:
            await self._more.wait()
            self._more.clear()
            data = b"".join(self._outgoing)
            self._outgoing.clear()
            if len(data) > 1 and self._random.random() < 0.2:
                near = self._random.choice((min(len(data), 16), len(data)))  # often within a frame's head
                cuts = sorted(self._random.randrange(1, near) for _ in range(self._random.randint(1, 3)))
                for a, b in itertools.pairwise([0, *cuts, len(data)]):
                    self._connection.write(data[a:b])
                    await self._rest(self._random.choice((0.002, 0.02, 0.1, 0.3, 1.0)))
            else:
                self._connection.write(data)

    # what comes in

    def _received(self, data: bytes) -> None:
        self._protocol.receive_data(data)
        for event in self._protocol.events_received():
            if not isinstance(event, Frame):
                continue
            if event.opcode is Opcode.PONG:
                self._pong(bytes(event.data))
            elif event.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
                if event.opcode is not Opcode.CONT:
                    self._is_text = event.opcode is Opcode.TEXT
                self._parts.append(bytes(event.data))
                if event.fin:
                    whole = b"".join(self._parts)
                    self._parts.clear()
                    self._message(whole)
        if self._protocol.parser_exc is not None:
            self.survivor.wrong.append(f"wrong framing: {self._protocol.parser_exc!r}")
        self._flush()
        self._answered.set()

    def _pong(self, content: bytes) -> None:
        """One pong may answer several pings, if it answers the last of them (RFC 6455 5.5.3)."""
        if content in self._pings:
            while self._pings.popleft() != content:
                self.survivor.pings -= 1
            self.survivor.pings -= 1
        else:
            self.survivor.wrong.append("a pong that answers nothing")

    def _message(self, data: bytes) -> None:
        what, number, rest = data.decode().split(" ", 2)
        if what == "t":
            _, generation, life, text = rest.split(" ", 3)
            self.survivor.received.saw(int(number))
            if text != filler(int(number), tick_size(self._opened, int(number))):
                self.survivor.wrong.append(f"tick {number} is not what was sent")
        else:
            id_, pid, generation, life, count, ticks, right, back, text = rest.split(" ", 8)
            self._answer(int(number), int(pid), int(generation), text, (int(id_), int(count), right == "1"))
            if back == "-1":
                self.survivor.received.end(int(ticks))
        self.survivor.lived(int(life), int(generation))

    def _answer(self, sequence: int, pid: int, generation: int, text: str, said: tuple[int, int, bool]) -> None:
        if sequence:
            self.survivor.answers.saw(sequence)
        entry, back, is_text = self._waiting.pop(sequence, (None, 0, True))
        if entry is None:
            self._load.ledger.oddities["a second answer on a WebSocket that survives"] += 1
        elif said != (entry.number, sequence, True):
            self._load.ledger.failed(entry, time.monotonic(), Cause.WRONG, f"(id, count, whole): {said}")
        elif text != filler(entry.number, back) or is_text is not self._is_text:
            self._load.ledger.failed(entry, time.monotonic(), Cause.WRONG, f"answer {text[:40]!r}")
        else:
            self._load.ledger.answered(entry, time.monotonic(), pid, generation)

    def _judge(self) -> None:
        close = self._protocol.close_rcvd
        if close is not None and close.code == CANNOT:
            self._load.give_up("a WebSocket cannot survive a reload of this server: it has no serve.survive")
        if close is not None:
            how = f"close code {close.code} {close.reason}".strip()
        else:
            how = str(self._protocol.handshake_exc or self._connection.ended or "nothing came any more")
        if not self._ending or close is None or close.code != 1000:
            self.survivor.ended = how
        self.survivor.answers.end(self.survivor.sent)
        for entry, _, _ in self._waiting.values():
            self._load.ledger.failed(entry, time.monotonic(), Cause.CLOSED, f"{how}, unanswered")


async def surviving_websocket(client: Client, rate: float) -> None:
    """One WebSocket after the other; every second user keeps its first one."""
    load, random = client.load, client.random
    keeps = random.random() < 0.5
    while load.running:
        opening = load.ledger.begin(KIND, time.monotonic())
        try:
            connection = await load.connect(KIND)
        except Failure as failure:
            load.ledger.failed(opening, time.monotonic(), failure.cause, failure.detail)
            await load.pause(0.2)
            continue
        socket = SurvivingSocket(load, random, connection, opening)
        await socket.converse(float("inf") if keeps else load.stretch * random.uniform(2.0, 12.0))
        await socket.end()
        await load.pause(random.uniform(0.0, 0.3))
