"""What an application says of its connection's survival, when a life ends, and what travels."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

import pytest

from serve_asgi.config.options import Config
from serve_asgi.http.dropped_messages import ClientDisconnected
from serve_asgi.http.hand_over_record import HandOverRecord
from serve_asgi.http.head_parsers import parser_factory
from serve_asgi.http.request_body import RequestBody
from serve_asgi.http.request_head import Head
from serve_asgi.http.response_framing import BodyFraming, ResponseFraming
from serve_asgi.http.survival import (
    EXTENSION,
    HANDED_OVER,
    MOST_STATE,
    LifeEnd,
    Survival,
    UnfitState,
    encode_state,
    tells_of_end,
)
from serve_asgi.http.survival_record import (
    MovedStream,
    SurvivalRecord,
    field_bytes,
    fields_of,
    head_bytes,
    pack_streams,
    unpack_streams,
)
from serve_asgi.ipc import packets
from serve_asgi.ipc.scoreboard import Cell
from serve_asgi.tls.moved_session import MovedSession


class Connection:
    def __init__(self) -> None:
        self.refused = ""

    def opt_in(self, extensions: object, version: int | None) -> Survival | None:
        return None

    def refuse_life(self, reason: str) -> None:
        self.refused = reason


class Disconnect(Exception):
    def __init__(self, code: object, reason: object = None) -> None:
        self.code = code
        if reason is not None:
            self.reason = reason


class Clock:
    """A loop on which time passes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0
        self.due: list[tuple[float, Any, tuple[Any, ...]]] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, call: Any, *arguments: Any) -> Any:
        entry = (when, call, arguments)
        self.due.append(entry)
        clock = self

        class Handle:
            def cancel(self) -> None:
                if entry in clock.due:
                    clock.due.remove(entry)

        return Handle()

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        for entry in sorted((each for each in self.due if each[0] <= self.now), key=lambda each: each[0]):
            self.due.remove(entry)
            entry[1](*entry[2])


class Worker:
    def __init__(self, **options: Any) -> None:
        self.loop = Clock()
        self.cells = [0] * 64
        self.config = Config(**options)
        self.retire_deadline = math.inf


def life_end(*, lives: int = 0, retires_within: float = math.inf, **options: Any) -> tuple[LifeEnd, Clock]:
    worker = Worker(**options)
    worker.retire_deadline = worker.loop.now + retires_within
    worker.cells[Cell.WEBSOCKETS], worker.cells[Cell.IN_FLIGHT] = lives // 2, lives - lives // 2
    return LifeEnd(worker), worker.loop  # type: ignore[arg-type]


@pytest.mark.parametrize("state", [{}, [], None, "text", 1, 1.5, {"a": [1, {"b": "\ud800\u00e9"}]}, 10**30])
def test_a_state_travels_as_it_is(state: Any) -> None:
    assert json.loads(encode_state(state)) == state


def test_a_state_that_cannot_travel_says_why() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    cyclic: list[Any] = []
    cyclic.append(cyclic)
    for unfit in ({"a": object()}, {1, 2}, b"bytes", deep, cyclic):
        with pytest.raises(UnfitState, match="cannot be written as JSON"):
            encode_state(unfit)
    assert len(encode_state("x" * (MOST_STATE - 2))) == MOST_STATE
    with pytest.raises(UnfitState, match=f"has {MOST_STATE + 1} bytes as JSON"):
        encode_state("x" * (MOST_STATE - 1))


def test_the_message_opts_in_and_is_checked_at_once() -> None:
    survival = Survival(Connection(), 0.0)
    assert (survival.resumed, survival.state, survival.version, survival.wanted) == (False, {}, None, False)
    survival.update({"type": EXTENSION})
    assert survival.wanted
    survival.update({"type": EXTENSION, "state": [1], "version": 3})
    assert (survival.state, survival.writes_version, survival.version) == ([1], 3, None)
    with pytest.raises(ValueError, match=r"serve\.survive: the state cannot be written as JSON"):
        survival.update({"type": EXTENSION, "state": object()})
    with pytest.raises(TypeError, match="version is int or None, not str"):
        survival.update({"type": EXTENSION, "version": "3"})
    assert (survival.state, survival.writes_version) == ([1], 3)


def test_what_a_next_life_is_told() -> None:
    connection = Connection()
    survival = Survival(connection, 0.0, True, {"a": 1}, 4)
    assert survival.extension() == {"resumed": True, "state": {"a": 1}, "version": 4}
    assert Survival(connection, 0.0).extension() == {}
    survival.refuse("no")
    assert connection.refused == "no"


