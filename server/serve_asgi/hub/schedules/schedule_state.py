"""The state of one schedule in the hub: ticks that have to be decided, runs, and its history.

A tick is (name, instant). `ScheduleState` takes each instant from the definition once, in order: whatever the clock
does, none comes back. Each one is run, or has an entry in the history that says why not. It knows no process, clock or
frame; times are unix times in milliseconds.
"""

from __future__ import annotations

import collections
import dataclasses
import enum
import hashlib
from typing import Any, Final

from serve_asgi.hub.schedules.definitions import OverlapPolicy, ScheduleDefinition
from serve_asgi.hub.schedules.missed_ticks import (
    MISSED_REASON,
    TICK_GRACE,
    MissedTicks,
    PendingTick,
    count_missed,
    instants_until,
)
from serve_asgi.ipc.schedule_frames import RunKind, RunOutcome

MAX_QUEUED_TICKS: Final = 10
"""Most ticks that wait for an earlier run (overlap="queue")."""
MAX_PARALLEL_RUNS: Final = 100
"""Most runs of one schedule at the same time (overlap="allow")."""
HISTORY_LENGTH: Final = 50
"""Entries that are kept of one schedule."""


NOT_STARTED: Final = frozenset(
    {RunOutcome.SKIPPED, RunOutcome.PAUSED, RunOutcome.MISSED, RunOutcome.REMOVED, RunOutcome.ELSEWHERE}
)
RETRIED: Final = frozenset({RunOutcome.CUT, RunOutcome.DIED})
"""The outcomes that `retry` is for."""


@dataclasses.dataclass(slots=True)
class HistoryEntry:
    """An entry of the history: a run, or ticks in a row that had the same outcome and no run."""

    instant: int  # of the first one
    outcome: RunOutcome
    text: str = ""
    worker: str = ""  # for people to read
    slot: int = -1
    generation: int = 0
    began: int = 0
    seconds: float | None = None
    attempt: int = 1
    kind: RunKind = RunKind.TICK
    count: int = 1
    last: int = 0  # instant of the last one

    @classmethod
    def load(cls, told: dict[str, Any]) -> HistoryEntry:
        """The reverse of `to_plain`."""
        known = {field.name: told[field.name] for field in dataclasses.fields(cls) if field.name in told}
        return cls(**known | {"outcome": RunOutcome(told["outcome"]), "kind": RunKind(told["kind"])})

    def shown(self) -> dict[str, Any]:
        """As `serve schedules --json` has it: times in unix seconds."""
        return {
            "instant": self.instant / 1000,
            "outcome": self.outcome.value,
            "text": self.text,
            "worker": self.worker,
            "slot": self.slot,
            "generation": self.generation,
            "began": self.began / 1000 if self.began else None,
            "seconds": self.seconds,
            "attempt": self.attempt,
            "kind": self.kind.value,
            "count": self.count,
            "last": (self.last or self.instant) / 1000,
        }


@dataclasses.dataclass(slots=True, eq=False)
class ActiveRun:
    """A run in progress."""

    id: int
    tick: PendingTick
    member: int
    slot: int  # on="all": the slot that runs it; -1 otherwise
    entry: HistoryEntry
    overdue: bool = False  # it has timed out and continues, since it runs in a thread
    lost: bool = False  # its lease is lost: another server may run it


def to_plain(each: HistoryEntry | PendingTick) -> dict[str, Any]:
    """As plain values; a later version may add members."""
    found = {field.name: getattr(each, field.name) for field in dataclasses.fields(each)}
    return {name: value.value if isinstance(value, enum.Enum) else value for name, value in found.items()}


