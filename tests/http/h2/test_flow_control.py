"""Windows in both directions, of streams and of the connection (RFC 9113 5.2, 6.9)."""

from __future__ import annotations

import pytest

from serve_asgi.http.h2 import frames
from serve_asgi.http.h2.error_codes import ErrorCode
from serve_asgi.http.h2.events import StreamReset
from serve_asgi.http.h2.flow_control import ReceiveWindow, widened
from serve_asgi.http.h2.frames import DATA, WINDOW_UPDATE
from serve_asgi.http.h2.limits import CONNECTION_WINDOW, MAX_STREAMS, STREAM_WINDOW
from serve_asgi.http.h2.settings import Setting
from tests.http.h2.peer import OK, POST, H2Peer, Said, data, of

INITIAL = Setting.INITIAL_WINDOW_SIZE


def sizes(said: list[Said]) -> dict[int, int]:
    """Bytes of DATA by stream."""
    found: dict[int, int] = {}
    for each in said:
        if each.kind == DATA:
            found[each.stream_id] = found.get(each.stream_id, 0) + len(each.payload)
    return found


def grants(said: list[Said]) -> dict[int, int]:
    """What WINDOW_UPDATEs give, by stream."""
    found: dict[int, int] = {}
    for each in said:
        if each.kind == WINDOW_UPDATE:
            found[each.stream_id] = found.get(each.stream_id, 0) + frames.number(each.payload)
    return found


# ---- what the server sends


def test_a_stream_sends_what_its_window_has() -> None:
    peer = H2Peer()
    peer.request(1)
    peer.core.send_head(1, OK, False)
    assert peer.core.send_data(1, bytes(70_000), True) == 70_000
    assert sizes(peer.said()) == {1: 65535}
    assert peer.core.queued(1) == 70_000 - 65535
    assert peer.core.take_drained() == []
    peer.send(frames.window_update_frame(1, 1 << 20))
    assert sizes(peer.said()) == {}  # the connection's
    peer.send(frames.window_update_frame(0, 1 << 20))
    assert sizes(peer.said()) == {1: 70_000 - 65535}
    assert peer.core.take_drained() == [1]
    assert not peer.core.waits(1)


def test_settings_change_the_windows_of_all_streams() -> None:
    """RFC 9113 6.9.2: they may become negative; what is given then fills that up first."""
    peer = H2Peer()
    peer.send(frames.window_update_frame(0, 1 << 24), frames.settings_frame({INITIAL: 10}))
    peer.request(1)
    peer.core.send_head(1, OK, False)
    peer.core.send_data(1, bytes(1000), False)
    assert sizes(peer.said()) == {1: 10}
    peer.send(frames.settings_frame({INITIAL: 4}))
    peer.send(frames.window_update_frame(1, 6))
    assert sizes(peer.said()) == {}
    peer.send(frames.window_update_frame(1, 1))
    assert sizes(peer.said()) == {1: 1}
    peer.send(frames.settings_frame({INITIAL: 104}))
    assert sizes(peer.said()) == {1: 100}
    peer.core.send_data(1, b"", True)
    assert sizes(peer.said()) == {}
    peer.send(frames.window_update_frame(1, 5000))
    assert peer.said()[-1].flags == frames.END_STREAM


def test_an_end_needs_no_window() -> None:
    peer = H2Peer()
    peer.send(frames.settings_frame({INITIAL: 0}))
    peer.request(1)
    peer.request(3)
    peer.core.send_head(1, OK, False)
    peer.core.send_data(1, b"waits", False)
    peer.core.send_head(3, OK, False)
    peer.core.send_data(3, b"", True)
    assert [(said.kind, said.stream_id) for said in peer.said()] == [(4, 0), (1, 1), (1, 3), (0, 3)]


def test_trailers_wait_for_the_body() -> None:
    peer = H2Peer()
    peer.request(1)
    peer.core.send_head(1, OK, False)
    peer.core.send_data(1, bytes(65536), False)
    peer.core.send_trailers(1, [(b"x-sum", b"1")])
    assert {said.kind for said in peer.said()} == {frames.HEADERS, DATA}
    peer.send(frames.window_update_frame(0, 1), frames.window_update_frame(1, 1))
    last_data, trailers = peer.said()
    assert (last_data.kind, last_data.flags, len(last_data.payload)) == (DATA, 0, 1)
    assert (trailers.kind, trailers.flags) == (frames.HEADERS, frames.END_HEADERS | frames.END_STREAM)
    peer.core.done(1)
    assert peer.core.resting