def test_the_end_comes_once_within_the_window_and_not_before_a_second_has_passed() -> None:
    ends: list[float] = []
    moments = set()
    for _ in range(50):
        end, clock = life_end(survive_window=2)
        end.plan(0.0, lambda clock=clock: ends.append(clock.now))  # type: ignore[misc]
        end.plan(0.0, lambda: ends.append(math.nan))
        ((when, _, _),) = clock.due
        assert 100 <= when <= 102
        moments.add(when)
        clock.pass_time(2)
        assert end.overdue
    assert len(ends) == len(moments) == 50
    end, clock = life_end(survive_window=0)
    end.plan(99.5, lambda: ends.append(clock.now))
    assert clock.due[0][0] == 100.5
    end.cancel()
    clock.pass_time(10)
    assert len(ends) == 50
    assert not end.overdue


@pytest.mark.parametrize(("retires_within", "last"), [(1.0, 100.5), (0.0, 100.0), (-1.0, 100.0)])
def test_the_end_comes_well_before_the_graceful_timeout(retires_within: float, last: float) -> None:
    for _ in range(50):
        end, clock = life_end(retires_within=retires_within, survive_window=2)
        end.plan(0.0, lambda: None)
        ((when, _, _),) = clock.due
        assert 100 <= when <= last


@pytest.mark.parametrize(("lives", "longest"), [(100, 2), (2500, 10), (1_000_000, 15)])
def test_the_window_grows_with_the_lives_that_end_up_to_half_the_graceful_timeout(lives: int, longest: float) -> None:
    moments = []
    for _ in range(200):
        end, clock = life_end(lives=lives, retires_within=30, survive_window=2)
        end.plan(0.0, lambda: None)
        moments.append(clock.due[0][0] - 100)
    assert 0.8 * longest < max(moments) <= longest


def test_the_application_has_its_time_and_may_send_for_half_of_it() -> None:
    end, clock = life_end(survive_timeout=4)
    late: list[float] = []
    end.begin(lambda: late.append(clock.now))
    end.check_sending(full=False)
    with pytest.raises(ClientDisconnected, match="goes on in another worker"):
        end.check_sending(full=True)
    clock.pass_time(2.5)
    with pytest.raises(ClientDisconnected):
        end.check_sending(full=False)
    clock.pass_time(1.5)
    assert late == [104]


@pytest.mark.parametrize(
    ("error", "tells"),
    [
        (ClientDisconnected(), True),
        (Disconnect(1012, HANDED_OVER), True),
        (Disconnect(1012), True),
        (Disconnect(1012, ""), True),
        (Disconnect(1012, "of its own"), False),
        (Disconnect(1000, ""), False),
        (Disconnect("1012"), False),
        (ValueError(), False),
        (ExceptionGroup("", [Disconnect(1012), ExceptionGroup("", [ClientDisconnected()])]), True),
        (ExceptionGroup("", [Disconnect(1012), ValueError()]), False),
        (asyncio.CancelledError(), False),
    ],
)
def test_what_an_application_ends_with_that_was_told_of_the_end(error: BaseException, tells: bool) -> None:
    assert tells_of_end(error) is tells


def test_an_exception_that_was_raised_in_place_of_the_end_tells_of_it() -> None:
    error = RuntimeError("what a framework makes of it")
    error.__context__ = ClientDisconnected()
    assert tells_of_end(error)


HEAD = b"GET /a%20b?c HTTP/1.1\r\nhost: x\r\nx-request-id: bad id\r\naccept: */*\r\naccept: b\r\n\r\n"


@pytest.mark.parametrize("parser", ["httptools", "h11"])
def test_the_head_travels_and_is_read_again_as_it_was(parser: str) -> None:
    head = parser_factory(parser)().parse_head(HEAD)
    again = parser_factory(parser)().parse_head(head_bytes(head))
    for name in ("method", "target", "version", "headers", "path", "query", "keep_alive", "body"):
        assert getattr(again, name) == getattr(head, name)
    with_id = parser_factory(parser)().parse_head(head_bytes(head, b"x-request-id", "abc"))
    assert [value for name, value in with_id.headers if name == b"x-request-id"] == [b"abc"]


