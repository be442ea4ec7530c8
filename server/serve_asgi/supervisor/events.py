"""What happens to the supervisor (events): plain values, to be tabled in tests."""

from __future__ import annotations

import dataclasses
from typing import Any

from serve_asgi.supervisor.lifecycles import Agent, Policy, Worker


class Event:
    """Something that happened. `Wakeup` is what is handled when a deadline has passed and nothing else happened."""

    __slots__ = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Wakeup(Event):
    pass


@dataclasses.dataclass(frozen=True, slots=True)
class ReloadAsked(Event):
    """HUP, or `serve reload` with a ticket that wants the outcome; `by` says who asked."""

    ticket: int | None = None
    by: str = "HUP"
    supersedes: bool = False
    """A generation that is still starting has old code: it is given up for the next one, as it may never be ready."""


@dataclasses.dataclass(frozen=True, slots=True)
class ReloadPrepared(Event):
    """The configuration was read again and the hooks before a reload agreed; or `trouble` says why there is none."""

    policy: Policy | None
    trouble: str = ""
    detail: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class DrainAsked(Event):
    """USR2 (until the next deploy), or the control command (until it ends it)."""

    on: bool
    by_control: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class StopAsked(Event):
    """TERM: graceful; a second one is quick. `delay` (s) of draining before it, in place of --drain-delay."""

    delay: float | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class QuickStopAsked(Event):
    """INT or QUIT; a second one kills."""


@dataclasses.dataclass(frozen=True, slots=True)
class ScaleAsked(Event):
    """So many workers more (or fewer), or `to` as many as that."""

    by: int = 0
    to: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class ReopenAsked(Event):
    """USR1: log files have been moved away."""


@dataclasses.dataclass(frozen=True, slots=True)
class PortsOpened(Event):
    """listen() has been called on all sockets; `trouble` says why not, if not."""

    trouble: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class ShutOutDone(Event):
    """No new connection can come into being any more."""


@dataclasses.dataclass(frozen=True, slots=True)
class WorkerReady(Event):
    worker: Worker


@dataclasses.dataclass(frozen=True, slots=True)
class WorkerFailed(Event):
    """The worker could not become ready; it ends by itself. `usage`: the command line is at fault."""

    worker: Worker
    message: str
    detail: str = ""
    usage: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class WorkerAccepts(Event):
    worker: Worker


@dataclasses.dataclass(frozen=True, slots=True)
class WorkerWantsReplacement(Event):
    """The worker is to be replaced: it asked for it, or its event loop has been `blocked` for so many seconds."""

    worker: Worker
    reason: str
    blocked: float | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class WorkerFinished(Event):
    """The worker has ended in order; `report` holds its counts."""

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
    """A sender takes back what it has offered over this pair and not committed."""

    worker: Worker
    pair: int


@dataclasses.dataclass(frozen=True, slots=True)
class PairLost(Event):
    """An end of this pair has not reached its worker, or could not be made: there was no descriptor for it."""

    worker: Worker
    pair: int


@dataclasses.dataclass(frozen=True, slots=True)
class PairOrphaned(Event):
    """A receiver found the end of this pair while it held offers that were not committed."""

    worker: Worker
    pair: int


@dataclasses.dataclass(frozen=True, slots=True)
class AgentPrepared(Event):
    """Imported, and its `prepare()` has returned; it waits for the lease."""

    agent: Agent


@dataclasses.dataclass(frozen=True, slots=True)
class AgentWaits(Event):
    """It was told to begin, but the agent of a server that was here before still has the lock (its PID, or 0)."""

    agent: Agent
    holder: int


@dataclasses.dataclass(frozen=True, slots=True)
class AgentEntered(Event):
    agent: Agent


@dataclasses.dataclass(frozen=True, slots=True)
class AgentReturned(Event):
    """Its function has returned: it has done its work, and its process stays, with its handlers of messages."""

    agent: Agent


@dataclasses.dataclass(frozen=True, slots=True)
class AgentFailed(Event):
    """It could not be prepared or entered, or its function raised; it ends by itself. `usage`: as of a worker."""

    agent: Agent
    message: str
    detail: str = ""
    usage: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class AgentBlocked(Event):
    """Its event loop does not turn any more."""

    agent: Agent
    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class AgentFinished(Event):
    """The agent has ended in order: it left its context manager, or its function has returned."""

    agent: Agent


@dataclasses.dataclass(frozen=True, slots=True)
class AgentDied(Event):
    """The agent has been reaped; `how` as of a worker."""

    agent: Agent
    how: str
