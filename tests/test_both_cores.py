"""The compiled core does what the pure Python does, input by input: to the client, to the application, in its counters
and with its exceptions.

Where nothing is compiled, the pure Python is compared with itself, a few times. SERVE_TEST_EXAMPLES sets how many
inputs of each kind are tried: 60 unless told.
"""

from __future__ import annotations

import http
import logging
import os
import subprocess
from collections.abc import Iterator
from typing import Any, Final

import hpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serve_asgi import compiled_core
from serve_asgi.http.h2 import frames, huffman
from serve_asgi.http.request_head import CHUNKED
from tests import core_outcomes
from tests.core_outcomes import Function, Text, View
from tests.fuzzing import h2_inputs
from tests.fuzzing.inputs import DEFLATE, UPGRADE
from tests.fuzzing.test_streams import BITS, CUTS, DAMAGE, STREAMS, chunked, damaged, message
from tests.http.h2.test_any_bytes import STEPS
from tests.http.h2.test_header_blocks import NAME, TEXT
from tests.http.memory import PARSERS, Behaviour, Then, cut
from tests.websocket.test_framing import frames as websocket_frames

EXAMPLES: Final = int(os.environ.get("SERVE_TEST_EXAMPLES", "60" if compiled_core.installed_modules() else "12"))
Values = tuple[st.SearchStrategy[Any], ...]


def pieces_of(stream: bytes, places: list[int]) -> list[bytes]:
    """Cut at these places, of which six are all."""
    every = range(len(stream)) if len(places) == 6 else [place % (len(stream) + 1) for place in places]
    return cut(stream, every) if stream else []


def in_pieces(streams: st.SearchStrategy[bytes]) -> st.SearchStrategy[list[bytes]]:
    return st.builds(pieces_of, streams, CUTS)


