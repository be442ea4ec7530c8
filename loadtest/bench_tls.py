"""`python -m loadtest.bench_tls PORT CONNECTIONS SECONDS new|resumed`: TLS 1.3 connections of one request each.

A client that does the least it can, since OpenSSL's takes longer for its side of a handshake than some servers for
theirs, and would measure itself: one key share for all connections, and no look at the certificate, its signature and
the server's Finished (RFC 8446 4.4). It is good for nothing but this. It sends what a client of OpenSSL 3.0 sends:
X25519, the three suites, `http/1.1`, a session id and its change_cipher_spec. With `resumed` each connection offers the
last ticket of the one before it (psk_dhe_ke), and a ticket that is refused is an error. Prints one line of the form of
wrk's script.
"""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import hashlib
import hmac
import os
import sys
import time
from collections.abc import Iterator
from typing import Any, Final, cast

import uvloop
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from loadtest.bench_app import HELLO
from loadtest.bench_cases import MARK
from loadtest.ledger import percentile

CHANGE_CIPHER_SPEC, ALERT, HANDSHAKE, DATA = 20, 21, 22, 23
CLIENT_HELLO, SERVER_HELLO, NEW_SESSION_TICKET, FINISHED = 1, 2, 4, 20
KEY_SHARE, PRE_SHARED_KEY = 51, 41
CLOSE_NOTIFY: Final = b"\x01\x00"
DUMMY: Final = b"\x14\x03\x03\x00\x01\x01"
"""The record of middlebox compatibility (RFC 8446 D.4)."""
RETRY: Final = hashlib.sha256(b"HelloRetryRequest").digest()
"""The random of a HelloRetryRequest (RFC 8446 4.1.3)."""
REQUEST: Final = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
KEY: Final = X25519PrivateKey.generate()


class Suite:
    """One of the suites (RFC 8446 B.4) and what of its key schedule (7.1) is always the same."""

    def __init__(self, name: str, key_size: int, aead: Any) -> None:
        self.name = name
        self.size = hashlib.new(name).digest_size
        self.empty = hashlib.new(name).digest()
        self.zeros = bytes(self.size)
        self.key_size = key_size
        self.aead = aead
        self.early = self.extract(self.zeros, self.zeros)

    def extract(self, salt: bytes, secret: bytes) -> bytes:
        """HKDF-Extract (RFC 5869 2.2)."""
        return hmac.digest(salt, secret, self.name)

    def expand(self, secret: bytes, label: bytes, context: bytes, size: int = 0) -> bytes:
        """HKDF-Expand-Label (RFC 8446 7.1) of one block."""
        size = size or self.size
        info = b"%b%ctls13 %b%c%b\x01" % (size.to_bytes(2), 6 + len(label), label, len(context), context)
        return hmac.digest(secret, info, self.name)[:size]


SUITES: Final = {
    0x1302: Suite("sha384", 32, AESGCM),
    0x1303: Suite("sha256", 32, ChaCha20Poly1305),
    0x1301: Suite("sha256", 16, AESGCM),
}


class Keys:
    """One direction of one traffic secret (RFC 8446 7.3)."""

    def __init__(self, suite: Suite, secret: bytes) -> None:
        self._aead = suite.aead(suite.expand(secret, b"key", b"", suite.key_size))
        self._iv = int.from_bytes(suite.expand(secret, b"iv", b"", 12))
        self._count = 0

    def _nonce(self) -> bytes:
        self._count += 1
        return (self._iv ^ (self._count - 1)).to_bytes(12)

    def seal(self, kind: int, data: bytes) -> bytes:
        """A record."""
        head = b"\x17\x03\x03" + (len(data) + 17).to_bytes(2)
        return head + cast(bytes, self._aead.encrypt(self._nonce(), b"%b%c" % (data, kind), head))

    def open(self, head: bytes, body: bytes) -> tuple[int, bytes]:
        """The type and the content of a record, whose padding must be none. Raises InvalidTag."""
        inner = self._aead.decrypt(self._nonce(), body, head)
        return inner[-1], inner[:-1]


@dataclasses.dataclass(frozen=True, slots=True)
class Ticket:
    """What a later connection resumes with."""

    suite: int
    identity: bytes
    secret: bytes
    added: int
    given: float


def extension(kind: int, content: bytes) -> bytes:
    """RFC 8446 4.2."""
    return kind.to_bytes(2) + len(content).to_bytes(2) + content


def listed(content: bytes, size: int = 2) -> bytes:
    """A vector with its length before it."""
    return len(content).to_bytes(size) + content


