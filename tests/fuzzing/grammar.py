"""What a child of the listener may say, and everything that it must not: packets, frames and their mutations.

Everything is drawn from a `random.Random`, so that a seed is a run. A draw is made of real packets with plausible
members; some are then mutated: other types, sizes and depths, members left out, added or twice, bytes changed.
"""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from typing import Any, Final

import msgpack

Values = dict[str, Any]

WORDS: Final = ("a", "b", "topic", "serve:dead", "serve:x", "k1", "k2", "", "é", "x" * 300, "\0", "a\nb")
NUMBERS: Final = (
    *(-(2**63), -(2**31), -2, -1, 0, 1, 2, 3, 7, 255, 2**16, 2**31, 2**53, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1),
    *(0.0, 0.5, -0.5, 1e9, 1e18, 1e308, float("inf"), float("-inf"), float("nan")),
)


def word(draw: random.Random) -> str:
    return draw.choice(WORDS) if draw.random() < 0.9 else "x" * draw.choice((199, 200, 201, 1_001, 5_000, 60_000))


def rarely(draw: random.Random, this: Any, otherwise: Any) -> Any:
    """What ends a child, so that it is not all that it says."""
    return this if draw.random() < 0.01 else otherwise


def strange(draw: random.Random, depth: int = 0) -> Any:
    """A value of any type and size."""
    kind = draw.randrange(10)
    if kind < 4:
        return draw.choice(NUMBERS)
    if kind < 6:
        return word(draw)
    if kind == 6:
        return draw.choice((None, True, False, b"", b"\xff" * 10))
    if depth > 3:
        return None
    if kind == 7:
        return [strange(draw, depth + 1) for _ in range(draw.choice((0, 1, 3, 40)))]
    if kind == 8:
        return {word(draw): strange(draw, depth + 1) for _ in range(draw.choice((0, 1, 3, 40)))}
    nested: Any = draw.choice(NUMBERS)
    for _ in range(draw.choice((10, 100, 400))):
        nested = [nested] if draw.random() < 0.5 else {"a": nested}
    return nested


def mutated(draw: random.Random, values: Any) -> Any:
    """The same with something else somewhere."""
    if isinstance(values, dict) and values and draw.random() < 0.9:
        changed = dict(values)
        key = draw.choice(list(changed))
        match draw.randrange(5):
            case 0:
                del changed[key]
            case 1:
                changed[word(draw)] = strange(draw)
            case 2:
                changed[key] = mutated(draw, changed[key])
            case _:
                changed[key] = strange(draw)
        return changed
    if isinstance(values, list) and values and draw.random() < 0.9:
        listed = list(values)
        place = draw.randrange(len(listed))
        match draw.randrange(5):
            case 0:
                del listed[place]
            case 1:
                listed += [listed[place]] * draw.choice((1, 10, 3_000))
            case 2:
                listed[place] = strange(draw)
            case _:
                listed[place] = mutated(draw, listed[place])
        return listed
    return strange(draw)


def scrambled(draw: random.Random, data: bytes) -> bytes:
    """The same bytes, some of them others."""
    raw = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 8))):
        place = draw.randrange(len(raw) + 1)
        match draw.randrange(5):
            case 0:
                del raw[place : place + draw.choice((1, 2, 50))]
            case 1:
                raw[place:place] = draw.randbytes(draw.choice((1, 2, 50)))
            case 2:
                raw[place:place] = draw.choice((b"[", b"{", b"\x91", b"\x81", b'{"a":')) * draw.choice((100, 20_000))
            case 3:
                raw[place:place] = raw[: draw.choice((10, 1_000))] * draw.choice((1, 40))
            case _ if place < len(raw):
                raw[place] = draw.randrange(256)
    return bytes(raw[: draw.choice((1_000, 199_000, 210_000))])


# Packets of the channel


def channel_packets(draw: random.Random, *, agent: bool) -> list[Callable[[], Values]]:
    """Ways to make one of those that a worker or an agent may say."""
    window = {"signal": draw.randrange(70), "loop_thread": draw.getrandbits(47)}
    both: list[Callable[[], Values]] = [
        lambda: {"type": "hello", "protocol": draw.choice(([0, 1], [0, 2], [9, 9], [])), "window": window},
        lambda: {"type": "failed", "message": word(draw), "detail": "x" * draw.randrange(9), "usage": True},
        lambda: {"type": "finished", "cut": draw.randrange(3), "handed_over": draw.randrange(3)},
        lambda: {"type": word(draw), "more": strange(draw)},
    ]
    if agent:
        one = ("prepared", "entered", "returned")
        return [*both, lambda: {"type": draw.choice(one)}, lambda: {"type": "waits", "holder": draw.randrange(9999)}]
    pair = draw.choice(("withdrawn", "orphaned"))
    return [
        *both,
        lambda: {"type": draw.choice(("ready", "accepts"))},
        lambda: {"type": "recycle", "reason": word(draw)},
        lambda: {"type": pair, "pair": draw.randrange(12)},
    ]


