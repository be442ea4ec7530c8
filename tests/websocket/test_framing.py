"""The framing alone: any stream gives the same in reads of any size, and the same as another implementation reads."""

from __future__ import annotations

import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.client import ClientProtocol
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Frame, Opcode
from websockets.protocol import OPEN, SERVER, Protocol
from websockets.uri import parse_uri

from serve_asgi.websocket.compression import MAX_STREAMS, TAIL, Deflate
from serve_asgi.websocket.framing import End, Event, MessageFraming, weigh
from tests.websocket.websocket_server import frame

MAX_SIZE = 400

pieces = st.one_of(
    st.tuples(st.just(1), st.text(max_size=150).map(str.encode)),
    st.tuples(st.just(1), st.binary(max_size=4)),
    st.tuples(st.just(2), st.binary(max_size=MAX_SIZE + 3)),
    st.tuples(st.just(9), st.binary(max_size=10)),
    st.tuples(st.just(10), st.just(b"")),
    st.tuples(st.just(8), st.just(b"\x03\xe8bye")),
    st.tuples(st.just(0), st.binary(max_size=3)),
)
frames = st.builds(
    lambda piece, fin, wrong: frame(*piece, fin=fin, mask=wrong != 1, rsv=4 if wrong == 2 else 0),
    pieces,
    st.sampled_from([True, True, True, False]),
    st.integers(0, 30),
)


def fed(stream: bytes, size: int, deflate: Deflate | None = None) -> tuple[list[Event], bytes]:
    """The events and the output for a stream that comes in reads of `size` bytes."""
    framing = MessageFraming(deflate, MAX_SIZE)
    events: list[Event] = []
    output = b""
    for start in range(0, len(stream), size):
        data = stream[start : start + size]
        message = framing.single(data)
        events += framing.receive(data) if message is None else [message]
        output += framing.output
    return events, output


@given(st.lists(frames, max_size=8), st.integers(1, 700), st.booleans())
def test_reads_of_any_size_give_the_same(stream: list[bytes], size: int, compress: bool) -> None:
    """Reads of one byte take the long way; larger ones go the short ways where they can."""
    whole = b"".join(stream)
    expected, output = fed(whole, 1, Deflate(12, 12, True, True) if compress else None)
    events, direct_output = fed(whole, size, Deflate(12, 12, True, True) if compress else None)
    assert [e for e in events if not isinstance(e, End)] == [e for e in expected if not isinstance(e, End)]
    assert [(e.code, e.failed) for e in events if isinstance(e, End)] == [
        (e.code, e.failed) for e in expected if isinstance(e, End)
    ]
    assert not any(isinstance(e, End) for e in events[:-1])
    assert direct_output == output


def fed_slowly(stream: bytes, size: int, room: int, asked: bool, deflate: Deflate | None) -> list[Event]:
    """The same for somebody who has little room, and may ask for each message."""
    framing = MessageFraming(deflate, MAX_SIZE)
    events: list[Event] = []
    for start in range(0, len(stream), size):
        got = framing.receive(stream[start : start + size], room, asked)
        while True:
            assert sum(weigh(e) for e in got[:-1] if not isinstance(e, End)) <= max(room, 0)
            events += got
            if not framing.behind:
                break
            got = framing.receive(b"", room, True)
            assert got or not framing.behind
    return events


@given(st.lists(frames, max_size=8), st.integers(1, 700), st.integers(-1, 1500), st.booleans(), st.booleans())
def test_little_room_changes_nothing_but_when(
    stream: list[bytes], size: int, room: int, asked: bool, compress: bool
) -> None:
    whole = b"".join(stream)
    expected, _ = fed(whole, size, Deflate(12, 12, True, True) if compress else None)
    events = fed_slowly(whole, size, room, asked, Deflate(12, 12, True, True) if compress else None)
    assert [e[:3] if isinstance(e, End) else e for e in events] == [
        e[:3] if isinstance(e, End) else e for e in expected
    ]


