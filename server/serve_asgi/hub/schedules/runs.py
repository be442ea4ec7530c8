"""What runs, and in which process: the runs that have been given and have not ended.

A run is given to one process, the one with the least in hand, in turn. What becomes of it
`serve_asgi.hub.schedules.part` decides.
"""

from __future__ import annotations

from collections.abc import Iterable

from serve_asgi.hub.core import Hub, Member
from serve_asgi.hub.schedules.schedule import ActiveRun, HistoryEntry, PendingTick, RunKind, RunOutcome, ScheduleState


class ActiveRuns:
    """All of one hub's."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self.all: dict[int, ActiveRun] = {}
        self.number = 0
        """Of the last one that was given."""
        self._lines: dict[int, ScheduleState] = {}
        self._last: dict[int, int] = {}  # by member: the number of its last run

    def give(self, line: ScheduleState, tick: PendingTick, members: list[Member], now: int) -> None:
        """Have one of these run it."""
        hands = {member.id: 0 for member in members}
        for run in self.all.values():
            if run.member in hands:
                hands[run.member] += 1
        member = min(members, key=lambda each: (hands[each.id], self._last.get(each.id, 0)))
        self.number += 1
        self._last[member.id] = self.number
        entry = HistoryEntry(tick.instant, RunOutcome.RUNNING, "", str(member), member.slot, member.generation, now)
        entry.attempt, entry.kind = tick.attempt, tick.kind
        line.history.append(entry)
        self._add(line, ActiveRun(self.number, tick, member.id, tick.slot, entry))
        head = {"run": self.number, "name": line.name, "instant": tick.instant, "attempt": tick.attempt}
        self._hub.send(member, "schedule.run", head | {"kind": tick.kind.value, "token": tick.token})

    def of(self, member: Member, id: int) -> ActiveRun | None:
        """The run of this number, if this member has it."""
        run = self.all.get(id)
        return run if run is not None and run.member == member.id else None

    def line(self, run: ActiveRun) -> ScheduleState:
        """Whose run it is."""
        return self._lines[run.id]

    def remove(self, run: ActiveRun) -> ScheduleState:
        """It has ended, or nobody runs it any more; return whose it was."""
        line = self._lines.pop(run.id)
        del self.all[run.id], line.runs[run.id]
        return line

    def withdraw(self, line: ScheduleState) -> None:
        """It is paused: a process that was given a tick and has not begun, for it stands still, is not to begin it."""
        for run in line.runs.values():
            member = self._hub.members.get(run.member)
            if member is not None and run.tick.kind is not RunKind.ASKED and run.tick.attempt == 1:
                self._hub.send(member, "schedule.withdraw", {"run": run.id})

    def left(self, member: Member) -> list[ActiveRun]:
        """A member is no more; return what it has not ended."""
        self._last.pop(member.id, None)
        return [run for run in self.all.values() if run.member == member.id]

    def load(self, number: int, lines: Iterable[ScheduleState]) -> None:
        """Take over what another program of the listener has given."""
        self.number = number
        for line in lines:
            for run in line.runs.values():
                self._add(line, run)

    def _add(self, line: ScheduleState, run: ActiveRun) -> None:
        self.all[run.id] = line.runs[run.id] = run
        self._lines[run.id] = line