EXTENSIONS: Final = b"".join(
    (
        extension(0, listed(b"\x00" + listed(b"localhost"))),  # server_name
        extension(10, listed(b"\x00\x1d\x00\x17")),  # supported_groups: x25519, secp256r1
        extension(13, listed(b"\x04\x03\x05\x03\x06\x03\x08\x07\x08\x04\x08\x05\x08\x06\x04\x01")),
        extension(16, listed(listed(b"http/1.1", 1))),  # application_layer_protocol_negotiation
        extension(43, listed(b"\x03\x04", 1)),  # supported_versions
        extension(45, listed(b"\x01", 1)),  # psk_key_exchange_modes: psk_dhe_ke
        extension(KEY_SHARE, listed(b"\x00\x1d" + listed(KEY.public_key().public_bytes_raw()))),
    )
)


def client_hello(ticket: Ticket | None) -> bytes:
    """The message (RFC 8446 4.1.2)."""
    offered = [0x1302, 0x1303, 0x1301]
    front = b"\x03\x03" + os.urandom(32) + listed(os.urandom(32), 1)
    front += listed(b"".join(suite.to_bytes(2) for suite in offered)) + b"\x01\x00"
    if ticket is None:
        body = front + listed(EXTENSIONS)
        return b"\x01" + listed(body, 3)
    suite = SUITES[ticket.suite]
    age = (int((time.monotonic() - ticket.given) * 1000) + ticket.added) & 0xFFFFFFFF
    identities = listed(listed(ticket.identity) + age.to_bytes(4))
    binders = 2 + 1 + suite.size
    last = PRE_SHARED_KEY.to_bytes(2) + (len(identities) + binders).to_bytes(2) + identities
    body = front + (len(EXTENSIONS) + len(last) + binders).to_bytes(2) + EXTENSIONS + last
    message = b"\x01" + (len(body) + binders).to_bytes(3) + body
    early = suite.extract(suite.zeros, ticket.secret)
    key = suite.expand(suite.expand(early, b"res binder", suite.empty), b"finished", b"")
    binder = hmac.digest(key, hashlib.new(suite.name, message).digest(), suite.name)
    return message + listed(listed(binder, 1))


def server_hello(message: bytes) -> tuple[int, bytes, bool]:
    """The suite, the key share, and whether the ticket was accepted (RFC 8446 4.1.3). Raises ValueError."""
    if message[0] != SERVER_HELLO or message[6:38] == RETRY:
        raise ValueError("no ServerHello")
    at = 39 + message[38]
    suite = int.from_bytes(message[at : at + 2])
    at += 5  # suite, compression, length of the extensions
    share, resumed = b"", False
    while at < len(message):
        kind, size = int.from_bytes(message[at : at + 2]), int.from_bytes(message[at + 2 : at + 4])
        if kind == KEY_SHARE:
            share = message[at + 8 : at + 4 + size]
        resumed |= kind == PRE_SHARED_KEY
        at += 4 + size
    return suite, share, resumed


