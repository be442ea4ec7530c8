"""The kinds of load: each is a coroutine that is one virtual user until the run ends.

`KINDS` says how many users of each kind run at once. Paced kinds keep roughly to a rate, divided among their users.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Awaitable, Callable
from random import Random

from loadtest.app import echo_answer
from loadtest.client import Client, Load, Request

HOST = b"loadtest"


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


async def keep_alive(load: Load, rate: float) -> None:
    """POSTs back to back on one connection, in bursts."""
    client = Client(load, "keep-alive")
    while load.running:
        burst = client.random.randint(1, 30)
        for _ in range(burst):
            if load.running:
                await client.exchange(lambda number: post(number, some_body(client.random)))
        await load.pause(client.random.uniform(0.2, 1.8) * burst / rate)
    client.leave()


async def idle(load: Load, rate: float) -> None:
    """A connection that is idle for 0 to 3 s between its requests."""
    client = Client(load, "idle keep-alive")
    while load.running:
        await load.pause(client.random.uniform(0.0, 3.0))
        await client.exchange(lambda number: post(number, some_body(client.random)))
    client.leave()


async def one_shot(load: Load, rate: float) -> None:
    """A new connection for each request; half of them say `Connection: close`."""
    client = Client(load, "one-shot")
    while load.running:
        close = client.random.random() < 0.5
        await client.exchange(lambda number: post(number, some_body(client.random), close=close))  # noqa: B023
        client.leave()
        await load.pause(client.random.uniform(0.2, 1.8) / rate)


async def split(load: Load, rate: float) -> None:
    """Requests whose head arrives in pieces, cut anywhere, with pauses between them."""
    client = Client(load, "split head")

    def cut(number: int) -> Request:
        whole = post(number, some_body(client.random), pad=client.random.randrange(300))
        data = whole.pieces[0][1]
        cuts = sorted(client.random.sample(range(1, data.index(b"\r\n\r\n") + 4), client.random.randint(1, 4)))
        edges = [0, *cuts, len(data)]
        pauses = [0.0, *(client.random.choice((0.002, 0.02, 0.1, 0.3, 1.0)) for _ in cuts)]
        pieces = [data[a:b] for a, b in itertools.pairwise(edges)]
        return dataclasses.replace(whole, pieces=list(zip(pauses, pieces, strict=True)))

    while load.running:
        await client.exchange(cut)
        await load.pause(client.random.uniform(0.0, 0.5))
    client.leave()


async def pipelined(load: Load, rate: float) -> None:
    """2 to 8 requests in one write; some make the handler wait, and sometimes the last one comes in two parts."""
    client = Client(load, "pipelined")

    def one(number: int) -> Request:
        wait = client.random.choice((0.0, 0.0, 0.0, 0.0, 0.03))
        return post(number, some_body(client.random), wait=wait)

    def in_two(number: int) -> Request:
        whole = one(number)
        data = whole.pieces[0][1]
        at = client.random.randrange(1, len(data))
        pause = client.random.choice((0.01, 0.1, 0.5))
        return dataclasses.replace(whole, pieces=[(0.0, data[:at]), (pause, data[at:])])

    while load.running:
        count = client.random.randint(2, 8)
        last = in_two if client.random.random() < 0.3 else one
        await client.exchanges([one] * (count - 1) + [last])
        await load.pause(client.random.uniform(0.2, 1.8) * count / rate)
    client.leave()


@dataclasses.dataclass(frozen=True, slots=True)
class Kind:
    """How much of a kind of load there is."""

    run: Callable[[Load, float], Awaitable[None]]
    users: int
    rate: float = 0.0  # requests/s of all its users together, where the kind is paced


KINDS = (
    Kind(keep_alive, users=6, rate=300),
    Kind(idle, users=40),
    Kind(one_shot, users=6, rate=60),
    Kind(split, users=12),
    Kind(pipelined, users=5, rate=100),
)


def users(load: Load, kinds: tuple[Kind, ...] = KINDS) -> list[Awaitable[None]]:
    """All virtual users of the mixed load, to be run at once."""
    return [kind.run(load, load.scale * kind.rate / kind.users) for kind in kinds for _ in range(kind.users)]
