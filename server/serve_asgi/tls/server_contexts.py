"""OpenSSL's contexts of one worker: made of its material once, shared by all its connections, replaced as a whole.

It owns what is negotiated and with which limits. One context stands for each set of names; pairs of the same names and
of different kinds of keys (RSA beside EC) share one, and OpenSSL takes what the client understands. Which one a client
gets is decided by the name in its hello (SNI, RFC 6066, section 3): the exact name, else a wildcard of one label, else
the first pair, as other servers do.

What is left out, for good: renegotiation (RFC 5746 mends only half of what is wrong with it; TLS 1.3 has none),
compression (CRIME), 0-RTT (a request in it can be replayed by whoever has recorded it; RFC 8446, 8), the cache of
sessions (tickets do it), cipher suites without forward secrecy or without authenticated encryption.

A private key enters OpenSSL by the path of a memfd that is closed at once. A connection keeps the context that it has
begun with; `update` is for those to come. It does no input or output beyond that, and knows no connection.
"""

from __future__ import annotations

import hashlib
import os
import ssl
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec

from serve_asgi.errors import UsageError
from serve_asgi.tls import alpn
from serve_asgi.tls.key_log import open_key_log
from serve_asgi.tls.material import ClientAuth, TlsMaterial, TlsPair, sealed
from serve_asgi.tls.openssl_library import name_client_authorities, set_tls_1_3_suites
from serve_asgi.tls.tickets import ContextTicketKeys

CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""Of TLS 1.2: forward secrecy and authenticated encryption. Those of TLS 1.3 all have both."""
TLS_1_3_SUITES: Final = "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256"
"""All three; OpenSSL would begin with AES-256, whose SHA-384 makes each handshake some 7 % dearer, for no attack that
AES-128 is not safe from."""
TICKETS: Final = 1
"""Session tickets after a full handshake of TLS 1.3; whoever resumes with one gets the next. OpenSSL's own two cost
another message, and are for clients that open several connections at once before the first is idle."""
MOST_OF_NAMES: Final = 16384
"""Bytes of authorities' names that a client is sent when its certificate is asked for. 65,535 are possible (RFC 8446
4.2.4), beyond which OpenSSL fails the handshake; a client that is told none chooses among all certificates it has."""
_PRIORITIZE_CHACHA: Final = 1 << 21  # SSL_OP_PRIORITIZE_CHACHA: for clients that put it first, having no AES hardware
END: Final = "-----END CERTIFICATE-----"
_VERSIONS: Final = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
_OPTIONS: Final = (
    ssl.OP_NO_RENEGOTIATION
    | ssl.OP_NO_COMPRESSION
    | ssl.OP_CIPHER_SERVER_PREFERENCE
    | ssl.OP_SINGLE_ECDH_USE
    | _PRIORITIZE_CHACHA
)


class ServerContexts:
    """The contexts of one worker."""

    def __init__(self, material: TlsMaterial, *, http2: bool = False) -> None:
        """`http2`: offer it besides what the material says, which all versions speak.

        Raises UsageError, a sentence, if OpenSSL does not take what the material has.
        """
        self._http2 = http2
        self.key_log = open_key_log()
        """Where the secrets of all handshakes are read; None where there is no such place."""
        self._made_of = b""
        self._take(material)

    def for_handshake(self, client_hello: bytes | None = None) -> ssl.SSLContext:
        """The context for a new connection; in the course of the handshake OpenSSL may turn to another one.

        `client_hello` is what the client has sent first, if that is known. It decides between a context that is quick
        and one that knows all keys of tickets (`serve_asgi.tls.tickets`). b"" stands for what cannot be read as a
        hello: the first certificate is for it, and no name in it is looked at.
        """
        if client_hello is None:
            return self._all_keys[0]
        if not client_hello:
            return self._nameless
        for name in self._tickets.previous:
            if name in client_hello:
                return self._all_keys[0]
        return self._newest_key[0]

    def update(self, material: TlsMaterial) -> None:
        """Connections from now on get what this has. Raises UsageError and leaves everything as it was."""
        if _fingerprint(material) != self._made_of:
            self._take(material)
            return
        self._tickets.use(material.ticket_keys, material.trust)
        self._attach()
        self.version = material.version

    def close(self) -> None:
        """No connection uses them any more: let go of the key log."""
        if self.key_log is not None:
            self.key_log.close()
            self.key_log = None

    def _take(self, material: TlsMaterial) -> None:
        tickets = ContextTicketKeys()  # connections that have begun keep theirs, and what it lets in
        tickets.use(material.ticket_keys, material.trust)
        newest_key = self._make(material)
        all_keys = self._make(material) if tickets.calls_back and material.ticket_keys else newest_key
        self._tickets, self._newest_key, self._all_keys = tickets, newest_key, all_keys
        self._nameless = _context(_grouped(material.pairs)[0], material, http2=self._http2)
        self._attach()
        self._made_of = _fingerprint(material)  # not the material: the keys are OpenSSL's from here on
        self.client_auth = material.client_auth
        """Whether clients are asked for a certificate."""
        self.version = material.version
        """Of the material (`TlsMaterial.version`)."""

    def _make(self, material: TlsMaterial) -> list[ssl.SSLContext]:
        """A context for each set of names, the first being for clients that name none. Raises UsageError."""
        groups = _grouped(material.pairs)
        made = [_context(group, material, http2=self._http2) for group in groups]
        by_name: dict[str, ssl.SSLContext] = {}
        for context, group in zip(made, groups, strict=True):
            for name in group[0].names:
                by_name.setdefault(name, context)
        for context in made:
            if len(made) > 1:
                context.sni_callback = _chooser(by_name, made[0])
            if self.key_log is not None:
                self.key_log.attach(context)
        return made

    def _attach(self) -> None:
        """Give the contexts the present keys of tickets."""
        for context in (self._nameless, *self._newest_key):
            self._tickets.attach(context, calls_back=False)
        if self._all_keys is not self._newest_key:
            for context in self._all_keys:
                self._tickets.attach(context, calls_back=True)


def examine(material: TlsMaterial) -> None:
    """Raise UsageError, a sentence, if OpenSSL does not take what the material has."""
    for group in _grouped(material.pairs):
        _context(group, material)


def _fingerprint(material: TlsMaterial) -> bytes:
    """Changes with everything that contexts are made of: all but the keys of tickets, unless there are none."""
    rest = msgspec.structs.replace(material, ticket_keys=material.ticket_keys and (b"",), version=0)
    return hashlib.sha256(rest.to_bytes()).digest()


def _grouped(pairs: Sequence[TlsPair]) -> list[list[TlsPair]]:
    """Pairs that one context can have: of the same names, each with another kind of key."""
    groups: list[list[TlsPair]] = []
    for pair in pairs:
        for group in groups:
            if set(group[0].names) == set(pair.names) and pair.kind not in {each.kind for each in group}:
                group.append(pair)
                break
        else:
            groups.append([pair])
    return groups


def _chooser(by_name: Mapping[str, ssl.SSLContext], first: ssl.SSLContext) -> Callable[..., None]:
    """What OpenSSL calls with the name that the client has sent (`SSLContext.sni_callback`)."""

    def choose(connection: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        found = first if name is None else context_for(name, by_name, first)
        if found is not first:
            connection.context = found

    return choose


def context_for(name: str, by_name: Mapping[str, ssl.SSLContext], otherwise: ssl.SSLContext) -> ssl.SSLContext:
    """The context whose certificate is for `name`: exactly, or by a wildcard of its first label (RFC 6125, 6.4.3)."""
    name = name.lower().removesuffix(".")
    if (found := by_name.get(name)) is None:
        _, dot, rest = name.partition(".")
        found = by_name.get(f"*.{rest}") if dot else None
    return otherwise if found is None else found


class CertifiedContext(ssl.SSLContext):
    """A context that knows what it shows to clients."""

    certificate: str | None = None
    """In PEM, without its chain; None if there are several, of which OpenSSL takes one."""


def first_certificate(chain: bytes) -> str:
    """The first certificate of a chain in PEM."""
    return chain.decode("ascii", "replace").partition(END)[0] + END + "\n"


def _context(group: Sequence[TlsPair], material: TlsMaterial, *, http2: bool = False) -> ssl.SSLContext:
    """A context with the pairs of one set of names. Raises UsageError."""
    context = CertifiedContext(ssl.PROTOCOL_TLS_SERVER)
    if len(group) == 1:
        context.certificate = first_certificate(group[0].chain)
    context.minimum_version = _VERSIONS[material.min_version]
    context.options |= _OPTIONS if material.ticket_keys else _OPTIONS | ssl.OP_NO_TICKET
    context.num_tickets = TICKETS if material.ticket_keys else 0
    try:
        context.set_ciphers(material.ciphers or CIPHERS)
    except ssl.SSLError:
        raise UsageError(
            f"OpenSSL knows none of the cipher suites {material.ciphers!r}: `openssl ciphers -v` shows how they are "
            "written"
        ) from None
    set_tls_1_3_suites(context, TLS_1_3_SUITES)
    alpn.offer(context, (alpn.HTTP_2, *material.alpn) if http2 else material.alpn)
    for pair in group:
        _load(pair, context)
    if material.client_auth is not ClientAuth.NONE:
        _ask_clients(context, material)
    return context


def _load(pair: TlsPair, context: ssl.SSLContext) -> None:
    """Give OpenSSL a certificate and its key. Raises UsageError."""
    try:
        _through_memory(
            pair.chain + b"\n" + pair.key, lambda path: context.load_cert_chain(path, password=_no_password)
        )
    except ssl.SSLError as error:
        about = ", ".join(pair.names) or "without a name"
        raise UsageError(f"OpenSSL does not take the certificate for {about}: {reason(error)}") from None


def _ask_clients(context: ssl.SSLContext, material: TlsMaterial) -> None:
    """Have clients' certificates asked for and verified. Raises UsageError."""
    required = material.client_auth is ClientAuth.REQUIRED
    context.verify_mode = ssl.CERT_REQUIRED if required else ssl.CERT_OPTIONAL
    if not material.crl_for_chain:
        # An authority that is named is trusted, even an intermediate one whose root is not named. With revocation lists
        # for all, each root is named, and the chain has to reach it: OpenSSL needs it to verify the list of the root.
        context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN

    def load(path: str) -> None:
        context.load_verify_locations(cafile=path)
        if _size_of_names(material.client_ca) <= MOST_OF_NAMES:
            name_client_authorities(context, path)

    try:
        _through_memory(material.client_ca + b"\n" + material.crl, load)
    except ssl.SSLError as error:
        raise UsageError(f"OpenSSL does not take the authorities for clients' certificates: {reason(error)}") from None
    if material.crl:
        chain = ssl.VerifyFlags.VERIFY_CRL_CHECK_CHAIN
        context.verify_flags |= chain if material.crl_for_chain else ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF


