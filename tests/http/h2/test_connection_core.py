"""A connection as its shell has it: output, shutdown in two steps, holding still, going to another process."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from serve_asgi.http.h2 import frames, header_encoder
from serve_asgi.http.h2.connection_core import ConnectionCore
from serve_asgi.http.h2.connection_value import export_connection, import_connection, unsent
from serve_asgi.http.h2.error_codes import ErrorCode
from serve_asgi.http.h2.events import StreamData, StreamEnd, StreamRequest, StreamReset
from serve_asgi.http.h2.frames import GOAWAY, MAX_STREAM_ID, PING, frame, reset_frame
from serve_asgi.http.h2.header_decoder import Field
from serve_asgi.http.h2.limits import CONNECTION_WINDOW
from serve_asgi.http.h2.receiving import SHUTDOWN_PING, Leaving
from serve_asgi.http.h2.settings import Setting
from serve_asgi.ipc.packets import check_http2_state
from tests.http.h2.peer import GET, MAX_HEAD, OK, POST, H2Peer, Said, accept_all, data, of


def fields(peer: H2Peer, said: Said) -> list[tuple[bytes, bytes]]:
    assert said.kind == frames.HEADERS
    return [(bytes(name), bytes(value)) for name, value in peer.decoder.decode(said.payload, raw=True)]


# ---- output


def test_a_small_response_is_two_frames_at_once() -> None:
    peer = H2Peer()
    peer.request(1)
    peer.request(3)
    for stream_id in (1, 3):
        peer.respond(stream_id, b"hello", [*OK, (b"content-length", b"5")])
    assert peer.core.waiting
    said = peer.said()
    assert [(each.kind, each.stream_id, each.flags) for each in said] == [(1, 1, 4), (0, 1, 1), (1, 3, 4), (0, 3, 1)]
    assert fields(peer, said[0]) == [*OK, (b"content-length", b"5")]
    assert fields(peer, said[2]) == [*OK, (b"content-length", b"5")]
    assert not peer.core.waiting
    assert peer.core.resting


def test_interim_responses() -> None:
    peer = H2Peer()
    peer.request(1)
    peer.core.send_interim(1, [(b":status", b"103"), (b"link", b"</a>")])
    peer.core.send_head(1, OK, True)
    peer.core.send_interim(1, [(b":status", b"103")])
    peer.core.done(1)
    first, second = peer.said()
    assert (first.flags, second.flags) == (frames.END_HEADERS, frames.END_HEADERS | frames.END_STREAM)
    assert fields(peer, first)[0] == (b":status", b"103")


def test_trailers_without_a_body() -> None:
    peer = H2Peer()
    peer.request(1)
    peer.core.send_head(1, OK, False)
    peer.core.send_trailers(1, [(b"grpc-status", b"0")])
    peer.core.done(1)
    assert [each.flags for each in peer.said()] == [4, 5]
    assert peer.core.resting


def test_the_table_that_the_client_allows() -> None:
    """RFC 7541 4.2."""
    header_encoder._known.clear()
    peer = H2Peer()
    many = [*OK, (b"x-a", b"1")]
    for number in range(3):
        peer.request(2 * number + 1)
        peer.respond(2 * number + 1, fields=many)
    said = [each for each in peer.said() if each.kind == frames.HEADERS]
    assert [fields(peer, each) for each in said] == [many] * 3
    peer.send(frames.settings_frame({1: 0}), frames.settings_frame({1: 100}))
    peer.decoder.max_allowed_table_size = 100
    for number in range(3, 6):
        peer.request(2 * number + 1)
        peer.respond(2 * number + 1, fields=many)
    said = [each for each in peer.said() if each.kind == frames.HEADERS]
    assert said[0].payload.startswith(b"\x20\x3f\x45")
    assert [fields(peer, each) for each in said] == [many] * 3


def test_a_client_that_takes_larger_frames() -> None:
    """Head blocks use them; DATA stays at 16 KiB, so that others have their turns."""
    peer = H2Peer()
    peer.send(frames.settings_frame({5: 1 << 20, 4: 1 << 20}), frames.window_update_frame(0, 1 << 20))
    peer.request(1)
    peer.core.send_head(1, [*OK, (b"x", b"v" * 40_000)], False)
    peer.core.send_data(1, bytes(40_000), True)
    said = [each for each in peer.said() if each.stream_id]
    assert [each.kind for each in said] == [1, 0, 0, 0]
    assert len(said[0].payload) > 40_000


def test_nothing_is_said_after_the_end() -> None:
    peer = H2Peer()
    peer.request(1)
    peer.send(frame(frames.PUSH_PROMISE, 0, 1, b""))
    assert peer.core.lost is not None
    assert peer.core.lost.code is ErrorCode.PROTOCOL_ERROR
    peer.respond(1, b"late")
    said = peer.said()
    assert said[-1].kind == GOAWAY
    assert said[-1].payload == b"\x00\x00\x00\x01\x00\x00\x00\x01a client cannot push (RFC 9113 8.4)"
    peer.core.announce_shutdown()
    peer.core.finish_shutdown()
    peer.core.hold()
    assert peer.said() == []
    assert peer.core.release() == []


# ---- shutdown (RFC 9113 6.8)


def test_shutdown_in_two_steps() -> None:
    peer = H2Peer()
    peer.request(1, POST, ended=False)
    peer.core.announce_shutdown()
    peer.core.announce_shutdown()
    first, ping = peer.said()
    assert first.payload[:8] == MAX_STREAM_ID.to_bytes(4) + bytes(4)
    assert ping.payload == SHUTDOWN_PING
    assert of(StreamRequest, peer.request(3))  # on its way meanwhile
    assert peer.send(frames.ping_frame(b"elsewise", True)) == []
    assert peer.core.shutting_down is Leaving.ANNOUNCED
    peer.send(frames.ping_frame(SHUTDOWN_PING, True))
    (last,) = peer.said()
    assert (last.kind, last.payload[:4]) == (GOAWAY, b"\x00\x00\x00\x03")
    peer.core.finish_shutdown()
    assert peer.said() == []
    # What comes on later streams is ignored, and what it does to the table and the windows is done.
    ignored = peer.headers(5, [*POST, (b"x-a", b"1")], ended=False) + data(5, b"abc") + data(5, b"", ended=True)
    assert peer.send(ignored, frames.window_update_frame(5, 1), frames.reset_frame(5, 8)) == []
    assert peer.send(data(1, b"abc"), peer.headers(1, [(b"x-a", b"1")])) == [
        StreamData(1, b"abc"),
        StreamEnd(1, [(b"x-a", b"1")]),
    ]
    peer.respond(1)
    assert not peer.core.resting
    peer.respond(3, b"ok")
    assert peer.core.resting
    assert peer.core.lost is None


def test_a_client_that_does_not_answer() -> None:
    peer = H2Peer()
    peer.core.announce_shutdown()
    peer.core.finish_shutdown()
    assert [each.kind for each in peer.said()] == [GOAWAY, PING, GOAWAY]
    assert peer.core.shutting_down is Leaving.FINAL


# ---- holding still


def test_new_requests_wait_and_others_go_on() -> None:
    peer = H2Peer()
    peer.request(1, POST, ended=False)
    peer.core.hold()
    assert peer.core.holding
    events = peer.send(
        data(1, b"abc"),
        peer.headers(3, [*POST, (b"x-a", b"1")], ended=False),
        frame(frames.PRIORITY_UPDATE, 0, 0, b"\x00\x00\x00\x03u=1"),
        frame(frames.PRIORITY_UPDATE, 0, 0, b"\x00\x00\x00\x01u=1"),
        data(3, b"def"),
        frames.window_update_frame(3, 5),
        frames.ping_frame(b"12345678", False),
        data(1, b"", ended=True),
        frames.reset_frame(3, ErrorCode.CANCEL),
    )
    assert events == [StreamData(1, b"abc"), StreamEnd(1, [])]
    assert [each.kind for each in peer.said()] == [PING]
    peer.respond(1)
    assert peer.core.resting
    assert [type(event).__name__ for event in peer.core.release()] == ["StreamRequest", "StreamData", "StreamReset"]
    assert not peer.core.holding


@pytest.mark.parametrize("pieces", [1, 2, 3])
def test_trailers_behind_held_heads_have_those_begin_and_holding_goes_on(pieces: int) -> None:
    """They may need what the heads do to the table, and the request in progress ends with them."""
    peer = H2Peer()
    peer.request(1, POST, ended=False)
    peer.core.hold()
    assert peer.send(peer.headers(3, [*POST, (b"x-a", b"1")], ended=False), data(3, b"abc"), peer.headers(5)) == []
    block = peer.block([(b"x-a", b"1")])
    trailers = [frame(1, 1, 1, block[:1]), *[frame(9, 0, 1, block[each : each + 1]) for each in range(1, pieces)]]
    events = peer.send(*trailers, frame(9, 4, 1, block[pieces:]), reset_frame(1, ErrorCode.CANCEL))
    assert [type(event) for event in events] == [StreamRequest, StreamData, StreamRequest, StreamEnd, StreamReset]
    assert events[3] == StreamEnd(1, [(b"x-a", b"1")])
    assert peer.core.holding
    assert peer.send(peer.headers(7), data(3, b"def", ended=True)) == [StreamData(3, b"def"), StreamEnd(3, [])]
    for stream_id in (3, 5):
        peer.respond(stream_id)
    assert peer.core.resting
    assert [event.stream_id for event in of(StreamRequest, peer.core.release())] == [7]
    assert peer.core.lost is None


def test_a_block_under_way_when_holding_begins() -> None:
    peer = H2Peer()
    whole = peer.block(GET)
    peer.send(frame(1, 1, 1, whole[:3]), frame(9, 0, 1, whole[3:5]))
    peer.core.hold()
    assert peer.send(frame(9, 4, 1, whole[5:])) == []
    assert of(StreamRequest, peer.core.release())


def test_trailers_under_way_when_holding_begins() -> None:
    peer = H2Peer()
    peer.request(1, POST, ended=False)
    block = peer.block([(b"x-a", b"1")])
    peer.send(frame(1, 1, 1, block[:3]))
    peer.core.hold()
    assert peer.send(frame(9, 4, 1, block[3:])) == [StreamEnd(1, [(b"x-a", b"1")])]


def test_nothing_is_held_within_trailers_under_way() -> None:
    """Found by the fuzzer: what must not come there would have changed its place with the trailers on a journey."""
    peer = H2Peer()
    peer.request(1, POST, ended=False)
    peer.send(frame(frames.HEADERS, frames.END_STREAM, 1, b""))
    peer.core.hold()
    peer.send(data(3, b"a"))
    assert peer.lost() is ErrorCode.PROTOCOL_ERROR


def test_too_much_to_hold_is_not_held() -> None:
    peer = H2Peer()
    peer.core.hold()
    assert peer.send(peer.headers(1, POST, ended=False), *[data(1, bytes(16384))] * 3) == []
    events = peer.send(data(1, bytes(16384)))
    assert [type(event) for event in events] == [StreamRequest, *[StreamData] * 4]
    assert not peer.core.holding
    assert peer.core.release() == []


def test_what_was_held_may_be_wrong() -> None:
    peer = H2Peer()
    peer.core.hold()
    peer.send(data(7, b"a"))
    assert peer.core.lost is None
    assert peer.core.release()[-1] == peer.core.lost
    assert peer.lost() is ErrorCode.PROTOCOL_ERROR


# ---- to another process


def move(peer: H2Peer, rest: bytes = b"", going_on: Sequence[int] = ()) -> None:
    """Go on with another core, as after a hand-over; the clock goes on too."""
    exported, unread = export_connection(peer.core, going_on)
    waits = {stream_id: unsent(peer.core, stream_id) for stream_id in going_on}
    value = json.loads(json.dumps(exported))
    check_http2_state(value)
    core = ConnectionCore(MAX_HEAD, accept_all, clock=peer.clock)
    import_connection(core, value)
    for stream_id, waiting in waits.items():
        core.send_data(stream_id, waiting, False)
    peer.core = core
    peer.events += core.receive(unread + rest)


def test_a_connection_goes_on_elsewhere() -> None:
    peer = H2Peer()
    peer.send(frames.settings_frame({1: 2048, 4: 1000, 5: 20_000}), frames.window_update_frame(0, 77))
    body = [*POST, (b"x-a", b"1")]
    answer = [*OK, (b"x-served-by", b"web-1"), (b"x-secret", b"no")]
    said = []
    for number in range(12):
        stream_id = 2 * number + 1
        peer.request(stream_id, body, ended=False)
        peer.send(data(stream_id, bytes(4096)), data(stream_id, b"", ended=True))
        peer.core.consumed(stream_id, 4096)
        peer.respond(stream_id, b"ok", answer)
        said += peer.said()
        if number % 3 == 2:
            move(peer)
    responses = [fields(peer, each) for each in said if each.kind == frames.HEADERS]
    assert responses == [answer] * 12
    heads = [event.head.headers for event in of(StreamRequest, peer.events)]
    assert heads == [[(b"host", b"a"), (b"x-a", b"1")]] * 12
    receiver = peer.core.receiver
    assert receiver.requests == 12
    assert receiver.settings.max_frame_size == 20_000
    assert receiver.sender.window == 65535 + 77 - 24
    assert receiver.streams.window.left == CONNECTION_WINDOW - 12 * 4096


@pytest.mark.parametrize("cut", range(60))
def test_it_may_leave_at_any_byte(cut: int) -> None:
    """Also within the preface, a frame's head, its payload, or a header block."""
    peer = H2Peer(begun=False)
    peer.core.begin(MAX_HEAD)
    block = peer.block(GET)
    sent = (
        frames.PREFACE + frames.settings_frame({4: 5}) + frame(1, 1, 1, block[:2]) + frame(9, 0, 1, block[2:])
        + frame(9, 4, 1, b"")
    )  # fmt: skip
    peer.send(sent[:cut])
    assert peer.core.resting
    peer.core.take_output()
    move(peer, sent[cut:])
    assert len(of(StreamRequest, peer.events)) == 1
    assert peer.core.receiver.settings.initial_window == 5


