"""Frames between a process and its hub, one per packet.

A frame is a kind, a head (a small map) and a body that is forwarded without being read: two bytes with the length of
the head, kind and head as MessagePack, and the body as it is. Payloads and values are MessagePack as well
(https://msgpack.org): JSON's types, and bytes.
"""

from __future__ import annotations

import struct
from typing import Any, Final, NamedTuple

import msgpack
import msgspec

from serve_asgi.errors import ChannelError
from serve_asgi.ipc.untrusted_input import BAD, why

MAX_FRAME: Final = 200_000
"""Bytes in one frame; the kernel's default socket buffer admits 212,960 (socket(7), wmem_default)."""
MAX_PAYLOAD: Final = 128 * 1024
"""Bytes of a message's payload, encoded."""

_LENGTH: Final = struct.Struct(">H")
_PACK: Final = msgspec.msgpack.Encoder().encode
_OPENED: Final = msgspec.msgpack.Decoder(tuple[str, msgspec.Raw])


class Frame(NamedTuple):
    """One frame; `head` is a map with short names as keys."""

    kind: str
    head: dict[str, Any]
    body: bytes = b""


class ValidatedFrame(NamedTuple):
    """A frame of an untrusted process; `head` is its kind's struct (of `serve_asgi.ipc.untrusted_input`)."""

    kind: str
    head: Any
    body: bytes = b""


def split_frame(data: bytes) -> tuple[str, msgspec.Raw, bytes]:
    """A frame's kind, its undecoded head, and its body. Raises ChannelError for an invalid frame."""
    try:
        if len(data) > MAX_FRAME:
            raise ValueError("it is too long")
        (length,) = _LENGTH.unpack_from(data)
        end = _LENGTH.size + length
        kind, head = _OPENED.decode(data[2:end])
        if end > len(data):
            raise ValueError("it is shorter than announced")
    except (struct.error, *BAD) as error:
        raise ChannelError(f"a packet that is not a frame: {why(error)}") from None
    return kind, head, data[end:]


def encode(kind: str, head: dict[str, Any] | None = None, body: bytes = b"") -> bytes:
    """A frame as bytes. Raises ChannelError if it is too large for a packet."""
    pack_value = _PACK([kind, head or {}])
    if len(pack_value) > 0xFFFF or len(pack_value) + len(body) + _LENGTH.size > MAX_FRAME:
        raise ChannelError(f"a frame {kind!r} of {len(pack_value) + len(body)} bytes is too large for a packet")
    return b"".join((_LENGTH.pack(len(pack_value)), pack_value, body))


def decode(data: bytes) -> Frame:
    """The reverse of `encode`. Raises ChannelError for an invalid frame."""
    try:
        (length,) = _LENGTH.unpack_from(data)
        end = _LENGTH.size + length
        kind, head = msgpack.unpackb(data[_LENGTH.size : end])
        if end > len(data) or not isinstance(kind, str) or not isinstance(head, dict):
            raise ValueError
    except (ValueError, TypeError, struct.error, msgpack.UnpackException):
        raise ChannelError("a packet arrived that is not a frame") from None
    return Frame(kind, head, data[end:])


class NotSendable(TypeError):
    """A value that cannot be sent between processes: the message says which part, and what can be sent."""


def pack_value(value: Any, what: str) -> bytes:
    """`value` as MessagePack; `what` names it in the error.

    Tuples arrive as lists. Raises NotSendable for what is not None, bool, int (64 bits), float, str, bytes, list or
    dict.
    """
    try:
        found: bytes = msgpack.packb(value)
    except OverflowError:
        raise NotSendable(f"{what} holds an integer of more than 64 bits: send it as a string") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise NotSendable(
            f"{what} cannot be sent ({error}): use None, bool, int, float, str, bytes, lists and dicts of these"
        ) from None
    return found


def pack_sendable(value: Any, what: str) -> bytes:
    """As `pack_value`, for an application's value: also ensures that it can be unpacked. Raises NotSendable."""
    found = pack_value(value, what)
    if isinstance(value, dict | list | tuple):
        try:
            msgpack.unpackb(found, strict_map_key=False)
        except (ValueError, TypeError, msgpack.UnpackException):
            raise NotSendable(
                f"{what} cannot be sent: it has a dict with a tuple or a dict as a key; use a string or a number"
            ) from None
    return found


def unpack_value(data: bytes) -> Any:
    """The reverse of `pack_value`. Raises ChannelError for an invalid value."""
    try:
        return msgpack.unpackb(data, strict_map_key=False)
    except (ValueError, TypeError, msgpack.UnpackException):
        raise ChannelError("a value arrived that is not MessagePack") from None
