"""What a worker needs to speak TLS, as it travels from the listener to the worker: in memory alone, never in a file.

The listener makes it of the operator's files (`serve_asgi.tls.certificates` checks them), and the worker makes contexts
of it (`serve_asgi.tls.server_contexts`). In between it lies in a sealed memfd (memfd_create(2), fcntl(2) F_ADD_SEALS)
whose descriptor goes over the channel, so that one copy serves all workers and none can change what another one reads.

Rules: private keys and ticket keys appear in no `repr`, hence in no log and no traceback; a process that holds them
calls `stay_out_of_core_files` first. What one minor version adds here has a default, so that the other can do without.
It must not import `cryptography`, nor read a file of the operator's.
"""

from __future__ import annotations

import contextlib
import enum
import os
import sys
from typing import Any, Final

import msgspec

if sys.platform == "linux":
    import fcntl
    import resource
else:  # where nothing uses them
    fcntl: Any = None
    resource: Any = None

HTTP_1_1: Final = "http/1.1"
"""The protocol's name in ALPN (RFC 7301, section 6)."""
TICKET_KEY_SIZE: Final = 80
"""Bytes of a ticket key: what keys for encryption and authentication, and its name, are derived from."""
LARGEST: Final = 64 << 20
"""Bytes of all of it; nobody has that many certificates."""


class ClientAuth(enum.Enum):
    """Whether clients are asked for a certificate (--tls-client-auth)."""

    NONE = "none"
    OPTIONAL = "optional"
    """A client may have none; one that it has must be valid."""
    REQUIRED = "required"


class TlsPair(msgspec.Struct, frozen=True):
    """A certificate with its chain, and the private key that fits it."""

    names: tuple[str, ...]
    """What it is for: lower-case DNS names in ASCII (A-labels), perhaps `*.example.org`, and IP addresses."""
    chain: bytes
    """PEM: the certificate itself, then each issuer, without the root."""
    key: bytes
    """PEM, not encrypted."""
    kind: str = ""
    """Of the key: RSA, EC, Ed25519 or Ed448. Pairs of the same names and different kinds are offered side by side."""

    def __repr__(self) -> str:
        return f"<TlsPair {', '.join(self.names)}>"


class TlsMaterial(msgspec.Struct, frozen=True):
    """Everything that a worker needs for its handshakes."""

    pairs: tuple[TlsPair, ...]
    """At least one; the first is for clients that name no server, or one that is not known."""
    client_ca: bytes = b""
    """PEM: the authorities that clients' certificates may be from."""
    client_auth: ClientAuth = ClientAuth.NONE
    crl: bytes = b""
    """PEM: revocation lists of these authorities; none are looked at if it is empty."""
    crl_for_chain: bool = False
    """Whether there is a list for each authority, so that revoked intermediate ones can be found too."""
    min_version: str = "1.2"
    """"1.2" or "1.3"."""
    ciphers: str = ""
    """Of TLS 1.2, as OpenSSL writes them (openssl-ciphers(1)); "" means the server's own choice."""
    alpn: tuple[str, ...] = (HTTP_1_1,)
    """In order of preference."""
    ticket_keys: tuple[bytes, ...] = ()
    """Of session tickets, `TICKET_KEY_SIZE` bytes each: new tickets get the first; without any there are no tickets."""
    version: int = 0
    """Counts what the listener has sent, so that a worker can say what it has."""

    def __repr__(self) -> str:
        return f"<TlsMaterial {self.version}: {', '.join(map(repr, self.pairs))}>"

    def to_bytes(self) -> bytes:
        """All of it, private keys too."""
        return msgspec.msgpack.encode(self)

    @classmethod
    def from_bytes(cls, data: bytes) -> TlsMaterial:
        """The reverse; what another version had and this one does not know is passed over. Raises ValueError."""
        try:
            return msgspec.msgpack.decode(data, type=cls)
        except msgspec.MsgspecError:  # whose text may quote what it could not read
            del data
            raise ValueError("the TLS material is not of this protocol") from None

    def to_memfd(self) -> int:
        """A descriptor of memory that holds it and cannot be written any more; the caller closes it. Raises OSError."""
        return sealed(self.to_bytes(), "serve-tls")

    @classmethod
    def from_memfd(cls, descriptor: int) -> TlsMaterial:
        """Read what `to_memfd` made, and close `descriptor`. Raises OSError, ValueError."""
        try:
            return cls.from_bytes(contents(descriptor))
        finally:
            os.close(descriptor)

    @property
    def trust(self) -> bytes:
        """What decides which clients are let in: a session ticket is worth nothing where that is another."""
        return msgspec.msgpack.encode((self.client_auth.value, self.client_ca, self.crl, self.crl_for_chain))


def sealed(data: bytes, name: str) -> int:
    """A close-on-exec descriptor of memory with this content, for good; the caller closes it. Raises OSError."""
    if sys.platform != "linux":
        raise NotImplementedError
    seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
    left = memoryview(data)
    del data  # no frame of a traceback is to have it: there are tools that show what is in them
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        while left:
            left = left[os.write(descriptor, left) :]
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def contents(descriptor: int) -> bytes:
    """All that such memory holds, wherever its position is: others share that. Raises OSError, ValueError."""
    if sys.platform != "linux":
        raise NotImplementedError
    size = os.fstat(descriptor).st_size
    if size > LARGEST:
        raise ValueError("the TLS material is larger than any of this protocol")
    return os.pread(descriptor, size, 0)


def stay_out_of_core_files() -> None:
    """Have the kernel write no core file of this process, nor of those that it starts: the keys would be in it.

    A soft limit of one byte does that also where core files are piped to a program (core(5), kernel.core_pattern),
    which a limit of 0 does not. Who needs core files raises the limit in the application: resource.setrlimit.
    """
    if sys.platform != "linux":
        raise NotImplementedError
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    wanted = 1 if hard == resource.RLIM_INFINITY else min(1, hard)
    if soft != wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_CORE, (wanted, hard))