def test_what_was_held_travels() -> None:
    peer = H2Peer()
    peer.request(1)
    peer.core.hold()
    peer.send(peer.headers(3, [*GET, (b"x-a", b"1")]), frames.window_update_frame(3, 5), peer.headers(5)[:11])
    peer.respond(1)
    peer.said()
    move(peer)
    assert of(StreamRequest, peer.events)[-1].stream_id == 3
    assert of(StreamRequest, peer.events)[-1].head.headers[-1] == (b"x-a", b"1")


def test_what_was_counted_travels() -> None:
    """Nobody gets a fresh start from a reload."""
    peer = H2Peer()
    for _ in range(60):
        peer.send(frames.ping_frame(b"12345678", False))
    peer.said()
    move(peer)
    for _ in range(60):
        peer.send(frames.ping_frame(b"12345678", False))
    assert peer.lost() is ErrorCode.ENHANCE_YOUR_CALM


def test_early_priorities_and_ended_streams_travel() -> None:
    peer = H2Peer()
    peer.request(3, POST, ended=False)
    peer.core.reset(3, ErrorCode.CANCEL)
    peer.core.done(3)
    peer.send(frame(frames.PRIORITY_UPDATE, 0, 0, b"\x00\x00\x00\x07u=1, i"))
    peer.said()
    move(peer)
    assert peer.send(data(3, b"late")) == []
    assert peer.core.receiver.early_priorities == {7: (1, True)}
    peer.send(peer.headers(1))
    assert peer.lost() is ErrorCode.PROTOCOL_ERROR


