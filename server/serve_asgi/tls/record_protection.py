"""The records of TLS 1.3 once the handshake is over: RFC 8446 sections 5 and 7. Pure.

A traffic secret gives a key and an IV (7.3). Each record is sealed with a nonce made of the IV and of its sequence
number (5.3), so that nobody can drop, repeat or reorder one unnoticed, and the next secret follows from the last one
(7.2). A `RecordSealer` and a `RecordOpener` each own one direction: its secret, its sequence number, its key.

Rules: a nonce is never used twice, since a sequence number only goes up and a new secret begins at zero; no key seals
more records than RFC 8446 5.5 allows; what is wrong with a record is said as a `RecordError` with the alert that RFC
8446 asks for. This module knows nothing of what a record means (alerts, KeyUpdates): that is the session's.
"""

from __future__ import annotations

import dataclasses
import functools
import hmac
from typing import Final, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from serve_asgi.tls.alerts import Alert

CHANGE_CIPHER_SPEC: Final = 20
ALERT: Final = 21
HANDSHAKE: Final = 22
APPLICATION_DATA: Final = 23

HEADER_SIZE: Final = 5
TAG_SIZE: Final = 16
MAX_FRAGMENT: Final = 1 << 14
"""The most content that a record carries (RFC 8446 5.1)."""
MAX_CIPHERTEXT: Final = MAX_FRAGMENT + 256
"""The greatest length that a record may announce (5.2)."""
NO_RECORD: Final = HEADER_SIZE + MAX_CIPHERTEXT + 1
"""No record has this size, header included."""
MAX_INNER: Final = MAX_FRAGMENT + 1
"""The most that a record may hold with its type and its padding (5.4)."""
OVERHEAD: Final = 1 + TAG_SIZE
"""What the type and the tag add to the content of a record."""

TABLE_SIZE: Final = 2048
HEADERS: Final = [
    b"\x17\x03\x03" + max(0, size - HEADER_SIZE).to_bytes(2) for size in range(TABLE_SIZE + HEADER_SIZE + OVERHEAD)
]
"""The header of a record of this size, header included: most records are short, and need not make theirs anew."""
SHORTEST: Final = HEADER_SIZE + OVERHEAD + 6
"""A record that is shorter is looked at more closely: it holds less than the smallest frame of a WebSocket client."""

KEY_UPDATE: Final = 24
"""The type of the handshake message (4.6.3)."""


class Aead(Protocol):
    """A cipher with a key, of `cryptography`."""

    def encrypt(self, nonce: bytes, data: bytes, associated_data: bytes | None, /) -> bytes: ...
    def decrypt(self, nonce: bytes, data: bytes | memoryview, associated_data: bytes | None, /) -> bytes: ...


class AeadOfKey(Protocol):
    """A cipher, before it has a key."""

    def __call__(self, key: bytes, /) -> Aead: ...


@dataclasses.dataclass(frozen=True, slots=True)
class CipherSuite:
    """One of the cipher suites of TLS 1.3 (RFC 8446 B.4)."""

    name: str
    aead: AeadOfKey
    key_size: int
    hash: str
    record_limit: int
    """How many records one key may protect (5.5), rounded down."""


SUITES: Final = {
    0x1301: CipherSuite("TLS_AES_128_GCM_SHA256", AESGCM, 16, "sha256", 1 << 24),
    0x1302: CipherSuite("TLS_AES_256_GCM_SHA384", AESGCM, 32, "sha384", 1 << 24),
    0x1303: CipherSuite("TLS_CHACHA20_POLY1305_SHA256", ChaCha20Poly1305, 32, "sha256", 1 << 48),
}
"""By their numbers. RFC 8446 5.5 allows AES-GCM 2^24.5 full records; for ChaCha20-Poly1305 the sequence number is the
limit, which this one stays far below."""


class RecordError(Exception):
    """A record that ends the connection: the alert to send, and a sentence for the log."""

    def __init__(self, alert: Alert, reason: str) -> None:
        super().__init__(reason)
        self.alert = alert
        self.reason = reason


def expand_label(secret: bytes, label: bytes, length: int, hash_name: str) -> bytes:
    """HKDF-Expand-Label with an empty context (7.1); one block is enough, as `length` is at most that of the hash."""
    return hmac.digest(secret, expansion(label, length), hash_name)[:length]


