"""How strictly HTTP/1.1 is read: each rule of RFC 9112 and RFC 9110 with the bytes that try it.

Every case runs over both parsers, whole and byte by byte and cut behind every line, in memory, and whole over a real
socket. A request to /behind follows each: it must be answered after a request that is served, and never be seen after
one that is refused.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import pytest

from tests.http.http_server import HttpServer, echo
from tests.http.memory import PARSERS, Application, Host, Outcome, Then, cut

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


IN_QUERY = bytes(code for code in range(0x21, 0x7F) if code not in b"#")
IN_PATH = bytes(code for code in IN_QUERY if code not in b"\\")
"""Behind a slash; "?" begins the query there."""

GET = served("GET /")
POST = served("POST /")

MESSAGE = [
    rule(
        "RFC 9112 2.2",
        "a recipient of such a bare CR MUST consider that element to be invalid or replace each bare CR with SP",
        (b"GET /\rx HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\rHost: a\r\n\r\n", 400),
        (field(b"X: a\rb"), 400),
        (field(b"X: a\r"), 400),
        (field(b"X: \ra"), 400),
        (field(b"X\r: a"), 400),
        (field(b"\rX: a"), 400),
        (field(b"X: a\rTransfer-Encoding: chunked"), 400),
        (chunks(b"1\r\r\na\r\n0\r\n\r\n"), 400),
        (chunks(b"1;\rx\r\na\r\n0\r\n\r\n"), 400),
        (chunks(b"1\ra\r\n0\r\n\r\n"), 400),
        (chunks(b"0\r\nX: a\rb\r\n\r\n"), 400),
    ),
    rule(
        "RFC 9112 2.2",
        "a recipient MAY recognize a single LF as a line terminator (this server does not)",
        (b"GET / HTTP/1.1\nHost: a\n\n", 400),
        (b"GET / HTTP/1.1\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\n\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\n\n", 400),
        (field(b"X: a\nY: b"), 400),
        (field(b"X: a\n b"), 400),
        (field(b"X: a\n\nGET /x HTTP/1.1\nHost: a"), 400),
        (b"\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (chunks(b"1\na\r\n0\r\n\r\n"), 400),
        (chunks(b"1\r\na\n0\r\n\r\n"), 400),
        (chunks(b"1;x\na\r\n0\r\n\r\n"), 400),
        (chunks(b"0\n\r\n"), 400),
        (chunks(b"0\n\n"), 400),
        (chunks(b"0\r\n\n"), 400),
        (chunks(b"0\r\nX: a\n\r\n"), 400),
        (chunks(b"0\r\nX: a\nY: b\r\n\r\n"), 400),
    ),
    rule(
        "RFC 9112 2.2",
        "SHOULD ignore at least one empty line (CRLF) received prior to the request-line",
        (b"\r\n" + field(), GET),
        (b"\r\n\r\n" + field(), GET),
        (b"\r\n" * 8 + field(), GET),
        (b"\r\n" * 9 + field(), 400),
        (b"\r\n" * 40_000, 400),
        (field() + b"\r\n" * 2 + field(), served("GET /", "GET /")),
        (b"\r\r\n" + field(), 400),
        (b"\r" + field(), 400),
        (b" \r\n" + field(), 400),
    ),
    rule(
        "RFC 9112 2.2",
        "whitespace between the start-line and the first header field MUST either [be] reject[ed] as invalid or …",
        (b"GET / HTTP/1.1\r\n Host: a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\tHost: a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n X: b\r\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n \r\nHost: a\r\n\r\n", 400),
    ),
    rule(
        "RFC 9112 2.2",
        "neither TLS nor another protocol: answered at once, not after a timeout",
        (b"SSH-2.0-OpenSSH_9.9\r\n", 400),
        (b"\x00", 400),
        (b"\x80\x81", 400),
        (b"EHLO example.com\r\n", 400),
    ),
    rule(
        "RFC 9112 2.3",
        "HTTP-version is case-sensitive; HTTP-name SLASH DIGIT DOT DIGIT",
        (line(b"GET / http/1.1"), 400),
        (line(b"GET / Http/1.1"), 400),
        (line(b"GET / HTTP/1"), 400),
        (line(b"GET / HTTP/11"), 400),
        (line(b"GET / HTTP/1."), 400),
        (line(b"GET / HTTP/.1"), 400),
        (line(b"GET / HTTP/1.10"), 400),
        (line(b"GET / HTTP/01.1"), 400),
        (line(b"GET / HTTP/1.1.1"), 400),
        (line(b"GET / HTTP/+1.1"), 400),
        (line(b"GET / HTTP/1,1"), 400),
        (line(b"GET / HTTP 1.1"), 400),
        (line(b"GET / HTTP/a.b"), 400),
        (line(b"GET / HTTP/1.\xb9"), 400),
        (line(b"GET / HTTPS/1.1"), 400),
        (line(b"GET / ICAP/1.0"), 400),
        (line(b"GET / RTSP/1.0"), 400),
    ),
    rule(
        "RFC 9110 2.5",
        "a higher minor version SHOULD [be] process[ed] as if it was in the highest minor version [known]",
        (line(b"GET / HTTP/1.2"), GET),
        (line(b"GET / HTTP/1.9"), GET),
        (line(b"POST / HTTP/1.7", b"Transfer-Encoding: chunked") + b"1\r\na\r\n0\r\n\r\n", served("POST / a")),
        (b"GET / HTTP/1.2\r\n\r\n", 400),
    ),
    rule(
        "RFC 9110 15.6.6",
        "505: the server refuses to support the major version of HTTP",
        (line(b"GET / HTTP/2.0"), 505),
        (line(b"GET / HTTP/3.0"), 505),
        (line(b"GET / HTTP/0.9"), 505),
        (line(b"GET / HTTP/9.9"), 505),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    ),
    rule(
        "RFC 9112 3",
        "request-line = method SP request-target SP HTTP-version; an invalid one SHOULD [be answered] 400",
        (b"GET /\r\n\r\n", 400),
        (b"GET\r\n\r\n", 400),
        (b"GET / \r\n\r\n", 400),
        (line(b"GET  / HTTP/1.1"), 400),
        (line(b"GET /  HTTP/1.1"), 400),
        (line(b"GET / HTTP/1.1 "), 400),
        (line(b"GET / HTTP/1.1\t"), 400),
        (line(b" GET / HTTP/1.1"), 400),
        (line(b"\tGET / HTTP/1.1"), 400),
        (line(b"GET\t/ HTTP/1.1"), 400),
        (line(b"GET /\tHTTP/1.1"), 400),
        (line(b"GET\x0b/ HTTP/1.1"), 400),
        (line(b"GET\x0c/ HTTP/1.1"), 400),
        (line(b"GET\xa0/ HTTP/1.1"), 400),
        (line(b"GET HTTP/1.1"), 400),
        (line(b"GET / x HTTP/1.1"), 400),
        (line(b"GET / HTTP/1.1 HTTP/1.1"), 400),
        (line(b"/ HTTP/1.1"), 400),
        (line(b" / HTTP/1.1"), 400),
        (line(b"GET/ HTTP/1.1"), 400),
    ),
    rule(
        "RFC 9112 3.1, RFC 9110 9.1",
        "method = token; case-sensitive; 501 [if] unrecognized or not implemented",
        *((target(b"/", method), served(f"{method.decode()} /")) for method in (b"DELETE", b"PATCH", b"M-SEARCH")),
        (target(b"/", b"get"), 501),
        (target(b"/", b"FOO"), 501),
        (target(b"/", b"GET2"), 501),
        (target(b"/", b"!#$%&'*+-.^_`|~"), 501),
        (target(b"/", b"A" * 63), 501),
        (target(b"/", b"SETUP"), 501),
        (target(b"/", b"PRI"), 501),
        (target(b"/", b"G(T"), 400),
        (target(b"/", b"G,T"), 400),
        (target(b"/", b"GET:"), 400),
        (target(b"/", b'"GET"'), 400),
        (target(b"/", b"G\x00T"), 400),
        (target(b"/", b"G\x7fT"), 400),
        (target(b"/", b"G\xc3\x89T"), 400),
    ),
    rule(
        "RFC 9112 3 (501 SHOULD be the answer to a method longer than any that the server implements)",
        "what is so long that no method could be is malformed, whatever follows",
        (target(b"/", b"A" * 64), 400),
        (target(b"/", b"A" * 200), 400),
        (target(b"/", b"GET" * 1366), 400),  # 4 KiB
        (target(b"/", b"A" * 70_000), 400),
        (b"A" * 100_000 + b" / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"A" * 64, 400),
        (line(b"A" * 64 + b" / HTTP/2.0"), 400),
        (target(b"/" + b"x" * 20_000, b"A" * 64), 400),
    ),
    rule(
        "RFC 9112 2.3",
        "HTTP-version = HTTP-name / DIGIT . DIGIT; no more than that is waited for",
        (line(b"GET / HTTP/1.11"), 400),
        (line(b"GET / HTTP/11.1"), 400),
        (line(b"GET / HTTP/1.1" + b"1" * 100), 400),
        (line(b"GET / HTTP/1.1" + b"1" * 4096), 400),
        (line(b"GET / HTTP/1.1" + b"1" * 30_000), 400),
        (line(b"GET / " + b"H" * 30_000), 400),
        (b"GET / HTTP/1.1" + b"1" * 10, 400),
        (b"GET /" + b"x" * 100 + b" HTTP/1." + b"1" * 10, 400),
        (b"GET / HTTP/1.1 x", 400),
    ),
]

TARGET = [
    rule(
        "RFC 9112 3.2.1",
        'origin-form = absolute-path [ "?" query ], characters of RFC 3986 3.3 and 3.4',
        (target(b"/"), GET),
        (target(b"//a/../b;c=1,2:@!$&'()*+~_-."), served("GET //a/../b;c=1,2:@!$&'()*+~_-.")),
        (target(b"/%41%00?%zz=%"), served("GET /%41%00?%zz=%")),
        (target(b"/?"), GET),
        (target(b"/a?b?c/d"), served("GET /a?b?c/d")),
        (target(b"x"), 400),
        (target(b"?x"), 400),
        (target(b"*x"), 400),
        (target(b"\\x"), 400),
        (target(b"/a#b"), 400),
        (target(b"/?a#b"), 400),
        (target(b"#"), 400),
        (target("/é".encode()), 400),
        (target("/\u3000".encode()), 400),
        (target("/\ufeff".encode()), 400),
    ),
    rule(
        "RFC 3986 2.2, 2.3, 2.4; URL Standard 1.3 (deliberately laxer)",
        "each byte in a path: what ends no path and is no other program's slash is served as it is",
        *((target(b"/a%bb" % bytes((code,))), served(f"GET /a{code:c}b")) for code in IN_PATH),
        *((target(b"/a%bb" % bytes((code,))), 400) for code in range(256) if code not in IN_PATH),
        (target(b"/[a]|b^c"), served("GET /[a]|b^c")),
    ),
    rule(
        "RFC 3986 2.2, 2.3, 2.4; URL Standard 1.3 (deliberately laxer)",
        "each byte in a query: what ends no query is served as it is",
        *((target(b"/?a%bb" % bytes((code,))), served(f"GET /?a{code:c}b")) for code in IN_QUERY),
        *((target(b"/?a%bb" % bytes((code,))), 400) for code in range(256) if code not in IN_QUERY),
        (target(b"/?a[]={b}|`c^\\d"), served("GET /?a[]={b}|`c^\\d")),
        (target(b'http://b/"<>{}?"<>{}'), served('GET /"<>{}?"<>{}')),
    ),
    rule(
        "RFC 9112 3.2.2",
        "a server MUST accept the absolute-form in requests",
        (target(b"http://b/x?y"), served("GET /x?y")),
        (target(b"HTTP://b:80"), GET),
        (target(b"http://b?y"), served("GET /?y")),
        (target(b"https://[::1]:443/x"), served("GET /x")),
        (target(b"http://b:/x"), served("GET /x")),
        (b"GET http://b/x HTTP/1.1\r\n\r\n", 400),
        (b"GET http://b/x HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET http://b/x HTTP/1.1\r\nHost: a@b\r\n\r\n", 400),
        (target(b"http:///x"), 400),
        (target(b"http://"), 400),
        (target(b"http:/x"), 400),
        (target(b"http:x"), 400),
        (target(b"http://:80/x"), 400),
        (target(b"http://u@b/x"), 400),
        (target(b"http://u:p@b/x"), 400),
        (target(b"http://b:x/"), 400),
        (target(b"http://b:65536/"), 400),
        (target(b"http://b,c/"), 400),
        (target(b"http://b/#c"), 400),
        (target(b"http://b#c"), 400),
        (target(b"http://b\\x/"), 400),
        (target(b"http://[::1/"), 400),
        (target(b"ftp://b/x"), 400),
        (target(b"mailto:x"), 400),
    ),
    rule(
        "RFC 9112 3.2.3",
        "authority-form … is only used for CONNECT requests (which this server does not know)",
        (target(b"a:80", b"CONNECT"), 501),
        (target(b"/", b"CONNECT"), 501),
        (target(b"http://a/", b"CONNECT"), 501),
        (target(b"*", b"CONNECT"), 501),
        (target(b"a:80"), 400),
        (target(b"a"), 400),
    ),
    rule(
        "RFC 9112 3.2.4",
        "asterisk-form … is only used for a server-wide OPTIONS request",
        (target(b"*", b"OPTIONS"), served("OPTIONS *")),
        (target(b"*"), 400),
        (target(b"*", b"POST"), 400),
        (target(b"**", b"OPTIONS"), 400),
        (target(b"*?x", b"OPTIONS"), 400),
    ),
]

HOST = [
    rule(
        "RFC 9112 3.2",
        "MUST respond with 400 [if it] lacks a Host header field [or has] more than one",
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHosts: a\r\n\r\n", 400),
        (host(b"a", b"a"), 400),
        (host(b"a", b"b"), 400),
        (host(b"a", b""), 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: y\r\nhOST: a\r\n\r\n", 400),
        (b"GET / HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/1.0\r\n\r\n", last("GET /")),
    ),
    rule(
        "RFC 9112 3.2",
        '[or] a Host header field with an invalid field value (RFC 9110 7.2: uri-host [ ":" port ])',
        *((host(b" " + value), GET) for value in (b"a", b"A.b-C", b"a:80", b"a:65535", b"a:", b"1.2.3.4:1", b"a_b")),
        *((host(b" " + value), GET) for value in (b"[::1]", b"[::ffff:1.2.3.4]:80", b"%41", b"a!$&'()*+;=~")),
        *(
            (host(b" " + value), 400)
            for value in (b"a b", b"a/b", b"a/", b"a?b", b"a#b", b"a\\b", b"http://a", b"a\tb")
        ),
        *(
            (host(b" " + value), 400)
            for value in (b"a:b", b"a:65536", b"a:-1", b"a:+1", b"a:80:80", b"a:8 0", b"a:0x50")
        ),
        *(
            (host(b" " + value), 400)
            for value in (b"a:99999999999999999999", b"a%zz", b"a%", b"%4", b'"a"', b"<a>", b"a^b")
        ),
        *(
            (host(b" " + value), 400)
            for value in (b"[zz]", b"[::1", b"::1", b"[::1]x", b"[::1]:x", b"[]", b"[1.2.3.4]")
        ),
        *(
            (host(b" " + value), 400)
            for value in (b"[::1%25eth0]", b"[::1%eth0]", b"[1::2::3]", b"[:]", b"a[::1]", b"[v1]")
        ),
        *((host(b" " + value), 400) for value in (b"\xc3\xa9", b"a\x00b", b"a\x7f", b"a|b", b"{a}", b"a`b")),
    ),
    rule(
        "RFC 9110 4.2.1",
        "an empty host … MUST [be] reject[ed] as invalid",
        (host(b""), 400),
        (host(b" "), 400),
        (host(b" \t "), 400),
        (host(b" :80"), 400),
        (host(b" :"), 400),
        (b"GET / HTTP/1.0\r\nHost:\r\n\r\n", 400),
        (b"OPTIONS * HTTP/1.1\r\nHost:\r\n\r\n", 400),
    ),
    rule(
        "RFC 9110 4.2.4",
        "userinfo … a recipient ought to … treat its presence as an error",
        (host(b" u@a"), 400),
        (host(b" u:p@a:80"), 400),
        (host(b" @a"), 400),
        (host(b" a@"), 400),
    ),
    rule(
        "RFC 9110 5.3",
        "field lines joined by a comma: a Host is no list",
        (host(b" a,b"), 400),
        (host(b" a, a"), 400),
        (host(b" a,"), 400),
        (host(b" ,a"), 400),
    ),
]

FIELDS = [
    rule(
        "RFC 9112 5.1",
        "whitespace between the field name and colon MUST [be] reject[ed] with … 400",
        (field(b"X : a"), 400),
        (field(b"X\t: a"), 400),
        (field(b"Content-Length : 0"), 400),
        (field(b"Transfer-Encoding : chunked"), 400),
        (b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400),
        (field(b"X a: b"), 400),
        (field(b"X\x0b: a"), 400),
        (field(b"Transfer-Encoding\x0c: chunked"), 400),
    ),
    rule(
        "RFC 9112 5.2",
        "obs-fold … MUST either reject the message by sending a 400 … or replace",
        (field(b"X: a\r\n b"), 400),
        (field(b"X: a\r\n\tb"), 400),
        (field(b"X:\r\n b"), 400),
        (field(b"X: a\r\n "), 400),
        (field(b"Transfer-Encoding:\r\n chunked"), 400),
        (field(b"Transfer-Encoding: chunked\r\n\tx"), 400),
        (field(b"Content-Length: 1\r\n 0"), 400),
        (b"GET / HTTP/1.1\r\nHost:\r\n a\r\n\r\n", 400),
    ),
    rule(
        "RFC 9110 5.1, 5.6.2",
        "field-name = token",
        (field(b"!#$%&'*+-.^_`|~09az: b"), GET),
        (field(b"Content_Length: 5"), GET),
        (field(b": a"), 400),
        (field(b"X"), 400),
        (field(b"X Y"), 400),
        (field(b"(X): a"), 400),
        (field(b'"X": a'), 400),
        (field(b"X,Y: a"), 400),
        (field(b"X;Y: a"), 400),
        (field(b"X/Y: a"), 400),
        (field(b"X@Y: a"), 400),
        (field(b"X{: a"), 400),
        (field(b"X\x00: a"), 400),
        (field(b"X\x01: a"), 400),
        (field(b"X\x7f: a"), 400),
        (field(b"X\xff: a"), 400),
        (field("Tränsfer-Encoding: chunked".encode()), 400),
        (field(b"\xef\xbb\xbfX: a"), 400),
    ),
    rule(
        "RFC 9110 5.5",
        "CR, LF, or NUL … are invalid and dangerous; other CTL characters are also invalid",
        (field(b"X:"), GET),
        (field(b"X: \t "), GET),
        (field(b"X:a"), GET),
        (field(b"X: \t a \t b \t "), GET),
        (field(b"X: " + bytes(range(0x21, 0x7F)) + bytes(range(0x80, 0x100))), GET),
        *((field(b"X: a" + bytes((code,)) + b"b"), 400) for code in (*range(9), *range(10, 32), 127)),
        *((field(b"X: " + bytes((code,))), 400) for code in (0, 1, 8, 11, 12, 31, 127)),
        (field(b"Content-Length: \x000"), 400),
        (field(b"Transfer-Encoding: \x0bchunked"), 400),
        (field(b"Transfer-Encoding: chunked\x00"), 400),
    ),
    rule(
        "RFC 9110 5.3",
        "multiple field lines with the same name: the application sees each",
        (field(b"X: a", b"x: b"), GET),
        (field(b"Content-Type: a/b", b"Content-Type: c/d"), GET),
    ),
    rule(
        "RFC 9112 3",
        "a request-target longer than any URI it wishes to parse MUST [be answered] 414",
        (target(b"/" + b"x" * 16_383), served("GET /" + "x" * 16_383)),
        (target(b"/" + b"x" * 16_384), 414),
        (target(b"/?" + b"x" * 30_000), 414),
        (target(b"/" + b"x" * 70_000), 414),
        (target(b"/" + b"x" * 16_383, b"A" * 63), 501),
        (target(b"/" + b"x" * 16_384, b"A" * 63), 414),
        (target(b"/" + b"x" * 30_000, b"FOO"), 414),
        (line(b"GET /" + b"x" * 30_000 + b" HTTP/2.0"), 414),
        (line(b"GET /" + b"x" * 30_000), 414),
        (target(b"/#" + b"x" * 30_000), 414),
        (target(b"/" + b"x" * 30_000 + b"\x00"), 414),
        (target(b"/\x00" + b"x" * 30_000), 400),
        (b"GET /" + b"x" * 70_000, 414),
    ),
    rule(
        "RFC 6585 5",
        "431: the head, or a line of it, is too large",
        (field(b"X: " + b"x" * 70_000), 431),
        (field(b"X" * 70_000 + b": x"), 431),
        (field(*(b"X%d: x" % number for number in range(9_000))), 431),
        (field(*[b"X: y"] * 127), GET),
        (field(*[b"X: y"] * 128), 431),
    ),
]

LENGTH = [
    rule(
        "RFC 9112 6.2, RFC 9110 8.6",
        "Content-Length = 1*DIGIT",
        (length(b" 3", b"abc"), served("POST / abc")),
        (length(b"3", b"abc"), served("POST / abc")),
        (length(b" \t3\t ", b"abc"), served("POST / abc")),
        (length(b" 0"), POST),
        (length(b" 003", b"abc"), served("POST / abc")),
        (line(b"GET / HTTP/1.1", b"Content-Length: 3") + b"abc", served("GET / abc")),
        (length(b""), 400),
        (length(b" "), 400),
        (length(b" -1"), 400),
        (length(b" -0"), 400),
        (length(b" +5", b"abcde"), 400),
        (length(b" 0x10", b"a" * 16), 400),
        (length(b" 0x0"), 400),
        (length(b" 5 5", b"abcde"), 400),
        (length(b" 5\t5", b"abcde"), 400),
        (length(b" 5 x", b"abcde"), 400),
        (length(b" 1_0", b"a" * 10), 400),
        (length(b" 5.0", b"abcde"), 400),
        (length(b" 5e0", b"abcde"), 400),
        (length(b" abc"), 400),
        (length(b' "5"', b"abcde"), 400),
        (length(b" 5;x", b"abcde"), 400),
        (length(" ٥".encode(), b"abcde"), 400),
        (length(b" \xb2", b"ab"), 400),
        (length(b" 18446744073709551616"), 400),
        (length(b" 18446744073709551621", b"abcde"), 400),
        (length(b" 9223372036854775808"), 400),
        (length(b" 0000000000000000000003", b"abc"), 400),
        (length(b" " + b"9" * 5000), 400),
    ),
    rule(
        "RFC 9112 6.3",
        "Content-Length with an invalid value … all values in the list [the same: may be replaced; here refused]",
        (length(b" 5, 5", b"abcde"), 400),
        (length(b" 5,5", b"abcde"), 400),
        (length(b" 5,", b"abcde"), 400),
        (length(b" ,5", b"abcde"), 400),
        (length(b" 5, 6", b"abcde"), 400),
        (post(b"Content-Length: 5", b"Content-Length: 5", content=b"abcde"), 400),
        (post(b"Content-Length: 5", b"Content-Length: 6", content=b"abcde"), 400),
        (post(b"Content-Length: 0", b"content-length: 40", content=b"abcde"), 400),
        (post(b"Content-Length: 5", b"X: y", b"Content-Length:", content=b"abcde"), 400),
        (post(b"Content-Length: 5", b"Content-Length: 5", content=b"abcde", version=b"1.0"), 400),
    ),
    rule(
        "RFC 9112 6.3",
        "Transfer-Encoding and a Content-Length: a server MAY reject",
        (post(b"Content-Length: 5", b"Transfer-Encoding: chunked", content=b"0\r\n\r\n"), 400),
        (post(b"Transfer-Encoding: chunked", b"Content-Length: 5", content=b"0\r\n\r\n"), 400),
        (post(b"Transfer-Encoding: chunked", b"Content-Length: 0", content=b"0\r\n\r\n"), 400),
        (post(b"Transfer-Encoding: identity", b"Content-Length: 5", content=b"abcde"), 400),
        (post(b"Transfer-Encoding:", b"Content-Length: 5", content=b"abcde"), 400),
        (post(b"Transfer-Encoding: x", b"Content-Length: 5", content=b"abcde"), 400),
        (post(b"Content-Length: x", b"Transfer-Encoding: chunked", content=b"0\r\n\r\n"), 400),
    ),
    rule(
        "RFC 9112 6.1, 6.3",
        "chunked is not the final encoding: the server MUST respond with 400",
        (coded(b" gzip"), 400),
        (coded(b" identity"), 400),
        (coded(b" xchunked"), 400),
        (coded(b" chunkedx"), 400),
        (coded(b" x-chunked"), 400),
        (coded(b" chunked, gzip"), 400),
        (coded(b" chunked, identity"), 400),
        (coded(b" chunked,"), 400),
        (coded(b""), 400),
        (coded(b" "), 400),
        (coded(b","), 400),
        (coded(b' "chunked"'), 400),
        (coded(b" 'chunked'"), 400),
        (coded(b" chunked;a=b"), 400),
        (coded(b" chunked ; q=1"), 400),
        (coded(b" chu nked"), 400),
        (coded(b" chunked x"), 400),
        (coded(b" chunked\xff"), 400),
        (coded(b" chunked", b" gzip"), 400),
        (coded(b" chunked", b" identity"), 400),
        (coded(b" chunked", b""), 400),
    ),
    rule(
        "RFC 9112 6.1",
        "a transfer coding [not] understood SHOULD [be answered] 501",
        (coded(b" gzip, chunked"), 501),
        (coded(b" gzip,chunked"), 501),
        (coded(b" identity, chunked"), 501),
        (coded(b" gzip;q=1, chunked"), 501),
        (coded(b" gzip", b" chunked"), 501),
        (coded(b" deflate, gzip, Chunked"), 501),
    ),
    rule(
        "RFC 9112 6.1",
        "a sender MUST NOT apply the chunked transfer coding more than once",
        (coded(b" chunked, chunked"), 400),
        (coded(b" chunked", b" chunked"), 400),
        (coded(b" chunked, gzip, chunked"), 400),
        (coded(b" , chunked"), 400),
        (coded(b" gzip, , chunked"), 400),
        (coded(b"", b" chunked"), 400),
    ),
    rule(
        "RFC 9112 7",
        "transfer-coding names are case-insensitive",
        (coded(b" chunked"), POST),
        (coded(b"chunked"), POST),
        (coded(b" Chunked"), POST),
        (coded(b" CHUNKED"), POST),
        (coded(b"\t chunked \t"), POST),
        (post(b"tRANSFER-eNCODING: cHuNkEd", content=b"0\r\n\r\n"), POST),
        (line(b"GET / HTTP/1.1", b"Transfer-Encoding: chunked") + b"1\r\na\r\n0\r\n\r\n", served("GET / a")),
    ),
    rule(
        "RFC 9112 6.1",
        "an HTTP/1.0 message containing a Transfer-Encoding … as if the framing is faulty",
        (post(b"Transfer-Encoding: chunked", content=b"0\r\n\r\n", version=b"1.0"), 400),
        (post(b"Transfer-Encoding: gzip, chunked", content=b"0\r\n\r\n", version=b"1.0"), 400),
        (post(b"Transfer-Encoding: gzip", content=b"0\r\n\r\n", version=b"1.0"), 400),
        (post(b"Transfer-Encoding: identity", content=b"", version=b"1.0"), 400),
        (post(b"Transfer-Encoding: chunked", b"Connection: keep-alive", content=b"0\r\n\r\n", version=b"1.0"), 400),
    ),
    rule(
        "RFC 9112 6.3",
        "a request [with neither]: the message body length is zero",
        (post(), POST),
        (target(b"/", b"PUT"), served("PUT /")),
    ),
]

CHUNKED = [
    rule(
        "RFC 9112 7.1",
        "chunk = chunk-size [ chunk-ext ] CRLF chunk-data CRLF",
        (chunks(b"3\r\nabc\r\n0\r\n\r\n"), served("POST / abc")),
        (chunks(b"1\r\na\r\n2\r\nbc\r\n0\r\n\r\n"), served("POST / abc")),
        (chunks(b"a\r\n0123456789\r\n0\r\n\r\n"), served("POST / 0123456789")),
        (chunks(b"A\r\n0123456789\r\n0\r\n\r\n"), served("POST / 0123456789")),
        (chunks(b"003\r\nabc\r\n000\r\n\r\n"), served("POST / abc")),
        (chunks(b"0000000000000000000000003\r\nabc\r\n0\r\n\r\n"), served("POST / abc")),
        (chunks(b"7\r\n\r\n0\r\n\r\n\r\n0\r\n\r\n"), served("POST / \r\n0\r\n\r\n")),
        (chunks(b"\r\n\r\n"), 400),
        (chunks(b"\r\n0\r\n\r\n"), 400),
        (chunks(b"g\r\n"), 400),
        (chunks(b"3\r\nabcX\r\n0\r\n\r\n"), 400),
        (chunks(b"3\r\nabc0\r\n\r\n"), 400),
        (chunks(b"3\r\nabc\r0\r\n\r\n"), 400),
        (chunks(b"3\r\nabc\r\r\n0\r\n\r\n"), 400),
        (chunks(b"3\r\nabc \r\n0\r\n\r\n"), 400),
        (chunks(b"3\r\nabcXX0\r\n\r\n"), 400),
        (chunks(b"2\r\nabc\r\n0\r\n\r\n"), 400),
        (chunks(b"3\r\nabc\r\n\r\n0\r\n\r\n"), 400),
        (chunks(b"0\r\nGET /x HTTP/1.1\r\nHost: a\r\n\r\n"), 400),
    ),
    rule(
        "RFC 9112 7.1",
        "chunk-size = 1*HEXDIG",
        (chunks(b" 3\r\nabc\r\n0\r\n\r\n"), 400),
        (chunks(b"3 \r\nabc\r\n0\r\n\r\n"), 400),
        (chunks(b"3\t\r\nabc\r\n0\r\n\r\n"), 400),
        (chunks(b"+3\r\nabc\r\n0\r\n\r\n"), 400),
        (chunks(b"-3\r\nabc\r\n0\r\n\r\n"), 400),
        (chunks(b"0x3\r\nabc\r\n0\r\n\r\n"), 400),
        (chunks(b"3h\r\nabc\r\n0\r\n\r\n"), 400),
        (chunks(b"1_0\r\n0123456789abcdef\r\n0\r\n\r\n"), 400),
        (chunks(b"3,3\r\nabc\r\n0\r\n\r\n"), 400),
        (chunks(b"3 3\r\nabc\r\n0\r\n\r\n"), 400),
        (chunks(b"\x003\r\nabc\r\n0\r\n\r\n"), 400),
        (chunks(b"3\x00\r\nabc\r\n0\r\n\r\n"), 400),
        (chunks(b"\xb2\r\nab\r\n0\r\n\r\n"), 400),
        (chunks(b"0 \r\n\r\n"), 400),
        (chunks(b"-0\r\n\r\n"), 400),
        (chunks(b"0x0\r\n\r\n"), 400),
    ),
    rule(
        "RFC 9112 7.1",
        "recipients MUST anticipate potentially large hexadecimal numerals",
        (chunks(b"10000000000000003\r\nabc\r\n0\r\n\r\n"), 400),
        (chunks(b"ffffffffffffffff\r\nabc"), 400),
        (chunks(b"8000000000000000\r\nabc"), 400),
        (chunks(b"1000000000000000\r\nabc"), 400),
        (chunks(b"f" * 100 + b"\r\nabc"), 400),
        (chunks(b"0" * 9000 + b"3\r\nabc\r\n0\r\n\r\n"), 400),
    ),
    rule(
        "RFC 9112 7.1.1",
        'chunk-ext = *( BWS ";" BWS chunk-ext-name [ BWS "=" BWS chunk-ext-val ] ); unrecognized ones are ignored',
        (chunks(b"1;x\r\na\r\n0;y=z\r\n\r\n"), served("POST / a")),
        (chunks(b'1;x=y;z="q;\\" \t\xff";w\r\na\r\n0\r\n\r\n'), served("POST / a")),
        (chunks(b'1 ; x = y\r\na\r\n0\t;\tx\t=\t""\r\n\r\n'), served("POST / a")),
        (chunks(b"1;\r\na\r\n0\r\n\r\n"), 400),
        (chunks(b"1;;x\r\na\r\n0\r\n\r\n"), 400),
        (chunks(b"1;=y\r\na\r\n0\r\n\r\n"), 400),
        (chunks(b"1;x=\r\na\r\n0\r\n\r\n"), 400),
        (chunks(b"1;x=y z\r\na\r\n0\r\n\r\n"), 400),
        (chunks(b"1;x y\r\na\r\n0\r\n\r\n"), 400),
        (chunks(b"1;x \r\na\r\n0\r\n\r\n"), 400),
        (chunks(b'1;x="y\r\na\r\n0\r\n\r\n'), 400),
        (chunks(b'1;x="y"z\r\na\r\n0\r\n\r\n'), 400),
        (chunks(b'1;x="\r\n"\r\na\r\n0\r\n\r\n'), 400),
        (chunks(b"1;x@y\r\na\r\n0\r\n\r\n"), 400),
        (chunks(b"1;x\x00\r\na\r\n0\r\n\r\n"), 400),
        (chunks(b'1;x="\x01"\r\na\r\n0\r\n\r\n'), 400),
        (chunks(b"1;x=\x7f\r\na\r\n0\r\n\r\n"), 400),
        (chunks(b"1;\xff\r\na\r\n0\r\n\r\n"), 400),
        (chunks(b"1,x\r\na\r\n0\r\n\r\n"), 400),
        (chunks(b"0;\r\n\r\n"), 400),
    ),
    rule(
        "RFC 9112 7.1.1",
        "a server ought to limit the total length of chunk extensions",
        (chunks(b"1;" + b"x" * 8000 + b"\r\na\r\n0\r\n\r\n"), served("POST / a")),
        (chunks(b"1;" + b"x" * 8300 + b"\r\na\r\n0\r\n\r\n"), 400),
        (chunks(b"1;xxxxxxxxxxxxxxx\r\nA\r\n" * 10_000 + b"0\r\n\r\n"), 400),
    ),
    rule(
        "RFC 9112 7.1.2",
        "trailer-section = *( field-line CRLF ); dropped, which RFC 9110 6.5.1 allows, but read as strictly as a head",
        (chunks(b"0\r\nX: y\r\n\r\n"), POST),
        (chunks(b"0\r\nX:\r\nY:z \t\r\nX: \xff\r\n\r\n"), POST),
        (chunks(b"0\r\nX\r\n\r\n"), 400),
        (chunks(b"0\r\n: y\r\n\r\n"), 400),
        (chunks(b"0\r\nX : y\r\n\r\n"), 400),
        (chunks(b"0\r\n X: y\r\n\r\n"), 400),
        (chunks(b"0\r\nX: y\r\n z\r\n\r\n"), 400),
        (chunks(b"0\r\nX: y\r\n\tz\r\n\r\n"), 400),
        (chunks(b"0\r\nX(: y\r\n\r\n"), 400),
        (chunks(b"0\r\nX\xff: y\r\n\r\n"), 400),
        (chunks(b"0\r\nX: y\x00\r\n\r\n"), 400),
        (chunks(b"0\r\nX: y\x01\r\n\r\n"), 400),
        (chunks(b"0\r\n\x00\r\n\r\n"), 400),
        (chunks(b"0\r\nX: " + b"y" * 8300 + b"\r\n\r\n"), 400),
        (chunks(b"0\r\n" + b"X: y\r\n" * 20_000 + b"\r\n"), 400),
    ),
    rule(
        "RFC 9110 6.5.1",
        "a sender MUST NOT generate a trailer field [for] message framing [or] routing",
        (chunks(b"0\r\nContent-Length: 5\r\n\r\n"), 400),
        (chunks(b"0\r\ntransfer-ENCODING: chunked\r\n\r\n"), 400),
        (chunks(b"0\r\nHost: b\r\n\r\n"), 400),
    ),
]

CONNECTION = [
    rule(
        "RFC 9112 9.3",
        "persistence: close option, HTTP/1.1, HTTP/1.0 with keep-alive",
        (field(b"Connection: close"), last("GET /")),
        (field(b"Connection: CLOSE"), last("GET /")),
        (field(b"Connection: x, close ,y"), last("GET /")),
        (field(b"Connection: keep-alive", b"Connection: close"), last("GET /")),
        (field(b"Connection: keep-alive"), GET),
        (field(b"Connection:"), GET),
        (field(b"Connection: closed"), GET),
        (field(b"Keep-Alive: timeout=0"), GET),
        (line(b"GET / HTTP/1.0"), last("GET /")),
        (line(b"GET / HTTP/1.0", b"Connection: Keep-Alive"), GET),
        (line(b"GET / HTTP/1.0", b"Connection: keep-alive, close"), last("GET /")),
    ),
    rule(
        "RFC 9110 7.6.1",
        "Connection nominates fields for intermediaries; this server's own reading does not change",
        (post(b"Connection: content-length", b"Content-Length: 3", content=b"abc"), served("POST / abc")),
        (post(b"Connection: host, transfer-encoding", b"Transfer-Encoding: chunked", content=b"0\r\n\r\n"), POST),
    ),
    rule(
        "RFC 9110 7.8",
        "A server MAY ignore a received Upgrade header field",
        (field(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk"), GET),
        (field(b"Connection: upgrade", b"Upgrade: TLS/1.0"), GET),
        (field(b"Upgrade: websocket"), GET),
        (line(b"GET / HTTP/1.0", b"Connection: upgrade", b"Upgrade: websocket"), last("GET /")),
        (
            post(b"Connection: upgrade", b"Upgrade: websocket", b"Content-Length: 3", content=b"abc"),
            served("POST / abc"),
        ),
    ),
    rule(
        "RFC 9110 10.1.1",
        "Expect [with] a member other than 100-continue MAY [be answered] 417; ignored in HTTP/1.0",
        (post(b"Expect: 100-continue", b"Content-Length: 3", content=b"abc"), served("POST / abc")),
        (post(b"Expect: 100-Continue", b"Transfer-Encoding: chunked", content=b"0\r\n\r\n"), POST),
        (post(b"Expect: , 100-continue", b"Content-Length: 3", content=b"abc"), served("POST / abc")),
        (post(b"Expect: x=y", b"Content-Length: 3", content=b"abc"), 417),
        (field(b"Expect: 100-continue, x"), 417),
        (field(b"Expect: 100-continue", b"Expect: 200-ok"), 417),
        (line(b"GET / HTTP/1.0", b"Expect: x"), last("GET /")),
        (field(b"Expect: 100-continue"), GET),
    ),
    rule(
        "RFC 9112 9.3.2",
        "pipelined requests: corresponding responses in the same order",
        (field() + post(b"Content-Length: 3", content=b"abc") + target(b"/x"), served("GET /", "POST / abc", "GET /x")),
        (field() + b"\r\n" + target(b"/x"), served("GET /", "GET /x")),
        (
            post(b"Content-Length: 43", content=b"GET /x HTTP/1.1\r\nHost: a\r\n\r\nGET /y HTTP/1.1"),
            served("POST / GET /x HTTP/1.1\r\nHost: a\r\n\r\nGET /y HTTP/1.1"),
        ),
    ),
]

RULES = [*MESSAGE, *TARGET, *HOST, *FIELDS, *LENGTH, *CHUNKED, *CONNECTION]


def named(found: Rule) -> str:
    return f"{found.section}: {found.words[:50]}"


@pytest.fixture(scope="module")
def hosts() -> Iterator[dict[str, Host]]:
    opened = {http: Host(http) for http in PARSERS}
    yield opened
    for one in opened.values():
        one.close()


def check(outcome: Outcome, data: bytes, expected: int | Served) -> None:
    """The one verdict, and what holds for every input."""
    outcome.check()
    lines = [seen.line for seen in outcome.seen if seen.end == "whole"]
    statuses = [status for status, _ in outcome.answers()]
    if isinstance(expected, int):
        assert (statuses, lines) == ([expected], []), data
        assert outcome.ended, data
        assert len(outcome.seen) <= 1, data  # called before its content turned out to be malformed
        return
    behind = () if expected.last else ("GET /behind",)
    assert tuple(lines) == expected.lines + behind, data
    assert statuses == [200] * len(lines)
    assert outcome.ended is expected.last, data


def splits(data: bytes) -> Iterator[list[bytes]]:
    """Whole; behind every line feed; before every line feed; byte by byte, in long data near its ends only."""
    yield [data]
    feeds = [place for place, byte in enumerate(data) if byte == 10][:200]
    yield cut(data, [place + 1 for place in feeds])
    yield cut(data, feeds)
    yield cut(data, [place for place in range(len(data)) if place < 300 or place > len(data) - 300])


@pytest.mark.parametrize("rule_", RULES, ids=named)
def test_in_any_pieces(rule_: Rule, hosts: dict[str, Host]) -> None:
    for data, expected in rule_.cases:
        for http in PARSERS:
            for pieces in splits(data + BEHIND):
                check(hosts[http].talk(pieces), data, expected)


@pytest.fixture(scope="module")
def server_of() -> Iterator[Callable[[str], HttpServer]]:
    servers: dict[str, HttpServer] = {}

    def get(http: str) -> HttpServer:
        if http not in servers:
            servers[http] = HttpServer(echo, "uvloop", http=http)
        return servers[http]

    yield get
    for server in servers.values():
        server.stop()


@pytest.mark.parametrize("rule_", RULES, ids=named)
@pytest.mark.parametrize("http", PARSERS)
def test_over_a_socket(http: str, rule_: Rule, server_of: Callable[[str], HttpServer]) -> None:
    server = server_of(http)
    for data, expected in rule_.cases:
        client = server.connect()
        client.send(data + BEHIND)
        if isinstance(expected, int):
            answer = client.read_to_end()
            assert answer.startswith(b"HTTP/1.1 %d " % expected), data
            assert answer.count(b"\r\nconnection: ") == answer.count(b"\r\nconnection: close\r\n") == 1, data
            assert answer.endswith(b".\n"), data
        else:
            for _ in expected.lines if expected.last else (*expected.lines, "GET /behind"):
                status, _, _ = client.answer()
                assert status == 200, data
            if expected.last:
                assert client.read_to_end() == b"", data
        client.close()


def test_every_case_is_tried_with_every_parser_the_same(hosts: dict[str, Host]) -> None:
    """The two parsers give the application the same, down to the fields."""
    for rule_ in RULES:
        for data, _ in rule_.cases:
            first, second = (hosts[http].talk([data]) for http in PARSERS)
            assert first == second, data


def test_content_that_never_becomes_whole_is_not_served(hosts: dict[str, Host]) -> None:
    """RFC 9112 8: an incomplete request is not handled as if it were complete."""
    for data in (length(b" 5", b"abcd"), chunks(b"3\r\nabc\r\n0\r\n"), chunks(b"3\r\nab")):
        for http in PARSERS:
            outcome = hosts[http].talk([data], then=Then.CLIENT_ENDS)
            assert [seen.end for seen in outcome.seen] == ["lost"], data
            assert outcome.answers() == []


def test_the_absolute_form_wins_over_the_host_field(hosts: dict[str, Host]) -> None:
    """RFC 9112 3.2.2."""
    for http in PARSERS:
        outcome = hosts[http].talk([b"GET http://b:1/ HTTP/1.1\r\nX: y\r\nHost: a\r\n\r\n"])
        assert outcome.seen[0].headers == [(b"host", b"b:1"), (b"x", b"y")]


def test_the_application_sees_fields_as_they_were_sent(hosts: dict[str, Host]) -> None:
    data = field(b"X-A:  1 \t 2\t", b"x-a: 3", b"X_B: \xff", b"Transfer-Encoding: cHunked") + b"0\r\n\r\n"
    for http in PARSERS:
        outcome = hosts[http].talk([data])
        assert outcome.seen[0].headers == [
            (b"host", b"a"),
            (b"x-a", b"1 \t 2"),
            (b"x-a", b"3"),
            (b"x_b", b"\xff"),
            (b"transfer-encoding", b"cHunked"),
        ]
        assert isinstance(outcome, Outcome)
        assert isinstance(hosts[http].application, Application)
