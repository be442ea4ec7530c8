"""The contexts of a worker, with OpenSSL's client before them: which certificate, which clients, which tickets."""

from __future__ import annotations

import asyncio
import os
import resource
import ssl
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from serve_asgi.errors import UsageError
from serve_asgi.ipc import open_files_limit as descriptors
from serve_asgi.tls import alpn, server_contexts, tickets
from serve_asgi.tls.material import ClientAuth, TlsMaterial, TlsPair, contents
from serve_asgi.tls.openssl_library import OpenSslLibrary, find_openssl, set_tls_1_3_suites
from serve_asgi.tls.server_contexts import ServerContexts, examine
from serve_asgi.tls.tickets import DerivedKey, TicketKeys
from serve_asgi.worker.tls_updates import TlsUpdates
from tests.certificates import Authority, Pair

ROOT = Authority("Test root")
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


def tls_pair(pair: Pair, *names: str, kind: str = "EC") -> TlsPair:
    return TlsPair(names, pair.certificate_pem, pair.key_pem(), kind)


LOCAL = tls_pair(ROOT.server("localhost"), "localhost")


def material(*pairs: TlsPair, keys: int = 2, **more: object) -> TlsMaterial:
    made = TlsMaterial(pairs or (LOCAL,), ticket_keys=tuple(os.urandom(80) for _ in range(keys)))
    return msgspec.structs.replace(made, **more)


class Meeting:
    """A handshake of a client with the contexts of a server, in memory."""

    def __init__(
        self,
        contexts: ServerContexts,
        client: ssl.SSLContext | None = None,
        *,
        name: str | None = "localhost",
        session: ssl.SSLSession | None = None,
        tells_hello: bool = True,
    ) -> None:
        to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        trusting = client or ROOT.client_context()
        self.client = trusting.wrap_bio(to_client, to_server, server_hostname=name, session=session)
        with pytest.raises(ssl.SSLWantReadError):
            self.client.do_handshake()
        hello = to_server.read()
        to_server.write(hello)
        context = contexts.for_handshake(hello) if tells_hello else contexts.for_handshake()
        self.server = context.wrap_bio(to_server, to_client, server_side=True)
        done: set[ssl.SSLObject] = set()
        for _ in range(3):
            for end in (self.server, self.client):
                try:
                    end.do_handshake()
                    done.add(end)
                except ssl.SSLWantReadError:
                    pass
        assert len(done) == 2
        self.server.write(b"x")  # the client reads its tickets with it
        assert self.client.read() == b"x"

    @property
    def session(self) -> ssl.SSLSession:
        session = self.client.session
        assert session is not None
        return session

    def names(self) -> set[str]:
        """Those of the certificate that the client has got."""
        certificate = self.client.getpeercert()
        assert certificate
        names: Any = certificate["subjectAltName"]
        return {name for _, name in names}


def newest(version: ssl.TLSVersion) -> ssl.SSLContext:
    """A client that speaks nothing newer."""
    context = ROOT.client_context()
    context.maximum_version = version
    return context


# Which certificate


def trusting_all() -> ssl.SSLContext:
    context = ROOT.client_context()
    context.check_hostname = False
    return context


@pytest.mark.parametrize(
    ("asked", "got"),
    [
        ("a.example", "a.example"),
        ("A.Example.", "a.example"),
        ("www.b.example", "*.b.example"),
        ("exact.b.example", "exact.b.example"),
        ("x.www.b.example", "a.example"),
        ("b.example", "a.example"),
        ("else.example", "a.example"),
        (None, "a.example"),
    ],
)
@pytest.mark.parametrize("tells_hello", [True, False])
def test_the_name_decides(asked: str | None, got: str, tells_hello: bool) -> None:
    made = material(*(tls_pair(ROOT.server(name), name) for name in ("a.example", "*.b.example", "exact.b.example")))
    meeting = Meeting(ServerContexts(made), trusting_all(), name=asked, tells_hello=tells_hello)
    assert meeting.names() == {got}


def test_two_kinds_of_keys_for_the_same_names() -> None:
    """Old clients understand RSA alone; which one they get is between them and OpenSSL."""
    rsa = tls_pair(ROOT.server("localhost", kind="rsa"), "localhost", kind="RSA")
    contexts = ServerContexts(material(LOCAL, rsa))
    client = newest(ssl.TLSVersion.TLSv1_2)
    for authentication in ("ECDSA", "RSA"):
        client.set_ciphers(f"ECDHE+a{authentication}+AESGCM")
        cipher = Meeting(contexts, client).client.cipher()
        assert cipher is not None
        assert authentication in cipher[0]


