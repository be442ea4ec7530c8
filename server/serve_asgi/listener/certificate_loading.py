"""Reading the files that the TLS options name, and making of them what workers need. As the user that the listener is.

A file may lie on a disk that does not answer: while the server runs this happens in a thread, with a deadline
(`serve_asgi.listener.certificate_watch`). Only a server with a certificate imports it.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
from collections.abc import Mapping
from typing import Any, Final

from serve_asgi.config.accounts import own_name
from serve_asgi.config.config_file import read_small_bytes
from serve_asgi.config.tls_files import TlsFiles
from serve_asgi.errors import UsageError
from serve_asgi.tls.certificates import Certificate, ClientAuthorities, read_authorities, read_pair
from serve_asgi.tls.material import ClientAuth, TlsMaterial
from serve_asgi.tls.server_contexts import examine

LARGEST: Final = 16 << 20
"""Bytes of a file: revocation lists of large authorities have some millions."""


@dataclasses.dataclass(frozen=True, slots=True)
class LoadedTls:
    """What was made of the files."""

    digest: bytes
    """Of the files' content: another one means that something has changed."""
    material: TlsMaterial
    """Without the keys of tickets, which are the server's."""
    certificates: tuple[Certificate, ...]
    """Those that are served, and the revocation lists."""
    remarks: tuple[str, ...] = ()
    """Sentences about what is not an error."""

    def as_values(self) -> dict[str, Any]:
        """All of it, for a program that takes this one's place: in memory alone, since private keys are in it."""
        return {
            "digest": self.digest,
            "material": self.material.to_bytes(),
            "certificates": [dataclasses.asdict(each) for each in self.certificates],
            "remarks": list(self.remarks),
        }

    @classmethod
    def from_values(cls, state: Mapping[str, Any]) -> LoadedTls:
        """The reverse; what another version had and this one does not know is passed over."""
        known = {field.name for field in dataclasses.fields(Certificate)}
        certificates = [{k: v for k, v in each.items() if k in known} for each in state["certificates"]]
        return cls(
            state["digest"],
            TlsMaterial.from_bytes(state["material"]),
            tuple(Certificate(**{**each, "names": tuple(each["names"])}) for each in certificates),
            tuple(state["remarks"]),
        )


def read_files(files: TlsFiles) -> tuple[dict[str, bytes], bytes]:
    """The content of each file, by its path, and the digest of all. Raises UsageError for one that cannot be read."""
    contents = {path: _content(path) for path in files.paths()}
    digest = hashlib.sha256()
    for path, content in contents.items():
        digest.update(f"{path}\0{len(content)}\0".encode() + content)
    return contents, digest.digest()


def _content(path: str) -> bytes:
    try:
        return read_small_bytes(path, LARGEST)
    except PermissionError:
        raise UsageError(
            f"{path} cannot be read by the user that the server is started as ({own_name()}): change its mode or its "
            "owner, or start the server as root and give --user"
        ) from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None


def load(files: TlsFiles) -> LoadedTls:
    """Read all of it and check it, with OpenSSL too. Raises UsageError, a sentence."""
    return make(files, *read_files(files))


def make(files: TlsFiles, contents: Mapping[str, bytes], digest: bytes) -> LoadedTls:
    """What workers need, of what `read_files` has found. Raises UsageError."""
    now = datetime.datetime.now(datetime.UTC)
    password = files.password.encode() or None
    if files.password_file:
        password = contents[files.password_file].split(b"\n")[0].removesuffix(b"\r")
    pairs = [read_pair((one, contents[one]), (key, contents[key]), password, now) for one, key in files.pairs]
    clients = ClientAuthorities(b"")
    if files.client_ca:
        crl = (files.crl, contents[files.crl]) if files.crl else None
        clients = read_authorities((files.client_ca, contents[files.client_ca]), crl, now)
    material = TlsMaterial(
        pairs=tuple(each.pair for each in pairs),
        client_ca=clients.ca,
        client_auth=ClientAuth(files.client_auth),
        crl=clients.crl,
        crl_for_chain=clients.crl_for_chain,
        min_version=files.min_version,
        ciphers=files.ciphers,
    )
    examine(material)
    remarks = dict.fromkeys([*(remark for each in pairs for remark in each.remarks), *clients.remarks])
    return LoadedTls(digest, material, (*(each.certificate for each in pairs), *clients.lists), tuple(remarks))