def test_a_malformed_field_travels_as_such() -> None:
    peer = H2Peer()
    bad = [*GET, (b"x-a", b"1\r\n2")]
    peer.request(1, bad)
    peer.core.reset(1, ErrorCode.PROTOCOL_ERROR)
    peer.core.done(1)
    peer.said()
    move(peer)
    assert type(peer.request(3, bad)[0]).__name__ == "StreamRefusal"


def test_it_leaves_only_when_it_rests() -> None:
    peer = H2Peer()
    peer.request(1)
    with pytest.raises(RuntimeError, match="when it rests"):
        export_connection(peer.core)
    peer.core.send_head(1, OK, True)
    peer.said()
    value, rest = export_connection(peer.core)  # its application has not returned, and needs no connection for that
    assert rest == b""
    with pytest.raises(ValueError, match="version 99"):
        import_connection(ConnectionCore(MAX_HEAD, accept_all), {**value, "version": 99})


# ---- with streams that go on there


def test_open_streams_go_on_elsewhere() -> None:
    """With what waits for their windows, their priorities, and what the client has not been granted again."""
    peer = H2Peer()
    peer.send(frames.settings_frame({4: 10}))
    peer.request(1, [*GET, (b"priority", b"u=1, i")])
    peer.request(3, POST, ended=False)
    peer.send(data(3, bytes(100), ended=True))
    for stream_id in (1, 3):
        peer.core.send_head(stream_id, OK, False)
        peer.core.send_data(stream_id, b"%d" % stream_id * 25, False)
    said = peer.said()
    move(peer, going_on=[1, 3])
    assert not peer.core.waiting
    assert not peer.core.resting
    assert peer.core.waits(1)
    stream = peer.core.receiver.streams.by_id[1]
    assert (stream.urgency, stream.incremental, stream.send_window) == (1, True, 0)
    peer.core.consumed(3, 100)
    assert peer.core.receiver.streams.by_id[3].receive_window is not None
    assert peer.core.receiver.streams.by_id[3].receive_window.waiting == 0
    for stream_id in (3, 1):
        peer.send(frames.window_update_frame(stream_id, 30))
    peer.core.send_data(1, b"", True)
    peer.core.send_trailers(3, [(b"grpc-status", b"0")])
    said += peer.said()
    for stream_id in (1, 3):
        content = b"".join(each.payload for each in said if each.stream_id == stream_id and each.kind == frames.DATA)
        assert content == b"%d" % stream_id * 25
        assert [each.flags & 1 for each in said if each.stream_id == stream_id][-1] == 1
        peer.core.done(stream_id)
    assert peer.core.resting
    peer.request(5)
    peer.respond(5, b"next")
    assert peer.said()[-1].payload == b"next"


