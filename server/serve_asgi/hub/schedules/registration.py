"""Which schedules the processes of each generation have, and which of them hold.

From the switch on those of the new generation hold, whatever its processes are: until then those of the one that
serves. Two functions of one name keep a generation from serving, also if each is known to one process alone. Once it
serves it is too late for that (a worker that is replaced may find edited files), and the first that was told counts.
"""

from __future__ import annotations

import logging
from typing import Final

from serve_asgi.hub.core import Hub, Member, State
from serve_asgi.hub.schedules.definition import RunsOn, ScheduleDefinition
from serve_asgi.ipc.membership_frames import MemberPhase, Role

MAX_SCHEDULES: Final = 400
"""Schedules that the processes of one generation may have; further ones are left out."""


class ScheduleRegistry:
    """The definitions that processes sent, by generation, and who has which function."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self.generation = -1
        """Whose definitions hold; -1 before any serves."""
        self._registry: dict[int, dict[str, ScheduleDefinition]] = {}
        self._definition_counts: dict[
            int, dict[str, tuple[Member, ScheduleDefinition]]
        ] = {}  # who was the first, before the switch
        self._conflicts: dict[int, str] = {}  # what keeps a generation from serving
        self._strays: dict[int, dict[str, ScheduleDefinition]] = {}  # sent by processes that are not to run them
        self._refused: set[tuple[int, str]] = set()  # what was logged, by generation and name
        self._names: dict[int, set[str]] = {}  # by member

    def take(self, member: Member, definition: ScheduleDefinition) -> bool:
        """A member has this schedule; return whether it holds from now on."""
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
        """Whether a generation may have a schedule of this name; too many are logged once."""
        there = (
            self._registry.get(generation, {}),
            self._strays.get(generation, {}),
            self._definition_counts.get(generation, {}),
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
        """Note if another process of its generation has another function of this name."""
        told = self._definition_counts.setdefault(member.generation, {})
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
        """The definitions of this generation hold from now on; those of older ones are never asked for again."""
        self.generation = generation
        self._registry = {number: definitions for number, definitions in self._registry.items() if number >= generation}
        self._refused = {each for each in self._refused if each[0] >= generation}
        self._definition_counts = {
            number: told for number, told in self._definition_counts.items() if number > generation
        }
        self._conflicts = {number: text for number, text in self._conflicts.items() if number > generation}
        self._strays = {number: strays for number, strays in self._strays.items() if number >= generation}
        self._report_strays()

    def current(self) -> dict[str, ScheduleDefinition]:
        """Those that hold."""
        return self._registry.get(self.generation, {})

    def known(self, name: str) -> bool:
        """Whether a generation that serves, or that starts, has it."""
        return any(name in definitions for definitions in self._registry.values())

    def candidates(self, definition: ScheduleDefinition) -> list[Member]:
        """Who serves, has the function and is of the right kind."""
        role = _role(definition)
        return [
            member
            for member in self._hub.in_phase(MemberPhase.SERVING, role=role)
            if definition.name in self._names.get(member.id, ())
            and (role is Role.AGENT or member.generation == self.generation)
        ]

    def left(self, member: Member) -> None:
        """A member is gone; with the last one of a generation that never served, its definitions go too."""
        self._names.pop(member.id, None)
        alive = any(each.generation == member.generation for each in self._hub.members.values())
        if member.generation > self.generation and not alive:
            for each in (self._registry, self._strays, self._definition_counts, self._conflicts):
                each.pop(member.generation, None)

    def _report_strays(self) -> None:
        for name, definition in self._strays.get(self.generation, {}).items():
            known = (self.generation, name) in self._refused or name in self.current()
            if not known and not definition.disabled:
                self._refused.add((self.generation, name))
                self._report_stray(definition)

    def _report_stray(self, definition: ScheduleDefinition) -> None:
        """The processes that are to run it do not have it."""
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
