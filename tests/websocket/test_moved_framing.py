"""A framing that is moved to another process at any byte reads on as if it had stayed; pure."""

from __future__ import annotations

import itertools
import json
import random
import tracemalloc
import zlib
from collections import deque
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_asgi.websocket.compression import TAIL, Deflate
from serve_asgi.websocket.deflate_window import between_blocks, stream_after, window_of
from serve_asgi.websocket.framing import UNBOUNDED, End, MessageFraming
from tests.websocket.websocket_server import frame

TEXT = random.Random(15).randbytes(90_000).hex().encode()
"""What messages are cut from: a compressor finds a piece of it again as long as its window reaches back to it."""
EMPTY_BLOCK = b"\0" + TAIL
"""A stored block of nothing, whole."""


class Client:
    """Who sends: one compressor for all its messages, or one for each."""

    def __init__(self, bits: int = 12, takeover: bool = True) -> None:
        self.bits = bits
        self.takeover = takeover
        self._compressor = zlib.compressobj(9, wbits=-bits)

    def message(self, data: bytes, final: bool = False) -> bytes:
        """The payload of a compressed message; `final`: its stream ends with it (BFINAL), and what follows is new."""
        compressor = self._compressor
        if final:
            self._compressor = zlib.compressobj(9, wbits=-self.bits)
            return compressor.compress(data) + compressor.flush() + b"\0"
        if not self.takeover:
            self._compressor = zlib.compressobj(9, wbits=-self.bits)
        return (compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH))[: -len(TAIL)]


def fragments(kind: int, payload: bytes, cuts: list[int], rsv: int = 0, ping: bool = False) -> bytes:
    """The frames of a message that is cut at these places, with pings between them."""
    places = [0, *sorted(cut % (len(payload) + 1) for cut in cuts), len(payload)]
    stream = b""
    for number, (start, end) in enumerate(itertools.pairwise(places)):
        first, last = number == 0, number == len(places) - 2
        stream += frame(kind if first else 0, payload[start:end], fin=last, rsv=rsv if first else 0)
        if ping and not last:
            stream += frame(9, b"%d" % number)
    return stream


def deflate(client: Client) -> Deflate:
    return Deflate(12, client.bits, True, client.takeover)


class Reader:
    """A connection as far as it matters here: its framing, which may move, and the messages that wait."""

    def __init__(self, deflate: Deflate | None, max_size: int) -> None:
        self.max_size = max_size
        self.framing = MessageFraming(deflate, max_size)
        self.framing.keep()
        self.waiting: deque[str | bytes] = deque()
        self.taken: list[str | bytes] = []
        self.end: tuple[int, bool] | None = None
        self.output = b""
        self.moves = 0

    def feed(self, data: bytes, room: int = UNBOUNDED, asked: bool = True) -> None:
        for event in self.framing.receive(data, room, asked):
            if isinstance(event, End):
                assert self.end is None
                self.end = event.code, event.failed
            else:
                self.waiting.append(event)
        self.output += self.framing.output

    def take(self, messages: int) -> None:
        while self.waiting and messages:
            self.taken.append(self.waiting.popleft())
            messages -= 1

    def move(self, room: int = UNBOUNDED, asked: bool = True) -> bool:
        """To a new framing, by what can travel. False if it has to stay for now."""
        old = self.framing
        if not old.can_move():
            return False
        travels = old.unread(self.waiting)
        assert old.unread(self.waiting) == travels  # nothing has changed by telling
        new: Deflate | None = None
        if old.deflate is not None:
            new = Deflate.resumed(json.loads(json.dumps(old.deflate.moved())), old.deflate.window)
        self.waiting.clear()
        self.framing = MessageFraming(new, self.max_size)
        self.framing.keep()
        self.feed(travels, room, asked)
        self.moves += 1
        return True

    def outcome(self) -> tuple[list[str | bytes], tuple[int, bool] | None, bytes]:
        """All messages, those that wait included, in order, how it ended, and the pongs."""
        while self.framing.behind:
            self.feed(b"")
        self.take(len(self.waiting))
        return self.taken, self.end, self.output