def test_a_stream_that_went_on_elsewhere_can_be_reset() -> None:
    peer = H2Peer()
    peer.request(1)
    peer.core.send_head(1, OK, False)
    peer.said()
    move(peer, reset_frame(1, ErrorCode.CANCEL), [1])
    assert of(StreamReset, peer.events)[-1].stream_id == 1
    assert peer.core.resting
    peer.core.done(1)


def test_streams_go_on_elsewhere_after_the_last_one_was_said() -> None:
    peer = H2Peer()
    peer.request(1)
    peer.core.send_head(1, OK, False)
    peer.core.announce_shutdown()
    peer.said()
    with pytest.raises(RuntimeError, match="when it rests"):
        export_connection(peer.core, [1])
    peer.core.finish_shutdown()
    peer.said()
    move(peer, peer.headers(3), [1])
    assert peer.core.shutting_down is Leaving.FINAL
    assert [event.stream_id for event in of(StreamRequest, peer.events)] == [1]
    peer.core.send_data(1, b"", True)
    peer.core.done(1)
    assert peer.core.resting
    peer.said()
    with pytest.raises(RuntimeError, match="nothing more can come"):
        export_connection(peer.core)


def test_streams_that_cannot_go_on_elsewhere() -> None:
    peer = H2Peer()
    for stream_id, fields in ((1, GET), (3, GET), (5, [*POST, (b"content-length", b"9")])):
        peer.request(stream_id, fields, ended=fields is GET)
    peer.core.send_head(1, OK, False)
    peer.core.send_head(5, OK, False)
    peer.said()
    with pytest.raises(RuntimeError, match="when it rests"):
        export_connection(peer.core, [1, 5])
    with pytest.raises(RuntimeError, match="with stream 3"):
        export_connection(peer.core, [1, 3, 5])
    peer.core.reset(3, ErrorCode.CANCEL)
    peer.said()
    with pytest.raises(RuntimeError, match="with stream 5"):
        export_connection(peer.core, [1, 5])


