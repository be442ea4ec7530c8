"""What this server itself reads of a ClientHello (RFC 8446 4.1.2), before OpenSSL judges it. Pure.

It is read once, from the bytes that OpenSSL is given as well, for three things that the standard library does not tell:
the random by which the key log names the connection, the name that the client asks for, and the size of records that
it can take. What cannot be read here is nobody's error: such a connection stays with OpenSSL, which answers for it.
"""

from __future__ import annotations

import dataclasses
import re
import struct
from typing import Final

from serve_asgi.tls.record_protection import HANDSHAKE, MAX_FRAGMENT

MAX_BUFFERED: Final = 1 << 16
"""A longer ClientHello is not read here."""
CLIENT_HELLO: Final = 1
SERVER_NAME: Final = 0
MAX_FRAGMENT_LENGTH: Final = 1
RECORD_SIZE_LIMIT: Final = 28
LEAST_RECORD_SIZE: Final = 64
"""A client must not ask for less (RFC 8449 4)."""
LEAST_FRAGMENT: Final = 512
"""The least that we cut content into: each record costs some 2 µs, and with 64 bytes a MiB would take 35 to 60 ms
instead of 0.5. No OpenSSL agrees to a record_size_limit, so that no client can rely on one; max_fragment_length, to
which it does agree, knows nothing below 512."""
HOST_NAME: Final = re.compile(rb"[A-Za-z0-9._-]{1,255}")


@dataclasses.dataclass(frozen=True, slots=True)
class ClientHello:
    """The part of a ClientHello that matters beyond the handshake."""

    random: bytes
    server_name: str | None
    max_fragment: int
    """The most content that the client is sent in one record (RFC 6066 4, RFC 8449), whether OpenSSL agrees to it or
    not: smaller records are never wrong. Not less than LEAST_FRAGMENT."""


class ClientHelloReader:
    """Collects the records at the beginning of a connection until a ClientHello is whole.

    Each record is looked at once, when it is whole: a client may send byte by byte, in records of one byte.
    """

    def __init__(self) -> None:
        self.records = bytearray()
        """All that has come."""
        self._at = 0
        """Where in it the first record begins that is not whole."""
        self._message = bytearray()
        """What the whole records hold."""

    def feed(self, data: bytes) -> tuple[bool, ClientHello | None]:
        """Whether that was the last that is needed, and the ClientHello if it could be read."""
        self.records += data
        try:
            body = self._body()
            if body is not None:
                return True, parse(body)
        except (IndexError, ValueError, struct.error):
            return True, None
        return len(self.records) > MAX_BUFFERED, None

    def _body(self) -> bytes | None:
        """The handshake message without its head; None: not whole yet. ValueError: it is another one."""
        records, message = self.records, self._message
        at = self._at
        while len(records) > at:
            if records[at] != HANDSHAKE:
                raise ValueError("no handshake record")
            if len(records) < at + 5:
                return None
            end = at + 5 + int.from_bytes(records[at + 3 : at + 5])
            if not at + 5 < end <= at + 5 + MAX_FRAGMENT:
                raise ValueError("no size of a handshake record")
            if not message and len(records) > at + 5 and records[at + 5] != CLIENT_HELLO:
                raise ValueError("no ClientHello")
            if len(records) < end:
                return None
            message += records[at + 5 : end]
            self._at = at = end
            size = 4 + int.from_bytes(message[1:4])
            if len(message) >= size:  # which it is not as long as it is shorter than its head
                return bytes(message[4:size])
        return None


def parse(body: bytes) -> ClientHello:
    """Raises IndexError, ValueError or struct.error for what is no ClientHello."""
    at = 35 + body[34]  # behind legacy_version, random, legacy_session_id
    at += 2 + (body[at] << 8 | body[at + 1])  # cipher_suites
    at += 1 + body[at]  # legacy_compression_methods
    server_name = None
    max_fragment = MAX_FRAGMENT
    end = len(body)
    if at < end:
        if at + 2 + (body[at] << 8 | body[at + 1]) != end:
            raise ValueError("extensions of another size than the message's")
        at += 2
    while at < end:
        kind, size = two_numbers(body, at)
        start = at + 4
        at = start + size
        if kind == SERVER_NAME and size > 5:
            server_name = host_name(body[start:at])
        elif kind == MAX_FRAGMENT_LENGTH and 1 <= body[start] <= 4:
            max_fragment = min(max_fragment, 256 << body[start])
        elif kind == RECORD_SIZE_LIMIT:
            limit = int.from_bytes(body[start:at])
            if limit >= LEAST_RECORD_SIZE:
                max_fragment = min(max_fragment, max(limit - 1, LEAST_FRAGMENT))  # it counts the content type
    return ClientHello(body[2:34], server_name, max_fragment)


def host_name(names: bytes) -> str | None:
    """The name of a list of server names (RFC 6066 3), which has one entry; None for one that could be no host's.

    Raises ValueError for one that is not ASCII.
    """
    name = names[5:]
    if not name.isascii():  # the standard library logs a traceback for each, where there are several certificates
        raise ValueError("a name that is not ASCII (RFC 6066 3)")
    if names[2] == 0 and int.from_bytes(names[3:5]) == len(name) and HOST_NAME.fullmatch(name):
        return name.decode()
    return None


two_numbers = struct.Struct(">HH").unpack_from
