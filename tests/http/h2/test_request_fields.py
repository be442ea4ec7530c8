"""From fields to a head (RFC 9113 8.2, 8.3, RFC 8441), and that both protocols give one verdict where both can."""

from __future__ import annotations

import pytest

from serve_asgi.http.h2.header_decoder import Field
from serve_asgi.http.h2.request_fields import MalformedRequest, check_fields, consists_of, read_request
from serve_asgi.http.head_parsers import read_head
from serve_asgi.http.request_head import CHUNKED, BadRequest, Head
from tests.http.h2.peer import GET, POST

CONNECT: list[Field] = [(b":method", b"CONNECT"), *GET[1:], (b":protocol", b"websocket")]


def read(fields: list[Field], ended: bool = True) -> Head:
    check_fields(fields)
    return read_request(fields, ended)[0]


def request(
    method: bytes = b"GET", path: bytes = b"/", authority: bytes | None = b"a", *fields: Field, scheme: bytes = b"https"
) -> list[Field]:
    pseudo = [(b":method", method), (b":scheme", scheme), (b":path", path)]
    return [*pseudo, *([] if authority is None else [(b":authority", authority)]), *fields]


MALFORMED = [
    ("8.2.1 upper case", [*GET, (b"X-A", b"1")]),
    ("8.2.1 upper case of a known name", [*GET, (b"Host", b"a")]),
    ("8.2.1 an empty name", [*GET, (b"", b"1")]),
    *(
        (f"8.2.1 {code:#x} in a name", [*GET, (b"x%ba" % bytes((code,)), b"1")])
        for code in (*range(0x21), *b'"(),/:;<=>?@[\\]{}', *range(0x7F, 0x100, 43), *b"AZ")
    ),
    *(
        (f"8.2.1 {code:#x} in a value", [*GET, (b"x", b"a%bb" % bytes((code,)))])
        for code in (*range(0x09), *range(0x0A, 0x20), 0x7F)
    ),
    ("8.2.1 a space before a value", [*GET, (b"x", b" a")]),
    ("8.2.1 a space behind a value", [*GET, (b"x", b"a ")]),
    ("8.2.1 a tab before a value", [*GET, (b"x", b"\ta")]),
    ("8.2.1 a tab behind a value", [*GET, (b"x", b"a\t")]),
    ("8.2.1 nothing but a space", [*GET, (b"x", b" ")]),
    ("8.2.1 a line feed in the path", request(path=b"/a\nb")),
    ("8.2.1 NUL in the authority", request(authority=b"a\0b")),
    *((f"8.2.2 {name.decode()}", [*GET, (name, b"x")]) for name in (b"connection", b"keep-alive", b"upgrade")),
    *((f"8.2.2 {name.decode()}", [*GET, (name, b"x")]) for name in (b"proxy-connection", b"transfer-encoding")),
    ("8.2.2 te: gzip", [*GET, (b"te", b"gzip")]),
    ("8.2.2 te: trailers, gzip", [*GET, (b"te", b"trailers, gzip")]),
    ("8.3 an unknown one", [(b":x", b"1"), *GET]),
    ("8.3 of a response", [*GET, (b":status", b"200")]),
    ("8.3 behind a field", [*GET[:3], (b"x", b"1"), GET[3]]),
    *((f"8.3 {name.decode()} twice", [*GET, (name, value)]) for name, value in GET),
    *((f"8.3.1 without {GET[place][0].decode()}", [*GET[:place], *GET[place + 1 :]]) for place in (0, 1, 3)),
    ("8.3.1 no fields", []),
    ("8.3.1 an empty path", request(path=b"")),
    ("8.3.1 a path without its slash", request(path=b"x")),
    ("8.3.1 an absolute URL for a path", request(path=b"http://b/x")),
    ("8.3.1 an asterisk", request(path=b"*")),
    ("8.3.1 an asterisk and more", request(b"OPTIONS", b"*x")),
    ("8.3.1 a method that is none", request(b"G T")),
    ("8.3.1 an empty method", request(b"")),
    ("8.3.1 host is not :authority", [*GET, (b"host", b"b")]),
    ("8.1.1 a length and no body", [*GET, (b"content-length", b"1")]),
    ("8.5 CONNECT with a path", [(b":method", b"CONNECT"), *GET[2:]]),
    ("8.5 CONNECT with a scheme", [(b":method", b"CONNECT"), *GET[1:3]]),
    ("8.5 CONNECT to nobody", [(b":method", b"CONNECT")]),
    ("RFC 8441 4 :protocol of a GET", [*GET, (b":protocol", b"websocket")]),
    ("RFC 8441 4 without a path", [CONNECT[0], *CONNECT[1:3], CONNECT[4]]),
    ("RFC 8441 4 without a scheme", [CONNECT[0], *CONNECT[2:]]),
]


