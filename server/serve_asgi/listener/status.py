"""What the server reports about itself: its status, its effective configuration, and the admin process's state.

All of it is JSON-compatible. `STATUS_VERSION` does not change while members are only added; readers ignore unknown
members.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from serve_asgi import __version__
from serve_asgi.config.release import Release
from serve_asgi.config.sources import Settings
from serve_asgi.config.state_location import is_url
from serve_asgi.ipc.health_verdict import judge
from serve_asgi.ipc.scoreboard import (
    COUNTERS,
    DURATION_BOUNDS,
    ROW_WORDS,
    STREAM_BOUNDS,
    WEBSOCKET_BOUNDS,
    Cell,
    Scoreboard,
    Words,
    fitted,
)
from serve_asgi.listener.child import Child
from serve_asgi.listener.deploy_history import DeployHistory
from serve_asgi.listener.event_history import History
from serve_asgi.supervisor.drain import Drain
from serve_asgi.supervisor.lifecycles import AT_WORK, Agent, Generation, Worker
from serve_asgi.supervisor.supervisor import Supervisor

STATUS_VERSION: Final = 1
HISTOGRAMS: Final = frozenset(
    {Cell.DURATION_0, Cell.STREAM_FIRST_0, Cell.STREAM_TIME_0, Cell.WEBSOCKET_ACCEPT_0, Cell.WEBSOCKET_TIME_0}
)
NAMED_COUNTERS: Final = {cell.name.lower(): cell for cell in Cell if cell in COUNTERS and cell not in HISTOGRAMS}
GAUGES: Final = {cell.name.lower(): cell for cell in (Cell.CONNECTIONS, Cell.IN_FLIGHT, Cell.WEBSOCKETS, Cell.RSS)}
STREAM_FIRST: Final = slice(Cell.STREAM_FIRST_0, Cell.STREAM_FIRST_0 + len(DURATION_BOUNDS) + 1)
STREAM_DURATIONS: Final = slice(Cell.STREAM_TIME_0, Cell.STREAM_TIME_0 + len(STREAM_BOUNDS) + 1)
WEBSOCKET_ACCEPTS: Final = slice(Cell.WEBSOCKET_ACCEPT_0, Cell.WEBSOCKET_ACCEPT_0 + len(DURATION_BOUNDS) + 1)
WEBSOCKET_DURATIONS: Final = slice(Cell.WEBSOCKET_TIME_0, Cell.WEBSOCKET_TIME_0 + len(WEBSOCKET_BOUNDS) + 1)
DURATIONS: Final = slice(Cell.DURATION_0, Cell.DURATION_0 + len(DURATION_BOUNDS) + 1)

RECENT: Final = 20
"""Most recent records in the status."""
RECENT_MEMBERS: Final = ("at", "level", "event", "text")
HERE: Final = frozenset(state.value for state in AT_WORK)


def status(
    supervisor: Supervisor,
    scoreboard: Scoreboard,
    children: Mapping[int, Child],
    listening: list[str],
    started: float,
    app: str,
) -> dict[str, Any]:
    """The current state: the server, its generations, its workers and their counts.

    `children` are the living ones by PID, `listening` the sockets' names, `started` a time of CLOCK_MONOTONIC (s).
    """
    now = time.monotonic()
    current = 0 if supervisor.current is None else supervisor.current.number
    living = [children[pid] for pid in sorted(children)]
    workers = [
        {**_worker(c.worker, c.counts.words(), now), "compiled_modules": c.compiled_modules}
        for c in living
        if isinstance(c.worker, Worker)
    ]
    agents = [_agent(c.worker, c.counts.words(), now) for c in living if isinstance(c.worker, Agent)]
    filled = {w["slot"] for w in workers if w["state"] == "serving" and w["generation"] == current}
    totals = _totals(scoreboard, children)
    return {
        "version": STATUS_VERSION,
        "server": __version__,
        "app": app,
        "pid": os.getpid(),
        "state": supervisor.state.value,
        "uptime": round(now - started, 3),
        "listening": listening,
        "draining": _drain(supervisor.drain.on, scoreboard),
        "generation": current,
        "starting": None if supervisor.candidate is None else supervisor.candidate.number,
        "reload_waiting": supervisor.requests.wanted is not None,
        "reloads": supervisor.requests.done,
        "failed_reloads": supervisor.requests.refusals,
        "last_failure": supervisor.requests.last_failure,
        "lost": supervisor.processes.lost,
        "health": _verdict(supervisor, scoreboard, workers),
        "canary": supervisor.trials.status(now),
        "switch_watched": None if supervisor.watched_until == math.inf else round(supervisor.watched_until - now, 3),
        "size": supervisor.size,
        "degraded": {
            str(number): slot.trouble
            for number, slot in supervisor.slots.all.items()
            if number < supervisor.size and number not in filled and slot.trouble
        },
        "generations": [_generation(generation, now) for generation in supervisor.generations.values()],
        "workers": workers,
        "agents": agents,
        "agent_trouble": "" if any(a["state"] in HERE for a in agents) else supervisor.agents.restart.trouble,
        "agent_missing": supervisor.agents.missing,
        "agent_elsewhere": not supervisor.agents.leased,
        "agent_required": supervisor.processes.policy.agent_required,
        "totals": {name: totals[cell] for name, cell in NAMED_COUNTERS.items()},
        "durations": {"bounds": DURATION_BOUNDS, "counts": totals[DURATIONS]},
        "streams": {
            "first_byte": {"bounds": DURATION_BOUNDS, "counts": totals[STREAM_FIRST]},
            "durations": {"bounds": STREAM_BOUNDS, "counts": totals[STREAM_DURATIONS]},
        },
        "websockets": {
            "accept": {"bounds": DURATION_BOUNDS, "counts": totals[WEBSOCKET_ACCEPTS]},
            "durations": {"bounds": WEBSOCKET_BOUNDS, "counts": totals[WEBSOCKET_DURATIONS]},
        },
    }


def _verdict(supervisor: Supervisor, scoreboard: Scoreboard, workers: list[dict[str, Any]]) -> dict[str, Any]:
    """What /healthz says as well (`serve_asgi.admin.application.health`)."""
    verdict = judge(
        supervisor.state.value,
        draining=bool(scoreboard.draining_since),
        agent_missing=supervisor.processes.policy.agent_required and supervisor.agents.missing,
        workers=[(worker["state"], worker["heard"]) for worker in workers],
    )
    return {"status": verdict.status, "workers": verdict.serving, "blocked": verdict.blocked}


def past(history: History) -> dict[str, Any]:
    """The history: the last reloads and records, and how often workers were started, by cause."""
    return {
        "history": list(history.reloads),
        "recent": [{name: r[name] for name in RECENT_MEMBERS} for r in [*history.records][-RECENT:]],
        "starts": dict(history.starts),
    }


def _totals(scoreboard: Scoreboard, children: Mapping[int, Child]) -> Sequence[int]:
    """The sum of all living rows and all slots' totals, word by word; only counters' are meaningful."""
    rows = [scoreboard.lasting(child.counts.words()) for child in children.values()]
    folded = (fitted(scoreboard.totals(slot).tolist()) for slot in range(scoreboard.slots))
    known = [*rows, *(row for row in folded if any(row))]
    return [sum(words) for words in zip(*known, strict=True)] or [0] * ROW_WORDS


def _drain(drain: Drain | None, scoreboard: Scoreboard) -> dict[str, Any] | None:
    if drain is None:
        return None
    return {
        "since": round((time.monotonic_ns() - scoreboard.draining_since) / 1e9, 3),
        "until": "`serve drain --off`" if drain.by_control else "the next successful reload",
    }


def _generation(generation: Generation, now: float) -> dict[str, Any]:
    """A generation; of one that stands by also how long it does, in seconds."""
    left = {} if generation.standby_until == math.inf else {"standby": round(generation.standby_until - now, 3)}
    return {"number": generation.number, "state": generation.state.value, "size": generation.size, **left}


def _agent(agent: Agent, cells: Words, now: float) -> dict[str, Any]:
    return {
        "slot": "agent",
        "generation": agent.generation.number,
        "state": agent.state.value,
        "cause": agent.cause.value,
        "rss": cells[Cell.RSS],
        "active": round(now - agent.active_since, 3) if agent.active_since < math.inf else None,
        **_health(cells, now),
    }


def _health(cells: Words, now: float) -> dict[str, Any]:
    """What every process reports about itself."""
    return {
        "cpu": round(cells[Cell.CPU] / 1e9, 3),
        "lag": round(cells[Cell.LAG] / 1e9, 4),
        "lag_worst": round(cells[Cell.LAG_WORST] / 1e9, 4),
        "blocked": cells[Cell.BLOCKED],
        "heard": round(now - cells[Cell.HEARTBEAT] / 1e9, 3) if cells[Cell.HEARTBEAT] else None,
    }


def _worker(worker: Worker, cells: Words, now: float) -> dict[str, Any]:
    return {
        "slot": worker.slot,
        "generation": worker.generation.number,
        "state": worker.state.value,
        "cause": worker.cause.value,
        **({"recycling": worker.recycling} if worker.recycling else {}),
        **{name: cells[cell] for name, cell in GAUGES.items()},
        "requests": cells[Cell.REQUESTS],
        "handed_over": cells[Cell.HANDED_OVER],
        "taken_over": cells[Cell.TAKEN_OVER],
        **_health(cells, now),
        "oldest": round(max(0.0, now - oldest / 1e9), 3) if (oldest := cells[Cell.OLDEST]) else None,
    }


def effective_config(
    settings: Settings,
    release: Release | None,
    listening: Sequence[str],
    admin: Sequence[str],
    control: Path | None,
    size: int,
) -> dict[str, Any]:
    """The table of `Settings.told`, with what was resolved for the current generation: releases, not links.

    `size` is the current target number of workers.
    """
    resolved: dict[str, str] = {"bind": ", ".join(listening)} if listening else {}
    if size != settings.config.workers:
        resolved["workers"] = f"{size}, scaled by hand"
    if admin:
        resolved["admin"] = ", ".join(admin)
    if control is not None:
        resolved["control"] = str(control)
    if release is not None:
        resolved |= {"python": release.python, "chdir": release.directory, "app_dir": release.app_dir}
    for name in ("pid_file", "env_file", "log_file", "access_log_file"):
        if path := getattr(settings.config, name):
            resolved[name] = os.path.join(settings.directory, path)
    if settings.config.state and not is_url(settings.config.state):
        resolved["state"] = os.path.join(settings.directory, settings.config.state)
    return settings.told(resolved)


DEPLOYS: Final = 10
"""Most recent deploys that the admin process gets."""
DEPLOYED_OPTIONS: Final = 5
TROUBLE: Final = 300
"""Characters of the last reload's failure."""


def admin_state(
    supervisor: Supervisor, children: Iterable[Child], history: History, figures: Mapping[str, float]
) -> dict[str, Any]:
    """The state that the admin process gets; `children` are the living ones, `figures` the hub's
    (`serve_asgi.hub.core`)."""
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
        "agent_wanted": supervisor.wants_agent,
        "agent_missing": supervisor.agents.missing,
        "agent_required": supervisor.processes.policy.agent_required,
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


def shown_deploys(deploys: DeployHistory) -> list[dict[str, Any]]:
    """The last deploys for the admin process, the newest first, in short."""
    return [
        {**deploy, "text": deploy["text"][:TROUBLE], "options": deploy["options"][:DEPLOYED_OPTIONS]}
        for deploy in deploys.last(DEPLOYS)
    ]


def briefly(deploys: DeployHistory) -> list[dict[str, Any]]:
    """This server's last deploys for the status, the newest first: `serve deploys` has all of them, in full."""
    return [
        {
            "at": deploy.at,
            "kind": deploy.kind.value,
            "outcome": deploy.outcome.value,
            "generation": None if deploy.to is None else deploy.to.generation,
            "seconds": deploy.seconds,
        }
        for deploy in [*deploys.own][: -RECENT - 1 : -1]
    ]
