"""Schedules in the hub: which are in force, when each is looked at, and how its runs end.

It owns one `ScheduleState` per name, with the definition in force (from the switch on that of the new generation), and
the timer. Each tick is decided once, in `serve_asgi.hub.schedules.tick_decisions`, so that neither a reload, a dying
process nor a clock that is set runs one twice or skips one silently; other servers may have the same schedules, so with
a store the store is asked first. A run is sent to one process, and again only if `retry` says so.

It runs nothing itself and reads no file: time zones come with the definitions. What people and code ask for is handled
in `serve_asgi.hub.schedules.commands`.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import random
import time
from typing import Final

import msgspec

from serve_asgi.errors import ChannelError
from serve_asgi.hub.core import Hub, HubComponent, Member, State
from serve_asgi.hub.schedules.commands import ScheduleCommands
from serve_asgi.hub.schedules.definitions import ScheduleDefinition, ScheduleRegistry
from serve_asgi.hub.schedules.history import END_RECORDS, ScheduleLog, StoredHistory
from serve_asgi.hub.schedules.missed_ticks import PendingTick
from serve_asgi.hub.schedules.runs import ActiveRuns, LeaseRequests
from serve_asgi.hub.schedules.schedule_state import NOT_STARTED, RETRIED, ActiveRun, ScheduleState
from serve_asgi.hub.schedules.tick_decisions import TickDecisions
from serve_asgi.hub.state.shared_state import SharedState
from serve_asgi.ipc.frames import ValidatedFrame
from serve_asgi.ipc.membership_frames import MemberPhase, Role
from serve_asgi.ipc.schedule_frames import (
    SCHEDULE_FRAMES,
    RunKind,
    RunOutcome,
    reported_outcome,
)

CLOCK_INTERVAL: Final = 1.0
"""Most seconds between two looks at the wall clock, which may be set, as the machine may have been suspended."""
TURN_TIME: Final = 0.02
"""Seconds of CPU time for schedules in one turn of the loop; a thousand that are due take longer."""
MAX_FORGOTTEN: Final = 1000
"""Schedules that are remembered after the code has dropped them."""
MAX_TEXT: Final = 500
"""Characters of the error of a run, in the history."""
MAX_DETAIL: Final = 16_000
"""Bytes of its traceback, in the log record only."""
MAX_DEFINITIONS: Final = 4_000
"""Definitions that one process may send."""
MAX_RULES: Final = 32_768
"""Bytes of the rules of a time zone; the largest ones have about 3,500."""


class Scheduler(HubComponent):
    """The hub's component for schedules."""

    name = "schedules"
    kinds = SCHEDULE_FRAMES
    store_kinds = frozenset({"store.granted", "store.taken", "store.renewed", "store.lost"})

    def __init__(self, hub: Hub, state: SharedState) -> None:
        super().__init__(hub)
        self.seed = random.getrandbits(63)
        """Identifies this server to the store, and determines jitters."""
        self.schedules: dict[str, ScheduleState] = {}
        self.runs = ActiveRuns(hub)
        self.commands = ScheduleCommands(self, state)
        self.history = StoredHistory(hub, state)
        self._registry = ScheduleRegistry(hub)
        self._leases = LeaseRequests(hub)
        self._log = ScheduleLog(hub)
        self._decisions = TickDecisions(
            hub, self._registry, self.runs, self._leases, self.commands, self.history, self._log
        )
        self._definition_counts: collections.Counter[int] = collections.Counter()  # by member
        self._started: set[str] = set()  # names of those whose immediate run is done
        self._first_generation = -1  # the generation whose definitions may run immediately
        self._forgotten_counts: collections.Counter[str] = collections.Counter()  # of schedules that are forgotten
        self._position = 0  # in a round over all schedules, which may take several turns
        self._seen = 0  # the wall clock at the last look
        self._due = math.inf  # constant while nothing happens, so that the timer need not be set again

    @property
    def now(self) -> int:
        """Unix time in milliseconds."""
        return int(self.hub.wall() * 1000)

    @property
    def serving(self) -> bool:
        """Whether any generation has served."""
        return self._registry.generation >= 0

    def known(self, name: str) -> bool:
        """Whether a process has defined this one, even if it is not in force yet."""
        schedule = self.schedules.get(name)
        return (schedule is not None and schedule.definition is not None) or self._registry.known(name)

    # ---- definitions

    def take(self, member: Member, frame: ValidatedFrame) -> None:
        head = frame.head
        if frame.kind == "schedule.define":
            self._define(member, frame)
        elif frame.kind == "schedule.request":
            self.commands.take(member, head.id, head.do, head.name)
        elif (run := self.runs.of(member, head.run)) is None:
            return
        elif frame.kind == "schedule.overdue":
            if run.overdue:
                raise ChannelError("a run whose time is over twice")
            run.overdue = True
            self._log.ended(self.runs.schedule_of(run), run, RunOutcome.TIMEOUT, "it cannot be ended, and goes on")
        else:
            detail = frame.body[-MAX_DETAIL:].decode(errors="replace")
            self._end(run, reported_outcome(head.outcome), head.text, head.seconds, detail)

    def _define(self, member: Member, frame: ValidatedFrame) -> None:
        self._definition_counts[member.id] += 1
        if self._definition_counts[member.id] > MAX_DEFINITIONS or len(frame.body) > MAX_RULES:
            raise ChannelError(
                f"{self._definition_counts[member.id]} schedules, the last with rules of {len(frame.body)} bytes"
            )
        try:
            definition = ScheduleDefinition.from_head(msgspec.structs.asdict(frame.head), frame.body)
        except (LookupError, TypeError, ValueError) as error:
            self._log.unknown(member, frame.head.name, error)
        else:
            if self._registry.take(member, definition):
                self._adopt(definition.name, definition, self.now)

    def _adopt(self, name: str, definition: ScheduleDefinition | None, now: int) -> None:
        schedule = self.schedules.get(name)
        if schedule is None:
            schedule = self.schedules[name] = ScheduleState(name, now, self.seed)
        schedule.paused = self.commands.pause_of(name)
        self._apply_definition(schedule, definition, now)
        self._run_immediately(schedule)
        self._wake_soon()

    def _apply_definition(self, schedule: ScheduleState, definition: ScheduleDefinition | None, now: int) -> None:
        try:
            schedule.adopt(definition, now)
        except Exception as error:
            self._disable(schedule, error)

    def _switch(self, generation: int) -> None:
        """Another generation serves: its definitions are in force from now on."""
        now = self.now  # the same for all, so that no instant falls between two generations
        for schedule in self.schedules.values():
            self.advance(schedule, now)
        if self._first_generation < 0:
            self._first_generation = generation
        self._registry.switch(generation)
        definitions = self._registry.current()
        for name in {**self.schedules, **definitions}:
            self._adopt(name, definitions.get(name), now)
        idle = [schedule for schedule in self.schedules.values() if schedule.definition is None and not schedule.runs]
        for schedule in idle[:-MAX_FORGOTTEN]:
            self._forgotten_counts.update(schedule.counts)
            del self.schedules[schedule.name]
        self.commands.begin()

    def _run_immediately(self, schedule: ScheduleState) -> None:
        """Add the run at the start of the server, once."""
        definition = schedule.definition
        if definition is None or not (
            definition.immediate and self.hub.ready and self._first_generation == self._registry.generation
        ):
            return
        if schedule.name not in self._started:
            self._started.add(schedule.name)
            if schedule.paused is None and not definition.disabled:
                now = self.now
                schedule.waiting.append(PendingTick(now, now, RunKind.IMMEDIATE))

    # ---- members

    def changed(self, member: Member, before: MemberPhase) -> None:
        if (
            member.phase is MemberPhase.SERVING
            and member.role is Role.WORKER
            and member.generation != self._registry.generation  # an older one after a roll-back
        ):
            self._switch(member.generation)
        self._wake_soon()

    def left(self, member: Member) -> None:
        self._registry.left(member)
        self._definition_counts.pop(member.id, None)
        self.commands.member_left(member)
        for run in self.runs.left(member):
            if member.phase is MemberPhase.RETIRING and member.killed:  # it could not report that itself
                self._end(run, RunOutcome.CUT, f"{member} had to end before it", None)
            else:
                self._end(run, RunOutcome.DIED, f"{member} died", None)
        if not self.hub.members:
            for schedule in self.schedules.values():
                newest = schedule.newest_entry()
                if newest is not None and newest.count > 1:  # only its first state was written
                    self.history.changed(schedule)
            self.history.write(self.seed, at_once=True)

    def reason_not_ready(self, member: Member) -> str:
        return self._registry.conflicting_names(member.generation)

    def room_available(self, member: Member) -> None:
        self._wake_soon()

    # ---- time

    def deadline(self) -> float:
        return self._due

    def next_instant(self) -> float:
        """When something is due next (unix time, s), or infinity."""
        wakes = (schedule.next_wake(self.now) for schedule in self.schedules.values())
        return min((at / 1000 for at in wakes if at is not None), default=math.inf)

    def _wake_soon(self) -> None:
        """Something can be decided; in the next turn, since more may happen in this one."""
        self._due = min(self._due, self.hub.clock())

    def tick(self) -> None:
        self._due = math.inf
        now = self.now
        if now < self._seen - 1000 and any(each.next is not None for each in self.schedules.values()):
            self._log.clock_set_back((self._seen - now) / 1000)
        self._seen = now
        if not self._advance_all(now):
            self._wake_soon()
            return
        self._leases.renew(self.schedules.values())
        self.history.write(self.seed)
        wakes = (each.next_wake(now) for each in self.schedules.values())
        next_wake = min((at for at in wakes if at is not None), default=None)
        if next_wake is not None or self.runs.active:
            wait = CLOCK_INTERVAL if next_wake is None else min(CLOCK_INTERVAL, (next_wake - now) / 1000)
            self._due = min(self._due, self.hub.clock() + max(0.0, wait))

    def _advance_all(self, now: int) -> bool:
        """Decide what is due, as far as one turn of the loop has time; False if there is more."""
        ends = time.thread_time() + TURN_TIME
        schedules = list(self.schedules.values())
        for number, schedule in enumerate(schedules[self._position :], self._position + 1):
            self._run_immediately(schedule)
            self.advance(schedule, now)
            self._decisions.decide_all(schedule, now)
            if time.thread_time() > ends and number < len(schedules):
                self._position = number
                return False
        self._position = 0
        return True

    def advance(self, schedule: ScheduleState, now: int) -> None:
        """Take the instants up to `now` from a schedule, and log those that were missed."""
        newest_entry = schedule.newest_entry()
        try:
            missed = schedule.advance(now)
        except Exception as error:
            self._disable(schedule, error)
        else:
            if schedule.newest_entry() is not newest_entry:
                self.history.changed(schedule)
            if missed is not None:
                self._log.missed(schedule, missed)

    def _disable(self, schedule: ScheduleState, error: Exception) -> None:
        """Disable a schedule whose instants cannot be computed here, although the defining process could."""
        if schedule.definition is not None:
            schedule.definition = dataclasses.replace(
                schedule.definition, disabled=f"its instants cannot be computed: {error!r}"
            )
            schedule.next = None
            self._log.broken(schedule)

    # ---- deciding

    def add(self, schedule: ScheduleState, tick: PendingTick) -> None:
        """Add a requested run."""
        schedule.waiting.append(tick)
        self._wake_soon()

    # ---- runs

    def _end(self, run: ActiveRun, outcome: RunOutcome, text: str, seconds: float | None, detail: str = "") -> None:
        """A run has ended, or its process has."""
        schedule = self.runs.remove(run)
        tick, entry = run.tick, run.entry
        entry.outcome, entry.text, entry.seconds = outcome, text[:MAX_TEXT], seconds
        if outcome in NOT_STARTED:
            entry.worker, entry.slot, entry.generation, entry.began, entry.seconds = "", -1, 0, 0, None
            entry.last = entry.instant
        schedule.counts[outcome.value] += 1
        self.history.changed(schedule)
        again = outcome in RETRIED and schedule.definition is not None and tick.attempt <= schedule.definition.retry
        if outcome not in NOT_STARTED and (outcome is not RunOutcome.TIMEOUT or not run.overdue):
            self._log.ended(
                schedule, run, outcome, entry.text + ("; it is run again" if again else ""), detail[:MAX_DETAIL]
            )
        if again:
            schedule.waiting.append(dataclasses.replace(tick, attempt=tick.attempt + 1, due=self.now, queued=False))
        else:
            self._leases.release(schedule, tick)
            self.commands.tick_ended(tick, entry)
        self._wake_soon()

    # ---- the store

    def take_from_store(self, frame: ValidatedFrame) -> None:
        if frame.kind in ("store.renewed", "store.lost"):
            self._leases.take_reply(frame, self.schedules.values())
        elif self._decisions.take_grant(frame, self.now):
            self._wake_soon()

    def store_changed(self) -> None:
        self._wake_soon()

    def metrics(self) -> dict[str, float]:
        counts = sum((schedule.counts for schedule in self.schedules.values()), self._forgotten_counts)
        failures = sum(counts[outcome.value] for outcome in END_RECORDS if outcome is not RunOutcome.OK)
        return {
            "schedule_runs_total": counts[RunOutcome.OK.value] + failures,
            "schedule_failures_total": failures,
            "schedule_missed_total": counts[RunOutcome.MISSED.value],
            "schedules_running": len(self.runs.active),
        }

    # ---- a new program of the listener

    def to_state(self) -> State:
        return {
            "seed": self.seed,
            "first": self._first_generation,
            "number": self.runs.number,
            "questions": self._leases.number,
            "started": sorted(self._started),
            "seen": self._seen,
            "past": dict(self._forgotten_counts),
            "offers": self._registry.to_state(),
            "asks": self.commands.to_state(),
            "lines": [schedule.to_state() for schedule in self.schedules.values()],
        }

    def load(self, state: State) -> None:
        self.seed, self._first_generation = state["seed"], state["first"]
        self._leases.number = state["questions"]
        self._seen, self._started = state["seen"], set(state["started"])
        self._forgotten_counts.update(state["past"])
        self._registry.load(state["offers"])
        for each in state["lines"]:
            schedule = self.schedules[each["name"]] = ScheduleState.from_state(each, self.seed)
            self._apply_definition(schedule, self._registry.current().get(schedule.name), schedule.decided)
            if schedule.newest_entry() is not None:
                self.history.changed(schedule)  # it may not have been written yet
        self.runs.load(state["number"], self.schedules.values())
        ticks = [tick for schedule in self.schedules.values() for tick in schedule.waiting]
        self.commands.load(state["asks"], [*ticks, *(run.tick for run in self.runs.active.values())])
        self._wake_soon()
