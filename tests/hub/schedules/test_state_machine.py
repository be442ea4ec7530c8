"""Ticks under whatever can happen: each is granted once at most, and none is passed over without a record."""

from __future__ import annotations

import collections
import os
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from serve_asgi.hub.core import Member, MemberOrder
from serve_asgi.hub.schedules.definitions import OverlapPolicy, RunsOn, ScheduleDefinition
from tests.hub.schedules.table import BEGIN, Server

EXAMPLES = int(os.environ.get("SERVE_TEST_EXAMPLES", "60"))
STEADY = [
    ScheduleDefinition("skip", every=1000),
    ScheduleDefinition("queue", every=2500, overlap=OverlapPolicy.QUEUE),
    ScheduleDefinition("allow", every=700, overlap=OverlapPolicy.ALLOW, jitter=600),
    ScheduleDefinition("cron", cron="* * * * *"),
]
"""In every generation."""
RETRIED = ScheduleDefinition("retried", every=3000, retry=2)
EVERYWHERE = ScheduleDefinition("everywhere", every=4000, on=RunsOn.ALL)
ODD = ScheduleDefinition("odd", every=1500)
"""In each other generation."""
SPACE = {"skip": 1000, "queue": 2500, "allow": 700, "cron": 60_000}
UNBEGUN = ("skipped", "paused", "missed", "removed")


class TicksMachine(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.server = Server()
        self.granted: dict[str, set[tuple[int, int, int]]] = collections.defaultdict(set)
        self.given = 0
        self.open: list[int] = []
        self.members: dict[int, int] = {}
        self.abandoned: collections.Counter[tuple[str, int]] = collections.Counter()
        self.answers: list[tuple[str, list[tuple[bool, str, Any]]]] = []
        self.reload()

    def definitions(self) -> list[ScheduleDefinition]:
        return [*STEADY, RETRIED, EVERYWHERE, *([ODD] if self.server.generation % 2 else [])]

    def serving(self) -> list[Member]:
        return [member for member in self.server.hub.members.values() if member.order is MemberOrder.SERVE]

    def end(self, member: Member) -> None:
        for run in [run for run in self.open if self.members[run] == member.id]:
            head = next(head for _, head in self.server.given if head["run"] == run)
            self.abandoned[head["name"], head["instant"]] += 1
            self.open.remove(run)
        self.server.hub.leave(member.id)
        self.server.look()

    @rule()
    def reload(self) -> None:
        self.server.generation += 1
        definitions = self.definitions()
        self.server.generation -= 1
        self.server.switch(*definitions)

    @rule(seconds=st.floats(0.01, 20))
    def go(self, seconds: float) -> None:
        self.server.go(seconds)

    @rule(seconds=st.floats(0.01, 100))
    def stand_still(self, seconds: float) -> None:
        self.server.shift(seconds)
        self.server.look()

    @rule(seconds=st.floats(-2000, 2000))
    def set_the_clock(self, seconds: float) -> None:
        self.server.wall += seconds

    @precondition(lambda self: self.open)
    @rule(data=st.data(), outcome=st.sampled_from(["ok", "failed", "timeout"]))
    def finish(self, data: st.DataObject, outcome: str) -> None:
        run = data.draw(st.sampled_from(self.open))
        self.open.remove(run)
        self.server.ran(run, outcome)

    @precondition(lambda self: self.serving())
    @rule(data=st.data(), again=st.booleans())
    def kill(self, data: st.DataObject, again: bool) -> None:
        member = data.draw(st.sampled_from(self.serving()))
        self.end(member)
        if again:
            self.spawn(member.slot)

    @rule(slot=st.integers(0, 1))
    def spawn(self, slot: int) -> None:
        if any(member.slot == slot for member in self.serving()):
            return
        member = self.server.spawn(*self.definitions(), slot=slot)
        self.server.hub.order(member.id, MemberOrder.SERVE)
        self.server.look()

    @rule()
    def the_old_ones_end(self) -> None:
        for member in [m for m in self.server.hub.members.values() if m.order is MemberOrder.RETIRE]:
            self.end(member)

    @rule(name=st.sampled_from([*SPACE, "retried"]), do=st.sampled_from(["pause", "resume", "run"]))
    def ask(self, name: str, do: str) -> None:
        self.answers.append((name, self.server.ask(do, name)))

    @rule()
    def replace_the_listener(self) -> None:
        waiting = [tick for line in self.server.ticks.schedules.values() for tick in line.waiting]
        if any(tick.ask for tick in waiting):
            return  # the test would get no answer
        self.server.replace()
        self.server.look()

    @invariant()
    def each_is_granted_once_at_most(self) -> None:
        for member, head in self.server.given[self.given :]:
            self.open.append(head["run"])
            self.members[head["run"]] = member
            if head["kind"] != "tick":
                continue
            name, instant, attempt = head["name"], head["instant"], head["attempt"]
            slot = -1
            if name == "everywhere":
                slot = next(m.slot for m in self.server.hub.members.values() if m.id == member)
            assert (instant, attempt, slot) not in self.granted[name]
            assert attempt == 1 or (name == "retried" and self.abandoned[name, instant] == attempt - 1)
            assert attempt <= 3
            self.granted[name].add((instant, attempt, slot))
        self.given = len(self.server.given)

    @invariant()
    def none_is_passed_over_without_a_record(self) -> None:
        for name, space in SPACE.items():
            line = self.server.line(name)
            came = line.decided // space - int(BEGIN * 1000) // space
            counted = sum(line.counts[outcome] for outcome in UNBEGUN)
            counted -= self.refused(name)
            waiting = sum(tick.kind.value == "tick" for tick in line.waiting)
            assert came == len(self.granted[name]) + counted + waiting

    def refused(self, name: str) -> int:
        """How many runs that were asked for did not begin."""
        found = [what for asked, answers in self.answers if asked == name for _, _, what in answers if what]
        return sum(entry["outcome"] in UNBEGUN for entries in found for entry in entries)

    @invariant()
    def what_runs_is_known(self) -> None:
        assert sorted(self.server.ticks.runs.active) == sorted(self.open)


TicksMachine.TestCase.settings = settings(
    max_examples=EXAMPLES, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestTicks = TicksMachine.TestCase