def test_a_name_that_is_no_text_is_no_name() -> None:
    made = material(LOCAL, tls_pair(ROOT.server("other"), "other"))
    assert Meeting(ServerContexts(made), trusting_all(), name="xn--no-such-thing-.example").names() == {"localhost"}


# What is negotiated


@pytest.mark.parametrize("version", VERSIONS)
def test_versions_and_alpn(version: ssl.TLSVersion) -> None:
    client = newest(version)
    client.set_alpn_protocols(["h2", "http/1.1"])
    meeting = Meeting(ServerContexts(material()), client)
    assert meeting.server.selected_alpn_protocol() == "http/1.1"
    assert meeting.server.version() == version.name.replace("_", ".")
    assert meeting.server.compression() is None


def selected(
    contexts: ServerContexts, version: ssl.TLSVersion, offered: Sequence[str], ciphers: str = ""
) -> str | None:
    client = newest(version)
    client.set_alpn_protocols(list(offered))
    if ciphers:
        client.set_ciphers(ciphers)
    meeting = Meeting(contexts, client)
    assert meeting.client.selected_alpn_protocol() == meeting.server.selected_alpn_protocol()
    return meeting.server.selected_alpn_protocol()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("ciphers", ["", "ECDHE:RSA"])
@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        (["http/1.1", "h2"], "h2"),
        (["h2"], "h2"),
        (["spdy/3", "http/1.1"], "http/1.1"),
        (["h2c", "h3"], None),
        (["h"], None),
    ],
)
def test_the_servers_order_decides_which_protocol_is_spoken(
    version: ssl.TLSVersion, ciphers: str, offered: list[str], chosen: str | None
) -> None:
    rsa = tls_pair(ROOT.server("localhost", kind="rsa"), "localhost", kind="RSA")
    for tells in (LOCAL, rsa):
        assert selected(ServerContexts(material(tells, ciphers=ciphers), http2=True), version, offered) == chosen
    without = ServerContexts(material(ciphers=ciphers))
    assert selected(without, version, offered) == (
        None if chosen == "h2" and len(offered) == 1 else chosen and "http/1.1"
    )


@pytest.mark.parametrize(
    ("ciphers", "allowed"),
    [
        ("ECDHE-RSA-AES128-GCM-SHA256", True),
        ("ECDHE-RSA-CHACHA20-POLY1305", True),
        ("ECDHE-RSA-AES128-SHA256", False),
        ("ECDHE-RSA-AES256-SHA", False),
        ("AES128-GCM-SHA256", False),
        ("AES256-SHA", False),
    ],
)
def test_no_http2_with_suites_of_tls_1_2_that_it_forbids(ciphers: str, allowed: bool) -> None:
    rsa = tls_pair(ROOT.server("localhost", kind="rsa"), "localhost", kind="RSA")
    contexts = ServerContexts(material(rsa, ciphers="ECDHE:RSA"), http2=True)
    chosen = "h2" if allowed else "http/1.1"
    for offered in (["h2", "http/1.1"], ["h2"]):
        expected = chosen if chosen in offered else None
        assert selected(contexts, ssl.TLSVersion.TLSv1_2, offered, ciphers) == expected
    assert selected(contexts, ssl.TLSVersion.TLSv1_3, ["h2", "http/1.1"], ciphers) == "h2"


def test_the_protocol_is_chosen_anew_when_a_session_is_resumed() -> None:
    for version in VERSIONS:
        contexts, client = ServerContexts(material(), http2=True), newest(version)
        client.set_alpn_protocols(["http/1.1"])
        session = Meeting(contexts, client).session
        client.set_alpn_protocols(["h2", "http/1.1"])
        meeting = Meeting(contexts, client, session=session)
        assert meeting.client.session_reused
        assert meeting.client.selected_alpn_protocol() == "h2"


def test_where_openssl_cannot_be_reached_suites_that_http2_forbids_turn_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alpn, "find_openssl", lambda: "not here")
    for ciphers, chosen in (("", "h2"), ("ECDHE:RSA", "http/1.1")):
        contexts = ServerContexts(material(ciphers=ciphers), http2=True)
        assert selected(contexts, ssl.TLSVersion.TLSv1_3, ["h2", "http/1.1"]) == chosen


