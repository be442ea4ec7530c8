"""TLS as the load test speaks it: the certificate of a run's server, and the client's side of a connection.

The client does TLS on memory BIOs, in front of the same `Connection` that plain connections have, and not by the
event loop's own TLS, since that hides what has to be told apart here: an end that was announced by close_notify, an
end of TCP without it (a truncation: RFC 8446 6.1), and an alert. Half of the connections offer a session ticket of an
earlier one, whoever gave it, so that resumption over workers and generations is seen as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime
import ipaddress
import ssl
from collections import deque
from pathlib import Path
from random import Random
from typing import Any, Final, Protocol, cast

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

NAME: Final = "localhost"
VERSIONS: Final = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
LARGEST_READ: Final = 1 << 18
TICKETS: Final = 64
"""How many sessions are remembered, the latest ones."""


@dataclasses.dataclass(frozen=True, slots=True)
class Certificate:
    """Where a server finds its certificate and its key, PEM both."""

    path: Path
    key: Path


def make_certificate(directory: Path, common_name: str = NAME, stem: str = "") -> Certificate:
    """A self-signed certificate for localhost and 127.0.0.1 with a P-256 key (PKCS #8), good for a week.

    `stem` begins the names of its files.
    """
    made = Certificate(directory / f"{stem}certificate.pem", directory / f"{stem}key.pem")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName(NAME), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=7))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    made.path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    made.key.touch(mode=0o600)
    made.key.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return made


def renew(certificate: Certificate, number: int) -> Certificate:
    """Put another certificate in its place as certbot does: new files, to which the links then point.

    `number` tells it from those before; it has a name of its own, so that a client that trusts several finds it.
    """
    made = make_certificate(certificate.path.parent, f"{NAME} {number}", f"{number}-")
    for place, file in ((certificate.path, made.path), (certificate.key, made.key)):
        link = place.with_suffix(".new")
        link.symlink_to(file.name)
        link.replace(place)
    return made


def trusting(certificate: Certificate) -> ssl.SSLContext:
    """A client's context that trusts this certificate alone."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(certificate.path)
    return context


class Receiver(Protocol):
    """What gets the plaintext: an asyncio protocol that also hears of the ends that only TLS has."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None: ...
    def data_received(self, data: bytes) -> None: ...
    def eof_received(self) -> bool | None: ...
    def connection_lost(self, exc: Exception | None) -> None: ...
    def truncated(self) -> None:
        """TCP has ended, and no close_notify came."""

    def alerted(self, reason: str) -> None:
        """The server has sent an alert, or records that are wrong."""


class ClientTls:
    """What the clients of one run share: the context, the tickets, the counts."""

    def __init__(self, certificate: Certificate, version: str, seed: int = 1, protocol: str = "http/1.1") -> None:
        """`version` is one of VERSIONS, and the only one that is offered, as is `protocol` by ALPN (RFC 7301)."""
        self.version = version
        self.context = trusting(certificate)
        self.context.minimum_version = self.context.maximum_version = VERSIONS[version]
        self.context.set_alpn_protocols([protocol])
        self.handshakes = 0
        self.offered = 0
        """Handshakes that offered a ticket."""
        self.resumed = 0
        """Those whose ticket was accepted."""
        self.renewals = 0
        """Certificates that the server has said to have taken up in place of the one before."""
        self.shown_new = 0
        """Handshakes without a ticket, begun after the first renewal, in which the newest certificate was shown."""
        self.shown_old = 0
        """Those in which an older one was shown."""
        self._certificates: dict[bytes, int] = {}  # DER: which renewal it came with
        self._random = Random(seed)
        self._sessions: deque[ssl.SSLSession] = deque(maxlen=TICKETS)

    def trust(self, certificate: Certificate) -> None:
        """The server is about to be given this one; from the next `renewed` on it is the newest."""
        pem = certificate.path.read_text()
        self.context.load_verify_locations(cadata=pem)
        self._certificates[ssl.PEM_cert_to_DER_cert(pem)] = self.renewals + 1

    def renewed(self) -> None:
        """The server says that it shows the one that was trusted last."""
        self.renewals += 1

    def count(self, tls: ssl.SSLObject, offered: bool, renewals: int) -> None:
        """A handshake has succeeded that began after so many renewals."""
        self.handshakes += 1
        if offered and tls.session_reused:
            self.resumed += 1
        elif renewals:
            shown = self._certificates.get(tls.getpeercert(True) or b"", 0)
            self.shown_new += shown >= renewals
            self.shown_old += shown < renewals

    def session(self) -> ssl.SSLSession | None:
        """A session to offer on a new connection, once; none for half of them."""
        if not self._sessions or self._random.random() < 0.5:
            return None
        self.offered += 1
        return self._sessions.popleft()

    def keep(self, session: ssl.SSLSession | None) -> None:
        """Remember what a connection has been given."""
        if session is not None and session.has_ticket:
            self._sessions.append(session)


class TlsClient(asyncio.Protocol, asyncio.Transport):
    """TLS between a TCP connection and its `receiver`, for which this is the transport."""

    def __init__(self, receiver: Receiver, shared: ClientTls) -> None:
        asyncio.Transport.__init__(self)
        self._receiver = receiver
        self._shared = shared
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._session = shared.session()
        self._renewals = shared.renewals
        self._tls = shared.context.wrap_bio(self._incoming, self._outgoing, server_hostname=NAME, session=self._session)
        self._tcp: asyncio.Transport
        self._open = False
        self._ended = False  # the receiver knows that nothing more comes
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done after the handshake; raises OSError, with the reason, if it fails."""

    # what the receiver does

    def write(self, data: Any) -> None:
        """Encrypt and send."""
        if data and not self._ended:
            self._tls.write(data)
            self._flush()

    def close(self) -> None:
        """Send close_notify, then close. What comes afterwards is not looked at."""
        if self._open and not self._tcp.is_closing():
            with contextlib.suppress(ssl.SSLError):  # the server's close_notify is not waited for
                self._tls.unwrap()
            self._flush()
        self._tcp.close()

    def abort(self) -> None:
        """Reset."""
        self._tcp.abort()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """`ssl_object`, as asyncio's own TLS names it; else of TCP."""
        return self._tls if name == "ssl_object" else self._tcp.get_extra_info(name, default)

    def pause_reading(self) -> None:
        """Let TCP fill up."""
        self._tcp.pause_reading()

    def resume_reading(self) -> None:
        """Read on."""
        self._tcp.resume_reading()

    def is_closing(self) -> bool:
        """Whether it ends."""
        return self._tcp.is_closing()

    # what the loop does

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._tcp = cast(asyncio.Transport, transport)
        self._shake_hands()

    def data_received(self, data: bytes) -> None:
        if self._ended:
            return
        self._incoming.write(data)
        if not self._open and not self._shake_hands():
            return
        try:
            while not self._ended:
                plaintext = self._tls.read(LARGEST_READ)
                if not plaintext:
                    raise ssl.SSLZeroReturnError
                self._receiver.data_received(plaintext)
        except ssl.SSLWantReadError:
            self._flush()  # what OpenSSL answers by itself, such as a KeyUpdate
        except ssl.SSLZeroReturnError:
            self._end()
            self._receiver.eof_received()
            self.close()
        except ssl.SSLError as error:
            self._end()
            self._receiver.alerted(reason(error))
            self._tcp.close()

    def eof_received(self) -> bool:
        if not self._open:
            self._failed("the server has closed the connection")
        elif not self._ended:
            self._end()
            self._receiver.truncated()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._open:
            self._failed(f"the connection was lost: {exc!r}")
            return
        self._end()
        self._receiver.connection_lost(exc)

    def _shake_hands(self) -> bool:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            return False
        except ssl.SSLError as error:
            self._flush()
            self._failed(reason(error))
            self._tcp.close()
            return False
        self._flush()
        self._open = True
        self._shared.count(self._tls, self._session is not None, self._renewals)
        self._receiver.connection_made(self)
        if not self.ready.done():
            self.ready.set_result(None)
        return True

    def _failed(self, why: str) -> None:
        if not self.ready.done():
            self.ready.set_exception(OSError(why))

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            self._shared.keep(self._tls.session)

    def _flush(self) -> None:
        if self._outgoing.pending:
            self._tcp.write(self._outgoing.read())


def reason(error: ssl.SSLError) -> str:
    """What OpenSSL says, without where in its source."""
    return error.reason or str(error)


async def connect(host: str, port: int, receiver: Receiver, shared: ClientTls) -> None:
    """Connect and shake hands. Raises ConnectionRefusedError, and OSError with the reason for all other failures."""
    loop = asyncio.get_running_loop()
    tcp, client = await loop.create_connection(lambda: TlsClient(receiver, shared), host, port)
    try:
        await client.ready
    except BaseException:
        tcp.abort()
        raise
