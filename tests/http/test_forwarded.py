"""What proxies say of a request: whom the server believes, what, and what a client cannot make it believe."""

from __future__ import annotations

import ast
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_asgi.config.trusted_proxies import TrustedNetworks, believed
from serve_asgi.http.forwarded import Forwarded, Forwarding
from serve_asgi.http.worker_context import Receive, Scope, Send
from serve_asgi.ipc.peer_address import Address
from tests.connection_server import Log
from tests.http.http_server import Client, HttpServer

LOCAL = "127.0.0.1,::1,unix"
PEER = ("127.0.0.1", 41000)
ALL_X = "x-forwarded-for,x-forwarded-proto,x-forwarded-host,x-forwarded-prefix"
Fields = list[tuple[bytes, bytes]]


def said(fields: Fields, names: str = ALL_X, networks: str = LOCAL, peer: Address = PEER) -> Forwarded | None:
    return Forwarding(networks, names).understand([(b"host", b"a"), *fields], peer)


def client(*values: bytes, networks: str = LOCAL) -> Address:
    """The client's address by X-Forwarded-For."""
    found = said([(b"x-forwarded-for", value) for value in values], networks=networks)
    assert found is not None
    return found.client


def by_forwarded(*values: bytes, networks: str = LOCAL) -> tuple[Address, bool | None, bytes]:
    """Client, security and host by Forwarded."""
    found = said([(b"forwarded", value) for value in values], "forwarded", networks)
    assert found is not None
    return found.client, found.secure, found.host


# ---- whom


@pytest.mark.parametrize(
    ("networks", "peer", "trusted"),
    [
        (LOCAL, ("127.0.0.1", 1), True),
        (LOCAL, ("::1", 1), True),
        (LOCAL, ("::ffff:127.0.0.1", 1), True),  # the same client on a socket for both
        (LOCAL, None, True),
        (LOCAL, ("127.0.0.2", 1), False),
        (LOCAL, ("10.0.0.1", 1), False),
        ("127.0.0.1", None, False),
        ("unix", ("127.0.0.1", 1), False),
        ("10.0.0.0/8 192.168.1.0/24", ("10.255.0.1", 1), True),
        ("10.0.0.0/8,192.168.1.0/24", ("192.168.1.255", 1), True),
        ("10.0.0.0/8,192.168.1.0/24", ("192.168.2.0", 1), False),
        ("10.0.0.0/8", ("::ffff:10.1.2.3", 1), True),
        ("::ffff:10.0.0.0/104", ("10.1.2.3", 1), False),
        ("2001:db8::/32", ("2001:db8:ffff::1", 1), True),
        ("2001:db8::/32", ("2001:db9::1", 1), False),
        ("fe80::/10", ("fe80::1%eth0", 1), True),
        ("*", ("203.0.113.9", 1), True),
        ("*", None, True),
        ("", ("127.0.0.1", 1), False),
        ("", None, False),
        ("0.0.0.0/0", ("203.0.113.9", 1), True),
        ("0.0.0.0/0", ("2001:db8::1", 1), False),
        ("0.0.0.0/0", ("a name", 1), False),
    ],
)
def test_trust_is_by_address_network_and_kind(networks: str, peer: Address, trusted: bool) -> None:
    assert TrustedNetworks(networks).trusts(peer) is trusted
    assert Forwarding(networks, ALL_X).trusts(peer) is trusted


@pytest.mark.parametrize(
    "wrong", ["localhost", "10.0.0.1/8", "1.2.3", "1.2.3.4/33", "::1/129", "010.0.0.1", "[::1]", "-"]
)
def test_what_is_no_network_is_refused_with_a_sentence(wrong: str) -> None:
    with pytest.raises(ValueError, match="write ") as caught:
        TrustedNetworks(f"127.0.0.1, {wrong}")
    assert repr(wrong) in str(caught.value)


@pytest.mark.parametrize(
    "wrong", ["x-real-ip", "none,forwarded", "forwarded,x-forwarded-for", "forwarded x-forwarded-host"]
)
def test_which_fields_is_checked(wrong: str) -> None:
    with pytest.raises(ValueError, match="forwarded"):
        believed(wrong)


def test_none_is_nobody() -> None:
    assert not Forwarding("*", "none").trusts(PEER)
    assert said([(b"x-forwarded-for", b"192.0.2.1")], "none") is None


