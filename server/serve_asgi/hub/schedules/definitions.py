"""Definitions of schedules: what a schedule is, which instants it has, and which definitions hold.

An instant is a unix time in whole milliseconds, so that every process and every machine means the same one. `every`
counts from the Unix epoch, cron expressions are `serve_asgi.hub.schedules.cron`'s. The rules of a time zone travel with
the definition.

Each process sends its definitions when it starts. Those of a new generation hold from the switch on. Two functions of
the same name keep a generation from serving, even if each is known to one process only. Once it serves it is too late
for that (a worker that is replaced may find edited files), and the first definition counts.
"""

from __future__ import annotations

import dataclasses
import datetime
import enum
import logging
import re
from typing import Any, Final

from serve_asgi.errors import ScheduleError
from serve_asgi.hub.core import Hub, Member, State
from serve_asgi.hub.schedules.cron import next_instant
from serve_asgi.ipc.membership_frames import MemberPhase, Role
from serve_asgi.ipc.schedule_frames import MAX_INTERVAL

MIN_INTERVAL: Final = 100
"""Least milliseconds between two ticks: what is due more often is a loop, not a schedule."""
MAX_SCHEDULES: Final = 400
"""Schedules that the processes of one generation may have; further ones are ignored."""
_UNITS: Final = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
_SPAN: Final = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|[smhdw]))+")
_PART: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|[smhdw])")


class RunsOn(enum.Enum):
    """Which processes run it."""

    ONE = "one"  # one worker, chosen by the server
    ALL = "all"  # each worker that serves
    AGENT = "agent"


class OverlapPolicy(enum.Enum):
    """What a tick does while an earlier run has not ended."""

    SKIP = "skip"
    QUEUE = "queue"
    ALLOW = "allow"


@dataclasses.dataclass(frozen=True, slots=True)
class ScheduleDefinition:
    """A schedule, as its decorator defined it. Times are in milliseconds."""

    name: str
    cron: str = ""  # or `every`
    every: int = 0
    tz: str = "UTC"
    rules: bytes = b""  # of the zone; none for UTC
    on: RunsOn = RunsOn.ONE
    immediate: bool = False  # runs once when the server has started, too
    overlap: OverlapPolicy = OverlapPolicy.SKIP
    timeout: int = 0  # of one run; 0 for none
    jitter: int = 0  # a tick begins up to this much later
    retry: int = 0  # attempts after a run was cut or its process died
    disabled: str = ""  # why it has no ticks; "" if it has some
    where: str = ""  # file and line of the function
    function: str = ""  # its module and qualified name; "" from an earlier version

    def after(self, instant: int) -> int | None:
        """The first instant after this one; None if there is none, which does not happen to a checked definition."""
        if self.disabled:
            return None
        if self.every:
            return instant // self.every * self.every + self.every
        return next_instant(self.cron, self.tz, self.rules, instant)

    def same_function(self, other: ScheduleDefinition) -> bool:
        """Whether both are of the same function, as far as known; its line differs if the file was edited."""
        return self.function == other.function or not (self.function and other.function) or self.where == other.where

    def timing(self) -> tuple[object, ...]:
        """All that the instants depend on."""
        return self.cron, self.every, self.tz, self.rules, self.disabled

    def when(self) -> str:
        """When it runs, for people to read."""
        return f"every {span(self.every)}" if self.every else self.cron + (f" {self.tz}" if self.tz != "UTC" else "")

    def to_head(self) -> dict[str, Any]:
        """All but the rules, as the head of a frame."""
        head = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del head["rules"]
        return head | {"on": self.on.value, "overlap": self.overlap.value}

    @classmethod
    def from_head(cls, head: dict[str, Any], rules: bytes) -> ScheduleDefinition:
        """The reverse; members of a later version are ignored. Raises KeyError, TypeError or ValueError."""
        known = {field.name: head[field.name] for field in dataclasses.fields(cls) if field.name in head}
        made = cls(**known | {"rules": rules, "on": RunsOn(head["on"]), "overlap": OverlapPolicy(head["overlap"])})
        if not isinstance(made.name, str) or not (made.disabled or made.every >= MIN_INTERVAL or made.cron):
            raise ValueError("a definition without a name or without ticks")
        return made