def test_the_record_travels() -> None:
    record = SurvivalRecord(
        *(HEAD, b'{"a":1}', 3, b"unread"),
        websocket={"deflate": None, "subprotocol": "x"},
        window=b"w" * 9,
        body=b"body",
    )
    encoded = record.to_bytes()
    assert SurvivalRecord.from_bytes(encoded) == record
    assert record.decoded_state() == {"a": 1}
    for wrong in (b"", encoded[:-1], encoded + b"x", encoded[:20], b"\xff\xff\xff\xff" + encoded[4:]):
        with pytest.raises((ValueError, LookupError)):
            SurvivalRecord.from_bytes(wrong)


def test_the_records_of_several_streams_travel_together() -> None:
    def record(state: bytes) -> SurvivalRecord:
        return SurvivalRecord(b"head", state, None, b"", response={"status": 200})

    streams = [MovedStream(1, record(b"1"), b""), MovedStream(7, record(b"[2]"), b"waits for its window")]
    for moved in (streams, streams[:1], []):
        for unread in (b"", b"frames"):
            assert unpack_streams(pack_streams(moved, unread)) == (moved, unread)
    packed = pack_streams(streams, b"")
    for wrong in (b"", packed[:20], b"\xff\xff\xff\xff" + packed[4:]):
        with pytest.raises((ValueError, LookupError)):
            unpack_streams(wrong)


@pytest.mark.parametrize("identity", ["", "of the server's"])
def test_the_head_of_a_stream_travels_as_fields(identity: str) -> None:
    headers = [(b"host", b"a:1"), (b"x", b"b: c"), (b"x-request-id", b"the client's")]
    head = Head("GET", b"/p?q", "2", headers, b"/p", b"q")
    last = [(b"x-request-id", identity.encode() or b"the client's")]
    assert fields_of(field_bytes(head, "https", b"x-request-id", identity)) == [
        *((b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"a:1"), (b":path", b"/p?q")),
        *((b"x", b"b: c"), *last),
    ]


@pytest.mark.parametrize("survives", [False, True])
def test_a_version_without_http2_refuses_its_record_as_tls_of_an_unknown_format(survives: bool) -> None:
    record = HandOverRecord(b"x", None, None, math.inf, 1, tls={"format": 1}, survives=survives, http2={"version": 1})
    values = record.to_json()
    assert HandOverRecord.from_json(values) == record
    del values["http2"]
    for each in (values["tls"], *([values["survives"]["tls"]] if survives else [])):
        with pytest.raises(ValueError, match="format 0"):
            MovedSession.from_json(each)


def test_a_version_that_knows_nothing_of_it_refuses_the_record_as_tls_of_an_unknown_format() -> None:
    record = HandOverRecord(b"x", None, None, math.inf, 1, tls={"format": 1}, survives=True)
    values = record.to_json()
    assert HandOverRecord.from_json(values) == record
    del values["survives"]  # as an earlier version reads it
    with pytest.raises(ValueError, match="format 0"):
        MovedSession.from_json(values["tls"])
    offer = {"type": "offer", "offer": 1, "record": {**record.to_json(), "survives": {"tls": None}}}
    assert packets.FROM_SENDER.decode(json.dumps(offer).encode()) is not None


def test_the_framing_of_a_response_travels_while_more_is_to_come() -> None:
    head = parser_factory("h11")().parse_head(HEAD)
    for length, kind in ((9, BodyFraming.LENGTH), (-1, BodyFraming.CHUNKED)):
        framing = ResponseFraming(head, 200, 0, length, 5, True)
        again = ResponseFraming.resumed(json.loads(json.dumps(framing.travels())))
        assert (again.kind, again.travels(), again.field) == (kind, framing.travels(), b"")
        assert not again.is_full()
    again = ResponseFraming.resumed(ResponseFraming(head, 200, 0, 9, 5, True).travels())
    again.advance(4, True)
    assert again.is_full()
    with pytest.raises(RuntimeError, match="longer than its Content-Length: 10 bytes, announced 9"):
        again.advance(1, True)
    with pytest.raises(ValueError, match="nonsense"):
        ResponseFraming.resumed({**framing.travels(), "kind": "nonsense"})


@pytest.mark.parametrize("unread", [b"", b"the rest"])
def test_a_body_that_has_come_is_read_on_in_the_next_life(unread: bytes) -> None:
    head = parser_factory("h11")().parse_head(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 20\r\n\r\n")
    body = RequestBody(head, 1000, 1000)
    body.resume(unread)
    assert (body.whole, body.unread, body.take(), body.unread) == (True, len(unread), unread, 0)
