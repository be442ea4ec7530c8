"""WebSockets and streams that survive reloads over HTTP/2: several of each on one connection, beside short requests.

Each WebSocket and each stream does what it does over HTTP/1.1 (`loadtest.surviving_websocket`,
`loadtest.surviving_stream`), here as one stream of a connection that they share (RFC 8441 for the WebSockets). Rules: a
GOAWAY is a reconnect, unless a short request beside them has taken as long as `--h2-hold`; what is open then goes on
where it is, and is judged as strictly. What a client does not read for a while it does not take: its window shuts.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import http
import time
from collections.abc import Callable
from random import Random
from typing import Final

from loadtest.client import ANSWER_TIMEOUT, Load
from loadtest.connection import Failure, Response
from loadtest.http2_client import Http2Client
from loadtest.http2_connection import Manner, MultiplexedConnection, Stream
from loadtest.http2_kinds import AUTHORITY, User, client_of, repeat, short
from loadtest.ledger import Cause
from loadtest.surviving_stream import EventStream, ask
from loadtest.surviving_websocket import SurvivingSocket

KIND: Final = "HTTP/2, surviving"
SOCKET_KIND: Final = "surviving WebSocket, HTTP/2"
STREAM_KIND: Final = "surviving stream, HTTP/2"
FRAMINGS: Final = ("with a length", "without one")
MOST: Final = 3
"""WebSockets on a connection, and streams."""
WINDOWS: Final = (65_535, 1 << 18, 1 << 20)
OF_HTTP1: Final = frozenset((b"host", b"connection", b"upgrade", b"sec-websocket-key"))
GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 1.3


class Tunnel:
    """A stream, as what speaks a WebSocket sees it: a `loadtest.surviving_websocket.SocketConnection`.

    Its handshake is translated: the request of HTTP/1.1 becomes an extended CONNECT, and the response to that a 101.
    """

    def __init__(self, client: Http2Client, scheme: bytes) -> None:
        self._client = client
        self._scheme = scheme
        self._connection: MultiplexedConnection | None = None
        self._stream: Stream | None = None
        self._asking: asyncio.Task[None] | None = None
        self._outgoing = bytearray()
        self._sending: asyncio.Task[None] | None = None
        self._accept = b""
        self._answered = False
        self.took: Callable[[bytes], None] | None = None
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.ended: Cause | None = None
        self.asked_to_close = False
        self.unannounced = False

    @property
    def usable(self) -> bool:
        """Whether something may be sent."""
        return self.ended is None

    def write(self, data: bytes) -> None:
        """Send it, as soon as the windows let it."""
        self._outgoing += data
        if self._asking is None:
            head, end, rest = bytes(self._outgoing).partition(b"\r\n\r\n")
            if end:
                self._outgoing[:] = rest
                self._asking = asyncio.ensure_future(self._ask(head))
        self._send_on()

    def _send_on(self) -> None:
        if self._stream is not None and self._outgoing and self._sending is None:
            self._sending = asyncio.ensure_future(self._send(self._stream))

    async def _send(self, stream: Stream) -> None:
        while self._outgoing and self.usable:
            data = bytes(self._outgoing)
            self._outgoing.clear()
            await stream.send(data, end=False)
        self._sending = None

    async def _ask(self, head: bytes) -> None:
        line, *lines = head.split(b"\r\n")
        fields = [(name.lower(), value) for name, _, value in (each.partition(b": ") for each in lines)]
        key = dict(fields)[b"sec-websocket-key"]
        self._accept = base64.b64encode(hashlib.sha1(key + GUID).digest())
        pseudo = [
            (b":method", b"CONNECT"),
            (b":protocol", b"websocket"),
            (b":scheme", self._scheme),
            (b":path", line.split(b" ")[1]),
            (b":authority", AUTHORITY),
        ]
        try:
            while not (connection := await self._client.connected()).extended:  # it may also end meanwhile
                await asyncio.wait([connection.changed()])
            stream = connection.begin([*pseudo, *(each for each in fields if each[0] not in OF_HTTP1)], end=False)
        except Failure as failure:
            self._end(failure.cause)
            return
        self._connection, self._stream = connection, stream
        stream.lasting = True
        stream.took = self._received
        stream.answer.add_done_callback(self._stream_ended)
        self._send_on()

    def _received(self, data: bytes) -> None:
        if self._stream is not None and not self._answered:
            self._answered = True
            headers = dict(self._stream.response.headers)
            status = int(headers.pop(b":status"))
            lines = [b"%b: %b" % field for field in headers.items()]
            if status == 200:
                status = 101
                lines += [b"upgrade: websocket", b"connection: Upgrade", b"sec-websocket-accept: " + self._accept]
            first = b"HTTP/1.1 %d %b" % (status, http.HTTPStatus(status).phrase.encode())
            data = b"\r\n".join([first, *lines, b"", data])
        if data and self.took is not None:
            self.took(data)

    def _stream_ended(self, answer: asyncio.Future[Response]) -> None:
        error = None if answer.cancelled() else answer.exception()
        self._end(error.cause if isinstance(error, Failure) else Cause.EOF)

    def _end(self, cause: Cause) -> None:
        self.ended = self.ended or cause
        if not self.over.done():
            self.over.set_result(None)

    def narrow(self) -> None:
        """The stream's window is little enough."""

    def pause_reading(self, seconds: float) -> None:
        """Take nothing for so long: the window shuts."""
        if self._stream is not None:
            self._stream.take_at = time.monotonic() + seconds

    def close(self) -> None:
        """The client goes."""
        self.asked_to_close = True
        if self._stream is not None and not self._stream.answer.done():
            self._stream.reset()
        self._end(Cause.EOF)
        if self._connection is not None:
            self._client.done_with(self._connection)