@functools.cache
def expansion(label: bytes, length: int) -> bytes:
    """What is hashed for a label: the HkdfLabel of 7.1, and the number of the block (RFC 5869 2.3)."""
    label = b"tls13 " + label
    return length.to_bytes(2) + bytes((len(label),)) + label + b"\0\x01"


class RecordProtection:
    """The keys of one direction: a secret, and the number of records for which it has been used."""

    __slots__ = ("_iv", "limit", "secret", "sequence", "suite")

    def __init__(self, suite: CipherSuite, secret: bytes, sequence: int = 0) -> None:
        self.suite = suite
        self._use(secret)
        self.sequence = sequence

    def _use(self, secret: bytes) -> None:
        self.secret = secret
        self.sequence = 0
        self.limit = self.suite.record_limit
        """The sequence number from which on this key should be replaced."""
        self._iv = int.from_bytes(expand_label(secret, b"iv", 12, self.suite.hash))
        self._key(self.suite.aead(expand_label(secret, b"key", self.suite.key_size, self.suite.hash)))

    def _key(self, aead: Aead) -> None:
        raise NotImplementedError

    def next_generation(self) -> None:
        """Go on with the next secret (7.2), from sequence number 0."""
        self._use(expand_label(self.secret, b"traffic upd", len(self.secret), self.suite.hash))


class RecordSealer(RecordProtection):
    """Makes records of what is sent."""

    __slots__ = ("_encrypt", "_short", "max_fragment")

    def __init__(self, suite: CipherSuite, secret: bytes, sequence: int = 0, max_fragment: int = MAX_FRAGMENT) -> None:
        super().__init__(suite, secret, sequence)
        self.max_fragment = max_fragment
        """The most content that the client wants in one record."""
        self._short = min(max_fragment, TABLE_SIZE - 1)

    def _key(self, aead: Aead) -> None:
        self._encrypt = aead.encrypt

    def seal(self, data: bytes | bytearray | memoryview) -> bytes:
        """The records of any amount of content; none for none. Keys that have been used long enough are replaced."""
        size = len(data)
        sequence = self.sequence
        if type(data) is bytes and 0 < size <= self._short and sequence < self.limit:  # as in `seal_one`
            self.sequence = sequence + 1
            header = HEADERS[size + 22]
            return header + self._encrypt((self._iv ^ sequence).to_bytes(12), data + b"\x17", header)
        return b"".join(self.seal_long(data))

    def seal_long(self, data: bytes | bytearray | memoryview, before: bytes = b"") -> list[bytes]:
        """As `seal`, for much content, with `before` in front of it: the pieces of the records, to be written as one.

        That saves a copy, as long as `before` fits into the first record.
        """
        step = self.max_fragment
        if len(before) > step:
            data, before = before + bytes(data), b""
        view = memoryview(data).cast("B")
        parts: list[bytes] = []
        end = 0
        while end < len(view) or before:
            if self.sequence >= self.limit:
                parts.append(self.seal_key_update(False))
            start, end = end, end + step - len(before)
            parts += self._seal_one(view[start:end], b"\x17", before)
            before = b""
        return parts

    def seal_one(self, content: bytes, kind: int, padding: int = 0) -> bytes:
        """One record of this content type, with so many zeros behind (RFC 8446 5.4)."""
        return b"".join(self._seal_one(content, bytes((kind,)) + bytes(padding)))

    def _seal_one(self, content: bytes | memoryview, rest: bytes, before: bytes = b"") -> tuple[bytes, bytes]:
        inner = b"".join((before, content, rest))
        header = b"\x17\x03\x03" + (len(inner) + TAG_SIZE).to_bytes(2)
        nonce = (self._iv ^ self.sequence).to_bytes(12)
        self.sequence += 1
        return header, self._encrypt(nonce, inner, header)

    def seal_key_update(self, requested: bool) -> bytes:
        """A KeyUpdate (4.6.3), and the next keys from then on; `requested`: the client shall change its own as well."""
        record = self.seal_one(bytes((KEY_UPDATE, 0, 0, 1, requested)), HANDSHAKE)
        self.next_generation()
        return record


