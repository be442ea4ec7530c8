"""The bytes of response heads and bodies as tables, without a connection."""

from __future__ import annotations

from typing import Any

import pytest

from serve_asgi.http.request_head import Head
from serve_asgi.http.response_framing import BodyFraming, ResponseFraming, chunk_start
from serve_asgi.http.response_head import (
    ResponseFlag,
    default_headers,
    encode_headers,
    encode_hints,
    encode_trailers,
    is_immutable,
    plain_response,
    with_field,
    without,
)
from tests.http.test_head_parsers import parsed

GET = parsed(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
HEAD = parsed(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n")
OLD = parsed(b"GET / HTTP/1.0\r\n\r\n")
TAKES_TRAILERS = parsed(b"GET / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\n\r\n")
NO_FLAG = 0
CHUNKED = int(ResponseFlag.CHUNKED)
TRAILERS = int(ResponseFlag.TRAILERS)
BODILESS = int(ResponseFlag.BODILESS)


@pytest.mark.parametrize(
    ("head", "status", "flags", "length", "size", "more", "kind", "field"),
    [
        (GET, 200, NO_FLAG, -1, 5, False, "length", b"content-length: 5\r\n"),
        (GET, 200, NO_FLAG, 5, 5, False, "length", b""),
        (GET, 200, NO_FLAG, 9, 5, True, "length", b""),
        (GET, 200, NO_FLAG, -1, 5, True, "chunked", b"transfer-encoding: chunked\r\n"),
        (GET, 200, CHUNKED, -1, 5, False, "chunked", b"transfer-encoding: chunked\r\n"),
        (GET, 200, TRAILERS, -1, 5, False, "chunked", b"transfer-encoding: chunked\r\n"),
        (OLD, 200, CHUNKED, -1, 5, False, "length", b"content-length: 5\r\n"),
        (OLD, 200, NO_FLAG, -1, 5, True, "close", b""),
        (HEAD, 200, NO_FLAG, -1, 5, False, "none", b"content-length: 5\r\n"),
        (HEAD, 200, NO_FLAG, 7, 0, False, "none", b""),
        (HEAD, 200, NO_FLAG, -1, 5, True, "none", b""),
        (GET, 304, BODILESS, 7, 0, False, "none", b""),
        (GET, 205, BODILESS, -1, 0, False, "none", b"content-length: 0\r\n"),
    ],
)
def test_what_delimits_a_body(
    head: Head, status: int, flags: int, length: int, size: int, more: bool, kind: str, field: bytes
) -> None:
    framing = ResponseFraming(head, status, flags, length, size, more)
    assert (framing.kind, framing.field) == (BodyFraming(kind), field)


@pytest.mark.parametrize(("length", "size", "more"), [(4, 5, True), (4, 5, False), (6, 5, False)])
def test_a_body_that_is_not_as_long_as_announced_is_an_error(length: int, size: int, more: bool) -> None:
    with pytest.raises(RuntimeError, match=f"{size} bytes, announced {length}"):
        ResponseFraming(GET, 200, NO_FLAG, length, size, more)


def test_what_is_still_to_come_is_counted() -> None:
    framing = ResponseFraming(GET, 200, NO_FLAG, 9, 3, True)
    framing.advance(3, True)
    for size, more in ((4, True), (2, False)):
        with pytest.raises(RuntimeError, match="announced 9"):
            framing.advance(size, more)
    framing.advance(3, False)
    chunked = ResponseFraming(GET, 200, NO_FLAG, -1, 3, True)
    chunked.advance(1 << 40, False)  # whatever it is


def test_chunks() -> None:
    framing = ResponseFraming(GET, 200, NO_FLAG, -1, 3, True)
    assert framing.payload(b"0123456789abcdef", True) == b"10\r\n0123456789abcdef\r\n"
    assert framing.payload(b"", True) == b""
    assert framing.payload(b"a", False) == b"1\r\na\r\n0\r\n\r\n"
    assert framing.payload(b"", False) == b"0\r\n\r\n"
    assert framing.around(16, True) == (b"10\r\n", b"\r\n")
    assert framing.around(16, False) == (b"10\r\n", b"\r\n0\r\n\r\n")
    assert framing.around(0, False) == (b"", b"0\r\n\r\n")
    plain = ResponseFraming(GET, 200, NO_FLAG, 3, 3, False)
    assert (plain.payload(b"abc", False), plain.around(3, False)) == (b"abc", (b"", b""))


def test_trailers_follow_the_last_chunk_for_clients_that_take_them() -> None:
    framing = ResponseFraming(TAKES_TRAILERS, 200, TRAILERS, -1, 1, False)
    assert framing.trailers_follow
    assert framing.payload(b"a", False) == b"1\r\na\r\n"
    assert framing.around(1, False) == (b"1\r\n", b"\r\n")
    assert framing.take_trailers({"headers": [(b"A", b"b")], "more_trailers": True}) is None
    assert framing.take_trailers({"headers": [(b"c", b"d")]}) == b"a: b\r\nc: d\r\n"
    assert not ResponseFraming(GET, 200, TRAILERS, -1, 1, False).trailers_follow


# Heads


@pytest.mark.parametrize(
    ("headers", "block", "length", "flags"),
    [
        ([], b"", -1, ResponseFlag.NONE),
        ([(b"A-B", b"c"), (b"a-b", b"d")], b"\r\na-b: c\r\na-b: d", -1, ResponseFlag.NONE),
        ([(bytearray(b"X"), bytearray(b"y"))], b"\r\nx: y", -1, ResponseFlag.NONE),
        ([(memoryview(b"Content-Length"), memoryview(b"7"))], b"\r\ncontent-length: 7", 7, ResponseFlag.NONE),
        ([(b"Content-Length", b" 7 ")], b"\r\ncontent-length: 7", 7, ResponseFlag.NONE),
        ([(b"content-length", b"7"), (b"content-length", b"7")], b"\r\ncontent-length: 7", 7, ResponseFlag.NONE),
        ([(b"date", b"now")], b"\r\ndate: now", -1, ResponseFlag.DATE),
        ([(b"Server", b"mine")], b"\r\nserver: mine", -1, ResponseFlag.SERVER),
        ([(b"Connection", b"Close")], b"", -1, ResponseFlag.CLOSE),
        ([(b"connection", b"keep-alive")], b"", -1, ResponseFlag.NONE),
        ([(b"connection", b"upgrade, close")], b"\r\nconnection: upgrade", -1, ResponseFlag.CLOSE),
        ([(b"keep-alive", b"timeout=5")], b"", -1, ResponseFlag.NONE),
        ([(b"transfer-encoding", b"identity")], b"", -1, ResponseFlag.NONE),
        ([(b"transfer-encoding", b"Chunked")], b"", -1, ResponseFlag.CHUNKED),
        ([(b"content-length", b"7"), (b"transfer-encoding", b"chunked")], b"", -1, ResponseFlag.CHUNKED),
    ],
)
def test_headers_as_they_are_sent(headers: list[Any], block: bytes, length: int, flags: ResponseFlag) -> None:
    assert encode_headers(headers, bodiless=False) == (block, length, flags)


def test_a_response_without_a_body_has_no_content_length() -> None:
    assert encode_headers([(b"content-length", b"7"), (b"a", b"b")], bodiless=True) == (b"\r\na: b", 7, 0)
    both = [(b"content-length", b"7"), (b"transfer-encoding", b"chunked")]
    assert encode_headers(both, bodiless=True) == (b"", -1, ResponseFlag.CHUNKED)


@pytest.mark.parametrize(
    ("headers", "error"),
    [
        ([("a", b"b")], TypeError),
        ([(b"a", "b")], TypeError),
        ([(b"content-length", "7")], TypeError),
        ([(b"a b", b"c")], ValueError),
        ([(b"", b"c")], ValueError),
        ([(b"a", b"b\r\nc: d")], ValueError),
        ([(b"a", b"b\0")], ValueError),
        ([(b"content-length", b"-1")], ValueError),
        ([(b"content-length", b"7"), (b"content-length", b"8")], ValueError),
        ([(b"transfer-encoding", b"gzip")], ValueError),
    ],
)
def test_headers_that_cannot_be_sent(headers: list[Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        encode_headers(headers, bodiless=False)


def test_names_are_remembered_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_asgi.http.response_head._MAX_KNOWN", 1)
    known: dict[bytes, bytes] = {}
    monkeypatch.setattr("serve_asgi.http.response_head._prefixes", known)
    assert encode_headers([(b"One", b"1"), (b"Two", b"2")], bodiless=False)[0] == b"\r\none: 1\r\ntwo: 2"
    assert known == {b"One": b"\r\none: "}


def test_which_headers_may_be_kept() -> None:
    assert is_immutable(((b"a", b"b"),))
    assert not is_immutable(((b"a", bytearray(b"b")),))  # type: ignore[arg-type]
    assert not is_immutable(([b"a", b"b"],))


def test_a_field_of_the_servers_own_gives_way_to_the_applications() -> None:
    assert with_field(b"\r\na: b", b"x-id", "1") == b"\r\na: b\r\nx-id: 1"
    assert with_field(b"\r\nx-id: 2", b"x-id", "1") == b"\r\nx-id: 2"


def test_trailers_and_hints() -> None:
    assert encode_trailers([(b"A", b"b")]) == b"a: b\r\n"
    assert encode_trailers([]) == b""
    with pytest.raises(ValueError, match="Host cannot be sent as a trailer"):
        encode_trailers([(b"Host", b"b")])
    assert encode_hints([b"</a>"]) == b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"
    assert encode_hints([]) == b""


def test_own_lines() -> None:
    lines = default_headers(0.0, date=True, server=True)
    assert lines == b"date: Thu, 01 Jan 1970 00:00:00 GMT\r\nserver: serve\r\n"
    assert default_headers(0.0, date=False, server=False) == b""
    assert without(lines, ResponseFlag.DATE) == b"server: serve\r\n"
    assert without(lines, ResponseFlag.DATE | ResponseFlag.SERVER) == b""
    head = b"HTTP/1.1 404 Not Found\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: 3\r\n\r\n"
    assert plain_response(404, "no\n", b"", b"") == head + b"no\n"
    assert plain_response(404, "no\n", b"", b"", with_body=False) == head


@pytest.mark.parametrize(("length", "more"), [(-1, True), (-1, False), (1, False)])
def test_over_http2_the_end_of_the_stream_ends_the_body(length: int, more: bool) -> None:
    over_http2 = Head("GET", b"/", "2", [(b"host", b"a")], b"/", b"")
    framing = ResponseFraming(over_http2, 200, TRAILERS, length, 1, more)
    assert framing.kind is (BodyFraming.STREAM if length < 0 else BodyFraming.LENGTH)
    assert (framing.field, framing.payload(b"a", more), framing.around(1, more)) == (b"", b"a", (b"", b""))
    assert not framing.trailers_follow
    over_http2.te_trailers = True
    assert ResponseFraming(over_http2, 200, TRAILERS, length, 1, more).trailers_follow


def test_a_chunk_starts_with_its_size() -> None:
    assert [chunk_start(size) for size in (1, 10, 4096, 10)] == [b"1\r\n", b"a\r\n", b"1000\r\n", b"a\r\n"]


def test_a_length_that_nothing_counts_to_is_refused() -> None:
    encode_headers([(b"content-length", b"%d" % (2**63 - 1))], False)
    with pytest.raises(ValueError, match="too large for a Content-Length"):
        encode_headers([(b"content-length", b"%d" % 2**63)], False)
