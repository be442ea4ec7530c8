"""One virtual user: at most one connection, one request after the other, each written into the ledger, none sent twice.

`Load` is what all virtual users of one run share. `Client.exchange` is the one place where a request is sent, awaited,
checked and accounted for.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

from loadtest.connection import Connection, Failure, Response
from loadtest.ledger import Cause, Entry, Ledger, Left
from loadtest.tls import ClientTls

ANSWER_TIMEOUT = 30.0
"""Seconds, beyond what was planned, after which a response counts as lost."""
CLOSE_TIMEOUT = 5.0
"""Seconds within which the server must end a connection that was asked to be closed."""
H2_HOLD = 0.2
"""What the server has as --h2-hold, unless it is told."""
FAILED = b"x-failed"
"""The field of a response that a bad version (`loadtest.canary_versions`) fails on purpose: nothing else is wrong."""
UNANNOUNCED = "a TLS connection ended without close_notify"


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """The bytes of one request and what must come back. `pieces` are (pause before it in s, bytes)."""

    pieces: Sequence[tuple[float, bytes]]
    answer: bytes
    planned: float = 0.0  # seconds that the handler was asked to take
    close: bool = False  # it says `Connection: close`


class Load:
    """What the virtual users of one run share."""

    def __init__(
        self,
        host: str,
        port: int,
        ledger: Ledger,
        scale: float = 1.0,
        seed: int = 1,
        stretch: float = 1.0,
        tls: ClientTls | None = None,
        unix: Path | None = None,
        deflate: bool | None = None,
    ) -> None:
        self.host = host
        self.port = port
        self.ledger = ledger
        self.scale = scale
        """Factor for the paced kinds' request rates."""
        self.stretch = stretch
        """Factor for how long slow requests and answers, streams and WebSockets take."""
        self.tls = tls
        """What all connections speak TLS with; None if they are plain ones."""
        self.unix = unix
        """The socket of the file system to which all connections go instead."""
        self.deflate = deflate
        """Whether WebSockets that survive offer compression; half of them if None."""
        self.h2_hold = H2_HOLD
        """Seconds for which requests in progress may keep a connection of HTTP/2 from going over a reload."""
        self.random = Random(seed)
        self.first_answer: Callable[[int, int], None] = lambda pid, generation: None
        """Told who gave the first response on each new connection."""
        self.impossible = ""
        """Why the server cannot do what a kind of load is made of."""
        self._stop = asyncio.Event()

    @property
    def running(self) -> bool:
        """False once the users are to finish what they have sent, and leave."""
        return not self._stop.is_set()

    def stop(self) -> None:
        """Ask all users to finish what they have sent, and leave."""
        self._stop.set()

    def give_up(self, why: str) -> None:
        """The server cannot do what a kind of load is made of: the run ends."""
        self.impossible = why
        self.stop()

    async def pause(self, seconds: float) -> None:
        """Sleep, but not beyond the end of the run."""
        try:
            async with asyncio.timeout(seconds):
                await self._stop.wait()
        except TimeoutError:
            pass

    async def connect(self, kind: str, keep: bool = True) -> Connection:
        """A new connection; if the client means to `keep` it, its end by the server is counted. Raises Failure."""

        def left(how: Left) -> None:
            if keep:
                self.ledger.reconnect(kind, time.monotonic(), how)

        connection = await Connection.open(self.host, self.port, left, self.tls, self.unix)
        self.ledger.connections += 1
        connection.number = self.ledger.connections
        return connection

    def note_end(self, connection: Connection) -> None:
        """Note how the server has ended a connection that the client is done with."""
        if connection.unannounced:
            self.ledger.oddities[UNANNOUNCED] += 1