# ---- no more at once than the others can wait for


def test_requests_wait_for_the_next_turn() -> None:
    """Nothing of what follows them is lost, nor comes before them."""
    peer = H2Peer()
    peer.core.receiver.at_once = 3
    heads = [peer.headers(stream_id, POST, ended=False) for stream_id in range(1, 17, 2)]
    turns = [peer.send(*heads, *(data(stream_id, b"body", True) for stream_id in range(1, 17, 2)))]
    while peer.core.more:
        turns.append(peer.core.receive(b""))
    assert [len(of(StreamRequest, events)) for events in turns] == [3, 3, 2]
    kinds = [type(event) for events in turns for event in events]
    assert kinds == [StreamRequest] * 8 + [StreamData, StreamEnd] * 8
    assert peer.core.receive(b"") == []


def test_what_waits_for_the_next_turn_travels() -> None:
    peer = H2Peer()
    peer.core.receiver.at_once = 1
    peer.send(*(peer.headers(stream_id) for stream_id in (1, 3, 5)))
    assert peer.core.more
    peer.core.send_head(1, OK, True)
    peer.core.done(1)
    peer.said()
    move(peer)
    assert [event.stream_id for event in of(StreamRequest, peer.events)] == [1, 3, 5]


def test_a_connection_that_is_lost_has_nothing_more() -> None:
    peer = H2Peer()
    peer.core.receiver.at_once = 1
    peer.send(peer.headers(1), peer.headers(3), frame(PING, 0, 0, b"too short"))
    assert peer.core.more
    peer.core.receive(b"")
    peer.core.receive(b"")
    assert peer.lost() is ErrorCode.FRAME_SIZE_ERROR
    assert not peer.core.more
    assert peer.core.receive(b"") == []


