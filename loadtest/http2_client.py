"""One virtual user of HTTP/2: one connection with many requests at once, each written into the ledger, none sent twice.

`Http2Client.exchange` is the one place where a request is sent, awaited, checked and accounted for; many of them may
run at once. When the server has said GOAWAY, requests in progress end where they are, and new ones go to a new
connection. It is lost what RFC 9113 6.8 would let a client send again: the server promises that nobody ever has to.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
import zlib
from collections.abc import Callable, Sequence
from random import Random

from loadtest.app import TRAILER
from loadtest.client import ANSWER_TIMEOUT, FAILED, UNANNOUNCED, Load, check
from loadtest.connection import Failure
from loadtest.http2_connection import Fields, Manner, MultiplexedConnection, Stream
from loadtest.ledger import Cause, Entry, Left


@dataclasses.dataclass(frozen=True, slots=True)
class StreamRequest:
    """One request and what must come back. `pieces` are (pause before it in s, DATA)."""

    head: Fields  # without :scheme
    answer: bytes
    pieces: Sequence[tuple[float, bytes]] = ()
    trailers: Fields = ()
    planned: float = 0.0  # seconds that the handler was asked to take, or that the client reads slowly
    length: int | None = None  # of the content-length, where the response has no body (HEAD)
    reset_after: float | None = None  # seconds until the client resets the stream

    @property
    def bodiless(self) -> bool:
        """Whether the head is all."""
        return not (self.pieces or self.trailers)


class Http2Client:
    """A virtual user."""

    def __init__(self, load: Load, kind: str, keep: bool, random: Random, manner: Manner) -> None:
        """A user whose connection no reload may end (`keep`), or who has streams that may outlast a reload."""
        self._load = load
        self._kind = kind
        self._keep = keep
        self._random = random
        self._manner = manner
        self._connection: MultiplexedConnection | None = None
        self._fresh: MultiplexedConnection | None = None
        self._opening = asyncio.Lock()

    async def exchange(self, make: Callable[[int], StreamRequest]) -> None:
        """Send one request, which `make` makes from its id, and account for its response."""
        entry = self._load.ledger.begin(self._kind, time.monotonic())
        request = make(entry.number)
        entry.planned = request.planned + sum(pause for pause, _ in request.pieces)
        connection = None
        try:
            connection = await self.connected()
            entry.connection = connection.number
            head = [(b":scheme", b"http" if self._load.tls is None else b"https"), *request.head]
            stream = connection.begin(head, end=request.bodiless)
            await self._settle(connection, stream, entry, request)
        except Failure as failure:
            self._load.ledger.failed(entry, time.monotonic(), failure.cause, failure.detail)
        if connection is not None:
            self.done_with(connection)

    def done_with(self, connection: MultiplexedConnection) -> None:
        """A request on it has ended: close it if it was the last."""
        if not connection.usable and not connection.open_streams:
            self._leave(connection)

    def leave(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._leave(self._connection)

    def _leave(self, connection: MultiplexedConnection) -> None:
        for oddity in connection.oddities:
            self._load.ledger.oddities[oddity] += 1
        connection.oddities.clear()
        if connection.unannounced:
            self._load.ledger.oddities[UNANNOUNCED] += 1
            connection.unannounced = False
        connection.close()
        if connection is self._connection:
            self._connection = None

    async def connected(self) -> MultiplexedConnection:
        """A connection on which another request may be sent. Raises Failure if there is none to be had."""
        while (connection := await self._connected()).full:
            await asyncio.wait([connection.changed()])  # it may also end: what was not sent yet goes to another one
        return connection

    async def _connected(self) -> MultiplexedConnection:
        async with self._opening:  # many requests, and one new connection
            if self._connection is not None and not self._connection.usable:
                if not self._connection.open_streams:
                    self._leave(self._connection)
                self._connection = None
            if self._connection is None:
                self._connection = self._fresh = await self._open()
            return self._connection

    async def _open(self) -> MultiplexedConnection:
        load = self._load

        def left(how: Left, longest: float, in_progress: str) -> None:
            excused = how is Left.GOAWAY and (longest >= load.h2_hold or not self._keep)
            if excused:
                load.ledger.moved_on.append(self._kind)
            elif self._keep:
                load.ledger.reconnect(self._kind, time.monotonic(), how, in_progress)

        connection = await MultiplexedConnection.open(
            load.host, load.port, left, load.tls, load.unix, manner=self._manner, random=self._random
        )
        load.ledger.connections += 1
        connection.number = load.ledger.connections
        return connection

    async def _settle(
        self, connection: MultiplexedConnection, stream: Stream, entry: Entry, request: StreamRequest
    ) -> None:
        patience = ANSWER_TIMEOUT + entry.planned if request.reset_after is None else request.reset_after
        try:
            async with asyncio.timeout(patience):
                await send(stream, request)
                response = await stream.answer
        except TimeoutError:
            stream.reset()
            if request.reset_after is None:
                raise Failure(Cause.TIMEOUT, "after the head" if stream.begun else "no response") from None
            self._load.ledger.cancelled(entry, time.monotonic())
            return
        pid, generation = check(response, entry.number, request.answer)
        check_rest(stream, request)
        if FAILED in response.headers:
            self._load.ledger.answered_badly(entry, response.done, pid, generation)
        else:
            self._load.ledger.answered(entry, response.done, pid, generation)
        if self._fresh is connection:
            self._fresh = None
            self._load.first_answer(pid, generation)


async def send(stream: Stream, request: StreamRequest) -> None:
    """Send what follows the head, with its pauses; stops when the response, or the end, comes before all is out."""
    for index, (pause, piece) in enumerate(request.pieces):
        if pause:
            await asyncio.wait([stream.answer], timeout=pause)
        await stream.send(piece, end=index == len(request.pieces) - 1 and not request.trailers)
    if request.trailers:
        stream.end(request.trailers)


def check_rest(stream: Stream, request: StreamRequest) -> None:
    """Raise Failure if the trailers are not right, or the length of a response without a body."""
    headers = stream.response.headers
    if request.length is not None and headers.get(b"content-length") not in (None, b"%d" % request.length):
        raise Failure(Cause.WRONG, f"content-length {headers[b'content-length']!r} instead of {request.length}")
    if b"trailer" in headers and stream.trailers != {TRAILER: b"%08x" % zlib.crc32(stream.response.body)}:
        raise Failure(Cause.WRONG, f"trailers {stream.trailers}")