class Client(asyncio.Protocol):
    """One connection: handshake, one request, its response to the end."""

    def __init__(self, ticket: Ticket | None) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.right = False
        """The response was the right one, and the ticket was accepted."""
        self.ticket: Ticket | None = None
        """The last one that came."""
        self._offered = ticket
        self._buffer = b""
        self._messages = b""
        self._hello = client_hello(ticket)
        self._number = 0
        self._suite: Suite
        self._hash: Any
        self._reading: Keys | None = None
        self._writing: Keys
        self._resumed = False
        self._open = False
        self._content = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(b"\x16\x03\x01" + listed(self._hello))

    def data_received(self, data: bytes) -> None:
        """asyncio."""
        try:
            for kind, content in self._records(data):
                if kind == HANDSHAKE:
                    self._messages += content
                    for message in self._whole_messages():
                        self._took(message)
                elif kind == DATA:
                    self._content += content
                elif content != CLOSE_NOTIFY:
                    raise ValueError(f"alert {content!r}")
                else:
                    self._transport.write(self._writing.seal(ALERT, CLOSE_NOTIFY))
                    self._transport.close()
        except Exception as error:
            print(f"bench_tls: {error!r}", file=sys.stderr)
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio."""
        whole = self._content.startswith(b"HTTP/1.1 200 ") and self._content.endswith(b"\r\n\r\n" + HELLO)
        self.right = whole and (self._offered is None or self._resumed)
        if not self.done.done():
            self.done.set_result(None)

    def _records(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        self._buffer += data
        at = 0
        while len(self._buffer) >= at + 5 and len(self._buffer) >= (
            end := at + 5 + int.from_bytes(self._buffer[at + 3 : at + 5])
        ):
            head, body, at = self._buffer[at : at + 5], self._buffer[at + 5 : end], end
            if head[0] == DATA and self._reading is not None:
                yield self._reading.open(head, body)
            elif head[0] != CHANGE_CIPHER_SPEC:
                yield head[0], body
        self._buffer = self._buffer[at:]

    def _whole_messages(self) -> Iterator[bytes]:
        while len(self._messages) >= 4 and len(self._messages) >= (end := 4 + int.from_bytes(self._messages[1:4])):
            message, self._messages = self._messages[:end], self._messages[end:]
            yield message

    def _took(self, message: bytes) -> None:
        if self._open:
            if message[0] == NEW_SESSION_TICKET:
                self._keep(message)
        elif self._reading is None:
            self._agree(message)
        else:
            self._hash.update(message)
            if message[0] == FINISHED:
                self._finish()

    def _agree(self, message: bytes) -> None:
        self._number, share, self._resumed = server_hello(message)
        self._suite = suite = SUITES[self._number]
        shared = KEY.exchange(X25519PublicKey.from_public_bytes(share))
        psk = self._offered.secret if self._offered is not None and self._resumed else None
        early = suite.early if psk is None else suite.extract(suite.zeros, psk)
        secret = suite.extract(suite.expand(early, b"derived", suite.empty), shared)
        self._hash = hashlib.new(suite.name, self._hello + message)
        digest = self._hash.digest()
        self._client = suite.expand(secret, b"c hs traffic", digest)
        self._reading = Keys(suite, suite.expand(secret, b"s hs traffic", digest))
        self._master = suite.extract(suite.expand(secret, b"derived", suite.empty), suite.zeros)

    def _finish(self) -> None:
        suite, digest = self._suite, self._hash.digest()
        key = suite.expand(self._client, b"finished", b"")
        finished = b"\x14\x00" + listed(hmac.digest(key, digest, suite.name))
        self._hash.update(finished)
        self._reading = Keys(suite, suite.expand(self._master, b"s ap traffic", digest))
        self._writing = Keys(suite, suite.expand(self._master, b"c ap traffic", digest))
        last = Keys(suite, self._client).seal(HANDSHAKE, finished)
        self._open = True
        self._transport.write(DUMMY + last + self._writing.seal(DATA, REQUEST))

    def _keep(self, message: bytes) -> None:
        at = 13 + message[12]  # type, length, lifetime, age_add, nonce
        nonce, size = message[13:at], int.from_bytes(message[at : at + 2])
        secret = self._suite.expand(self._master, b"res master", self._hash.digest())
        self.ticket = Ticket(
            self._number,
            message[at + 2 : at + 2 + size],
            self._suite.expand(secret, b"resumption", nonce),
            int.from_bytes(message[8:12]),
            time.monotonic(),
        )


class Count:
    """What all connections found."""

    def __init__(self) -> None:
        self.running = True
        self.errors = 0
        self.latencies: list[float] = []


async def one_after_the_other(port: int, resume: bool, count: Count) -> None:
    """Connections, until the end."""
    loop = asyncio.get_running_loop()
    ticket: Ticket | None = None
    while count.running:
        begun = time.perf_counter()
        client = Client(ticket)
        try:
            await loop.create_connection(lambda: client, "127.0.0.1", port)  # noqa: B023
            await client.done
        except OSError:
            client.right = False
        ticket = client.ticket if resume else None
        if client.right:
            count.latencies.append(time.perf_counter() - begun)
        elif count.running:
            count.errors += 1
            await asyncio.sleep(0.01)


async def main(port: int, connections: int, seconds: float, resume: bool) -> str:
    """Measure; the line to print."""
    count, begun = Count(), time.perf_counter()
    users = [asyncio.ensure_future(one_after_the_other(port, resume, count)) for _ in range(connections)]
    await asyncio.sleep(seconds)
    count.running = False
    await asyncio.wait(users, timeout=5.0)
    duration = time.perf_counter() - begun
    found = sorted(count.latencies)
    latencies = [round(percentile(found, share) * 1e6) for share in (0.5, 0.99)]
    errors = count.errors + (not found)
    return f"{MARK} [{len(found)}, {round(duration * 1e6)}, {latencies[0]}, {latencies[1]}, {errors}]"


if __name__ == "__main__":
    gc.disable()
    _, port, connections, seconds, kind = sys.argv
    print(uvloop.run(main(int(port), int(connections), float(seconds), kind == "resumed")), flush=True)
    os._exit(0)
