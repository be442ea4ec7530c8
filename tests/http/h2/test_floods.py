"""What is cheap to send and costs a server: each kind has a bound, and honest use of the same frames never meets it."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import pytest

from serve_asgi.http.h2 import frames
from serve_asgi.http.h2.error_codes import ConnectionFault, ErrorCode
from serve_asgi.http.h2.events import StreamRequest
from serve_asgi.http.h2.frames import DATA, END_HEADERS, HEADERS, frame
from serve_asgi.http.h2.limits import FloodGauge, FloodKind, Floods
from serve_asgi.http.h2.settings import MAX_SETTINGS, Setting
from tests.http.h2.peer import GET, MAX_HEAD, OK, POST, H2Peer, data, of

CALM = ErrorCode.ENHANCE_YOUR_CALM
MUCH = 100_000
"""Frames of a flood, which ends long before."""


def rapid_reset(peer: H2Peer, number: int) -> bytes:
    """CVE-2023-44487."""
    return peer.headers(2 * number + 1) + frames.reset_frame(2 * number + 1, ErrorCode.CANCEL)


def made_reset(peer: H2Peer, number: int) -> bytes:
    """CVE-2025-8671: the server is made to reset what the client has asked for."""
    stream_id = 2 * number + 1
    head = peer.headers(stream_id)
    wrong = (
        frame(frames.WINDOW_UPDATE, 0, stream_id, bytes(4)),
        frames.window_update_frame(stream_id, 0x7FFFFFFF),
        data(stream_id, b"a"),
        frame(HEADERS, END_HEADERS, stream_id, b"\x82"),
    )
    return head + wrong[number % 4]


def malformed(peer: H2Peer, number: int) -> bytes:
    return peer.headers(2 * number + 1, [*GET, (b"connection", b"close")])


def refused(peer: H2Peer, number: int) -> bytes:
    """More and more requests at once."""
    return peer.headers(2 * number + 1)


def continuations(peer: H2Peer, number: int) -> bytes:
    return frame(frames.CONTINUATION, 0, 1, b"") if number else frame(HEADERS, 0, 1, b"")


def large_continuations(peer: H2Peer, number: int) -> bytes:
    return frame(frames.CONTINUATION, 0, 1, bytes(16384)) if number else frame(HEADERS, 0, 1, b"")


def empty_data(peer: H2Peer, number: int) -> bytes:
    """CVE-2019-9518."""
    return data(1, b"") if number else peer.headers(1, POST, ended=False)


def padding_alone(peer: H2Peer, number: int) -> bytes:
    return frame(DATA, frames.PADDED, 1, b"\x05" + bytes(5)) if number else peer.headers(1, POST, ended=False)


def data_after_reset(peer: H2Peer, number: int) -> bytes:
    if number:
        return data(1, b"")
    peer.request(1, POST, ended=False)
    peer.core.reset(1, ErrorCode.CANCEL)
    return b""


def window_updates(peer: H2Peer, number: int) -> bytes:
    return frames.window_update_frame(0, 1)


def window_updates_of_a_stream(peer: H2Peer, number: int) -> bytes:
    return frames.window_update_frame(1, 1) if number else peer.headers(1)


def small_windows(peer: H2Peer, number: int) -> bytes:
    """CVE-2019-9511, CVE-2019-9517: a large response, a byte at a time."""
    if number:
        return frames.window_update_frame(1, 1)
    peer.send(frames.settings_frame({Setting.INITIAL_WINDOW_SIZE: 1}))
    peer.request(1)
    peer.core.send_head(1, OK, False)
    peer.core.send_data(1, bytes(1 << 20), True)
    return b""


FLOODS: list[Callable[[H2Peer, int], bytes]] = [
    rapid_reset, made_reset, malformed, refused, continuations, large_continuations, empty_data, padding_alone,
    data_after_reset, window_updates, window_updates_of_a_stream, small_windows,
]  # fmt: skip
SIMPLE = [
    ("SETTINGS (CVE-2019-9515)", frames.settings_frame({})),
    ("SETTINGS that change windows", frames.settings_frame({4: 1}) + frames.settings_frame({4: 65535})),
    ("SETTINGS that change the table", frames.settings_frame({1: 0}) + frames.settings_frame({1: 4096})),
    ("acknowledgements", frames.SETTINGS_ACK),
    ("PING (CVE-2019-9512)", frames.ping_frame(b"12345678", False)),
    ("answers to no PING", frames.ping_frame(b"12345678", True)),
    ("PRIORITY (CVE-2019-9513)", frame(frames.PRIORITY, 0, 1, bytes(4) + b"\x01")),
    ("PRIORITY_UPDATE", frame(frames.PRIORITY_UPDATE, 0, 0, b"\x00\x00\x00\x01u=1")),
    ("unknown frames", frame(0xFE, 0, 0, b"")),
    ("GOAWAY", frame(frames.GOAWAY, 0, 0, bytes(8))),
]


@pytest.mark.parametrize("flood", FLOODS, ids=lambda flood: str(flood.__name__))
def test_a_flood_ends_the_connection(flood: Callable[[H2Peer, int], bytes]) -> None:
    """The application of each request that is let through returns at once, where there is one."""
    peer = H2Peer()
    for number in range(MUCH):
        for event in peer.send(flood(peer, number)):
            if isinstance(event, StreamRequest) and flood is not refused:
                peer.core.done(event.stream_id)
        peer.events.clear()
        peer.core.take_output()
        if peer.core.lost is not None:
            break
    assert peer.core.lost is not None
    assert peer.core.lost.code is CALM
    assert number < 3000
    assert peer.core.resting


@pytest.mark.parametrize(("name", "sent"), SIMPLE, ids=[name for name, _ in SIMPLE])
def test_a_flood_of_one_frame_ends_the_connection(name: str, sent: bytes) -> None:
    """Also when it comes in one piece: what has to be answered is bounded with it."""
    peer = H2Peer()
    peer.send(sent * 2000)
    assert peer.core.unwritten < 10_000
    assert peer.lost() is CALM


def test_settings_in_one_frame_are_bounded() -> None:
    peer = H2Peer()
    peer.send(frame(frames.SETTINGS, 0, 0, b"\x00\x03\x00\x00\x00\x64" * MAX_SETTINGS))
    assert peer.core.lost is None
    peer.send(frame(frames.SETTINGS, 0, 0, b"\x00\x03\x00\x00\x00\x64" * (MAX_SETTINGS + 1)))
    assert peer.lost() is CALM


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(frames.ping_frame(b"12345678", False), id="PING"),
        pytest.param(frames.settings_frame({4: 70_000}), id="SETTINGS"),
        pytest.param(frames.window_update_frame(0, 1), id="WINDOW_UPDATE"),
        pytest.param(frame(0xFE, 0, 0, b""), id="unknown"),
    ],
)
def test_who_does_it_now_and_then_meets_no_bound(sent: bytes) -> None:
    """A connection that lives for a week, and says it every second."""
    peer = H2Peer()
    for _ in range(10_000):
        peer.clock.now += 1
        peer.send(sent)
        peer.core.take_output()
    assert peer.core.lost is None


def test_resets_now_and_then_meet_no_bound() -> None:
    """A browser that leaves one page in five while half of it is loading."""
    peer = H2Peer()
    for number in range(5000):
        stream_id = 2 * number + 1
        peer.request(stream_id)
        if number % 5:
            peer.respond(stream_id)
        else:
            peer.send(frames.reset_frame(stream_id, ErrorCode.CANCEL))
            peer.core.done(stream_id)
    assert peer.core.lost is None


def test_downloads_meet_no_bound() -> None:
    """Two WINDOW_UPDATEs for each DATA frame, as fast as it goes: 100 MB without a second passing."""
    peer = H2Peer()
    peer.request(1)
    peer.core.send_head(1, OK, False)
    for _ in range(100):
        peer.core.send_data(1, bytes(1 << 20), False)
        while peer.core.waits(1):
            for said in peer.said():
                size = len(said.payload)
                if size and said.kind == DATA:
                    peer.send(frames.window_update_frame(1, size), frames.window_update_frame(0, size))
    assert peer.core.lost is None


def test_an_upload_that_was_on_its_way_meets_no_bound() -> None:
    """What comes on a stream that the server has reset; and behind the GOAWAY that names the last one."""
    peer = H2Peer()
    peer.request(1, POST, ended=False)
    peer.core.reset(1, ErrorCode.CANCEL)
    peer.send(*[data(1, bytes(1024))] * 2000)
    peer.core.finish_shutdown()
    for stream_id in range(3, 203, 2):
        peer.send(peer.headers(stream_id, POST, ended=False), *[data(stream_id, bytes(1024))] * 20)
    assert peer.core.lost is None
    assert len(of(StreamRequest, peer.events)) == 1


def test_uploads_byte_by_byte_meet_no_bound() -> None:
    peer = H2Peer()
    peer.request(1, POST, ended=False)
    for _ in range(20_000):
        peer.send(data(1, b"a"))
        peer.core.consumed(1, 1)
    assert peer.core.lost is None


def test_priorities_of_each_request_meet_no_bound() -> None:
    peer = H2Peer()
    for number in range(3000):
        stream_id = 2 * number + 1
        update = frame(frames.PRIORITY_UPDATE, 0, 0, stream_id.to_bytes(4) + b"u=1")
        peer.send(update, peer.headers(stream_id), update)
        peer.respond(stream_id)
    assert peer.core.lost is None


@pytest.mark.parametrize("attack", ["bodies", "heads", "held", "pieces", "responses"])
def test_memory_is_bounded(attack: str) -> None:
    """What one connection can make the core hold, however much it sends."""
    tracemalloc.start()
    try:
        peer = H2Peer()
        before = tracemalloc.get_traced_memory()[0]
        if attack == "held":
            peer.core.hold()
        for number in range(3000):
            if peer.core.lost is not None:
                break
            stream_id = 2 * number + 1
            if attack == "bodies":
                peer.send(peer.headers(stream_id, POST, ended=False), data(stream_id, bytes(16384)))
            elif attack == "heads":
                large = [*GET, *((b"x-%d" % each, b"%d" % number * 500) for each in range(10))]
                block = peer.encoder.encode(large, huffman=False)
                peer.send(*frames.header_frames(stream_id, block, True, 16384))
            elif attack == "held":
                peer.send(peer.headers(stream_id))
            elif attack == "pieces":
                peer.send(frame(HEADERS, END_HEADERS, stream_id, b"\x40\x7f\x00" + b"a" * 127 + b"\x00")[:-1])
            else:
                for event in of(StreamRequest, peer.send(peer.headers(stream_id))):
                    peer.core.send_head(event.stream_id, OK, False)
                    peer.core.send_data(event.stream_id, bytes(100), True)
                    peer.core.done(event.stream_id)
            peer.events.clear()
        assert tracemalloc.get_traced_memory()[0] - before < 8 << 20
    finally:
        tracemalloc.stop()


# ---- the arithmetic


def test_a_gauge_falls_with_time_and_with_what_is_useful() -> None:
    gauge = FloodGauge(FloodKind.CONTROL)
    for _ in range(100):
        gauge.count(0, 0.0)
    with pytest.raises(ConnectionFault, match="too many SETTINGS and PING frames"):
        gauge.count(0, 0.0)
    gauge.count(0, 1.0)
    assert gauge.level == 101 - 10 + 1
    gauge.count(40, 1.0)
    assert gauge.level == 92 - 10 + 1


def test_counts_travel() -> None:
    floods = Floods(lambda: 5.0)
    for _ in range(90):
        floods.count(FloodKind.CONTROL)
    floods.count(FloodKind.RESETS, useful=1000)
    other = Floods(lambda: 5.0)
    other.restore(floods.levels(), 1000)
    assert other.levels() == floods.levels()
    other.count(FloodKind.RESETS, useful=1000)
    assert other.levels()["RESETS"] == 2
    for _ in range(10):
        other.count(FloodKind.CONTROL)
    with pytest.raises(ConnectionFault):
        other.count(FloodKind.CONTROL)


def test_every_bound_says_what_it_counts() -> None:
    assert MAX_HEAD
    for kind in FloodKind:
        assert kind.value.name
        assert kind.value.at_once >= 10 * kind.value.per_second or kind is FloodKind.CONTROL
