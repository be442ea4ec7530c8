"""A TLS server and its clients in memory: OpenSSL's client through `ssl`, and our own records as a client's side."""

from __future__ import annotations

import contextlib
import datetime
import functools
import ssl
import tempfile
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from serve_asgi.tls.key_log import KeyLog
from serve_asgi.tls.moved_session import MovedSession
from serve_asgi.tls.record_protection import SUITES, RecordOpener, RecordSealer
from serve_asgi.tls.session import TlsSession, TlsState

SUITE_NUMBERS = tuple(SUITES)


class Authority:
    """A certificate authority, and what it has issued, as files of PEM."""

    def __init__(self, name: str = "an authority") -> None:
        self._directory = tempfile.TemporaryDirectory()
        self.directory = Path(self._directory.name)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.certificate = self._issue(self._name, self._key, True)
        self.path = self.directory / "ca.pem"
        self.path.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))

    def _issue(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, ca: bool, days: int = 30) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=60))
            .not_valid_after(now + datetime.timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), True)
        )
        if not ca:
            builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), False)
        return builder.sign(self._key, hashes.SHA256())

    def issue(self, *names: str, days: int = 30) -> Path:
        """A certificate and its key in one file; `names` as CN, O."""
        key = ec.generate_private_key(ec.SECP256R1())
        kinds = (NameOID.COMMON_NAME, NameOID.ORGANIZATION_NAME)
        subject = x509.Name([x509.NameAttribute(kind, name) for kind, name in zip(kinds, names, strict=False)])
        path = self.directory / f"{names[0]}.pem"
        path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            + self._issue(subject, key, False, days).public_bytes(serialization.Encoding.PEM)
        )
        return path


@functools.cache
def authority() -> Authority:
    """One for all tests of a process."""
    return Authority()


class Contexts:
    """The contexts of a worker, as far as a handshake is concerned."""

    def __init__(self, key_log: bool = True) -> None:
        self.context = context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(authority().issue("localhost"))
        context.set_alpn_protocols(["http/1.1"])
        context.options |= ssl.OP_NO_RENEGOTIATION
        self.key_log = KeyLog() if key_log else None
        if self.key_log is not None:
            self.key_log.attach(context)

    def for_handshake(self, client_hello: bytes | None = None, /) -> ssl.SSLContext:
        return self.context


class Client:
    """OpenSSL's client."""

    def __init__(self, context: ssl.SSLContext | None = None, session: ssl.SSLSession | None = None) -> None:
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.object = (context or client_context()).wrap_bio(
            self.incoming, self.outgoing, server_hostname="localhost", session=session
        )

    def step(self) -> bool:
        """Whether the handshake is over."""
        try:
            self.object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def read(self) -> bytes:
        """All that can be read; b"" at the end as well."""
        found = b""
        try:
            while piece := self.object.read(1 << 17):
                found += piece
        except ssl.SSLWantReadError:
            pass
        return found

    def receive(self, data: bytes) -> bytes:
        self.incoming.write(data)
        return self.read()

    def send(self, data: bytes) -> bytes:
        self.object.write(data)
        return self.outgoing.read()

    def close(self) -> bytes:
        """Its close_notify."""
        with contextlib.suppress(ssl.SSLWantReadError):
            self.object.unwrap()
        return self.outgoing.read()


def client_context(maximum: ssl.TLSVersion = ssl.TLSVersion.MAXIMUM_SUPPORTED) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(authority().path)
    context.maximum_version = maximum
    context.set_alpn_protocols(["http/1.1"])
    return context


def shake_hands(session: TlsSession, client: Client, then: bytes = b"", piece: int = 0) -> bytes:
    """Do the whole handshake; `then` is sent by the client with its last flight. Returns what the server could read.

    With `piece`, all bytes of the client come in pieces of this size.
    """
    got = b""
    over = False
    while not over or session.state is TlsState.HANDSHAKING:
        over = over or client.step()
        flight = client.outgoing.read()
        if over and then:
            flight, then = flight + client.send(then), b""
        step = piece or len(flight) or 1
        for start in range(0, len(flight), step):
            got += session.receive(flight[start : start + step])
        client.incoming.write(session.take_outgoing())
        if session.state in (TlsState.FAILED, TlsState.CLOSED):
            break
    if session.state is TlsState.OPEN:
        client.read()  # the tickets
    return got


class OwnClient:
    """A client made of our own records, with the secrets of a real connection: it can do what OpenSSL's cannot."""

    def __init__(self, moved: MovedSession) -> None:
        suite = SUITES[moved.suite]
        self.sealer = RecordSealer(suite, moved.read_secret, moved.read_sequence)
        self.opener = RecordOpener(suite, moved.write_secret, moved.write_sequence)

    def record(self, content: bytes, kind: int = 23, padding: int = 0) -> bytes:
        """One protected record of any kind."""
        return self.sealer.seal_one(content, kind, padding)

    def open(self, data: bytes) -> list[tuple[int, bytes]]:
        """Type and content of what the server has sent, whose KeyUpdates are followed."""
        self.opener.feed(data)
        found = []
        while (record := self.opener.open_next()) is not None:
            found.append(record)
            if record[0] == 22 and record[1][0] == 24:
                self.opener.next_generation()
        return found


def open_session(contexts: Contexts) -> tuple[TlsSession, OwnClient]:
    """A connection after its handshake, whose client goes on with our own records."""
    session = TlsSession(contexts)
    shake_hands(session, Client())
    client = OwnClient(session.move())
    session.unmove()
    return session, client
