"""The supervisor's state as plain values, and back: what a listener that replaces its own program passes on.

A friend of `Supervisor`, which it takes apart and puts together. Everything is JSON-compatible; a member that the
other version does not know is passed over, and one that it misses has its default. A server passes its state on only
while it is at rest (`at_rest`), so that nobody's outcome and no half-begun generation has to travel.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import Any, Final, TypeVar

from server.listener.introductions import Fate, Introductions, Pair
from server.listener.lifecycle import (
    Agent,
    AgentState,
    Cause,
    Generation,
    GenerationState,
    Policy,
    ServerState,
    Slot,
    Worker,
    WorkerState,
)
from server.listener.supervisor import LameDuck, Supervisor

State = dict[str, Any]
T = TypeVar("T")

NUMBERS: Final = ("size", "reloads", "failed_reloads", "last_failure", "lost")
COUNTS: Final = ("_next_generation", "_next_worker", "_count")
ENUMS: Final[dict[tuple[type, str], type[enum.Enum]]] = {
    (Generation, "state"): GenerationState,
    (Worker, "state"): WorkerState,
    (Worker, "cause"): Cause,
    (Agent, "state"): AgentState,
    (Agent, "cause"): Cause,
}


def at_rest(supervisor: Supervisor) -> bool:
    """Whether the server runs and no reload is under way or asked for."""
    idle = supervisor.candidate is None and supervisor.preparation is None and supervisor.reload_wanted is None
    return supervisor.state is ServerState.RUNNING and supervisor.current is not None and idle


def to_state(supervisor: Supervisor) -> State:
    """All that a supervisor at rest knows."""
    assert supervisor.current is not None
    return {
        "policy": dataclasses.asdict(supervisor.policy),
        "generations": [_plain(generation) for generation in supervisor.generations.values()],
        "workers": [_plain(worker) for worker in supervisor.workers.values()],
        "agents": [_plain(agent) for agent in supervisor.agents.all.values()],
        "agent_restart": _plain(supervisor.agents.restart),
        "vacant_since": supervisor.agents.vacant_since,
        "slots": {str(number): _plain(slot) for number, slot in supervisor.slots.items()},
        "current": supervisor.current.number,
        "lame_duck": None if supervisor.lame_duck is None else _plain(supervisor.lame_duck),
        "pairs": {str(number): _plain(pair) for number, pair in supervisor.introductions._pairs.items()},
        "next_pair": supervisor.introductions._next,
        **{name: getattr(supervisor, name) for name in NUMBERS + COUNTS},
    }


def from_state(state: State) -> Supervisor:
    """The supervisor that knows what `state` says. Raises LookupError, TypeError or ValueError if it is nonsense."""
    supervisor = Supervisor(_made(Policy, state["policy"]))
    supervisor.state = ServerState.RUNNING
    for each in state["generations"]:
        policy = _made(Policy, each["policy"])
        generation = _made(Generation, {**each, "policy": policy})
        supervisor.generations[generation.number] = generation
    for each in state["workers"]:
        worker = _made(Worker, {**each, "generation": supervisor.generations[each["generation"]]})
        supervisor.workers[worker.id] = worker
    for each in state.get("agents", []):
        agent = _made(Agent, {**each, "generation": supervisor.generations[each["generation"]]})
        supervisor.agents.all[agent.id] = agent
    supervisor.agents.restart = _made(Slot, state.get("agent_restart", {}))
    supervisor.agents.vacant_since = state.get("vacant_since", supervisor.agents.vacant_since)
    supervisor.slots = {int(number): _made(Slot, each) for number, each in state["slots"].items()}
    supervisor.current = supervisor.generations[state["current"]]
    if state["lame_duck"] is not None:
        supervisor.lame_duck = _made(LameDuck, state["lame_duck"])
    supervisor.introductions = _introductions(state, supervisor.workers)
    for name in NUMBERS + COUNTS:
        if name in state:
            setattr(supervisor, name, state[name])
    return supervisor


def _introductions(state: State, workers: dict[int, Worker]) -> Introductions:
    introductions = Introductions()
    introductions._next = state["next_pair"]
    for number, each in state["pairs"].items():
        sender = workers.get(each["sender"])
        if sender is None:  # long dead, but its orphans may still be asked for
            sender = Worker(each["sender"], next(iter(workers.values())).generation, 0, Cause.GENERATION)
        pair = Pair(sender, workers[each["receiver"]], Fate(each["fate"]), each["asked"])
        introductions._pairs[int(number)] = pair
    return introductions


def _plain(value: Any) -> State:
    """A dataclass's fields; others of ours that it refers to by their numbers."""
    plain: State = {}
    for field in dataclasses.fields(value):
        each = getattr(value, field.name)
        if isinstance(each, enum.Enum):
            each = each.value
        elif isinstance(each, Generation):
            each = each.number
        elif isinstance(each, Worker):
            each = each.id
        elif isinstance(each, Policy):
            each = dataclasses.asdict(each)
        plain[field.name] = each
    return plain


def _made(kind: type[T], state: State) -> T:
    """A dataclass from its fields; infinity is written as JSON has it in Python, `Infinity`."""
    values: State = {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        if field.name in state:
            value = state[field.name]
            enumeration = ENUMS.get((kind, field.name))
            values[field.name] = value if enumeration is None else enumeration(value)
    return kind(**values)
