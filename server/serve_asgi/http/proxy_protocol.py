"""The header of the PROXY protocol, versions 1 and 2 (https://www.haproxy.org/download/2.8/doc/proxy-protocol.txt).

It owns the grammar: from the first bytes of a connection to what they say, or to a refusal. Rules: nothing is guessed
(section 2), so that whatever is not exactly a header is refused, and as soon as it cannot become one any more; a header
is never read before it is whole. It is pure.
"""

from __future__ import annotations

import enum
import ipaddress
import re
import struct
from typing import Final, NamedTuple

from serve_asgi.config.trusted_proxies import plain_address
from serve_asgi.ipc.peer_address import Address

MAX_LINE: Final = 107
"""Bytes of a header of version 1, with its CRLF (section 2.1)."""

MAX_BLOCK: Final = 16384
"""Bytes that may follow the fixed part of a header of version 2. Client certificates in it may take some thousand."""

SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"
_FIXED: Final = 16
_START: Final = b"PROXY "
_LINE: Final = re.compile(
    rb"PROXY TCP(?P<family>[46]) ([0-9A-Fa-f:.]+) ([0-9A-Fa-f:.]+) (0|[1-9][0-9]{0,4}) (0|[1-9][0-9]{0,4})"
)
_UNKNOWN: Final = re.compile(rb"PROXY UNKNOWN(?: .*)?", re.DOTALL)

_LOCAL, _PROXY = 0x20, 0x21
_INET, _INET6, _UNIX = 1, 2, 3
_CRC32C, _SSL = 0x03, 0x20
_CLIENT_SSL: Final = 0x01


class MalformedProxyHeader(Exception):
    """These bytes are no header; the message says why, for the log."""


class ProxySource(enum.Enum):
    """Whose connection it is."""

    CLIENT = "client"  # a client's, with both its addresses
    UNNAMED = "unnamed"  # a client's that has no addresses of IP, or that the sender does not tell
    LOCAL = "local"  # the sender's own: a health check


class ProxyHeader(NamedTuple):
    """What a header says."""

    size: int
    """Its bytes; the client's follow."""
    kind: ProxySource
    client: Address
    server: Address
    """Both None unless `kind` is CLIENT."""
    secure: bool
    """Whether the client's side is encrypted (PP2_CLIENT_SSL, section 2.2.6)."""


def parse(data: bytes) -> ProxyHeader | None:
    """The header that `data` begins with; None while it is not whole. Raises MalformedProxyHeader."""
    if not data:
        return None
    if data[0] == _START[0]:
        return _parse_line(data)
    if data[0] == SIGNATURE[0]:
        return _parse_block(data)
    raise MalformedProxyHeader("it does not begin with a PROXY protocol header")


def _parse_line(data: bytes) -> ProxyHeader | None:
    """Version 1 (section 2.1)."""
    if not (data.startswith(_START) or _START.startswith(data)):
        raise MalformedProxyHeader("it does not begin with a PROXY protocol header")
    end = data.find(b"\n", 0, MAX_LINE)
    if end < 0:
        if len(data) >= MAX_LINE or b"\r" in data[: min(len(data), MAX_LINE) - 1]:
            raise MalformedProxyHeader("the line of its PROXY protocol header has no end")
        return None
    line, size = data[: end - 1], end + 1
    if data[end - 1 : end] != b"\r" or b"\r" in line:
        raise MalformedProxyHeader("the line of its PROXY protocol header does not end in CRLF")
    found = _LINE.fullmatch(line)
    if found is not None:
        try:
            client, server = (_of_family(found["family"], text) for text in (found[2], found[3]))
        except ValueError:
            raise MalformedProxyHeader("an address in its PROXY protocol header is none") from None
        ports = int(found[4]), int(found[5])
        if max(ports) <= 65535:
            return ProxyHeader(size, ProxySource.CLIENT, (client, ports[0]), (server, ports[1]), False)
    elif _UNKNOWN.fullmatch(line):
        return ProxyHeader(size, ProxySource.UNNAMED, None, None, False)
    raise MalformedProxyHeader("the line of its PROXY protocol header is malformed")