LARGE: Field = (b"x", b"".join(b"%08x" % (number * 2654435761 % (1 << 32)) for number in range(4096)))
"""More than a frame has, also compressed."""


def test_a_head_of_several_frames() -> None:
    peer = H2Peer()
    for stream_id in (1, 3):
        peer.request(stream_id)
    peer.core.send_head(1, [*OK, LARGE], True)
    peer.respond(3, b"abc", [*OK, LARGE])
    said = [(each.kind, each.stream_id) for each in peer.said()]
    several = [frames.HEADERS, *[frames.CONTINUATION] * (len([kind for kind, of in said if of == 1]) - 1)]
    assert len(several) > 1
    assert said == [*((kind, 1) for kind in several), *((kind, 3) for kind in several), (frames.DATA, 3)]


def test_what_is_asked_of_streams() -> None:
    peer = H2Peer(begun=False)
    core = peer.core
    assert (core.settled, core.in_the_middle) == (False, True)
    core.begin(MAX_HEAD)
    peer.send(frames.PREFACE, frames.settings_frame({Setting.INITIAL_WINDOW_SIZE: 10}))
    assert (core.settled, core.in_the_middle, core.more, core.requests) == (True, False, False, 0)
    peer.request(1, POST, False)
    assert core.requests == 1
    assert core.is_open(1)
    assert not core.is_open(3)
    assert core.may_receive(1)
    assert not core.may_receive(3)
    core.send_head(1, OK, False)
    core.send_data(1, b"x" * 30, False)
    before = core.progress(1)
    peer.said()
    assert (core.waits(1), core.queued(1), core.progress(1) > before) == (True, 20, True)
    assert (core.waits(3), core.queued(3), core.progress(3)) == (False, 0, 0)
    stuck = core.progress(1)
    peer.send(frames.ping_frame(bytes(8), False))
    peer.said()
    assert core.progress(1) == stuck
    peer.send(frames.window_update_frame(1, 40))
    peer.said()
    assert not core.waits(1)
    core.reset(1, ErrorCode.CANCEL)
    assert (core.take_resets(), core.take_resets()) == (1, 0)
    peer.send(frames.ping_frame(bytes(8), False)[:12])
    assert core.in_the_middle


def test_a_stream_that_is_taken_up_again_counts_for_the_limit() -> None:
    peer = H2Peer(max_streams=1)
    peer.request(1)
    peer.core.done(1)
    peer.core.take_up(1)
    assert peer.core.open_streams() == [1]
    peer.core.take_up(3)
    peer.send(reset_frame(1, ErrorCode.CANCEL))
    peer.said()
    peer.request(3)
    assert peer.reset_code() is ErrorCode.REFUSED_STREAM
    peer.core.done(1)
    assert of(StreamRequest, peer.request(5))


def test_an_abandoned_connection_has_no_streams() -> None:
    peer = H2Peer()
    peer.request(1)
    peer.core.abandon()
    assert peer.core.resting
    assert not peer.core.is_open(1)