class RecordOpener(RecordProtection):
    """Takes records apart that have come, whole or in pieces."""

    __slots__ = ("_at", "_awaited", "_buffer", "_decrypt", "_held", "_pieces", "shortest_whole")

    def __init__(self, suite: CipherSuite, secret: bytes, sequence: int = 0, partial: bytes = b"") -> None:
        super().__init__(suite, secret, sequence)
        self._buffer = partial
        self._at = 0
        self._pieces: list[bytes] = []  # what has come since, joined when it is enough to go on
        self._held = len(partial)
        self._awaited = 1
        self.shortest_whole = SHORTEST
        """`open_whole` leaves shorter ones to `open_next`."""

    def _key(self, aead: Aead) -> None:
        self._decrypt = aead.decrypt

    @property
    def holds_part(self) -> bool:
        """Whether something has come and has not been opened."""
        return self._held > 0

    @property
    def partial(self) -> bytes:
        """What has come and has not been opened: mostly the beginning of a record."""
        return b"".join((self._buffer[self._at :], *self._pieces))

    def open_whole(self, data: bytes) -> bytes:
        """The content, if these bytes are exactly one record of application data, as they mostly are.

        b"" in every other case, in which nothing has happened: `feed` and `open_next` are for those.
        """
        size = len(data)
        sequence = self.sequence
        if size < self.shortest_whole or self._held or sequence >= self.limit:
            return b""
        if size < TABLE_SIZE:
            header = HEADERS[size]
            if not data.startswith(header):
                return b""
        else:
            header = data[:5]
            if header[:3] != b"\x17\x03\x03" or int.from_bytes(header[3:]) != size - 5:
                return b""
        try:
            content = self._decrypt((self._iv ^ sequence).to_bytes(12), data[5:], header)
        except InvalidTag:
            return b""
        if content[-1] != 23 or len(content) > MAX_INNER:
            return b""
        self.sequence = sequence + 1
        return content[:-1]

    def feed(self, data: bytes) -> None:
        """Bytes that have come."""
        self._pieces.append(data)
        self._held += len(data)

    def open_next(self) -> tuple[int, bytes] | None:
        """The content type and the content of the next record, None if it is not whole yet.

        Raises RecordError for a record that cannot be right.
        """
        held = self._held
        if held < self._awaited:
            return None
        if self._pieces:
            self._buffer = b"".join((self._buffer[self._at :], *self._pieces))
            self._pieces = []
            self._at = 0
        buffer, at = self._buffer, self._at
        if buffer[at] != APPLICATION_DATA:
            raise RecordError(Alert.UNEXPECTED_MESSAGE, f"the client sent an unprotected record (type {buffer[at]})")
        if held < HEADER_SIZE:
            self._awaited = HEADER_SIZE
            return None
        start = at + HEADER_SIZE
        length = int.from_bytes(buffer[at + 3 : start])
        if length > MAX_CIPHERTEXT:
            raise RecordError(Alert.RECORD_OVERFLOW, f"the client sent a record of {length} bytes")
        if held < HEADER_SIZE + length:
            self._awaited = HEADER_SIZE + length
            return None
        end = start + length
        nonce = (self._iv ^ self.sequence).to_bytes(12)
        try:
            inner = self._decrypt(nonce, memoryview(buffer)[start:end], buffer[at:start])
        except InvalidTag:
            raise RecordError(
                Alert.BAD_RECORD_MAC, "a record of the client is not authentic: it was changed, lost or repeated"
            ) from None
        self.sequence += 1
        self._awaited = 1
        self._held = held - HEADER_SIZE - length
        if self._held:
            self._at = end
        else:
            self._buffer, self._at = b"", 0
        if len(inner) > MAX_INNER:
            raise RecordError(Alert.RECORD_OVERFLOW, f"the client sent a record with {len(inner) - 1} bytes of content")
        if not inner or inner[-1] == 0:
            inner = inner.rstrip(b"\0")  # the padding (5.4)
            if not inner:
                raise RecordError(Alert.UNEXPECTED_MESSAGE, "the client sent a record without a content type")
        return inner[-1], inner[:-1]