def test_an_older_version_than_the_least_is_refused() -> None:
    with pytest.raises(ssl.SSLError, match="UNSUPPORTED_PROTOCOL"):
        Meeting(ServerContexts(material(min_version="1.3")), newest(ssl.TLSVersion.TLSv1_2))


def test_only_suites_with_forward_secrecy_and_authenticated_encryption() -> None:
    context = ServerContexts(material()).for_handshake()
    names = {cipher["name"] for cipher in context.get_ciphers()}
    assert {name for name in names if not name.startswith("TLS_")} == {
        f"ECDHE-{key}-{cipher}"
        for key in ("ECDSA", "RSA")
        for cipher in ("AES256-GCM-SHA384", "AES128-GCM-SHA256", "CHACHA20-POLY1305")
    }
    assert context.options & ssl.OP_NO_RENEGOTIATION
    assert context.options & ssl.OP_NO_COMPRESSION


def test_ciphers_that_nobody_knows_are_a_sentence() -> None:
    with pytest.raises(UsageError, match=r"OpenSSL knows none of the cipher suites 'BEST': `openssl ciphers -v`"):
        examine(material(ciphers="BEST"))


# Clients' certificates


def test_clients_are_asked_and_verified(tmp_path: Path) -> None:
    authority = Authority("Clients", parent=ROOT)
    made = material(client_ca=authority.pem, client_auth=ClientAuth.REQUIRED)
    contexts = ServerContexts(made)
    meeting = Meeting(contexts, ROOT.client_context(authority.client("bob"), tmp_path))
    certificate = meeting.server.getpeercert()
    assert certificate
    assert certificate["subject"] == ((("commonName", "bob"),),)
    with pytest.raises(ssl.SSLError, match="PEER_DID_NOT_RETURN_A_CERTIFICATE"):
        Meeting(contexts)
    for stranger in (Authority("Clients").client("eve"), ROOT.client("eve")):
        with pytest.raises(ssl.SSLCertVerificationError):
            Meeting(contexts, ROOT.client_context(stranger, tmp_path))


