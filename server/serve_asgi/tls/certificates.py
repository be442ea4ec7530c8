"""From the bytes of an operator's files to a pair that can be served, or to the sentence that says what is wrong.

It owns what a certificate is asked before a handshake is: whether the private key fits it, whether it is valid today,
which names it is for, whether its chain stands in the right order (it is put right, and said), and the same of the
authorities and revocation lists for clients' certificates. It reads no file, and errors name files as they are given
to it. No part of a private key, and no password, gets into a message.

Only the listener needs it, and only where TLS is configured: it imports `cryptography`.
"""

from __future__ import annotations

import dataclasses
import datetime
import ipaddress
import re
import warnings
from collections.abc import Iterable, Sequence
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.utils import CryptographyDeprecationWarning
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtendedKeyUsageOID, NameOID

from serve_asgi.errors import UsageError
from serve_asgi.tls.material import TlsPair

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey
KINDS: Final = {
    rsa.RSAPrivateKey: "RSA",
    ec.EllipticCurvePrivateKey: "EC",
    ed25519.Ed25519PrivateKey: "Ed25519",
    ed448.Ed448PrivateKey: "Ed448",
}
MOST_CERTIFICATES: Final = 1000
"""Certificates in one file: a bundle of all public authorities has 150."""
_BLOCK: Final = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----.+?-----END \1-----", re.DOTALL)
_CERTIFICATES: Final = frozenset({b"CERTIFICATE", b"X509 CERTIFICATE"})


@dataclasses.dataclass(frozen=True, slots=True)
class Certificate:
    """What the operator is shown of a certificate, or a revocation list, that is in use."""

    path: str
    """As it was given."""
    names: tuple[str, ...]
    """What it is for (`TlsPair.names`), or of whom a revocation list is."""
    not_before: float
    not_after: float
    """Unix time: of a revocation list, when the next one was announced for."""
    issuer: str
    """RFC 4514."""
    serial: str = ""
    """Hexadecimal, as openssl-x509(1) prints it."""
    kind: str = ""
    """Of its key; "CRL" for a revocation list."""
    fingerprint: str = ""
    """SHA-256, hexadecimal."""


@dataclasses.dataclass(frozen=True, slots=True)
class CertificatePair:
    """A pair that has been checked."""

    pair: TlsPair
    certificate: Certificate
    remarks: tuple[str, ...] = ()
    """Sentences about what is not an error."""


@dataclasses.dataclass(frozen=True, slots=True)
class ClientAuthorities:
    """The authorities for clients' certificates, checked, and their revocation lists."""

    ca: bytes
    """PEM."""
    crl: bytes = b""
    """PEM."""
    crl_for_chain: bool = False
    """Whether there is a list of each authority's issuer as well."""
    lists: tuple[Certificate, ...] = ()
    remarks: tuple[str, ...] = ()


def read_pair(
    certificate_file: tuple[str, bytes], key_file: tuple[str, bytes], password: bytes | None, now: datetime.datetime
) -> CertificatePair:
    """The pair in two files, each of them its path and its content; one may be both. `now` knows its time zone.

    Raises UsageError, a sentence that names the file.
    """
    path, content = certificate_file
    certificates = _certificates(path, content)
    key = _private_key(key_file[0], key_file[1], password)
    public = _public_bytes(key.public_key())
    own = [each for each in certificates if _key_of(each) == public]
    if not own:
        raise UsageError(
            f"the private key in {key_file[0]} does not fit the certificate in {path}, which is for "
            f"{_about(_first_leaf(certificates))}: name the key that the certificate was made with"
        )
    leaf = max(own, key=lambda each: each.not_valid_after_utc)
    _check_time(path, leaf, now)
    chain, remarks = _chain(path, leaf, certificates, now)
    names = names_of(leaf)
    if not names:
        remarks.append(f"the certificate in {path} is for no name: no client that checks names will accept it")
    elif not _alternative_names(leaf):
        remarks.append(
            f"the certificate in {path} has its name in the subject alone, which browsers do not look at: have one "
            "made with subject alternative names"
        )
    if not _serves(leaf):
        remarks.append(f"the certificate in {path} is not made for servers (extended key usage): clients may refuse it")
    pem = b"".join(each.public_bytes(serialization.Encoding.PEM) for each in (leaf, *chain))
    plain = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    kind = next(name for known, name in KINDS.items() if isinstance(key, known))
    return CertificatePair(TlsPair(names, pem, plain, kind), _shown(path, leaf, names, kind), tuple(remarks))


