"""Correlates the lines that several programs log about one request: its id and its trace.

Pure. Rules: nothing is accepted that could harm a log or its reader; invalid values are ignored; a header that is sent
twice is ambiguous and invalid. An id is only a name that somebody chose: it proves nothing.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Final

from serve_asgi.config.options import Config

LONGEST_ID: Final = 128
"""Characters; a longer one is not an id."""

HEADER_NAME: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")

_ID: Final = re.compile(rb"[!-~]{1,%d}" % LONGEST_ID)
# W3C Trace Context level 1, 3.2: version ff is invalid, and so are a trace-id or parent-id of zeros; version 00 ends
# with the flags, later ones may go on behind another dash.
_TRACEPARENT: Final = re.compile(
    rb"(?:00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
    rb"|(?!00|ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-[!-~]{0,128})?)"
)

_source: Final = random.SystemRandom()

Headers = Sequence[tuple[bytes, bytes]]
"""Names in lower case."""


def _only(headers: Headers, name: bytes, pattern: re.Pattern[bytes]) -> str:
    found = [value for field, value in headers if field == name]
    return found[0].decode("ascii") if len(found) == 1 and pattern.fullmatch(found[0]) else ""


def traceparent(headers: Headers) -> str:
    """The request's traceparent, if it carries a valid one (W3C Trace Context level 1, 3.2), else ""."""
    return _only(headers, b"traceparent", _TRACEPARENT)


class RequestIds:
    """What `--request-id` and `--request-id-header` ask for."""

    __slots__ = ("_random", "echoes", "generates", "name")

    def __init__(self, config: Config) -> None:
        mode = config.request_id
        self.name = config.request_id_header.lower().encode() if mode != "off" else b""
        """The header that carries the id; empty if ids are off."""
        self.generates = mode in ("generate", "echo")
        """Whether a request without an id is given one."""
        self.echoes = mode == "echo"
        """Whether the response carries it."""
        self._random = random.Random(_source.getrandbits(256))

    def carried(self, headers: Headers) -> str:
        """The request's id, if it is valid: 1 to 128 visible characters of ASCII; else ""."""
        return _only(headers, self.name, _ID) if self.name else ""

    def keep_or_generate(self, headers: list[tuple[bytes, bytes]]) -> str:
        """The request's id, or a new one, which then replaces an invalid one in `headers`."""
        found = self.carried(headers)
        if not found:
            found = f"{self._random.getrandbits(128):032x}"
            name = self.name
            headers[:] = [field for field in headers if field[0] != name]
            headers.append((name, found.encode()))
        return found


def named(request_id: str, trace: str) -> str:
    """The request in a line for people: " (request id …, traceparent …)", or ""."""
    said = [f"request id {request_id}"] if request_id else []
    said += [f"traceparent {trace}"] if trace else []
    return f" ({', '.join(said)})" if said else ""


def of_request(method: str, path: str, request_id: str, trace: str) -> dict[str, str]:
    """The request in a line for programs; what it does not have is omitted."""
    said = {"method": method, "path": path, "request_id": request_id, "traceparent": trace}
    return {name: value for name, value in said.items() if value}
