"""The OpenSSL that `_ssl` has loaded, reached through ctypes for what the standard library does not offer.

That is the keys of session tickets (`tickets.py`), the order of the cipher suites of TLS 1.3, a protocol that depends
on the cipher suite (`alpn.py`), and the names of the authorities whose certificates clients are asked for. Where the
library cannot be reached, because it is part of the interpreter or because this interpreter is not known well enough,
whoever asks gets a sentence that says so, and does without.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import ssl
import sys
from typing import Any, Final

_LAYOUT_KNOWN: Final = (3, 15)
"""Before this version of CPython the pointer to OpenSSL's context is the first member of `ssl.SSLContext`."""

TicketKeyCallback = ctypes.CFUNCTYPE(
    ctypes.c_int, *(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int)
)
"""What OpenSSL 3 calls for a ticket (SSL_CTX_set_tlsext_ticket_key_evp_cb(3))."""

AlpnCallback = ctypes.CFUNCTYPE(
    ctypes.c_int, *(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_void_p)
)
"""What OpenSSL calls to choose a protocol (SSL_CTX_set_alpn_select_cb(3))."""


@dataclasses.dataclass(frozen=True, slots=True)
class OpenSslLibrary:
    """The library, whose functions know their arguments."""

    library: Any
    takes_callback: bool
    """OpenSSL 3."""


@functools.cache
def find_openssl() -> OpenSslLibrary | str:
    """The library, or why it cannot be reached."""
    if sys.implementation.name != "cpython" or sys.version_info[:2] >= _LAYOUT_KNOWN:
        return "this interpreter is not known well enough to reach OpenSSL's contexts"
    import _ssl

    pointer, number, text = ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p
    try:
        # The symbols of what _ssl was linked with; where it is part of the interpreter, the interpreter's own.
        library = ctypes.CDLL(getattr(_ssl, "__file__", None))
        library.OpenSSL_version.restype = text
        version = library.OpenSSL_version(0).decode()
        if version != ssl.OPENSSL_VERSION:
            return f"another OpenSSL answers ({version}) than the one that Python uses ({ssl.OPENSSL_VERSION})"
        library.SSL_CTX_ctrl.argtypes = (pointer, number, ctypes.c_long, pointer)
        library.SSL_CTX_ctrl.restype = ctypes.c_long
        library.SSL_CTX_set_ciphersuites.argtypes = (pointer, text)
        library.SSL_load_client_CA_file.argtypes, library.SSL_load_client_CA_file.restype = (text,), pointer
        library.SSL_CTX_set_client_CA_list.argtypes = (pointer, pointer)
        library.SSL_CTX_set_client_CA_list.restype = None
        library.SSL_CTX_set_alpn_select_cb.argtypes = (pointer, AlpnCallback, pointer)
        library.SSL_CTX_set_alpn_select_cb.restype = None
        library.SSL_get_pending_cipher.argtypes, library.SSL_get_pending_cipher.restype = (pointer,), pointer
        library.SSL_CIPHER_get_protocol_id.argtypes = (pointer,)
        library.SSL_CIPHER_get_protocol_id.restype = ctypes.c_uint16
        library.SSL_version.argtypes, library.SSL_version.restype = (pointer,), number
        takes_callback = ssl.OPENSSL_VERSION_INFO[0] >= 3
        if takes_callback:
            library.SSL_CTX_set_tlsext_ticket_key_evp_cb.argtypes = (pointer, TicketKeyCallback)
            library.EVP_EncryptInit_ex.argtypes = (pointer, pointer, pointer, text, text)
            library.EVP_DecryptInit_ex.argtypes = (pointer, pointer, pointer, text, pointer)
            library.EVP_MAC_CTX_set_params.argtypes = (pointer, pointer)
            library.EVP_aes_256_cbc.restype = pointer
    except (OSError, AttributeError):
        return "Python is linked with OpenSSL in a way that hides it, as when it is built in"
    return OpenSslLibrary(library, takes_callback)


def context_pointer(context: ssl.SSLContext) -> int:
    """OpenSSL's SSL_CTX of a context: the first member behind the object's head."""
    found = ctypes.c_void_p.from_address(id(context) + object.__basicsize__).value
    assert found is not None
    return found


def set_tls_1_3_suites(context: ssl.SSLContext, names: str) -> bool:
    """Have `context` know these cipher suites of TLS 1.3 alone, joined by colons, in this order.

    Whether that was possible; Python before 3.15 has no way of its own. Those of TLS 1.2 stay as they are.
    """
    found = find_openssl()
    if isinstance(found, str):
        return False
    return bool(found.library.SSL_CTX_set_ciphersuites(context_pointer(context), names.encode()) == 1)


def name_client_authorities(context: ssl.SSLContext, path: str) -> bool:
    """Have clients told the subjects of the certificates in this file (PEM), when they are asked for one of theirs.

    A client with several certificates chooses by them (RFC 8446 4.2.4). Whether that was possible: without it, none is
    named, and a client chooses among all that it has. `load_verify_locations` says nothing of this to OpenSSL.
    """
    found = find_openssl()
    if isinstance(found, str):
        return False
    names = found.library.SSL_load_client_CA_file(path.encode())
    if names is None:
        return False
    found.library.SSL_CTX_set_client_CA_list(context_pointer(context), names)  # which owns them from here on
    return True
