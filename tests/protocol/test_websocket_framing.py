"""The framing alone: the direct reading of common frames gives the same messages as the library's, for any stream."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.protocol import OPEN
from websockets.uri import parse_uri

from server.protocol.websocket_framing import End, Event, Framing
from tests.protocol.websocket_server import frame

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


def fed(stream: bytes, size: int) -> tuple[list[Event], bytes]:
    """The events and the output for a stream that comes in reads of `size` bytes."""
    framing = Framing([], MAX_SIZE)
    events: list[Event] = []
    for start in range(0, len(stream), size):
        events += framing.receive(stream[start : start + size])
    return events, framing.output


@given(st.lists(frames, max_size=8), st.integers(1, 700))
def test_reads_of_any_size_give_the_same(stream: list[bytes], size: int) -> None:
    """Reads of one byte leave everything to the library; larger ones go the direct way where they can."""
    whole = b"".join(stream)
    expected, output = fed(whole, 1)
    events, direct_output = fed(whole, size)
    assert [e for e in events if not isinstance(e, End)] == [e for e in expected if not isinstance(e, End)]
    assert [(e.code, e.failed) for e in events if isinstance(e, End)] == [
        (e.code, e.failed) for e in expected if isinstance(e, End)
    ]
    assert not any(isinstance(e, End) for e in events[:-1])
    if not any(isinstance(e, End) and e.code == 1007 for e in events):
        assert direct_output == output


@given(st.binary(max_size=300), st.integers(1, 300))
def test_noise_never_raises(noise: bytes, size: int) -> None:
    fed(noise, size)


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536, 100_000])
def test_frames_are_what_a_client_library_reads(size: int) -> None:
    framing = Framing([], MAX_SIZE)
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
    framing = Framing([], MAX_SIZE)
    framing.close(1000)
    assert framing.receive(frame(1, b"late")) == ["late"]
    assert framing.receive(frame(8, b"\x03\xe8")) == [End(1000, "", False)]
    assert framing.receive(frame(1, b"later")) == []
    assert framing.output == b""
