"""What is made of the operator's files: a checked pair, or one sentence that names the file."""

from __future__ import annotations

import datetime
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa

from serve_asgi.errors import UsageError
from serve_asgi.tls.certificates import CertificatePair, read_authorities, read_pair
from tests.certificates import DAY, Authority, Kind, Pair, make_key, pem

NOW = datetime.datetime.now(datetime.UTC)
ROOT = Authority("Test root")
MIDDLE = Authority("Middle", parent=ROOT)
LOWER = Authority("Lower", parent=MIDDLE)


def read(
    pair: Pair, certificates: bytes | None = None, key: bytes | None = None, password: bytes | None = None
) -> CertificatePair:
    content = pair.certificate_pem if certificates is None else certificates
    return read_pair(("c.pem", content), ("k.pem", pair.key_pem() if key is None else key), password, NOW)


def sent(found: CertificatePair) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(found.pair.chain)


@pytest.mark.parametrize("kind", ["ec", "rsa", "ed25519"])
def test_a_pair_that_is_right(kind: Kind) -> None:
    pair = LOWER.server("Example.org", "*.example.org", "::1", kind=kind)
    found = read(pair)
    assert found.pair.names == ("example.org", "*.example.org", "::1")
    assert found.pair.chain == pair.certificate_pem
    assert found.pair.kind.lower() == kind
    assert found.certificate.not_after == pair.certificate.not_valid_after_utc.timestamp()
    assert found.certificate.issuer == "CN=Lower"
    assert found.remarks == ()
    assert serialization.load_pem_private_key(found.pair.key, None) is not None


def test_one_file_may_hold_both() -> None:
    pair = MIDDLE.server("a")
    both = pair.key_pem() + pair.certificate_pem
    assert read(pair, both, both).pair.chain == pair.certificate_pem


def test_an_encrypted_key_needs_its_password() -> None:
    pair = MIDDLE.server("a")
    key = pair.key_pem("sesame")
    assert b"ENCRYPTED" not in read(pair, key=key, password=b"sesame").pair.key
    with pytest.raises(UsageError, match=r"k.pem is encrypted: name its password's file, --tls-key-password-file"):
        read(pair, key=key)
    with pytest.raises(UsageError, match="its password is not the one that was given") as caught:
        read(pair, key=key, password=b"wrong-word")
    assert "wrong-word" not in str(caught.value)


def test_a_password_that_is_not_needed_is_no_error() -> None:
    assert read(MIDDLE.server("a"), password=b"sesame").remarks == ()


def test_the_old_forms_of_keys() -> None:
    """SEC 1 and PKCS #1, also encrypted as OpenSSL did of old (Proc-Type: 4,ENCRYPTED)."""
    kinds: tuple[Kind, ...] = ("ec", "rsa")
    for kind in kinds:
        pair = MIDDLE.server("a", kind=kind)
        form = serialization.PrivateFormat.TraditionalOpenSSL
        plain = pair.key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
        old = pair.key.private_bytes(serialization.Encoding.PEM, form, serialization.BestAvailableEncryption(b"x"))
        assert read(pair, key=plain).pair.key == read(pair, key=old, password=b"x").pair.key == pair.key_pem()


def test_a_chain_in_the_wrong_order_is_put_right_and_said() -> None:
    pair = LOWER.server("a")
    lower, middle = pair.chain
    found = read(pair, pem(middle) + pem(pair.certificate) + pem(lower))
    assert found.pair.chain == pair.certificate_pem
    assert found.remarks == (
        "the certificates in c.pem stand in a wrong order, and are sent in the right one: a, then Lower, then Middle",
    )


def test_what_does_not_belong_to_the_chain_is_not_sent_and_said() -> None:
    pair, other = LOWER.server("a"), Authority("Another")
    found = read(pair, pair.certificate_pem + other.pem)
    assert found.pair.chain == pair.certificate_pem
    assert found.remarks == ("c.pem has certificates that do not belong to its chain, and are not sent: Another",)


def test_the_root_is_not_sent() -> None:
    pair = LOWER.server("a")
    found = read(pair, pair.certificate_pem + ROOT.pem)
    assert found.pair.chain == pair.certificate_pem
    assert found.remarks == ()


def test_a_self_signed_certificate_is_sent() -> None:
    own = Authority("localhost")
    found = read_pair(("c.pem", own.pem), ("k.pem", Pair(own.certificate, own.key).key_pem()), None, NOW)
    assert sent(found) == [own.certificate]


