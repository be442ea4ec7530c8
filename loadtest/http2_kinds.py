"""The kinds of load over HTTP/2: each is a coroutine that is one virtual user until the run ends.

Most have only requests that are short beside `--h2-hold`: a reload must keep their connections. The others have long
ones, on connections of their own, which may be told GOAWAY; the user then opens a new one, and still nothing is lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from random import Random
from typing import Final, Protocol

from loadtest.app import echo_answer, pattern, stream_chunk
from loadtest.client import Load
from loadtest.http2_client import Http2Client, StreamRequest
from loadtest.http2_connection import Fields, Manner

Make = Callable[[int], StreamRequest]

AUTHORITY: Final = b"loadtest"
WINDOWS: Final = (65_535, 1 << 18, 1 << 20)
"""Of a response, in bytes, one of which each user takes."""
PIECES: Final = 40
SHORT: Final = 0.08
"""Seconds over which a short upload comes."""


class User(Protocol):
    """Who has a kind of load (`loadtest.client.Client`)."""

    load: Load
    kind: str
    keep: bool
    random: Random


def client_of(user: User, manner: Manner | None = None) -> Http2Client:
    """Its connections, on which it speaks as `manner` says."""
    chosen = manner or Manner(window=user.random.choice(WINDOWS))
    return Http2Client(user.load, user.kind, user.keep, user.random, chosen)


def head(method: bytes, target: str, random: Random) -> Fields:
    """A request's head; some of its fields are new each time, so that both tables change (RFC 7541 2.3)."""
    fields = [
        (b":method", method),
        (b":authority", AUTHORITY),
        (b":path", target.encode()),
        (b"user-agent", b"loadtest"),
        (b"accept", b"*/*"),
    ]
    if random.random() < 0.5:
        fields.append((b"cookie", b"session=%s" % random.randbytes(random.randint(4, 60)).hex().encode()))
    if random.random() < 0.2:
        fields.append((b"x-padding", b"p" * random.randrange(600)))
    return fields


def get(number: int, random: Random, reset_after: float | None = None) -> StreamRequest:
    """A GET whose answer is short, or the HEAD of one."""
    method = b"HEAD" if random.random() < 0.3 else b"GET"
    answer = echo_answer(number, b"")
    fields = head(method, f"/echo?id={number}", random)
    return StreamRequest(fields, b"" if method == b"HEAD" else answer, length=len(answer), reset_after=reset_after)


def post(number: int, random: Random, wait: float = 0.0, reset_after: float | None = None) -> StreamRequest:
    """A POST with its body in one piece. `wait` is how long the handler sleeps."""
    body = random.randbytes(random.randrange(1, 400))
    fields = head(b"POST", f"/echo?id={number}" + (f"&wait={wait:.3f}" if wait else ""), random)
    if random.random() < 0.5:
        fields = [*fields, (b"content-length", b"%d" % len(body))]
    return StreamRequest(fields, echo_answer(number, body), [(0.0, body)], planned=wait, reset_after=reset_after)


def upload(number: int, random: Random, over: float, reset_after: float | None = None) -> StreamRequest:
    """A body that drips in over so many seconds, in many DATA frames; some have trailers."""
    parts = [random.randbytes(random.randint(1, 4000)) for _ in range(random.randint(4, PIECES))]
    body = b"".join(parts)
    trailers = [(b"x-digest", b"none")] if random.random() < 0.3 else []
    target = f"/echo?id={number}&parts={len(parts)}" + ("&trailers=1" if trailers else "")
    fields = head(b"POST", target, random)
    if random.random() < 0.5:
        fields = [*fields, (b"content-length", b"%d" % len(body))]
    pieces = [(over / len(parts), part) for part in parts]
    return StreamRequest(fields, echo_answer(number, body), pieces, trailers, reset_after=reset_after)


def download(number: int, random: Random, size: int, planned: float = 0.0) -> StreamRequest:
    """A large answer; half of them with trailers."""
    fields = head(b"GET", f"/body?id={number}&size={size}" + ("&trailers=1" if random.random() < 0.5 else ""), random)
    return StreamRequest([*fields, (b"te", b"trailers")], pattern(number, size), planned=planned)


def event_stream(number: int, random: Random, over: float, reset_after: float | None = None) -> StreamRequest:
    """Numbered chunks over so many seconds."""
    chunks = random.randint(5, 50)
    fields = head(b"GET", f"/stream?id={number}&chunks={chunks}&over={over:.3f}", random)
    answer = b"".join(stream_chunk(number, index) for index in range(chunks))
    return StreamRequest(fields, answer, planned=over, reset_after=reset_after)


