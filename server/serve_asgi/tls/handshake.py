"""One TLS handshake, done by OpenSSL in memory; then, of TLS 1.3, all that is needed to go on without it.

Bytes of the client go in with `receive`, the flights of the server come out with `take_outgoing`, until `outcome` says
how it ended: with the traffic secrets (`OwnRecords`), with a connection that stays OpenSSL's (TLS 1.2; TLS 1.3 where
the secrets cannot be known), or with a failure.

How the sequence numbers are known: the client's is 0, as OpenSSL reads nothing behind the record with its Finished, and
what it has not read is given on. The server's is the number of records that OpenSSL sent with the new secret: these are
the session tickets, the only bytes that come out of the step that ends the handshake, and their headers are counted.

The standard library's `ssl` was chosen over pyOpenSSL by measurement: of the server's side of a full handshake (P-256,
X25519, two tickets) it takes 376 µs of CPU time with OpenSSL 3.0 where pyOpenSSL 26.4 with OpenSSL 4.0 takes 504, of a
resumed one 310 to 334; and pyOpenSSL's OpenSSL is linked statically, so that nothing gives the tickets their keys. On
top of the 376 (338 with one ticket, 304 with none) come 150: 46 for the key log, most of which is OpenSSL 3.0 writing
hexadecimal digits one by one; 38 for the keys of our records (four HMACs, two AEADs); 19 for reading the ClientHello;
12 for what is asked of OpenSSL afterwards; 12 for finding the secrets. (Of 500 to 800 runs each on a busy machine, the
fastest; on a quiet one all are about a third less.) So a server in Rust, whose whole connection takes less than OpenSSL
3.0's handshake alone, cannot be reached in this way.
"""

from __future__ import annotations

import dataclasses
import functools
import ssl
import time
from typing import Final, Protocol

from serve_asgi.tls.alerts import FATAL, Alert, TlsFailure
from serve_asgi.tls.client_hello import ClientHello, ClientHelloReader
from serve_asgi.tls.key_log import KeyLog, secret_of
from serve_asgi.tls.moved_session import TLS_1_2, TLS_1_3, TlsInfo
from serve_asgi.tls.openssl_connection import OpenSslConnection
from serve_asgi.tls.record_protection import ALERT, APPLICATION_DATA, HEADER_SIZE, SUITES, RecordSealer

CLIENT_SECRET: Final = b"CLIENT_TRAFFIC_SECRET_0"
SERVER_SECRET: Final = b"SERVER_TRAFFIC_SECRET_0"
VERSIONS: Final = {"TLSv1.2": TLS_1_2, "TLSv1.3": TLS_1_3}
METHODS: Final = tuple(
    name + b" "
    for name in (b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"CONNECT", b"TRACE", b"PRI")
)
"""What plain HTTP begins with; PRI is HTTP/2 (RFC 9113 3.4)."""


class HandshakeContexts(Protocol):
    """What a handshake needs of the worker's contexts."""

    @property
    def key_log(self) -> KeyLog | None:
        """Where all contexts write their secrets; None: nowhere, and every connection stays OpenSSL's."""
        ...

    def for_handshake(self, client_hello: bytes | None = None, /) -> ssl.SSLContext:
        """The context for a new connection that has begun with this hello; b"" is one that cannot be read."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class OwnRecords:
    """A TLS 1.3 connection that needs OpenSSL no more."""

    suite: int
    client_secret: bytes = dataclasses.field(repr=False)
    server_secret: bytes = dataclasses.field(repr=False)
    write_sequence: int
    max_fragment: int
    unread: bytes
    """What the client has sent behind its handshake."""


Outcome = OwnRecords | OpenSslConnection | TlsFailure


class TlsHandshake:
    """The server's side of one handshake."""

    __slots__ = ("_connection", "_contexts", "_hello", "_outgoing", "_reader", "_server_secret", "info", "outcome")

    def __init__(self, contexts: HandshakeContexts) -> None:
        self._contexts = contexts
        self._reader = ClientHelloReader()
        self._hello: ClientHello | None = None
        self._connection: OpenSslConnection | None = None  # once the ClientHello is there
        self._server_secret: bytes | None = None
        self._outgoing = b""
        self.outcome: Outcome | None = None
        """None as long as the handshake goes on."""
        self.info: TlsInfo | None = None
        """What was negotiated, after a success."""

    def take_outgoing(self) -> bytes:
        """Flights and alerts to send."""
        outgoing, self._outgoing = self._outgoing, b""
        return outgoing

    def receive(self, data: bytes) -> None:
        """Bytes of the client. OpenSSL gets them as soon as the ClientHello is whole, or cannot become one."""
        connection = self._connection
        if connection is None:
            done, self._hello = self._reader.feed(data)
            if not done:
                return
            data = bytes(self._reader.records)
            if self._hello is None and self._is_http(data):
                return
            connection = self._connection = OpenSslConnection(
                self._contexts.for_handshake(b"" if self._hello is None else data)
            )
        connection.feed(data)
        key_log = self._contexts.key_log
        if key_log is None:
            ended, lines = connection.do_handshake(), b""
        else:
            with key_log.lock:
                ended = connection.do_handshake()
                lines = key_log.take()
        flight = connection.take_outgoing()
        self._outgoing += flight
        if lines and self._hello is not None and self._server_secret is None:
            self._server_secret = secret_of(lines, SERVER_SECRET, self._hello.random)
        if ended is True:
            self._succeed(connection, flight, lines)
        elif ended is not False:
            self.outcome = self._with_alert(ended, flight)

    def _is_http(self, data: bytes) -> bool:
        """Whether it is, or may become, a request in plain text."""
        if data.startswith(METHODS):
            self.outcome = TlsFailure("the client spoke HTTP without TLS", plain_http=True)
            return True
        return any(method.startswith(data) for method in METHODS)

    @staticmethod
    def _with_alert(failure: TlsFailure, flight: bytes) -> TlsFailure:
        """The failure, with the alert that OpenSSL has sent for it, if that can be read."""
        if failure.alert_received is None and len(flight) >= 7 and flight[-7:-2] in ALERT_HEADERS:
            return dataclasses.replace(failure, alert_sent=flight[-1])
        return failure

    def _succeed(self, connection: OpenSslConnection, flight: bytes, lines: bytes) -> None:
        hello = self._hello
        self.info = info = negotiated(connection.ssl_object, hello.server_name if hello is not None else None)
        client_secret = None if hello is None else secret_of(lines, CLIENT_SECRET, hello.random)
        if info.resumed and info.client_certificates and has_expired(info.client_certificates[0]):
            self._refuse_expired(info.cipher_suite, count_records(flight))
            return
        if hello is None or client_secret is None or self._server_secret is None or info.cipher_suite not in SUITES:
            connection.end_key_log()  # which nobody takes from here on: a pipe that is full would stop the worker
            self.outcome = connection
            return
        self.outcome = OwnRecords(
            info.cipher_suite,
            client_secret,
            self._server_secret,
            count_records(flight),
            hello.max_fragment,
            connection.take_unread(),
        )

    def _refuse_expired(self, cipher_suite: int, sequence: int) -> None:
        """OpenSSL resumes a session without looking at it, and gives its next ticket: it could go on for ever."""
        alert = None
        if self._server_secret is not None and cipher_suite in SUITES:
            alert = Alert.CERTIFICATE_EXPIRED
            sealer = RecordSealer(SUITES[cipher_suite], self._server_secret, sequence)
            self._outgoing += sealer.seal_one(bytes((FATAL, alert)), ALERT)
        self.outcome = TlsFailure("the client's certificate has expired since its session began", alert_sent=alert)


