"""The parsers and the rules for heads, without sockets: both parsers give the same answers to the same bytes."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from serve_asgi.http.chunked_body import ChunkReader
from serve_asgi.http.head_parsers import H11Parser, HttptoolsParser, Parser, parser_factory
from serve_asgi.http.request_head import CHUNKED, BadRequest, Head, hopeless
from serve_asgi.http.response_head import encode_headers
from tests.http.test_request_head import REFUSED

FIELDS = (
    "method",
    "target",
    "version",
    "headers",
    "path",
    "query",
    "body",
    "keep_alive",
    "expect_continue",
    "te_trailers",
    "websocket",
)
MANY = int(os.environ.get("SERVE_TEST_EXAMPLES", "1500"))
PARSERS: list[Callable[[], Parser]] = [HttptoolsParser, H11Parser]


def verdict(parser: Parser, data: bytes) -> object:
    try:
        head = parser.parse_head(data)
    except BadRequest as refused:
        return refused.status, refused.reason
    return {name: getattr(head, name) for name in FIELDS}


def parsed(data: bytes) -> Head:
    first, second = (verdict(new(), data) for new in PARSERS)
    assert first == second
    assert isinstance(first, dict), first
    return HttptoolsParser().parse_head(data)


def test_factory() -> None:
    assert parser_factory("auto") is parser_factory("httptools") is HttptoolsParser
    assert parser_factory("h11") is H11Parser


@pytest.mark.parametrize(
    ("fields", "body", "keep_alive", "expect", "te", "websocket"),
    [
        (b"", 0, True, False, False, False),
        (b"Connection: close\r\n", 0, False, False, False, False),
        (b"Connection: keep-alive\r\nConnection: Close\r\n", 0, False, False, False, False),
        (b"Content-Length: 0\r\nExpect: 100-continue\r\n", 0, True, False, False, False),
        (b"Content-Length: 12\r\nExpect: 100-Continue\r\n", 12, True, True, False, False),
        (b"Transfer-Encoding: Chunked\r\n", CHUNKED, True, False, False, False),
        (b"TE: gzip, Trailers\r\n", 0, True, False, True, False),
        (b"TE: trailers;q=0\r\n", 0, True, False, False, False),
        (b"Connection: Upgrade\r\nUpgrade: WebSocket\r\n", 0, True, False, False, True),
        (b"Connection: keep-alive, upgrade\r\nUpgrade: h2c, websocket\r\n", 0, True, False, False, True),
        (b"Upgrade: websocket\r\n", 0, True, False, False, False),
    ],
)
def test_what_the_fields_say(
    fields: bytes, body: int, keep_alive: bool, expect: bool, te: bool, websocket: bool
) -> None:
    head = parsed(b"GET / HTTP/1.1\r\nHost: a\r\n" + fields + b"\r\n")
    found = (head.body, head.keep_alive, head.expect_continue, head.te_trailers, head.websocket)
    assert found == (body, keep_alive, expect, te, websocket)


def test_http_1_0() -> None:
    all_of_it = b"Upgrade: websocket\r\nExpect: 100-continue\r\nTE: trailers\r\nContent-Length: 2\r\n"
    head = parsed(b"GET / HTTP/1.0\r\nConnection: upgrade\r\n" + all_of_it + b"\r\n")
    assert not any((head.keep_alive, head.expect_continue, head.te_trailers, head.websocket))
    assert head.body == 2
    assert parsed(b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n").keep_alive
    assert not parsed(b"GET / HTTP/1.0\r\nConnection: Keep-Alive, close\r\n\r\n").keep_alive


@pytest.mark.parametrize("value", [b"[::1]:80", b"a.b-c:80", b"1.2.3.4", b"a:", b"%41", b"[v1.x]"])
def test_good_hosts(value: bytes) -> None:
    for _ in range(2):
        assert parsed(b"GET / HTTP/1.1\r\nHost: " + value + b"\r\n\r\n").headers == [(b"host", value)]


@pytest.mark.parametrize(
    ("data", "status"), [(d, s) for d, s in REFUSED if d.endswith(b"\r\n\r\n") and b"\n\n" not in d]
)
def test_parsers_refuse_alike(data: bytes, status: int | None) -> None:
    data = data[: data.index(b"\r\n\r\n") + 4]
    first, second = (verdict(new(), data) for new in PARSERS)
    assert first == second
    assert isinstance(first, tuple)
    assert status is None or first[0] == status


def test_one_parser_for_many_requests() -> None:
    heads = [
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n",
        b"HEAD / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
        b"GET / HTTP/1.2\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX : b\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: 5\r\n\r\n",
        b"GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\n",
    ]
    for new in PARSERS:
        parser = new()
        for first in heads:
            for second in heads:
                for data in (first, second):
                    assert verdict(parser, data) == verdict(new(), data)


def mutate(data: bytes, changes: list[tuple[int, int, bytes]]) -> bytes:
    for at, length, new in changes:
        at %= len(data) + 1
        data = data[:at] + new + data[at + length :]
    return data


SEEDS = [
    b"GET /a?b HTTP/1.1\r\nHost: a\r\nX-Y: z\r\n\r\n",
    b"POST http://a:1/b HTTP/1.1\r\nHost: a\r\nContent-Length: 12\r\nConnection: close\r\n\r\n",
    b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n",
    b"OPTIONS * HTTP/1.0\r\nConnection: keep-alive, upgrade\r\nUpgrade: websocket\r\n\r\n",
]
BITS = st.sampled_from(
    [bytes((code,)) for code in b" \t\r\n\0\x7f\x80,:;0a#?/*"]
    + [b"", b"\r\n", b"HTTP/1.0", b"HTTP/3.0", b"\r\n x", b"chunked, ", b"A" * 70]
    + [b"\r\nContent-Length: 12", b"\r\nHost: a", b"\r\nTransfer-Encoding: chunked"]
)


@settings(max_examples=MANY, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(SEEDS), st.lists(st.tuples(st.integers(0, 200), st.integers(0, 4), BITS), min_size=1, max_size=3)
)
@example(SEEDS[0], [(0, 0, b"\n")])
@example(SEEDS[2], [(51, 0, b"\t")])
def test_parsers_agree_on_damaged_heads(seed: bytes, changes: list[tuple[int, int, bytes]]) -> None:
    data = mutate(seed, changes)
    while data.startswith(b"\r\n"):  # the connection does that
        data = data[2:]
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return
    data = data[: end + 4]
    first, second = (verdict(new(), data) for new in PARSERS)
    assert first == second
    # Refused before it is whole, a head is refused for what it would be refused for when it is.
    early = (hopeless(data[:size], size - 1) for size in range(1, len(data)))
    found = next((refused.status for refused in early if refused is not None), None)
    assert found is None or found == (first[0] if isinstance(first, tuple) else "served")


CHUNKS = b"5\r\nhello\r\n00a;x=y\r\n0123456789\r\n0\r\nA: b\r\n\r\n"


@settings(max_examples=600, deadline=None)
@given(
    st.lists(st.integers(0, len(CHUNKS) + 5), max_size=6),
    st.sampled_from([b"", b"GET / HTTP/1.1\r\n\r\n", b"\r\n\r\n"]),
)
def test_chunks_in_any_pieces(cuts: list[int], behind: bytes) -> None:
    data = CHUNKS + behind
    places = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    reader = ChunkReader(1000)
    content = b""
    for begin, end in itertools.pairwise(places):
        if begin == end:
            continue
        pieces, leftover = reader.feed(data[begin:end])
        assert b"" not in pieces
        content += b"".join(pieces)
        if leftover is not None:
            assert leftover + data[end:] == behind
            break
    assert content == b"hello0123456789"
    assert leftover is not None


@pytest.mark.parametrize(
    "good", [b"G", b"GET", b"GET ", b"GET /", b"GET / H", b"GET / HTTP/1.1", b"GET / HTTP/1.1\r", b"M-SEARCH "]
)
def test_starts_that_may_become_a_request(good: bytes) -> None:
    assert hopeless(good, 0) is None


@pytest.mark.parametrize(
    "bad",
    [
        b"A" * 64,
        b"FOO / HTTP/1.1\r\n",
        b"GET * HTTP/2.0\r\n",
        b"GET /" + b"x" * 70 + b"\x80",
        b"\x16\x03\x01",
        b" GET",
        b"GET\t",
        b"GET /\x00",
        b"GET\n",
        b"GET /\r\n",
        b"G\xc3",
    ],
)
def test_starts_that_cannot(bad: bytes) -> None:
    assert hopeless(bad, 0) is not None


def test_bare_line_feeds_are_found_wherever_they_were_split() -> None:
    data = b"GET / HTTP/1.1\r\nHost: a\n\n"
    for split in range(1, len(data)):
        assert hopeless(data[:split], 0) is None
        assert hopeless(data, split) is not None


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.binary(max_size=8), st.binary(max_size=12)), max_size=4))
def test_no_header_breaks_out_of_its_line(headers: list[tuple[bytes, bytes]]) -> None:
    try:
        block, _, _ = encode_headers(headers, bodiless=False)
    except ValueError:
        return
    lines = block.split(b"\r\n")[1:]
    assert len(lines) <= len(headers)
    assert all(b": " in line and b"\n" not in line and b"\r" not in line and b"\0" not in line for line in lines)
