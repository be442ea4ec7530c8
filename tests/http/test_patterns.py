"""The patterns that decide what a request is mean the same on every CPython that the server runs on."""

from __future__ import annotations

import importlib
import pkgutil
import re
import time
from collections.abc import Iterator
from re import _constants, _parser  # type: ignore[attr-defined]
from typing import Any

import pytest

import serve_asgi.http
from serve_asgi.http.chunked_body import _SIZE_LINE
from serve_asgi.http.forwarded import _ELEMENT


def patterns() -> dict[str, re.Pattern[Any]]:
    found = {}
    for module in pkgutil.iter_modules(serve_asgi.http.__path__, "serve_asgi.http."):
        for name, value in vars(importlib.import_module(module.name)).items():
            if isinstance(value, re.Pattern):
                found[f"{module.name}.{name}"] = value
    return found


PATTERNS = patterns()


def possessive(parsed: Any) -> Iterator[Any]:
    """What is repeated possessively, at any depth."""
    for operation, argument in parsed:
        if operation is _constants.POSSESSIVE_REPEAT:
            yield argument[2]
        for part in argument if isinstance(argument, list | tuple) else [argument]:
            for each in part if isinstance(part, list) else [part]:
                if isinstance(each, _parser.SubPattern):
                    yield from possessive(each)


@pytest.mark.parametrize("name", PATTERNS)
def test_no_group_is_possessive(name: str) -> None:
    """CPython before 3.11.5 (Debian 12 has 3.11.2) takes a part of such a group for the whole (gh-106052)."""
    for repeated in possessive(_parser.parse(PATTERNS[name].pattern, PATTERNS[name].flags)):
        assert len(repeated) == 1
        assert repeated[0][0] in (_constants.IN, _constants.LITERAL, _constants.NOT_LITERAL, _constants.ANY)


HOSTILE = {
    "names": (_SIZE_LINE, b"1" + b";a" * 4000 + b"!"),
    "tokens": (_SIZE_LINE, b"1" + b";a=b" * 2000 + b"!"),
    "quoted": (_SIZE_LINE, b"1" + b';a="b"' * 1300 + b"!"),
    "escapes": (_SIZE_LINE, b'1;a="' + b"\\a" * 4000),
    "pairs": (_ELEMENT, b"a=b;" * 2000 + b'"'),
    "empty": (_ELEMENT, b";" * 8000 + b'"'),
    "quotes": (_ELEMENT, b'a="' + b"\\b" * 4000),
}


@pytest.mark.parametrize("hostile", HOSTILE)
def test_the_longest_text_takes_linear_time(hostile: str) -> None:
    pattern, text = HOSTILE[hostile]

    def cost(text: bytes) -> int:
        began = time.process_time_ns()
        for _ in range(20):
            assert pattern.fullmatch(text) is None
        return time.process_time_ns() - began

    whole, part = (min(cost(each) for _ in range(5)) for each in (text, text[: len(text) // 8] + text[-1:]))
    assert whole < 24 * part  # 8 times, if it is linear, and 64, if it is quadratic
