"""The kinds of load: each is a coroutine that is one virtual user until the run ends.

`KINDS` says how many users of each kind run at once. Paced kinds keep roughly to a rate, divided among their users.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Awaitable, Callable, Sequence
from random import Random

from loadtest import http2_kinds, http2_surviving, surviving_stream, surviving_websocket
from loadtest.app import echo_answer, stream_chunk
from loadtest.client import Client, Load, Request
from loadtest.websocket import chat

HOST = b"loadtest"
HTTP_1_0 = "until close"
"""The kind whose requests are of HTTP/1.0."""


def post(number: int, body: bytes, *, wait: float = 0.0, close: bool = False, pad: int = 0) -> Request:
    """A POST with its body in one piece. `wait` is how long the handler sleeps; `pad` makes the head longer."""
    head = head_of(number, f"wait={wait:.3f}" if wait else "", pad, close)
    whole = b"%scontent-length: %d\r\n\r\n%s" % (head, len(body), body)
    return Request([(0.0, whole)], echo_answer(number, body), planned=wait, close=close)


def head_of(number: int, query: str = "", pad: int = 0, close: bool = False) -> bytes:
    """The beginning of the head of a POST, without the field that says how long the body is."""
    target = f"/echo?id={number}" + (f"&{query}" if query else "")
    head = b"POST %s HTTP/1.1\r\nhost: %s\r\n" % (target.encode(), HOST)
    if pad:
        head += b"x-padding: %s\r\n" % (b"p" * pad)
    return head + (b"connection: close\r\n" if close else b"")


def some_body(random: Random, most: int = 400) -> bytes:
    """A body of up to `most` bytes."""
    return random.randbytes(random.randrange(most))


async def keep_alive(client: Client, rate: float) -> None:
    """POSTs back to back on one connection, in bursts."""
    load = client.load
    while load.running:
        burst = client.random.randint(1, 30)
        for _ in range(burst):
            if load.running:
                await client.exchange(lambda number: post(number, some_body(client.random)))
        await client.load.pause(client.random.uniform(0.2, 1.8) * burst / rate)


async def idle(client: Client, rate: float) -> None:
    """A connection that is idle for 0 to 3 s between its requests."""
    while client.load.running:
        await client.load.pause(client.load.stretch * client.random.uniform(0.0, 3.0))
        await client.exchange(lambda number: post(number, some_body(client.random)))


async def one_shot(client: Client, rate: float) -> None:
    """A new connection for each request; half of them say `Connection: close`."""
    while client.load.running:
        close = client.random.random() < 0.5
        await client.exchange(lambda number: post(number, some_body(client.random), close=close))  # noqa: B023
        client.leave()
        await client.load.pause(client.random.uniform(0.2, 1.8) / rate)


async def split(client: Client, rate: float) -> None:
    """Requests whose head arrives in pieces, cut anywhere, with pauses between them."""

    def cut(number: int) -> Request:
        whole = post(number, some_body(client.random), pad=client.random.randrange(300))
        data = whole.pieces[0][1]
        cuts = sorted(client.random.sample(range(1, data.index(b"\r\n\r\n") + 4), client.random.randint(1, 4)))
        edges = [0, *cuts, len(data)]
        pauses = [0.0, *(client.load.stretch * client.random.choice((0.002, 0.02, 0.1, 0.3, 1.0)) for _ in cuts)]
        pieces = [data[a:b] for a, b in itertools.pairwise(edges)]
        return dataclasses.replace(whole, pieces=list(zip(pauses, pieces, strict=True)))

    while client.load.running:
        await client.exchange(cut)
        await client.load.pause(client.random.uniform(0.0, 0.5))


async def pipelined(client: Client, rate: float) -> None:
    """2 to 8 requests in one write; some make the handler wait, and sometimes the last one comes in two parts."""

    def one(number: int) -> Request:
        wait = client.random.choice((0.0, 0.0, 0.0, 0.0, 0.03))
        return post(number, some_body(client.random), wait=wait)

    def in_two(number: int) -> Request:
        whole = one(number)
        data = whole.pieces[0][1]
        at = client.random.randrange(1, len(data))
        pause = client.random.choice((0.01, 0.1, 0.5))
        return dataclasses.replace(whole, pieces=[(0.0, data[:at]), (pause, data[at:])])

    while client.load.running:
        count = client.random.randint(2, 8)
        last = in_two if client.random.random() < 0.3 else one
        await client.exchanges([one] * (count - 1) + [last])
        await client.load.pause(client.random.uniform(0.2, 1.8) * count / rate)


async def upload(client: Client, rate: float) -> None:
    """A body that drips in over 1 to 4 s, with a content-length or chunked; some expect 100-continue."""
    random = client.random

    def drip(number: int) -> Request:
        count = random.randint(4, 20)
        parts = [random.randbytes(random.randint(1, 4000)) for _ in range(count)]
        pause = client.load.stretch * random.uniform(1.0, 4.0) / count
        body = b"".join(parts)
        head = head_of(number) + (b"expect: 100-continue\r\n" if random.random() < 0.3 else b"")
        if random.random() < 0.5:
            head += b"content-length: %d\r\n\r\n" % len(body)
        else:
            head += b"transfer-encoding: chunked\r\n\r\n"
            parts = [b"%x\r\n%s\r\n" % (len(part), part) for part in parts] + [b"0\r\n\r\n"]
        return Request([(0.0, head), *((pause, part) for part in parts)], echo_answer(number, body))

    while client.load.running:
        await client.exchange(drip)
        await client.load.pause(random.uniform(0.0, 0.3))


async def slow(client: Client, rate: float) -> None:
    """Answers for which the handler takes up to 2 s."""
    while client.load.running:
        wait = client.load.stretch * client.random.uniform(0.1, 2.0)
        await client.exchange(lambda number: post(number, some_body(client.random), wait=wait))  # noqa: B023
        await client.load.pause(client.random.uniform(0.0, 0.3))


async def stream(client: Client, rate: float) -> None:
    """Responses that take 1 to 5 s, compared byte for byte up to the last chunk."""

    def get(number: int) -> Request:
        chunks, over = client.random.randint(5, 50), client.load.stretch * client.random.uniform(1.0, 5.0)
        head = b"GET /stream?id=%d&chunks=%d&over=%.3f HTTP/1.1\r\nhost: %s\r\n\r\n" % (number, chunks, over, HOST)
        return Request([(0.0, head)], b"".join(stream_chunk(number, index) for index in range(chunks)), planned=over)

    while client.load.running:
        await client.exchange(get)
        await client.load.pause(client.random.uniform(0.0, 0.3))


async def until_close(client: Client, rate: float) -> None:
    """Streams for a client of HTTP/1.0: the end of the connection delimits them, if the server does not chunk them."""

    def get(number: int) -> Request:
        chunks, over = client.random.randint(2, 20), client.load.stretch * client.random.uniform(0.2, 3.0)
        head = b"GET /stream?id=%d&chunks=%d&over=%.3f HTTP/1.0\r\nhost: %s\r\n\r\n" % (number, chunks, over, HOST)
        body = b"".join(stream_chunk(number, index) for index in range(chunks))
        return Request([(0.0, head)], body, planned=over, close=True)

    while client.load.running:
        await client.exchange(get)
        client.leave()
        await client.load.pause(client.random.uniform(0.0, 0.3))


async def websocket(client: Client, rate: float) -> None:
    """WebSockets that live 1 to 5 s and exchange a few messages at a time; half of them offer compression."""
    while client.load.running:
        deflate = client.random.random() < 0.5
        await chat(client.load, client.kind, client.load.stretch * client.random.uniform(1.0, 5.0), deflate)
        await client.load.pause(client.random.uniform(0.0, 0.3))


@dataclasses.dataclass(frozen=True, slots=True)
class Kind:
    """How much of a kind of load there is."""

    name: str
    run: Callable[[Client, float], Awaitable[None]]
    users: int
    rate: float = 0.0  # requests/s of all its users together, where the kind is paced
    keep: bool = True  # its users mean to keep their connections
    prompt: bool = False  # sent at once and answered at once: the latency is the server's
    named: bool = False  # runs only if it is named


KINDS = (
    Kind("keep-alive", keep_alive, users=6, rate=300, prompt=True),
    Kind("idle keep-alive", idle, users=40, prompt=True),
    Kind("one-shot", one_shot, users=6, rate=60, keep=False, prompt=True),
    Kind("split head", split, users=12),
    Kind("pipelined", pipelined, users=5, rate=100),
    Kind("slow upload", upload, users=8),
    Kind("slow response", slow, users=8),
    Kind("stream", stream, users=8),
    Kind(HTTP_1_0, until_close, users=4, keep=False),
    Kind("WebSocket", websocket, users=8),
    Kind(surviving_websocket.KIND, surviving_websocket.surviving_websocket, users=24, named=True),
    Kind(surviving_stream.KIND, surviving_stream.surviving_stream, users=18, named=True),
    Kind("HTTP/2, 1 at once", http2_kinds.at_once(1), users=6, rate=60, prompt=True, named=True),
    Kind("HTTP/2, 4 at once", http2_kinds.at_once(4), users=4, rate=100, prompt=True, named=True),
    Kind("HTTP/2, 32 at once", http2_kinds.at_once(32), users=2, rate=100, prompt=True, named=True),
    Kind("HTTP/2, idle", http2_kinds.idle, users=20, prompt=True, named=True),
    Kind("HTTP/2, one-shot", http2_kinds.one_shot, users=4, rate=30, keep=False, prompt=True, named=True),
    Kind("HTTP/2, split frames", http2_kinds.split, users=10, named=True),
    Kind("HTTP/2, resets", http2_kinds.resets, users=3, rate=60, named=True),
    Kind("HTTP/2, slow upload", http2_kinds.slow_upload, users=4, keep=False, named=True),
    Kind("HTTP/2, slow response", http2_kinds.slow_response, users=4, keep=False, named=True),
    Kind("HTTP/2, event stream", http2_kinds.events, users=6, keep=False, named=True),
    Kind(http2_surviving.KIND, http2_surviving.surviving, users=10, rate=30, named=True),
    Kind("HTTP/2, slow reader", http2_kinds.slow_reader, users=4, keep=False, named=True),
)
HTTP2 = tuple(kind.name for kind in KINDS if kind.name.startswith("HTTP/2") and kind.name != http2_surviving.KIND)
"""What is sent with `--http2`. Those of them that keep their connections have short requests alone."""
SURVIVING = (surviving_websocket.KIND, surviving_stream.KIND, "one-shot", "keep-alive")
"""Connections that survive reloads, and requests beside them."""
HTTP2_SURVIVING = (http2_surviving.KIND, "HTTP/2, 4 at once", "HTTP/2, one-shot")
"""The same over HTTP/2."""


def users(load: Load, names: Sequence[str] = ()) -> list[Awaitable[None]]:
    """All virtual users of the mixed load, to be run at once; of the kinds in `names` alone, if there are any."""
    kinds = [kind for kind in KINDS if (kind.name in names if names else not kind.named)]
    return [user(load, kind) for kind in kinds for _ in range(kind.users)]


async def user(load: Load, kind: Kind) -> None:
    """One virtual user."""
    client = Client(load, kind.name, kind.keep)
    await load.pause(client.random.uniform(0.0, 1.0))  # not all at the same moment
    await kind.run(client, load.scale * kind.rate / kind.users)
    client.leave()
