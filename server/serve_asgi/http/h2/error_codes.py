"""What goes wrong in HTTP/2, and how it is said to the client (RFC 9113 5.4, 7). Pure.

It owns the codes, and the two exceptions by which every part of the core says that the client has broken a rule: a
`ConnectionFault` ends the connection with GOAWAY, a `StreamFault` ends one stream with RST_STREAM. Both are caught in
`serve_asgi.http.h2.connection_core` alone and never leave it.
"""

from __future__ import annotations

import enum


class ErrorCode(enum.IntEnum):
    """RFC 9113 7. A client may send others, which mean nothing in particular."""

    NO_ERROR = 0x0
    PROTOCOL_ERROR = 0x1
    INTERNAL_ERROR = 0x2
    FLOW_CONTROL_ERROR = 0x3
    SETTINGS_TIMEOUT = 0x4
    STREAM_CLOSED = 0x5
    FRAME_SIZE_ERROR = 0x6
    REFUSED_STREAM = 0x7
    CANCEL = 0x8
    COMPRESSION_ERROR = 0x9
    CONNECT_ERROR = 0xA
    ENHANCE_YOUR_CALM = 0xB
    INADEQUATE_SECURITY = 0xC
    HTTP_1_1_REQUIRED = 0xD


class ConnectionFault(Exception):
    """The client has broken a rule after which the connection cannot go on (RFC 9113 5.4.1)."""

    def __init__(self, code: ErrorCode, reason: str) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason
        """For the person who looks for it at the other end; it travels in the GOAWAY frame."""


class StreamFault(Exception):
    """The client has broken a rule on one stream; the others go on (RFC 9113 5.4.2)."""

    def __init__(self, stream_id: int, code: ErrorCode, reason: str) -> None:
        super().__init__(stream_id, code, reason)
        self.stream_id = stream_id
        self.code = code
        self.reason = reason
