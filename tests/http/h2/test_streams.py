"""The life of streams (RFC 9113 5.1), and frames on those that have ended."""

from __future__ import annotations

import pytest

from serve_asgi.http.h2 import frames
from serve_asgi.http.h2.error_codes import ConnectionFault, ErrorCode, StreamFault
from serve_asgi.http.h2.events import StreamData, StreamEnd, StreamRefusal, StreamRequest, StreamReset
from serve_asgi.http.h2.limits import MAX_GAPS, REMEMBERED
from serve_asgi.http.h2.streams import TRANSITIONS, EndedStreams, Stream, StreamState, StreamStep
from tests.http.h2.peer import GET, OK, POST, H2Peer, data, of

PROTOCOL, CLOSED = ErrorCode.PROTOCOL_ERROR, ErrorCode.STREAM_CLOSED
LENGTH_3 = [*POST, (b"content-length", b"3")]


def test_the_table_is_that_of_the_rfc() -> None:
    ways = {
        (StreamState(state).name, StreamStep(step).name): after.name
        for state, steps in enumerate(TRANSITIONS)
        for step, after in enumerate(steps)
        if after is not None
    }
    assert ways == {
        ("IDLE", "RECEIVE_HEADERS"): "OPEN",
        ("OPEN", "RECEIVE_HEADERS"): "OPEN",
        ("OPEN", "RECEIVE_DATA"): "OPEN",
        ("OPEN", "RECEIVE_END"): "HALF_CLOSED_REMOTE",
        ("OPEN", "RECEIVE_RESET"): "CLOSED",
        ("OPEN", "SEND_HEADERS"): "OPEN",
        ("OPEN", "SEND_DATA"): "OPEN",
        ("OPEN", "SEND_END"): "HALF_CLOSED_LOCAL",
        ("OPEN", "SEND_RESET"): "CLOSED",
        ("HALF_CLOSED_REMOTE", "RECEIVE_RESET"): "CLOSED",
        ("HALF_CLOSED_REMOTE", "SEND_HEADERS"): "HALF_CLOSED_REMOTE",
        ("HALF_CLOSED_REMOTE", "SEND_DATA"): "HALF_CLOSED_REMOTE",
        ("HALF_CLOSED_REMOTE", "SEND_END"): "CLOSED",
        ("HALF_CLOSED_REMOTE", "SEND_RESET"): "CLOSED",
        ("HALF_CLOSED_LOCAL", "RECEIVE_HEADERS"): "HALF_CLOSED_LOCAL",
        ("HALF_CLOSED_LOCAL", "RECEIVE_DATA"): "HALF_CLOSED_LOCAL",
        ("HALF_CLOSED_LOCAL", "RECEIVE_END"): "CLOSED",
        ("HALF_CLOSED_LOCAL", "RECEIVE_RESET"): "CLOSED",
        ("HALF_CLOSED_LOCAL", "SEND_RESET"): "CLOSED",
    }


def test_a_step_that_may_not_be() -> None:
    stream = Stream(1, 0, StreamState.IDLE)
    with pytest.raises(RuntimeError, match="stream 1 is IDLE: SEND_DATA"):
        stream.step(StreamStep.SEND_DATA)
    with pytest.raises(StreamFault):
        stream.step(StreamStep.RECEIVE_DATA)
    assert stream.state is StreamState.IDLE


def half_closed_remote(peer: H2Peer) -> None:
    peer.request(1)


def ended_by_both(peer: H2Peer) -> None:
    peer.request(1)
    peer.respond(1)


def ended_by_both_the_client_last(peer: H2Peer) -> None:
    peer.request(1, POST, ended=False)
    peer.respond(1)
    peer.send(data(1, b"", ended=True))


def reset_by_the_client(peer: H2Peer) -> None:
    peer.request(1, POST, ended=False)
    peer.send(frames.reset_frame(1, ErrorCode.CANCEL))


def reset_by_the_server(peer: H2Peer) -> None:
    peer.request(1, POST, ended=False)
    peer.core.reset(1, ErrorCode.INTERNAL_ERROR)


def left_out(peer: H2Peer) -> None:
    peer.request(3)
    peer.respond(3)


WINDOW, RESET, DATA = frames.window_update_frame(1, 5), frames.reset_frame(1, 8), data(1, b"a")
PRIORITY = frames.frame(frames.PRIORITY, 0, 1, bytes(5))


