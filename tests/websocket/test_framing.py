"""The framing alone: any stream gives the same in reads of any size, and the same as another implementation reads."""

from __future__ import annotations

import importlib.util
import sys
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
from serve_asgi.websocket.frames import PING, control_frame
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
        framing.text("x" * size) + framing.binary(b"y" * size) + control_frame(PING, b"z") + framing.close(1000)
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


# What is wrong, and where ways meet, each without chance


def deflated(data: bytes) -> bytes:
    """As a client compresses a message."""
    compressor = zlib.compressobj(9, wbits=-12)
    return (compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH))[: -len(TAIL)]


@pytest.mark.parametrize(
    ("stream", "code"),
    [
        (b"\x83\x80mask", 1002),
        (frame(1, b"a", rsv=2), 1002),
        (frame(8, b"\x03\xe8", rsv=4), 1002),
        (frame(1, b"a", mask=False), 1002),
        (frame(9, b"", fin=False), 1002),
        (b"\x89\xfe\x00\x7emask", 1002),
        (frame(0, b"a"), 1002),
        (frame(1, b"a", fin=False) + frame(1, b"b"), 1002),
        (b"\x82\xfe\x00\x7dmask" + bytes(125), 1002),
        (b"\x82\xff" + (65535).to_bytes(8) + b"mask", 1002),
        (b"\x82\xff" + (1 << 63).to_bytes(8) + b"mask", 1002),
        (frame(8, b"\x03"), 1002),
        (frame(8, b"\x03\xed"), 1002),
        (frame(8, b"\x03\xe8\xff"), 1007),
        (frame(1, b"\xff"), 1007),
        (frame(1, b"a\xed\xa0", fin=False), 1007),
        (frame(1, b"\xc3", fin=False) + frame(0, b"a"), 1007),
        (frame(2, bytes(MAX_SIZE + 1)), 1009),
        (frame(2, bytes(MAX_SIZE), fin=False) + frame(0, b"a"), 1009),
        (frame(2, deflated(bytes(MAX_SIZE + 1)), rsv=4), 1009),
        (frame(2, deflated(bytes(1 << 20)), rsv=4, fin=False), 1009),
        (frame(2, b"\xff" * 9, rsv=4), 1002),
        (frame(2, bytes(4 * MAX_SIZE + 4096), rsv=4), 1009),
    ],
    ids=lambda value: "stream" if isinstance(value, bytes) else None,  # their masks are random
)
@pytest.mark.parametrize("size", [1, 5, 1 << 20])
@pytest.mark.parametrize("asked", [True, False])
def test_what_is_wrong_ends_it_with_its_code(stream: bytes, code: int, size: int, asked: bool) -> None:
    good = frame(1, b"good")
    events = fed_slowly(good + stream + frame(1, b"behind"), size, 10_000, asked, Deflate(12, 12, True, True))
    assert events[0] == "good"
    (end,) = events[1:]
    assert isinstance(end, End)
    assert (end.code, end.failed, end.reply[:1]) == (code, True, b"\x88")


@pytest.mark.parametrize("size", [1, 5, 1 << 20])
def test_what_is_right_comes_out_as_it_went_in(size: int) -> None:
    stream = (
        frame(1, "é".encode())
        + frame(2, bytes(130))
        + frame(1, b"x" * 130)
        + frame(2, b"a", fin=False)
        + frame(9, b"?")
        + frame(0, b"", fin=False)
        + frame(0, b"b")
        + frame(1, "\u20ac".encode()[:2], fin=False)
        + frame(0, "\u20ac".encode()[2:])
        + frame(1, deflated(b"squeezed"), rsv=4)
        + frame(2, deflated(b"in two")[:3], rsv=4, fin=False)
        + frame(0, deflated(b"in two")[3:])
        + frame(10, b"")
        + frame(8, b"\x03\xe8bye")
    )
    events, output = fed(stream, size, Deflate(12, 12, True, False))
    assert events[:-1] == ["é", bytes(130), "x" * 130, b"ab", "\u20ac", "squeezed", b"in two"]
    assert events[-1] == End(1000, "bye", False, b"\x88\x05\x03\xe8bye")
    assert output == b"\x8a\x01?"
    assert fed(frame(8), size)[0] == [End(1005, "", False, b"\x88\x00")]


