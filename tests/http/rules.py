"""Rules of RFC 9112 and RFC 9110 with the bytes that try them: what a rule is made of."""

from __future__ import annotations

import dataclasses

BEHIND = b"GET /behind HTTP/1.1\r\nHost: behind\r\n\r\n"


@dataclasses.dataclass(frozen=True)
class Served:
    """The requests that the application sees, as "METHOD target content"; `last` if the server then closes."""

    lines: tuple[str, ...]
    last: bool = False


def served(*lines: str) -> Served:
    return Served(lines)


def last(*lines: str) -> Served:
    return Served(lines, last=True)


Case = tuple[bytes, "int | Served"]


@dataclasses.dataclass(frozen=True)
class Rule:
    """What a section demands, and what comes of it: a status, after which the connection is closed, or requests."""

    section: str
    words: str
    cases: tuple[Case, ...]


def rule(section: str, words: str, *cases: Case) -> Rule:
    return Rule(section, words, cases)


def line(request_line: bytes, *fields: bytes) -> bytes:
    """A request with this request line, a Host and these fields."""
    return request_line + b"\r\nHost: a\r\n" + b"".join(field + b"\r\n" for field in fields) + b"\r\n"


def target(value: bytes, method: bytes = b"GET") -> bytes:
    return line(method + b" " + value + b" HTTP/1.1")


def field(*fields: bytes) -> bytes:
    return line(b"GET / HTTP/1.1", *fields)


def host(*values: bytes) -> bytes:
    return b"GET / HTTP/1.1\r\n" + b"".join(b"Host:" + value + b"\r\n" for value in values) + b"\r\n"


def post(*fields: bytes, content: bytes = b"", version: bytes = b"1.1") -> bytes:
    return line(b"POST / HTTP/" + version, *fields) + content


def length(value: bytes, content: bytes = b"") -> bytes:
    return post(b"Content-Length:" + value, content=content)


def coded(*values: bytes, content: bytes = b"0\r\n\r\n") -> bytes:
    return post(*(b"Transfer-Encoding:" + value for value in values), content=content)


def chunks(content: bytes) -> bytes:
    return coded(b" chunked", content=content)


GET = served("GET /")


POST = served("POST /")