def packet(draw: random.Random, values: Values, wrong: float) -> bytes:
    """A packet of these members, or with the probability `wrong` something like it."""
    if draw.random() >= wrong:
        return json.dumps(values, default=repr).encode()
    if draw.random() < 0.6:
        return json.dumps(mutated(draw, values), default=repr).encode()
    return scrambled(draw, json.dumps(values, default=repr).encode())


# Frames of the link and of the store


def frame(draw: random.Random, kind: Any, head: Any, body: bytes, wrong: float) -> bytes:
    """A frame, or with the probability `wrong` something like it."""
    bad = draw.random() < wrong
    way = draw.randrange(5) if bad else -1
    if way in (0, 1, 2):
        head = mutated(draw, head)
    if way == 3:
        body = scrambled(draw, body)
    try:
        packed: bytes = msgpack.packb([strange(draw) if bad and draw.random() < 0.05 else kind, head])
    except (OverflowError, ValueError, TypeError):
        packed = msgpack.packb([kind, {}])
    length = len(packed) if not bad or draw.random() < 0.9 else draw.randrange(65536)
    data = struct.pack(">H", min(length, 65535)) + packed + body
    return scrambled(draw, data) if way == 4 else data


def link_frame(draw: random.Random, member: int, wrong: float) -> bytes:
    """Something that a worker or an agent says to the hub."""
    kind, head, body = draw.choice(LINK)(draw, member)
    return frame(draw, kind, head, body, wrong)


Made = tuple[str, Any, bytes]


def _send(draw: random.Random, member: int) -> Made:
    found, bodies = [], []
    for _ in range(draw.choice((1, 1, 8, 60))):
        body = bytes(draw.choice((0, 1, 100, 2_000)))
        id = f"{member:x}.{draw.getrandbits(32):x}"
        found.append(
            [id, draw.randrange(3), draw.choice("abcd"), draw.randrange(4), 3, draw.randrange(-1, 4), len(body)]
        )
        bodies.append(body)
    return "msg.send", {"m": found}, b"".join(bodies)


def _define(draw: random.Random, member: int) -> Made:
    timing = draw.choice(
        (
            {"every": rarely(draw, 2**40, draw.choice((1, 100, 1000, 10**9)))},
            {
                "cron": draw.choice(
                    ("* * * * *", "* * * * * *", "0 0 30 2 *", "0 0 29 2 1", "*/0 * * * *", "1-9 1-2 * * *")
                )
            },
            {"cron": ",".join(map(str, range(60))) + " * * * *"},
            {"cron": draw.choice(("0-59/1", "L", "99999999999", "1-99999999", "²")) + " * * * *"},
        )
    )
    head = {
        "name": draw.choice("pqrs") + str(draw.randrange(draw.choice((3, 2_000)))),
        "on": draw.choice(("one", "all", "agent", "moon")),
        "overlap": draw.choice(("skip", "queue", "allow")),
        "jitter": rarely(draw, 10**12, draw.choice((0, 5, 10**7))),
        "retry": draw.randrange(4),
        "timeout": draw.choice((0, 100)),
        "immediate": draw.random() < 0.3,
        "tz": draw.choice(("UTC", "X/Y", "Europe/Berlin")),
        "where": "file.py:1",
        "function": f"m:f{draw.randrange(3)}",
    } | timing
    return "schedule.define", head, draw.choice((b"", b"", b"TZif2" + draw.randbytes(200)))


LINK: Final[tuple[Callable[[random.Random, int], Made], ...]] = (
    _send,
    _send,
    _define,
    lambda draw, _: ("up", {}, b""),
    lambda draw, _: ("msg.topics", {"topics": {t: draw.choice((0, 1, 64, 10_000)) for t in "abcd"}}, b""),
    lambda draw, _: ("msg.topics", {"topics": {f"t{draw.randrange(4_000)}": 1 for _ in range(100)}}, b""),
    lambda draw, _: ("msg.done", {"m": [[draw.randrange(300), draw.random() < 0.5, 0] for _ in range(8)]}, b""),
    lambda draw, _: ("msg.return", {"m": [draw.randrange(300) for _ in range(8)], "all": draw.random() < 0.1}, b""),
    lambda draw, member: ("msg.withdraw", {"m": [f"{member:x}.{draw.getrandbits(32):x}"]}, b""),
    lambda draw, _: (
        "state.write",
        {
            "id": draw.randrange(9999),
            "op": draw.choice(("set", "delete", "incr", "cas")),
            "by": draw.choice((1, -1, 2**62)),
            "key": draw.choice(WORDS),
            "timeout": draw.choice((0.0, 0.1, 5.0)),
            "version": rarely(draw, None, draw.choice((0, 1, 5))),
        },
        msgpack.packb(draw.choice((1, "v", [1] * 50, None))) if draw.random() < 0.8 else draw.randbytes(20),
    ),
    lambda draw, _: ("state.read", {"id": draw.randrange(9999), "key": draw.choice(WORDS), "timeout": 1.0}, b""),
    lambda draw, _: ("state.seen", {"seq": rarely(draw, 10**6, 0)}, b""),
    lambda draw, _: ("state.leave", {}, b""),
    lambda draw, _: (
        "schedule.request",
        {
            "id": draw.randrange(9999),
            "do": draw.choice(("pause", "resume", "run", "list", "next", "fly")),
            "name": draw.choice("pqrs") + str(draw.randrange(3)),
        },
        b"",
    ),
    lambda draw, _: (
        "schedule.ended",
        {
            "run": draw.randrange(99),
            "outcome": draw.choice(("ok", "failed", "cut", "running", "died", "moon")),
            "seconds": draw.random(),
            "text": word(draw)[:900],
        },
        b"Traceback\xff",
    ),
    lambda draw, _: ("schedule.overdue", {"run": draw.randrange(99)}, b""),
    lambda draw, _: (word(draw)[:100], {"a": strange(draw)}, b""),
)


