"""What the admin process is told of the server's present state: what the scoreboard cannot tell.

Small, for it is compared and sent whenever something has happened; workers are told by their row, whose counts the
process reads by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from serve_asgi.listener.child import Child
from serve_asgi.listener.history import History
from serve_asgi.supervisor.lifecycles import Agent, Worker
from serve_asgi.supervisor.supervisor import Supervisor

TROUBLE: Final = 300
"""Characters of what was wrong with the last reload."""


def admin_state(
    supervisor: Supervisor, children: Iterable[Child], history: History, figures: Mapping[str, float]
) -> dict[str, Any]:
    """JSON-compatible; `children` are the living ones, `figures` the hub's (`serve_asgi.hub.core`)."""
    current = 0 if supervisor.current is None else supervisor.current.number
    living = [(child.row, child.worker) for child in children]
    workers = [
        {
            "row": row,
            "slot": worker.slot,
            "generation": worker.generation.number,
            "state": worker.state.value,
            "cause": worker.cause.value,
            "recycling": bool(worker.recycling),
        }
        for row, worker in living
        if isinstance(worker, Worker)
    ]
    agents = [
        {"row": row, "slot": "agent", "generation": agent.generation.number, "state": agent.state.value}
        for row, agent in living
        if isinstance(agent, Agent)
    ]
    filled = {each["slot"] for each in workers if (each["state"], each["generation"]) == ("serving", current)}
    return {
        "state": supervisor.state.value,
        "generation": current,
        "starting": None if supervisor.candidate is None else supervisor.candidate.number,
        "reload_waiting": supervisor.requests.wanted is not None,
        "size": supervisor.size,
        "generations": [
            {"number": each.number, "state": each.state.value, "size": each.size}
            for each in supervisor.generations.values()
        ],
        "agents": sorted(agents, key=lambda each: each["row"]),
        "agent_wanted": supervisor.has_agent,
        "workers": sorted(workers, key=lambda each: (each["slot"], each["generation"])),
        "degraded": [
            number
            for number, slot in supervisor.slots.all.items()
            if number < supervisor.size and number not in filled and slot.trouble
        ],
        "draining": supervisor.drain.on is not None,
        "lost": supervisor.processes.lost,
        "reloads": dict(history.outcomes),
        "reload_seconds": dict(history.reload_seconds),
        "restarts": {cause: count for cause, count in history.starts.items() if cause != "generation"},
        "hub": dict(figures),
        "last_failure": supervisor.requests.last_failure[:TROUBLE],
    }
