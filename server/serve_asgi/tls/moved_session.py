"""What is known of an open TLS connection, and all that travels with it to another process. Pure.

A `MovedSession` has the secrets of a connection in it: it goes from one process of this server to another over a
private socket pair, is never written anywhere else, and its `repr` does not show them.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
from typing import Any, Final

from serve_asgi.tls.record_protection import MAX_FRAGMENT

FORMAT: Final = 1
"""Of the record: raised when an older version could not go on with what a newer one sends."""
TLS_1_2: Final = 0x0303
TLS_1_3: Final = 0x0304


@dataclasses.dataclass(frozen=True, slots=True)
class TlsInfo:
    """What was negotiated."""

    version: int
    """0x0304 is TLS 1.3, 0x0303 TLS 1.2."""
    cipher_suite: int
    """Its number in the registry of TLS; 0 if it is not known."""
    cipher_name: str
    """As OpenSSL writes it: TLS_AES_128_GCM_SHA256, ECDHE-RSA-AES128-GCM-SHA256."""
    server_name: str | None = None
    """The name that the client asked for (SNI), as it wrote it."""
    alpn: str | None = None
    """The protocol that was agreed on (RFC 7301); None if the client named none."""
    client_certificates: tuple[str, ...] = ()
    """The client's certificate and its chain, verified, in PEM; after a resumption the certificate alone."""
    client_name: str | None = None
    """The subject of the client's certificate, by RFC 4514: "CN=ada,O=Example"."""
    client_error: str | None = None
    """Why the client's certificate is not to be believed; always None, as such a handshake fails."""
    server_certificate: str | None = None
    """The certificate that the client was shown, in PEM; None if that is not known."""
    resumed: bool = False
    """By a session ticket, without a signature and without the client's certificate."""

    @property
    def version_name(self) -> str:
        """TLSv1.3, as access logs have it."""
        return f"TLSv1.{self.version - 0x0301}"


@dataclasses.dataclass(frozen=True, slots=True)
class MovedSession:
    """An open TLS 1.3 connection between two records: with this another process goes on with it."""

    suite: int
    read_secret: bytes = dataclasses.field(repr=False)
    """The client's traffic secret, of the current generation (RFC 8446 7.2)."""
    read_sequence: int
    """The number of the next record that comes."""
    write_secret: bytes = dataclasses.field(repr=False)
    write_sequence: int
    info: TlsInfo
    partial: bytes = b""
    """What has come of a record that is not whole yet, as it came."""
    message: bytes = b""
    """What has come of a handshake message that is not whole yet, opened."""
    max_fragment: int = MAX_FRAGMENT
    """The most content that the client wants in one record."""

    def to_json(self) -> dict[str, Any]:
        """JSON-compatible values, bytes as base64."""
        values: dict[str, Any] = {"format": FORMAT}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            values[field.name] = base64.b64encode(value).decode() if isinstance(value, bytes) else value
        values["info"] = {field.name: getattr(self.info, field.name) for field in dataclasses.fields(TlsInfo)}
        values["info"]["client_certificates"] = list(self.info.client_certificates)
        return values

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> MovedSession:
        """The reverse of `to_json`. Fields that only the sender knows are passed over.

        Raises ValueError for a format that this version does not know, KeyError for what must be there.
        """
        if values["format"] != FORMAT:
            raise ValueError(f"a TLS connection in format {values['format']}, which this version does not know")
        info = {
            field.name: values["info"][field.name]
            for field in dataclasses.fields(TlsInfo)
            if field.name in values["info"]
        }
        info["client_certificates"] = tuple(info.get("client_certificates", ()))
        info["server_certificate"] = the_same(info.get("server_certificate"))
        return cls(
            suite=values["suite"],
            read_secret=base64.b64decode(values["read_secret"]),
            read_sequence=values["read_sequence"],
            write_secret=base64.b64decode(values["write_secret"]),
            write_sequence=values["write_sequence"],
            info=TlsInfo(**info),
            partial=base64.b64decode(values["partial"]),
            message=base64.b64decode(values["message"]),
            max_fragment=values["max_fragment"],
        )


@functools.lru_cache(maxsize=64)
def the_same(text: str | None) -> str | None:
    """The text, so that thousands of connections with equal ones keep it once."""
    return text
