"""What can go wrong with a write to the shared state, typed by what became of the write."""

from __future__ import annotations

from typing import Any

from serve_asgi.errors import ServeError
from serve_asgi.ipc.frames import NotSendable, unpack_value


class SharedError(ServeError):
    """Base of what `shared` raises; each says whether the write stands."""


class Lagging(SharedError, TimeoutError):
    """The write stands, but some processes had not applied it in time; each does before its next request."""

    def __init__(self, message: str, slots: tuple[int, ...], version: int, value: Any) -> None:
        super().__init__(message)
        self.slots = slots
        """The slots of the workers that lag, -1 for the agent."""
        self.version = version
        self.value = value
        """What was written."""


class Conflict(SharedError):
    """Nothing is written: the key has not the version that was asked for."""

    def __init__(self, message: str, version: int, value: Any) -> None:
        super().__init__(message)
        self.version = version
        """What the key has now; 0 if it is not there."""
        self.value = value


class NotWritten(SharedError):
    """Nothing is written: the store (`--state`) cannot be reached, or takes no writes. Try again later."""


class Unknown(SharedError):
    """It is not known whether the write stands: the answer did not come, or Redis may lose it in a fail-over.

    Read the key (`get_authoritative`) before writing again what must not be written twice.
    """


class ValueTooLarge(SharedError, ValueError):
    """Nothing is written: the value, or the state as a whole, would be larger than allowed."""


class BadKey(SharedError, ValueError):
    """Nothing is written: such a key cannot be."""


class NotAnInteger(SharedError, TypeError):
    """Nothing is written: `incr` of a value that is no integer."""


class OutOfRange(SharedError, OverflowError):
    """Nothing is written: `incr` beyond 64 bits."""


def error_of(head: dict[str, Any], body: bytes) -> SharedError:
    """The error that a frame `state.failed` tells of."""
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
