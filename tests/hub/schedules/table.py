"""A hub with schedules whose clocks and processes are the test's."""

from __future__ import annotations

from typing import Any

from serve_asgi.hub.core import Hub, HubSettings, Member, MemberOrder
from serve_asgi.hub.schedules.definitions import ScheduleDefinition
from serve_asgi.hub.schedules.schedule_state import HistoryEntry, ScheduleState
from serve_asgi.hub.schedules.scheduler import Scheduler
from serve_asgi.hub.state.shared_state import SharedState
from serve_asgi.ipc.frames import encode
from serve_asgi.ipc.membership_frames import Role
from tests.hub.port import RecordingPort

BEGIN = 1_800_000_000.0
"""Unix time at which a test begins."""


class Server:
    """The hub's side of a server; `given` are the runs that its processes were told to do, in order."""

    def __init__(self, *, stored: bool = False, shared: bool = True) -> None:
        """`stored`: it has a store, which is `shared` with other servers."""
        self.settings = HubSettings(stored=stored, shared=stored and shared)
        self.port = RecordingPort()
        self.wall = BEGIN
        self.clock = 100.0
        self.given: list[tuple[int, dict[str, Any]]] = []
        self.generation = 0
        self._id = 0
        self._make()

    def _make(self) -> None:
        self.hub = Hub(self.port, self.settings, lambda: self.clock, lambda: self.wall)
        state = SharedState(self.hub)
        self.ticks = Scheduler(self.hub, state)
        self.hub.add(state)
        self.hub.add(self.ticks)

    def replace(self) -> None:
        """Another program takes the listener's place."""
        state = self.hub.to_state()
        self._make()
        self.hub.load(state)

    def spawn(
        self, *definitions: ScheduleDefinition, slot: int = 0, role: Role = Role.WORKER, generation: int = 0
    ) -> Member:
        """A process that has imported the application; it does not serve yet."""
        self._id += 1
        slot = -1 if role is Role.AGENT else slot
        member = self.hub.join(self._id, role, generation or self.generation, slot)
        self.hub.linked(member.id)
        for definition in definitions:
            self.say(member, "schedule.define", definition.to_head(), definition.rules)
        self.hub.take(member.id, encode("up"))
        return member

    def switch(self, *definitions: ScheduleDefinition, workers: int = 2, agent: bool = False) -> list[Member]:
        """A new generation serves, and the one before retires."""
        old = [m for m in self.hub.members.values() if m.order is MemberOrder.SERVE]
        self.generation += 1
        new = [self.spawn(*definitions, slot=slot) for slot in range(workers)]
        if agent:
            new.append(self.spawn(*definitions, role=Role.AGENT))
        for member in new:
            self.hub.order(member.id, MemberOrder.SERVE)
        for member in old:
            self.hub.order(member.id, MemberOrder.RETIRE)
        self.hub.server_ready()
        self.look()
        return new

    def say(self, member: Member, kind: str, head: dict[str, Any], body: bytes = b"") -> None:
        self.hub.take(member.id, encode(kind, head, body))

    def ran(self, run: int, outcome: str = "ok") -> None:
        """A run has ended."""
        member = next(member for member, head in self.given if head["run"] == run)
        self.say(
            self.hub.members[member], "schedule.ended", {"run": run, "outcome": outcome, "text": "", "seconds": 0.1}
        )
        self.look()

    def store_says(self, kind: str, **head: Any) -> None:
        self.hub.take_from_store(encode(kind, head))
        self.look()

    def ask(self, do: str, name: str) -> list[tuple[bool, str, Any]]:
        """What `serve schedule …` does; the list gets the answer."""
        found: list[tuple[bool, str, Any]] = []
        self.ticks.commands.do(do, name, lambda ok, text, what: found.append((ok, text, what)), by="a test")
        self.look()
        return found

    def look(self) -> None:
        """What the listener does after each event: keep the deadlines that have come."""
        for _ in range(20):
            if self.hub.deadline() > self.clock:
                break
            self.hub.tick()
        else:
            raise AssertionError("the hub's deadline does not go away")
        found = []
        for id, frames in self.port.sent.items():
            found += [(id, frame.head) for frame in frames if frame.kind == "schedule.run"]
            frames[:] = [frame for frame in frames if frame.kind != "schedule.run"]
        self.given += sorted(found, key=lambda each: int(each[1]["run"]))

    def go(self, seconds: float, step: float = 1.0) -> None:
        """Let time pass, with a look at each of its deadlines."""
        end = self.wall + seconds
        while self.wall < end - 1e-9:
            due = max(0.0, self.hub.deadline() - self.clock)
            self.shift(min(end - self.wall, max(due, 0.001), step))
            self.look()

    def shift(self, seconds: float) -> None:
        """Both clocks go on, and nobody looks."""
        self.wall += seconds
        self.clock += seconds

    def take_given(self) -> list[tuple[int, dict[str, Any]]]:
        """The runs that were given since this was called last."""
        found, self.given_before = self.given[self.given_before :], len(self.given)
        return found

    given_before = 0

    def line(self, name: str) -> ScheduleState:
        return self.ticks.schedules[name]

    def history(self, name: str) -> list[tuple[str, int]]:
        """Outcomes and how many ticks each is of, oldest first."""
        return [(entry.outcome.value, entry.count) for entry in self.line(name).history]

    def newest(self, name: str) -> HistoryEntry:
        return self.line(name).history[-1]
