"""The frames of HTTP/2 on the wire: reading and writing each type (RFC 9113 4 and 6, RFC 9218 7.1). Pure.

It owns the layout of frames, and every rule on a frame that holds whatever came before it: its largest size, the size
that its type demands, and whether its type belongs to a stream or to the connection. Rules: a frame is judged as soon
as its nine bytes of head have come, so that nothing is buffered that will be refused; bytes that come whole are sliced
once and not copied again; however small the pieces in which they come, the work is linear. It must not know streams,
header compression or windows.
"""

from __future__ import annotations

from collections.abc import Generator
from struct import Struct
from typing import Final

from serve_asgi.http.h2.error_codes import ConnectionFault, ErrorCode, StreamFault

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""What a client says first (RFC 9113 3.4)."""

# RFC 9113 6, RFC 9218 7.1
DATA: Final = 0x0
HEADERS: Final = 0x1
PRIORITY: Final = 0x2
RST_STREAM: Final = 0x3
SETTINGS: Final = 0x4
PUSH_PROMISE: Final = 0x5
PING: Final = 0x6
GOAWAY: Final = 0x7
WINDOW_UPDATE: Final = 0x8
CONTINUATION: Final = 0x9
PRIORITY_UPDATE: Final = 0x10
NAMES: Final = {
    DATA: "DATA",
    HEADERS: "HEADERS",
    PRIORITY: "PRIORITY",
    RST_STREAM: "RST_STREAM",
    SETTINGS: "SETTINGS",
    PUSH_PROMISE: "PUSH_PROMISE",
    PING: "PING",
    GOAWAY: "GOAWAY",
    WINDOW_UPDATE: "WINDOW_UPDATE",
    CONTINUATION: "CONTINUATION",
    PRIORITY_UPDATE: "PRIORITY_UPDATE",
}

# Flags: of DATA and HEADERS; of HEADERS and CONTINUATION; of SETTINGS and PING.
END_STREAM: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
HAS_PRIORITY: Final = 0x20
ACK: Final = 0x1

HEAD_SIZE: Final = 9
LEAST_MAX_FRAME_SIZE: Final = 16384
"""SETTINGS_MAX_FRAME_SIZE as it is until it is said otherwise (RFC 9113 6.5.2): ours stays so, since a larger frame
would only have to be held for longer before it is whole."""
MAX_STREAM_ID: Final = 0x7FFFFFFF
MAX_DEBUG_DATA: Final = 256
"""Bytes of a client's GOAWAY that are kept for the log."""

HEAD: Final = Struct(">IBI")
"""Length and type in one number, flags, the reserved bit and the stream (RFC 9113 4.1)."""
_U32: Final = Struct(">I")

_ANY: Final = -1
_STREAM, _CONNECTION, _EITHER = "stream", "connection", "either"
_RULES: Final[dict[int, tuple[str, int, int]]] = {
    DATA: (_STREAM, 0, _ANY),
    HEADERS: (_STREAM, 0, _ANY),
    PRIORITY: (_STREAM, 5, 5),
    RST_STREAM: (_STREAM, 4, 4),
    SETTINGS: (_CONNECTION, 0, _ANY),
    PING: (_CONNECTION, 8, 8),
    GOAWAY: (_CONNECTION, 8, _ANY),
    WINDOW_UPDATE: (_EITHER, 4, 4),
    CONTINUATION: (_STREAM, 0, _ANY),
    PRIORITY_UPDATE: (_CONNECTION, 4, _ANY),
}
"""Where a frame of the type belongs, its least and its greatest size."""

Frame = tuple[int, int, int, bytes]
"""Type, flags, stream (0: the connection), payload."""


class FrameReader:
    """Takes the client's bytes apart into frames."""

    __slots__ = ("_max_size", "_needed", "_rest")

    def __init__(self, max_size: int = LEAST_MAX_FRAME_SIZE) -> None:
        """`max_size`: the largest payload in bytes that the client may send."""
        self._max_size = max_size
        self._rest = bytearray()
        """The beginning of a frame."""
        self._needed = HEAD_SIZE
        """With how many bytes there is something to do."""

    @property
    def rest(self) -> bytes:
        """What has come of a frame that is not whole yet."""
        return bytes(self._rest)

    def frames(self, data: bytes) -> Generator[Frame, None, None]:
        """The frames that are whole with `data`; to be taken to the end, or closed, before the next call.

        Of one that was closed the rest is kept, and comes with the next call. Raises ConnectionFault.
        """
        rest = self._rest
        if rest:
            rest += data
            if len(rest) < self._needed:
                return
            data = bytes(rest)
            rest.clear()
        position, size = 0, len(data)
        max_size, unpack = self._max_size, HEAD.unpack_from
        self._needed = HEAD_SIZE
        try:
            while size - position >= HEAD_SIZE:
                word, flags, stream_id = unpack(data, position)
                kind = word & 0xFF
                length = word >> 8
                start = position + HEAD_SIZE
                end = start + length
                if kind > HEADERS or not 0 < stream_id <= MAX_STREAM_ID or length > max_size:
                    stream_id &= MAX_STREAM_ID
                    check_head(kind, stream_id, length, max_size)
                if end > size:
                    self._needed = end - position
                    break
                position = end
                yield kind, flags, stream_id, data[start:end]
        finally:
            if position < size:
                rest += data[position:] if position else data


