"""Frames on the wire, by section (RFC 9113 3.4, 4, 6; RFC 9218 7.1): whole and byte by byte."""

from __future__ import annotations

import pytest

from serve_asgi.http.h2 import frames
from serve_asgi.http.h2.error_codes import ConnectionFault, ErrorCode
from serve_asgi.http.h2.events import ClientLeaves, StreamData, StreamEnd, StreamRequest, StreamReset
from serve_asgi.http.h2.frames import frame
from tests.http.h2.peer import GET, POST, H2Peer, data, of

PROTOCOL, SIZE, FLOW, CLOSED = (
    ErrorCode.PROTOCOL_ERROR,
    ErrorCode.FRAME_SIZE_ERROR,
    ErrorCode.FLOW_CONTROL_ERROR,
    ErrorCode.STREAM_CLOSED,
)
WHOLE_AND_BYTES = pytest.mark.parametrize("piece", [0, 1], ids=["whole", "bytes"])


@WHOLE_AND_BYTES
@pytest.mark.parametrize(
    ("sent", "code"),
    [
        pytest.param(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", PROTOCOL, id="3.4 HTTP/1.1"),
        pytest.param(frames.PREFACE[:-1] + b"x", PROTOCOL, id="3.4 another preface"),
        pytest.param(frames.PREFACE + frames.ping_frame(b"12345678", False), PROTOCOL, id="3.4 no SETTINGS first"),
        pytest.param(frames.PREFACE + frames.SETTINGS_ACK, PROTOCOL, id="3.4 an acknowledgement first"),
        pytest.param(frames.PREFACE + data(1, b"a"), PROTOCOL, id="3.4 DATA first"),
        pytest.param(frames.PREFACE + frame(1, 5, 1, b"\x82"), PROTOCOL, id="3.4 HEADERS first"),
    ],
)
def test_beginnings(sent: bytes, code: ErrorCode, piece: int) -> None:
    peer = H2Peer(piece, begun=False)
    peer.send(sent)
    assert peer.lost() is code


@WHOLE_AND_BYTES
def test_a_server_begins_with_its_settings(piece: int) -> None:
    peer = H2Peer(piece, begun=False)
    peer.core.begin(1000)
    peer.send(frames.PREFACE, frames.settings_frame({}))
    kinds = [said.kind for said in peer.said()]
    assert kinds == [frames.SETTINGS, frames.WINDOW_UPDATE, frames.SETTINGS]
    assert not peer.core.waiting


FAULTS = [
    ("4.2 larger than the maximum", frame(0, 0, 1, bytes(16385)), SIZE),
    ("4.2 larger than the maximum, of an unknown type", frame(0xFE, 0, 0, bytes(16385)), SIZE),
    ("6.1 DATA on no stream", frame(0, 0, 0, b"a"), PROTOCOL),
    ("6.1 more padding than payload", frame(0, 8, 1, b"\x05abcd"), PROTOCOL),
    ("6.1 as much padding as payload", frame(0, 8, 1, b"\x04abc"), PROTOCOL),
    ("6.1 padded and empty", frame(0, 8, 1, b""), SIZE),
    ("6.1 DATA on an idle stream", frame(0, 0, 3, b"a"), PROTOCOL),
    ("6.2 HEADERS on no stream", frame(1, 5, 0, b"\x82"), PROTOCOL),
    ("6.2 HEADERS of an even stream", frame(1, 5, 2, b"\x82\x86\x84\x41\x01a"), PROTOCOL),
    ("6.2 more padding than payload", frame(1, 0xD, 3, b"\x05\x82"), PROTOCOL),
    ("6.2 priority cut off", frame(1, 0x25, 3, b"\x00\x00\x00"), SIZE),
    ("6.2 a stream that depends on itself", frame(1, 0x25, 3, b"\x00\x00\x00\x03\x10\x82"), PROTOCOL),
    ("6.3 PRIORITY on no stream", frame(2, 0, 0, bytes(5)), PROTOCOL),
    ("6.3 PRIORITY too short", frame(2, 0, 1, bytes(4)), SIZE),
    ("6.3 PRIORITY too long", frame(2, 0, 1, bytes(6)), SIZE),
    ("6.3 a stream that depends on itself", frame(2, 0, 5, b"\x00\x00\x00\x05\x10"), PROTOCOL),
    ("6.4 RST_STREAM on no stream", frame(3, 0, 0, bytes(4)), PROTOCOL),
    ("6.4 RST_STREAM on an idle stream", frame(3, 0, 3, bytes(4)), PROTOCOL),
    ("6.4 RST_STREAM on an even stream", frame(3, 0, 2, bytes(4)), PROTOCOL),
    ("6.4 RST_STREAM too short", frame(3, 0, 1, bytes(3)), SIZE),
    ("6.4 RST_STREAM too long", frame(3, 0, 1, bytes(5)), SIZE),
    ("6.5 SETTINGS on a stream", frame(4, 0, 1, b""), PROTOCOL),
    ("6.5 SETTINGS not a multiple of six", frame(4, 0, 0, bytes(5)), SIZE),
    ("6.5 an acknowledgement with content", frame(4, 1, 0, b"\x00\x03\x00\x00\x00\x64"), SIZE),
    ("6.5.2 push neither 0 nor 1", frames.settings_frame({2: 2}), PROTOCOL),
    ("6.5.2 window too large", frames.settings_frame({4: 1 << 31}), FLOW),
    ("6.5.2 frame size too small", frames.settings_frame({5: 16383}), PROTOCOL),
    ("6.5.2 frame size too large", frames.settings_frame({5: 1 << 24}), PROTOCOL),
    ("RFC 8441 3 neither 0 nor 1", frames.settings_frame({8: 2}), PROTOCOL),
    ("RFC 9218 2.1 neither 0 nor 1", frames.settings_frame({9: 2}), PROTOCOL),
    ("RFC 9218 2.1 changed", frames.settings_frame({9: 1}), PROTOCOL),
    ("6.6 a client that pushes", frame(5, 4, 1, b"\x00\x00\x00\x02\x82"), PROTOCOL),
    ("6.7 PING on a stream", frame(6, 0, 1, bytes(8)), PROTOCOL),
    ("6.7 PING too short", frame(6, 0, 0, bytes(7)), SIZE),
    ("6.7 PING too long", frame(6, 0, 0, bytes(9)), SIZE),
    ("6.8 GOAWAY on a stream", frame(7, 0, 1, bytes(8)), PROTOCOL),
    ("6.8 GOAWAY too short", frame(7, 0, 0, bytes(7)), SIZE),
    ("6.9 WINDOW_UPDATE too short", frame(8, 0, 0, bytes(3)), SIZE),
    ("6.9 WINDOW_UPDATE too long", frame(8, 0, 1, bytes(5)), SIZE),
    ("6.9 the connection by 0", frame(8, 0, 0, bytes(4)), PROTOCOL),
    ("6.9 on an idle stream", frames.window_update_frame(3, 1), PROTOCOL),
    ("6.9.1 the connection beyond 2^31-1", frames.window_update_frame(0, 0x7FFFFFFF), FLOW),
    ("6.10 CONTINUATION of nothing", frame(9, 4, 1, b"\x82"), PROTOCOL),
    ("6.10 CONTINUATION on no stream", frame(9, 4, 0, b"\x82"), PROTOCOL),
    ("6.10 CONTINUATION of another stream", frame(1, 0, 3, b"\x82") + frame(9, 4, 5, b"\x86"), PROTOCOL),
    ("6.10 DATA within a block", frame(1, 0, 3, b"\x82") + data(1, b"a"), PROTOCOL),
    ("6.10 HEADERS within a block", frame(1, 0, 3, b"\x82") + frame(1, 5, 5, b"\x82"), PROTOCOL),
    ("6.10 PING within a block", frame(1, 0, 3, b"\x82") + frame(6, 0, 0, bytes(8)), PROTOCOL),
    ("6.10 an unknown type within a block", frame(1, 0, 3, b"\x82") + frame(0xFE, 0, 0, b""), PROTOCOL),
    ("RFC 9218 7.1 PRIORITY_UPDATE on a stream", frame(0x10, 0, 1, b"\x00\x00\x00\x01u=1"), PROTOCOL),
    ("RFC 9218 7.1 of no stream", frame(0x10, 0, 0, b"\x00\x00\x00\x00u=1"), PROTOCOL),
    ("RFC 9218 7.1 of a push", frame(0x10, 0, 0, b"\x00\x00\x00\x02u=1"), PROTOCOL),
    ("RFC 9218 7.1 too short", frame(0x10, 0, 0, bytes(3)), SIZE),
]


@WHOLE_AND_BYTES
@pytest.mark.parametrize(("sent", "code"), [pytest.param(sent, code, id=name) for name, sent, code in FAULTS])
def test_faults_of_the_connection(sent: bytes, code: ErrorCode, piece: int) -> None:
    peer = H2Peer(piece)
    peer.request(1, POST, ended=False)
    peer.send(sent, frames.ping_frame(b"too late", False))
    assert peer.lost() is code
    assert peer.send(peer.headers(99)) == []
    assert not peer.core.waiting


@WHOLE_AND_BYTES
@pytest.mark.parametrize(
    ("sent", "code"),
    [
        pytest.param(frame(8, 0, 1, bytes(4)), PROTOCOL, id="6.9 by 0"),
        pytest.param(frames.window_update_frame(1, 0x7FFFFFFF), FLOW, id="6.9.1 beyond 2^31-1"),
        pytest.param(b"".join(data(1, bytes(16384)) for _ in range(9)), FLOW, id="6.9.1 more DATA than the window"),
    ],
)
def test_faults_of_a_stream(sent: bytes, code: ErrorCode, piece: int) -> None:
    peer = H2Peer(piece and 1000)
    peer.request(1, POST, ended=False)
    peer.request(3, POST, ended=False)
    events = peer.send(sent)
    assert of(StreamReset, events)[0].stream_id == 1
    assert peer.reset_code() is code
    assert peer.core.lost is None
    assert of(StreamEnd, peer.send(data(3, b"", ended=True)))


@WHOLE_AND_BYTES
def test_what_is_legal(piece: int) -> None:
    """Padding, reserved bits and flags, unknown types and settings, whatever the deprecated priorities say."""
    peer = H2Peer(piece)
    block = peer.block(POST)
    events = peer.send(
        frame(0xFE, 0xFF, 77, b"unknown"),
        frames.settings_frame({0x99: 5, 3: 7, 6: 100, 2: 0, 8: 1, 9: 0, 1: 0, 5: 1 << 14}),
        frame(2, 0, 9, b"\x80\x00\x00\x01\x10"),
        frame(1, 0x2C | 0xC2, 1, b"\x03" + b"\x00\x00\x00\x07\xff" + block + b"\x00" * 3),
        frame(0, 8, 1, b"\x02hello\x00\x00"),
        frame(0, 8, 1, b"\x00"),
        data(1, b"!", ended=True),
        frame(6, 0xFE, 0, b"12345678"),
        frame(6, 1, 0, b"87654321"),
        frame(7, 0xFF, 0, b"\x00\x00\x00\x00\x00\x00\x00\x02why"),
    )
    assert [type(event) for event in events] == [
        StreamRequest, StreamData, StreamData, StreamEnd, ClientLeaves,
    ]  # fmt: skip
    assert events[1:3] == [StreamData(1, b"hello"), StreamData(1, b"!")]
    assert events[4:] == [ClientLeaves(2, b"why")]
    assert [(said.kind, said.flags) for said in peer.said()] == [(4, 1), (6, 1)]


def test_padding_of_a_head() -> None:
    peer = H2Peer()
    padded = frame(1, 0xD, 1, b"\x03" + peer.block(GET) + bytes(3))
    assert of(StreamRequest, peer.send(padded))[0].head.headers == [(b"host", b"a")]


def test_the_reserved_bit_is_ignored() -> None:
    peer = H2Peer()
    sent = bytearray(peer.headers(1, GET))
    sent[5] |= 0x80
    assert of(StreamRequest, peer.send(bytes(sent)))[0].stream_id == 1


def test_a_frame_too_large_is_refused_by_its_head() -> None:
    """Not a byte of its payload is waited for."""
    peer = H2Peer()
    peer.send(frame(0, 0, 1, bytes(16385))[:9])
    assert peer.lost() is SIZE


def test_bytes_after_bytes_are_linear() -> None:
    """A frame in pieces is looked at when it is whole: what is held is its bytes."""
    reader = frames.FrameReader()
    sent = frame(0, 0, 1, bytes(16384))
    found = [each for byte in sent for each in reader.frames(bytes((byte,)))]
    assert found == [(0, 0, 1, bytes(16384))]
    assert reader.rest == b""


def test_the_rest_is_what_has_come() -> None:
    reader = frames.FrameReader()
    sent = frame(6, 0, 0, b"12345678") + frame(6, 0, 0, b"87654321")
    assert len(list(reader.frames(sent[:20]))) == 1
    assert reader.rest == sent[17:20]
    with pytest.raises(ConnectionFault):
        list(frames.FrameReader().frames(frame(6, 0, 1, bytes(8))))


def test_large_blocks_go_out_in_continuation_frames() -> None:
    sent = frames.header_frames(1, bytes(range(256)) * 200, True, 16384)
    read = list(frames.FrameReader().frames(b"".join(sent)))
    assert [(kind, flags) for kind, flags, _, _ in read] == [(1, 1), (9, 0), (9, 0), (9, 4)]
    assert b"".join(payload for _, _, _, payload in read) == bytes(range(256)) * 200
