"""A TLS connection that OpenSSL speaks, over two buffers in memory: bytes in, bytes out.

All handshakes are OpenSSL's, and TLS 1.2 stays with it to the end. This module turns its exceptions into values: what
was read, and a `TlsFailure` with a sentence for people. It knows nothing of sockets, nor of what is read.
"""

from __future__ import annotations

import contextlib
import functools
import re
import ssl
from typing import Final

from serve_asgi.tls.alerts import Alert, TlsFailure, received

READ_SIZE: Final = 1 << 14
"""A record: OpenSSL never gives more at once."""

REASONS: Final = {
    "NO_SHARED_CIPHER": "the client and this server have no cipher suite in common",
    "NO_SUITABLE_SIGNATURE_ALGORITHM": "the client accepts no signature that the certificate's key can make",
    "NO_SUITABLE_KEY_SHARE": "the client and this server have no key exchange in common",
    "UNSUPPORTED_PROTOCOL": "the client speaks no version of TLS that is allowed here (--tls-min-version)",
    "VERSION_TOO_LOW": "the client speaks no version of TLS that is allowed here (--tls-min-version)",
    "WRONG_VERSION_NUMBER": "what the client sent is not TLS",
    "HTTP_REQUEST": "the client spoke HTTP without TLS",
    "HTTPS_PROXY_REQUEST": "the client took this server for a proxy",
    "UNKNOWN_PROTOCOL": "what the client sent is not TLS",
    "RECORD_LAYER_FAILURE": "what the client sent is not TLS",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "the client has no certificate, and one is required (--tls-client-auth)",
    "INAPPROPRIATE_FALLBACK": "the client fell back to an older version of TLS than both sides know",
    "DECRYPTION_FAILED_OR_BAD_RECORD_MAC": "a record of the client is not authentic",
    "NO_RENEGOTIATION": "the client wanted to renegotiate, which this server does not do",
}
"""OpenSSL's reasons that have a better sentence than their name."""
RECEIVED: Final = re.compile(r"(?:SSLV3|TLSV1|TLSV13)_ALERT_(\w+)")
"""OpenSSL's reasons that say that the client has sent an alert."""
OTHER_NAMES: Final = {"NO_CERTIFICATE": 41, "EXPORT_RESTRICTION": 60, "UNKNOWN_PSK_IDENTITY": 115}


class OpenSslConnection:
    """The server's side of one connection."""

    __slots__ = ("_incoming", "_outgoing", "peer_closed", "ssl_object")

    def __init__(self, context: ssl.SSLContext) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self.ssl_object = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self.peer_closed = False

    def feed(self, data: bytes) -> None:
        """Bytes that have come."""
        self._incoming.write(data)

    def do_handshake(self) -> bool | TlsFailure:
        """Go as far as the bytes that have come allow: True if the handshake is over."""
        try:
            self.ssl_object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError as error:
            return self._failure(error)
        return True

    def end_key_log(self) -> None:
        """Write no more secrets: each KeyUpdate of the client, of which there may be any number, would write one."""
        self.ssl_object.context = without_key_log()

    def take_unread(self) -> bytes:
        """What has come and OpenSSL has not touched: it reads a record at a time, and nothing behind the last one.

        That is SSL_CTX_set_read_ahead(3), which is off by default and which the standard library cannot turn on.
        """
        return self._incoming.read()

    def take_outgoing(self) -> bytes:
        """What OpenSSL wants to have sent."""
        return self._outgoing.read()

    def read(self) -> tuple[bytes, TlsFailure | None]:
        """The content that can be read now, and why the connection has ended, if it has."""
        pieces = []
        failure = None
        ssl_object, incoming = self.ssl_object, self._incoming
        try:
            while piece := ssl_object.read(READ_SIZE):
                pieces.append(piece)
                if not incoming.pending and not ssl_object.pending():
                    break  # as the exception that would say so takes as long as a short record
            else:
                self.peer_closed = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.peer_closed = True
        except ssl.SSLError as error:
            failure = self._failure(error)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces), failure

    def write(self, data: bytes | bytearray | memoryview) -> bytes:
        """The records for this content; memory takes all of it at once. Raises ssl.SSLError after a failure."""
        if data:
            self.ssl_object.write(data)
        return self._outgoing.read()

    def close_notify(self) -> bytes:
        """Our close_notify; content may come in nevertheless until the client's own."""
        with contextlib.suppress(ssl.SSLError):  # which says that the client's close_notify is awaited
            self.ssl_object.unwrap()
        return self._outgoing.read()

    def _failure(self, error: ssl.SSLError) -> TlsFailure:
        reason = error.reason or ""
        if found := RECEIVED.fullmatch(reason):
            name = found[1]
            number = OTHER_NAMES.get(name)
            if number is None and name in Alert.__members__:
                number = Alert[name]
            if number is not None:
                return received(number)
        if isinstance(error, ssl.SSLCertVerificationError):
            sentence = f"the client's certificate is not valid: {error.verify_message}"
        elif reason in REASONS:
            sentence = REASONS[reason]
        elif reason:
            sentence = f"OpenSSL ended the connection: {reason.lower().replace('_', ' ')}"
        else:
            sentence = f"OpenSSL ended the connection: {error}"
        return TlsFailure(sentence)


@functools.cache
def without_key_log() -> ssl.SSLContext:
    """For connections whose handshake is over: of their context nothing else is asked any more."""
    return ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