def read_authorities(
    ca_file: tuple[str, bytes], crl_file: tuple[str, bytes] | None, now: datetime.datetime
) -> ClientAuthorities:
    """The authorities for clients' certificates, and their revocation lists. Raises UsageError."""
    path, content = ca_file
    authorities = _certificates(path, content, "name the file with the certificates of the authorities")
    remarks = [
        f"{path} has an authority that expired on {_day(each.not_valid_after_utc)}: {_about(each)}"
        for each in authorities
        if each.not_valid_after_utc <= now
    ]
    if len(remarks) == len(authorities):
        raise UsageError(f"{path} has no authority that has not expired: no client could be verified; name others")
    ca = b"".join(each.public_bytes(serialization.Encoding.PEM) for each in authorities)
    if crl_file is None:
        return ClientAuthorities(ca, remarks=tuple(remarks))
    lists = _revocation_lists(*crl_file, authorities, now)
    issuers = {each.issuer for each in lists}
    remarks += [
        f"{crl_file[0]} has no revocation list of {_about(each)}: clients with its certificates are refused"
        for each in authorities
        if each.subject not in issuers and each.not_valid_after_utc > now
    ]
    return ClientAuthorities(
        ca,
        b"".join(each.public_bytes(serialization.Encoding.PEM) for each in lists),
        all(each.issuer in issuers and each.subject in issuers for each in authorities),
        tuple(_shown_list(crl_file[0], each) for each in lists),
        tuple(remarks),
    )


def names_of(certificate: x509.Certificate) -> tuple[str, ...]:
    """The names that a certificate is for: its subject alternative names, else the common name (RFC 6125, 6.4.4)."""
    if names := _alternative_names(certificate):
        return names
    common = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return tuple(dict.fromkeys(str(each.value).lower() for each in common if _is_host(str(each.value))))


