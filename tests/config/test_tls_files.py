"""The TLS options of a configuration: which files they name, and what cannot be meant."""

from __future__ import annotations

import pytest

from serve_asgi.config.options import Config
from serve_asgi.config.sources import Given, build
from serve_asgi.config.tls_files import TlsFiles
from serve_asgi.errors import UsageError


def files(**options: object) -> TlsFiles | None:
    return TlsFiles.of(Config(app="app:asgi", **options), "/srv/app")  # type: ignore[arg-type]


def test_without_a_certificate_there_are_none() -> None:
    assert files() is None


def test_paths_are_relative_to_the_directory_of_the_start() -> None:
    found = files(tls_cert=("a.pem", "/etc/b.pem"), tls_key=("a.key", "b.key"), tls_key_password_file="password")
    assert found is not None
    assert found.pairs == (("/srv/app/a.pem", "/srv/app/a.key"), ("/etc/b.pem", "/srv/app/b.key"))
    assert found.paths() == [
        *("/srv/app/a.pem", "/srv/app/a.key", "/etc/b.pem", "/srv/app/b.key"),
        "/srv/app/password",
    ]


def test_a_key_may_stand_in_the_certificates_file() -> None:
    found = files(tls_cert=("both.pem",))
    assert found is not None
    assert found.pairs == (("/srv/app/both.pem", "/srv/app/both.pem"),)
    assert found.paths() == ["/srv/app/both.pem"]


def test_clients_are_asked_where_their_authorities_are_known() -> None:
    asks = {
        auth: found.client_auth
        for auth in ("", "none", "optional")
        if (found := files(tls_cert=("c",), tls_client_ca="ca.pem", tls_client_auth=auth)) is not None
    }
    assert asks == {"": "required", "none": "none", "optional": "optional"}
    plain = files(tls_cert=("c",))
    assert plain is not None
    assert plain.client_auth == "none"


def test_a_password_is_not_shown() -> None:
    assert "secret" not in repr(files(tls_cert=("c",), tls_key_password="secret"))


CERT: dict[str, Given] = {"tls_cert": ("c.pem",)}


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"tls_key": ("c.key",)}, "does nothing without a certificate: give --tls-cert as well"),
        ({"https_redirect": True}, "does nothing without a certificate"),
        (CERT | {"tls_key": ("a.key", "b.key")}, "there are 2 keys and 1 certificates: give one key for each"),
        (CERT | {"tls_key_password": "p", "tls_key_password_file": "f"}, "were both given: leave one out"),
        (CERT | {"tls_client_auth": "required"}, "give --tls-client-ca"),
        (CERT | {"tls_crl": "crl.pem"}, "give --tls-client-ca"),
        ({"bind": ("https://:8443",)}, "it needs --tls-cert and --tls-key to speak TLS; plain is :8443"),
        (CERT | {"admin": "https://127.0.0.1:1"}, "the metrics and their page speak no TLS; plain is 127.0.0.1:1"),
    ],
)
def test_what_cannot_be_meant_is_refused(given: dict[str, Given], sentence: str) -> None:
    with pytest.raises(UsageError) as refused:
        build("app:asgi", given, {})
    assert sentence in str(refused.value)
