"""What the TLS options of a configuration name: files, and how they are to be used. It reads none of them.

Paths are relative to the directory that the server was started in, by the name under which it was entered, and links on
them are followed anew each time: certbot and Kubernetes replace certificates by pointing a link elsewhere.
"""

from __future__ import annotations

import dataclasses
import os

from serve_asgi.config.options import Config


@dataclasses.dataclass(frozen=True, slots=True)
class TlsFiles:
    """What one configuration asks for. Configurations that ask for the same have equal ones."""

    pairs: tuple[tuple[str, str], ...]
    """The paths of each certificate and its private key."""
    password: str = dataclasses.field(default="", repr=False)
    password_file: str = ""
    client_ca: str = ""
    client_auth: str = "none"
    crl: str = ""
    min_version: str = "1.2"
    ciphers: str = ""

    @classmethod
    def of(cls, config: Config, directory: str) -> TlsFiles | None:
        """What `config` names, relative to `directory`; None if it has no certificate."""
        if not config.tls_cert:
            return None

        def path(given: str) -> str:
            return os.path.join(directory, given) if given else ""

        keys = config.tls_key or config.tls_cert
        return cls(
            pairs=tuple((path(one), path(other)) for one, other in zip(config.tls_cert, keys, strict=True)),
            password=config.tls_key_password,
            password_file=path(config.tls_key_password_file),
            client_ca=path(config.tls_client_ca),
            client_auth=config.tls_client_auth or ("required" if config.tls_client_ca else "none"),
            crl=path(config.tls_crl),
            min_version=config.tls_min_version,
            ciphers=config.tls_ciphers,
        )

    def paths(self) -> list[str]:
        """All files, each once."""
        given = [path for pair in self.pairs for path in pair]
        return list(dict.fromkeys(filter(None, [*given, self.password_file, self.client_ca, self.crl])))