def test_a_chain_that_is_missing_is_said_where_it_can_be_known() -> None:
    """Certificates of public authorities say where their issuer's can be had, and are never signed by a root."""
    builder = x509.CertificateBuilder().subject_name(x509.Name([])).issuer_name(MIDDLE.name)
    key = make_key()
    builder = (
        builder.public_key(key.public_key()).serial_number(1).not_valid_before(NOW - DAY).not_valid_after(NOW + DAY)
    )
    where = x509.AuthorityInformationAccess(
        [
            x509.AccessDescription(
                x509.oid.AuthorityInformationAccessOID.CA_ISSUERS, x509.UniformResourceIdentifier("http://ca.example/")
            )
        ]
    )
    names = x509.SubjectAlternativeName([x509.DNSName("a")])
    leaf = builder.add_extension(where, critical=False).add_extension(names, critical=False)
    pair = Pair(leaf.sign(MIDDLE.key, hashes.SHA256()), key)
    (remark,) = read(pair).remarks
    assert remark == (
        "c.pem has the certificate without its chain: clients that do not know Middle will refuse it; name the file "
        "that has both (fullchain.pem)"
    )


def test_an_authority_in_the_chain_that_expired_is_said() -> None:
    pair = LOWER.server("a", ends=9000 * DAY)
    later = NOW + 5000 * DAY
    found = read_pair(("c.pem", pair.certificate_pem), ("k.pem", pair.key_pem()), None, later)
    assert len([remark for remark in found.remarks if "has an authority that expired on" in remark]) == 2


def test_without_alternative_names_the_common_name_counts() -> None:
    found = read(MIDDLE.server(common_name="Example.org"))
    assert found.pair.names == ("example.org",)
    assert "have one made with subject alternative names" in found.remarks[0]
    (remark,) = read(MIDDLE.server(common_name="The Example Company")).remarks
    assert remark == "the certificate in c.pem is for no name: no client that checks names will accept it"


def test_a_certificate_for_clients_is_said_to_be_one() -> None:
    assert "is not made for servers" in read(MIDDLE.client("bob")).remarks[-1]


def test_the_newer_of_two_certificates_of_one_key_is_served() -> None:
    key = make_key()
    old, new = (MIDDLE.server("a", key=key, ends=days * DAY) for days in (1, 90))
    assert sent(read(old, old.certificate_pem + pem(new.certificate)))[0] == new.certificate