def unmoved(stream: bytes, deflate: Deflate | None, max_size: int) -> Reader:
    reader = Reader(deflate, max_size)
    reader.feed(stream)
    return reader


# Any stream, moved anywhere


class Sent(NamedTuple):
    """One message of a client, or what it does wrong."""

    kind: int
    start: int
    size: int
    how: str
    cuts: list[int]
    ping: bool

    def frames(self, client: Client, max_size: int) -> bytes:
        data = TEXT[self.start : self.start + self.size]
        if self.how == "plain":
            return fragments(self.kind, data, self.cuts, 0, self.ping)
        if self.how == "wide":
            return fragments(1, data.decode().replace("a", "é").replace("b", "\U0001f600").encode(), self.cuts)
        if self.how == "bomb":
            data = bytes(2 * max_size if self.ping else max_size)
        payload = client.message(data, final=self.how == "final")
        if self.how == "padded":
            payload = EMPTY_BLOCK * (self.size % 50) + payload
        return fragments(self.kind, payload, self.cuts, 4, self.ping)


sent = st.builds(
    Sent,
    st.sampled_from([1, 2]),
    st.integers(0, 3) | st.integers(0, 20_000),
    st.integers(0, 20) | st.integers(0, 700) | st.integers(0, 20_000),
    st.sampled_from(["plain", "wide", "packed", "packed", "packed", "final", "padded", "bomb"]),
    st.lists(st.integers(0, 40_000), max_size=3),
    st.booleans(),
)
wrong = st.sampled_from(
    [
        b"",
        frame(8, b"\x03\xe8bye"),
        frame(0, b"a"),
        frame(1, b"\xff"),
        frame(1, b"\xe2\x82", fin=False) + frame(0, b"a"),
        frame(2, b"\xff" * 9, rsv=4),
        frame(2, bytes(1 << 20)),
        frame(1, b"a", mask=False),
    ]
)


class Step(NamedTuple):
    """A read, and what happens after it."""

    size: int
    room: int
    asked: bool
    takes: int
    moves: bool


steps = st.lists(
    st.builds(
        Step,
        st.integers(1, 9) | st.integers(1, 1000) | st.integers(1, 60_000),
        st.sampled_from([UNBOUNDED, 64_000, 1000, 0, -1]),
        st.booleans(),
        st.integers(0, 3),
        st.booleans(),
    ),
    min_size=1,
    max_size=12,
)


@settings(deadline=None)
@given(
    st.lists(sent, max_size=6),
    wrong,
    st.integers(0, 200_000) | st.none(),
    steps,
    st.integers(9, 15),
    st.booleans(),
    st.sampled_from([300, 30_000, 200_000]),
)
def test_a_moved_framing_reads_what_an_unmoved_one_reads(
    messages: list[Sent],
    wrong: bytes,
    cut: int | None,
    steps: list[Step],
    bits: int,
    takeover: bool,
    max_size: int,
) -> None:
    client = Client(bits, takeover)
    stream = b"".join(each.frames(client, max_size) for each in messages) + wrong
    if cut is not None:
        stream = stream[: cut % (len(stream) + 1)]
    expected = unmoved(stream, deflate(client), max_size).outcome()
    reader = Reader(deflate(client), max_size)
    position = 0
    for step in itertools.cycle(steps):
        if position >= len(stream):
            break
        reader.feed(stream[position : position + step.size], step.room, step.asked)
        position += step.size
        reader.take(step.takes)
        if step.moves and reader.moves < 5:
            assert reader.move(step.room, step.asked) or reader.end is not None
    reader.move()
    assert reader.outcome() == expected


# Each state, without chance: moved at each byte