@pytest.mark.parametrize(
    ("begin", "sent", "reset", "lost"),
    [
        # 5.1, half-closed (remote): other than WINDOW_UPDATE, PRIORITY or RST_STREAM: STREAM_CLOSED on the stream
        (half_closed_remote, DATA, CLOSED, None),
        (half_closed_remote, "HEADERS", CLOSED, None),
        (half_closed_remote, WINDOW, None, None),
        (half_closed_remote, PRIORITY, None, None),
        (half_closed_remote, RESET, None, None),
        # 5.1, closed: behind both ends, or its own RST_STREAM, the client has nothing to send
        (ended_by_both, DATA, None, CLOSED),
        (ended_by_both, "HEADERS", None, CLOSED),
        (ended_by_both, WINDOW, None, None),
        (ended_by_both, PRIORITY, None, None),
        (ended_by_both, RESET, None, None),
        (ended_by_both_the_client_last, DATA, None, CLOSED),
        (ended_by_both_the_client_last, "HEADERS", None, CLOSED),
        (reset_by_the_client, DATA, None, CLOSED),
        (reset_by_the_client, "HEADERS", None, CLOSED),
        (reset_by_the_client, WINDOW, None, None),
        (reset_by_the_client, PRIORITY, None, None),
        # what may have been on its way when the server reset the stream
        (reset_by_the_server, DATA, None, None),
        (reset_by_the_server, "HEADERS", None, None),
        (reset_by_the_server, WINDOW, None, None),
        (reset_by_the_server, RESET, None, None),
        (reset_by_the_server, PRIORITY, None, None),
        # 5.1.1: a stream that was left out is closed and can never begin
        (left_out, "HEADERS", None, PROTOCOL),
        (left_out, DATA, None, CLOSED),
        (left_out, PRIORITY, None, None),
    ],
)
def test_frames_on_streams_that_have_ended(
    begin: object, sent: bytes | str, reset: ErrorCode | None, lost: ErrorCode | None
) -> None:
    peer = H2Peer()
    begin(peer)  # type: ignore[operator]
    peer.said()
    peer.send(peer.headers(1) if isinstance(sent, str) else sent)
    if lost is not None:
        assert peer.lost() is lost
        return
    assert peer.core.lost is None
    assert peer.reset_code() is reset
    peer.request(5)  # the table is as it should be
    assert of(StreamRequest, peer.events)[-1].head.headers == [(b"host", b"a")]


def test_a_websocket_has_no_length() -> None:
    """RFC 8441 5: DATA goes both ways until one side ends."""
    peer = H2Peer()
    peer.request(1, [(b":method", b"CONNECT"), *GET[1:], (b":protocol", b"websocket")], ended=False)
    peer.core.send_head(1, OK, False)
    peer.core.send_data(1, b"\x81\x01a", False)
    assert peer.send(data(1, b"frame")) == [StreamData(1, b"frame")]
    assert peer.send(data(1, b"", ended=True)) == [StreamEnd(1, [])]
    peer.core.send_data(1, b"", True)
    peer.core.done(1)
    assert peer.core.resting


def test_trailers() -> None:
    peer = H2Peer()
    peer.request(1, POST, ended=False)
    events = peer.send(data(1, b"abc"), peer.headers(1, [(b"x-sum", b"1")]))
    assert events == [StreamData(1, b"abc"), StreamEnd(1, [(b"x-sum", b"1")])]


@pytest.mark.parametrize(
    ("fields", "ended"),
    [
        ([(b"x-sum", b"1")], False),
        ([(b":path", b"/")], True),
        ([(b"X-Sum", b"1")], True),
        ([(b"connection", b"close")], True),
        ([(b"content-length", b"3")], True),
        ([(b"x", b"a\r\nb")], True),
    ],
)
def test_trailers_that_may_not_be(fields: list[tuple[bytes, bytes]], ended: bool) -> None:
    """RFC 9113 8.1: malformed, an error of the stream."""
    peer = H2Peer()
    peer.request(1, POST, ended=False)
    events = peer.send(peer.headers(1, fields, ended))
    assert [type(event) for event in events] == [StreamReset]
    assert peer.reset_code() is PROTOCOL


@pytest.mark.parametrize(
    ("sent", "good"),
    [
        ([data(1, b"abc", True)], True),
        ([data(1, b"a"), data(1, b"bc", True)], True),
        ([data(1, b"abc"), data(1, b"", True)], True),
        ([data(1, b"abcd")], False),
        ([data(1, b"ab", True)], False),
        ([data(1, b"abc"), data(1, b"d", True)], False),
        ([data(1, b"", True)], False),
    ],
)
def test_content_length_against_data(sent: list[bytes], good: bool) -> None:
    """RFC 9113 8.1.1."""
    peer = H2Peer()
    peer.request(1, LENGTH_3, ended=False)
    events = peer.send(*sent)
    assert bool(of(StreamEnd, events)) is good
    assert peer.reset_code() is (None if good else PROTOCOL)


def test_content_length_and_trailers() -> None:
    peer = H2Peer()
    peer.request(1, LENGTH_3, ended=False)
    assert of(StreamReset, peer.send(data(1, b"a"), peer.headers(1, [(b"x", b"1")])))
    peer.request(3, [*POST, (b"content-length", b"0")], ended=False)
    assert of(StreamEnd, peer.send(data(3, b"", True)))


