"""The errors of `shared`, by whether the write stands."""

from __future__ import annotations

from typing import Any

from serve_asgi.errors import ServeError
from serve_asgi.ipc.frames import NotSendable, unpack_value


class SharedError(ServeError):
    """Base of the errors of `shared`; each says whether the write stands."""


class Lagging(SharedError, TimeoutError):
    """The write stands, but some processes have not applied it in time; each will, before its next request."""

    def __init__(self, message: str, slots: tuple[int, ...], version: int, value: Any) -> None:
        super().__init__(message)
        self.slots = slots
        """The slots of the workers that lag, -1 for the agent."""
        self.version = version
        self.value = value
        """The value that was written."""


class Conflict(SharedError):
    """Nothing is written: the key does not have the version that was given."""

    def __init__(self, message: str, version: int, value: Any) -> None:
        super().__init__(message)
        self.version = version
        """The present version; 0 if the key is not there."""
        self.value = value


class NotWritten(SharedError):
    """Nothing is written: the store (`--state`) is unavailable, or refuses writes. Try again later."""


class Unknown(SharedError):
    """It is not known whether the write stands: no reply came, or the store may lose the write in a fail-over.

    Read the key (`get_authoritative`) before repeating a write that must not be done twice.
    """


class ValueTooLarge(SharedError, ValueError):
    """Nothing is written: the value or the whole state would be larger than allowed."""


class BadKey(SharedError, ValueError):
    """Nothing is written: the key is invalid."""


class NotAnInteger(SharedError, TypeError):
    """Nothing is written: `incr` of a value that is not an integer."""


class OutOfRange(SharedError, OverflowError):
    """Nothing is written: `incr` beyond 64 bits."""


def error_of(head: dict[str, Any], body: bytes) -> SharedError:
    """The error that a frame `state.failed` reports."""
    code, text, version = head["code"], head["text"], head["version"]
    if code == "lagging":
        slots = tuple(sorted(slot for _, slot, _ in head["lagging"]))
        return Lagging(text, slots, version, unpack_value(body) if body else None)
    if code == "conflict":
        return Conflict(text, version, unpack_value(body) if body else None)
    return _PLAIN.get(code, NotWritten)(text)


_PLAIN: dict[str, type[SharedError]] = {
    "unknown": Unknown,
    "replicas": Unknown,
    "value": ValueTooLarge,
    "full": ValueTooLarge,
    "key": BadKey,
    "type": NotAnInteger,
    "range": OutOfRange,
}
"""By the codes of `serve_asgi.hub.state.write_evaluation.RefusalCode` and `serve_asgi.ipc.store_frames.StoreFailure`;
all others mean that nothing is written."""

__all__ = [
    "BadKey",
    "Conflict",
    "Lagging",
    "NotAnInteger",
    "NotSendable",
    "NotWritten",
    "OutOfRange",
    "SharedError",
    "Unknown",
    "ValueTooLarge",
]