@pytest.mark.parametrize("fields", [pytest.param(fields, id=name) for name, fields in MALFORMED])
def test_malformed(fields: list[Field]) -> None:
    with pytest.raises(MalformedRequest) as found:
        read(fields)
    assert found.value.status == 400
    assert found.value.reason.isascii()
    assert found.value.reason.endswith(".")


BOTH = [
    # a request line's method, target and Host, further fields; the status of the refusal, or 0
    (b"GET", b"/", [b"a"], [], 0),
    (b"GET", b"/a%20b/%C3%A9?c=%20d&e", [b"a:8080"], [], 0),
    (b"GET", b'/"<>{}?"<>{}', [b"[::1]:443"], [], 0),
    (b"GET", b"//x", [b"a"], [], 0),
    (b"OPTIONS", b"*", [b"a"], [], 0),
    (b"QUERY", b"/", [b"a"], [], 0),
    (b"GET", b"/a#b", [b"a"], [], 400),
    (b"GET", b"/a\\b", [b"a"], [], 400),
    (b"GET", b"/\xc3\xa9", [b"a"], [], 400),
    (b"GET", b"/", [], [], 400),
    (b"GET", b"/", [b"a", b"a"], [], 400),
    *((b"GET", b"/", [host], [], 400) for host in (b"", b":80", b"a b", b"a/b", b"u@a", b"a:65536", b"a,b", b"[::1")),
    *((b"GET", b"/", [host], [], 400) for host in (b"[1::2::3]", b"a:b", b"a%zz", b"[::1%25eth0]")),
    (b"get", b"/", [b"a"], [], 501),
    (b"FOO", b"/", [b"a"], [], 501),
    (b"A" * 64, b"/", [b"a"], [], 400),
    (b"GET", b"/", [b"a"], [(b"expect", b"100-continue")], 0),
    (b"GET", b"/", [b"a"], [(b"expect", b"something")], 417),
    (b"GET", b"/", [b"a"], [(b"expect", b"100-continue, x")], 417),
    (b"GET", b"/", [b"a"], [(b"content-length", b"0")], 0),
    (b"POST", b"/", [b"a"], [(b"content-length", b"12")], 0),
    (b"POST", b"/", [b"a"], [(b"content-length", b"12"), (b"expect", b"100-Continue")], 0),
    *(
        (b"POST", b"/", [b"a"], [(b"content-length", value)], 400)
        for value in (b"+1", b"-1", b"0x1", b"1,1", b"1" * 19)
    ),
    (b"POST", b"/", [b"a"], [(b"content-length", b"1"), (b"content-length", b"1")], 400),
    (b"POST", b"/", [b"a"], [(b"content-length", b"1"), (b"content-length", b"2")], 400),
    (b"POST", b"/", [b"a"], [(b"content-length", b"")], 400),
    (b"GET", b"/", [b"a"], [(b"te", b"trailers"), (b"x", b""), (b"x", b"\xff"), (b"x", b"a\tb")], 0),
]


