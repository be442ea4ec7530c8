"""The supervisor's state as plain values, and back: what a listener hands over at a re-exec.

Everything is JSON-compatible; members that the other version does not know are ignored, and missing ones have their
defaults. A server only does this at rest (`at_rest`), so that no pending outcome and no half-started generation has to
be handed over.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import Any, Final, TypeVar

from serve_asgi.supervisor.drain import Drain
from serve_asgi.supervisor.hand_over_pairs import HandOverPair, HandOverPairs, PairFate
from serve_asgi.supervisor.lifecycles import (
    Agent,
    AgentState,
    Cause,
    Generation,
    GenerationState,
    Policy,
    ServerState,
    Worker,
    WorkerState,
)
from serve_asgi.supervisor.process_table import ProcessTable
from serve_asgi.supervisor.restart_backoff import RestartBackoff
from serve_asgi.supervisor.supervisor import Supervisor

State = dict[str, Any]
T = TypeVar("T")

ENUMS: Final[dict[tuple[type, str], type[enum.Enum]]] = {
    (Generation, "state"): GenerationState,
    (Worker, "state"): WorkerState,
    (Worker, "cause"): Cause,
    (Agent, "state"): AgentState,
    (Agent, "cause"): Cause,
}


def at_rest(supervisor: Supervisor) -> bool:
    """Whether the server runs and no reload is under way or requested."""
    idle = supervisor.candidate is None and supervisor.requests.preparation is None
    at_work = supervisor.state is ServerState.RUNNING and supervisor.current is not None
    return at_work and idle and supervisor.requests.wanted is None


def to_state(supervisor: Supervisor) -> State:
    """The state of a supervisor at rest."""
    assert supervisor.current is not None
    processes, requests, pairs = supervisor.processes, supervisor.requests, supervisor.retiring.pairs
    return {
        "policy": dataclasses.asdict(processes.policy),
        "generations": [_plain(generation) for generation in processes.generations.values()],
        "workers": [_plain(worker) for worker in processes.workers.values()],
        "agents": [_plain(agent) for agent in supervisor.agents.all.values()],
        "agent_restart": _plain(supervisor.agents.restart),
        "agent_missing": supervisor.agents.missing,
        "agent_leased": supervisor.agents.leased,
        "agent_token": supervisor.agents.token,
        "vacant_since": supervisor.agents.vacant_since,
        "slots": {str(number): _plain(slot) for number, slot in supervisor.slots.all.items()},
        "current": supervisor.current.number,
        "draining": None if supervisor.drain.on is None else _plain(supervisor.drain.on),
        "pairs": {str(number): _plain(pair) for number, pair in pairs.all.items()},
        "next_pair": pairs.next,
        "size": processes.size,
        "lost": processes.lost,
        "reloads": requests.done,
        "failed_reloads": requests.refusals,
        "last_failure": requests.last_failure,
        "_next_generation": processes.next_generation,
        "_next_worker": processes.next_process,
        "_count": supervisor.decisions.count,
    }


def from_state(state: State) -> Supervisor:
    """A supervisor with this state. Raises LookupError, TypeError or ValueError if it is invalid."""
    supervisor = Supervisor(_made(Policy, state["policy"]))
    _take_processes(supervisor.processes, state)
    for each in state.get("agents", []):
        agent = _made(Agent, {**each, "generation": supervisor.generations[each["generation"]]})
        supervisor.agents.all[agent.id] = agent
    supervisor.agents.restart = _made(RestartBackoff, state.get("agent_restart", {}))
    supervisor.agents.missing = state.get("agent_missing", False)
    supervisor.agents.leased = state.get("agent_leased", True)
    supervisor.agents.token = state.get("agent_token", 0)
    supervisor.agents.vacant_since = state.get("vacant_since", supervisor.agents.vacant_since)
    supervisor.slots.all = {int(number): _made(RestartBackoff, each) for number, each in state["slots"].items()}
    if state["draining"] is not None:
        supervisor.drain.on = _made(Drain, state["draining"])
    _take_pairs(supervisor.retiring.pairs, state, supervisor.processes.workers)
    supervisor.requests.done = state.get("reloads", 0)
    supervisor.requests.refusals = state.get("failed_reloads", 0)
    supervisor.requests.last_failure = state.get("last_failure", "")
    supervisor.decisions.count = state["_count"]
    return supervisor


def _take_processes(processes: ProcessTable, state: State) -> None:
    processes.state = ServerState.RUNNING
    for each in state["generations"]:
        policy = _made(Policy, each["policy"])
        generation = _made(Generation, {**each, "policy": policy})
        processes.generations[generation.number] = generation
    for each in state["workers"]:
        worker = _made(Worker, {**each, "generation": processes.generations[each["generation"]]})
        processes.workers[worker.id] = worker
    processes.current = processes.generations[state["current"]]
    processes.size, processes.lost = state["size"], state.get("lost", 0)
    processes.next_generation, processes.next_process = state["_next_generation"], state["_next_worker"]


def _take_pairs(pairs: HandOverPairs, state: State, workers: dict[int, Worker]) -> None:
    pairs.next = state["next_pair"]
    for number, each in state["pairs"].items():
        sender = workers.get(each["sender"])
        if sender is None:  # long dead, but a receiver may still ask about its offers
            sender = Worker(each["sender"], next(iter(workers.values())).generation, 0, Cause.GENERATION)
        pair = HandOverPair(sender, workers[each["receiver"]], PairFate(each["fate"]), each["asked"])
        pairs.all[int(number)] = pair


def _plain(value: Any) -> State:
    """A dataclass's fields; references to other objects become their numbers."""
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
    """A dataclass from its fields; infinity is `Infinity`, as Python's json writes it."""
    values: State = {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        if field.name in state:
            value = state[field.name]
            enumeration = ENUMS.get((kind, field.name))
            values[field.name] = value if enumeration is None else enumeration(value)
    return kind(**values)