def streams() -> dict[str, tuple[bytes, Client]]:
    """Streams by what is in them."""

    def packed(client: Client, *messages: bytes, cuts: list[int], final: bool = False) -> tuple[bytes, Client]:
        payloads = [client.message(each, final) for each in messages]
        return b"".join(fragments(2, payload, cuts, 4, ping=True) for payload in payloads), client

    line = TEXT[:40]
    client = Client()
    mixed = frame(1, client.message(line), rsv=4) + frame(2, line) + frame(9)
    mixed += fragments(1, client.message(line * 2), [3], 4) + frame(1, line) + frame(1, client.message(line), rsv=4)
    return {
        "plain": (
            frame(1, b"one") + frame(2) + fragments(1, "zwei é \U0001f600".encode(), [6, 9, 9], ping=True),
            Client(),
        ),
        "long": (frame(2, bytes(130)) + frame(9, b"?") + frame(10) + frame(2, b"x"), Client()),
        "takeover": packed(Client(), line, line, b"", line + line, cuts=[5, 11]),
        "no takeover": packed(Client(takeover=False), line, line, line, cuts=[5, 5]),
        "streams that end": packed(Client(), line, line, line, cuts=[7], final=True),
        "mixed": (mixed, client),
        "bomb": packed(Client(), line, bytes(90_000), line, cuts=[40]),
        "too large": packed(Client(), line, bytes(100_001), line, cuts=[40]),
        "closed": (frame(1, b"a") + frame(8, b"\x03\xe8bye") + frame(1, b"b"), Client()),
        "not UTF-8": (fragments(1, b"ab\xe2\x82a", [1, 3]) + frame(1, b"b"), Client()),
        "continuation of nothing": (frame(1, b"a") + frame(0, b"b"), Client()),
    }


@pytest.mark.parametrize("name", streams())
@pytest.mark.parametrize("asked", [True, False])
def test_moved_at_each_byte(name: str, asked: bool) -> None:
    stream, client = streams()[name]
    expected = unmoved(stream, deflate(client), 100_000).outcome()
    for place in range(len(stream) + 1):
        reader = Reader(deflate(client), 100_000)
        reader.feed(stream[:place], 1000, asked)
        if place % 3 == 0:
            reader.take(1)
        assert reader.move(1000, asked) or reader.end is not None
        assert reader.move(1000, asked) or reader.end is not None
        reader.feed(stream[place:], 1000, asked)
        assert reader.outcome() == expected, f"moved after {place} bytes"


def test_what_has_come_out_is_not_read_again() -> None:
    reader = Reader(None, 1000)
    reader.feed(frame(1, b"taken") + frame(1, b"waiting") + frame(2, b"be", fin=False))
    reader.take(1)
    assert reader.framing.unread(reader.waiting) == b"\x81\x87\0\0\0\0waiting\x02\x82\0\0\0\0be"
    assert MessageFraming(None, 1000).unread([]) == b""
    assert MessageFraming(None, 1000).unread(["é", b"x" * 70_000])[:18] == (
        b"\x81\x82\0\0\0\0" + "é".encode() + b"\x82\xff" + (70_000).to_bytes(8)
    )


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("more", [0, 1])
def test_the_limit_of_a_message_is_what_it_was(packed: bool, more: int) -> None:
    """The fragments that have come travel as one frame, which is neither refused for it nor let through."""
    data = TEXT[: 1000 + more]
    payload = Client().message(data) if packed else data
    stream = fragments(2, payload, [400, 600], 4 if packed else 0)
    for place in range(len(stream)):
        reader = Reader(deflate(Client()), 1000)
        reader.feed(stream[:place])
        assert reader.move() or reader.end is not None
        reader.feed(stream[place:])
        assert reader.outcome()[:2] == (([], (1009, True)) if more else ([data], None))


# When it can move


def test_only_an_open_one_can_move() -> None:
    assert MessageFraming(None, 1000).can_move()
    closing = MessageFraming(None, 1000)
    closing.close(1000)
    assert not closing.can_move()
    closed, failed, late = (MessageFraming(None, 1000) for _ in range(3))
    closed.receive(frame(8, b"\x03\xe8"))
    failed.receive(frame(0))
    late.fail(1011, "late")
    assert [each.can_move() for each in (closed, failed, late)] == [False] * 3