@pytest.mark.parametrize("kind", [1, 2])
def test_a_message_stays_packed_until_it_is_asked_for(kind: int) -> None:
    """And is judged by what it comes to, whether it has come to its end or not."""
    large = MessageFraming(Deflate(12, 12, False, False), 16 << 20)
    assert large.receive(frame(kind, deflated(b"x" * (1 << 20)), rsv=4), 10_000, asked=False) == []
    assert large.behind
    (message,) = large.receive(b"", 10_000, asked=True)
    assert len(message) == 1 << 20
    pieces = deflated(b"y" * (1 << 20)), deflated(b"z")
    assert large.receive(frame(kind, pieces[0], rsv=4, fin=False), 10_000, asked=False) == []
    (message,) = large.receive(frame(0, TAIL + pieces[1]), 10_000, asked=True)
    assert len(message) == (1 << 20) + 1
    small = MessageFraming(Deflate(12, 12, False, False), 100_000)
    (end,) = small.receive(frame(kind, deflated(b"x" * (1 << 20)), rsv=4, fin=False), 10_000, asked=False)
    assert isinstance(end, End)
    assert end.code == 1009


def test_what_stays_packed_is_judged_too() -> None:
    framing = MessageFraming(Deflate(12, 12, False, False), 1 << 20)
    start = deflated(b"x" * 600_000)
    assert framing.receive(frame(2, start, rsv=4, fin=False), 10_000, asked=False) == []
    (end,) = framing.receive(frame(0, b"\xff" * 9, fin=False), 10_000, asked=False)
    assert isinstance(end, End)
    assert end.code == 1002


def test_what_comes_of_a_message_is_bounded_when_it_is_asked_for() -> None:
    framing = MessageFraming(Deflate(12, 12, False, False), 100_000)
    assert framing.receive(frame(2, deflated(bytes(1 << 20)), rsv=4), 10_000, asked=False) == []
    (end,) = framing.receive(b"", 10_000, asked=True)
    assert isinstance(end, End)
    assert end.code == 1009


def test_what_is_behind_a_stream_that_has_ended_is_bounded() -> None:
    framing = MessageFraming(Deflate(12, 12, False, False), 100_000)
    assert framing.receive(frame(2, finished(bytes(80_000)), rsv=4, fin=False), 10_000, asked=False) == []
    assert framing.receive(frame(0, bytes(60_000), fin=False), 10_000, asked=False) == []
    (end,) = framing.receive(frame(0, bytes(60_000), fin=False), 10_000, asked=False)
    assert isinstance(end, End)
    assert end.code == 1009


def test_a_read_that_is_one_small_message_is_taken_at_once() -> None:
    framing = MessageFraming(None, MAX_SIZE)
    assert [framing.single(frame(kind, b"ab")) for kind in (1, 2)] == ["ab", b"ab"]
    for other in (frame(1, b"\xff"), frame(9, b"a"), frame(1, b"a") + b"\x81", b"\x81\x80", frame(2, bytes(126))):
        assert framing.single(other) is None
    framing.receive(frame(1, b"a", fin=False))
    assert framing.single(frame(1, b"b")) is None


def test_our_own_frames() -> None:
    framing = MessageFraming(None, MAX_SIZE)
    for code, reason in ((1005, ""), (999, ""), (1000, "x" * 124)):
        with pytest.raises(ValueError, match="cannot be sent"):
            framing.close(code, reason)
    assert framing.fail(1011, "late") == b"\x88\x06\x03\xf3late"
    assert framing.receive(frame(1, b"a")) == []


def test_a_build_of_the_library_without_its_c_part_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "websockets.speedups", None)
    spec = importlib.util.find_spec("serve_asgi.websocket.framing")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.MessageFraming(None, MAX_SIZE).receive(frame(1, b"a")) == ["a"]
