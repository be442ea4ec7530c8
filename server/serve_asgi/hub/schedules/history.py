"""The history of schedules in the shared state, where a store keeps that: over restarts, and of all its servers.

Each server puts its own newest entries beside those of the others, a few seconds after a run has ended: what a server
that is killed had not written yet is lost, and nothing waits for it. Without a store nothing is written.
"""

from __future__ import annotations

import heapq
from typing import Any, Final

import msgspec

from serve_asgi.errors import ChannelError
from serve_asgi.hub.core import Hub
from serve_asgi.hub.schedules.schedule import HISTORY, Entry, Kind, Line, Outcome, plain
from serve_asgi.hub.state.part import SharedState
from serve_asgi.ipc.schema import Bodies, Count, Seconds, Sentence, Short

PAST: Final = "serve:history:"
"""Key of a schedule's history in the shared state, before its name."""
PAUSE: Final = 5.0
"""Seconds that are waited for more."""
OWN: Final = 20
"""Entries of this server that are kept there."""


class Kept(msgspec.Struct):
    """An entry as `serve_asgi.hub.schedules.schedule.plain` makes it."""

    instant: Count
    outcome: Outcome
    kind: Kind
    text: Sentence = ""
    worker: Sentence = ""
    slot: int = -1
    generation: Count = 0
    began: Count = 0
    seconds: Seconds | None = None
    attempt: Count = 1
    count: Count = 1
    last: Count = 0


KEPT: Final[Bodies[list[tuple[Short, Kept]]]] = Bodies(list[tuple[Short, Kept]], "a history")


class Past:
    """What there is of it, and what is to be written."""

    def __init__(self, hub: Hub, state: SharedState) -> None:
        self._hub = hub
        self._state = state
        self._changed: dict[str, Line] = {}
        self._since = 0.0  # when the first of them has changed

    def changed(self, line: Line) -> None:
        """Something has ended."""
        if self._hub.settings.stored:
            if not self._changed:
                self._since = self._hub.clock()
            self._changed[line.name] = line

    def write(self, server: int, *, at_once: bool = False) -> None:
        """Write what has changed, if it is time to."""
        due = at_once or self._hub.clock() - self._since >= PAUSE
        if not due or not self._changed or self._hub.store_trouble:
            return
        changed, self._changed = self._changed, {}
        for line in changed.values():
            own = [entry for entry in line.history if entry.outcome is not Outcome.RUNNING][-OWN:]
            others = [(whose, plain(Entry.load(each))) for whose, each in self._others(line.name, server)]
            kept = [*others, *((f"{server:x}", plain(entry)) for entry in own)]
            kept.sort(key=lambda each: int(each[1]["instant"]))
            self._state.put(PAST + line.name, kept[-HISTORY:])

    def of(self, line: Line, server: int, most: int = HISTORY) -> list[Entry]:
        """The history, the newest first: this server's own, and what others have written or one before this."""
        told = [told for _, told in self._others(line.name, server)]
        others = [
            Entry.load(each) for each in heapq.nlargest(most, told, key=lambda each: each["began"] or each["last"])
        ]
        found = sorted([*others, *line.history], key=lambda entry: entry.began or entry.last)
        return found[: -most - 1 : -1]

    def _others(self, name: str, server: int) -> list[tuple[str, dict[str, Any]]]:
        """What others have written; what cannot be read of it (a store may hold anything) is passed over."""
        found = self._state.raw(PAST + name)
        try:
            told = () if found is None else KEPT.decode(found)
        except ChannelError:
            return []
        return [(whose, msgspec.structs.asdict(each)) for whose, each in told if whose != f"{server:x}"]