def test_compression_can_move_if_it_was_to_be_kept() -> None:
    """From the beginning, or later: zlib knows what it has read. But what has come of a message it does not."""
    client = Client()
    reader = Reader(None, 100_000)
    reader.framing = MessageFraming(deflate(client), 100_000)
    first, second, third = (fragments(1, client.message(TEXT[:50]), [10], 4) for _ in range(3))
    reader.feed(first + second[:-1])
    assert not reader.framing.can_move()
    reader.framing.keep()
    reader.framing.keep()
    assert not reader.framing.can_move()
    reader.feed(second[-1:])
    assert reader.move()
    reader.feed(third)
    assert reader.outcome()[0] == [TEXT[:50].decode()] * 3


def test_a_message_that_is_mostly_padding_is_not_kept() -> None:
    """Who sends blocks of nothing without end would have the server keep them all."""
    framing = MessageFraming(Deflate(12, 12, True, True), 1000)
    framing.keep()
    padding = frame(0, EMPTY_BLOCK * 100, fin=False)
    tracemalloc.start()
    try:
        assert framing.receive(frame(2, b"", rsv=4, fin=False)) == []
        assert framing.receive(padding) == []
        assert framing.can_move()
        for _ in range(300):
            assert framing.receive(padding) == []
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert not framing.can_move()
    assert peak < 50_000
    assert framing.receive(frame(0, Client().message(b"after all"))) == [b"after all"]
    assert framing.can_move()


def test_a_message_that_ends_within_a_block_holds_the_connection_where_it_is() -> None:
    """zlib reads on as if nothing were wrong; what it has half read does not travel."""
    for payload, can_move in ((b"\0\x09\0\xf6\xff123", False), (b"\0\x03\0\xfc\xff123\0", True), (b"\x07\xff", False)):
        framing = MessageFraming(Deflate(12, 12, True, True), 1000)
        framing.keep()
        framing.receive(frame(2, payload, rsv=4))
        assert framing.can_move() is can_move, payload


def test_text_before_a_stream_that_has_ended_is_out_of_reach_as_before() -> None:
    """RFC 7692 7.2.3.4: the new stream knows nothing of the old one, wherever it is read."""
    client = Client()
    client.message(TEXT[:50])
    refers_back = frame(1, client.message(TEXT[:50]), rsv=4)
    for moves in (0, 1):
        reader = Reader(deflate(client), 1000)
        reader.feed(frame(1, Client().message(TEXT[:50], final=True), rsv=4))
        for _ in range(moves):
            assert reader.move()
        reader.feed(refers_back)
        assert reader.outcome()[:2] == ([TEXT[:50].decode()], (1002, True))


# The streams of DEFLATE


@pytest.mark.parametrize("server_takeover", [True, False])
def test_what_is_sent_after_the_move_is_read_by_the_client(server_takeover: bool) -> None:
    """By the decompressor that it has had all the time."""
    client = zlib.decompressobj(-12)
    reader = Reader(Deflate(12, 12, server_takeover, True), 1000)
    for _ in range(3):
        for _ in range(2):
            sent = reader.framing.binary(TEXT[:100])
            assert client.decompress(sent[2:] + TAIL) == TEXT[:100]
        assert reader.move()


@pytest.mark.parametrize("bits", range(9, 16))
def test_the_window_is_what_a_stream_has_come_to(bits: int) -> None:
    size = 1 << bits
    for length in (0, 1, 2, 4, 5, 6, 8, 9, 257, 258, 259, 511, size - 1, size, size + 1, 3 * size):
        data = TEXT[:length]
        stream = zlib.decompressobj(-bits)
        client = Client(bits)
        for start in range(0, length, 300):
            stream.decompress(client.message(data[start : start + 300]) + TAIL)
        assert between_blocks(stream)
        assert window_of(stream, bits) == data[-size:]
        again = stream_after(data[-size:], bits)
        assert window_of(again, bits) == data[-size:]
        assert again.decompress(client.message(data[-200:]) + TAIL) == data[-200:]


@pytest.mark.parametrize("distance", [*range(1, 40), *(1 << power for power in range(5, 16)), 24_576, 24_577, 32_767])
def test_a_match_of_any_distance_is_found(distance: int) -> None:
    """RFC 1951 3.2.5: the ranges of its table, at both ends."""
    assert window_of(stream_after(TEXT[:distance], 15), 15) == TEXT[:distance]