def _of_family(family: bytes, text: bytes) -> str:
    address = text.decode("ascii")
    return plain_address(str(ipaddress.IPv4Address(address) if family == b"4" else ipaddress.IPv6Address(address)))


def _parse_block(data: bytes) -> ProxyHeader | None:
    """Version 2 (section 2.2)."""
    if data[: len(SIGNATURE)] != SIGNATURE[: len(data)]:
        raise MalformedProxyHeader("it does not begin with a PROXY protocol header")
    if len(data) > 12 and data[12] not in (_LOCAL, _PROXY):
        raise MalformedProxyHeader("the version or the command of its PROXY protocol header is not known")
    if len(data) < _FIXED:
        return None
    command, both, length = struct.unpack_from("!BBH", data, 12)
    if length > MAX_BLOCK:
        raise MalformedProxyHeader(f"its PROXY protocol header announces {length} bytes; this server takes {MAX_BLOCK}")
    family, transport = both >> 4, both & 0x0F
    if command == _PROXY and (family > _UNIX or transport > 2):
        raise MalformedProxyHeader("the address family of its PROXY protocol header is not known")
    size = _FIXED + length
    if len(data) < size:
        return None
    if command == _LOCAL:  # whatever else it holds is to be passed over
        return ProxyHeader(size, ProxySource.LOCAL, None, None, False)
    if family == 0 or transport == 0:
        return ProxyHeader(size, ProxySource.UNNAMED, None, None, False)
    return _addressed(data[:size], family)


def _addressed(header: bytes, family: int) -> ProxyHeader:
    layout = {_INET: "!4s4sHH", _INET6: "!16s16sHH", _UNIX: "!108s108s"}[family]
    end = _FIXED + struct.calcsize(layout)
    if len(header) < end:
        raise MalformedProxyHeader("its PROXY protocol header is too short for the addresses that it announces")
    secure = _read_vectors(header, end)
    if family == _UNIX:
        return ProxyHeader(len(header), ProxySource.UNNAMED, None, None, secure)
    client, server, client_port, server_port = struct.unpack_from(layout, header, _FIXED)
    ends = ((_text(client), client_port), (_text(server), server_port))
    return ProxyHeader(len(header), ProxySource.CLIENT, *ends, secure)


def _text(packed: bytes) -> str:
    return plain_address(str(ipaddress.ip_address(packed)))


def _read_vectors(header: bytes, at: int) -> bool:
    """Check the vectors after the addresses and say whether they mention TLS; unknown ones are skipped."""
    secure = False
    while at < len(header):
        if len(header) < at + 3:
            raise MalformedProxyHeader("a vector in its PROXY protocol header is cut short")
        kind, length = struct.unpack_from("!BH", header, at)
        value = header[at + 3 : at + 3 + length]
        if len(value) < length:
            raise MalformedProxyHeader("a vector in its PROXY protocol header is cut short")
        if kind == _CRC32C:
            _check_sum(header, at + 3, value)
        elif kind == _SSL:
            if length < 5:
                raise MalformedProxyHeader("what its PROXY protocol header says of TLS is cut short")
            secure = bool(value[0] & _CLIENT_SSL)
        at += 3 + length
    return secure


def _check_sum(header: bytes, at: int, value: bytes) -> None:
    """Section 2.2.3: the sum is that of the whole header with zeros in its own place."""
    if len(value) != 4 or int.from_bytes(value, "big") != crc32c(header[:at] + bytes(4) + header[at + 4 :]):
        raise MalformedProxyHeader("the checksum of its PROXY protocol header is wrong")


def _table() -> tuple[int, ...]:
    table = []
    for number in range(256):
        for _ in range(8):
            number = number >> 1 ^ (0x82F63B78 if number & 1 else 0)
        table.append(number)
    return tuple(table)


_TABLE: Final = _table()


def crc32c(data: bytes) -> int:
    """CRC-32C (RFC 9260 appendix A)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF
