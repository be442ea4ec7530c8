"""Conditions, ranges and content codings of RFC 9110, as tables."""

from __future__ import annotations

import pytest

from serve_asgi.http.conditional_requests import ConditionVerdict, acceptable_codings, evaluate, http_date, wanted_range

TAG = b'"abc-5"'
AT = 1_700_000_000
THEN = http_date(AT)
BEFORE, AFTER = http_date(AT - 1), http_date(AT + 1)
SEND, KNOWN, FAILED = ConditionVerdict.SEND, ConditionVerdict.NOT_MODIFIED, ConditionVerdict.FAILED


@pytest.mark.parametrize(
    ("headers", "verdict"),
    [
        ({}, SEND),
        ({b"if-none-match": TAG}, KNOWN),
        ({b"if-none-match": b"W/" + TAG}, KNOWN),
        ({b"if-none-match": b'"x", W/"y",' + TAG}, KNOWN),
        ({b"if-none-match": b" * "}, KNOWN),
        ({b"if-none-match": b'"other"'}, SEND),
        ({b"if-none-match": b"abc-5"}, SEND),
        ({b"if-none-match": b'"other"', b"if-modified-since": AFTER}, SEND),
        ({b"if-modified-since": THEN}, KNOWN),
        ({b"if-modified-since": AFTER}, KNOWN),
        ({b"if-modified-since": BEFORE}, SEND),
        ({b"if-modified-since": b"yesterday"}, SEND),
        ({b"if-modified-since": b"\xff"}, SEND),
        ({b"if-match": TAG}, SEND),
        ({b"if-match": b"*"}, SEND),
        ({b"if-match": b"W/" + TAG}, FAILED),
        ({b"if-match": b'"other"'}, FAILED),
        ({b"if-match": TAG, b"if-unmodified-since": BEFORE}, SEND),
        ({b"if-match": TAG, b"if-none-match": TAG}, KNOWN),
        ({b"if-unmodified-since": THEN}, SEND),
        ({b"if-unmodified-since": BEFORE}, FAILED),
        ({b"if-unmodified-since": b"x"}, SEND),
    ],
)
def test_conditions(headers: dict[bytes, bytes], verdict: ConditionVerdict) -> None:
    assert evaluate(headers, TAG, AT) is verdict


@pytest.mark.parametrize("name", [b"if-modified-since", b"if-unmodified-since"])
def test_conditions_on_the_date_of_a_file_without_one(name: bytes) -> None:
    for at in (b"Thu, 01 Jan 1970 00:00:00 GMT", AFTER):
        assert evaluate({name: at}, TAG, None) is SEND
    assert wanted_range({b"range": b"bytes=0-1", b"if-range": AFTER}, TAG, None, 10) is None


@pytest.mark.parametrize(
    ("value", "part"),
    [
        (b"bytes=0-0", (0, 1)),
        (b"bytes=2-5", (2, 6)),
        (b"Bytes = 2 - 5", (2, 6)),
        (b"bytes=2-", (2, 10)),
        (b"bytes=2-99", (2, 10)),
        (b"bytes=-3", (7, 10)),
        (b"bytes=-30", (0, 10)),
        (b"bytes=5-2", None),
        (b"bytes=-", None),
        (b"bytes=a-b", None),
        (b"bytes=0-1,3-4", None),
        (b"pages=0-1", None),
        (b"bytes=99999999999999999999999-", None),
    ],
)
def test_ranges_of_ten_bytes(value: bytes, part: tuple[int, int] | None) -> None:
    assert wanted_range({b"range": value}, TAG, AT, 10) == part


@pytest.mark.parametrize(("value", "size"), [(b"bytes=10-", 10), (b"bytes=-0", 10), (b"bytes=0-", 0), (b"bytes=-1", 0)])
def test_nothing_of_a_range_is_there(value: bytes, size: int) -> None:
    with pytest.raises(ValueError, match=r"bytes|end"):
        wanted_range({b"range": value}, TAG, AT, size)


@pytest.mark.parametrize(
    ("condition", "holds"), [(TAG, True), (THEN, True), (b"W/" + TAG, False), (b'"x"', False), (AFTER, False)]
)
def test_a_part_of_what_has_changed_is_not_sent(condition: bytes, holds: bool) -> None:
    headers = {b"range": b"bytes=0-1", b"if-range": condition}
    assert wanted_range(headers, TAG, AT, 10) == ((0, 2) if holds else None)


@pytest.mark.parametrize(
    ("header", "codings"),
    [
        (b"", []),
        (b"gzip, deflate, br, zstd", [b"br", b"zstd", b"gzip"]),
        (b"gzip;q=1.0, br;q=0.5", [b"gzip", b"br"]),
        (b"GZIP ; q=0.1", [b"gzip"]),
        (b"x-gzip", [b"gzip"]),
        (b"*", [b"br", b"zstd", b"gzip"]),
        (b"*;q=0.5, br;q=0", [b"zstd", b"gzip"]),
        (b"br;q=0", []),
        (b"identity, br;q=0.5", []),
        (b"br;q=7, gzip;q=x", []),
    ],
)
def test_codings(header: bytes, codings: list[bytes]) -> None:
    assert acceptable_codings(header, (b"br", b"zstd", b"gzip")) == codings
