"""The shared state as an operator sees and changes it: `serve shared`, and the page of the admin process.

Values are shown as JSON: what JSON does not have (bytes, numbers as keys, NaN) as the nearest that it has. The server's
own keys are neither shown nor written. Reports are bounded, in entries and in the bytes that are decoded, since the
listener's loop makes them.
"""

from __future__ import annotations

import base64
import heapq
import itertools
import json
import math
from collections.abc import Callable
from typing import Any, Final

from serve_asgi.errors import ChannelError
from serve_asgi.hub.state.shared_state import SharedState
from serve_asgi.hub.state.write_evaluation import StateEntry
from serve_asgi.ipc.frames import NotSendable, pack_value, unpack_value
from serve_asgi.ipc.state_frames import RESERVED, Write, WriteOp

MOST_LISTED: Final = 1_000
"""Keys in one report."""
DECODED: Final = 1_024
"""Bytes of a value that a report decodes; larger ones are shown by their size."""
PREVIEW: Final = 160
"""Characters of a value in a report."""

WriteReply = Callable[[str, int], None]
"""Called with "" and the new version, or with a sentence that says why nothing was written, and 0."""


class OperatorAccess:
    """Reads and writes of the shared state of one hub."""

    def __init__(self, state: SharedState) -> None:
        self._state = state

    def report(self, prefix: str = "", most: int = MOST_LISTED) -> dict[str, Any]:
        """The first keys with this prefix by name, and how many there are in all."""
        names = [key for key in self._state.keys(prefix) if not key.startswith(RESERVED)]
        found = heapq.nsmallest(min(most, MOST_LISTED), names)
        return {"total": len(names), "keys": [self._shown(key) for key in found]}

    def newest(self, most: int) -> list[dict[str, Any]]:
        """The keys that were written last, the newest first."""
        return [self._shown(key) for key in itertools.islice(self._state.newest(), most)]

    def value(self, key: str) -> dict[str, Any] | None:
        """A key with its version and its value as JSON; None if it is not there."""
        entry = None if key.startswith(RESERVED) else self._state.entry(key)
        return None if entry is None else {"key": key, "version": entry.version, "value": _decoded(entry.value)}

    def set(self, key: str, value: Any, version: int | None, timeout: float, reply: WriteReply) -> None:
        """Write a key; with `version` only if it still has that (0: it is missing).

        `reply` is called when all live processes have applied it, or at the end of `timeout` (s).
        """
        try:
            body = pack_value(value, f"the value of {key!r}")
        except NotSendable as error:
            reply(str(error), 0)
            return
        self._write(Write(WriteOp.SET if version is None else WriteOp.CAS, key, body, version), timeout, reply)

    def delete(self, key: str, version: int | None, timeout: float, reply: WriteReply) -> None:
        """Delete a key, as `set`."""
        if self.value(key) is None and not key.startswith(RESERVED):
            reply(f"there is no {key!r}", 0)
        else:
            self._write(Write(WriteOp.DELETE, key, version=version), timeout, reply)

    def watch(self, prefix: str, happened: Callable[[dict[str, Any]], None]) -> Callable[[], None]:
        """Have `happened` called with each change of a key with this prefix; returns what ends that."""

        def changed(key: str, value: Any) -> None:
            if key.startswith(RESERVED):
                return
            entry = self._state.entry(key)
            about = {"deleted": True} if entry is None else {"version": entry.version, "value": as_json(value)}
            happened({"at": round(self._state.hub.wall(), 3), "key": key, **about})

        return self._state.follow(prefix, changed)

    def _write(self, write: Write, timeout: float, reply: WriteReply) -> None:
        if write.key.startswith(RESERVED):
            reply(f"keys that begin with {RESERVED!r} are the server's own", 0)
        else:
            self._state.write(write, timeout, reply)

    def _shown(self, key: str) -> dict[str, Any]:
        entry = self._state.entry(key)
        assert entry is not None, "the key has just been found"
        return {"key": key, "version": entry.version, "size": len(entry.value), "value": _preview(entry)}


def as_json(value: Any) -> Any:
    """A value of the shared state, in what JSON has."""
    match value:
        case bytes():
            return {"base64": base64.b64encode(value).decode()}
        case float() if not math.isfinite(value):
            return str(value)
        case list():
            return [as_json(each) for each in value]
        case dict():
            return {name if isinstance(name, str) else str(name): as_json(each) for name, each in value.items()}
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _decoded(value: bytes) -> Any:
    try:
        return as_json(unpack_value(value))
    except (ChannelError, RecursionError):  # a store may hold anything
        return {"base64": base64.b64encode(value).decode()}


def _preview(entry: StateEntry) -> str:
    """The beginning of a value, as JSON; "" for a large one."""
    if len(entry.value) > DECODED:
        return ""
    text = json.dumps(_decoded(entry.value), ensure_ascii=False)
    return text if len(text) <= PREVIEW else text[: PREVIEW - 1] + "…"
