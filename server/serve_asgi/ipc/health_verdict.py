"""The verdict on the server as a whole: should it be given traffic, and if not, why? And which processes are blocked?

`serve status`, `serve top` and /healthz all show this one verdict: the listener and the admin process each compute it
from what they know of the workers. It must not know where states and heartbeats come from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Final

from serve_asgi.ipc.lifecycle_states import ServerState, WorkerState

BLOCKED_AFTER: Final = 3.0
"""Seconds since the last heartbeat (one a second) after which an event loop counts as blocked."""
HEALTHY: Final = "ok"
_SERVING: Final = frozenset({WorkerState.SERVING.value, WorkerState.SWITCHING.value})
"""States of workers that serve, or have been told to and do so in a moment."""
_WATCHED: Final = frozenset({WorkerState.SERVING.value, "active", "returned"})
"""States in which a silent event loop is worth telling; the last two are an agent's."""


@dataclasses.dataclass(frozen=True, slots=True)
class HealthVerdict:
    """The health of the server as a whole."""

    status: str
    """"ok", or the reason why it should not be given traffic."""
    serving: int
    """Workers that serve, without blocked ones."""
    blocked: int
    """Workers that should serve, and whose event loops have not run for `BLOCKED_AFTER`."""


def is_blocked(state: str, silent: float | None) -> bool:
    """Whether a worker or an agent in this state is blocked; `silent` is the time (s) since its last heartbeat."""
    return state in _WATCHED and silent is not None and silent > BLOCKED_AFTER


def judge(
    state: str, *, draining: bool, agent_missing: bool, workers: Iterable[tuple[str, float | None]]
) -> HealthVerdict:
    """The verdict on a server in this state (`ServerState`).

    `agent_missing`: there is none although `--agent-required` demands one. `workers` has the state and the time (s)
    since the last heartbeat of each living worker; None if there has been none yet.
    """
    at_work = [(each, silent) for each, silent in workers if each in _SERVING]
    blocked = sum(is_blocked(each, silent) for each, silent in at_work)
    serving = len(at_work) - blocked
    if draining:
        status = "draining"
    elif state != ServerState.RUNNING.value:
        status = state
    elif agent_missing:
        status = "agent missing"
    elif not at_work:
        status = "no worker serves"
    elif not serving:
        status = "every worker is blocked"
    else:
        status = HEALTHY
    return HealthVerdict(status, serving, blocked)