def check_head(kind: int, stream_id: int, length: int, max_size: int) -> None:
    """What is wrong with a frame, by its head alone. Raises ConnectionFault.

    A frame of a size that RFC 9113 makes an error of the stream (PRIORITY, 6.3; DATA over the maximum, 4.2) ends the
    connection as well (which 5.4 allows): its sender cannot count, and everything behind it would be misread.
    """
    if length > max_size:
        raise ConnectionFault(
            ErrorCode.FRAME_SIZE_ERROR, f"a frame of {length} bytes; this server takes {max_size} at most"
        )
    if kind == PUSH_PROMISE:
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a client cannot push (RFC 9113 8.4)")
    rule = _RULES.get(kind)
    if rule is None:  # RFC 9113 4.1, 5.5: ignored
        return
    place, least, greatest = rule
    if stream_id:
        if place == _CONNECTION:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"{NAMES[kind]} on a stream")
    elif place == _STREAM:
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"{NAMES[kind]} on no stream")
    if length < least or length > greatest != _ANY:
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"{NAMES[kind]} of {length} bytes")


# ---- what is inside


def without_padding(kind: int, payload: bytes) -> bytes:
    """The payload of a padded DATA or HEADERS frame without its padding (RFC 9113 6.1, 6.2). Raises ConnectionFault."""
    if not payload:
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"padded {NAMES[kind]} without its length of padding")
    end = len(payload) - payload[0]
    if end < 1:
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"{NAMES[kind]} with more padding than payload")
    return payload[1:end]


def header_fragment(flags: int, stream_id: int, payload: bytes) -> bytes:
    """The field block's part in a HEADERS frame (RFC 9113 6.2), less padding and the deprecated priority.

    Raises ConnectionFault.
    """
    if flags & PADDED:
        payload = without_padding(HEADERS, payload)
    if flags & HAS_PRIORITY:
        if len(payload) < 5:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "HEADERS without its five bytes of priority")
        if depends_on_itself(stream_id, payload):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a stream that depends on itself")
        payload = payload[5:]
    return payload


def depends_on_itself(stream_id: int, payload: bytes) -> bool:
    """Whether five bytes of (deprecated) priority name the stream itself as its parent (RFC 7540 5.3.1)."""
    return number(payload) & MAX_STREAM_ID == stream_id


def number(payload: bytes) -> int:
    """The first four bytes: an error code, a stream, an increment with its reserved bit."""
    return int(_U32.unpack_from(payload)[0])


def window_increment(stream_id: int, payload: bytes) -> int:
    """Of a WINDOW_UPDATE (RFC 9113 6.9). Raises StreamFault or ConnectionFault for 0."""
    increment = number(payload) & MAX_STREAM_ID
    if not increment:
        if stream_id:
            raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE by 0")
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE by 0")
    return increment


# ---- what a server sends


def frame(kind: int, flags: int, stream_id: int, payload: bytes) -> bytes:
    """Any frame."""
    return HEAD.pack(len(payload) << 8 | kind, flags, stream_id) + payload


def settings_frame(values: dict[int, int]) -> bytes:
    """RFC 9113 6.5."""
    return frame(SETTINGS, 0, 0, b"".join(key.to_bytes(2) + value.to_bytes(4) for key, value in values.items()))


SETTINGS_ACK: Final = frame(SETTINGS, ACK, 0, b"")


def ping_frame(payload: bytes, ack: bool) -> bytes:
    """RFC 9113 6.7; `payload` has eight bytes."""
    return frame(PING, ACK if ack else 0, 0, payload)


def go_away_frame(last_stream: int, code: int, reason: str) -> bytes:
    """RFC 9113 6.8; of the reason the first 256 bytes are said."""
    said = reason.encode()[:MAX_DEBUG_DATA]
    return frame(GOAWAY, 0, 0, _U32.pack(last_stream) + _U32.pack(code) + said)


def reset_frame(stream_id: int, code: int) -> bytes:
    """RFC 9113 6.4."""
    return frame(RST_STREAM, 0, stream_id, _U32.pack(code))


def window_update_frame(stream_id: int, increment: int) -> bytes:
    """RFC 9113 6.9."""
    return frame(WINDOW_UPDATE, 0, stream_id, _U32.pack(increment))


def header_frames(stream_id: int, block: bytes, end_stream: bool, max_size: int) -> list[bytes]:
    """A field block of more than `max_size` bytes as HEADERS and CONTINUATION frames (RFC 9113 4.3)."""
    first = END_STREAM if end_stream else 0
    pieces = [frame(HEADERS, first, stream_id, block[:max_size])]
    for start in range(max_size, len(block), max_size):
        last = END_HEADERS if start + max_size >= len(block) else 0
        pieces.append(frame(CONTINUATION, last, stream_id, block[start : start + max_size]))
    return pieces
