"""What a write to the shared state does: the pure decision, the same in the hub and in every store.

Every change has a version: the number of the write in the life of the state, counted over all keys, so that a key that
is deleted and made again never has the same version twice. A missing key has version 0. Values are MessagePack, which
only `incr` decodes. Nothing is kept here; the caller keeps entries, version and size.
"""

from __future__ import annotations

import enum
from typing import Any, Final, NamedTuple

from serve_asgi.errors import ChannelError
from serve_asgi.ipc.frames import pack_value, unpack_value
from serve_asgi.ipc.state_frames import INT64, MAX_KEY, Write, WriteOp

OVERHEAD: Final = 256
"""Bytes that an entry counts as besides its key and value: what it costs in memory, however small it is (measured on
CPython 3.11 and 3.13: 250 in the listener, 235 in the store process, 235 to 305 in a worker)."""


class RefusalCode(enum.Enum):
    """Why a write is refused; the values are the `code` in frames."""

    CONFLICT = "conflict"  # the key has another version: `version` and `value` of the refusal are the present ones
    ABSENT = "absent"  # there is nothing to delete; not an error
    TYPE = "type"  # `incr` of something that is not an integer
    RANGE = "range"  # `incr` would leave 64 bits
    KEY = "key"  # an empty key, or one that is too long
    VALUE = "value"  # the value is too large
    FULL = "full"  # the state would be too large


class StateEntry(NamedTuple):
    """The present version and value of a key."""

    version: int
    value: bytes


class StateLimits(NamedTuple):
    """In bytes, for one value and for all entries together (`entry_size`)."""

    value: int
    total: int


class AcceptedWrite(NamedTuple):
    """The write stands: the key has this value from now on."""

    key: str
    version: int
    value: bytes | None  # None: the key is deleted
    grows: int  # bytes by which the state grows (or shrinks, if negative)


class WriteRefusal(NamedTuple):
    """The write has changed nothing."""

    code: RefusalCode
    text: str  # a sentence for the reader of the writer's traceback
    version: int = 0  # the key's present version
    value: bytes = b""  # for CONFLICT: its present value, if it is there


def entry_size(key: str, value: bytes) -> int:
    """Bytes that an entry counts as (`StateLimits.total`)."""
    return len(key.encode()) + len(value) + OVERHEAD


def evaluate_write(
    write: Write, entry: StateEntry | None, limits: StateLimits, used: int, version: int
) -> AcceptedWrite | WriteRefusal:
    """The outcome of `write` to a key that has `entry` (None: it is not there).

    `used` is the present size of all entries (`entry_size`). `version` is what the change gets, one more than the last
    change of any key; if the write is refused, the next one gets it.
    """
    key, now = write.key, entry.version if entry is not None else 0
    if not 0 < len(key.encode()) <= MAX_KEY:
        return WriteRefusal(RefusalCode.KEY, f"a key has 1 to {MAX_KEY} bytes, this one has {len(key.encode())}", now)
    if write.version is not None and write.version != now:
        text = f"{key!r} has version {now}, not {write.version}: it was written meanwhile"
        return WriteRefusal(RefusalCode.CONFLICT, text, now, entry.value if entry is not None else b"")
    before = 0 if entry is None else entry_size(key, entry.value)
    if write.op is WriteOp.DELETE:
        if entry is None:
            return WriteRefusal(RefusalCode.ABSENT, f"there is no {key!r}")
        return AcceptedWrite(key, version, None, -before)
    value = _added(write, entry) if write.op is WriteOp.INCR else write.value
    if isinstance(value, WriteRefusal):
        return value
    if len(value) > limits.value:
        text = f"the value of {key!r} has {len(value)} bytes, more than {limits.value} (--state-value-limit)"
        return WriteRefusal(RefusalCode.VALUE, text, now)
    grows = entry_size(key, value) - before
    if grows > 0 and used + grows > limits.total:
        text = (
            f"with {key!r} the shared state would have {used + grows} bytes, more than {limits.total} (--state-limit)"
        )
        return WriteRefusal(RefusalCode.FULL, text, now)
    return AcceptedWrite(key, version, value, grows)


def _added(write: Write, entry: StateEntry | None) -> bytes | WriteRefusal:
    """The encoded result of INCR."""
    if entry is None:
        found: Any = 0
    else:
        try:
            found = unpack_value(entry.value)
        except ChannelError:
            found = None
        if isinstance(found, bool) or not isinstance(found, int):
            return WriteRefusal(
                RefusalCode.TYPE, f"{write.key!r} is not an integer: it cannot be added to", entry.version
            )
    total = found + write.by
    if total not in INT64:
        text = f"{write.key!r} would leave the range of 64-bit integers"
        return WriteRefusal(RefusalCode.RANGE, text, entry.version if entry is not None else 0)
    return pack_value(total, write.key)
