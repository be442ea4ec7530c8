"""What people are told of schedules: the records (docs/reference/events.md), and in which words."""

from __future__ import annotations

import logging
from typing import Any, Final

from serve_asgi.hub.core import Hub, Member
from serve_asgi.hub.schedules.schedule import ActiveRun, MissedTicks, RunOutcome, ScheduleState

END_RECORDS: Final = {
    RunOutcome.OK: (logging.DEBUG, "schedule_finished", "has run"),
    RunOutcome.FAILED: (logging.ERROR, "schedule_failed", "has failed"),
    RunOutcome.TIMEOUT: (logging.ERROR, "schedule_timed_out", "has taken too long"),
    RunOutcome.CUT: (logging.WARNING, "schedule_cut", "was cut"),
    RunOutcome.DIED: (logging.ERROR, "schedule_aborted", "was lost"),
}
"""How a run can end."""


class ScheduleLog:
    """Says them through a hub's port."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    def clock_set_back(self, seconds: float) -> None:
        text = (
            f"the clock was set back by {seconds:.0f} s: schedules go on when it has caught up, since no instant "
            "has two runs"
        )
        self._hub.port.say(logging.WARNING, "schedule_clock_set_back", text, seconds=seconds)

    def broken(self, line: ScheduleState) -> None:
        assert line.definition is not None
        text = f"the schedule {line.name!r} has no ticks any more: {line.definition.disabled}; please report this"
        self._hub.port.say(logging.ERROR, "schedule_refused", text, name=line.name)

    def unknown(self, member: Member, name: str, error: Exception) -> None:
        text = (
            f"the schedule {name!r} of {member} is not understood by this listener ({error}) and is left out; if the "
            "workers are of a later version, replace the listener too (serve reload --listener)"
        )
        self._hub.port.say(logging.ERROR, "schedule_refused", text, name=name)

    def missed(self, line: ScheduleState, missed: MissedTicks, *, first: bool = True) -> None:
        """`first`: the ticks before these were not missed."""
        ticks = "a tick" if missed.number == 1 else f"{missed.number} ticks"
        text = f"{ticks} of the schedule {line.name!r} missed: {missed.text}"
        span: dict[str, Any] = {"first": missed.first / 1000, "last": missed.last / 1000}
        self._hub.port.say(_level(first), "schedule_missed", text, name=line.name, count=missed.number, **span)

    def skipped(self, line: ScheduleState, instant: int, why: str, *, first: bool) -> None:
        """`first`: the tick before this one was not skipped."""
        text = f"a tick of the schedule {line.name!r} is skipped: {why}"
        self._hub.port.say(_level(first), "schedule_skipped", text, name=line.name, instant=instant / 1000)

    def ended(self, line: ScheduleState, run: ActiveRun, outcome: RunOutcome, text: str, detail: str = "") -> None:
        """A run has ended so; `detail` is a traceback."""
        entry = run.entry
        level, event, said = END_RECORDS[outcome]
        text = f"the schedule {line.name!r} {said} in {entry.worker}" + (f": {text}" if text else "")
        about = {"instant": entry.instant / 1000, "attempt": entry.attempt, "seconds": entry.seconds}
        where = {"slot": entry.slot, "generation": entry.generation}
        self._hub.port.say(level, event, text, detail, name=line.name, **about, **where)


def _level(first: bool) -> int:
    """Of ticks in a row that come to nothing the first is told, so that no log is filled."""
    return logging.WARNING if first else logging.DEBUG
