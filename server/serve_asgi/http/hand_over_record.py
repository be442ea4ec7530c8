"""The record that travels with a connection that one worker hands over to another.

It says all that the receiver must know to go on as if nothing had happened. Deadlines are points in CLOCK_MONOTONIC,
which all processes of the machine share, so that a reload never renews a slow client's time.
"""

from __future__ import annotations

import base64
import dataclasses
import math
from typing import Any, Final

from serve_asgi.ipc.peer_address import Address

NOT_IDLE: Final[dict[str, Any]] = {
    **dict.fromkeys(("format", "suite", "read_sequence", "write_sequence", "max_fragment"), 0),
    **dict.fromkeys(("read_secret", "write_secret", "partial", "message"), ""),
    "info": {"version": 0, "cipher_suite": 0, "cipher_name": ""},
}
"""In place of the TLS of a connection that survives, or of one of HTTP/2: a version that knows nothing of those refuses
it as TLS of a format that it does not know, where it would take it for an idle connection of HTTP/1.1 otherwise."""

MOST_LEFTOVER: Final = 32 * 1024 * 1024
"""Bytes of leftover that travel at most."""


@dataclasses.dataclass(frozen=True, slots=True)
class HandOverRecord:
    """What is known about a connection on which no request is in progress, or one that survives."""

    leftover: bytes
    """Bytes read since the end of the last request: half a head, or whole requests that were pipelined."""
    client: Address
    server: Address
    deadline: float
    """CLOCK_MONOTONIC, s: when the keep-alive or, with a half-sent head, the head timeout ends; may be infinity."""
    requests: int
    """Requests served on this connection so far."""
    scheme: str = "http"
    """What the client's side of the connection is: http, or https where a balancer that ends TLS has said so."""
    trusted: bool | None = None
    """Whether what the client says in forwarding fields is believed; None: as the addresses have it."""
    awaits_proxy: bool = False
    """The leftover is the beginning of a PROXY protocol header; client and server are the real ends meanwhile."""
    awaits_tls: bool = False
    """And that header is followed by a TLS handshake."""
    tls: dict[str, Any] | None = dataclasses.field(default=None, repr=False)
    """Of a TLS connection: what another process needs to go on with it (`serve_asgi.tls.moved_session`, JSON)."""
    survives: bool = False
    """The connection is in use, and the leftover is a `serve_asgi.http.survival_record.SurvivalRecord`."""
    http2: dict[str, Any] | None = dataclasses.field(default=None, repr=False)
    """Of an HTTP/2 connection: what `serve_asgi.http.h2.connection_value` gives; the leftover is read behind it."""

    def to_json(self) -> dict[str, Any]:
        """JSON-compatible values, the leftover as base64."""
        return {
            "leftover": base64.b64encode(self.leftover).decode(),
            "client": self.client,
            "server": self.server,
            "deadline": None if math.isinf(self.deadline) else self.deadline,
            "requests": self.requests,
            "scheme": self.scheme,
            "trusted": self.trusted,
            "awaits_proxy": self.awaits_proxy,
            "awaits_tls": self.awaits_tls,
            **self._tls_by_kind(),
        }

    def _tls_by_kind(self) -> dict[str, Any]:
        """The TLS where only a version that knows this kind of connection looks for it."""
        found: dict[str, Any] = {"tls": self.tls}
        if self.survives:
            found = {"tls": NOT_IDLE, "survives": found}
        if self.http2 is not None:
            hidden = {"tls": NOT_IDLE, **({"survives": {"tls": NOT_IDLE}} if self.survives else {})}
            found = {**hidden, "http2": {"tls": self.tls, "state": self.http2}}
        return found

    def with_leftover(self, leftover: bytes) -> HandOverRecord:
        """The same record with other leftover bytes, which travelled outside it."""
        return dataclasses.replace(self, leftover=leftover)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> HandOverRecord:
        """The reverse of `to_json`; a record of the last minor version may lack the last seven."""

        def address(value: list[Any] | None) -> Address:
            return None if value is None else (value[0], value[1])

        deadline, survives, http2 = values["deadline"], values.get("survives"), values.get("http2")
        return cls(
            leftover=base64.b64decode(values["leftover"]),
            client=address(values["client"]),
            server=address(values["server"]),
            deadline=math.inf if deadline is None else deadline,
            requests=values["requests"],
            scheme=values.get("scheme", "http"),
            trusted=values.get("trusted"),
            awaits_proxy=values.get("awaits_proxy", False),
            awaits_tls=values.get("awaits_tls", False),
            tls=(http2 or survives or values).get("tls"),
            survives=survives is not None,
            http2=None if http2 is None else http2["state"],
        )