def test_overflow_by_settings_is_the_connections() -> None:
    peer = H2Peer()
    peer.request(1)
    peer.send(frames.window_update_frame(1, 0x7FFFFFFF - 65535))
    peer.send(frames.settings_frame({INITIAL: 65536}))
    assert peer.lost() is ErrorCode.FLOW_CONTROL_ERROR


def test_the_largest_windows() -> None:
    peer = H2Peer()
    peer.request(1)
    peer.send(frames.window_update_frame(1, 0x7FFFFFFF - 65535), frames.window_update_frame(0, 0x7FFFFFFF - 65535))
    assert peer.core.lost is None
    events = peer.send(frames.window_update_frame(1, 1))
    assert of(StreamReset, events)[0].code == ErrorCode.FLOW_CONTROL_ERROR


def test_a_reset_drops_what_waits() -> None:
    peer = H2Peer()
    peer.request(1)
    peer.core.send_head(1, OK, False)
    peer.core.send_data(1, bytes(100_000), True)
    peer.said()
    peer.send(frames.reset_frame(1, ErrorCode.CANCEL), frames.window_update_frame(0, 1 << 20))
    assert peer.said() == []


def test_room_bounds_what_is_taken() -> None:
    peer = H2Peer()
    peer.send(frames.settings_frame({INITIAL: 1 << 24}), frames.window_update_frame(0, 1 << 24))
    peer.request(1)
    peer.core.send_head(1, OK, False)
    peer.core.send_data(1, bytes(1 << 20), True)
    assert 100_000 <= sum(sizes(peer.said(room=100_000)).values()) < 100_000 + 16384
    assert peer.core.waiting


# ---- what the client sends