def store_frame(draw: random.Random, wrong: float) -> bytes:
    """Something that a store process says without having been asked."""
    kind, head, body = draw.choice(STORE)(draw)
    return frame(draw, kind, head, body, wrong)


def _entries(draw: random.Random) -> bytes:
    some = [
        [draw.choice(("a", "b", "serve:schedule:p1", "serve:history:p1")), draw.randrange(9), b"\x01"] for _ in range(9)
    ]
    return msgpack.packb(some) if draw.random() < 0.9 else draw.randbytes(30)


STORE: Final[tuple[Callable[[random.Random], Made], ...]] = (
    lambda draw: ("store.snapshot", {"first": draw.random() < 0.5}, _entries(draw)),
    lambda draw: ("store.up", {"server": "s", "shared": draw.random() < 0.5, "at": ["e", draw.randrange(9)]}, b""),
    lambda draw: ("store.down", {"text": word(draw)[:900]}, b""),
    lambda draw: ("store.refuses", {"text": draw.choice(("", "full"))}, b""),
    lambda draw: (
        "store.change",
        {"key": draw.choice(WORDS), "version": draw.randrange(99), "deleted": False},
        b"\x01",
    ),
    lambda draw: (
        "store.change",
        {"key": draw.choice(("serve:schedule:p1", "serve:history:p1")), "version": draw.randrange(99)},
        msgpack.packb(strange(draw), default=repr, strict_types=False) if draw.random() < 0.5 else draw.randbytes(9),
    ),
    lambda draw: ("store.written", {"id": draw.randrange(50), "key": "a", "version": draw.randrange(99)}, b"\x01"),
    lambda draw: ("store.refused", {"id": draw.randrange(50), "code": "conflict", "text": "x", "version": 1}, b""),
    lambda draw: ("store.value", {"id": draw.randrange(50), "version": 1, "key": "a", "exists": True}, b"\x01"),
    lambda draw: ("store.sent", {"id": f"{draw.randrange(9)}/x"}, b""),
    lambda draw: (
        "store.message",
        {"server": "o", "at": ["e", 1], "topic": draw.choice("abcd"), "workers": True, "origin": ["worker", 0, 1]},
        b"\x01",
    ),
    lambda draw: ("store.at", {"at": ["e", draw.randrange(9)]}, b""),
    lambda draw: ("store.granted", {"id": draw.randrange(50), "token": draw.randrange(99), "renewed_until": 1e6}, b""),
    lambda draw: ("store.taken", {"id": draw.randrange(50), "why": draw.choice(("granted", "moon")), "text": ""}, b""),
    lambda draw: ("store.lost", {"name": "p1", "token": draw.randrange(99), "text": ""}, b""),
    lambda draw: ("store.renewed", {"name": "p1", "token": draw.randrange(99), "renewed_until": draw.random()}, b""),
    lambda draw: (
        "store.say",
        {"level": 30, "event": draw.choice(("store_data_lost", "reload_finished")), "text": "t"},
        b"",
    ),
    lambda draw: ("store.failed", {"text": "no", "status": draw.choice((0, 1, 2, 300))}, b""),
    lambda draw: (word(draw)[:100], {}, b""),
)


CONTROL: Final = (
    *("status", "schedules", "schedule", "config", "scale", "drain", "stacks", "follow", "reload", "shared"),
    *("messages", "fly"),
)


def control_line(draw: random.Random, wrong: float) -> bytes:
    """A request on the control socket; none that ends the server."""
    values: Values = {"version": 1, "command": draw.choice(CONTROL), "to": draw.randrange(1, 4), "timeout": 0.05}
    do = draw.choice(("pause", "resume", "list", "get", "set", "delete", "watch"))
    values |= {"name": "p1", "do": do, "follow": draw.random() < 0.2, "wait": False, "value": {"a": [1, None]}}
    values |= {"off": True}
    return packet(draw, values, wrong).replace(b'"stop"', b'"fly"').replace(b"\n", b" ") + b"\n"