class Client:
    """A virtual user."""

    def __init__(self, load: Load, kind: str, keep: bool = True) -> None:
        """A user who keeps its connection (`keep`), or leaves after each response."""
        self.load = load
        self.kind = kind
        self.keep = keep
        self.random = Random(load.random.random())
        self._connection: Connection | None = None
        self._fresh = True

    async def exchange(self, make: Callable[[int], Request]) -> None:
        """Send one request, which `make` makes from its id, and account for its response."""
        await self.exchanges([make])

    async def exchanges(self, makes: Sequence[Callable[[int], Request]]) -> None:
        """Send requests without waiting for the responses between them (pipelined, if several)."""
        entries = [self.load.ledger.begin(self.kind, time.monotonic()) for _ in makes]
        requests = [make(entry.number) for make, entry in zip(makes, entries, strict=True)]
        try:
            connection = await self._connected()
        except Failure as failure:
            for entry in entries:
                self._failed(entry, failure)
            return
        for entry in entries:
            entry.connection = connection.number
        answers = [connection.expect() for _ in requests]
        await send(connection, [piece for request in requests for piece in request.pieces], answers[-1])
        planned = 0.0
        for entry, request, answer in zip(entries, requests, answers, strict=True):
            planned += request.planned + sum(pause for pause, _ in request.pieces)
            entry.planned = planned  # the ones before it come first
            await self._settle(connection, entry, request, answer)
        if requests[-1].close:
            await self._see_it_closed(connection)
        if connection.stray or not connection.usable:
            self.leave()

    def leave(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            if self._connection.stray:
                self.load.ledger.oddities[f"bytes that nobody asked for: {self._connection.stray[:60]!r}"] += 1
            self.load.note_end(self._connection)
            self._connection.close()
            self._connection = None

    async def _connected(self) -> Connection:
        if self._connection is not None and not self._connection.usable:
            self.leave()  # the server had ended it while it was idle: counted as a reconnect already
        if self._connection is None:
            self._connection = await self.load.connect(self.kind, self.keep)
            self._fresh = True
        return self._connection

    async def _settle(
        self, connection: Connection, entry: Entry, request: Request, answer: asyncio.Future[Response]
    ) -> None:
        if request.close:
            connection.asked_to_close = True
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT + entry.planned):
                response = await answer
        except TimeoutError:
            self._failed(entry, Failure(Cause.TIMEOUT))
            self.leave()
            return
        except Failure as failure:
            self._failed(entry, described(failure, request))
            return
        try:
            pid, generation = check(response, entry.number, request.answer)
        except Failure as failure:
            self._failed(entry, described(failure, request))
            self.leave()
            return
        if FAILED in response.headers:
            self.load.ledger.answered_badly(entry, response.done, pid, generation)
        else:
            self.load.ledger.answered(entry, response.done, pid, generation)
        if self._fresh:
            self._fresh = False
            self.load.first_answer(pid, generation)

    async def _see_it_closed(self, connection: Connection) -> None:
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await asyncio.shield(connection.over)
        except TimeoutError:
            self.load.ledger.oddities["left open a connection that was asked to be closed"] += 1
        self.leave()

    def _failed(self, entry: Entry, failure: Failure) -> None:
        self.load.ledger.failed(entry, time.monotonic(), failure.cause, failure.detail)


async def send(connection: Connection, pieces: Sequence[tuple[float, bytes]], answer: asyncio.Future[Response]) -> None:
    """Write the pieces with their pauses; stops when the response, or the end, comes before they are out."""
    together = b""
    for pause, piece in pieces:
        if pause:
            connection.write(together)
            together = b""
            await asyncio.wait([answer], timeout=pause)
            if answer.done():
                return
        together += piece
    connection.write(together)


def described(failure: Failure, request: Request) -> Failure:
    """The failure with how the request was cut into pieces, for whoever has to find the reason."""
    if len(request.pieces) < 2:
        return failure
    pieces = ", ".join(f"{len(piece)} after {pause:.3g} s" for pause, piece in request.pieces[:6])
    return Failure(failure.cause, f"{failure.detail} [{pieces} bytes]")


def check(response: Response, number: int, answer: bytes) -> tuple[int, int]:
    """The pid and generation that gave the right response, or a bad version's; raises Failure for any other."""
    if response.status != 200 and FAILED not in response.headers:
        raise Failure(Cause.STATUS, f"{response.status} {bytes(response.body[:60])!r}")
    if response.headers.get(b"x-id") != b"%d" % number:
        raise Failure(Cause.WRONG, f"the response is for id {response.headers.get(b'x-id')!r}")
    if response.body != answer:
        raise Failure(Cause.WRONG, f"{len(response.body)} bytes instead of {len(answer)}, or others")
    return int(response.headers[b"x-pid"]), int(response.headers[b"x-generation"])