@pytest.mark.parametrize("name", ["a.example", "b.example"])
def test_clients_are_told_whose_certificates_count(name: str) -> None:
    """Which can be seen in TLS 1.2 alone, as TLS 1.3 seals it. A revocation list beside the authorities is none."""
    root = Authority("Clients of old")
    authorities = root, Authority("Clients of today", parent=root)
    pairs = [tls_pair(ROOT.server(each), each) for each in ("a.example", "b.example")]
    client_ca = b"".join(each.pem for each in authorities)
    made = material(*pairs, client_ca=client_ca, client_auth=ClientAuth.OPTIONAL, crl=root.crl())
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = newest(ssl.TLSVersion.TLSv1_2).wrap_bio(ssl.MemoryBIO(), incoming, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    server = ServerContexts(made).for_handshake().wrap_bio(incoming, outgoing, server_side=True)
    with pytest.raises(ssl.SSLWantReadError):
        server.do_handshake()
    flight = outgoing.read()
    names = [each.certificate.subject.public_bytes() for each in authorities]
    assert b"".join(len(each).to_bytes(2) + each for each in names) in flight


def test_too_many_authorities_to_be_told_are_trusted_nevertheless(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More names than the message takes would fail every handshake."""
    told: list[str] = []
    monkeypatch.setattr(server_contexts, "name_client_authorities", lambda _, path: told.append(path))
    size = len(ROOT.certificate.subject.public_bytes())
    for most, named in ((size + 1, False), (size + 2, True)):
        monkeypatch.setattr(server_contexts, "MOST_OF_NAMES", most)
        contexts = ServerContexts(material(client_ca=ROOT.pem, client_auth=ClientAuth.REQUIRED, keys=0))
        assert bool(told) is named
        assert Meeting(contexts, ROOT.client_context(ROOT.client("bob"), tmp_path)).server.getpeercert()


def test_a_certificate_may_be_optional_and_must_be_valid(tmp_path: Path) -> None:
    contexts = ServerContexts(material(client_ca=ROOT.pem, client_auth=ClientAuth.OPTIONAL))
    assert not Meeting(contexts).server.getpeercert()
    assert Meeting(contexts, ROOT.client_context(ROOT.client("bob"), tmp_path)).server.getpeercert()
    with pytest.raises(ssl.SSLCertVerificationError):
        Meeting(contexts, ROOT.client_context(Authority("Else").client("eve"), tmp_path))


@pytest.mark.parametrize("whole", [True, False])
def test_revoked_certificates_are_refused(tmp_path: Path, whole: bool) -> None:
    authority, other = Authority("Clients", parent=ROOT), Authority("Others", parent=ROOT)
    bob, eve = authority.client("bob"), authority.client("eve")
    lists = authority.crl(eve.certificate) + other.crl() + (ROOT.crl(other.certificate) if whole else b"")
    made = material(
        client_ca=ROOT.pem + authority.pem + other.pem,
        client_auth=ClientAuth.REQUIRED,
        crl=lists,
        crl_for_chain=whole,
    )
    contexts = ServerContexts(made)
    assert Meeting(contexts, ROOT.client_context(bob, tmp_path)).server.getpeercert()
    with pytest.raises(ssl.SSLCertVerificationError, match="revoked"):
        Meeting(contexts, ROOT.client_context(eve, tmp_path))
    mallory = ROOT.client_context(other.client("mallory"), tmp_path)
    if whole:  # her authority is revoked
        with pytest.raises(ssl.SSLCertVerificationError, match="revoked"):
            Meeting(contexts, mallory)
    else:
        assert Meeting(contexts, mallory).server.getpeercert()


# Session tickets


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("tells_hello", [True, False])
def test_a_session_is_resumed_by_any_worker(version: ssl.TLSVersion, tells_hello: bool) -> None:
    made = material()
    one, other = ServerContexts(made), ServerContexts(TlsMaterial.from_bytes(made.to_bytes()))
    client = newest(version)
    session = Meeting(one, client, tells_hello=tells_hello).session
    meeting = Meeting(other, client, session=session, tells_hello=not tells_hello)
    assert meeting.client.session_reused
    assert meeting.server.session_reused


@pytest.mark.parametrize("version", VERSIONS)
def test_the_key_before_is_accepted_and_renewed(version: ssl.TLSVersion) -> None:
    keys = TicketKeys()
    made = material(keys=0, ticket_keys=keys.keys)
    contexts, client = ServerContexts(made), newest(version)
    first = Meeting(contexts, client).session
    keys.rotate()
    contexts.update(msgspec.structs.replace(made, ticket_keys=keys.keys))
    second = Meeting(contexts, client, session=first)
    assert second.client.session_reused
    keys.rotate()
    contexts.update(msgspec.structs.replace(made, ticket_keys=keys.keys))
    assert not Meeting(contexts, client, session=first).client.session_reused
    assert Meeting(contexts, client, session=second.session).client.session_reused  # it was made with the newer key


def test_a_resumed_session_gets_another_ticket() -> None:
    """RFC 8446, C.4: a ticket that is used twice lets others see that it is the same client."""
    contexts, client = ServerContexts(material()), newest(ssl.TLSVersion.TLSv1_3)
    session = Meeting(contexts, client).session
    for _ in range(3):
        meeting = Meeting(contexts, client, session=session)
        assert meeting.client.session_reused
        assert meeting.session != session
        session = meeting.session


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "changed",
    [
        {"client_ca": ROOT.pem, "client_auth": ClientAuth.OPTIONAL},
        {"client_auth": ClientAuth.REQUIRED},
        {"client_ca": ROOT.pem + Authority("More").pem},
        {"crl": ROOT.crl()},
    ],
)
def test_a_ticket_is_worth_nothing_under_other_rules(
    tmp_path: Path, version: ssl.TLSVersion, changed: dict[str, object]
) -> None:
    """A session is resumed without looking at certificates again: who is refused today must not come in by a ticket."""
    asking = {"client_ca": ROOT.pem, "client_auth": ClientAuth.OPTIONAL}
    before = material() if changed == asking else material(client_ca=ROOT.pem, client_auth=ClientAuth.OPTIONAL)
    contexts = ServerContexts(before)
    client = ROOT.client_context(ROOT.client("bob"), tmp_path)
    client.maximum_version = version
    session = Meeting(contexts, client).session
    assert Meeting(contexts, client, session=session).client.session_reused
    contexts.update(msgspec.structs.replace(before, **changed))
    assert not Meeting(contexts, client, session=session).client.session_reused


def test_without_keys_there_are_no_tickets() -> None:
    contexts = ServerContexts(material(keys=0))
    for version in VERSIONS:
        client = newest(version)
        meeting = Meeting(contexts, client)
        session = meeting.client.session
        assert session is None or not session.has_ticket
        if session is not None:
            assert not Meeting(contexts, client, session=session).client.session_reused


def test_keys_can_be_set_here() -> None:
    """With the interpreters that CI has; where they cannot, a sentence says why."""
    assert tickets.unavailable() == ""


def test_without_openssl_at_hand_tickets_are_a_workers_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tickets, "find_openssl", lambda: "it is hidden")
    assert tickets.unavailable() == "it is hidden"
    made, client = material(), newest(ssl.TLSVersion.TLSv1_3)
    one, other = ServerContexts(made), ServerContexts(made)
    session = Meeting(one, client).session
    assert not Meeting(other, client, session=session).client.session_reused
    assert Meeting(one, client, session=session, tells_hello=False).client.session_reused


def test_an_older_openssl_takes_the_newest_key_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    found = find_openssl()
    assert not isinstance(found, str)
    monkeypatch.setattr(tickets, "find_openssl", lambda: OpenSslLibrary(found.library, takes_callback=False))
    made, client = material(), newest(ssl.TLSVersion.TLSv1_3)
    one, other = ServerContexts(made), ServerContexts(made)
    session = Meeting(one, client, tells_hello=False).session
    assert Meeting(other, client, session=session).client.session_reused
    keys = (os.urandom(80), made.ticket_keys[0])
    other.update(msgspec.structs.replace(made, ticket_keys=keys))
    assert not Meeting(other, client, session=session).client.session_reused


def test_a_ticket_of_nobody_is_ignored() -> None:
    """A client that sends garbage as its ticket gets a full handshake: OpenSSL asks our callback for the key."""
    made, client = material(), newest(ssl.TLSVersion.TLSv1_3)
    session = Meeting(ServerContexts(material()), client).session
    assert not Meeting(ServerContexts(made), client, session=session, tells_hello=False).client.session_reused


def test_derived_keys() -> None:
    secret = os.urandom(80)
    one = DerivedKey.of(secret, b"")
    assert one == DerivedKey.of(secret, b"")
    assert (len(one.name), len(one.authentication), len(one.encryption)) == (16, 32, 32)
    others = [DerivedKey.of(secret, b"x"), DerivedKey.of(os.urandom(80), b"")]
    parts = [part for key in (one, *others) for part in (key.name, key.authentication, key.encryption)]
    assert len(set(parts)) == len(parts)


def test_the_last_two_keys_are_kept() -> None:
    keys = TicketKeys()
    seen: list[Sequence[bytes]] = [keys.keys]
    for _ in range(3):
        keys.rotate()
        seen.append(keys.keys)
    assert [len(each) for each in seen] == [1, 2, 2, 2]
    assert seen[3][1] == seen[2][0]
    assert seen[1][0].hex() not in repr(keys)


# Updates


def test_new_connections_get_a_new_certificate_and_old_ones_go_on() -> None:
    contexts = ServerContexts(material(version=1))
    before = Meeting(contexts)
    contexts.update(material(tls_pair(ROOT.server("localhost", "new"), "localhost", "new"), version=2))
    assert contexts.version == 2
    assert Meeting(contexts).names() == {"localhost", "new"}
    before.server.write(b"still here")
    assert before.client.read(10) == b"still here"


def test_a_change_of_keys_alone_makes_no_new_contexts() -> None:
    made = material(version=1)
    contexts = ServerContexts(made)
    context = contexts.for_handshake(b"")
    contexts.update(msgspec.structs.replace(made, ticket_keys=(os.urandom(80), made.ticket_keys[0]), version=2))
    assert contexts.for_handshake(b"") is context
    assert contexts.version == 2
    contexts.update(msgspec.structs.replace(made, min_version="1.3"))
    assert contexts.for_handshake(b"") is not context


def test_a_worker_without_descriptors_asks_for_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        lost = asyncio.Event()

        def tell(packet: dict[str, object]) -> None:
            if packet["type"] == "tls lost":
                lost.set()

        updates = TlsUpdates(material(), tell)
        updates.begin()
        contexts = updates.contexts
        assert contexts is not None
        monkeypatch.setattr(descriptors, "PAUSE", 0.0)
        with monkeypatch.context() as without:
            without.setattr(server_contexts, "sealed", lambda *_: os.open("/nowhere", os.O_RDONLY))
            updates.take(material(tls_pair(ROOT.server("new"), "new")).to_memfd())
            assert Meeting(contexts).names() == {"localhost"}
        await lost.wait()

    asyncio.run(main())


def test_what_openssl_does_not_take_changes_nothing() -> None:
    contexts = ServerContexts(material())
    context = contexts.for_handshake()
    stranger = msgspec.structs.replace(LOCAL, key=ROOT.server("x").key_pem())
    with pytest.raises(UsageError, match="OpenSSL does not take the certificate for localhost: the private key is not"):
        contexts.update(material(stranger))
    assert contexts.for_handshake() is context
    assert Meeting(contexts).names() == {"localhost"}


def test_an_encrypted_key_is_not_asked_for_at_the_terminal() -> None:
    pair = ROOT.server("localhost")
    with pytest.raises(UsageError, match="OpenSSL does not take the certificate for localhost"):
        examine(material(TlsPair(("localhost",), pair.certificate_pem, pair.key_pem("sesame"), "EC")))


def test_no_descriptor_is_left() -> None:
    made = material()
    contexts = ServerContexts(made)
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        contexts.update(material(tls_pair(ROOT.server("localhost"), "localhost")))
    assert len(os.listdir("/proc/self/fd")) <= len(before)


# The material


def test_the_material_travels_in_sealed_memory() -> None:
    made = material(client_ca=ROOT.pem, client_auth=ClientAuth.OPTIONAL, version=7)
    descriptor = made.to_memfd()
    for refused in (lambda: os.write(descriptor, b"x"), lambda: os.ftruncate(descriptor, 0)):
        with pytest.raises(PermissionError):
            refused()
    assert not os.get_inheritable(descriptor)
    assert TlsMaterial.from_bytes(contents(descriptor)) == made
    assert TlsMaterial.from_memfd(os.dup(descriptor)) == made  # whatever the position is, which both share
    assert TlsMaterial.from_memfd(descriptor) == made
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_members_of_another_version_are_passed_over() -> None:
    later = {"pairs": [{"names": ["a"], "chain": b"c", "key": b"k", "colour": 1}], "shape": 2}
    found = TlsMaterial.from_bytes(msgspec.msgpack.encode(later))
    assert found == TlsMaterial((TlsPair(("a",), b"c", b"k"),))
    with pytest.raises(ValueError, match="not of this protocol") as caught:
        TlsMaterial.from_bytes(msgspec.msgpack.encode({"pairs": "secret"}))
    assert "secret" not in str(caught.value)


def test_nothing_private_is_shown() -> None:
    made = material()
    shown = f"{made!r} {made} {made.pairs[0]!r} {[made]}"
    assert LOCAL.key.decode().splitlines()[1] not in shown
    assert "PRIVATE" not in shown
    assert not any(key.hex() in shown or repr(key)[2:20] in shown for key in made.ticket_keys)


def test_a_process_with_keys_leaves_no_core_file() -> None:
    code = (
        "import resource\n"
        "from serve_asgi.tls.material import stay_out_of_core_files\n"
        "stay_out_of_core_files()\n"
        "print(*resource.getrlimit(resource.RLIMIT_CORE))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    soft, hard = map(int, done.stdout.split())
    wanted = resource.getrlimit(resource.RLIMIT_CORE)[1]
    assert hard == wanted
    assert soft == (1 if hard == resource.RLIM_INFINITY else min(1, hard))


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        ("TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256:TLS_AES_128_GCM_SHA256", "TLS_AES_128_GCM_SHA256"),
        ("TLS_CHACHA20_POLY1305_SHA256:TLS_AES_128_GCM_SHA256", "TLS_CHACHA20_POLY1305_SHA256"),
        ("TLS_AES_256_GCM_SHA384", "TLS_AES_256_GCM_SHA384"),
    ],
)
def test_the_cheapest_suite_of_tls_1_3_that_is_good_enough(offered: str, chosen: str) -> None:
    """Who puts ChaCha20 first has no hardware for AES."""
    client = ROOT.client_context()
    assert set_tls_1_3_suites(client, offered)
    cipher = Meeting(ServerContexts(material()), client).server.cipher()
    assert cipher is not None
    assert cipher[0] == chosen
