"""Session tickets that any worker of any generation can take: their keys are the server's (RFC 5077, RFC 8446 4.6.1).

Without this each worker's OpenSSL would make keys of its own, and a client that comes back to another worker would go
through a full handshake. The listener makes secrets (`TicketKeys`), replaces them, and keeps the last two; a worker
derives from each of them, and from what decides which clients are let in (`TlsMaterial.trust`), the keys of RFC 5077's
construction: AES-256-CBC, HMAC-SHA-256. A ticket of a client whose certificate was checked against another authority or
revocation list is thus worth nothing.

The standard library has no way to set them. OpenSSL has two, where it can be reached (`openssl_library.py`). One key
alone can be told to it (SSL_CTRL_SET_TLSEXT_TICKET_KEYS), or it can be told to call back for each ticket, which knows
all keys and costs 20 to 30 µs of the 330 that a handshake takes here (OpenSSL 3.0, Python 3.13). So there are contexts
of both kinds: a client hello that bears the name of the key before, 16 random bytes, gets one that calls back, which
reads the ticket and replaces it by one of the present key; all others get one that has the present key alone. OpenSSL
before 3.0 has the first kind only. Where neither can be, `unavailable` says why, and a ticket is valid for one worker.
"""

from __future__ import annotations

import ctypes
import dataclasses
import hashlib
import hmac
import os
import ssl
from collections.abc import Sequence
from typing import Final

from serve_asgi.tls.material import TICKET_KEY_SIZE
from serve_asgi.tls.openssl_library import TicketKeyCallback, context_pointer, find_openssl

ROTATION: Final = 3600.0
"""Seconds that new tickets are made with one key; it is accepted for as long again."""
ACCEPTED: Final = 2
"""Keys that are accepted: the one that new tickets are made with, and the one before."""
NAME_SIZE: Final = 16
"""Bytes of the name of a key, which stand at the beginning of a ticket (RFC 5077, section 4)."""
_IV_SIZE: Final = 16
_SET_TICKET_KEYS: Final = 59  # SSL_CTRL_SET_TLSEXT_TICKET_KEYS
_SET_CACHE_MODE: Final = 44  # SSL_CTRL_SET_SESS_CACHE_MODE
_TLS_1_3: Final = 0x0304

IGNORED: Final = 0
USED: Final = 1
USED_AND_RENEWED: Final = 2
FAILED: Final = -1
"""What the callback returns (SSL_CTX_set_tlsext_ticket_key_evp_cb(3))."""


class TicketKeys:
    """The secrets of one server: what new tickets are made with, and the ones before that are still accepted."""

    def __init__(self, keys: Sequence[bytes] = ()) -> None:
        self.keys: tuple[bytes, ...] = tuple(keys) or (os.urandom(TICKET_KEY_SIZE),)
        """The newest first."""

    def rotate(self) -> None:
        """New tickets are made with a new one from now on."""
        self.keys = (os.urandom(TICKET_KEY_SIZE), *self.keys[: ACCEPTED - 1])

    def __repr__(self) -> str:
        return f"<TicketKeys: {len(self.keys)}>"


@dataclasses.dataclass(frozen=True, slots=True, repr=False)
class DerivedKey:
    """The keys of tickets that one secret stands for, under one rule of which clients are let in."""

    name: bytes
    authentication: bytes
    encryption: bytes

    @classmethod
    def of(cls, secret: bytes, trust: bytes) -> DerivedKey:
        """HKDF-Expand of the secret (RFC 5869, section 2.3), with `trust` as its context."""
        context, block, made = b"serve session tickets" + hashlib.sha256(trust).digest(), b"", b""
        for number in (1, 2, 3):
            block = hmac.digest(secret, block + context + bytes([number]), "sha256")
            made += block
        return cls(made[:NAME_SIZE], made[NAME_SIZE:48], made[48:80])


class _Parameter(ctypes.Structure):
    """OSSL_PARAM(3)."""

    _fields_ = (
        ("key", ctypes.c_char_p),
        ("data_type", ctypes.c_uint),
        ("data", ctypes.c_void_p),
        ("data_size", ctypes.c_size_t),
        ("return_size", ctypes.c_size_t),
    )


_UTF8, _OCTETS, _UNSET = 4, 5, ctypes.c_size_t(-1).value


def unavailable() -> str:
    """Why the keys of tickets cannot be set here, so that a session is resumed by the same worker only; "" if so."""
    found = find_openssl()
    return found if isinstance(found, str) else ""


