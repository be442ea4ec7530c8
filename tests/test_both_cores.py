"""The compiled core and the pure Python do the same, input by input: what the client gets, what the application sees,
what is counted, and what is raised.

Where nothing is compiled, the pure Python is compared with itself, a few times. SERVE_TEST_EXAMPLES sets how many
inputs of each kind are tried, either way.
"""

from __future__ import annotations

import http
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

import hpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serve_asgi import compiled_core
from serve_asgi.http.h2 import frames, huffman
from serve_asgi.http.request_head import CHUNKED
from tests import core_outcomes
from tests.core_outcomes import PureCore, Text, View
from tests.fuzzing import h2_inputs
from tests.fuzzing.inputs import DEFLATE, UPGRADE
from tests.fuzzing.test_streams import BITS, CUTS, DAMAGE, STREAMS, chunked, damaged, message
from tests.http.h2.test_any_bytes import STEPS
from tests.http.h2.test_header_blocks import NAME, TEXT
from tests.http.memory import PARSERS, Behaviour, Then, cut
from tests.websocket.test_framing import frames as websocket_frames

Same = Callable[..., None]
EXAMPLES = int(os.environ.get("SERVE_TEST_EXAMPLES", "150" if compiled_core.installed_modules() else "15"))
PROFILE = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="module")
def same() -> Iterator[Same]:
    """Asks both for an outcome."""
    pure = PureCore()
    logging.disable()  # applications that raise are part of it
    huffman.fill_table()

    def ask(function: Callable[..., Any], *values: Any) -> None:
        pure.ask(function, values)
        own = core_outcomes.shown(function, values)
        assert own == pure.answer()

    yield ask
    logging.disable(logging.NOTSET)
    pure.close()


def pieces_of(stream: bytes, places: list[int]) -> list[bytes]:
    """Cut at these places; byte by byte for many."""
    if not stream:
        return []
    return cut(stream, range(len(stream)) if len(places) == 6 else [place % len(stream) for place in places])


HTTP = st.sampled_from(PARSERS)
BEHAVIOURS, THEN = st.sampled_from(Behaviour), st.sampled_from(Then)
HTTP2 = (STEPS | st.binary(max_size=200)).map(h2_inputs.script)
DAMAGED = st.builds(damaged, STREAMS, DAMAGE | st.just([]))
SOCKETS = st.builds(
    lambda deflate, sent: UPGRADE + (DEFLATE if deflate else b"") + b"\r\n" + b"".join(sent),
    st.booleans(),
    st.lists(websocket_frames, max_size=8),
)
PIECES = st.builds(pieces_of, DAMAGED | HTTP2 | SOCKETS, CUTS)


def test_one_is_pure_and_this_is_what_is_installed(same: Same) -> None:
    pure = PureCore()
    pure.ask(core_outcomes.loaded_modules, ())
    assert pure.answer() == "0"
    pure.close()
    assert (core_outcomes.loaded_modules() > 0) == (compiled_core.installed_modules() > 0)


@PROFILE
@given(HTTP, st.booleans(), PIECES, BEHAVIOURS, THEN, st.booleans())
def test_connections(
    same: Same, http: str, small: bool, pieces: list[bytes], behaviour: Behaviour, then: Then, travels: bool
) -> None:
    same(core_outcomes.connection, http, small, pieces, behaviour, then, travels)


# ---- what an application sends

BYTES = st.sampled_from([b"", b"a", b"abc", b"x" * 70_000]) | st.binary(max_size=20)
ODD = st.sampled_from(["a", None, 1, 1.5, True, bytearray(b"ab"), View(b"abc"), Text(b"abcd"), [97], ""])
NAMES = st.sampled_from(
    [b"X-A", b"x-a", b"Content-Length", b"content-length", b"transfer-encoding", b"connection", b"date", b"server"]
    + [b"set-cookie", b"x y", b"", b"\xe9", b"keep-alive", Text(b"content-length"), bytearray(b"x-b"), View(b"x-c")]
)
VALUES = st.sampled_from(
    [b"", b"a", b"0", b"1", b"3", b" 3", b"+3", b"9" * 30, b"chunked", b"identity", b"close", b"keep-alive, x", b"a\nb"]
    + [b"\r", b"\0", b"\xff", bytearray(b"3"), View(b"3"), Text(b"3")]
)
PAIRS = st.tuples(NAMES, VALUES)
ODD_PAIRS = st.tuples(NAMES | ODD, VALUES | ODD) | st.tuples(NAMES) | ODD | st.tuples(NAMES, VALUES, VALUES)
HEADERS = st.lists(PAIRS | PAIRS.map(list), max_size=4)
ODD_HEADERS = HEADERS | HEADERS.map(tuple) | st.lists(PAIRS | ODD_PAIRS, max_size=3) | ODD
STATUSES = st.sampled_from([200, 200, 204, 205, 304, 404, http.HTTPStatus.CREATED, 599])
ODD_STATUSES = st.sampled_from([101, 99, 600, 1 << 40, -1, True, "200", None, 200.0])
MORE = st.sampled_from([True, True, False]) | st.sampled_from([1, 0, None, "no", "", [], 2.5, 1 << 70])
FLAGS = st.sampled_from([True, False, 1, None, "x"])
START = st.fixed_dictionaries(
    {"type": st.just("http.response.start"), "status": STATUSES}, optional={"headers": HEADERS, "trailers": FLAGS}
)
ODD_START = st.fixed_dictionaries(
    {"type": st.just("http.response.start")},
    optional={"status": STATUSES | ODD_STATUSES, "headers": ODD_HEADERS, "trailers": FLAGS},
)
BODY = st.fixed_dictionaries(
    {"type": st.just("http.response.body")}, optional={"body": BYTES | BYTES | ODD, "more_body": MORE}
)
OTHER = st.fixed_dictionaries(
    {"type": st.sampled_from(["http.response.trailers", "http.response.early_hint", "http.disconnect", None, 1])},
    optional={"headers": ODD_HEADERS, "more_trailers": FLAGS, "links": st.lists(VALUES, max_size=2)},
) | st.just({})
SCRIPTS = st.builds(lambda start, rest: [start, *rest], START, st.lists(BODY, max_size=4)) | st.lists(
    START | ODD_START | BODY | BODY | OTHER, max_size=5
)