def milliseconds(given: str | float | datetime.timedelta, what: str) -> int:
    """A time span: "10m", "1h30m", "500ms", a number of seconds or a timedelta. Raises ScheduleError."""
    if isinstance(given, datetime.timedelta):
        return round(given.total_seconds() * 1000)
    if isinstance(given, int | float) and not isinstance(given, bool):
        return round(given * 1000)
    if isinstance(given, str) and _SPAN.fullmatch(given.replace(" ", "")):
        return round(sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(given.replace(" ", ""))))
    raise ScheduleError(
        f'{what} is {given!r}: write a number and its unit (ms, s, m, h, d, w), such as "10m" or "1h30m"'
    )


def span(time: int) -> str:
    """Milliseconds as `milliseconds` reads them: 10m, 1h30m, 0.2s."""
    parts = []
    for unit in ("w", "d", "h", "m"):
        whole, time = divmod(time, _UNITS[unit])
        if whole:
            parts.append(f"{whole}{unit}")
    if time or not parts:
        parts.append(f"{time / 1000:g}s")
    return "".join(parts)


def checked_every(given: str | float | datetime.timedelta) -> int:
    """`every` in milliseconds. Raises ScheduleError."""
    every = milliseconds(given, "every")
    if not MIN_INTERVAL <= every <= MAX_INTERVAL:
        raise ScheduleError(f"every is {given!r}: it can be from {span(MIN_INTERVAL)} to {span(MAX_INTERVAL)}")
    return every