def test_forwarded_goes_with_a_prefix() -> None:
    found = said([(b"forwarded", b"for=192.0.2.1"), (b"x-forwarded-prefix", b"/a")], "Forwarded, X-Forwarded-Prefix")
    assert found == Forwarded(("192.0.2.1", 0), None, b"", b"/a")


# ---- X-Forwarded-For


@pytest.mark.parametrize(
    ("values", "address"),
    [
        ([b"192.0.2.1"], ("192.0.2.1", 0)),
        ([b" 192.0.2.1\t"], ("192.0.2.1", 0)),
        ([b"192.0.2.1:4711"], ("192.0.2.1", 4711)),
        ([b"2001:DB8::1"], ("2001:db8::1", 0)),
        ([b"[2001:db8::1]"], ("2001:db8::1", 0)),
        ([b"[2001:db8::1]:4711"], ("2001:db8::1", 4711)),
        ([b"::ffff:192.0.2.1"], ("192.0.2.1", 0)),
        # What a client has written stands to the left of what the proxy has seen.
        ([b"6.6.6.6, 192.0.2.1"], ("192.0.2.1", 0)),
        ([b"127.0.0.1, 192.0.2.1"], ("192.0.2.1", 0)),
        ([b"6.6.6.6,192.0.2.1,127.0.0.1"], ("192.0.2.1", 0)),
        ([b"6.6.6.6, 192.0.2.1, ::1, 127.0.0.1"], ("192.0.2.1", 0)),
        ([b"6.6.6.6", b"192.0.2.1"], ("192.0.2.1", 0)),
        ([b"192.0.2.1", b"127.0.0.1"], ("192.0.2.1", 0)),
        ([b"6.6.6.6, 192.0.2.1", b"::1"], ("192.0.2.1", 0)),
        # All of them trusted: the first is the client.
        ([b"127.0.0.1"], ("127.0.0.1", 0)),
        ([b"::1, 127.0.0.1"], ("::1", 0)),
        # What is no address ends the walk; the last good one stays.
        ([b""], PEER),
        ([b","], PEER),
        ([b"unknown"], PEER),
        ([b"_hidden"], PEER),
        ([b"6.6.6.6, unknown"], PEER),
        ([b"6.6.6.6, _hidden, 127.0.0.1:9"], ("127.0.0.1", 9)),
        ([b"192.0.2.1, "], ("192.0.2.1", 0)),
        ([b"192.0.2.1,,"], ("192.0.2.1", 0)),
        ([b"example.com"], PEER),
        ([b"192.0.2.256"], PEER),
        ([b"192.0.2"], PEER),
        ([b"3221225985"], PEER),
        ([b"0xc0.0.2.1"], PEER),
        ([b"192.0.2.01"], PEER),
        ([b"192.0.2.1:65536"], PEER),
        ([b"192.0.2.1:"], PEER),
        ([b"192.0.2.1:-1"], PEER),
        ([b"192.0.2.1 192.0.2.2"], PEER),
        ([b"[192.0.2.1]"], PEER),
        ([b"[2001:db8::1"], PEER),
        ([b"2001:db8::1]"], PEER),
        ([b"2001:db8::g"], PEER),
        ([b"fe80::1%eth0"], PEER),
        ([b":::1"], PEER),
        ([b'"192.0.2.1"'], PEER),
        ([b"192.0.2.1\xa0"], PEER),
        ([b"\xd9\xa1.2.3.4"], PEER),
        ([b"1" * 5000], PEER),
    ],
)
def test_the_right_most_untrusted_address_is_the_client(values: list[bytes], address: Address) -> None:
    assert client(*values) == address


def test_a_star_trusts_the_peer_and_no_address_in_the_list() -> None:
    assert client(b"6.6.6.6, 192.0.2.1", networks="*") == ("192.0.2.1", 0)
    assert client(b"6.6.6.6, 192.0.2.1, 127.0.0.1", networks="*,127.0.0.1") == ("192.0.2.1", 0)


def test_all_networks_trust_all_addresses() -> None:
    assert client(b"6.6.6.6, 192.0.2.1", networks="0.0.0.0/0") == ("6.6.6.6", 0)


# ---- X-Forwarded-Proto, -Host, -Prefix