PAIR = MIDDLE.server("a", "b", "c")
GARBAGE = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
MISTAKES: dict[str, tuple[Callable[[], object], str]] = {
    "another key": (
        lambda: read(PAIR, key=MIDDLE.server("x").key_pem()),
        "the private key in k.pem does not fit the certificate in c.pem, which is for a and 2 more",
    ),
    "another key, and the wrong order": (
        lambda: read(PAIR, MIDDLE.pem + PAIR.certificate_pem, MIDDLE.server("x").key_pem()),
        "the private key in k.pem does not fit the certificate in c.pem, which is for a and 2 more",
    ),
    "expired": (lambda: read(MIDDLE.server("a", ends=-DAY / 2)), r"in c.pem, for a, expired on 20.* UTC: renew it"),
    "not valid yet": (
        lambda: read(MIDDLE.server("a", begins=DAY)),
        "is not valid before .* is the clock of this machine",
    ),
    "mixed up": (
        lambda: read(PAIR, PAIR.key_pem(), PAIR.certificate_pem),
        "c.pem holds a private key and no certificate: are --tls-cert and --tls-key mixed up",
    ),
    "two certificates": (lambda: read(PAIR, key=PAIR.certificate_pem), "k.pem holds no private key but a certificate"),
    "nothing": (lambda: read(PAIR, b""), "c.pem holds no certificate in PEM: it is empty"),
    "no key": (lambda: read(PAIR, key=b"\n"), "k.pem holds no private key in PEM: it is empty"),
    "another file": (lambda: read(PAIR, b"hello"), "c.pem holds no certificate in PEM: name one"),
    "DER": (
        lambda: read(PAIR, PAIR.certificate.public_bytes(serialization.Encoding.DER)),
        "c.pem is not PEM but DER: `openssl x509",
    ),
    "a damaged certificate": (lambda: read(PAIR, GARBAGE), "the certificate in c.pem is damaged"),
    "a damaged one in the chain": (
        lambda: read(PAIR, PAIR.certificate_pem + GARBAGE),
        r"the 3\. certificate in c.pem is damaged",
    ),
    "a damaged key": (
        lambda: read(PAIR, key=GARBAGE.replace(b"CERTIFICATE", b"PRIVATE KEY")),
        "the private key in k.pem cannot be read: it is damaged",
    ),
    "two keys": (lambda: read(PAIR, key=PAIR.key_pem() * 2), "k.pem holds 2 private keys: which one is meant"),
    "DSA": (
        lambda: read(
            PAIR,
            key=dsa.generate_private_key(1024).private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ),
        ),
        "is of a kind that TLS does not use",
    ),
    "a request": (
        lambda: read(PAIR, GARBAGE.replace(b"CERTIFICATE", b"CERTIFICATE REQUEST")),
        "holds a request for a certificate",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_is_one_sentence(mistake: str) -> None:
    attempt, sentence = MISTAKES[mistake]
    with pytest.raises(UsageError, match=sentence) as caught:
        attempt()
    told = str(caught.value)
    assert "\n" not in told
    assert "BEGIN" not in told


def test_no_part_of_a_key_is_in_the_error_about_it() -> None:
    key = PAIR.key_pem().decode().splitlines()
    key[1] = key[1][::-1]
    with pytest.raises(UsageError) as caught:
        read(PAIR, key="\n".join(key).encode())
    assert key[1][:8] not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_nothing_private_is_shown() -> None:
    found = read(PAIR)
    body = PAIR.key_pem().decode().splitlines()[1]
    assert body not in repr(found)
    assert "PRIVATE" not in repr(found)


# Clients' certificates


def test_authorities_for_clients() -> None:
    found = read_authorities(("ca.pem", b"# a comment\n" + MIDDLE.pem + ROOT.pem), None, NOW)
    assert found.ca == MIDDLE.pem + ROOT.pem
    assert (found.crl, found.crl_for_chain, found.lists, found.remarks) == (b"", False, (), ())


def test_revocation_lists() -> None:
    both = ("ca.pem", MIDDLE.pem + ROOT.pem)
    whole = read_authorities(both, ("crl.pem", MIDDLE.crl() + ROOT.crl()), NOW)
    assert whole.crl_for_chain
    assert [each.kind for each in whole.lists] == ["CRL", "CRL"]
    half = read_authorities(both, ("crl.pem", MIDDLE.crl()), NOW)
    assert not half.crl_for_chain
    assert half.remarks == ("crl.pem has no revocation list of Test root: clients with its certificates are refused",)


@pytest.mark.parametrize(
    ("crl", "sentence"),
    [
        (MIDDLE.crl(ends=-DAY / 2), "the revocation list of Middle in crl.pem expired on .* get the present one"),
        (Authority("Else").crl(), "of Else, which is not among the authorities of --tls-client-ca"),
        (Authority("Middle").crl(), "of Middle, which is not among the authorities"),
        (MIDDLE.pem, "crl.pem holds no revocation list in PEM"),
        (GARBAGE.replace(b"CERTIFICATE", b"X509 CRL"), "a revocation list in crl.pem is damaged"),
    ],
)
def test_a_revocation_list_that_would_refuse_everybody_is_refused(crl: bytes, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        read_authorities(("ca.pem", MIDDLE.pem), ("crl.pem", crl), NOW)


def test_authorities_that_have_all_expired_are_refused() -> None:
    with pytest.raises(UsageError, match=r"ca\.pem has no authority that has not expired"):
        read_authorities(("ca.pem", MIDDLE.pem), None, NOW + 5000 * DAY)


@pytest.mark.needs("openssl")
def test_files_made_by_openssl_itself(tmp_path: Path) -> None:
    """What people make at first: a key and a self-signed certificate by one command."""
    command = "openssl req -x509 -newkey rsa:2048 -nodes -keyout k.pem -out c.pem -days 2 -subj /CN=localhost"
    done = subprocess.run(command.split(), cwd=tmp_path, capture_output=True, check=True)
    assert done.returncode == 0
    files = [(name, (tmp_path / name).read_bytes()) for name in ("c.pem", "k.pem")]
    assert read_pair(files[0], files[1], None, datetime.datetime.now(datetime.UTC) + DAY / 2).pair.names == (
        "localhost",
    )