class ScheduleRegistry:
    """The definitions that processes have sent, by generation, and which process has which function."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self.generation = -1
        """The generation whose definitions are in force; -1 before the first switch."""
        self._registry: dict[int, dict[str, ScheduleDefinition]] = {}
        # by generation, until it serves: who was the first to send each name, and what
        self._first_definers: dict[int, dict[str, tuple[Member, ScheduleDefinition]]] = {}
        self._conflicts: dict[int, str] = {}  # by generation: what keeps it from serving
        # by generation: sent by processes that must not run them
        self._strays: dict[int, dict[str, ScheduleDefinition]] = {}
        self._refused: set[tuple[int, str]] = set()  # generation and name of those that were logged
        self._names: dict[int, set[str]] = {}  # by member

    def take(self, member: Member, definition: ScheduleDefinition) -> bool:
        """A member has this schedule; return whether it is in force from now on."""
        if not self._room(member.generation, definition.name):
            return False
        if member.generation > self.generation:
            self._note_conflict(member, definition)
        if _role(definition) is not member.role:
            self._strays.setdefault(member.generation, {}).setdefault(definition.name, definition)
            if member.generation == self.generation:
                self._report_strays()
            return False
        definitions = self._registry.setdefault(member.generation, {})
        known = definitions.setdefault(definition.name, definition)
        if _role(known) is not member.role:
            self._report_duplicate(member.generation, known, definition)
            return False
        self._names.setdefault(member.id, set()).add(definition.name)
        return known is definition and member.generation == self.generation

    def _room(self, generation: int, name: str) -> bool:
        """Whether a generation may have a schedule of this name; if there are too many, log that once."""
        there = (
            self._registry.get(generation, {}),
            self._strays.get(generation, {}),
            self._first_definers.get(generation, {}),
        )
        if any(name in each for each in there) or max(len(each) for each in there) < MAX_SCHEDULES:
            return True
        if (generation, "") not in self._refused:
            self._refused.add((generation, ""))
            text = (
                f"the schedule {name!r} and further ones are left out: {MAX_SCHEDULES} are the most that there can be"
            )
            self._hub.port.report(logging.ERROR, "schedule_refused", text, name=name)
        return False

    def _note_conflict(self, member: Member, definition: ScheduleDefinition) -> None:
        """Note a conflict if another process of the generation has another function of this name."""
        told = self._first_definers.setdefault(member.generation, {})
        first, known = told.setdefault(definition.name, (member, definition))
        if not definition.same_function(known):
            text = (
                f"two schedules have the name {definition.name!r}: {_described(first, known)} and "
                f"{_described(member, definition)}; give one of them another with name="
            )
            self._conflicts.setdefault(member.generation, text)

    def conflicting_names(self, generation: int) -> str:
        """Why this generation cannot serve; "" if it can."""
        return self._conflicts.get(generation, "")

    def _report_duplicate(self, generation: int, known: ScheduleDefinition, definition: ScheduleDefinition) -> None:
        if (generation, definition.name) in self._refused:
            return
        self._refused.add((generation, definition.name))
        text = (
            f"two schedules have the name {definition.name!r}: that of {known.where} counts, and that of "
            f"{definition.where} is left out; give one of them another name"
        )
        self._hub.port.report(logging.ERROR, "schedule_refused", text, name=definition.name)

    def switch(self, generation: int) -> None:
        """The definitions of this generation are in force from now on; those of others are kept while they live, since
        a roll-back may have them serve again."""
        self.generation = generation
        alive = {generation, *(member.generation for member in self._hub.members.values())}
        self._registry = {number: definitions for number, definitions in self._registry.items() if number in alive}
        self._refused = {each for each in self._refused if each[0] in alive}
        self._first_definers = {number: told for number, told in self._first_definers.items() if number > generation}
        self._conflicts = {number: text for number, text in self._conflicts.items() if number > generation}
        self._strays = {number: strays for number, strays in self._strays.items() if number in alive}
        self._report_strays()

    def current(self) -> dict[str, ScheduleDefinition]:
        """The definitions in force."""
        return self._registry.get(self.generation, {})

    def known(self, name: str) -> bool:
        """Whether a generation that serves or starts has it."""
        theirs = (each for number, each in self._registry.items() if number >= self.generation)
        return any(name in definitions for definitions in theirs)

    def candidates(self, definition: ScheduleDefinition) -> list[Member]:
        """The members that may run it: they serve, have the function and are of the right kind."""
        role = _role(definition)
        return [
            member
            for member in self._hub.in_phase(MemberPhase.SERVING, role=role)
            if definition.name in self._names.get(member.id, ())
            and (role is Role.AGENT or member.generation == self.generation)
        ]

    def left(self, member: Member) -> None:
        """A member is gone; with the last one of a generation that does not serve, its definitions are forgotten."""
        self._names.pop(member.id, None)
        alive = any(each.generation == member.generation for each in self._hub.members.values())
        if member.generation != self.generation and not alive:
            for each in (self._registry, self._strays, self._first_definers, self._conflicts):
                each.pop(member.generation, None)

    def _report_strays(self) -> None:
        settings = self._hub.settings
        for name, definition in self._strays.get(self.generation, {}).items():
            if _role(definition) is Role.AGENT and settings.agent_in_fleet and not settings.agent:
                continue  # the fleet's agent is on another server, or is not there yet
            known = (self.generation, name) in self._refused or name in self.current()
            if not known and not definition.disabled:
                self._refused.add((self.generation, name))
                self._report_stray(definition)

    def _report_stray(self, definition: ScheduleDefinition) -> None:
        """Log that the processes that are to run it do not have it."""
        text = f"the schedule {definition.name!r} ({definition.where}) runs nowhere: "
        if _role(definition) is Role.WORKER:
            text += 'the agent alone imports it; write on="agent"'
        elif any(member.role is Role.AGENT for member in self._hub.members.values()):
            text += "it is for the agent, whose module does not import it"
        else:
            text += "it is for the agent, and there is none; start one with --agent"
        self._hub.port.report(logging.ERROR, "schedule_unassigned", text, name=definition.name)

    def to_state(self) -> State:
        return {
            "generation": self.generation,
            "names": [[id, sorted(names)] for id, names in self._names.items()],
            "offers": [
                [number, [[definition.to_head(), definition.rules] for definition in definitions.values()]]
                for number, definitions in self._registry.items()
            ],
        }

    def load(self, state: State) -> None:
        self.generation = state["generation"]
        self._names = {id: set(names) for id, names in state["names"]}
        for number, definitions in state["offers"]:
            made = (ScheduleDefinition.from_head(head, rules) for head, rules in definitions)
            self._registry[number] = {definition.name: definition for definition in made}


def _described(member: Member, definition: ScheduleDefinition) -> str:
    whose = "the agent" if member.role is Role.AGENT else f"worker {member.slot}"
    return f"{definition.function} ({definition.where}) of {whose}"


def _role(definition: ScheduleDefinition) -> Role:
    return Role.AGENT if definition.on is RunsOn.AGENT else Role.WORKER
