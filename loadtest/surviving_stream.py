"""Streams that survive reloads: numbered events of a response that is chunked, has a length, or ends by its close.

Every event is compared byte for byte, as it comes. Some users send the next request, or half of it, while the response
is still coming: unread bytes that have to travel with it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections import deque
from random import Random
from typing import Final

import httptools

from loadtest.app import event
from loadtest.client import ANSWER_TIMEOUT, Client, Load
from loadtest.connection import Connection, Failure
from loadtest.ledger import Cause, Entry, Left
from loadtest.surviving import Survivor

KIND: Final = "surviving stream"
UNTIL_CLOSE: Final = "until close"
FRAMINGS: Final = ("chunked", "with a length", UNTIL_CLOSE)
MANNERS: Final = ("at once", "last words", "slowly", "last words slowly")
"""How a handler takes it that it is handed over (`loadtest.app`)."""
EVERY: Final = 0.12
"""Mean seconds between two events."""


@dataclasses.dataclass(frozen=True, slots=True)
class Asked:
    """A stream that is asked for."""

    entry: Entry
    framing: str
    count: int
    head: bytes


def ask(load: Load, random: Random, framing: str, kind: str = KIND) -> Asked:
    """A request for events that take 2 to 25 s."""
    every = EVERY / load.scale
    count = round(load.stretch * random.uniform(2.0, 25.0) / every)
    entry = load.ledger.begin(kind, time.monotonic())
    entry.planned = count * every
    query = f"id={entry.number}&count={count}&every={every:.3f}&manner={random.choice(MANNERS).replace(' ', '+')}"
    query += "&length=1" if framing == "with a length" else ""
    query += random.choice(("", "&plain=1")) + random.choice(("", "&late=1"))
    version = "1.0" if framing == UNTIL_CLOSE else "1.1"
    return Asked(entry, framing, count, f"GET /surviving?{query} HTTP/{version}\r\nhost: loadtest\r\n\r\n".encode())


class EventStream:
    """One response, read as it comes."""

    def __init__(self, asked: Asked, kind: str = KIND) -> None:
        self.asked = asked
        self.survivor = Survivor(f"{kind}, {asked.framing}")
        self.headers: dict[bytes, bytes] = {}
        self.status = 0
        self.over = asyncio.Event()
        """The response has ended, or will not come."""
        self.ended = False
        """By its framing, not by the connection's end."""
        self._data = bytearray()

    @property
    def complete(self) -> bool:
        """Whether all events have come, and nothing else."""
        return self.survivor.received.last == self.asked.count and not self._data and not self.survivor.wrong

    def received(self, data: bytes) -> None:
        """More of its content."""
        *lines, rest = (self._data + data).split(b"\n")
        self._data = rest
        for line in lines:
            self._event(bytes(line) + b"\n")

    def _event(self, line: bytes) -> None:
        try:
            number, index, pid, generation, life = map(int, line.split(b" ", 5)[:5])
        except ValueError:
            self.survivor.wrong.append(f"an event begins {line[:40]!r}")
            return
        self.survivor.received.saw(index + 1)
        self.survivor.lived(life, generation)
        if number != self.asked.entry.number or line != event(number, index, pid, generation, life):
            self.survivor.wrong.append(f"event {index} is not what was sent")


class Responses:
    """The responses on one connection, in the order in which they were asked for."""

    def __init__(self, load: Load, connection: Connection) -> None:
        self._load = load
        self._connection = connection
        self._expected: deque[EventStream] = deque()
        self._parser = httptools.HttpResponseParser(self)
        connection.took = self._received
        connection.over.add_done_callback(lambda _: self._end())

    def expect(self, asked: Asked) -> EventStream:
        """The next one."""
        stream = EventStream(asked)
        self._load.ledger.survivors.append(stream.survivor)
        self._expected.append(stream)
        if not self._connection.usable:
            self._end()
        return stream

    def _received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            if self._expected:
                self._expected[0].survivor.wrong.append(f"wrong framing: {error}")
            else:
                self._load.ledger.oddities[f"bytes after a stream: {data[:60]!r}"] += 1
            self._connection.close()
            self._end()

    def _end(self) -> None:
        for stream in self._expected:
            stream.over.set()

    # what the parser does

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._expected:
            self._expected[0].headers[name.lower()] = value

    def on_body(self, body: bytes) -> None:
        if self._expected:
            self._expected[0].received(body)

    def on_message_complete(self) -> None:
        if not self._expected:
            self._load.ledger.oddities["a response that nobody asked for"] += 1
            return
        stream = self._expected.popleft()
        stream.status = self._parser.get_status_code()
        stream.ended = True
        stream.over.set()


