"""The supervisor's events: plain values, for tables in tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from serve_asgi.supervisor.canary_verdict import TrafficSample
from serve_asgi.supervisor.lifecycles import Agent, Generation, Policy, Worker


class Event:
    """Something that happened. `Wakeup` is handled when a deadline has passed and nothing else has happened."""

    __slots__ = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Wakeup(Event):
    pass


@dataclasses.dataclass(frozen=True, slots=True)
class CanaryWish:
    """What a request for a reload says of a trial, in place of the configuration; None: as configured."""

    on: bool = True
    share: float | None = None
    time: float | None = None
    hold: bool | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class ReloadAsked(Event):
    """HUP, or `serve reload` with a ticket for the outcome; `by` says who requested it."""

    ticket: int | None = None
    by: str = "HUP"
    supersedes: bool = False
    """A generation that is still starting has old code, and may never be ready: it is given up for the next one."""
    canary: CanaryWish | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class CanaryObserved(Event):
    """What the canary and the current generation have done since the trial began."""

    canary: TrafficSample
    current: TrafficSample


@dataclasses.dataclass(frozen=True, slots=True)
class SwitchObserved(Event):
    """What a generation has done since it became current, and the previous one had done before."""

    generation: Generation
    since: TrafficSample
    before: TrafficSample


@dataclasses.dataclass(frozen=True, slots=True)
class CanaryRefused(Event):
    """Somebody who may end the trial has: a worker's application, or a check. `detail`: output, a traceback."""

    reason: str
    detail: str = ""
    worker: Worker | None = None
    """Whose application; it counts only if this is a canary's."""


@dataclasses.dataclass(frozen=True, slots=True)
class PromotionAsked(Event):
    """An operator wants no further trial. `answer(ok, text)` is called at once."""

    by: str
    answer: Callable[[bool, str], None]


@dataclasses.dataclass(frozen=True, slots=True)
class ReloadPrepared(Event):
    """The configuration has been read and the pre_reload hooks agree; or `trouble` says why there is no reload."""

    policy: Policy | None
    trouble: str = ""
    detail: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class RollbackAsked(Event):
    """`serve rollback`, with a ticket for the outcome, or a watch that found the current generation bad; `by` says who
    requested it, `reason` why."""

    ticket: int | None = None
    by: str = "serve rollback"
    reason: str = ""
    of: int | None = None
    """The generation that is bad, if it has to be the current one, whatever reload is under way; else it is the latest
    deploy, which may be that reload."""


@dataclasses.dataclass(frozen=True, slots=True)
class DrainAsked(Event):
    """USR2 (until the next deploy), or the control command (until it ends it)."""

    on: bool
    by_control: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class StopAsked(Event):
    """TERM: graceful; a second one is quick. `delay` (s): drain before it for so long, instead of --drain-delay."""

    delay: float | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class QuickStopAsked(Event):
    """INT or QUIT; a second one kills."""


@dataclasses.dataclass(frozen=True, slots=True)
class ScaleAsked(Event):
    """`by` so many more workers (or fewer), or `to` so many."""

    by: int = 0
    to: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class ReopenAsked(Event):
    """USR1: log files are to be reopened."""


@dataclasses.dataclass(frozen=True, slots=True)
class PortsOpened(Event):
    """listen() has been called on all sockets; `trouble` says why not, if not."""

    trouble: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class ShutOutDone(Event):
    """No new connection can arrive any more."""


@dataclasses.dataclass(frozen=True, slots=True)
class WorkerReady(Event):
    worker: Worker
    can_stand_by: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class WorkerFailed(Event):
    """The worker has failed to start; it exits by itself. `usage`: because of the command line."""

    worker: Worker
    message: str
    detail: str = ""
    usage: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class WorkerAccepts(Event):
    worker: Worker


@dataclasses.dataclass(frozen=True, slots=True)
class WorkerStandsBy(Event):
    """It was told to stand by, and has no connection and no request left."""

    worker: Worker


@dataclasses.dataclass(frozen=True, slots=True)
class WorkerWantsReplacement(Event):
    """The worker is to be replaced: it requested it, or its event loop has been `blocked` for so many seconds."""

    worker: Worker
    reason: str
    blocked: float | None = None
    too_large: bool = False
    """Its memory has grown over --max-rss."""


@dataclasses.dataclass(frozen=True, slots=True)
class WorkerFinished(Event):
    """The worker has ended normally; `report` holds its counts."""

    worker: Worker
    report: dict[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class WorkerDied(Event):
    """The worker has been reaped. `how`: "exit status 1", "signal SIGKILL". `in_flight`: what was in flight."""

    worker: Worker
    how: str
    in_flight: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class PairWithdrawn(Event):
    """A sender withdraws what it has offered over this pair and not committed."""

    worker: Worker
    pair: int


@dataclasses.dataclass(frozen=True, slots=True)
class PairLost(Event):
    """An end of this pair has not reached its worker, or could not be created, for lack of a descriptor."""

    worker: Worker
    pair: int


@dataclasses.dataclass(frozen=True, slots=True)
class PairOrphaned(Event):
    """A receiver found the pair closed while it held uncommitted offers."""

    worker: Worker
    pair: int


@dataclasses.dataclass(frozen=True, slots=True)
class AgentPrepared(Event):
    """Imported, and its `prepare()` has returned; it waits for the lease."""

    agent: Agent


@dataclasses.dataclass(frozen=True, slots=True)
class AgentWaits(Event):
    """It was told to begin, but an earlier server's agent still holds the lock (its PID, or 0)."""

    agent: Agent
    holder: int


@dataclasses.dataclass(frozen=True, slots=True)
class AgentEntered(Event):
    agent: Agent


@dataclasses.dataclass(frozen=True, slots=True)
class AgentReturned(Event):
    """Its function has returned: its work is done, and its process stays, with its message handlers."""

    agent: Agent


@dataclasses.dataclass(frozen=True, slots=True)
class AgentLeaseChanged(Event):
    """This server has the lease of the fleet's agent, with this fencing token; 0: it has it no more."""

    token: int


@dataclasses.dataclass(frozen=True, slots=True)
class AgentFailed(Event):
    """It could not be prepared or entered, or its function raised; it exits by itself. `usage`: as for a worker."""

    agent: Agent
    message: str
    detail: str = ""
    usage: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class AgentBlocked(Event):
    """Its event loop is blocked."""

    agent: Agent
    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class AgentFinished(Event):
    """The agent has ended normally: it left its context manager, or its function has returned."""

    agent: Agent


@dataclasses.dataclass(frozen=True, slots=True)
class AgentDied(Event):
    """The agent has been reaped; `how` as for a worker."""

    agent: Agent
    how: str