@given(st.lists(frames, max_size=8))
def test_another_implementation_reads_the_same(stream: list[bytes]) -> None:
    """Up to the first thing that is wrong, the messages; then the same verdict."""
    library = Protocol(SERVER, state=OPEN, max_size=MAX_SIZE)
    library.receive_data(b"".join(stream))
    got: list[tuple[Opcode, bytes]] = []
    for frame_ in library.events_received():
        assert isinstance(frame_, Frame)
        if frame_.opcode in (Opcode.TEXT, Opcode.BINARY):
            got.append((frame_.opcode, bytes(frame_.data)))
        elif frame_.opcode is Opcode.CONT:
            got[-1] = (got[-1][0], got[-1][1] + bytes(frame_.data))
    events, _ = fed(b"".join(stream), 1 << 20)
    messages = [e for e in events if not isinstance(e, End)]
    for (opcode, data), message in zip(got, messages, strict=False):
        assert data == (message.encode() if isinstance(message, str) else message)
        assert isinstance(message, str) == (opcode is Opcode.TEXT)
    end = events[-1] if events and isinstance(events[-1], End) else None
    if end is None or not (end.failed and end.code == 1007):  # the library leaves UTF-8 to its caller
        assert len(got) - len(messages) in (0, 1)  # the last may be unfinished
    if end is None:
        assert library.close_sent is None


@given(st.lists(st.tuples(st.booleans(), st.binary(max_size=60), st.booleans()), max_size=6), st.integers(1, 200))
def test_compressed_messages_in_pieces(messages: list[tuple[bool, bytes, bool]], size: int) -> None:
    """What another implementation compresses and cuts into frames comes out again, with takeover on both sides."""
    client = ClientProtocol(parse_uri("ws://test/"), max_size=None, state=OPEN)
    client.extensions = [PerMessageDeflate(False, False, 12, 12, {"memLevel": 5})]
    stream = b""
    for binary, data, cut in messages:
        half = len(data) // 2
        if binary:
            client.send_binary(data[:half] if cut else data, fin=not cut)
        else:
            data = data.hex().encode()
            half = len(data) // 2
            client.send_text(data[:half] if cut else data, fin=not cut)
        if cut:
            client.send_continuation(data[half:], fin=True)
    stream = b"".join(client.data_to_send())
    expected = [data if binary else data.hex() for binary, data, _ in messages]
    assert fed(stream, size, Deflate(12, 12, True, True))[0] == expected
    for asked in (True, False):
        assert fed_slowly(stream, size, 300, asked, Deflate(12, 12, True, True)) == expected


@given(st.binary(max_size=300), st.integers(1, 300), st.booleans())
def test_noise_never_raises(noise: bytes, size: int, compress: bool) -> None:
    fed(noise, size, Deflate(12, 12, True, True) if compress else None)


def finished(data: bytes) -> bytes:
    """A DEFLATE stream that ends itself (BFINAL)."""
    compressor = zlib.compressobj(wbits=-12)
    return compressor.compress(data) + compressor.flush()


def test_stream_that_ends_itself_is_read_on() -> None:
    """RFC 7692 7.2.3.4, with its own example; and several streams in one message."""
    example = bytes.fromhex("f348cdc9c9070000")
    framing = MessageFraming(Deflate(12, 12, True, True), MAX_SIZE)
    assert framing.receive(frame(1, example, rsv=4)) == ["Hello"]
    assert framing.receive(frame(1, example, rsv=4)) == ["Hello"]
    three = finished(b"one ") + finished(b"two ") + finished(b"three") + b"\0"
    assert framing.receive(frame(2, three, rsv=4)) == [b"one two three"]


def test_streams_without_end_are_refused() -> None:
    """Each costs a stream of zlib's and a copy of the rest: a few bytes must not buy that without end."""
    framing = MessageFraming(Deflate(12, 12, True, True), MAX_SIZE)
    assert framing.receive(frame(2, finished(b"x") * (MAX_STREAMS - 1) + b"\0", rsv=4)) == [b"x" * (MAX_STREAMS - 1)]
    (end,) = framing.receive(frame(2, finished(b"") * (MAX_STREAMS + 1), rsv=4))
    assert isinstance(end, End)
    assert end.code == 1002


