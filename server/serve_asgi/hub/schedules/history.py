"""The history of runs, kept in the shared state, and the log records of schedules (docs/reference/events.md).

With a store a history survives restarts and covers all servers: each server adds its own newest entries to those of the
others a few seconds after a run has ended. Nothing waits for that, and a server that is killed loses what it had not
written yet. Without a store nothing is written.
"""

from __future__ import annotations

import heapq
import logging
from typing import Any, Final

import msgspec

from serve_asgi.errors import ChannelError
from serve_asgi.hub.core import Hub, Member
from serve_asgi.hub.schedules.missed_ticks import MissedTicks
from serve_asgi.hub.schedules.schedule_state import HISTORY_LENGTH, ActiveRun, HistoryEntry, ScheduleState, to_plain
from serve_asgi.hub.state.shared_state import SharedState
from serve_asgi.ipc.schedule_frames import RunKind, RunOutcome
from serve_asgi.ipc.untrusted_input import Bodies, Count, Seconds, Sentence, Short

HISTORY_PREFIX: Final = "serve:history:"
"""Key of a schedule's history in the shared state, before its name."""
WRITE_DELAY: Final = 5.0
"""Seconds from the first change until all are written."""
OWN_ENTRIES: Final = 20
"""Newest entries of this server that are written."""
END_RECORDS: Final = {
    RunOutcome.OK: (logging.DEBUG, "schedule_finished", "has run"),
    RunOutcome.FAILED: (logging.ERROR, "schedule_failed", "has failed"),
    RunOutcome.TIMEOUT: (logging.ERROR, "schedule_timed_out", "has taken too long"),
    RunOutcome.CUT: (logging.WARNING, "schedule_cut", "was cut"),
    RunOutcome.DIED: (logging.ERROR, "schedule_aborted", "was lost"),
}
"""How each end of a run is logged: level, event, words."""


class StoredHistoryEntry(msgspec.Struct):
    """An entry as `serve_asgi.hub.schedules.schedule_state.to_plain` makes it."""

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
    """The histories of one hub, and which of them have to be written."""

    def __init__(self, hub: Hub, state: SharedState) -> None:
        self._hub = hub
        self._state = state
        self._changed: dict[str, ScheduleState] = {}
        self._since = 0.0  # when the first of them changed

    def changed(self, schedule: ScheduleState) -> None:
        """The history of this schedule has a new or a changed entry."""
        if self._hub.settings.stored:
            if not self._changed:
                self._since = self._hub.clock()
            self._changed[schedule.name] = schedule

    def write(self, server: int, *, at_once: bool = False) -> None:
        """Write what has changed, if it is time; `server` identifies this one."""
        due = at_once or self._hub.clock() - self._since >= WRITE_DELAY
        if not due or not self._changed or self._hub.store_problem:
            return
        changed, self._changed = self._changed, {}
        for schedule in changed.values():
            own = [entry for entry in schedule.history if entry.outcome is not RunOutcome.RUNNING][-OWN_ENTRIES:]
            others = [(whose, to_plain(HistoryEntry.load(each))) for whose, each in self._others(schedule.name, server)]
            kept = [*others, *((f"{server:x}", to_plain(entry)) for entry in own)]
            kept.sort(key=lambda each: int(each[1]["instant"]))
            self._state.put(HISTORY_PREFIX + schedule.name, kept[-HISTORY_LENGTH:])

    def of(self, schedule: ScheduleState, server: int, most: int = HISTORY_LENGTH) -> list[HistoryEntry]:
        """The history, newest first: this server's entries, and those of other servers and of earlier ones."""
        told = [told for _, told in self._others(schedule.name, server)]
        others = [
            HistoryEntry.load(each)
            for each in heapq.nlargest(most, told, key=lambda each: each["began"] or each["last"])
        ]
        found = sorted([*others, *schedule.history], key=lambda entry: entry.began or entry.last)
        return found[: -most - 1 : -1]

    def _others(self, name: str, server: int) -> list[tuple[str, dict[str, Any]]]:
        """What others have written; if it cannot be read (a store may hold anything), nothing."""
        found = self._state.raw(HISTORY_PREFIX + name)
        try:
            told = () if found is None else STORED_HISTORY.decode(found)
        except ChannelError:
            return []
        return [(whose, msgspec.structs.asdict(each)) for whose, each in told if whose != f"{server:x}"]


class ScheduleLog:
    """Logs them through the hub's port."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    def clock_set_back(self, seconds: float) -> None:
        text = (
            f"the clock was set back by {seconds:.0f} s: schedules go on when it has caught up, since no instant "
            "has two runs"
        )
        self._hub.port.report(logging.WARNING, "schedule_clock_set_back", text, seconds=seconds)

    def broken(self, schedule: ScheduleState) -> None:
        assert schedule.definition is not None
        text = (
            f"the schedule {schedule.name!r} has no ticks any more: {schedule.definition.disabled}; please report this"
        )
        self._hub.port.report(logging.ERROR, "schedule_refused", text, name=schedule.name)

    def unknown(self, member: Member, name: str, error: Exception) -> None:
        text = (
            f"the schedule {name!r} of {member} is not understood by this listener ({error}) and is left out; if the "
            "workers are of a later version, replace the listener too (serve reload --listener)"
        )
        self._hub.port.report(logging.ERROR, "schedule_refused", text, name=name)

    def missed(self, schedule: ScheduleState, missed: MissedTicks, *, first: bool = True) -> None:
        """`first`: the ticks before these were not missed."""
        ticks = "a tick" if missed.number == 1 else f"{missed.number} ticks"
        text = f"{ticks} of the schedule {schedule.name!r} missed: {missed.text}"
        span: dict[str, Any] = {"first": missed.first / 1000, "last": missed.last / 1000}
        self._hub.port.report(_level(first), "schedule_missed", text, name=schedule.name, count=missed.number, **span)

    def skipped(self, schedule: ScheduleState, instant: int, why: str, *, first: bool) -> None:
        """`first`: the tick before this one was not skipped."""
        text = f"a tick of the schedule {schedule.name!r} is skipped: {why}"
        self._hub.port.report(_level(first), "schedule_skipped", text, name=schedule.name, instant=instant / 1000)

    def ended(self, schedule: ScheduleState, run: ActiveRun, outcome: RunOutcome, text: str, detail: str = "") -> None:
        """A run has ended; `detail` is a traceback."""
        entry = run.entry
        level, event, said = END_RECORDS[outcome]
        text = f"the schedule {schedule.name!r} {said} in {entry.worker}" + (f": {text}" if text else "")
        about = {"instant": entry.instant / 1000, "attempt": entry.attempt, "seconds": entry.seconds}
        where = {"slot": entry.slot, "generation": entry.generation}
        self._hub.port.report(level, event, text, detail, name=schedule.name, **about, **where)


def _level(first: bool) -> int:
    """Of several ticks in a row without a run only the first is logged as a warning, so that the log does not fill."""
    return logging.WARNING if first else logging.DEBUG