def _size_of_names(authorities: bytes) -> int:
    """Bytes of the subjects of these certificates (PEM), as a request for a certificate has them."""
    from cryptography import x509

    found = x509.load_pem_x509_certificates(authorities)
    return sum(2 + len(each.subject.public_bytes()) for each in found)


def _through_memory(data: bytes, load: Callable[[str], None]) -> None:
    """OpenSSL reads files alone: let it read this as one. Raises UsageError and what `load` raises."""
    if sys.platform != "linux":  # a developer's machine: the file is the user's alone, and gone at once
        with tempfile.TemporaryDirectory() as directory:
            path = os.path.join(directory, "pem")
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(data)
            load(path)
        return
    descriptor = sealed(data, "serve-tls-load")
    del data  # as there
    try:
        load(f"/proc/self/fd/{descriptor}")
    except FileNotFoundError:
        raise UsageError("TLS needs /proc, through which OpenSSL is given its keys in memory: mount it") from None
    finally:
        os.close(descriptor)


def _no_password() -> str:
    """Instead of a question at the terminal: what comes from the listener is not encrypted."""
    return ""


REASONS: Final = {
    "EE_KEY_TOO_SMALL": "its key is shorter than this OpenSSL allows; have one made of at least 2048 bits (RSA)",
    "CA_KEY_TOO_SMALL": "the key of an authority in its chain is shorter than this OpenSSL allows",
    "CA_MD_TOO_WEAK": "it or its chain is signed by a way that is broken (MD5, SHA-1); have it made anew",
    "EE_MD_TOO_WEAK": "it is signed by a way that is broken (MD5, SHA-1); have it made anew",
    "KEY_VALUES_MISMATCH": "the private key is not its own",
}
"""What OpenSSL's reasons mean for a person."""


def reason(error: ssl.SSLError) -> str:
    """Why, in words."""
    return REASONS.get(error.reason or "", (error.reason or str(error)).replace("_", " ").lower())
