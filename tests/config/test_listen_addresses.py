"""Addresses as a person writes them."""

from __future__ import annotations

import pytest

from serve_asgi.config.listen_addresses import TcpAddress, UnixAddress, addresses, parse_address
from serve_asgi.config.options import Config
from serve_asgi.errors import UsageError


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("127.0.0.1:8000", TcpAddress("127.0.0.1", 8000)),
        ("localhost:0", TcpAddress("localhost", 0)),
        ("[::1]:80", TcpAddress("::1", 80)),
        ("[fe80::1%eth0]:80", TcpAddress("fe80::1%eth0", 80)),
        (":9000", TcpAddress("", 9000)),
        ("*:9000", TcpAddress("", 9000)),
        ("[::]:9000", TcpAddress("::", 9000)),
        ("https://:8443", TcpAddress("", 8443, secure=True)),
        ("http://[::1]:8080/", TcpAddress("::1", 8080, secure=False)),
        ("unix:/run/a.sock", UnixAddress("/run/a.sock")),
        ("unix:///run/a.sock", UnixAddress("/run/a.sock")),
        ("unix:a.sock", UnixAddress("a.sock")),
        ("unix:@shop", UnixAddress("@shop")),
        ("unix:./@shop", UnixAddress("./@shop")),
        ("unix:@" + "x" * 107, UnixAddress("@" + "x" * 107)),
    ],
)
def test_forms(text: str, meant: TcpAddress | UnixAddress) -> None:
    assert parse_address(text) == meant


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("fd:3", "is a descriptor: write --fd 3 (in a file: fd = [3])"),
        ("8000", "has no host: write 127.0.0.1:8000, or :8000 for every interface"),
        ("localhost", "has no port: write HOST:PORT, for example localhost:8000"),
        ("::1:80", "is ambiguous: write an IPv6 address in brackets"),
        ("a:http", "is not a number from 0 to 65535"),
        ("a:65536", "is not a number from 0 to 65535"),
        ("a:-1", "is not a number from 0 to 65535"),
        ("a:" + "9" * 5000, "is not a number from 0 to 65535"),
        ("a:٣", "is not a number from 0 to 65535"),
        ("ftp://a:80", "a unix socket is written unix:/path"),
        ("https://a", "has no port: write HOST:PORT"),
        ("https://a:1/app", "is not HOST:PORT"),
        ("https://unix:/run/a.sock", "speaks no TLS: write unix:/run/a.sock"),
        ("unix:", "has no path"),
        ("unix:/run/", "has no path"),
        ("unix:@", "has no name: write unix:@NAME for an abstract socket"),
        ("unix:@" + "x" * 108, "longer than 107 bytes"),
        ("unix:/" + "x" * 107, "longer than 107 bytes"),
    ],
)
def test_everything_else_is_a_sentence(text: str, sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_address(text)
    assert sentence in str(caught.value)


def test_host_and_port_stand_in_for_each_other() -> None:
    assert addresses(Config(port=9), inherited=False) == [TcpAddress("127.0.0.1", 9)]
    assert addresses(Config(host="::1"), inherited=True) == [TcpAddress("::1", 8000)]
    assert addresses(Config(), inherited=False) == [TcpAddress("127.0.0.1", 8000)]
    assert addresses(Config(), inherited=True) == []
    assert addresses(Config(bind=(":1", "unix:/a")), inherited=True) == [TcpAddress("", 1), UnixAddress("/a")]


def test_the_kernel_gets_a_path_or_a_name_behind_a_nul() -> None:
    assert UnixAddress("/run/a.sock").where() == "/run/a.sock"
    assert UnixAddress("@shop").where() == "\0shop"
