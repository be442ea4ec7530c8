"""What a connection keeps of a request's bytes, without a connection: the buffer, the body, heads that come again."""

from __future__ import annotations

import math
from typing import Any

import pytest

from serve_asgi.http.chunked_body import ChunkReader
from serve_asgi.http.hand_over_record import HandOverRecord
from serve_asgi.http.head_cache import CAPACITY, LARGEST_HEAD, REST, BoundedCache, CachedHeadReader
from serve_asgi.http.head_parsers import H11Parser, HttptoolsParser
from serve_asgi.http.request_body import DISCARD_LIMIT, SMALL_PIECE, RequestBody
from serve_asgi.http.request_buffer import MAX_EMPTY_LINES, RequestBuffer
from serve_asgi.http.request_head import _MAX_VALID_HOSTS, BadRequest, Head
from serve_asgi.ipc.scoreboard import Cell
from tests.rows import cells

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


def taken(*pieces: bytes, max_size: int = 1000, max_target: int = 100) -> list[bytes]:
    """The heads that are taken while the pieces arrive."""
    buffer = RequestBuffer()
    heads: list[bytes] = []
    for piece in pieces:
        buffer += piece
        while head := buffer.take_head(max_size, max_target, len(heads)):
            heads.append(head)
    return heads


def test_heads_are_taken_out_whole_whatever_the_pieces() -> None:
    assert taken(GET + b"\r\n" + GET) == taken(*(bytes((byte,)) for byte in GET + b"\r\n" + GET)) == [GET, GET]


PREFACE = b"PRI * HTTP/2.0\r\n\r\n"


@pytest.mark.parametrize("cut", range(1, len(PREFACE)))
def test_the_preface_of_http2_is_waited_for_whatever_the_pieces(cut: int) -> None:
    """Its first line alone would be refused, for its version, and still is if something else follows it."""
    assert taken(PREFACE[:cut], PREFACE[cut:]) == [PREFACE]
    with pytest.raises(BadRequest) as raised:
        taken(PREFACE[:cut], PREFACE[cut:16] + b"Host: a\r\n")
    assert raised.value.status == 505


def test_half_an_empty_line_is_no_part_of_a_head() -> None:
    buffer = RequestBuffer()
    for data, part in ((b"", False), (b"\r", False), (b"\nG", True)):
        buffer += data
        assert buffer.take_head(1000, 100, 0) == b""
        assert buffer.holds_part_of_head() is part


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\r\n" * (MAX_EMPTY_LINES + 1), 400),
        (b"GET /" + b"a" * 200, 414),
        (b"GET /" + b"a" * 2000, 414),
        (b"GET / HTTP/1.1\r\nA: " + b"b" * 2000, 431),
        (b"GET / HTTP/1.1\r\nA: " + b"b" * 2000 + b"\r\n\r\n", 431),
        (b"\x16\x03\x01", 400),
        (b"\x16" * 2000, 400),
    ],
)
def test_what_cannot_become_a_head_is_refused(data: bytes, status: int) -> None:
    with pytest.raises(BadRequest) as refused:
        taken(data)
    assert refused.value.status == status


# Bodies


def body_of(fields: bytes, max_size: int = 0) -> RequestBody:
    head = HttptoolsParser().parse_head(b"POST / HTTP/1.1\r\nHost: a\r\n" + fields + b"\r\n")
    return RequestBody(head, max_size, 1000)


def test_a_body_gives_back_what_is_behind_it() -> None:
    body = body_of(b"Content-Length: 5\r\n")
    assert body.feed(b"ab") is None
    assert (body.take(), body.unread, body.whole) == (b"ab", 0, False)
    assert body.feed(b"cdeGET") == b"GET"
    assert (body.take(), body.whole, body.arrived) == (b"cde", True, 8)
    chunked = body_of(b"Transfer-Encoding: chunked\r\n")
    assert chunked.feed(b"3\r\n") is None
    assert chunked.feed(b"abc\r\n1\r\nd\r\n0\r\n\r\nGET") == b"GET"
    assert (chunked.take(), chunked.whole) == (b"abcd", True)
    assert chunked.take() == b""


def test_small_pieces_are_joined_and_large_ones_are_not() -> None:
    body = body_of(b"Content-Length: 100000\r\n")
    for size in (1, SMALL_PIECE - 1, 1, 5000):
        body.feed(b"x" * size)
    assert body._pieces is not None
    assert [len(piece) for piece in body._pieces] == [SMALL_PIECE, 1, 5000]
    assert len(body.take()) == SMALL_PIECE + 5001


def test_a_body_that_is_dropped_is_counted_and_not_kept() -> None:
    body = body_of(b"Content-Length: 5\r\n")
    body.drop()
    assert body.feed(b"abcde") == b""
    assert (body.take(), body.unread, body.whole) == (b"", 0, True)


@pytest.mark.parametrize(
    ("fields", "discardable"),
    [
        (b"Content-Length: %d\r\n" % DISCARD_LIMIT, True),
        (b"Content-Length: %d\r\n" % (DISCARD_LIMIT + 1), False),
        (b"Transfer-Encoding: chunked\r\n", False),
        (b"Content-Length: 1\r\nExpect: 100-continue\r\n", False),
    ],
)
def test_which_bodies_are_read_to_their_end_though_nobody_wants_them(fields: bytes, discardable: bool) -> None:
    assert body_of(fields).discardable() is discardable


