"""What ends a TLS connection: the alerts of RFC 8446 section 6, and the failure that is shown to people.

An alert is what the client's program sees, a failure what the operator reads: each failure is a sentence, with the
alert that was sent for it or that came from the client.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import Final


class Alert(enum.IntEnum):
    """The description of an alert (RFC 8446 6, and the older ones that a TLS 1.2 client may send)."""

    CLOSE_NOTIFY = 0
    UNEXPECTED_MESSAGE = 10
    BAD_RECORD_MAC = 20
    DECRYPTION_FAILED = 21
    RECORD_OVERFLOW = 22
    DECOMPRESSION_FAILURE = 30
    HANDSHAKE_FAILURE = 40
    NO_CERTIFICATE = 41
    BAD_CERTIFICATE = 42
    UNSUPPORTED_CERTIFICATE = 43
    CERTIFICATE_REVOKED = 44
    CERTIFICATE_EXPIRED = 45
    CERTIFICATE_UNKNOWN = 46
    ILLEGAL_PARAMETER = 47
    UNKNOWN_CA = 48
    ACCESS_DENIED = 49
    DECODE_ERROR = 50
    DECRYPT_ERROR = 51
    PROTOCOL_VERSION = 70
    INSUFFICIENT_SECURITY = 71
    INTERNAL_ERROR = 80
    INAPPROPRIATE_FALLBACK = 86
    USER_CANCELED = 90
    NO_RENEGOTIATION = 100
    MISSING_EXTENSION = 109
    UNSUPPORTED_EXTENSION = 110
    CERTIFICATE_UNOBTAINABLE = 111
    UNRECOGNIZED_NAME = 112
    BAD_CERTIFICATE_STATUS_RESPONSE = 113
    BAD_CERTIFICATE_HASH_VALUE = 114
    UNKNOWN_PSK_IDENTITY = 115
    CERTIFICATE_REQUIRED = 116
    NO_APPLICATION_PROTOCOL = 120


WARNING: Final = 1
FATAL: Final = 2
DISTRUST: Final = frozenset(
    (
        Alert.BAD_CERTIFICATE,
        Alert.UNSUPPORTED_CERTIFICATE,
        Alert.CERTIFICATE_REVOKED,
        Alert.CERTIFICATE_EXPIRED,
        Alert.CERTIFICATE_UNKNOWN,
        Alert.UNKNOWN_CA,
    )
)
"""With these a client says that it does not accept the server's certificate."""


def alert_name(number: int) -> str:
    """The alert as RFC 8446 writes it: "bad_record_mac"; "alert 200" for one that no RFC defines."""
    try:
        return Alert(number).name.lower()
    except ValueError:
        return f"alert {number}"


@dataclasses.dataclass(frozen=True, slots=True)
class TlsFailure:
    """Why a TLS connection ended that should not have: for the log, never for the client."""

    reason: str
    """A sentence without its full stop: "the client does not accept the certificate (unknown_ca)"."""
    alert_sent: int | None = None
    """The number of the alert that is among the outgoing bytes; None also if OpenSSL has encrypted it."""
    alert_received: int | None = None
    """The number of the alert with which the client ended the connection."""
    plain_http: bool = False
    """The client spoke HTTP without TLS: a readable response in plain text can be sent."""


def received(number: int) -> TlsFailure:
    """The client has ended the connection with this alert."""
    name = alert_name(number)
    if number in DISTRUST:
        return TlsFailure(f"the client does not accept the certificate ({name})", alert_received=number)
    return TlsFailure(f"the client ended the connection with the alert {name}", alert_received=number)