class _UsableKey:
    """A derived key in the form in which OpenSSL takes it."""

    __slots__ = ("_parts", "encryption", "mac", "name")

    def __init__(self, key: DerivedKey) -> None:
        self.name, self.encryption = key.name, key.encryption
        digest = ctypes.create_string_buffer(b"SHA256")
        secret = ctypes.create_string_buffer(key.authentication, len(key.authentication))
        self._parts = (digest, secret)
        self.mac = (_Parameter * 3)(
            _Parameter(b"key", _OCTETS, ctypes.addressof(secret), len(key.authentication), _UNSET),
            _Parameter(b"digest", _UTF8, ctypes.addressof(digest), 6, _UNSET),
            _Parameter(None, 0, None, 0, 0),
        )


_callbacks: Final[dict[int, object]] = {}
"""All that were ever given to OpenSSL: a context may outlive whoever has made it. There are as many as certificates
were replaced, and a callback is small."""


class ContextTicketKeys:
    """The keys of tickets that the contexts of a worker have, and what OpenSSL calls for a ticket."""

    def __init__(self) -> None:
        found = find_openssl()
        self._open_ssl = None if isinstance(found, str) else found
        self._keys: tuple[_UsableKey, ...] = ()
        self._newest = b""
        self.previous: tuple[bytes, ...] = ()
        """The names of the keys before: a client hello that bears one needs a context that calls back."""
        self.calls_back = self._open_ssl is not None and self._open_ssl.takes_callback
        """Whether there can be such contexts."""
        if self._open_ssl is not None and self.calls_back:
            library = self._open_ssl.library
            self._cipher = library.EVP_aes_256_cbc()
            self._encrypt, self._decrypt = library.EVP_EncryptInit_ex, library.EVP_DecryptInit_ex
            self._set_mac, self._version = library.EVP_MAC_CTX_set_params, library.SSL_version
            self._callback = TicketKeyCallback(self._called)

    def use(self, secrets: Sequence[bytes], trust: bytes) -> None:
        """From now on: the first for new tickets, all for those that come back. Contexts are to be attached again."""
        derived = [DerivedKey.of(secret, trust) for secret in secrets]
        self._keys = tuple(_UsableKey(key) for key in derived)
        self._newest = b"".join((derived[0].name, derived[0].authentication, derived[0].encryption)) if derived else b""
        self.previous = tuple(key.name for key in derived[1:]) if self.calls_back else ()

    def attach(self, context: ssl.SSLContext, *, calls_back: bool) -> None:
        """Have `context` take its tickets' keys from here, if that is possible.

        Nothing is kept of sessions beside the tickets: a cache of each worker's own would rarely be asked.
        """
        if self._open_ssl is None:
            return
        pointer, library = context_pointer(context), self._open_ssl.library
        library.SSL_CTX_ctrl(pointer, _SET_CACHE_MODE, 0, None)
        if not self._newest:
            return
        if calls_back:
            _callbacks[id(self._callback)] = self._callback
            library.SSL_CTX_set_tlsext_ticket_key_evp_cb(pointer, self._callback)
        else:
            library.SSL_CTX_ctrl(pointer, _SET_TICKET_KEYS, len(self._newest), self._newest)

    def _called(self, session: int, name: int, iv: int, cipher: int, mac: int, encrypts: int) -> int:
        """Prepare OpenSSL to make a ticket, or to read one, whose key's `name` and `iv` stand in it."""
        try:
            if encrypts:
                key, vector = self._keys[0], os.urandom(_IV_SIZE)
                ctypes.memmove(name, key.name, NAME_SIZE)
                ctypes.memmove(iv, vector, _IV_SIZE)
                done = self._encrypt(cipher, self._cipher, None, key.encryption, vector)
                return USED if done == 1 and self._set_mac(mac, ctypes.addressof(key.mac)) == 1 else FAILED
            wanted = ctypes.string_at(name, NAME_SIZE)
            for key in self._keys:
                if hmac.compare_digest(key.name, wanted):
                    break
            else:
                return IGNORED
            done = self._decrypt(cipher, self._cipher, None, key.encryption, iv)
            if done != 1 or self._set_mac(mac, ctypes.addressof(key.mac)) != 1:
                return FAILED
            # A ticket of TLS 1.3 is for one use (RFC 8446, C.4): whoever comes with one gets another.
            renew = key is not self._keys[0] or self._version(session) == _TLS_1_3
            return USED_AND_RENEWED if renew else USED
        except BaseException:  # nothing may pass through OpenSSL
            return FAILED