def test_a_response_before_the_request_is_whole() -> None:
    """RFC 9113 8.1: what still comes is taken, or the client is asked to stop."""
    peer = H2Peer()
    peer.request(1, POST, ended=False)
    peer.respond(1, b"early")
    assert not peer.core.resting
    assert peer.send(data(1, b"abc")) == [StreamData(1, b"abc")]
    peer.core.discard(1)
    assert peer.send(data(1, b"abc")) == []
    peer.said()
    peer.core.reset(1, ErrorCode.NO_ERROR)
    assert peer.reset_code() is ErrorCode.NO_ERROR
    assert peer.core.resting
    assert peer.send(data(1, b"abc")) == []


def test_a_reset_behind_a_whole_response() -> None:
    """It wastes nobody's work, and is not counted as one that does."""
    peer = H2Peer()
    for stream_id in range(1, 2001, 2):
        peer.request(stream_id, POST, ended=False)
        peer.core.send_head(stream_id, OK, False)
        peer.core.send_data(stream_id, b"", False)
        peer.core.send_data(stream_id, b"ok", True)
        peer.core.done(stream_id)
        assert of(StreamReset, peer.send(frames.reset_frame(stream_id, ErrorCode.NO_ERROR)))
    assert peer.core.lost is None
    assert "RESETS" not in peer.core.receiver.floods.levels()


def test_no_more_at_once_than_allowed() -> None:
    """RFC 9113 5.1.2: one more is refused, and may be asked for again; also where the others were reset meanwhile."""
    peer = H2Peer(max_streams=2)
    peer.request(1)
    peer.request(3)
    peer.send(frames.reset_frame(1, ErrorCode.CANCEL))
    assert peer.request(5) == []
    assert peer.reset_code() is ErrorCode.REFUSED_STREAM
    peer.core.done(1)
    assert of(StreamRequest, peer.request(7, [*GET, (b"x-new", b"1")]))
    peer.respond(7)
    peer.core.send_head(3, OK, False)
    peer.core.send_data(3, bytes(100_000), True)
    peer.core.done(3)
    assert of(StreamRequest, peer.request(9))
    assert peer.request(11) == []  # the response to 3 is not out yet


def test_nothing_happens_on_streams_that_are_gone() -> None:
    peer = H2Peer()
    peer.request(1, POST, ended=False)
    peer.send(frames.reset_frame(1, ErrorCode.CANCEL))
    core = peer.core
    core.send_interim(1, [(b":status", b"103")])
    core.send_head(1, OK, False)
    assert core.send_data(1, b"abc", True) == 0
    core.send_trailers(1, [])
    core.consumed(1, 3)
    core.discard(1)
    core.reset(1, ErrorCode.CANCEL)
    core.done(1)
    assert peer.said() == []
    assert core.resting


def test_refused_requests_are_answered() -> None:
    peer = H2Peer()
    (event,) = peer.request(1, [*POST, (b"connection", b"close")], ended=False)
    assert isinstance(event, StreamRefusal)
    assert (event.stream_id, event.refused.status, event.method, event.ended) == (1, 400, b"POST", False)
    peer.core.send_head(1, [(b":status", b"400")], False)
    peer.core.send_data(1, b"why\n", False)
    peer.core.reset(1, ErrorCode.PROTOCOL_ERROR)
    peer.core.done(1)
    assert [said.kind for said in peer.said()] == [frames.HEADERS, frames.DATA, frames.RST_STREAM]
    assert peer.core.resting


class TestEndedStreams:
    def test_memory_is_bounded(self) -> None:
        ended = EndedStreams()
        for number in range(1, 8 * REMEMBERED, 2):
            ended.begin(number)
            ended.has_been_reset(number)
        ended.judge(1, headers=True)  # forgotten: it may be anybody's right
        ended.judge(ended.last, headers=False)
        assert len(ended.to_json()["reset"]) == REMEMBERED

    def test_gaps(self) -> None:
        ended = EndedStreams()
        ended.begin(5)
        ended.begin(7)
        for left_out in (1, 3):
            with pytest.raises(ConnectionFault, match="after stream 7"):
                ended.judge(left_out, headers=True)
        with pytest.raises(ConnectionFault, match="has ended"):
            ended.judge(5, headers=True)
        for number in range(11, 11 + 8 * MAX_GAPS, 4):
            ended.begin(number)
        assert len(ended.to_json()["gaps"]) == MAX_GAPS
        assert ended.is_idle(ended.last + 2)
        assert not ended.is_idle(9)

    def test_it_travels(self) -> None:
        ended = EndedStreams()
        ended.begin(5)
        ended.has_been_reset(5)
        other = EndedStreams()
        other.restore(ended.to_json())
        assert other.to_json() == ended.to_json()
        other.judge(5, headers=True)