def short(random: Random) -> Make:
    """One of the requests that take little time."""
    which = random.random()
    if which < 0.35:
        return lambda number: post(number, random)
    if which < 0.75:
        return lambda number: get(number, random)
    if which < 0.88:
        return lambda number: upload(number, random, SHORT * random.random())
    return lambda number: download(number, random, 1 << (20 if which > 0.985 else 16))


def broken_off(random: Random) -> Make:
    """A request that the client resets at some moment, if the response has not come by then."""
    after = random.choice((0.0, 0.0005, 0.002, 0.01, 0.03, 0.06)) * random.random()
    which = random.randrange(4)
    if which == 0:
        return lambda number: get(number, random, reset_after=after)
    if which == 1:
        return lambda number: post(number, random, wait=0.2, reset_after=after)
    if which == 2:
        return lambda number: upload(number, random, 0.5, reset_after=after)
    return lambda number: event_stream(number, random, 1.0, reset_after=after)


async def repeat(user: User, client: Http2Client, next_request: Callable[[], Make], pause: float) -> None:
    """One request after the other, with time to think."""
    while user.load.running:
        for _ in range(user.random.randint(1, 8)):
            if user.load.running:
                await client.exchange(next_request())
        await user.load.pause(user.random.uniform(0.2, 1.8) * pause)


def at_once(count: int) -> Callable[[User, float], Awaitable[None]]:
    """So many requests at once on one connection, each after a time of its own."""

    async def run(user: User, rate: float) -> None:
        client = client_of(user)
        await together(user, client, [lambda: short(user.random)] * count, 4.5 * count / rate)
        client.leave()

    return run


async def together(user: User, client: Http2Client, requests: list[Callable[[], Make]], pause: float) -> None:
    """Several users of one connection."""
    async with asyncio.TaskGroup() as group:
        for each in requests:
            group.create_task(repeat(user, client, each, pause))


async def idle(user: User, rate: float) -> None:
    """A connection that is idle for 0 to 3 s between its requests."""
    client = client_of(user)
    while user.load.running:
        await user.load.pause(user.load.stretch * user.random.uniform(0.0, 3.0))
        await client.exchange(short(user.random))
    client.leave()


async def one_shot(user: User, rate: float) -> None:
    """A new connection for each request."""
    while user.load.running:
        client = client_of(user)
        await client.exchange(short(user.random))
        client.leave()
        await user.load.pause(user.random.uniform(0.2, 1.8) / rate)


async def resets(user: User, rate: float) -> None:
    """Requests that the client resets at random moments, beside others on the same connection."""
    client = client_of(user)
    ours: list[Callable[[], Make]] = [lambda: broken_off(user.random)] * 3 + [lambda: short(user.random)] * 3
    await together(user, client, ours, 4.5 * len(ours) / rate)
    client.leave()


async def split(user: User, rate: float) -> None:
    """Frames that arrive in pieces, cut anywhere, with pauses of up to 1 s; a connection for a few requests."""
    while user.load.running:
        client = client_of(user, Manner(cut=True))
        for _ in range(user.random.randint(2, 12)):
            if user.load.running:
                await client.exchange(lambda number: get(number, user.random))
                await user.load.pause(user.random.uniform(0.0, 0.5))
        client.leave()


async def slow_upload(user: User, rate: float) -> None:
    """Bodies that drip in over 1 to 4 s, two at once."""

    def one() -> Make:
        return lambda number: upload(number, user.random, user.load.stretch * user.random.uniform(1.0, 4.0))

    client = client_of(user)
    await together(user, client, [one] * 2, 0.2)
    client.leave()


async def slow_response(user: User, rate: float) -> None:
    """Answers for which the handler takes up to 2 s, beside short requests."""

    def one() -> Make:
        return lambda number: post(number, user.random, user.load.stretch * user.random.uniform(0.1, 2.0))

    client = client_of(user)
    await together(user, client, [one, one, lambda: short(user.random)], 0.2)
    client.leave()


async def events(user: User, rate: float) -> None:
    """Up to 4 event streams at once, of 1 to 3 s, compared byte for byte up to the last event."""

    def one() -> Make:
        return lambda number: event_stream(number, user.random, user.load.stretch * user.random.uniform(1.0, 3.0))

    client = client_of(user)
    await together(user, client, [one] * user.random.randint(1, 4), 0.3)
    client.leave()


async def slow_reader(user: User, rate: float) -> None:
    """Responses of 1 MB to a client that opens its window of 64 KiB again after some time."""
    after = 0.1 * user.load.stretch
    client = client_of(user, Manner(take_after=after))
    while user.load.running:
        await client.exchange(lambda number: download(number, user.random, 1 << 20, planned=16 * after))
        await user.load.pause(user.random.uniform(0.0, 0.3))
    client.leave()
