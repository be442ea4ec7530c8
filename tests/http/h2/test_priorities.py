"""Extensible priorities (RFC 9218): what is read, and whose turn it is."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_asgi.http.h2 import frames
from serve_asgi.http.h2.error_codes import ErrorCode
from serve_asgi.http.h2.frames import DATA, PRIORITY_UPDATE
from serve_asgi.http.h2.limits import MAX_PRIORITY_UPDATES
from serve_asgi.http.h2.priorities import DEFAULT_PRIORITY, DataScheduler, StreamPriority, read_priority
from serve_asgi.http.h2.settings import Setting
from tests.http.h2.peer import GET, OK, H2Peer


@pytest.mark.parametrize(
    ("value", "priority"),
    [
        (b"", (3, False)),
        (b"u=0", (0, False)),
        (b"u=7, i", (7, True)),
        (b"i", (3, True)),
        (b"i=?1,u=5", (5, True)),
        (b"i=?0", (3, False)),
        (b"u=1, u=2", (2, False)),
        (b"u=2;x=1, i;y", (2, True)),
        (b'u=2, a="x, u=7", b=(1 2), c=:YWI=:, d=tok/en, e=-1.5, i', (2, True)),
        # of another type or out of range: ignored
        (b"u=8", (3, False)),
        (b"u=-1", (3, False)),
        (b"u=1.0", (3, False)),
        (b"u", (3, False)),
        (b"u=?1, i=1", (3, False)),
        # not a dictionary: says nothing
        (b"u=1,", (3, False)),
        (b"u=1 i", (3, False)),
        (b"u=1;;", (3, False)),
        (b"U=1", (3, False)),
        (b"=1", (3, False)),
        (b"u=1, \xff", (3, False)),
        (b"u=1," + b"a," * 200 + b"i", (3, False)),
    ],
)
def test_what_is_read(value: bytes, priority: tuple[int, bool]) -> None:
    assert read_priority(value) == priority


@given(st.binary(max_size=30))
@settings(deadline=None)
def test_nothing_is_too_strange(value: bytes) -> None:
    assert 0 <= read_priority(value).urgency <= 7


def test_many_values_are_forgotten() -> None:
    for number in range(1000):
        read_priority(b"u=1, x=%d" % number)
    assert read_priority(b"") == DEFAULT_PRIORITY


def turns(scheduler: DataScheduler, count: int) -> list[int]:
    return [scheduler.next() for _ in range(count)]


def test_lower_urgency_numbers_go_first() -> None:
    scheduler = DataScheduler()
    scheduler.add(1, StreamPriority(5))
    scheduler.add(3, StreamPriority(3))
    scheduler.add(5, StreamPriority(0, True))
    assert turns(scheduler, 3) == [5, 5, 5]
    scheduler.remove(5)
    assert turns(scheduler, 2) == [3, 3]
    scheduler.remove(3)
    scheduler.remove(3)
    assert turns(scheduler, 1) == [1]
    assert scheduler.places
    scheduler.remove(1)
    assert not scheduler.places
    with pytest.raises(AssertionError):
        scheduler.next()


def test_not_incremental_one_after_another() -> None:
    scheduler = DataScheduler()
    for stream_id in (5, 1, 3):
        scheduler.add(stream_id, DEFAULT_PRIORITY)
    assert turns(scheduler, 3) == [1, 1, 1]
    scheduler.remove(1)
    assert turns(scheduler, 3) == [3, 3, 3]


def test_incremental_in_turn() -> None:
    scheduler = DataScheduler()
    for stream_id in (1, 3, 5):
        scheduler.add(stream_id, StreamPriority(3, True))
    assert turns(scheduler, 6) == [1, 3, 5, 1, 3, 5]
    scheduler.add(1, StreamPriority(3, True))  # nothing new
    scheduler.remove(3)
    assert turns(scheduler, 3) == [1, 5, 1]


def test_both_at_one_urgency_share() -> None:
    scheduler = DataScheduler()
    scheduler.add(1, StreamPriority(3, True))
    scheduler.add(3, StreamPriority(3, False))
    scheduler.add(5, StreamPriority(3, False))
    scheduler.add(7, StreamPriority(3, True))
    assert turns(scheduler, 6) == [3, 1, 3, 7, 3, 1]


def test_a_new_priority() -> None:
    scheduler = DataScheduler()
    scheduler.add(1, StreamPriority(3))
    scheduler.add(3, StreamPriority(3))
    scheduler.add(3, StreamPriority(1))
    assert turns(scheduler, 2) == [3, 3]
    assert 3 in scheduler.places
    assert 5 not in scheduler.places


# ---- on a connection


def respond(peer: H2Peer, stream_id: int, size: int) -> None:
    peer.core.send_head(stream_id, OK, False)
    peer.core.send_data(stream_id, bytes(size), True)
    peer.core.done(stream_id)


def order(peer: H2Peer) -> list[int]:
    """Whose DATA the server sends."""
    return [said.stream_id for said in peer.said() if said.kind == DATA]


def wide_open() -> H2Peer:
    peer = H2Peer()
    peer.send(frames.settings_frame({Setting.INITIAL_WINDOW_SIZE: 1 << 24}), frames.window_update_frame(0, 1 << 24))
    return peer


def update(stream_id: int, value: bytes) -> bytes:
    return frames.frame(PRIORITY_UPDATE, 0, 0, stream_id.to_bytes(4) + value)


def test_the_header_orders_responses() -> None:
    peer = wide_open()
    for stream_id, value in ((1, b"u=5"), (3, b"u=1"), (5, b"u=3, i"), (7, b"u=3, i")):
        peer.request(stream_id, [*GET, (b"priority", value)])
        respond(peer, stream_id, 2 * 16384)
    assert order(peer) == [3, 3, 5, 7, 5, 7, 1, 1]


def test_priority_update() -> None:
    """RFC 9218 7.1: of a stream in progress, of one that has not begun, of one that has ended."""
    peer = wide_open()
    peer.send(update(5, b"u=0"))
    for stream_id in (1, 3):
        peer.request(stream_id)
        respond(peer, stream_id, 2 * 16384)
    peer.request(5, [*GET, (b"priority", b"u=7")])
    respond(peer, 5, 2 * 16384)
    peer.send(update(3, b"u=2"))
    assert order(peer) == [5, 5, 3, 3, 1, 1]
    peer.core.done(1)
    peer.send(update(1, b"u=1"))  # it has ended
    assert peer.core.lost is None
    assert not peer.core.receiver.early_priorities


def test_a_small_response_does_not_wait_behind_a_large_one() -> None:
    peer = wide_open()
    peer.request(1)
    respond(peer, 1, 1 << 20)
    peer.said(room=20_000)
    peer.request(3, [*GET, (b"priority", b"u=1")])
    respond(peer, 3, 1000)
    assert order(peer)[0] == 3


def test_priorities_of_streams_that_are_refused_or_left_out_are_forgotten() -> None:
    peer = H2Peer(max_streams=1)
    peer.request(1)
    for stream_id in range(3, 8 * MAX_PRIORITY_UPDATES, 4):
        peer.clock.now += 1
        peer.send(update(stream_id, b"u=1"), update(stream_id + 2, b"u=2"), peer.headers(stream_id + 2))
    assert peer.core.lost is None
    assert len(peer.core.receiver.early_priorities) <= MAX_PRIORITY_UPDATES


def test_priorities_of_streams_that_never_come_are_bounded() -> None:
    peer = H2Peer()
    for number in range(MAX_PRIORITY_UPDATES):
        peer.send(update(2 * number + 1, b"u=1"))
    assert peer.core.lost is None
    peer.send(update(9999, b"u=1"))
    assert peer.lost() is ErrorCode.ENHANCE_YOUR_CALM
