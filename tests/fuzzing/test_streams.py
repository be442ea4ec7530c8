"""Random streams of requests, valid and damaged, cut anywhere: both parsers and every cut give the same.

SERVE_TEST_EXAMPLES sets how many streams of each kind are tried: 400 unless told; 50000 take some ten minutes.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzzing.inputs import check_stream, check_travel, close_hosts
from tests.http.memory import Behaviour, Then, cut

EXAMPLES = int(os.environ.get("SERVE_TEST_EXAMPLES", "400"))
PROFILE = settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)

LINES = st.sampled_from(
    (
        b"GET / HTTP/1.1",
        b"POST /a%20b?c=d HTTP/1.1",
        b"HEAD /x HTTP/1.1",
        b"OPTIONS * HTTP/1.1",
        b"PUT /y HTTP/1.2",
        b"GET http://b:1/x HTTP/1.1",
        b"DELETE / HTTP/1.0",
    )
)
FIELDS = st.sampled_from(
    (
        b"X-A: b",
        b"x-a:c ",
        b"Connection: keep-alive",
        b"Connection: close",
        b"Connection: TE, upgrade",
        b"Expect: 100-continue",
        b"TE: trailers",
        b"Upgrade: h2c",
        b"Accept: \xff",
    )
)
EXTENSIONS = st.sampled_from([b"", b"", b";a", b";a=b", b' ; a = "b\\"c"', b";a;b=c"])
TRAILERS = st.sampled_from([b"", b"", b"X: y\r\n", b"X:\r\nY: z\r\n"])


@st.composite
def chunked(draw: st.DrawFn) -> bytes:
    """Content in chunked coding."""
    content = b""
    for piece in draw(st.lists(st.binary(min_size=1, max_size=20), max_size=4)):
        size = draw(st.sampled_from([b"%x", b"%X", b"0%x"])) % len(piece)
        content += size + draw(EXTENSIONS) + b"\r\n" + piece + b"\r\n"
    return content + b"0" + draw(EXTENSIONS) + b"\r\n" + draw(TRAILERS) + b"\r\n"


@st.composite
def message(draw: st.DrawFn) -> bytes:
    """A valid request."""
    fields = [b"Host: a", *draw(st.lists(FIELDS, max_size=3))]
    content = b""
    kind = draw(st.sampled_from(["none", "length", "chunked"]))
    if kind == "length":
        content = draw(st.binary(max_size=30))
        fields.append(b"Content-Length: %d" % len(content))
    elif kind == "chunked":
        content = draw(chunked())
        fields.append(b"Transfer-Encoding: chunked")
    fields = draw(st.permutations(fields))
    return draw(LINES) + b"\r\n" + b"".join(field + b"\r\n" for field in fields) + b"\r\n" + content


STREAMS = st.lists(message(), min_size=1, max_size=4).map(b"".join)
BITS = st.sampled_from(
    [bytes((code,)) for code in b' \t\r\n\0\x0b\x7f\x80\xff,:;=0a#?/*"@[]']
    + [b"", b"\r\n", b"\r\n\r\n", b"HTTP/1.0", b"HTTP/2.0", b"\r\n x", b"chunked, ", b"GET ", b"FOO "]
    + [b"\r\nContent-Length: 12", b"\r\nHost: a", b"\r\nTransfer-Encoding: chunked", b"0\r\n\r\n", b"+", b"-1", b"0x"]
)
DAMAGE = st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 4), BITS), min_size=1, max_size=3)
CUTS = st.lists(st.integers(0, 1 << 16), max_size=6)


@pytest.fixture(scope="module", autouse=True)
def _hosts() -> Iterator[None]:
    logging.disable()  # applications that raise are part of it
    yield
    logging.disable(logging.NOTSET)
    close_hosts()


def damaged(stream: bytes, damage: list[tuple[int, int, bytes]]) -> bytes:
    for place, length, new in damage:
        at = place % (len(stream) + 1)
        stream = stream[:at] + new + stream[at + length :]
    return stream


def ways(stream: bytes, places: list[int]) -> list[list[bytes]]:
    """Whole, cut at these places, and byte by byte."""
    return [[stream], cut(stream, [place % len(stream) for place in places]), cut(stream, range(len(stream)))]


@PROFILE
@given(st.lists(message(), min_size=1, max_size=4), CUTS)
def test_valid_streams(messages: list[bytes], places: list[int]) -> None:
    """Every request up to one that ends the connection is served, once, in order."""
    stream = b"".join(messages)
    outcome = check_stream(stream, ways(stream, places))[0]
    served = [seen for seen in outcome.seen if seen.end == "whole"]
    expected = 0
    for one in messages:
        head = one.partition(b"\r\n\r\n")[0]
        if b" HTTP/1.0" in head and b"Transfer-Encoding" in head:
            break
        expected += 1
        if b"Connection: close" in head or (b" HTTP/1.0" in head and b"Connection: keep-alive" not in head):
            break
    assert len(served) == expected


@PROFILE
@given(STREAMS, DAMAGE, CUTS, st.booleans())
def test_damaged_streams(stream: bytes, damage: list[tuple[int, int, bytes]], places: list[int], small: bool) -> None:
    """Whatever becomes of it, it is the same."""
    stream = damaged(stream, damage)
    if stream:
        check_stream(stream, ways(stream, places), small)


@PROFILE
@given(STREAMS, DAMAGE | st.just([]), CUTS, st.sampled_from(Behaviour), st.sampled_from(Then))
def test_whatever_the_application_does(
    stream: bytes, damage: list[tuple[int, int, bytes]], places: list[int], behaviour: Behaviour, then: Then
) -> None:
    """And however the connection ends."""
    stream = damaged(stream, damage)
    if stream:
        check_stream(stream, ways(stream, places), False, behaviour, then)


@PROFILE
@given(STREAMS, DAMAGE | st.just([]), CUTS)
def test_streams_that_travel(stream: bytes, damage: list[tuple[int, int, bytes]], places: list[int]) -> None:
    """The client sees nothing of a hand-over, wherever in its stream it happens."""
    stream = damaged(stream, damage)
    if stream:
        check_travel(stream, cut(stream, [place % len(stream) for place in places]))


@PROFILE
@given(st.binary(min_size=1, max_size=60), CUTS)
def test_any_bytes(stream: bytes, places: list[int]) -> None:
    """Also what is no HTTP at all."""
    check_stream(stream, ways(stream, places))