def maybe_damaged(streams: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    return st.builds(damaged, streams, DAMAGE | st.just([]))


@st.composite
def blocks(draw: st.DrawFn) -> list[bytes]:
    """Of one encoder, some damaged."""
    encoder = hpack.Encoder()
    fields = draw(st.lists(st.lists(st.tuples(NAME, TEXT), max_size=5), max_size=5))
    return [draw(maybe_damaged(st.just(encoder.encode(each, huffman=draw(st.booleans()))))) for each in fields]


# What a client sends
HTTP, THEN, YES_OR_NO = st.sampled_from(PARSERS), st.sampled_from(Then), st.booleans()
HTTP2 = (STEPS | st.binary(max_size=200)).map(h2_inputs.script)
FRAMES = st.lists(websocket_frames, max_size=8).map(b"".join)
SOCKETS = st.builds(lambda more, sent: UPGRADE + more + b"\r\n" + sent, st.sampled_from([b"", DEFLATE]), FRAMES)
FIELDS = st.lists(BITS, max_size=4).map(lambda fields: b"GET / HTTP/1.1\r\nHost: a\r\nX:" + b"\r\nX:".join(fields))
HEADS = (maybe_damaged(message()) | FIELDS).map(lambda data: data.partition(b"\r\n\r\n")[0] + b"\r\n\r\n")

# What an application sends, of the types that it should and of others
BYTES = st.sampled_from([b"", b"a", b"abc", b"x" * 70_000]) | st.binary(max_size=20)
ODD = st.sampled_from(["a", None, 1, 1.5, True, bytearray(b"ab"), View(b"abc"), Text(b"abcd"), [97], ""])
LENGTH = st.sampled_from([b"content-length", b"Content-Length", Text(b"content-length")])
NAMES = LENGTH | st.sampled_from(
    [b"X-A", b"x-a", b"transfer-encoding", b"connection", b"date", b"x y", b"", b"\xe9", bytearray(b"x-b"), View(b"x")]
)
NUMBERS = st.sampled_from([b"0", b"1", b"3", b" 3", b"+3", b"9" * 30, bytearray(b"3"), View(b"3"), Text(b"3")])
VALUES = NUMBERS | st.sampled_from([b"", b"chunked", b"identity", b"close", b"keep-alive, x", b"a\nb", b"\0", b"\xff"])
PAIRS = st.tuples(NAMES, VALUES) | st.tuples(LENGTH, NUMBERS)
HEADERS = st.lists(PAIRS | PAIRS.map(list), max_size=4)
ODD_PAIRS = st.tuples(NAMES | ODD, VALUES | ODD) | st.tuples(NAMES) | ODD | st.tuples(NAMES, VALUES, VALUES)
ODD_HEADERS = HEADERS.map(tuple) | st.lists(PAIRS | ODD_PAIRS, max_size=3) | ODD
STATUSES = st.sampled_from([200, 200, 204, 205, 304, 404, http.HTTPStatus.CREATED])
ODD_STATUSES = st.sampled_from([101, 600, 1 << 70, -1, True, "200", None, 200.0])
MORE: st.SearchStrategy[Any] = st.sampled_from([True, True, False, 1, 0, None, "no", "", [], 2.5, 1 << 70])
KINDS = st.sampled_from(["http.response.trailers", "http.response.early_hint", "http.disconnect", None, 1])


def messages(kind: str, **optional: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({"type": st.just(kind)}, optional=optional)


START = messages("http.response.start", headers=HEADERS, trailers=MORE)
START = st.builds(lambda start, status: {**start, "status": status}, START, STATUSES)
ODD_START = messages("http.response.start", status=STATUSES | ODD_STATUSES, headers=ODD_HEADERS, trailers=MORE)
BODY = messages("http.response.body", body=BYTES | BYTES | ODD, more_body=MORE)
OTHER = messages("", headers=ODD_HEADERS, more_trailers=MORE, links=st.lists(VALUES, max_size=2))
OTHER = st.just({}) | st.builds(lambda other, kind: {**other, "type": kind}, OTHER, KINDS)
SCRIPTS = st.builds(lambda start, rest: [start, *rest], START, st.lists(BODY, max_size=4))
SCRIPTS |= st.lists(START | ODD_START | BODY | BODY | OTHER, max_size=5)
SENDS = (
    st.tuples(st.just("text"), st.text(max_size=200))
    | st.tuples(st.just("binary"), BYTES)
    | st.tuples(st.just("close"), st.integers(0, 70_000), st.text(max_size=130))
)

ROOM, BITS_OF_63 = st.sampled_from([1 << 30, -1, 0, 300]), st.integers(0, 63)
HTTP2_FRAMES = HTTP2.map(lambda sent: sent[len(frames.PREFACE) :])
PLAIN_FIELDS = st.lists(st.tuples(NAME, TEXT))
STREAMS_OF_ALL = in_pieces(maybe_damaged(STREAMS) | HTTP2 | SOCKETS)
CASES: Final[list[tuple[Function, Values]]] = [
    (core_outcomes.talk, (HTTP, YES_OR_NO, STREAMS_OF_ALL, THEN, st.sampled_from(Behaviour), YES_OR_NO)),
    (core_outcomes.talk, (HTTP, st.just(False), in_pieces(STREAMS | HTTP2), THEN, SCRIPTS, YES_OR_NO)),
    (core_outcomes.heads, (HTTP, st.lists(HEADS, max_size=5))),
    (core_outcomes.headers, (HEADERS | ODD_HEADERS | st.lists(VALUES), YES_OR_NO)),
    (core_outcomes.body, (st.integers(1, 60), st.just(0), in_pieces(st.binary(max_size=80)), BITS_OF_63)),
    (core_outcomes.body, (st.just(CHUNKED), st.sampled_from([0, 20]), in_pieces(maybe_damaged(chunked())), BITS_OF_63)),
    (
        core_outcomes.websocket,
        (in_pieces(maybe_damaged(FRAMES)), ROOM, YES_OR_NO, YES_OR_NO, st.lists(SENDS, max_size=4)),
    ),
    (core_outcomes.read_blocks, (blocks() | st.lists(st.binary(max_size=60), max_size=4),)),
    (core_outcomes.written_blocks, (st.lists(st.tuples(st.none() | st.integers(0, 5000), PLAIN_FIELDS), max_size=6),)),
    (core_outcomes.http2_frames, (in_pieces(HTTP2_FRAMES), st.sampled_from([100, 16384]))),
    (h2_inputs.outcome, (maybe_damaged(HTTP2), st.sampled_from(h2_inputs.PIECES))),
    (h2_inputs.answered, (maybe_damaged(HTTP2), st.binary(min_size=1, max_size=8), YES_OR_NO)),
]


@pytest.fixture(scope="module")
def pure() -> Iterator[subprocess.Popen[bytes]]:
    logging.disable()  # applications that raise are part of it
    huffman.fill_table()
    with core_outcomes.pure_core() as process:
        yield process
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize(("function", "values"), CASES, ids=lambda case: getattr(case, "__name__", ""))
def test_the_same_comes_of_it(pure: subprocess.Popen[bytes], function: Function, values: Values) -> None:
    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.tuples(*values))
    def check(drawn: tuple[Any, ...]) -> None:
        own, expected = core_outcomes.outcomes(pure, function, *drawn)
        assert own == expected

    check()


def test_one_core_is_pure_and_the_other_is_what_is_installed(pure: subprocess.Popen[bytes]) -> None:
    own, expected = core_outcomes.outcomes(pure, compiled_core.loaded_modules)
    assert expected == "0"
    assert (own != "0") == (compiled_core.installed_modules() > 0)
