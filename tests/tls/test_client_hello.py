"""What the server itself reads of a ClientHello."""

from __future__ import annotations

import ssl
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_asgi.tls.client_hello import LEAST_FRAGMENT, ClientHello, ClientHelloReader, parse
from serve_asgi.tls.record_protection import MAX_FRAGMENT
from tests.tls.memory import Client

RANDOM = bytes(range(32))


def extension(kind: int, content: bytes) -> bytes:
    return kind.to_bytes(2) + len(content).to_bytes(2) + content


def host(name: bytes) -> bytes:
    return extension(0, (len(name) + 3).to_bytes(2) + b"\0" + len(name).to_bytes(2) + name)


def hello(*extensions: bytes) -> bytes:
    """The body of a ClientHello."""
    joined = b"".join(extensions)
    return b"\3\3" + RANDOM + b"\2id" + b"\0\4\x13\x01\x13\x02" + b"\1\0" + len(joined).to_bytes(2) + joined


def records(body: bytes, size: int = MAX_FRAGMENT) -> bytes:
    message = b"\1" + len(body).to_bytes(3) + body
    pieces = [message[start : start + size] for start in range(0, len(message), size)]
    return b"".join(b"\x16\3\1" + len(piece).to_bytes(2) + piece for piece in pieces)


def read(data: bytes) -> tuple[bool, ClientHello | None]:
    return ClientHelloReader().feed(data)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_the_one_that_openssl_sends(version: ssl.TLSVersion) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.maximum_version = version
    client = Client(context)
    client.step()
    data = client.outgoing.read()
    done, found = read(data)
    assert done
    assert found == ClientHello(data[11:43], "localhost", MAX_FRAGMENT)


def test_what_it_asks_for() -> None:
    assert read(records(hello(host(b"Example.org")))) == (True, ClientHello(RANDOM, "Example.org", MAX_FRAGMENT))
    assert read(records(hello(extension(1, b"\1")))) == (True, ClientHello(RANDOM, None, 512))
    assert read(records(hello(extension(1, b"\4")))) == (True, ClientHello(RANDOM, None, 4096))
    assert read(records(hello(extension(1, b"\5")))) == (True, ClientHello(RANDOM, None, MAX_FRAGMENT))
    assert read(records(hello(extension(28, b"\x40\x01")))) == (True, ClientHello(RANDOM, None, MAX_FRAGMENT))
    assert read(records(hello(extension(28, b"\0\x40"), host(b"a")))) == (
        True,
        ClientHello(RANDOM, "a", LEAST_FRAGMENT),
    )
    assert read(records(hello(extension(28, b"\x04\0")))) == (True, ClientHello(RANDOM, None, 1023))
    assert read(records(hello(extension(28, b"\0\x3f")))) == (True, ClientHello(RANDOM, None, MAX_FRAGMENT))
    assert parse(hello()[:-2]) == ClientHello(RANDOM, None, MAX_FRAGMENT)


@pytest.mark.parametrize("name", [b"a b", b"a\nb", b"", b"a/b", b"x" * 256])
def test_a_name_that_is_no_host_s(name: bytes) -> None:
    assert parse(hello(host(name))).server_name is None


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n",
        b"\x80\x2e\x01\x03\x01",
        b"\x15\3\1\0\2\1\0",
        b"\x16\3\1\0\0",
        b"\x16\3\1\xff\xff",
        b"\x16\3\1\0\1\2",
        records(hello())[:-1] + b"\1",
        records(hello()[:30]),
        records(hello() + b"x"),
        records(hello(host(b"\xff"))),
    ],
)
def test_what_is_no_client_hello_is_noticed_at_once(data: bytes) -> None:
    assert read(data) == (True, None)


def test_a_long_one_is_given_up() -> None:
    done, found = read(records(bytes(1 << 23))[: 1 << 17])
    assert (done, found) == (True, None)


def test_a_byte_costs_the_same_behind_many_records() -> None:
    """In records of one byte, and each byte alone: what has come is not looked at again with each byte."""
    data = records(bytes(20_000), 1)
    reader = ClientHelloReader()
    calls = 0

    def count(_: object, event: str, __: object) -> None:
        nonlocal calls
        calls += event == "c_call"

    reader.feed(data[:50_000])
    sys.setprofile(count)
    for at in range(50_000, 50_060):
        reader.feed(data[at : at + 1])
    sys.setprofile(None)
    assert calls < 60 * 20


@given(st.lists(st.integers(1, 100), max_size=20), st.integers(1, 80))
def test_cuts_and_fragments_change_nothing(cuts: list[int], fragment: int) -> None:
    data = records(hello(host(b"example.org")), fragment)
    reader = ClientHelloReader()
    for cut in cuts:
        if cut >= len(data):
            break
        assert reader.feed(data[:cut]) == (False, None)
        data = data[cut:]
    assert reader.feed(data) == (True, ClientHello(RANDOM, "example.org", MAX_FRAGMENT))


@given(st.binary(max_size=200), st.booleans())
def test_any_bytes(data: bytes, framed: bool) -> None:
    read(records(data) if framed else data)