def _alternative_names(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return ()
    dns = (name.lower().removesuffix(".") for name in found.get_values_for_type(x509.DNSName))
    addresses = (str(address) for address in found.get_values_for_type(x509.IPAddress))
    return tuple(dict.fromkeys((*dns, *addresses)))


def _is_host(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return re.fullmatch(r"(?:\*\.)?[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*", text) is not None
    return True


# What stands in the files


def _certificates(
    path: str, content: bytes, if_a_key: str = "are --tls-cert and --tls-key mixed up?"
) -> list[x509.Certificate]:
    """All certificates of a file, in its order; `if_a_key` is said where there is none, and a private key instead."""
    found: list[x509.Certificate] = []
    kinds = set()
    for block in _BLOCK.finditer(content):
        kinds.add(block[1])
        if block[1] in _CERTIFICATES:
            found.append(_certificate(path, block[0], len(found) + 1))
            if len(found) > MOST_CERTIFICATES:
                raise UsageError(f"{path} holds more than {MOST_CERTIFICATES} certificates: is it the right file?")
    if found:
        return found
    if any(kind.endswith(b"PRIVATE KEY") for kind in kinds):
        raise UsageError(f"{path} holds a private key and no certificate: {if_a_key}")
    if b"CERTIFICATE REQUEST" in kinds or b"NEW CERTIFICATE REQUEST" in kinds:
        raise UsageError(f"{path} holds a request for a certificate: name the file that the authority made of it")
    if content[:1] == b"\x30":
        raise UsageError(
            f"{path} is not PEM but DER: `openssl x509 -inform DER -in FILE -out FILE.pem` turns a certificate into "
            "PEM, `openssl pkcs12` what has a key as well"
        )
    raise UsageError(f"{path} holds no certificate in PEM: {'it is empty' if not content.strip() else 'name one'}")


def _certificate(path: str, block: bytes, number: int) -> x509.Certificate:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CryptographyDeprecationWarning)
            found = x509.load_pem_x509_certificate(block)
            found.extensions, found.public_key(), found.subject, found.issuer  # parsed when asked for
            return found
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        which = "" if number == 1 else f"{number}. "
        raise UsageError(f"the {which}certificate in {path} is damaged, or of a kind that is not known here") from None


def _private_key(path: str, content: bytes, password: bytes | None) -> PrivateKey:
    kinds = {block[1] for block in _BLOCK.finditer(content)}
    if not any(kind.endswith(b"PRIVATE KEY") for kind in kinds):
        if kinds & _CERTIFICATES:
            raise UsageError(
                f"{path} holds no private key but a certificate: name the key's file with --tls-key, or are --tls-cert "
                "and --tls-key mixed up?"
            )
        told = "it is empty" if not content.strip() else "name the one that the certificate was made with"
        raise UsageError(f"{path} holds no private key in PEM: {told}")
    blocks = [block[0] for block in _BLOCK.finditer(content) if block[1].endswith(b"PRIVATE KEY")]
    if len(blocks) > 1:
        raise UsageError(f"{path} holds {len(blocks)} private keys: which one is meant? Leave one in the file")
    encrypted = b"ENCRYPTED" in blocks[0]
    if encrypted and password is None:
        raise UsageError(f"the private key in {path} is encrypted: name its password's file, --tls-key-password-file")
    try:
        key = serialization.load_pem_private_key(blocks[0], password if encrypted else None)
    except (ValueError, TypeError, UnsupportedAlgorithm):  # whose text is OpenSSL's, and might tell of the key
        told = "its password is not the one that was given" if encrypted else "it is damaged, or of a kind not known"
        raise UsageError(f"the private key in {path} cannot be read: {told}") from None
    if not isinstance(
        key, (rsa.RSAPrivateKey, ec.EllipticCurvePrivateKey, ed25519.Ed25519PrivateKey, ed448.Ed448PrivateKey)
    ):
        raise UsageError(f"the private key in {path} is of a kind that TLS does not use: have one made with EC or RSA")
    return key


def _public_bytes(key: object) -> bytes:
    """What two equal public keys have in common."""
    made: bytes = key.public_bytes(  # type: ignore[attr-defined]
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return made


def _key_of(certificate: x509.Certificate) -> bytes:
    try:
        return _public_bytes(certificate.public_key())
    except (ValueError, TypeError, UnsupportedAlgorithm):  # an authority with a key of another world
        return b""


# What must hold


def _check_time(path: str, leaf: x509.Certificate, now: datetime.datetime) -> None:
    if leaf.not_valid_after_utc <= now:
        raise UsageError(
            f"the certificate in {path}, for {_about(leaf)}, expired on {_day(leaf.not_valid_after_utc)}: renew it"
        )
    if leaf.not_valid_before_utc > now:
        raise UsageError(
            f"the certificate in {path}, for {_about(leaf)}, is not valid before {_day(leaf.not_valid_before_utc)}: is "
            "the clock of this machine right?"
        )


def _chain(
    path: str, leaf: x509.Certificate, certificates: Sequence[x509.Certificate], now: datetime.datetime
) -> tuple[list[x509.Certificate], list[str]]:
    """The issuers of `leaf` among `certificates`, the nearest first and without the root, and what is to be said."""
    chain: list[x509.Certificate] = []
    remarks: list[str] = []
    rest = [each for each in certificates if each != leaf]
    last = leaf
    while not _self_signed(last) and (issuer := _issuer(last, rest)) is not None:
        rest.remove(issuer)
        last = issuer
        if not _self_signed(issuer):
            chain.append(issuer)
        if issuer.not_valid_after_utc <= now:
            remarks.append(
                f"the chain in {path} has an authority that expired on {_day(issuer.not_valid_after_utc)}, "
                f"{_about(issuer)}: take the chain that came with the certificate"
            )
    sent = [leaf, *chain]
    if [each for each in certificates if each in sent] != sent:
        order = ", then ".join(_about(each) for each in sent)
        remarks.append(f"the certificates in {path} stand in a wrong order, and are sent in the right one: {order}")
    if others := [each for each in rest if each not in sent]:
        told = ", ".join(dict.fromkeys(_about(each) for each in others))
        remarks.append(f"{path} has certificates that do not belong to its chain, and are not sent: {told}")
    if not chain and not _self_signed(leaf) and last is leaf and _names_issuer(leaf):
        remarks.append(
            f"{path} has the certificate without its chain: clients that do not know {_about_name(leaf.issuer)} will "
            "refuse it; name the file that has both (fullchain.pem)"
        )
    return chain, remarks


def _issuer(certificate: x509.Certificate, among: Iterable[x509.Certificate]) -> x509.Certificate | None:
    """Who has signed it; of several the one that is valid the longest (an authority may have been renewed)."""
    found = [each for each in among if each.subject == certificate.issuer and _signed_by(certificate, each)]
    return max(found, key=lambda each: each.not_valid_after_utc, default=None)


def _signed_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _self_signed(certificate: x509.Certificate) -> bool:
    return certificate.subject == certificate.issuer and _signed_by(certificate, certificate)


def _names_issuer(certificate: x509.Certificate) -> bool:
    """Whether it says where its issuer's certificate can be had: those of public authorities do, and are never roots'.

    (RFC 5280, section 4.2.2.1.)
    """
    try:
        found = certificate.extensions.get_extension_for_class(x509.AuthorityInformationAccess).value
    except (x509.ExtensionNotFound, ValueError):
        return False
    return any(each.access_method == AuthorityInformationAccessOID.CA_ISSUERS for each in found)


def _first_leaf(certificates: Sequence[x509.Certificate]) -> x509.Certificate:
    """The first that has issued none of the others: in a chain that is in the wrong order it is not the first."""
    issuers = {each.issuer for each in certificates if each.issuer != each.subject}
    return next((each for each in certificates if each.subject not in issuers), certificates[0])


def _serves(certificate: x509.Certificate) -> bool:
    try:
        found = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except (x509.ExtensionNotFound, ValueError):
        return True
    return bool({ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE} & set(found))


# Revocation lists


def _revocation_lists(
    path: str, content: bytes, authorities: Sequence[x509.Certificate], now: datetime.datetime
) -> list[x509.CertificateRevocationList]:
    blocks = [block[0] for block in _BLOCK.finditer(content) if block[1] == b"X509 CRL"]
    if not blocks:
        raise UsageError(f"{path} holds no revocation list in PEM: name a file that has one (BEGIN X509 CRL)")
    found = []
    for block in blocks:
        try:
            each = x509.load_pem_x509_crl(block)
            each.issuer, each.extensions  # noqa: B018 - parsed when asked for
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise UsageError(f"a revocation list in {path} is damaged, or of a kind that is not known here") from None
        signers = [one for one in authorities if one.subject == each.issuer]
        if not any(_is_of(each, one) for one in signers):
            raise UsageError(
                f"{path} has a revocation list of {_about_name(each.issuer)}, which is not among the authorities of "
                "--tls-client-ca: take it out, or add that authority"
            )
        if each.next_update_utc is not None and each.next_update_utc <= now:
            raise UsageError(
                f"the revocation list of {_about_name(each.issuer)} in {path} expired on {_day(each.next_update_utc)}, "
                "and every client would be refused: get the present one"
            )
        found.append(each)
    return found


def _is_of(revocations: x509.CertificateRevocationList, authority: x509.Certificate) -> bool:
    try:
        return revocations.is_signature_valid(authority.public_key())  # type: ignore[arg-type]
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return False


# What is shown


def _shown(path: str, leaf: x509.Certificate, names: tuple[str, ...], kind: str) -> Certificate:
    return Certificate(
        path,
        names or (_about(leaf),),
        leaf.not_valid_before_utc.timestamp(),
        leaf.not_valid_after_utc.timestamp(),
        leaf.issuer.rfc4514_string(),
        f"{leaf.serial_number:x}",
        kind,
        leaf.fingerprint(hashes.SHA256()).hex(),
    )


def _shown_list(path: str, each: x509.CertificateRevocationList) -> Certificate:
    ends = each.next_update_utc
    return Certificate(
        path,
        (_about_name(each.issuer),),
        each.last_update_utc.timestamp(),
        float("inf") if ends is None else ends.timestamp(),
        each.issuer.rfc4514_string(),
        kind="CRL",
        fingerprint=each.fingerprint(hashes.SHA256()).hex(),
    )


def _about(certificate: x509.Certificate) -> str:
    """What a person would call it."""
    names = _alternative_names(certificate)
    if not names:
        return _about_name(certificate.subject)
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _about_name(name: x509.Name) -> str:
    common = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(common[0].value) if common else name.rfc4514_string() or "nobody"


def _day(instant: datetime.datetime) -> str:
    return instant.strftime("%Y-%m-%d %H:%M UTC")