def test_windows_grow_by_what_is_taken() -> None:
    """Half a window is saved up."""
    peer = H2Peer()
    peer.request(1, POST, ended=False)
    full = [data(1, bytes(16384))] * (STREAM_WINDOW // 16384)
    assert len(peer.send(*full)) == len(full)
    assert grants(peer.said()) == {}
    for _ in range(3):
        peer.core.consumed(1, 16384)
    assert grants(peer.said()) == {}
    for _ in range(5):
        peer.core.consumed(1, 16384)
    assert grants(peer.said()) == {1: STREAM_WINDOW}
    peer.send(*full)
    for _ in range(8):
        peer.core.consumed(1, 16384)
    assert grants(peer.said()) == {1: STREAM_WINDOW}
    for _ in range(CONNECTION_WINDOW // STREAM_WINDOW // 2 - 2):
        peer.send(*full)
        for _ in range(8):
            peer.core.consumed(1, 16384)
    assert grants(peer.said())[0] == CONNECTION_WINDOW // 2


@pytest.mark.parametrize("taken", [0, CONNECTION_WINDOW // 2 - 16384])
def test_a_hundred_bodies_that_nobody_takes_keep_no_other_waiting(taken: int) -> None:
    """Not even when the connection's window is to be opened only a little later."""
    peer = H2Peer()
    peer.request(1, POST, ended=False)
    for _ in range(taken // 16384):
        peer.send(data(1, bytes(16384)))
        peer.core.consumed(1, 16384)
    peer.send(data(1, b"", ended=True))
    peer.respond(1, b"ok")
    assert grants(peer.said()).get(0) is None
    for number in range(MAX_STREAMS - 1):
        peer.request(2 * number + 3, POST, ended=False)
        peer.send(*[data(2 * number + 3, bytes(16384))] * (STREAM_WINDOW // 16384))
    last = 2 * MAX_STREAMS + 1
    peer.request(last, POST, ended=False)
    assert peer.core.may_receive(last)
    assert peer.core.receiver.streams.window.left >= STREAM_WINDOW


@pytest.mark.parametrize("ended", [False, True], ids=["too much", "after its end"])
def test_what_a_stream_is_reset_for_opens_the_connections_window_no_further(ended: bool) -> None:
    peer = H2Peer()
    peer.request(1, POST, ended=False)
    peer.send(*[data(1, bytes(16384))] * (STREAM_WINDOW // 16384 - 1), data(1, bytes(16384), ended=ended))
    peer.send(data(1, b"a"))
    assert len(of(StreamReset, peer.events)) == 1
    assert peer.core.receiver.streams.window.waiting == 0


def test_the_connections_window_bounds_all_streams() -> None:
    peer = H2Peer(max_streams=2 * MAX_STREAMS + 1)
    streams = range(1, 2 * (CONNECTION_WINDOW // STREAM_WINDOW) + 2, 2)
    for stream_id in streams:
        peer.request(stream_id, POST, ended=False)
    for stream_id in streams[:-1]:
        peer.send(*[data(stream_id, bytes(16384))] * (STREAM_WINDOW // 16384))
    assert peer.core.lost is None
    peer.send(data(streams[-1], b"a"))
    assert peer.lost() is ErrorCode.FLOW_CONTROL_ERROR


@pytest.mark.parametrize("end", ["reset by the client", "reset by the server", "answered", "discarded"])
def test_what_nobody_takes_is_granted_to_the_others(end: str) -> None:
    """No stream takes anything of the connection's window with it."""
    peer, size = H2Peer(), 1 << 20
    peer.core.receiver.streams.window = ReceiveWindow(size)  # a small one, which is soon used up
    for number in range(40):
        stream_id = 2 * number + 1
        peer.request(stream_id, POST, ended=False)
        if end == "discarded":
            peer.core.discard(stream_id)
        peer.send(*[data(stream_id, bytes(16384))] * 4)
        if end == "reset by the client":
            peer.send(frames.reset_frame(stream_id, ErrorCode.CANCEL))
        elif end == "reset by the server":
            peer.core.reset(stream_id, ErrorCode.CANCEL)
            peer.send(data(stream_id, bytes(16384)))
        else:
            peer.send(data(stream_id, b"", ended=True))
        peer.respond(stream_id, b"ok")
    granted = grants(peer.said()).get(0, 0)
    assert peer.core.lost is None
    assert granted >= 40 * 65536 - size
    assert peer.core.receiver.streams.window.waiting == 0
    assert peer.core.resting


@pytest.mark.parametrize("trailers", [False, True])
def test_a_response_that_ends_later_gives_back_what_nobody_took(trailers: bool) -> None:
    peer = H2Peer()
    peer.request(1, POST, ended=False)
    peer.send(data(1, bytes(10_000), ended=True))
    peer.core.send_head(1, OK, False)
    if trailers:
        peer.core.send_trailers(1, [(b"x", b"1")])
    else:
        peer.core.send_data(1, bytes(100_000), True)
        peer.said()
        peer.send(frames.window_update_frame(0, 1 << 20), frames.window_update_frame(1, 1 << 20))
        peer.said()
    peer.core.done(1)
    assert peer.core.resting
    assert peer.core.receiver.streams.window.waiting == 0


def test_there_is_nothing_to_discard_of_a_request_without_a_body() -> None:
    peer = H2Peer()
    peer.request(1)
    peer.core.discard(1)
    peer.core.discard(1)
    assert peer.said() == []


def test_padding_counts_and_is_given_back() -> None:
    peer = H2Peer()
    peer.request(1, POST, ended=False)
    padded = frames.frame(DATA, frames.PADDED, 1, b"\xff" + b"a" + bytes(255))
    for _ in range(STREAM_WINDOW // 257 * 3):
        peer.send(padded)
        peer.core.consumed(1, 1)
    assert peer.core.lost is None
    assert len(of(StreamReset, peer.events)) == 0


def test_an_ended_request_gets_no_window() -> None:
    peer = H2Peer()
    peer.request(1, POST, ended=False)
    peer.send(*[data(1, bytes(16384))] * 8, data(1, b"", ended=True))
    peer.core.consumed(1, 8 * 16384)
    assert 1 not in grants(peer.said())


def test_the_arithmetic() -> None:
    assert widened(-5, 7) == 2
    assert widened(0, 0x7FFFFFFF) == 0x7FFFFFFF
    with pytest.raises(OverflowError):
        widened(1, 0x7FFFFFFF)
    window = ReceiveWindow(10)
    assert window.receive(10)
    assert not window.receive(1)
    assert window.consume(4) == 0
    assert window.consume(1) == 5
    assert window.waiting == 6
    for size in (10, 1000):  # of another process, whose windows may be of another size
        other = ReceiveWindow(size)
        other.restore(window.to_json())
        assert other.to_json() == window.to_json()
        assert other.consume(5) == 5
