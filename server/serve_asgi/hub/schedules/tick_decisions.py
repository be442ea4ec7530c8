"""Decides on ticks that are due: a tick runs, waits, or is given up (missed, skipped, paused, removed, elsewhere).

It owns that decision and its immediate effects: the run is started, the store is asked, history and log get their
entries. When to look at a schedule `serve_asgi.hub.schedules.scheduler` decides.
"""

from __future__ import annotations

import dataclasses

from serve_asgi.hub.core import Hub
from serve_asgi.hub.schedules.commands import ScheduleCommands
from serve_asgi.hub.schedules.definitions import OverlapPolicy, RunsOn, ScheduleDefinition, ScheduleRegistry
from serve_asgi.hub.schedules.history import ScheduleLog, StoredHistory
from serve_asgi.hub.schedules.missed_ticks import MissedTicks, PendingTick
from serve_asgi.hub.schedules.runs import ActiveRuns, LeaseRequests
from serve_asgi.hub.schedules.schedule_state import HistoryEntry, ScheduleState
from serve_asgi.ipc.frames import ValidatedFrame
from serve_asgi.ipc.schedule_frames import RunKind, RunOutcome


class TickDecisions:
    """The decisions of one hub. `now` is a unix time in milliseconds."""

    def __init__(
        self,
        hub: Hub,
        registry: ScheduleRegistry,
        runs: ActiveRuns,
        leases: LeaseRequests,
        commands: ScheduleCommands,
        history: StoredHistory,
        log: ScheduleLog,
    ) -> None:
        self._hub = hub
        self._registry = registry
        self._runs = runs
        self._leases = leases
        self._commands = commands
        self._history = history
        self._log = log

    def decide_all(self, schedule: ScheduleState, now: int) -> None:
        """Decide the ticks of a schedule that can be decided."""
        waiting, schedule.waiting = schedule.waiting, []
        for tick in waiting:
            if not self._decide(schedule, tick, now):
                schedule.waiting.append(tick)
        for tick in schedule.take_overtaken(now):
            assert schedule.definition is not None
            self._give_up(schedule, tick, *self._why_missed(schedule, schedule.definition))

    def _decide(self, schedule: ScheduleState, tick: PendingTick, now: int) -> bool:
        """Start a tick's run, or record why it has none; False if it has to wait."""
        definition = schedule.definition
        if definition is None or (definition.disabled and tick.kind is not RunKind.ASKED):
            why = "the new code does not have this schedule" if definition is None else definition.disabled
            self._give_up(schedule, tick, RunOutcome.REMOVED, why)
        elif tick.kind is not RunKind.ASKED and tick.attempt == 1 and schedule.paused is not None:
            self._give_up(schedule, tick, RunOutcome.PAUSED)
        elif tick.early(now):
            return False
        elif tick.late(now):
            self._give_up(schedule, tick, *self._why_missed(schedule, definition))
        elif definition.on is RunsOn.ALL and tick.slot < 0:
            return self._decide_for_each_worker(schedule, definition, tick, now)
        elif schedule.at_store is not None:
            return False  # one request to the store at a time
        elif (conflict := schedule.conflict(definition, tick)) is not None:
            if not conflict:
                return False
            self._give_up(schedule, tick, RunOutcome.SKIPPED, conflict)
        else:
            return self._start_or_ask(schedule, definition, tick, now)
        return True

    def _decide_for_each_worker(
        self, schedule: ScheduleState, definition: ScheduleDefinition, tick: PendingTick, now: int
    ) -> bool:
        """on="all": a tick for each worker that serves."""
        slots = sorted({member.slot for member in self._registry.candidates(definition)})
        for slot in slots:
            each = dataclasses.replace(tick, slot=slot)
            self._commands.add_run(tick.ask)
            if not self._decide(schedule, each, now):
                schedule.waiting.append(each)
        if slots:
            self._commands.run_finished(tick.ask)
        return bool(slots)

    def _start_or_ask(
        self, schedule: ScheduleState, definition: ScheduleDefinition, tick: PendingTick, now: int
    ) -> bool:
        """Start the run if a member can run it and the store, if there is one, has granted it; else ask the store."""
        if tick.queued:
            tick.queued, tick.due = False, now
        members = [
            m
            for m in self._registry.candidates(definition)
            if tick.slot in (-1, m.slot) and self._hub.port.has_room(m.id)
        ]
        if not members:
            return False
        if definition.on is not RunsOn.ALL and self._leases.needed(tick):
            if self._hub.store_problem:
                return False
            self._leases.ask(schedule, tick, schedule.seed)
            return True
        self._runs.start(schedule, tick, members, now)
        return True

    def _why_missed(self, schedule: ScheduleState, definition: ScheduleDefinition) -> tuple[RunOutcome, str]:
        """The outcome of a tick that nobody here could run in time, and why."""
        settings = self._hub.settings
        if definition.on is RunsOn.AGENT and settings.agent_in_fleet and not settings.agent:
            return RunOutcome.ELSEWHERE, "the fleet's agent is on another server"
        if settings.shared and self._hub.store_problem:
            return RunOutcome.MISSED, self._hub.store_problem
        if schedule.at_store is not None:
            return RunOutcome.MISSED, "the store had not replied"
        if definition.on is RunsOn.AGENT:
            return RunOutcome.MISSED, "there was no agent that has this schedule"
        return RunOutcome.MISSED, "there was no worker that could run it"

    def _give_up(self, schedule: ScheduleState, tick: PendingTick, outcome: RunOutcome, text: str = "") -> None:
        """Record that a tick gets no run."""
        first = schedule.record(outcome, tick.instant, text)
        if first:
            self._history.changed(schedule)
        self._leases.release(schedule, tick)
        if outcome is RunOutcome.MISSED:
            self._log.missed(schedule, MissedTicks(1, tick.instant, tick.instant, text), first=first)
        elif outcome is RunOutcome.SKIPPED:
            self._log.skipped(schedule, tick.instant, text, first=first)
        self._commands.tick_ended(tick, HistoryEntry(tick.instant, outcome, text))

    # ---- the store

    def take_grant(self, frame: ValidatedFrame, now: int) -> bool:
        """The store has granted a tick or not; return whether something can be decided at once."""
        if (found := self._leases.take_grant(frame)) is None:
            return False
        schedule, tick = found
        if frame.kind == "store.granted":
            schedule.waiting.insert(0, tick)
            return True
        return self._take_denial(schedule, tick, frame.head.why, frame.head.text, now)

    def _take_denial(self, schedule: ScheduleState, tick: PendingTick, why: str, text: str, now: int) -> bool:
        if why == "running" and schedule.definition is not None and schedule.definition.overlap is OverlapPolicy.QUEUE:
            tick.queued, tick.due = True, now + 1000  # it may have ended by then
            schedule.waiting.insert(0, tick)
            return False
        if self._leases.try_again(tick, why):
            schedule.waiting.insert(0, tick)
            return why != "trouble"  # which will be no better in a moment: at the next look
        outcome = {"granted": RunOutcome.ELSEWHERE, "running": RunOutcome.SKIPPED}.get(why, RunOutcome.MISSED)
        self._give_up(schedule, tick, outcome, text)
        return True
