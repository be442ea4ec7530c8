"""Certificates for tests, made when they are asked for: an authority, what it signs for servers and clients, CRLs.

What is made passes a strict verification (RFC 5280: key identifiers, key usage), as `ssl.create_default_context` wants
it from Python 3.13 on.

    authority = Authority()
    pair = authority.server("localhost", "127.0.0.1")
    cert, key = pair.write(tmp_path)
    trusting = authority.client_context()
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import ipaddress
import itertools
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal, TypeAlias

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

Kind: TypeAlias = Literal["ec", "rsa", "ed25519"]
Key: TypeAlias = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey
DAY: Final = datetime.timedelta(days=1)
_numbers = itertools.count()


@functools.cache
def _rsa_key(number: int) -> rsa.RSAPrivateKey:
    """One of a few RSA keys: making one takes a tenth of a second and more."""
    del number
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def make_key(kind: Kind = "ec") -> Key:
    """A private key; of RSA, every fourth is the same one."""
    if kind == "rsa":
        return _rsa_key(next(_numbers) % 4)
    return ec.generate_private_key(ec.SECP256R1()) if kind == "ec" else ed25519.Ed25519PrivateKey.generate()


def key_pem(key: Key, password: str = "") -> bytes:
    """The key as PKCS #8, encrypted if there is a password."""
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if password:
        encryption = serialization.BestAvailableEncryption(password.encode())
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


def pem(certificate: x509.Certificate) -> bytes:
    """One certificate."""
    return certificate.public_bytes(serialization.Encoding.PEM)


@dataclasses.dataclass(frozen=True)
class Pair:
    """A certificate, the private key that fits it, and the intermediate certificates, the nearest first."""

    certificate: x509.Certificate
    key: Key
    chain: tuple[x509.Certificate, ...] = ()

    @property
    def certificate_pem(self) -> bytes:
        """The certificate and its chain in the order in which they are sent."""
        return b"".join(pem(each) for each in (self.certificate, *self.chain))

    def key_pem(self, password: str = "") -> bytes:
        """The private key, encrypted if there is a password."""
        return key_pem(self.key, password)

    def write(self, directory: Path, name: str = "server", password: str = "") -> tuple[Path, Path]:
        """Write both; return the paths of the certificates and of the key, which its owner alone can read."""
        certificate, key = directory / f"{name}.pem", directory / f"{name}.key"
        certificate.write_bytes(self.certificate_pem)
        key.touch(mode=0o600)
        key.write_bytes(self.key_pem(password))
        return certificate, key


class Authority:
    """A certificate authority: a root, or an intermediate one that another has signed."""

    def __init__(self, name: str = "Test root", *, parent: Authority | None = None, kind: Kind = "ec") -> None:
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.key = make_key(kind)
        self.parent = parent
        signer = parent or self
        self.certificate = _signed(
            _begun(self.name, self.key, signer, -DAY, 3650 * DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(_usage(authority=True), critical=True),
            signer.key,
        )

    @property
    def pem(self) -> bytes:
        """Its own certificate."""
        return pem(self.certificate)

    @property
    def chain(self) -> tuple[x509.Certificate, ...]:
        """What is sent beside a certificate that it has signed: the intermediate ones, without the root."""
        return () if self.parent is None else (self.certificate, *self.parent.chain)

    def server(
        self,
        *names: str,
        common_name: str | None = None,
        kind: Kind = "ec",
        key: Key | None = None,
        begins: datetime.timedelta = -DAY,
        ends: datetime.timedelta = 90 * DAY,
    ) -> Pair:
        """A certificate for `names`: DNS names, also with *, and IP addresses; without them it has no SAN.

        `begins` and `ends` are counted from now: `ends=-DAY / 2` has expired. `common_name` is the first name unless
        another is given.
        """
        subject = names[0] if common_name is None and names else common_name or ""
        return self._leaf(subject, [_name(name) for name in names], key or make_key(kind), begins, ends, client=False)

    def client(
        self, name: str = "client", *, kind: Kind = "ec", ends: datetime.timedelta = 90 * DAY, organization: str = ""
    ) -> Pair:
        """A certificate for a client."""
        return self._leaf(name, [], make_key(kind), -DAY, ends, client=True, organization=organization)

    def _leaf(
        self,
        common_name: str,
        names: Sequence[x509.GeneralName],
        key: Key,
        begins: datetime.timedelta,
        ends: datetime.timedelta,
        *,
        client: bool,
        organization: str = "",
    ) -> Pair:
        parts = [(NameOID.ORGANIZATION_NAME, organization), (NameOID.COMMON_NAME, common_name)]
        subject = x509.Name([x509.NameAttribute(oid, text) for oid, text in parts if text])
        purpose = ExtendedKeyUsageOID.CLIENT_AUTH if client else ExtendedKeyUsageOID.SERVER_AUTH
        builder = (
            _begun(subject, key, self, begins, ends)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return Pair(_signed(builder, self.key), key, self.chain)

    def crl(self, *revoked: x509.Certificate, ends: datetime.timedelta = 30 * DAY) -> bytes:
        """A certificate revocation list, PEM."""
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.name)
            .last_update(now - DAY)
            .next_update(now + ends)
            .add_extension(x509.CRLNumber(next(_numbers) + 1), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
        )
        for each in revoked:
            one = x509.RevokedCertificateBuilder().serial_number(each.serial_number).revocation_date(now - DAY / 2)
            builder = builder.add_revoked_certificate(one.build())
        return builder.sign(self.key, _digest(self.key)).public_bytes(serialization.Encoding.PEM)

    def client_context(self, pair: Pair | None = None, directory: Path | None = None) -> ssl.SSLContext:
        """A client's context that trusts this authority alone; `pair`, written below `directory`, is the client's own.

        It checks the server's name.
        """
        context = ssl.create_default_context(cadata=self.pem.decode())
        if pair is not None:
            assert directory is not None
            context.load_cert_chain(*pair.write(directory, f"client-{next(_numbers)}"))
        return context


def _begun(
    subject: x509.Name, key: Key, signer: Authority, begins: datetime.timedelta, ends: datetime.timedelta
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(signer.name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(now + begins, now + ends - DAY))
        .not_valid_after(now + ends)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.key.public_key()), critical=False)
    )


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _digest(key: Key) -> hashes.SHA256 | None:
    return None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()


def _signed(builder: x509.CertificateBuilder, key: Key) -> x509.Certificate:
    return builder.sign(key, _digest(key))
