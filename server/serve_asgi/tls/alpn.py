"""Which protocol is spoken over a TLS connection: what ALPN (RFC 7301) offers, in the server's order, and to whom.

HTTP/2 comes first where it is on. RFC 9113 (9.2.2) forbids it with cipher suites of TLS 1.2 that have no forward
secrecy or no authenticated encryption: clients end such a connection (INADEQUATE_SECURITY). The server's own choice of
suites has none of these; where --tls-ciphers lets some in, the protocol is chosen by the suite that was negotiated, and
whoever gets one of these speaks HTTP/1.1. The standard library cannot do that, so OpenSSL is asked through ctypes;
where that is not possible, a server with such suites offers no HTTP/2.

A client that offers only protocols that are not known here gets none, and HTTP/1.1 is spoken, as with one that has no
ALPN: so OpenSSL and most servers have done it for a decade, and some probes rely on it (RFC 7301, 3.2, wants an alert).
"""

from __future__ import annotations

import ctypes
import functools
import ssl
from collections.abc import Iterator, Sequence
from typing import Any, Final

from serve_asgi.tls.openssl_library import AlpnCallback, context_pointer, find_openssl

HTTP_2: Final = "h2"
_EPHEMERAL: Final = frozenset({"kx-ecdhe", "kx-dhe", "kx-any"})
"""Key exchanges with forward secrecy, as Python names them; "any" is TLS 1.3."""
_OK: Final = 0  # SSL_TLSEXT_ERR_OK
_NONE: Final = 3  # SSL_TLSEXT_ERR_NOACK: no protocol is named
_TLS_1_3: Final = 0x0304


def offer(context: ssl.SSLContext, protocols: Sequence[str]) -> None:
    """Have `context`, whose cipher suites are set, offer these protocols, the preferred one first."""
    if HTTP_2 in protocols and (forbidden := suites_without_http2(context)):
        if select_by_suite(context, tuple(protocols), forbidden):
            return
        protocols = [protocol for protocol in protocols if protocol != HTTP_2]
    if protocols:
        context.set_alpn_protocols(list(protocols))


def suites_without_http2(context: ssl.SSLContext) -> frozenset[int]:
    """The numbers of the cipher suites that the context knows and that are none for HTTP/2 (RFC 9113, Appendix A)."""
    return frozenset(
        cipher["id"] & 0xFFFF
        for cipher in context.get_ciphers()
        if not (cipher["aead"] and cipher["kea"] in _EPHEMERAL and cipher["auth"] != "auth-null")
    )


def select_by_suite(context: ssl.SSLContext, protocols: tuple[str, ...], forbidden: frozenset[int]) -> bool:
    """Offer HTTP/2 only to those with whom none of the `forbidden` suites was negotiated. Whether that is possible."""
    found = find_openssl()
    if isinstance(found, str):
        return False
    found.library.SSL_CTX_set_alpn_select_cb(context_pointer(context), _selector(protocols, forbidden), None)
    return True


@functools.cache  # for good: a context may outlive whoever has made it
def _selector(protocols: tuple[str, ...], forbidden: frozenset[int]) -> Any:
    """What OpenSSL calls once the cipher suite is chosen (SSL_CTX_set_alpn_select_cb(3))."""
    found = find_openssl()
    assert not isinstance(found, str)
    library = found.library
    names = [(protocol.encode(), ctypes.create_string_buffer(protocol.encode())) for protocol in protocols]

    def select(session: int, name: int, length: int, offered: int, size: int, _: int | None) -> int:
        try:
            of_client = set(_names(ctypes.string_at(offered, size)))
            suite = library.SSL_CIPHER_get_protocol_id(library.SSL_get_pending_cipher(session))
            inadequate = library.SSL_version(session) < _TLS_1_3 and suite in forbidden
            for protocol, text in names:
                if protocol in of_client and not (inadequate and protocol == HTTP_2.encode()):
                    ctypes.c_void_p.from_address(name).value = ctypes.addressof(text)
                    ctypes.c_ubyte.from_address(length).value = len(protocol)
                    return _OK
        except BaseException:  # nothing may pass through OpenSSL
            return _NONE
        return _NONE

    return AlpnCallback(select)


def _names(offered: bytes) -> Iterator[bytes]:
    """The client's list (RFC 7301, 3.1), which OpenSSL has checked."""
    while offered:
        end = 1 + offered[0]
        yield offered[1:end]
        offered = offered[end:]