class ScheduleState:
    """One schedule: its definition, ticks, runs and history."""

    def __init__(self, name: str, decided: int, seed: int = 0) -> None:
        """Instants up to `decided` are not its own; `seed` determines the jitter."""
        self.name = name
        self.seed = seed
        self._latest = 0  # when the last tick was due
        self.definition: ScheduleDefinition | None = None
        self.since = decided
        self.decided = decided
        self.next: int | None = None
        self.paused: dict[str, Any] | None = None  # since when, and by whom
        self._passed = 0  # ticks that passed during earlier pauses
        self.waiting: list[PendingTick] = []  # by instant
        self.at_store: PendingTick | None = None  # requested from the store
        self.runs: dict[int, ActiveRun] = {}
        self.history: collections.deque[HistoryEntry] = collections.deque(maxlen=HISTORY_LENGTH)
        self.counts: collections.Counter[str] = collections.Counter()

    def adopt(self, definition: ScheduleDefinition | None, now: int) -> None:
        """This definition is in force from now on; what was due before belongs to the previous one."""
        self.decided = max(self.decided, now)
        before, self.definition = self.definition, definition
        if definition is None or before is None or before.timing() != definition.timing() or self.next is None:
            self.next = None if definition is None else definition.after(self.decided)
        elif self.next <= self.decided:
            self.next = definition.after(self.decided)

    def advance(self, now: int) -> MissedTicks | None:
        """Take the instants up to `now`; return those that were missed."""
        if self.definition is None or self.next is None or self.next > now:
            return None
        first, (instants, passed) = self.next, instants_until(self.definition, self.next, now)
        self.decided = instants[-1]
        self.next = self.definition.after(self.decided)
        if self.paused is not None:
            self.record(RunOutcome.PAUSED, first, count=len(instants) + passed, last=self.decided)
            return None
        ticks = [PendingTick(instant, self._due(instant)) for instant in instants]
        number = count_missed([tick.due for tick in ticks], now)
        self.waiting += ticks[number:]
        if not passed and not number:
            return None
        last = ticks[number - 1].instant if number else first
        missed = MissedTicks(passed + number, first, last, MISSED_REASON)
        self.record(RunOutcome.MISSED, first, MISSED_REASON, count=missed.number, last=missed.last)
        return missed

    def _due(self, instant: int) -> int:
        """When the tick is due: at random within the jitter, always the same, and never before an earlier tick."""
        assert self.definition is not None
        if not self.definition.jitter:
            return instant
        drawn = hashlib.blake2b(f"{self.seed} {self.name} {instant}".encode(), digest_size=4).digest()
        delay = self.definition.jitter * int.from_bytes(drawn) >> 32
        self._latest = max(self._latest, instant + delay)
        return self._latest

    def record(self, outcome: RunOutcome, instant: int, text: str = "", *, count: int = 1, last: int = 0) -> bool:
        """Record ticks that did not begin; return whether the tick before them had another outcome."""
        self.counts[outcome.value] += count
        newest_entry = self.newest_entry()
        if newest_entry is not None and newest_entry.outcome is outcome:
            newest_entry.count, newest_entry.last, newest_entry.text = newest_entry.count + count, last or instant, text
            return False
        self.history.append(HistoryEntry(instant, outcome, text, count=count, last=last or instant))
        return True

    def newest_entry(self) -> HistoryEntry | None:
        """The last entry of the history."""
        return self.history[-1] if self.history else None

    def pause(self, pause: dict[str, Any] | None) -> int:
        """Pause it, or end the pause (None); return how many ticks have passed in pauses since the last call."""
        passed = self.counts[RunOutcome.PAUSED.value]
        since, self._passed, self.paused = self._passed, passed, pause
        return passed - since

    def busy_count(self, slot: int) -> int:
        """How many runs there are, including one requested from the store; of one slot, unless it is -1."""
        return sum(slot in (-1, run.slot) for run in self.runs.values()) + (self.at_store is not None)

    def conflict(self, definition: ScheduleDefinition, tick: PendingTick) -> str | None:
        """Why the tick has to be skipped because of other runs; "" if it has to wait for them, None if it can run."""
        busy_count = self.busy_count(tick.slot)
        before = sum(each.queued and each.slot == tick.slot for each in self.waiting)
        if busy_count == 0 and not before:  # earlier ones may wait for a run on another server
            return None
        if definition.overlap is OverlapPolicy.SKIP:
            return "the run before it had not ended"
        if definition.overlap is OverlapPolicy.ALLOW:
            return f"{busy_count} runs had not ended" if busy_count >= MAX_PARALLEL_RUNS else None
        if not tick.queued and before >= MAX_QUEUED_TICKS:
            return f"{MAX_QUEUED_TICKS} ticks wait for the run before them already"
        tick.queued = True
        return ""

    def take_overtaken(self, now: int) -> list[PendingTick]:
        """Remove the ticks that could not begin before the next one was due: a delay must not end in a burst."""
        newest_entry: dict[int, PendingTick] = {}
        found = []
        for tick in self.waiting:
            if tick.kind is RunKind.TICK and tick.attempt == 1 and tick.due <= now and not tick.queued:
                before = newest_entry.get(tick.slot)
                newest_entry[tick.slot] = tick if before is None or before.instant < tick.instant else before
                if not tick.unsettled:
                    found.append(tick)
        found = [tick for tick in found if newest_entry[tick.slot] is not tick]
        if found:
            self.waiting = [tick for tick in self.waiting if tick not in found]
        return found

    def next_wake(self, now: int) -> int | None:
        """When something has to be decided even if nothing happens."""
        waiting = [tick for tick in self.waiting if not tick.unsettled and (tick.due > now or not tick.queued)]
        times = [tick.due if tick.due > now else tick.due + TICK_GRACE + 1 for tick in waiting]
        return min(times if self.next is None else [*times, self.next], default=None)

    def state(self) -> str:
        """What it does, as one word: paused, disabled, running or waiting."""
        if self.runs:
            return "running"
        if self.definition is not None and self.definition.disabled:
            return "disabled"
        return "paused" if self.paused is not None else "waiting"

    # A new program of the listener

    def to_state(self) -> dict[str, Any]:
        asked = [self.at_store] if self.at_store is not None else []  # it is requested again
        return {
            "name": self.name,
            "since": self.since,
            "decided": self.decided,
            "latest": self._latest,
            "paused": self.paused,
            "passed": self._passed,
            "waiting": [to_plain(tick) for tick in asked + self.waiting],
            "runs": [
                [run.id, to_plain(run.tick), run.member, run.slot, to_plain(run.entry)] for run in self.runs.values()
            ],
            "history": [to_plain(entry) for entry in self.history if entry.outcome is not RunOutcome.RUNNING],
            "counts": dict(self.counts),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any], seed: int) -> ScheduleState:
        """The reverse, except for the definition."""
        schedule = cls(state["name"], state["decided"], seed)
        schedule.since = state["since"]
        schedule._latest, schedule.paused = state["latest"], state["paused"]
        schedule._passed = state.get("passed", 0)  # not kept by an earlier version
        schedule.waiting = [PendingTick.load(tick) for tick in state["waiting"]]
        schedule.history.extend(HistoryEntry.load(entry) for entry in state["history"])
        schedule.counts.update(state["counts"])
        for id, tick, member, slot, entry in state["runs"]:
            run = schedule.runs[id] = ActiveRun(id, PendingTick.load(tick), member, slot, HistoryEntry.load(entry))
            schedule.history.append(run.entry)
        return schedule
