"""Which proxies are trusted, and which of their headers: the values of --forwarded-allow-ips, --forwarded-headers and
--proxy-protocol-allow-ips, as they are checked at the start and used for each connection. Pure.
"""

from __future__ import annotations

import functools
import ipaddress
import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from serve_asgi.ipc.peer_address import Address

ANYBODY: Final = "*"
UNIX: Final = "unix"
X_FOR: Final = b"x-forwarded-for"
X_PROTO: Final = b"x-forwarded-proto"
X_HOST: Final = b"x-forwarded-host"
X_PREFIX: Final = b"x-forwarded-prefix"
FORWARDED: Final = b"forwarded"

KEPT_NODES: Final = 1024
"""Parsed addresses that each worker caches."""


class TrustedNetworks:
    """Addresses that are trusted.

    `text` holds addresses, networks (CIDR), `unix` for the peers of unix sockets, and `*` for every peer, separated by
    commas or white space. Raises ValueError, with a sentence, for anything else.
    """

    __slots__ = ("_anybody", "_four", "_six", "_unix", "among")

    def __init__(self, text: str) -> None:
        entries = [entry for entry in re.split(r"[\s,]+", text) if entry]
        self._anybody = ANYBODY in entries
        self._unix = UNIX in entries
        networks = [_network(entry) for entry in entries if entry not in (ANYBODY, UNIX)]
        self._four = [_bounds(each) for each in networks if each.version == 4]
        self._six = [_bounds(each) for each in networks if each.version == 6]
        self.among = functools.lru_cache(KEPT_NODES)(self._among)
        """Whether an address (IPv4 or IPv6, as text) is in one of the networks, of which `*` is none."""

    def trusts(self, peer: Address) -> bool:
        """Whether the peer of a connection is trusted; None is a unix socket's."""
        if self._anybody:
            return True
        if peer is None or peer[1] is None:
            return self._unix
        return self.among(peer[0])

    def _among(self, host: str) -> bool:
        try:
            address = plain(host.partition("%")[0])
        except ValueError:
            return False
        number = int(address)
        return any(low <= number <= high for low, high in (self._four if address.version == 4 else self._six))


def _network(entry: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        return ipaddress.ip_network(entry)
    except ValueError:
        try:
            wider = ipaddress.ip_network(entry, strict=False)
        except ValueError:
            raise ValueError(
                f"{entry!r} is not an address; write addresses, networks such as 10.0.0.0/8, {UNIX} for unix sockets, "
                f"or {ANYBODY} for all, separated by commas"
            ) from None
        raise ValueError(f"{entry!r} is an address within a network: write {wider} for the network") from None


def _bounds(network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> tuple[int, int]:
    return int(network.network_address), int(network.broadcast_address)


def plain(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The address; an IPv4-mapped IPv6 address, as dual-stack sockets report it, becomes IPv4."""
    address = ipaddress.ip_address(host)
    return getattr(address, "ipv4_mapped", None) or address


def plain_address(host: str) -> str:
    """An address in its canonical form. Raises ValueError if it is not an address."""
    return str(plain(host))


def believed(text: str) -> frozenset[bytes]:
    """The headers that `--forwarded-headers` names, in lower case; `none` means none. Raises ValueError."""
    names = frozenset(name.encode() for name in re.split(r"[\s,]+", text.lower()) if name)
    if names == {b"none"}:
        return frozenset()
    for name in sorted(names - {X_FOR, X_PROTO, X_HOST, X_PREFIX, FORWARDED}):
        raise ValueError(
            f"{name.decode()!r} is not a header that this server knows; write some of x-forwarded-for, "
            "x-forwarded-proto, x-forwarded-host and x-forwarded-prefix, or forwarded, or none"
        )
    if FORWARDED in names and names & {X_FOR, X_PROTO, X_HOST}:
        raise ValueError(
            "forwarded cannot be believed together with x-forwarded-for, -proto or -host: name those that the proxy "
            "sets itself, since the others come from the client"
        )
    return names