@pytest.mark.parametrize(
    ("values", "secure"),
    [
        ([b"https"], True),
        ([b"HTTPS"], True),
        ([b"wss"], True),
        ([b"http"], False),
        ([b"ws"], False),
        ([b"https, http"], False),
        ([b"http", b"https"], True),
        ([b""], None),
        ([b"ftp"], None),
        ([b"https;"], None),
        ([b"javascript"], None),
        ([b"on"], None),
    ],
)
def test_the_scheme_is_the_last_one_said(values: list[bytes], secure: bool | None) -> None:
    found = said([(b"x-forwarded-proto", value) for value in values])
    assert found == Forwarded(PEER, secure, b"", b"")


@pytest.mark.parametrize(
    ("values", "host"),
    [
        ([b"example.com"], b"example.com"),
        ([b"example.com:8443"], b"example.com:8443"),
        ([b"[2001:db8::1]:80"], b"[2001:db8::1]:80"),
        ([b"evil.example, example.com"], b"example.com"),
        ([b"evil.example", b"example.com"], b"example.com"),
        ([b""], b""),
        ([b"a b"], b""),
        ([b"user@example.com"], b""),
        ([b"example.com/path"], b""),
        ([b"example.com:99999"], b""),
        ([b"http://example.com"], b""),
        ([b":80"], b""),
        ([b"\xff"], b""),
    ],
)
def test_the_host_is_as_strict_as_host(values: list[bytes], host: bytes) -> None:
    found = said([(b"x-forwarded-host", value) for value in values])
    assert found == Forwarded(PEER, None, host, b"")


@pytest.mark.parametrize(
    ("value", "prefix"),
    [
        (b"/api", b"/api"),
        (b"/api/", b"/api"),
        (b"/api/v1", b"/api/v1"),
        (b"/caf%C3%A9", b"/caf%C3%A9"),
        (b"/", b""),
        (b"", b""),
        (b"/evil, /api", b"/api"),
        (b"api", b""),
        (b"//evil.example", b""),
        (b"/api//v1", b""),
        (b"/a/../b", b""),
        (b"/a/..", b""),
        (b"/./a", b""),
        (b"/a/%2e%2e/b", b""),
        (b"/a%2Fb", b""),
        (b"/a%5cb", b""),
        (b"/a\\b", b""),
        (b"/a%00", b""),
        (b"/a%0d%0aset-cookie:x", b""),
        (b"/a%7f", b""),
        (b"/a%ff", b""),
        (b"/a%", b""),
        (b"/a?b", b""),
        (b"/a#b", b""),
        (b"/a b", b""),
        (b"/a\xff", b""),
        (b"/" + b"a" * 2000, b""),
        (b"https://evil.example/", b""),
    ],
)
def test_the_prefix_is_a_plain_path(value: bytes, prefix: bytes) -> None:
    found = said([(b"x-forwarded-prefix", value)])
    assert found == Forwarded(PEER, None, b"", prefix)


def test_fields_that_are_not_believed_are_not_read() -> None:
    fields = [(b"x-forwarded-host", b"evil.example"), (b"x-forwarded-prefix", b"/evil"), (b"forwarded", b"for=6.6.6.6")]
    assert said(fields, "x-forwarded-for,x-forwarded-proto") is None
    found = said([*fields, (b"x-forwarded-for", b"192.0.2.1")], "x-forwarded-for,x-forwarded-proto")
    assert found == Forwarded(("192.0.2.1", 0), None, b"", b"")
    assert said([(b"x-forwarded-for", b"6.6.6.6"), (b"x-forwarded-proto", b"https")], "forwarded") is None


def test_fields_that_are_believed_are_noticed() -> None:
    forwarding = Forwarding(LOCAL, "x-forwarded-for")
    assert forwarding.mentioned([(b"host", b"a"), (b"x-forwarded-for", b"b")])
    assert not forwarding.mentioned([(b"host", b"a"), (b"forwarded", b"for=b")])


def test_a_request_without_these_fields_costs_no_more_than_the_look() -> None:
    assert said([(b"accept", b"*/*"), (b"user-agent", b"x")]) is None