@pytest.mark.parametrize(("method", "target", "hosts", "fields", "status"), BOTH)
@pytest.mark.parametrize("authority", [True, False], ids=["authority", "host"])
def test_one_verdict(
    method: bytes, target: bytes, hosts: list[bytes], fields: list[Field], status: int, authority: bool
) -> None:
    """The same request over HTTP/1.1 and over HTTP/2."""
    lines = [b"Host: " + host for host in hosts] + [name + b": " + value for name, value in fields]
    old = b"%b %b HTTP/1.1\r\n%b\r\n\r\n" % (method, target, b"\r\n".join(lines))
    pseudo = [(b":method", method), (b":path", target), (b":scheme", b"http")]
    if authority and len(hosts) == 1:
        pseudo.append((b":authority", hosts[0]))
    else:
        fields = [*((b"host", host) for host in hosts), *fields]
    ended = not any(name == b"content-length" and value not in (b"0", b"") for name, value in fields)
    if status:
        with pytest.raises(BadRequest) as over_one:
            read_head(old)
        with pytest.raises(BadRequest) as over_two:
            read([*pseudo, *fields], ended)
        assert (over_one.value.status, over_two.value.status) == (status, status)
        return
    one, two = read_head(old), read([*pseudo, *fields], ended)
    for name in ("method", "target", "headers", "path", "text", "query", "body", "keep_alive", "expect_continue"):
        assert getattr(one, name) == getattr(two, name), name
    assert (one.te_trailers, one.websocket) == (two.te_trailers, two.websocket)
    assert two.version == "2"


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        (request(scheme=b"ftp"), 400),
        (request(scheme=b""), 400),
        (request(scheme=b"HTTPS"), 0),
        (request(scheme=b"http"), 0),
        ([(b":method", b"CONNECT"), (b":authority", b"a:80")], 501),
        ([*CONNECT[:4], (b":protocol", b"connect-ip")], 501),
        ([*GET, (b"host", b"A")], 0),
        ([*GET, (b"host", b"a"), (b"host", b"a")], 400),
    ],
)
def test_what_only_this_protocol_has(fields: list[Field], status: int) -> None:
    if not status:
        assert read(fields).headers[0][0] == b"host"
        return
    with pytest.raises(BadRequest) as found:
        read(fields)
    assert found.value.status == status
    assert not isinstance(found.value, MalformedRequest)


def test_host_is_authority() -> None:
    """RFC 9113 8.3.1, and as ASGI has it: first, once."""
    assert read([*GET, (b"x", b"1"), (b"host", b"A")]).headers == [(b"host", b"a"), (b"x", b"1")]
    assert read([*GET[:2], GET[3], (b"x", b"1"), (b"host", b"A")]).headers == [(b"host", b"A"), (b"x", b"1")]


def test_cookies_are_joined() -> None:
    """RFC 9113 8.2.3."""
    fields = [*GET, (b"cookie", b"a=1"), (b"x", b"1"), (b"cookie", b"b=2"), (b"cookie", b"c=3")]
    assert read(fields).headers == [(b"host", b"a"), (b"cookie", b"a=1; b=2; c=3"), (b"x", b"1")]


def test_bodies() -> None:
    assert read(POST, ended=True).body == 0
    assert read(POST, ended=False).body == CHUNKED
    assert read([*POST, (b"content-length", b"5")], ended=False).body == 5
    assert read([*POST, (b"content-length", b"0")], ended=False).body == 0
    assert read([*POST, (b"content-length", b"0")], ended=True).body == 0


@pytest.mark.parametrize("ended", [True, False])
def test_expectations(ended: bool) -> None:
    """RFC 9110 10.1.1: where there is no body there is nothing to wait for."""
    assert read([*POST, (b"expect", b"100-Continue")], ended).expect_continue is not ended
    assert read([*POST, (b"expect", b"")], ended).expect_continue is False


def test_priority_is_given_beside_the_head() -> None:
    head, priority = read_request([*GET, (b"priority", b"u=1"), (b"priority", b"i")], True)
    assert priority == b"u=1,i"
    assert head.headers[1:] == [(b"priority", b"u=1"), (b"priority", b"i")]


def test_websockets() -> None:
    """RFC 8441."""
    head = read([*CONNECT, (b"sec-websocket-version", b"13"), (b"content-length", b"7")], ended=False)
    assert (head.method, head.websocket, head.path, head.body) == ("CONNECT", True, b"/", 0)
    assert head.headers[:2] == [(b"host", b"a"), (b"sec-websocket-version", b"13")]


def test_bytes_of_a_value_one_by_one() -> None:
    """As the compiled core looks at them."""
    allowed = bytes(byte in b"ab" for byte in range(256))
    assert consists_of(b"abba", allowed)
    assert consists_of(b"", allowed)
    assert not consists_of(b"abc", allowed)
    assert not consists_of(b"\xff", allowed)


def test_many_names_are_forgotten() -> None:
    for number in range(3000):
        check_fields([(b"x-%d" % number, b"1")])
    check_fields(GET)