async def surviving(user: User, rate: float) -> None:
    """One connection with up to 3 WebSockets, up to 3 streams, and short requests."""
    random = user.random
    client = client_of(user, Manner(window=random.choice(WINDOWS)))
    async with asyncio.TaskGroup() as group:
        for _ in range(random.randint(1, MOST)):
            group.create_task(sockets(user.load, client, Random(random.random())))
        for _ in range(random.randint(0, MOST)):
            group.create_task(streams(user.load, client, Random(random.random())))
        group.create_task(repeat(user, client, lambda: short(random), 4.5 / rate))
    client.leave()


async def sockets(load: Load, client: Http2Client, random: Random) -> None:
    """One WebSocket after the other; every second user keeps its first one."""
    keeps = random.random() < 0.5
    while load.running:
        opening = load.ledger.begin(KIND, time.monotonic())
        tunnel = Tunnel(client, b"http" if load.tls is None else b"https")
        socket = SurvivingSocket(load, random, tunnel, opening, SOCKET_KIND)
        await socket.converse(float("inf") if keeps else load.stretch * random.uniform(2.0, 12.0))
        await socket.end()
        await load.pause(random.uniform(0.0, 0.3))


async def streams(load: Load, client: Http2Client, random: Random) -> None:
    """One stream after the other."""
    while load.running:
        asked = ask(load, random, random.choice(FRAMINGS), KIND)
        entry, events = asked.entry, EventStream(asked, STREAM_KIND)
        scheme = b"http" if load.tls is None else b"https"
        target = asked.head.split(b" ")[1]
        head = [(b":method", b"GET"), (b":scheme", scheme), (b":authority", AUTHORITY), (b":path", target)]
        try:
            connection = await client.connected()
            stream = connection.begin(head, end=True)
        except Failure as failure:
            load.ledger.failed(entry, time.monotonic(), failure.cause, failure.detail)
            await load.pause(0.2)
            continue
        load.ledger.survivors.append(events.survivor)
        stream.lasting = True
        stream.took = events.received
        await asyncio.wait([stream.answer], timeout=entry.planned * 2 + ANSWER_TIMEOUT)
        settle(load, stream, events)
        client.done_with(connection)
        await load.pause(random.uniform(0.0, 0.5))


def settle(load: Load, stream: Stream, events: EventStream) -> None:
    """Account for a response."""
    entry, survivor, now = events.asked.entry, events.survivor, time.monotonic()
    headers, how = stream.response.headers, ""
    if not stream.answer.done():
        how = "nothing came any more"
        stream.reset()
    elif (error := stream.answer.exception()) is not None:
        how = str(error)
    elif stream.response.status == 501:
        load.give_up("a stream cannot survive a reload of this server: it has no serve.survive")
    survivor.received.end(events.asked.count)
    survivor.ended = how
    if not how and events.complete and not survivor.lost:
        load.ledger.answered(entry, now, int(headers[b"x-pid"]), int(headers[b"x-generation"]))
    else:
        detail = f"{how or stream.response.status}, {survivor.received.count} of {events.asked.count} events"
        load.ledger.failed(entry, now, Cause.WRONG if survivor.wrong else Cause.TRUNCATED, detail)
