"""What the methods of `shared` accept: keys, values and integers, checked before anything is sent."""

from __future__ import annotations

from typing import Any

from serve_asgi.app import shared_errors as errors
from serve_asgi.errors import ChannelError
from serve_asgi.ipc.frames import pack_value, unpack_value
from serve_asgi.ipc.state_frames import MAX_KEY, RESERVED


def checked_key(key: str) -> str:
    """Return the key, if it is valid. Raises TypeError or BadKey."""
    if not isinstance(key, str):
        raise TypeError(f"keys of the shared state are strings, not {type(key).__name__}")
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        raise errors.BadKey("a key holds half a surrogate pair, which is not text") from None
    if not 0 < size <= MAX_KEY:
        raise errors.BadKey(f"a key has 1 to {MAX_KEY} bytes, this one has {size}")
    if key.startswith(RESERVED):
        raise errors.BadKey(f"keys that begin with {RESERVED!r} are the server's own")
    return key


def checked_integer(number: int, what: str) -> int:
    """Return the integer, if it is one. Raises NotAnInteger or OutOfRange."""
    if isinstance(number, bool) or not isinstance(number, int):
        raise errors.NotAnInteger(f"{what} is an integer, not {number!r}")
    if not -(2**63) <= number < 2**63:
        raise errors.OutOfRange(f"{what} has more than 64 bits")
    return number


def encoded_value(key: str, value: Any, limit: int) -> bytes:
    """Encode a value, with at most `limit` bytes. Raises NotSendable or ValueTooLarge."""
    data = pack_value(value, f"the value of {key!r}")
    if isinstance(value, list | tuple | dict):
        try:
            unpack_value(data)
        except ChannelError:  # a dict with a tuple among its keys, which would arrive as a list
            raise errors.NotSendable(
                f"the value of {key!r} cannot be read again: keys of dicts are strings, bytes or numbers"
            ) from None
    if len(data) > limit:
        raise errors.ValueTooLarge(
            f"the value of {key!r} has {len(data)} bytes, more than {limit} (--state-value-limit)"
        )
    return data
