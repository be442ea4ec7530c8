"""Who is trusted to speak for clients: addresses, networks, unix sockets, everybody."""

from __future__ import annotations

import pytest

from serve_asgi.config.trusted_proxies import TrustedNetworks, believed, plain_address
from serve_asgi.ipc.peer_address import Address

PEERS: dict[str, Address] = {
    "loopback": ("127.0.0.1", 1),
    "network": ("10.1.2.3", 1),
    "mapped": ("::ffff:10.1.2.3", 1),
    "six": ("2001:db8::1", 1),
    "zone": ("fe80::1%eth0", 1),
    "name": ("localhost", 1),
    "unix": None,
    "path": ("/run/a.sock", None),
}


@pytest.mark.parametrize(
    ("entries", "trusted"),
    [
        ("", set()),
        ("127.0.0.1", {"loopback"}),
        ("10.0.0.0/8 unix", {"network", "mapped", "unix", "path"}),
        ("2001:db8::/32, fe80::/10", {"six", "zone"}),
        ("*", set(PEERS)),
    ],
)
def test_trust(entries: str, trusted: set[str]) -> None:
    networks = TrustedNetworks(entries)
    assert {name for name, peer in PEERS.items() if networks.trusts(peer)} == trusted


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [("proxy.local", "'proxy.local' is not an address"), ("10.1.2.3/8", "write 10.0.0.0/8 for the network")],
)
def test_what_is_no_network(entry: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        TrustedNetworks(entry)


def test_an_address_has_one_form() -> None:
    assert plain_address("::FFFF:192.0.2.1") == "192.0.2.1"
    assert plain_address("2001:DB8:0::1") == "2001:db8::1"


def test_believed_headers() -> None:
    assert believed("X-Forwarded-For, x-forwarded-proto") == {b"x-forwarded-for", b"x-forwarded-proto"}
    assert believed("none") == frozenset()
    with pytest.raises(ValueError, match="'via' is not a header that this server knows"):
        believed("via")
    with pytest.raises(ValueError, match="forwarded cannot be believed together with"):
        believed("forwarded x-forwarded-for")