ALERT_HEADERS: Final = tuple(b"\x15\x03" + bytes((minor,)) + b"\0\x02" for minor in range(1, 4))


def count_records(flight: bytes) -> int:
    """How many protected records there are in what OpenSSL wants to have sent."""
    count = at = 0
    while at < len(flight):
        count += flight[at] == APPLICATION_DATA
        at += HEADER_SIZE + int.from_bytes(flight[at + 3 : at + 5])
    return count


@functools.cache
def cipher_number(name: str) -> int:
    """The number of a cipher suite that OpenSSL has named."""
    for number, suite in SUITES.items():
        if suite.name == name:
            return number
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_ciphers("ALL:@SECLEVEL=0")
    return next((cipher["id"] & 0xFFFF for cipher in context.get_ciphers() if cipher["name"] == name), 0)


def negotiated(ssl_object: ssl.SSLObject, server_name: str | None) -> TlsInfo:
    """What a handshake that is over has come to."""
    cipher = ssl_object.cipher()
    name = cipher[0] if cipher is not None else ""
    certificates: tuple[str, ...] = ()
    client_name = None
    leaf = ssl_object.getpeercert(True)
    if leaf:
        certificates = tuple(map(ssl.DER_cert_to_PEM_cert, verified_chain(ssl_object) or [leaf]))
        client_name = subject(leaf)
    return TlsInfo(
        version=VERSIONS.get(ssl_object.version() or "", 0),
        cipher_suite=cipher_number(name),
        cipher_name=name,
        server_name=server_name,
        alpn=ssl_object.selected_alpn_protocol(),
        client_certificates=certificates,
        client_name=client_name,
        server_certificate=getattr(ssl_object.context, "certificate", None),
        resumed=bool(ssl_object.session_reused),
    )


def verified_chain(ssl_object: ssl.SSLObject) -> list[bytes]:
    """The client's chain in DER, its own certificate first; nothing after a resumption.

    Before Python 3.13 the method is there, under a private name (gh-109109).
    """
    if hasattr(ssl_object, "get_verified_chain"):
        return list(ssl_object.get_verified_chain())
    chain = ssl_object._sslobj.get_verified_chain()  # type: ignore[attr-defined]
    return [ssl.PEM_cert_to_DER_cert(each.public_bytes()) for each in chain or ()]


def subject(certificate: bytes) -> str | None:
    """The subject of a certificate in DER by RFC 4514; None if it cannot be read."""
    from cryptography import x509

    try:
        return x509.load_der_x509_certificate(certificate).subject.rfc4514_string()
    except (ValueError, x509.InvalidVersion):
        return None


def has_expired(certificate: str) -> bool:
    """Whether a certificate in PEM, which was valid once, is no longer."""
    from cryptography import x509

    return x509.load_pem_x509_certificate(certificate.encode()).not_valid_after_utc.timestamp() < time.time()
