"""Runs in progress: in which process, and under which lease of the store.

A run goes to the process with the fewest runs, in turn. Several servers may have the same schedules: then the store is
asked first whether this server may run a tick (`serve_asgi.ipc.store_frames` has the rules). A lease that could not be
renewed in time is lost: the run continues and is notified, and its fencing token is smaller than that of the next run.
What follows the end of a run `serve_asgi.hub.schedules.scheduler` decides.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Final

from serve_asgi.hub.core import Hub, Member
from serve_asgi.hub.schedules.definitions import OverlapPolicy
from serve_asgi.hub.schedules.missed_ticks import PendingTick
from serve_asgi.hub.schedules.schedule_state import ActiveRun, HistoryEntry, ScheduleState
from serve_asgi.ipc.frames import ValidatedFrame
from serve_asgi.ipc.schedule_frames import RunKind, RunOutcome

LEASE_TIME: Final = 30.0
"""Seconds for which the store grants a run to this server; renewed after a third of it."""
MAX_CLOCK_SKEW: Final = 40_000
"""Milliseconds by which the clocks of servers may differ; the store grants nothing that lies a minute ahead."""


class ActiveRuns:
    """The runs of one hub."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self.active: dict[int, ActiveRun] = {}
        self.number = 0
        """The number of the last run."""
        self._schedules: dict[int, ScheduleState] = {}
        self._last: dict[int, int] = {}  # by member: the number of its last run

    def start(self, schedule: ScheduleState, tick: PendingTick, members: list[Member], now: int) -> None:
        """Start the run of a tick in one of these members."""
        running = {member.id: 0 for member in members}
        for run in self.active.values():
            if run.member in running:
                running[run.member] += 1
        member = min(members, key=lambda each: (running[each.id], self._last.get(each.id, 0)))
        self.number += 1
        self._last[member.id] = self.number
        entry = HistoryEntry(tick.instant, RunOutcome.RUNNING, "", str(member), member.slot, member.generation, now)
        entry.attempt, entry.kind = tick.attempt, tick.kind
        schedule.history.append(entry)
        self._add(schedule, ActiveRun(self.number, tick, member.id, tick.slot, entry))
        head = {"run": self.number, "name": schedule.name, "instant": tick.instant, "attempt": tick.attempt}
        self._hub.send(member, "schedule.run", head | {"kind": tick.kind.value, "token": tick.token})

    def of(self, member: Member, id: int) -> ActiveRun | None:
        """The run with this number, if this member has it."""
        run = self.active.get(id)
        return run if run is not None and run.member == member.id else None

    def schedule_of(self, run: ActiveRun) -> ScheduleState:
        """The schedule of a run."""
        return self._schedules[run.id]

    def remove(self, run: ActiveRun) -> ScheduleState:
        """A run has ended, or nobody runs it any more; return its schedule."""
        schedule = self._schedules.pop(run.id)
        del self.active[run.id], schedule.runs[run.id]
        return schedule

    def withdraw(self, schedule: ScheduleState) -> None:
        """It is paused: a process whose event loop is blocked must not start a run that it was sent before."""
        for run in schedule.runs.values():
            member = self._hub.members.get(run.member)
            if member is not None and run.tick.kind is not RunKind.ASKED and run.tick.attempt == 1:
                self._hub.send(member, "schedule.withdraw", {"run": run.id})

    def left(self, member: Member) -> list[ActiveRun]:
        """A member is gone; return the runs that it had not ended."""
        self._last.pop(member.id, None)
        return [run for run in self.active.values() if run.member == member.id]

    def load(self, number: int, schedules: Iterable[ScheduleState]) -> None:
        """Restore the runs that an earlier program of the listener has started."""
        self.number = number
        for schedule in schedules:
            for run in schedule.runs.values():
                self._add(schedule, run)

    def _add(self, schedule: ScheduleState, run: ActiveRun) -> None:
        self.active[run.id] = schedule.runs[run.id] = run
        self._schedules[run.id] = schedule


