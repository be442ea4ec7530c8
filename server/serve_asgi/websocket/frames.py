"""The frames of a WebSocket on the wire (RFC 6455 5.2, 5.5): their bits, and those that a server sends. Pure.

It owns what a frame looks like, and which codes a close frame may carry. Rule: a server's frames are not masked, and a
client's are, also where a server writes one, for the process that reads on in its place. It must not know messages,
nor in which order frames may come: that is `serve_asgi.websocket.framing`'s.
"""

from __future__ import annotations

from typing import Final

CONTINUATION: Final = 0x0
TEXT: Final = 0x1
BINARY: Final = 0x2
CLOSE: Final = 0x8
PING: Final = 0x9
PONG: Final = 0xA
OPCODES: Final = frozenset((CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG))

FIN: Final = 0x80
RSV: Final = 0x70
RSV1: Final = 0x40  # the message is compressed (RFC 7692 6)
MASKED: Final = 0x80
FIN_TEXT: Final = FIN | TEXT
FIN_BINARY: Final = FIN | BINARY

MAX_CONTROL: Final = 125
MAX_REASON: Final = 123

# Heads of small frames from a server: not masked, so two bytes (RFC 6455 5.2).
SHORT_TEXT: Final = tuple(bytes((FIN_TEXT, size)) for size in range(126))
SHORT_BINARY: Final = tuple(bytes((FIN_BINARY, size)) for size in range(126))


def valid_code(code: int) -> bool:
    """Whether a close frame may carry the code (RFC 6455 7.4, and those registered since: 1012 to 1014)."""
    return 3000 <= code <= 4999 or (1000 <= code <= 1014 and code not in (1004, 1005, 1006))


def data_frame(first: int, payload: bytes) -> bytes:
    """A data frame whose first byte is `first`, with as short a length as its payload allows (RFC 6455 5.2)."""
    size = len(payload)
    if size < 126:
        return bytes((first, size)) + payload
    if size < 65536:
        return bytes((first, 126, size >> 8, size & 255)) + payload
    return bytes((first, 127)) + size.to_bytes(8) + payload


def client_head(first: int, length: int, mask: bytes) -> bytes:
    """The head of a client's frame whose first byte is `first`, up to and with its masking key (RFC 6455 5.2)."""
    if length < 126:
        return bytes((first, MASKED | length)) + mask
    if length < 65536:
        return bytes((first, MASKED | 126, length >> 8, length & 255)) + mask
    return bytes((first, MASKED | 127)) + length.to_bytes(8) + mask


def control_frame(opcode: int, payload: bytes) -> bytes:
    """A ping, pong or close frame; at most 125 bytes of payload (RFC 6455 5.5)."""
    return bytes((FIN | opcode, len(payload))) + payload


def close_frame(code: int, reason: str) -> bytes:
    """A close frame.

    Raises ValueError for a code that may not be sent (RFC 6455 7.4) or a reason of more than 123 bytes.
    """
    said = reason.encode()
    if not valid_code(code) or len(said) > MAX_REASON:
        raise ValueError(
            f"websocket.close: the code {code} or the reason of {len(said)} bytes cannot be sent; codes are "
            "1000 to 1003, 1007 to 1014 and 3000 to 4999, and a reason has at most 123 bytes."
        )
    return control_frame(CLOSE, code.to_bytes(2) + said)