@PROFILE
@given(HTTP, st.builds(pieces_of, STREAMS | HTTP2, CUTS), THEN, st.booleans(), SCRIPTS)
def test_responses(
    same: Same, http: str, pieces: list[bytes], then: Then, reads: bool, script: list[dict[str, Any]]
) -> None:
    same(core_outcomes.response, http, pieces, then, reads, script)


@PROFILE
@given(ODD_HEADERS, st.booleans())
def test_response_headers(same: Same, headers: Any, bodiless: bool) -> None:
    same(core_outcomes.encoded, headers, bodiless)


# ---- pure functions


@PROFILE
@given(HTTP, st.lists(st.builds(damaged, message(), DAMAGE | st.just([])), max_size=4), st.lists(BITS, max_size=4))
def test_request_heads(same: Same, http: str, messages: list[bytes], fields: list[bytes]) -> None:
    whole = [each.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" for each in messages]
    more = b"GET / HTTP/1.1\r\nHost: a\r\n" + b"".join(b"X: " + each + b"\r\n" for each in fields) + b"\r\n"
    same(core_outcomes.heads, http, [*whole, more.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"])


@PROFILE
@given(
    st.integers(0, 60) | st.just(CHUNKED),
    st.sampled_from([0, 0, 10]),
    st.builds(pieces_of, st.builds(damaged, chunked(), DAMAGE | st.just([])), CUTS),
    st.integers(0, 63),
)
def test_request_bodies(same: Same, length: int, max_size: int, pieces: list[bytes], takes: int) -> None:
    same(core_outcomes.body, length or CHUNKED, max_size, pieces, takes)


@PROFILE
@given(
    st.builds(pieces_of, st.lists(websocket_frames, max_size=8).map(b"".join) | st.binary(max_size=40), CUTS),
    st.sampled_from([1 << 30, -1, 0, 300]),
    st.booleans(),
    st.booleans(),
    st.lists(st.text(max_size=200) | BYTES | st.tuples(st.integers(0, 70_000), st.text(max_size=130)), max_size=4),
)
def test_websocket_frames(
    same: Same, pieces: list[bytes], room: int, asked: bool, compressed: bool, sends: list[Any]
) -> None:
    same(core_outcomes.websocket, pieces, room, asked, compressed, sends)


@st.composite
def blocks(draw: st.DrawFn) -> list[bytes]:
    """Of one encoder, some damaged."""
    encoder, found = hpack.Encoder(), []
    for fields in draw(st.lists(st.lists(st.tuples(NAME, TEXT), max_size=5), max_size=5)):
        found.append(damaged(encoder.encode(fields, huffman=draw(st.booleans())), draw(DAMAGE | st.just([]))))
    return found


@PROFILE
@given(blocks() | st.lists(st.binary(max_size=60), max_size=4))
def test_header_blocks_that_come(same: Same, found: list[bytes]) -> None:
    same(core_outcomes.decoded, found)


@PROFILE
@given(
    st.lists(st.tuples(st.none() | st.integers(0, 5000), st.lists(st.tuples(NAME, TEXT), max_size=5)), max_size=6),
)
def test_header_blocks_that_go(same: Same, written: list[tuple[int | None, list[tuple[bytes, bytes]]]]) -> None:
    same(core_outcomes.written, written)


@PROFILE
@given(st.builds(pieces_of, HTTP2 | st.binary(max_size=60), CUTS), st.sampled_from([100, frames.LEAST_MAX_FRAME_SIZE]))
def test_http2_frames(same: Same, pieces: list[bytes], max_size: int) -> None:
    same(core_outcomes.taken_apart, [piece.removeprefix(frames.PREFACE) for piece in pieces], max_size)


@PROFILE
@given(
    st.builds(damaged, HTTP2, DAMAGE | st.just([])),
    st.sampled_from(h2_inputs.PIECES),
    st.binary(min_size=1, max_size=8),
    st.booleans(),
)
def test_http2_connections(same: Same, sent: bytes, piece: int, ways: bytes, moving: bool) -> None:
    same(core_outcomes.core, sent, piece, ways, moving)
