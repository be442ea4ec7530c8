"""Schedules in the hub: who runs which tick, once.

It owns the definitions in force (those of the newest generation that serves: from the switch on, the new ones), one
`ScheduleState` per name, and the runs. A tick is decided here and nowhere else, so that neither a reload, a dying
process nor a clock that is set duplicates or silently skips one; with a store the store is asked first, since other
servers may have the same schedules. A run is given to one process and never again, unless `retry` says so.

It runs nothing itself, and reads no file: zones come with the definitions. `serve_asgi.hub.schedules.commands` is what
people and code ask of it.
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
from serve_asgi.hub.schedules.definition import OverlapPolicy, RunsOn, ScheduleDefinition
from serve_asgi.hub.schedules.history import END_RECORDS, ScheduleLog, StoredHistory
from serve_asgi.hub.schedules.registration import ScheduleRegistry
from serve_asgi.hub.schedules.runs import ActiveRuns, LeaseRequests
from serve_asgi.hub.schedules.schedule import (
    NOT_STARTED,
    RETRIED,
    ActiveRun,
    HistoryEntry,
    MissedTicks,
    PendingTick,
    RunKind,
    ScheduleState,
)
from serve_asgi.hub.state.shared_state import SharedState
from serve_asgi.ipc.frames import ValidatedFrame
from serve_asgi.ipc.member_frames import MemberPhase, Role
from serve_asgi.ipc.schedule_frames import (
    SCHEDULE_FRAMES,
    RunOutcome,
    reported_outcome,
)

CLOCK_INTERVAL: Final = 1.0
"""Seconds between two looks at the wall clock at most: it may be set, and the machine may have been suspended."""
TURN_TIME: Final = 0.02
"""Seconds of CPU time that the schedules have of one turn of the loop: a thousand that are due take more."""
MAX_FORGOTTEN: Final = 1000
"""Names that are remembered after the code has them no more."""
MAX_TEXT: Final = 500
"""Characters that the history keeps of why a run failed."""
MAX_DETAIL: Final = 16_000
"""Characters of its traceback, which is in the record alone."""


MAX_DEFINITIONS: Final = 4_000
"""Definitions that one process may tell in its life."""
MAX_RULES: Final = 32_768
"""Bytes of the rules of a time zone; the largest has about 3,500."""


class Scheduler(HubComponent):
    """The part itself."""

    name = "schedules"
    kinds = SCHEDULE_FRAMES
    store_kinds = frozenset({"store.granted", "store.taken", "store.renewed", "store.lost"})

    def __init__(self, hub: Hub, state: SharedState) -> None:
        super().__init__(hub)
        self.seed = random.getrandbits(63)
        """Names this server for the store, and is what jitters are drawn with."""
        self.lines: dict[str, ScheduleState] = {}
        self.runs = ActiveRuns(hub)
        self.asks = ScheduleCommands(self, state)
        self.past = StoredHistory(hub, state)
        self._offers = ScheduleRegistry(hub)
        self._leases = LeaseRequests(hub)
        self._records = ScheduleLog(hub)
        self._told: collections.Counter[int] = collections.Counter()  # definitions, by member
        self._started: set[str] = set()  # whose immediate run is behind them
        self._first = -1  # the generation whose definitions may run immediately
        self._past: collections.Counter[str] = collections.Counter()  # what those that are forgotten have counted
        self._looked_at = (
            0  # so many lines have been looked at in this round, which takes several turns if they are many
        )
        self._seen = 0  # the wall clock when it was looked at last
        self._due = math.inf  # stays what it is while nothing changes: who keeps it is not to begin anew each time

    @property
    def now(self) -> int:
        """Unix time in milliseconds."""
        return int(self.hub.wall() * 1000)

    @property
    def begun(self) -> bool:
        """Whether any generation has served."""
        return self._offers.generation >= 0

    def known(self, name: str) -> bool:
        """Whether a process has told of this one, also if that does not hold yet."""
        line = self.lines.get(name)
        return (line is not None and line.definition is not None) or self._offers.known(name)

    # ---- definitions

    def take(self, member: Member, frame: ValidatedFrame) -> None:
        head = frame.head
        if frame.kind == "schedule.define":
            self._define(member, frame)
        elif frame.kind == "schedule.request":
            self.asks.take(member, head.id, head.do, head.name)
        elif (run := self.runs.of(member, head.run)) is None:
            return
        elif frame.kind == "schedule.overdue":
            if run.overdue:
                raise ChannelError("a run whose time is over twice")
            run.overdue = True
            self._records.ended(self.runs.line(run), run, RunOutcome.TIMEOUT, "it cannot be ended, and goes on")
        else:
            detail = frame.body[-MAX_DETAIL:].decode(errors="replace")
            self._end(run, reported_outcome(head.outcome), head.text, head.seconds, detail)

    def _define(self, member: Member, frame: ValidatedFrame) -> None:
        self._told[member.id] += 1
        if self._told[member.id] > MAX_DEFINITIONS or len(frame.body) > MAX_RULES:
            raise ChannelError(f"{self._told[member.id]} schedules, the last with rules of {len(frame.body)} bytes")
        try:
            definition = ScheduleDefinition.from_head(msgspec.structs.asdict(frame.head), frame.body)
        except (LookupError, TypeError, ValueError) as error:
            self._records.unknown(member, frame.head.name, error)
        else:
            if self._offers.take(member, definition):
                self._adopt(definition.name, definition, self.now)

    def _adopt(self, name: str, definition: ScheduleDefinition | None, now: int) -> None:
        line = self.lines.get(name)
        if line is None:
            line = self.lines[name] = ScheduleState(name, now, self.seed)
        line.paused = self.asks.pause_of(name)
        self._define_line(line, definition, now)
        self._immediately(line)
        self._hurry()

    def _define_line(self, line: ScheduleState, definition: ScheduleDefinition | None, now: int) -> None:
        try:
            line.adopt(definition, now)
        except Exception as error:
            self._disable(line, error)

    def _switch(self, generation: int) -> None:
        """A newer generation serves: its definitions hold from here on."""
        now = self.now  # one for all: what comes due between two looks at the clock would be nobody's
        for line in self.lines.values():
            self.advance(line, now)
        if self._first < 0:
            self._first = generation
        self._offers.switch(generation)
        offers = self._offers.current()
        for name in {**self.lines, **offers}:
            self._adopt(name, offers.get(name), now)
        idle = [line for line in self.lines.values() if line.definition is None and not line.runs]
        for line in idle[:-MAX_FORGOTTEN]:
            self._past.update(line.counts)
            del self.lines[line.name]
        self.asks.begin()

    def _immediately(self, line: ScheduleState) -> None:
        """Have the run that comes with the start of the server, once."""
        definition = line.definition
        if definition is None or not (
            definition.immediate and self.hub.ready and self._first == self._offers.generation
        ):
            return
        if line.name not in self._started:
            self._started.add(line.name)
            if line.paused is None and not definition.disabled:
                now = self.now
                line.waiting.append(PendingTick(now, now, RunKind.IMMEDIATE))

    # ---- members

    def changed(self, member: Member, before: MemberPhase) -> None:
        if (
            member.phase is MemberPhase.SERVING
            and member.role is Role.WORKER
            and member.generation > self._offers.generation
        ):
            self._switch(member.generation)
        self._hurry()

    def left(self, member: Member) -> None:
        self._offers.left(member)
        self._told.pop(member.id, None)
        self.asks.left(member)
        for run in self.runs.left(member):
            if member.phase is MemberPhase.RETIRING and member.killed:  # it could not say so itself, as most do
                self._end(run, RunOutcome.CUT, f"{member} had to end before it", None)
            else:
                self._end(run, RunOutcome.DIED, f"{member} died", None)
        if not self.hub.members:
            for line in self.lines.values():
                if (newest := line.newest()) is not None and newest.count > 1:  # of which the first was written
                    self.past.changed(line)
            self.past.write(self.seed, at_once=True)

    def trouble_with(self, member: Member) -> str:
        return self._offers.clash(member.generation)

    def room(self, member: Member) -> None:
        self._hurry()

    # ---- time

    def deadline(self) -> float:
        return self._due

    def _hurry(self) -> None:
        """Something can be decided: in the next turn, since more may happen in this one."""
        self._due = min(self._due, self.hub.clock())

    def tick(self) -> None:
        self._due = math.inf
        if (now := self.now) < self._seen - 1000 and any(line.next is not None for line in self.lines.values()):
            self._records.clock_set_back((self._seen - now) / 1000)
        self._seen = now
        if not self._look_at_lines(now):
            self._hurry()
            return
        self._leases.renew(self.lines.values())
        self.past.write(self.seed)
        wake = min((at for line in self.lines.values() if (at := line.wake(now)) is not None), default=None)
        if wake is not None or self.runs.all:
            wait = CLOCK_INTERVAL if wake is None else min(CLOCK_INTERVAL, (wake - now) / 1000)
            self._due = min(self._due, self.hub.clock() + max(0.0, wait))

    def _look_at_lines(self, now: int) -> bool:
        """Decide what is due, as much as one turn of the loop has time for; False if there is more."""
        ends = time.thread_time() + TURN_TIME
        lines = list(self.lines.values())
        for number, line in enumerate(lines[self._looked_at :], self._looked_at + 1):
            self._immediately(line)
            self.advance(line, now)
            self._serve(line, now)
            if time.thread_time() > ends and number < len(lines):
                self._looked_at = number
                return False
        self._looked_at = 0
        return True

    def advance(self, line: ScheduleState, now: int) -> None:
        """Take the instants up to `now` off a schedule, and tell of those that were missed."""
        newest = line.newest()
        try:
            missed = line.advance(now)
        except Exception as error:
            self._disable(line, error)
        else:
            if line.newest() is not newest:
                self.past.changed(line)
            if missed is not None:
                self._records.missed(line, missed)

    def _disable(self, line: ScheduleState, error: Exception) -> None:
        """Its instants cannot be computed, though whoever defined it could: the others go on."""
        if line.definition is not None:
            line.definition = dataclasses.replace(
                line.definition, disabled=f"its instants cannot be computed: {error!r}"
            )
            line.next = None
            self._records.broken(line)

    # ---- granting

    def add(self, line: ScheduleState, tick: PendingTick) -> None:
        """One more is to run, as somebody has asked."""
        line.waiting.append(tick)
        self._hurry()

    def _serve(self, line: ScheduleState, now: int) -> None:
        """Decide the ticks of a line that can be decided."""
        waiting, line.waiting = line.waiting, []
        for tick in waiting:
            if not self._decide(line, tick, now):
                line.waiting.append(tick)
        for tick in line.overtaken(now):
            assert line.definition is not None
            self._give_up(line, tick, RunOutcome.MISSED, self._why(line, line.definition))

    def _decide(self, line: ScheduleState, tick: PendingTick, now: int) -> bool:
        """Begin a tick's run, or say why it has none; False if it has to wait."""
        definition = line.definition
        if definition is None or (definition.disabled and tick.kind is not RunKind.ASKED):
            why = "the new code does not have this schedule" if definition is None else definition.disabled
            self._give_up(line, tick, RunOutcome.REMOVED, why)
        elif tick.kind is not RunKind.ASKED and tick.attempt == 1 and line.paused is not None:
            self._give_up(line, tick, RunOutcome.PAUSED)
        elif tick.early(now):
            return False
        elif tick.late(now):
            self._give_up(line, tick, RunOutcome.MISSED, self._why(line, definition))
        elif definition.on is RunsOn.ALL and tick.slot < 0:
            return self._spread(line, definition, tick)
        elif line.asked is not None:
            return False  # one question after the other
        elif (hindrance := line.hindrance(definition, tick)) is not None:
            if not hindrance:
                return False
            self._give_up(line, tick, RunOutcome.SKIPPED, hindrance)
        else:
            return self._grant(line, definition, tick, now)
        return True

    def _spread(self, line: ScheduleState, definition: ScheduleDefinition, tick: PendingTick) -> bool:
        """on="all": a tick for each worker that serves."""
        slots = sorted({member.slot for member in self._offers.candidates(definition)})
        for slot in slots:
            each = dataclasses.replace(tick, slot=slot)
            self.asks.more(tick.ask)
            if not self._decide(line, each, self.now):
                line.waiting.append(each)
        if slots:
            self.asks.less(tick.ask)
        return bool(slots)

    def _grant(self, line: ScheduleState, definition: ScheduleDefinition, tick: PendingTick, now: int) -> bool:
        """Begin the run if there is who can run it, and the store, if there is one, has granted it."""
        if tick.queued:
            tick.queued, tick.due = False, now
        members = [
            m for m in self._offers.candidates(definition) if tick.slot in (-1, m.slot) and self.hub.port.room(m.id)
        ]
        if not members:
            return False
        if definition.on is not RunsOn.ALL and self._leases.needed(tick):
            if self.hub.store_trouble:
                return False
            self._leases.ask(line, tick, self.seed)
            return True
        self.runs.give(line, tick, members, now)
        return True

    def _why(self, line: ScheduleState, definition: ScheduleDefinition) -> str:
        if self.hub.settings.shared and self.hub.store_trouble:
            return self.hub.store_trouble
        if line.asked is not None:
            return "the store had not answered"
        if definition.on is RunsOn.AGENT:
            return "there was no agent that has this schedule"
        return "there was no worker that could run it"

    def _give_up(self, line: ScheduleState, tick: PendingTick, outcome: RunOutcome, text: str = "") -> None:
        """A tick that does not begin."""
        first = line.note(outcome, tick.instant, text)
        if first:
            self.past.changed(line)
        self._leases.release(line, tick)
        if outcome is RunOutcome.MISSED:
            self._records.missed(line, MissedTicks(1, tick.instant, tick.instant, text), first=first)
        elif outcome is RunOutcome.SKIPPED:
            self._records.skipped(line, tick.instant, text, first=first)
        self.asks.ended(tick, HistoryEntry(tick.instant, outcome, text))

    # ---- runs

    def _end(self, run: ActiveRun, outcome: RunOutcome, text: str, seconds: float | None, detail: str = "") -> None:
        """A run has ended, or nobody runs it any more."""
        line = self.runs.remove(run)
        tick, entry = run.tick, run.entry
        entry.outcome, entry.text, entry.seconds = outcome, text[:MAX_TEXT], seconds
        if outcome in NOT_STARTED:
            entry.worker, entry.slot, entry.generation, entry.began, entry.seconds = "", -1, 0, 0, None
            entry.last = entry.instant
        line.counts[outcome.value] += 1
        self.past.changed(line)
        again = outcome in RETRIED and line.definition is not None and tick.attempt <= line.definition.retry
        if outcome not in NOT_STARTED and (outcome is not RunOutcome.TIMEOUT or not run.overdue):
            self._records.ended(
                line, run, outcome, entry.text + ("; it is run again" if again else ""), detail[:MAX_DETAIL]
            )
        if again:
            line.waiting.append(dataclasses.replace(tick, attempt=tick.attempt + 1, due=self.now, queued=False))
        else:
            self._leases.release(line, tick)
            self.asks.ended(tick, entry)
        self._hurry()

    # ---- the store

    def take_from_store(self, frame: ValidatedFrame) -> None:
        if frame.kind in ("store.renewed", "store.lost"):
            self._leases.heard(frame, self.lines.values())
        elif (found := self._leases.answered(frame)) is not None:
            line, tick = found
            if frame.kind == "store.granted":
                line.waiting.insert(0, tick)
                self._hurry()
            else:
                self._taken(line, tick, frame.head.why, frame.head.text)

    def _taken(self, line: ScheduleState, tick: PendingTick, why: str, text: str) -> None:
        if why == "running" and line.definition is not None and line.definition.overlap is OverlapPolicy.QUEUE:
            tick.queued, tick.due = True, self.now + 1000  # it may have ended by then
            line.waiting.insert(0, tick)
        elif self._leases.again(tick, why):
            line.waiting.insert(0, tick)
            if why != "trouble":  # of which there will be as much in a moment: at the next look
                self._hurry()
        else:
            outcome = {"granted": RunOutcome.ELSEWHERE, "running": RunOutcome.SKIPPED}.get(why, RunOutcome.MISSED)
            self._give_up(line, tick, outcome, text)
            self._hurry()

    def store_changed(self) -> None:
        self._hurry()

    def figures(self) -> dict[str, float]:
        counts = sum((line.counts for line in self.lines.values()), self._past)
        failures = sum(counts[outcome.value] for outcome in END_RECORDS if outcome is not RunOutcome.OK)
        return {
            "schedule_runs_total": counts[RunOutcome.OK.value] + failures,
            "schedule_failures_total": failures,
            "schedule_missed_total": counts[RunOutcome.MISSED.value],
            "schedules_running": len(self.runs.all),
        }

    # ---- a new program of the listener

    def to_state(self) -> State:
        return {
            "seed": self.seed,
            "first": self._first,
            "number": self.runs.number,
            "questions": self._leases.number,
            "started": sorted(self._started),
            "seen": self._seen,
            "past": dict(self._past),
            "offers": self._offers.to_state(),
            "asks": self.asks.to_state(),
            "lines": [line.to_state() for line in self.lines.values()],
        }

    def load(self, state: State) -> None:
        self.seed, self._first = state["seed"], state["first"]
        self._leases.number = state["questions"]
        self._seen, self._started = state["seen"], set(state["started"])
        self._past.update(state["past"])
        self._offers.load(state["offers"])
        for each in state["lines"]:
            line = self.lines[each["name"]] = ScheduleState.from_state(each, self.seed)
            self._define_line(line, self._offers.current().get(line.name), line.decided)
            if line.newest() is not None:
                self.past.changed(line)  # it may not have been written yet
        self.runs.load(state["number"], self.lines.values())
        ticks = [tick for line in self.lines.values() for tick in line.waiting]
        self.asks.load(state["asks"], [*ticks, *(run.tick for run in self.runs.all.values())])
        self._hurry()