# ---- Forwarded


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([b"for=192.0.2.1"], (("192.0.2.1", 0), None, b"")),
        ([b"For=192.0.2.1;Proto=HTTPS;HOST=example.com"], (("192.0.2.1", 0), True, b"example.com")),
        ([b'for="192.0.2.1:4711"'], (("192.0.2.1", 4711), None, b"")),
        ([b'for="[2001:db8:cafe::17]:4711"'], (("2001:db8:cafe::17", 4711), None, b"")),
        ([b'for="[2001:db8:cafe::17]"'], (("2001:db8:cafe::17", 0), None, b"")),
        ([b'for="192.0.2.1:_port"'], (("192.0.2.1", 0), None, b"")),
        (
            [b'host="example.com:8443"; proto=https ;by=203.0.113.43;for=192.0.2.1'],
            (("192.0.2.1", 0), True, b"example.com:8443"),
        ),
        ([b'for="1\\92.0.2.1"'], (("192.0.2.1", 0), None, b"")),
        # Each trusted proxy's element is believed, and the client is what the last of them has seen.
        (
            [b"for=6.6.6.6;proto=https;host=evil, for=192.0.2.1;proto=http;host=good"],
            (("192.0.2.1", 0), False, b"good"),
        ),
        ([b"for=6.6.6.6;host=evil", b"for=192.0.2.1;host=good"], (("192.0.2.1", 0), None, b"good")),
        (
            [b"for=192.0.2.1;proto=https;host=good,for=127.0.0.1;proto=http;host=inner"],
            (("192.0.2.1", 0), True, b"good"),
        ),
        ([b"for=192.0.2.1;proto=https", b'for="[::1]"'], (("192.0.2.1", 0), True, b"")),
        ([b"for=192.0.2.1, for=127.0.0.1;proto=https"], (("192.0.2.1", 0), None, b"")),
        ([b"for=127.0.0.1;proto=https"], (("127.0.0.1", 0), True, b"")),
        # Somebody whom the proxy does not name: its element is believed, and nothing to the left of it.
        ([b"for=6.6.6.6;proto=http, for=unknown;proto=https"], (PEER, True, b"")),
        ([b'for=6.6.6.6, for="_gazonk"'], (PEER, None, b"")),
        ([b"for=6.6.6.6, proto=https"], (PEER, True, b"")),
        ([b"for=6.6.6.6, for=192.0.2.999"], (PEER, None, b"")),
        ([b"for=2001:db8::1"], (PEER, None, b"")),
        ([b'for="2001:db8::1"'], (PEER, None, b"")),
        ([b"for=192.0.2.1, "], (("192.0.2.1", 0), None, b"")),
        ([b",,for=192.0.2.1;,"], (("192.0.2.1", 0), None, b"")),
        ([b""], (PEER, None, b"")),
        # MalformedProxyHeader: what was appended behind it holds, and nothing before it.
        ([b"for=192.0.2.1 for=192.0.2.2"], (PEER, None, b"")),
        ([b"for=192.0.2.1;for=192.0.2.2"], (PEER, None, b"")),
        ([b"for"], (PEER, None, b"")),
        ([b"for="], (PEER, None, b"")),
        ([b"=192.0.2.1"], (PEER, None, b"")),
        ([b'for="192.0.2.1'], (PEER, None, b"")),
        ([b'for="6.6.6.6, for=192.0.2.1;proto=https'], (("192.0.2.1", 0), True, b"")),
        ([b'for="6.6.6.6, for="[2001:db8::1]:4711"'], (("2001:db8::1", 4711), None, b"")),
        ([b'for="6.6.6.6\\, for="[2001:db8::1]";host="good"'], (("2001:db8::1", 0), None, b"good")),
        ([b'x=", for=6.6.6.6;y=", for=192.0.2.1'], (("192.0.2.1", 0), None, b"")),
        ([b'for=192.0.2.1;x="a, for=6.6.6.6"'], (("192.0.2.1", 0), None, b"")),
        ([b"garbage", b"for=192.0.2.1"], (("192.0.2.1", 0), None, b"")),
        ([b'for=192.0.2.1;proto=gopher;host="a/b"'], (("192.0.2.1", 0), None, b"")),
        ([b"for=192.0.2.1;secret=x;proto=https"], (("192.0.2.1", 0), True, b"")),
    ],
)
def test_forwarded(values: list[bytes], expected: tuple[Address, bool | None, bytes]) -> None:
    assert by_forwarded(*values) == expected


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        (b"forwarded", b","),
        (b"forwarded", b', a="'),
        (b"forwarded", b"; "),
        (b"forwarded", b" ;"),
        (b"forwarded", b'a="\\'),
        (b"forwarded", b"a=b;"),
        (b"forwarded", b'a=";,b=";'),
        (b"forwarded", b"for=127.0.0.1,"),
        (b"x-forwarded-for", b","),
        (b"x-forwarded-for", b"127.0.0.1,"),
        (b"x-forwarded-proto", b", "),
        (b"x-forwarded-prefix", b"/a"),
        (b"x-forwarded-prefix", b"%2e"),
    ],
)
@pytest.mark.parametrize("end", [b"", b'"', b" x"])
def test_long_values_take_no_more_than_linear_time(name: bytes, unit: bytes, end: bytes) -> None:
    forwarding = Forwarding(LOCAL, "forwarded" if name == b"forwarded" else ALL_X)

    def seconds(size: int) -> float:
        fields = [(name, unit * (size // len(unit)) + end)]
        best = float("inf")
        for _ in range(3):
            begun = time.process_time()
            forwarding.understand(fields, PEER)
            best = min(best, time.process_time() - begun)
        return best

    assert seconds(64000) < 64 * max(seconds(4000), 0.0002)  # 16 times if linear, 256 if quadratic


# ---- what applications see


def scope(kind: str = "http", **more: Any) -> dict[str, Any]:
    return {
        "type": kind,
        "scheme": "http" if kind == "http" else "ws",
        "path": "/x y",
        "raw_path": b"/x%20y",
        "root_path": "",
        "headers": [(b"accept", b"*/*"), (b"host", b"inner"), (b"x-forwarded-host", b"outer")],
        "client": PEER,
        **more,
    }


def applied(found: Forwarded, before: dict[str, Any]) -> dict[str, Any]:
    after = before.copy()
    found.apply(after)
    return {name: value for name, value in after.items() if value != before[name]}


def test_the_scope_tells_what_the_client_asked_for() -> None:
    found = Forwarded(("192.0.2.1", 7), True, b"outer", b"/caf%C3%A9")
    before = scope()
    headers = before["headers"]
    assert applied(found, before) == {
        "client": ("192.0.2.1", 7),
        "scheme": "https",
        "headers": [(b"accept", b"*/*"), (b"host", b"outer"), (b"x-forwarded-host", b"outer")],
        "root_path": "/café",
        "path": "/café/x y",
        "raw_path": b"/caf%C3%A9/x%20y",
    }
    assert before["headers"] is headers
    assert headers[1] == (b"host", b"inner")


def test_a_websocket_has_its_own_schemes() -> None:
    assert applied(Forwarded(PEER, True, b"", b""), scope("websocket")) == {"scheme": "wss"}
    assert applied(Forwarded(PEER, False, b"", b""), scope("websocket", scheme="wss")) == {"scheme": "ws"}


def test_what_nobody_says_stays() -> None:
    assert applied(Forwarded(PEER, None, b"", b""), scope(scheme="https")) == {}


def test_a_request_without_host_gets_one() -> None:
    changed = applied(Forwarded(PEER, None, b"outer", b""), scope(headers=[(b"accept", b"*/*")]))
    assert changed == {"headers": [(b"host", b"outer"), (b"accept", b"*/*")]}


@pytest.mark.parametrize(
    ("prefix", "root_path", "after"),
    [
        (b"/outer", "/m", ("/outer/m", "/outer/m/x", b"/outer/m/x")),
        (b"/m", "/m", ("/m", "/m/x", b"/m/x")),  # the proxy says what the operator has said
        (b"/outer/m", "/m", ("/outer/m", "/outer/m/x", b"/outer/m/x")),
        (b"/xm", "/m", ("/xm/m", "/xm/m/x", b"/xm/m/x")),
    ],
)
def test_the_prefix_comes_before_the_root_path(prefix: bytes, root_path: str, after: tuple[str, str, bytes]) -> None:
    mounted = scope(root_path=root_path, path=root_path + "/x", raw_path=root_path.encode() + b"/x")
    Forwarded(PEER, None, b"", prefix).apply(mounted)
    assert (mounted["root_path"], mounted["path"], mounted["raw_path"]) == after


# ---- on connections

Serve = Callable[..., HttpServer]
ASKED = (
    b"GET /x%20y HTTP/1.1\r\nHost: inner\r\nX-Forwarded-For: 6.6.6.6, 203.0.113.9:7\r\nX-Forwarded-Proto: https\r\n"
    b"X-Forwarded-Host: outer.example\r\nX-Forwarded-Prefix: /caf%C3%A9\r\nForwarded: for=6.6.6.6;host=evil\r\n"
)
SEEN = ("scheme", "path", "raw_path", "root_path", "client")


async def tell(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with what the client is said to have asked for; a WebSocket is refused with the same."""
    told = {name: scope[name] for name in SEEN} | {"host": dict(scope["headers"]).get(b"host")}
    kind = "websocket.http.response" if scope["type"] == "websocket" else "http.response"
    body = repr(told).encode()
    headers = [(b"content-length", b"%d" % len(body))]
    await receive()
    await send({"type": kind + ".start", "status": 403 if scope["type"] == "websocket" else 200, "headers": headers})
    await send({"type": kind + ".body", "body": body})


def ask(server: HttpServer, request: bytes) -> tuple[dict[str, Any], Client]:
    client = server.connect()
    client.send(request)
    told: dict[str, Any] = ast.literal_eval(client.answer()[2].decode())
    return told, client


TRUSTED = {
    "scheme": "https",
    "path": "/café/x y",
    "raw_path": b"/caf%C3%A9/x%20y",
    "root_path": "/café",
    "client": ("203.0.113.9", 7),
    "host": b"outer.example",
}
UPGRADE = b"Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %b\r\n" % (
    b"dGhlIHNhbXBsZSBub25jZQ=="
)


def test_a_trusted_peer_is_believed(serve: Serve) -> None:
    server = serve(tell, forwarded_headers=ALL_X)
    assert ask(server, ASKED + b"\r\n")[0] == TRUSTED
    assert ask(server, ASKED + UPGRADE + b"\r\n")[0] == TRUSTED | {"scheme": "wss"}


def test_by_default_address_and_scheme_are_believed_and_nothing_else(serve: Serve) -> None:
    told, _ = ask(serve(tell), ASKED + b"\r\n")
    untouched = {"path": "/x y", "raw_path": b"/x%20y", "root_path": "", "host": b"inner"}
    assert told == TRUSTED | untouched


@pytest.mark.parametrize("allowed", ["192.0.2.0/24,unix,::1", ""])
def test_a_peer_that_is_not_trusted_is_not(serve: Serve, allowed: str) -> None:
    server = serve(tell, forwarded_headers=ALL_X, forwarded_allow_ips=allowed)
    for request, scheme in ((ASKED, "http"), (ASKED + UPGRADE, "ws")):
        told, client = ask(server, request + b"\r\n")
        assert told == {
            "scheme": scheme,
            "path": "/x y",
            "raw_path": b"/x%20y",
            "root_path": "",
            "client": client.sock.getsockname(),
            "host": b"inner",
        }


def test_the_peer_of_a_unix_socket_is_trusted_by_its_own_word(serve: Serve, tmp_path: Path) -> None:
    server = serve(tell, unix=tmp_path / "s")
    assert ask(server, ASKED + b"\r\n")[0]["client"] == ("203.0.113.9", 7)
    server = serve(tell, unix=tmp_path / "t", forwarded_allow_ips="127.0.0.1")
    assert ask(server, ASKED + b"\r\n")[0]["client"] is None


def test_equal_heads_on_connections_of_different_trust(serve: Serve) -> None:
    """Heads are shared; what is made of them is not."""
    server = serve(tell, forwarded_allow_ips="127.0.0.2")
    for source, client in (("127.0.0.1", None), ("127.0.0.2", ("203.0.113.9", 7)), ("127.0.0.1", None)):
        with socket.create_connection(server.address, source_address=(source, 0), timeout=10) as sock:
            expected = client or sock.getsockname()
            for _ in range(2):
                sock.sendall(ASKED + b"\r\n")
                assert ast.literal_eval(Client(sock).answer()[2].decode())["client"] == expected


def test_requests_on_one_connection_have_clients_of_their_own(serve: Serve) -> None:
    server = serve(tell)
    told, client = ask(server, ASKED + b"\r\n")
    assert told["client"] == ("203.0.113.9", 7)
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 192.0.2.7\r\n\r\n")
    assert ast.literal_eval(client.answer()[2].decode())["client"] == ("192.0.2.7", 0)
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert ast.literal_eval(client.answer()[2].decode())["client"] == client.sock.getsockname()


@pytest.mark.parametrize("upgrade", [b"", UPGRADE])
def test_the_access_log_has_the_clients_address(serve: Serve, upgrade: bytes) -> None:
    server = serve(tell)
    log = Log()
    server.worker.access_log = log  # type: ignore[assignment]
    ask(server, ASKED + upgrade + b"\r\n")
    server.until(lambda: len(log.records) == 1)
    assert log.records[0][0] == ("203.0.113.9", 7)


@pytest.mark.parametrize(
    ("line", "target", "seen"),
    [
        (b"X-Forwarded-Prefix: /outer", b"/x", ("/outer/m m/x", b"/outer/m%20m/x")),
        (b"X-Forwarded-Prefix: /outer", b"/m%20m/x", ("/outer/m m/x", b"/outer/m%20m/x")),
        (b"X-Forwarded-Prefix: /../x", b"/x", ("/m m/x", b"/m%20m/x")),
    ],
)
def test_a_prefix_before_the_root_path(serve: Serve, line: bytes, target: bytes, seen: tuple[str, bytes]) -> None:
    server = serve(tell, forwarded_headers="x-forwarded-prefix", root_path="/m m")
    told, _ = ask(server, b"GET %b HTTP/1.1\r\nHost: a\r\n%b\r\n\r\n" % (target, line))
    assert (told["path"], told["raw_path"]) == seen
    assert told["path"].startswith(told["root_path"] + "/")


def test_a_value_that_is_not_valid_is_no_bad_request(serve: Serve) -> None:
    server = serve(tell, forwarded_headers=ALL_X)
    request = b"GET / HTTP/1.1\r\nHost: a\r\n%b: %b\r\n\r\n"
    for name in (b"X-Forwarded-For", b"X-Forwarded-Proto", b"X-Forwarded-Host", b"X-Forwarded-Prefix"):
        for value in (b"", b",", b"\xff", b"/../", b"a b", b"[::", b"%0", b"x" * 5000):
            told, client = ask(server, request % (name, value))
            assert told == {
                "scheme": "http",
                "path": "/",
                "raw_path": b"/",
                "root_path": "",
                "client": client.sock.getsockname(),
                "host": b"x" * 5000 if name == b"X-Forwarded-Host" and len(value) == 5000 else b"a",
            }


# ---- anything

VALUES = st.one_of(
    st.binary(max_size=60),
    st.lists(
        st.sampled_from(
            [
                b"for=",
                b"192.0.2.1",
                b"127.0.0.1",
                b"[::1]",
                b'"',
                b",",
                b";",
                b" ",
                b"\\",
                b"proto=https",
                b"_x",
                b":80",
            ]
        ),
        max_size=12,
    ).map(b"".join),
)
NAMES = st.sampled_from([name.encode() for name in (*ALL_X.split(","), "forwarded", "host")])


@given(fields=st.lists(st.tuples(NAMES, VALUES), max_size=6), names=st.sampled_from([ALL_X, "forwarded"]))
def test_nothing_that_is_sent_raises(fields: Fields, names: str) -> None:
    found = said(fields, names)
    if found is None:
        assert not {name for name, _ in fields} & believed(names)
        return
    found.apply(scope())
    assert found.client is not None
    assert found.client[1] is not None
    assert 0 <= found.client[1] <= 65535


@given(junk=st.lists(VALUES, max_size=4))
def test_nothing_that_a_client_sends_changes_what_its_proxy_appends(junk: list[bytes]) -> None:
    """A proxy appends to what the client has sent, on the same line or on a further one."""
    appended = [b"192.0.2.1"]
    assert client(*junk, *appended) == ("192.0.2.1", 0)
    assert client(b", ".join([*junk, *appended])) == ("192.0.2.1", 0)
    element = b'for="[2001:db8::1]:4711";proto=https;host="good:80"'
    expected = (("2001:db8::1", 4711), True, b"good:80")
    assert by_forwarded(*junk, element) == expected
    assert by_forwarded(b", ".join([*junk, element])) == expected