def settle(load: Load, connection: Connection, stream: EventStream) -> bool:
    """Account for a response; True if it was right and whole."""
    if stream.status == 501:
        load.give_up("a stream cannot survive a reload of this server: it has no serve.survive")
    entry, survivor, now = stream.asked.entry, stream.survivor, time.monotonic()
    by_close = stream.asked.framing == UNTIL_CLOSE and not connection.unannounced and not connection.usable
    survivor.received.end(stream.asked.count)
    if stream.complete and (stream.ended or by_close) and not survivor.lost:
        pid, generation = int(stream.headers[b"x-pid"]), int(stream.headers[b"x-generation"])
        load.ledger.answered(entry, now, pid, generation)
        return True
    how = f"status {stream.status}" if stream.ended else str(connection.ended or "nothing came any more")
    if not stream.ended:
        survivor.ended = how
        if stream.asked.framing == UNTIL_CLOSE:  # its end is no reconnect otherwise
            load.ledger.reconnect(KIND, now, Left.EOF)
    detail = f"{how}, {survivor.received.count} of {stream.asked.count} events; {survivor.wrong[:1]}"
    load.ledger.failed(entry, now, Cause.WRONG if survivor.wrong else Cause.TRUNCATED, detail)
    return False


async def surviving_stream(client: Client, rate: float) -> None:
    """One stream after the other, on one connection where the framing allows it."""
    load, random = client.load, client.random
    framing = random.choice(FRAMINGS)
    while load.running:
        asked = ask(load, random, framing)
        try:
            connection = await load.connect(KIND)
        except Failure as failure:
            load.ledger.failed(asked.entry, time.monotonic(), failure.cause, failure.detail)
            await load.pause(0.2)
            continue
        await streams(load, random, connection, asked)
        load.note_end(connection)
        connection.close()
        await load.pause(random.uniform(0.0, 0.3))


async def streams(load: Load, random: Random, connection: Connection, first: Asked) -> None:
    """The streams on one connection, until it ends or the run does."""
    responses = Responses(load, connection)
    until_close = connection.asked_to_close = first.framing == UNTIL_CLOSE
    upcoming: EventStream | None = responses.expect(first)
    unsent = first.head
    while upcoming is not None:
        connection.write(unsent)
        stream, upcoming = upcoming, None
        if not until_close and random.random() < 0.4:
            await over_within(stream, random.uniform(0.1, 3.0))
            if load.running and not stream.over.is_set():
                upcoming = responses.expect(ask(load, random, first.framing))  # its response may follow at once
                head = upcoming.asked.head
                cut = random.choice((random.randrange(1, len(head)), len(head)))
                connection.write(head[:cut])
                unsent = head[cut:]
        await over_within(stream, stream.asked.entry.planned * 2 + ANSWER_TIMEOUT)
        right = settle(load, connection, stream)
        if until_close or not right or not connection.usable:
            break
        if upcoming is None:
            await load.pause(random.uniform(0.0, 0.5))
            if load.running and connection.usable:
                upcoming = responses.expect(ask(load, random, first.framing))
                unsent = upcoming.asked.head
    if upcoming is not None:
        upcoming.survivor.ended = "it was asked for behind a stream that has ended"
        load.ledger.failed(upcoming.asked.entry, time.monotonic(), Cause.EOF, upcoming.survivor.ended)


async def over_within(stream: EventStream, seconds: float) -> None:
    """Wait until the response is over, at most so long."""
    try:
        async with asyncio.timeout(seconds):
            await stream.over.wait()
    except TimeoutError:
        pass