class LeaseRequests:
    """The requests for leases that have no reply yet, and the renewal of those that are held."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self.number = 0
        """The number of the last request; its reply may come to a later program of the listener."""
        self._requests: dict[int, ScheduleState] = {}
        self._renewed = 0.0

    def needed(self, tick: PendingTick) -> bool:
        """Whether the store has to grant this tick.

        A file that cannot be written does not hold up a run: no other server uses it, and the run might free space.
        """
        settings = self._hub.settings
        if not settings.stored or tick.token is not None or tick.denied:
            return False
        return settings.shared or not self._hub.store_problem

    def ask(self, schedule: ScheduleState, tick: PendingTick, holder: int) -> None:
        """Request a tick from the store; `take_grant` gets the reply."""
        assert schedule.definition is not None
        self.number += 1
        self._requests[self.number] = schedule
        schedule.at_store = tick
        exclusive = tick.kind is RunKind.TICK and schedule.definition.overlap is not OverlapPolicy.ALLOW
        head = {
            "id": self.number,
            "name": _key(schedule, tick),
            "tick": (tick.instant + tick.ahead) / 1000,
            "holder": f"{holder:x}",
        }
        self._hub.send_to_store("store.grant", head | {"lease": LEASE_TIME, "exclusive": exclusive})

    def take_grant(self, frame: ValidatedFrame) -> tuple[ScheduleState, PendingTick] | None:
        """The schedule and tick that a reply is for; if it was granted, the tick has its token."""
        schedule = self._requests.pop(frame.head.id, None)
        if schedule is None or (tick := schedule.at_store) is None:
            return None
        schedule.at_store = None
        if frame.kind == "store.granted":
            tick.token, tick.until = frame.head.token, frame.head.renewed_until
        return schedule, tick

    def try_again(self, tick: PendingTick, why: str) -> bool:
        """Whether to request a tick again that was not granted.

        The store wants instants to increase, and those of requested runs come from the clocks of several servers: one
        whose clock is behind adds to the instant, and at last runs without a token.
        """
        if why == "trouble":
            tick.unsettled = self._hub.settings.shared and tick.kind is RunKind.TICK
            tick.denied = not self._hub.settings.shared
        elif why == "granted" and tick.kind is not RunKind.TICK:
            tick.ahead = 2 * tick.ahead or 1000
            tick.denied = tick.ahead > MAX_CLOCK_SKEW
        else:
            return False
        return True

    def release(self, schedule: ScheduleState, tick: PendingTick) -> None:
        """A tick has its outcome: give up its lease."""
        if tick.token is not None:
            self._hub.send_to_store("store.release", {"name": _key(schedule, tick), "token": tick.token})

    def take_reply(self, frame: ValidatedFrame, schedules: Iterable[ScheduleState]) -> None:
        """The store has renewed a lease, or granted it to another server."""
        for schedule, run in _held(schedules):
            if run.tick.token == frame.head.token:
                if frame.kind == "store.renewed":
                    run.tick.until = frame.head.renewed_until
                else:
                    self._lease_lost(schedule, run)

    def renew(self, schedules: Iterable[ScheduleState]) -> None:
        """Renew the leases of the runs if it is time; those that could not be renewed are lost."""
        now = self._hub.clock()
        again = now - self._renewed >= LEASE_TIME / 3
        for schedule, run in _held(schedules):
            if run.tick.until <= now:
                self._lease_lost(schedule, run)
            elif again:
                head = {"name": _key(schedule, run.tick), "token": run.tick.token, "lease": LEASE_TIME}
                self._hub.send_to_store("store.renew", head)
        if again:
            self._renewed = now

    def _lease_lost(self, schedule: ScheduleState, run: ActiveRun) -> None:
        run.lost = True
        text = f"the lease of a run of the schedule {schedule.name!r} is lost: another server may run it too"
        self._hub.port.report(logging.WARNING, "schedule_lease_lost", text, name=schedule.name, token=run.tick.token)
        self._hub.send(self._hub.members[run.member], "schedule.lost", {"run": run.id})


def _held(schedules: Iterable[ScheduleState]) -> list[tuple[ScheduleState, ActiveRun]]:
    return [
        (schedule, run)
        for schedule in schedules
        for run in schedule.runs.values()
        if run.tick.token is not None and not run.lost
    ]


def _key(schedule: ScheduleState, tick: PendingTick) -> str:
    """The key in the store. Requested runs have keys of their own, so that they block no tick; no name has a tab."""
    return schedule.name if tick.kind is RunKind.TICK else f"{schedule.name}\t{tick.kind.value}"
