"""What is checked of any bytes at all: the invariants of a client connection.

Shared by the coverage-guided fuzzer, by the plain test that replays its corpus, and by the random streams of
hypothesis. An input is two bytes that say how the rest is cut, what the application does and how it ends; and the rest,
which is what the client sends.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Final

from tests.http.memory import PARSERS, Behaviour, Host, Outcome, Then, cut

SMALL: Final = {"max_head_size": 1024, "max_target_size": 256, "max_headers": 12, "max_body_size": 512}
"""Limits that a short input can exceed."""

UPGRADE: Final = (
    b"GET /socket HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
)
DEFLATE: Final = b"Sec-WebSocket-Extensions: permessage-deflate\r\n"

_hosts: dict[tuple[str, bool], Host] = {}


def host(http: str, small: bool = False) -> Host:
    """Made once per process: what connections share is part of what is tested."""
    found = _hosts.get((http, small))
    if found is None:
        found = _hosts[http, small] = Host(http, **(SMALL if small else {}))
    return found


def close_hosts() -> None:
    """Give back what `host` made."""
    while _hosts:
        _hosts.popitem()[1].close()


def pieces_of(data: bytes, seed: int) -> list[bytes]:
    """The data in a few pieces (many for some seeds), always the same for the same seed."""
    chance = random.Random(seed)
    if seed % 8 == 7:
        return cut(data, range(len(data)))
    return cut(data, [chance.randrange(len(data) + 1) for _ in range(seed % 8)])


def verdict(outcome: Outcome, exact: bool) -> object:
    """What may not depend on how the bytes were cut: whole requests, answers, the end.

    With several defects and small limits, which one is named first may differ (not `exact`).
    """
    whole = [seen for seen in outcome.seen if seen.end == "whole"]
    answers = [(status if exact or number is not None else 0, number is None) for status, number in outcome.answers()]
    return whole, answers, outcome.ended


def check_stream(
    stream: bytes,
    cuts: Iterable[list[bytes]],
    small: bool = False,
    behaviour: Behaviour = Behaviour.READS,
    then: Then = Then.NOTHING,
) -> list[Outcome]:
    """The stream, in each of these ways of cutting it: the same for both parsers, and for every way.

    Where the application answers before it has read, or fails, the outcome may depend on what had arrived by then.
    """
    outcomes = []
    for pieces in cuts:
        try:
            first, second = (host(http, small).talk(pieces, behaviour, then) for http in PARSERS)
        except BaseException:
            _hosts.clear()  # they may still hold what is left of this connection
            raise
        assert first == second, f"the parsers disagree on {pieces}: {first} {second}"
        first.check()
        outcomes.append(first)
    if outcomes and behaviour in (Behaviour.READS, Behaviour.SLOW):
        wanted = verdict(outcomes[0], not small)
        for outcome in outcomes[1:]:
            assert verdict(outcome, not small) == wanted, f"{stream!r} depends on its cuts: {outcomes[0]} {outcome}"
    return outcomes


def check_http1(data: bytes) -> None:
    """One input of the fuzzer for HTTP/1.1."""
    if len(data) < 2:
        return
    stream = data[2:]
    small, then, behaviour = bool(data[1] & 1), Then(data[1] >> 1 & 3), Behaviour(data[1] >> 3 & 7)
    check_stream(stream, ([stream] if stream else [], pieces_of(stream, data[0])), small, behaviour, then)
    if data[1] & 64:
        check_travel(stream, pieces_of(stream, data[0]), small)


def check_travel(stream: bytes, pieces: list[bytes], small: bool = False) -> None:
    """The client sees nothing of a hand-over, wherever in its stream it happens."""
    if b"\r\n\r\n\r\n" in stream or stream.startswith(b"\r\n"):
        return  # another worker counts empty lines anew
    for http in PARSERS:
        stayed = host(http, small).talk([stream])
        travelled = host(http, small).talk(pieces, travels=True)
        travelled.check()
        assert verdict(stayed, not small) == verdict(travelled, not small), f"lost on the way: {stayed} {travelled}"


def check_websocket(data: bytes) -> None:
    """One input of the fuzzer for what follows an upgrade: frames, in any pieces, with or without compression."""
    if len(data) < 2:
        return
    stream = data[2:]
    head = UPGRADE + (DEFLATE if data[1] & 1 else b"") + b"\r\n"
    then, behaviour = Then(data[1] >> 1 & 3), Behaviour(data[1] >> 3 & 7)
    ends = []
    for pieces in ([head + stream], [head, *pieces_of(stream, data[0])]):
        outcome = host("httptools").talk(pieces, behaviour, then)
        if behaviour in (Behaviour.RAISES, Behaviour.SILENT):
            assert [status for status, _ in outcome.answers()] in ([403], [500]), outcome.output
            return
        assert outcome.answers() == [(101, None)], outcome.output
        ends.append(frames(outcome.output.partition(b"\r\n\r\n")[2]))
    if behaviour not in (Behaviour.READS, Behaviour.SLOW):
        return  # the end may depend on what had arrived
    # Messages may come in other fragments, but the end may not differ. (Of a compressed message with two defects,
    # either may be noticed first.)
    first, second = (next((content[:2] for opcode, content in sent if opcode == 8), None) for sent in ends)
    assert first == second or (data[1] & 1 and first and second), f"{stream!r} depends on its cuts: {ends}"


def frames(output: bytes) -> list[tuple[int, bytes]]:
    """Opcode and content of each frame that the server sent; all whole, none masked."""
    found: list[tuple[int, bytes]] = []
    while output:
        first, second = output[0], output[1]
        assert not second & 0x80, "a frame of the server is masked"
        size, start = second & 0x7F, 2
        if size >= 126:
            start = 4 if size == 126 else 10
            size = int.from_bytes(output[2:start], "big")
        assert len(output) >= start + size, "a frame of the server is not whole"
        closed = any(opcode == 8 for opcode, _ in found)
        assert not closed or first & 0x0F == 10, "a frame behind the close"  # pongs are due until the client's close
        found.append((first & 0x0F, output[start : start + size]))
        output = output[start + size :]
    return found