def test_chunks_of_more_than_the_largest_body_are_refused() -> None:
    reader = ChunkReader(1000, max_size=5)
    reader.feed(b"5\r\nabcde\r\n")
    with pytest.raises(BadRequest) as refused:
        reader.feed(b"1\r\nf\r\n")
    assert refused.value.status == 413


def read_all(reader: ChunkReader, chunks: bytes, size: int) -> None:
    """Read the bytes in pieces of `size`."""
    for start in range(0, len(chunks), size):
        reader.feed(chunks[start : start + size])


@pytest.mark.parametrize(
    "chunks",
    [
        b"x\r\n",
        b"1;" + b"a" * 10000,
        b"1\r\nabc",
        b"0\r\na b\r\n\r\n",
        b"0\r\nHost: a\r\n\r\n",
        b"0\r\n" + b"a: b\r\n" * 1000,
        b"1" + b";a=b" * 300 + b"\r\n",
        (b"1;" + b"a" * 20 + b"\r\nx\r\n") * 1000,
    ],
)
@pytest.mark.parametrize("size", [1, 7, 1 << 20])
def test_malformed_chunks_are_refused_in_whatever_pieces(chunks: bytes, size: int) -> None:
    with pytest.raises(BadRequest) as refused:
        read_all(ChunkReader(1000), chunks, size)
    assert refused.value.status == 400


def test_sizes_of_chunks_are_remembered_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_asgi.http.chunked_body._MAX_SIZES", 1)
    known: dict[bytes, int] = {}
    monkeypatch.setattr("serve_asgi.http.chunked_body._sizes", known)
    pieces, rest = ChunkReader(1000).feed(b"1\r\na\r\n2\r\nbc\r\n1\r\nd\r\n0\r\nA: b\r\n\r\n")
    assert (pieces, rest, known) == ([b"a", b"bc", b"d"], b"", {b"1\r\n": 1})


def test_bytes_around_chunks_are_paid_for_by_their_content() -> None:
    reader = ChunkReader(100)
    reader.feed(b"1;" + b"a" * 90 + b"\r\nx\r\n")
    reader.feed(b"40\r\n" + b"y" * 64 + b"\r\n")
    reader.feed(b"1;" + b"a" * 90 + b"\r\nx\r\n")
    with pytest.raises(BadRequest):
        reader.feed(b"1;" + b"a" * 90 + b"\r\nx\r\n")


# What comes again


def test_a_memory_that_does_not_pay_rests() -> None:
    cache = BoundedCache()
    for number in range(CAPACITY + 1):
        cache.keep(number, number, number)
    assert cache.resting == REST
    assert cache.known == {CAPACITY: CAPACITY}
    for _ in range(REST + 1):
        cache.tick()
    assert cache.resting == 0
    for number in range(CAPACITY):
        cache.keep(-number, number, 1000 * CAPACITY + number)  # most were answered from it
    assert cache.resting == 0


def test_heads_that_come_again_are_read_once() -> None:
    checked: list[Head] = []
    row = cells()
    reader = CachedHeadReader(HttptoolsParser, checked.append, row)
    assert reader.read(GET) is reader.read(GET)
    large = GET[:-2] + b"A: " + b"b" * LARGEST_HEAD + b"\r\n\r\n"
    assert reader.read(large) is not reader.read(large)
    assert len(checked) == 3
    for number in range(CAPACITY + 1):
        row[Cell.REQUESTS] += 1
        reader.read(GET.replace(b"/", b"/%d" % number, 1))
    assert reader.read(GET) is not reader.read(GET)  # it rests
    for _ in range(REST):
        reader.tick()
    assert reader.read(GET) is reader.read(GET)


def test_hosts_that_were_found_valid_are_remembered_up_to_a_limit() -> None:
    parser = HttptoolsParser()
    for number in range(2 * _MAX_VALID_HOSTS):
        parser.parse_head(b"GET / HTTP/1.1\r\nHost: h%d\r\n\r\n" % number)
        parser.parse_head(b"GET / HTTP/1.1\r\nHost: h%d\r\n\r\n" % number)
    with pytest.raises(BadRequest):
        parser.parse_head(b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n")


class Disagreeing:
    """h11, as it would be if it read something else than the letter of the RFC has."""

    SERVER = object()

    class RemoteProtocolError(Exception):
        pass

    class Request:
        target = b"/other"

    def __init__(self, event: Any) -> None:
        self._event = event

    def Connection(self, *_: object, **__: object) -> Any:
        return self

    def receive_data(self, data: bytes) -> None:
        pass

    def next_event(self) -> Any:
        if self._event is None:
            raise self.RemoteProtocolError
        return self._event


@pytest.mark.parametrize("event", [None, object(), Disagreeing.Request()])
def test_a_head_in_which_h11_finds_something_else_is_refused(event: Any) -> None:
    parser = H11Parser()
    parser._h11 = Disagreeing(event)  # type: ignore[assignment]
    with pytest.raises(BadRequest):
        parser.parse_head(GET)


def test_a_record_with_a_long_leftover_travels_without_it() -> None:
    record = HandOverRecord(b"", ("a", 1), None, math.inf, 3, "https", True)
    assert HandOverRecord.from_json(record.to_json()) == record
    assert record.with_leftover(b"GET").leftover == b"GET"