@pytest.mark.parametrize(("server_takeover", "client_takeover"), [(True, True), (False, False)])
def test_context_takeover(server_takeover: bool, client_takeover: bool) -> None:
    """RFC 7692 7.1.1: what may refer to the message before does, and what must not does not."""
    client = zlib.compressobj(wbits=-12)
    first = client.compress(b"hello " * 9) + client.flush(zlib.Z_SYNC_FLUSH)
    second = client.compress(b"hello " * 9) + client.flush(zlib.Z_SYNC_FLUSH)
    framing = MessageFraming(Deflate(12, 12, server_takeover, client_takeover), MAX_SIZE)
    assert framing.receive(frame(2, first[: -len(TAIL)], rsv=4)) == [b"hello " * 9]
    (event,) = framing.receive(frame(2, second[: -len(TAIL)], rsv=4))
    assert event == b"hello " * 9 if client_takeover else isinstance(event, End)
    sent = [framing.binary(b"hello " * 9), framing.binary(b"hello " * 9)]
    assert (sent[0] == sent[1]) is not server_takeover


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536, 100_000])
def test_frames_are_what_a_client_library_reads(size: int) -> None:
    framing = MessageFraming(None, MAX_SIZE)
    client = ClientProtocol(parse_uri("ws://test/"), max_size=None, state=OPEN)
    client.receive_data(
        framing.text("x" * size) + framing.binary(b"y" * size) + framing.ping(b"z") + framing.close(1000)
    )
    got = [(f.opcode, bytes(f.data)) for f in client.events_received() if isinstance(f, Frame)]
    assert got == [
        (Opcode.TEXT, b"x" * size),
        (Opcode.BINARY, b"y" * size),
        (Opcode.PING, b"z"),
        (Opcode.CLOSE, b"\x03\xe8"),
    ]


def test_messages_still_come_between_our_close_and_the_clients() -> None:
    framing = MessageFraming(None, MAX_SIZE)
    framing.close(1000)
    assert framing.receive(frame(1, b"late")) == ["late"]
    assert framing.receive(frame(8, b"\x03\xe8")) == [End(1000, "", False, b"")]
    assert framing.receive(frame(1, b"later")) == []
    assert framing.output == b""


def test_message_in_tiny_pieces_takes_no_more_memory_than_its_bytes() -> None:
    size = 200_000
    framing = MessageFraming(None, size)
    stream = frame(2, b"x" * size)
    tracemalloc.start()
    try:
        events: list[Event] = []
        for start in range(0, len(stream), 2):
            events += framing.receive(stream[start : start + 2])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert events == [b"x" * size]
    assert peak < 3 * size


ROOM = 64 * 1024


def bombs(size: int, fin: bool = True) -> bytes:
    """Messages of zeros, each a thousandth of its size; with not `fin`, one that does not end."""
    compressor = zlib.compressobj(9, wbits=-12)
    one = compressor.compress(bytes(size)) + compressor.flush(zlib.Z_SYNC_FLUSH)
    return frame(2, one[: -len(TAIL)], rsv=4, fin=fin) * (15 if fin else 1)


@pytest.mark.parametrize(
    "stream",
    [
        bombs(16 << 20),
        bombs(16 << 20, fin=False),
        bombs(2000) * 100,
        frame(2, b"\0", rsv=4) * 40_000,
        frame(2, b"xy") * 30_000,
        frame(1, "é\u20ac".encode()) * 30_000,
        frame(1, b"x" * 50_000 + "\U0001f600".encode()) * 4,
        frame(2) * 40_000,
    ],
    ids=["bombs", "bomb without end", "small bombs", "unpack to nothing", "tiny", "tiny text", "wide text", "empty"],
)
@pytest.mark.parametrize("size", [256 * 1024, 1000])
def test_what_nobody_has_asked_for_takes_a_few_times_its_bytes(stream: bytes, size: int) -> None:
    """Objects count as well, and so does what is unpacked."""
    framing = MessageFraming(Deflate(12, 12, True, True), 16 << 20)
    events: list[Event] = []
    weight = received = 0
    tracemalloc.start()
    try:
        for start in range(0, len(stream), size):
            data = stream[start : start + size]
            received += len(data)
            got = framing.receive(data, ROOM - weight, asked=False)
            events += got
            weight += sum(weigh(e) for e in got if not isinstance(e, End))
            if framing.behind or weight > ROOM:
                break  # as the connection stops reading
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert not any(isinstance(e, End) for e in events)
    assert peak < 5 * received + 4 * ROOM
