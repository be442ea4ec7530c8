"""Conditional requests and ranges of a file: what a request's headers mean for its ETag, date and size. Pure.

Source: RFC 9110 13 (conditions, in the order of 13.2.2) and 14 (ranges). A header that makes no sense is passed over,
as the RFC has it. Several ranges in one request are answered with the whole, which 14.2 allows.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from email.utils import formatdate, parsedate_to_datetime
from typing import Final

_TAG: Final = re.compile(rb'(W/)?("[\x21\x23-\x7e\x80-\xff]*")')
_RANGE: Final = re.compile(rb"bytes[ \t]*=[ \t]*(\d{0,19})[ \t]*-[ \t]*(\d{0,19})[ \t]*", re.IGNORECASE)
_CODING: Final = re.compile(rb"([!#$%&'*+\-.^_`|~0-9a-z]+)[ \t]*(?:;[ \t]*q=(0(?:\.\d{0,3})?|1(?:\.0{0,3})?))?")

Headers = Mapping[bytes, bytes]
"""Names in lower case; of a header that comes twice, both values with a comma between them."""


class ConditionVerdict(enum.Enum):
    """What the conditions of a request come to."""

    SEND = 200
    NOT_MODIFIED = 304
    FAILED = 412


def http_date(modified: int) -> bytes:
    """A Unix time (s) as HTTP has it (RFC 9110 5.6.7)."""
    return formatdate(modified, usegmt=True).encode("ascii")


def evaluate(headers: Headers, tag: bytes, modified: int | None) -> ConditionVerdict:
    """The conditions of a GET or HEAD, for a file with this strong ETag that was `modified` then (Unix time, s).

    Without a time, conditions on it are passed over.
    """
    if (wanted := headers.get(b"if-match")) is not None:
        if not _matches(wanted, tag, weakly=False):
            return ConditionVerdict.FAILED
    elif (later := _later(modified, headers.get(b"if-unmodified-since"))) is not None and later > 0:
        return ConditionVerdict.FAILED
    if (known := headers.get(b"if-none-match")) is not None:
        return ConditionVerdict.NOT_MODIFIED if _matches(known, tag, weakly=True) else ConditionVerdict.SEND
    if (later := _later(modified, headers.get(b"if-modified-since"))) is not None and later <= 0:
        return ConditionVerdict.NOT_MODIFIED
    return ConditionVerdict.SEND


def wanted_range(headers: Headers, tag: bytes, modified: int | None, size: int) -> tuple[int, int] | None:
    """The first byte that a GET asks for and the one behind the last; None for the whole.

    Raises ValueError if nothing of what it asks for is there (416).
    """
    asked = _RANGE.fullmatch(headers.get(b"range", b""))
    if asked is None or not _still_the_same(headers.get(b"if-range"), tag, modified):
        return None
    first, last = asked[1], asked[2]
    if not first and not last:
        return None
    if not first:
        if not int(last) or not size:
            raise ValueError("the last 0 bytes")
        return max(0, size - int(last)), size
    if last and int(last) < int(first):
        return None  # no range at all (14.1.1)
    if int(first) >= size:
        raise ValueError("behind the end")
    return int(first), min(size, int(last) + 1 if last else size)


def acceptable_codings(header: bytes, known: tuple[bytes, ...]) -> list[bytes]:
    """Those of the `known` content codings that Accept-Encoding takes, the best first; in their own order if equal."""
    weights: dict[bytes, float] = {}
    for item in header.lower().split(b","):
        if found := _CODING.fullmatch(item.strip(b" \t")):
            weights[b"gzip" if found[1] == b"x-gzip" else found[1]] = float(found[2] or 1)
    others = weights.get(b"*", 0.0)
    least = weights.get(b"identity", 0.0)
    weighed = [(weights.get(coding, others), coding) for coding in known]
    taken = [(weight, coding) for weight, coding in weighed if weight and weight >= least]
    return [coding for _, coding in sorted(taken, key=lambda each: -each[0])]


def _matches(header: bytes, tag: bytes, *, weakly: bool) -> bool:
    if header.strip(b" \t") == b"*":
        return True
    return any(found[2] == tag and (weakly or not found[1]) for found in _TAG.finditer(header))


def _later(modified: int | None, header: bytes | None) -> float | None:
    """Seconds from the date in a header until the file was modified; None if either is missing or makes no sense."""
    if modified is None or header is None:
        return None
    try:
        return modified - parsedate_to_datetime(header.decode("ascii")).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None


def _still_the_same(header: bytes | None, tag: bytes, modified: int | None) -> bool:
    """Whether If-Range (13.1.5) allows a part: the very same tag, or the very same date."""
    return header is None or header.strip(b" \t") in (tag, modified is not None and http_date(modified))
