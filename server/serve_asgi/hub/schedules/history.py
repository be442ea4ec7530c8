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
from serve_asgi.hub.schedules.schedule import HISTORY_LENGTH, HistoryEntry, RunKind, RunOutcome, ScheduleState, to_plain
from serve_asgi.hub.state.part import SharedState
from serve_asgi.ipc.schema import Bodies, Count, Seconds, Sentence, Short

HISTORY_PREFIX: Final = "serve:history:"
"""Key of a schedule's history in the shared state, before its name."""
WRITE_DELAY: Final = 5.0
"""Seconds that are waited for more."""
OWN_ENTRIES: Final = 20
"""Entries of this server that are kept there."""


class StoredHistoryEntry(msgspec.Struct):
    """An entry as `serve_asgi.hub.schedules.schedule.to_plain` makes it."""

    instant: Count
    outcome: RunOutcome
    kind: RunKind
    text: Sentence = ""
    worker: Sentence = ""
    slot: int = -1
    generation: Count = 0
    began: Count = 0
    seconds: Seconds | None = None
    attempt: Count = 1
    count: Count = 1
    last: Count = 0


STORED_HISTORY: Final[Bodies[list[tuple[Short, StoredHistoryEntry]]]] = Bodies(
    list[tuple[Short, StoredHistoryEntry]], "a history"
)


class StoredHistory:
    """What there is of it, and what is to be written."""

    def __init__(self, hub: Hub, state: SharedState) -> None:
        self._hub = hub
        self._state = state
        self._changed: dict[str, ScheduleState] = {}
        self._since = 0.0  # when the first of them has changed

    def changed(self, line: ScheduleState) -> None:
        """Something has ended."""
        if self._hub.settings.stored:
            if not self._changed:
                self._since = self._hub.clock()
            self._changed[line.name] = line

    def write(self, server: int, *, at_once: bool = False) -> None:
        """Write what has changed, if it is time to."""
        due = at_once or self._hub.clock() - self._since >= WRITE_DELAY
        if not due or not self._changed or self._hub.store_trouble:
            return
        changed, self._changed = self._changed, {}
        for line in changed.values():
            own = [entry for entry in line.history if entry.outcome is not RunOutcome.RUNNING][-OWN_ENTRIES:]
            others = [(whose, to_plain(HistoryEntry.load(each))) for whose, each in self._others(line.name, server)]
            kept = [*others, *((f"{server:x}", to_plain(entry)) for entry in own)]
            kept.sort(key=lambda each: int(each[1]["instant"]))
            self._state.put(HISTORY_PREFIX + line.name, kept[-HISTORY_LENGTH:])

    def of(self, line: ScheduleState, server: int, most: int = HISTORY_LENGTH) -> list[HistoryEntry]:
        """The history, the newest first: this server's own, and what others have written or one before this."""
        told = [told for _, told in self._others(line.name, server)]
        others = [
            HistoryEntry.load(each)
            for each in heapq.nlargest(most, told, key=lambda each: each["began"] or each["last"])
        ]
        found = sorted([*others, *line.history], key=lambda entry: entry.began or entry.last)
        return found[: -most - 1 : -1]

    def _others(self, name: str, server: int) -> list[tuple[str, dict[str, Any]]]:
        """What others have written; what cannot be read of it (a store may hold anything) is passed over."""
        found = self._state.raw(HISTORY_PREFIX + name)
        try:
            told = () if found is None else STORED_HISTORY.decode(found)
        except ChannelError:
            return []
        return [(whose, msgspec.structs.asdict(each)) for whose, each in told if whose != f"{server:x}"]
