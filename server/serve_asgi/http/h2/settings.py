"""What each side of a connection says about itself (RFC 9113 6.5, RFC 8441 3, RFC 9218 2.1). Pure.

It owns the numbers of the settings, the values that are valid, those of the client, and those that this server says.
It must not know frames, nor what follows from a change.
"""

from __future__ import annotations

import enum
from struct import Struct
from typing import Final

from serve_asgi.http.h2.error_codes import ConnectionFault, ErrorCode

MAX_SETTINGS: Final = 32
"""Settings in one frame. There are nine; the same one over and over is work for nothing (CVE-2019-9515)."""
MAX_WINDOW: Final = 0x7FFFFFFF
DEFAULT_WINDOW: Final = 65535
"""Of a stream and of the connection until it is said otherwise (RFC 9113 6.9.2)."""
DEFAULT_TABLE_SIZE: Final = 4096
"""RFC 9113 6.5.2."""
_MAX_U24: Final = 0xFFFFFF
_LEAST_FRAME_SIZE: Final = 16384
_ENTRY: Final = Struct(">HI")


class Setting(enum.IntEnum):
    """Their numbers."""

    HEADER_TABLE_SIZE = 0x1
    ENABLE_PUSH = 0x2
    MAX_CONCURRENT_STREAMS = 0x3
    INITIAL_WINDOW_SIZE = 0x4
    MAX_FRAME_SIZE = 0x5
    MAX_HEADER_LIST_SIZE = 0x6
    ENABLE_CONNECT_PROTOCOL = 0x8
    NO_RFC7540_PRIORITIES = 0x9


_HEADER_TABLE_SIZE: Final = int(Setting.HEADER_TABLE_SIZE)
_ENABLE_PUSH: Final = int(Setting.ENABLE_PUSH)
_INITIAL_WINDOW_SIZE: Final = int(Setting.INITIAL_WINDOW_SIZE)
_MAX_FRAME_SIZE: Final = int(Setting.MAX_FRAME_SIZE)
_ENABLE_CONNECT_PROTOCOL: Final = int(Setting.ENABLE_CONNECT_PROTOCOL)
_NO_RFC7540_PRIORITIES: Final = int(Setting.NO_RFC7540_PRIORITIES)
_SWITCHES: Final = frozenset((_ENABLE_PUSH, _ENABLE_CONNECT_PROTOCOL, _NO_RFC7540_PRIORITIES))


class ClientSettings:
    """What the client has said, as far as it means anything to a server."""

    __slots__ = ("_begun", "initial_window", "max_frame_size", "priorities_in_frames", "table_size")

    def __init__(self) -> None:
        self._begun = False
        self.table_size = DEFAULT_TABLE_SIZE
        """The largest dynamic table that our encoder may use."""
        self.initial_window = DEFAULT_WINDOW
        """What may be sent on a new stream."""
        self.max_frame_size = _LEAST_FRAME_SIZE
        """The largest payload that it takes in a frame."""
        self.priorities_in_frames = True
        """False: PRIORITY frames and HEADERS' priority mean nothing to it (they mean nothing to this server anyway)."""

    def apply(self, payload: bytes) -> None:
        """The payload of a SETTINGS frame; of a setting that is said twice, the last one counts.

        Raises ConnectionFault, and may have applied what stands before the invalid value.
        """
        if len(payload) % _ENTRY.size:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"SETTINGS of {len(payload)} bytes")
        if len(payload) > MAX_SETTINGS * _ENTRY.size:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, f"more than {MAX_SETTINGS} settings in one frame")
        first, self._begun = not self._begun, True
        for key, value in _ENTRY.iter_unpack(payload):
            _check(key, value)
            if key == _INITIAL_WINDOW_SIZE:
                self.initial_window = value
            elif key == _MAX_FRAME_SIZE:
                self.max_frame_size = value
            elif key == _HEADER_TABLE_SIZE:
                self.table_size = value
            elif key == _NO_RFC7540_PRIORITIES:
                if not first and self.priorities_in_frames == bool(value):  # RFC 9218 2.1
                    raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "SETTINGS_NO_RFC7540_PRIORITIES was changed")
                self.priorities_in_frames = not value

    def to_json(self) -> list[int]:
        """What travels with the connection."""
        return [self.table_size, self.initial_window, self.max_frame_size, int(self.priorities_in_frames)]

    def restore(self, values: list[int]) -> None:
        """The reverse."""
        self.table_size, self.initial_window, self.max_frame_size, in_frames = values
        self.priorities_in_frames = bool(in_frames)
        self._begun = True


def _check(key: int, value: int) -> None:
    """RFC 9113 6.5.2, RFC 8441 3, RFC 9218 2.1. Raises ConnectionFault."""
    if key in _SWITCHES:
        if value > 1:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"{Setting(key).name} is neither 0 nor 1")
    elif key == _INITIAL_WINDOW_SIZE:
        if value > MAX_WINDOW:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "an initial window of more than 2^31-1 bytes")
    elif key == _MAX_FRAME_SIZE and not _LEAST_FRAME_SIZE <= value <= _MAX_U24:
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a maximum frame size that is not 2^14 to 2^24-1")


def server_settings(max_streams: int, window: int, max_head_size: int) -> dict[int, int]:
    """What this server says of itself, in the form of `frames.settings_frame`."""
    return {
        Setting.MAX_CONCURRENT_STREAMS: max_streams,
        Setting.INITIAL_WINDOW_SIZE: window,
        Setting.MAX_HEADER_LIST_SIZE: max_head_size,
        Setting.ENABLE_CONNECT_PROTOCOL: 1,
        Setting.NO_RFC7540_PRIORITIES: 1,
    }
