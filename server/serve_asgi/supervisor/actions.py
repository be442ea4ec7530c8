"""The supervisor's actions: plain values, for tables in tests; and the list of those decided for one event.

All parts of the supervisor share one `Decisions`, so that actions keep their order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from serve_asgi.supervisor.lifecycles import Agent, AppProcess, Generation, Worker


class Action:
    """Something for the shell to do, at once and without waiting."""

    __slots__ = ()


@dataclasses.dataclass(frozen=True, slots=True)
class PrepareReload(Action):
    """Read the configuration again and run the pre_reload hooks; then post ReloadPrepared.

    `previous`: not the configuration as it is now, but what the previous release ran with.
    """

    by: str
    previous: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class PrepareGeneration(Action):
    """This generation begins, with the configuration that was read and resolved last."""

    generation: Generation


@dataclasses.dataclass(frozen=True, slots=True)
class BeginRollback(Action):
    """This generation, which stands by, is to serve again; the reason if nobody has asked for it."""

    generation: Generation
    by: str
    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class AdoptGeneration(Action):
    """This generation serves: its configuration becomes the server's own."""

    generation: Generation


@dataclasses.dataclass(frozen=True, slots=True)
class ForgetGeneration(Action):
    generation: Generation


@dataclasses.dataclass(frozen=True, slots=True)
class StartWorker(Action):
    worker: Worker


@dataclasses.dataclass(frozen=True, slots=True)
class OpenPorts(Action):
    """Call listen(); then post PortsOpened."""


@dataclasses.dataclass(frozen=True, slots=True)
class ShutOut(Action):
    """Keep new connections out, resetting none; then post ShutOutDone."""


@dataclasses.dataclass(frozen=True, slots=True)
class ClosePorts(Action):
    pass


@dataclasses.dataclass(frozen=True, slots=True)
class TellServe(Action):
    worker: Worker


@dataclasses.dataclass(frozen=True, slots=True)
class TellRetire(Action):
    """`accept_queued`: first accept what is in the kernel's queue, since nobody else will."""

    worker: Worker
    reason: str
    accept_queued: bool


@dataclasses.dataclass(frozen=True, slots=True)
class TellStandBy(Action):
    worker: Worker
    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class TellQuit(Action):
    worker: AppProcess


@dataclasses.dataclass(frozen=True, slots=True)
class TellReopen(Action):
    worker: AppProcess


@dataclasses.dataclass(frozen=True, slots=True)
class StartAgent(Action):
    agent: Agent


@dataclasses.dataclass(frozen=True, slots=True)
class TellEnter(Action):
    """It gets the lease, and begins. `token`: the fencing token of the fleet's lease, 0 without one."""

    agent: Agent
    token: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class TellFinish(Action):
    """`timeout` (s): the time until it is killed."""

    agent: Agent
    reason: str
    timeout: float


@dataclasses.dataclass(frozen=True, slots=True)
class TellVerdict(Action):
    """To a receiver: `keep` the uncommitted connections of this pair (their sender is dead) or drop them."""

    worker: Worker
    pair: int
    keep: bool


@dataclasses.dataclass(frozen=True, slots=True)
class ConnectPair(Action):
    """Connect a retiring worker to one that receives its connections."""

    sender: Worker
    receiver: Worker
    pair: int


@dataclasses.dataclass(frozen=True, slots=True)
class LimitAccepting(Action):
    """To a canary: accept this share of the new clients, less than what comes to one worker by itself."""

    worker: Worker
    share: float


@dataclasses.dataclass(frozen=True, slots=True)
class TellPromoted(Action):
    """To a canary: it is on trial no more."""

    worker: Worker


@dataclasses.dataclass(frozen=True, slots=True)
class TellLend(Action):
    """To a worker of the current generation: hand idle connections over to the canary until it has this share of them.

    0: no more.
    """

    worker: Worker
    share: float


@dataclasses.dataclass(frozen=True, slots=True)
class WatchCanary(Action):
    """From now on post `CanaryObserved` about once a second, with what both sides do from now on; None: no more."""

    canary: Generation | None


@dataclasses.dataclass(frozen=True, slots=True)
class WatchSwitch(Action):
    """From now on post `SwitchObserved` about once a second, with what `current` does from now on; None: no more."""

    current: Generation | None
    previous: Generation | None


@dataclasses.dataclass(frozen=True, slots=True)
class Kill(Action):
    worker: AppProcess
    why: str


@dataclasses.dataclass(frozen=True, slots=True)
class SetAgentMissing(Action):
    """Say on the scoreboard whether the agent is missing, for the health endpoint (`--agent-required`)."""

    missing: bool


@dataclasses.dataclass(frozen=True, slots=True)
class SetDrain(Action):
    on: bool


@dataclasses.dataclass(frozen=True, slots=True)
class ReopenLogs(Action):
    pass


@dataclasses.dataclass(frozen=True, slots=True)
class LogEvent(Action):
    """An event: a line of the log, and a record for those who follow.

    `level` is that of the logging module, `event` the event's name (docs/reference/events.md), `about` its fields,
    JSON-compatible.
    """

    level: int
    event: str
    text: str
    detail: str = ""
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True)
class AnswerReload(Action):
    """The outcome of a reload, for the holder of the ticket."""

    ticket: int
    ok: bool
    text: str
    detail: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Announce(Action):
    """Notify the service manager: "ready", "reloading", "stopping"; or only send the status text."""

    what: str
    text: str


@dataclasses.dataclass(frozen=True, slots=True)
class Exit(Action):
    """`again`: a reload was requested while the first start failed, so another attempt may succeed."""

    status: int
    message: str = ""
    detail: str = ""
    again: bool = False


class Decisions:
    """The actions decided for the event that is being handled."""

    def __init__(self) -> None:
        self.now = 0.0
        """CLOCK_MONOTONIC, s."""
        self.count = 0
        """The event's number, which orders beginnings."""
        self.actions: list[Action] = []

    def begin(self, now: float) -> None:
        """Start with the next event: nothing has been decided yet."""
        self.now = now
        self.actions = []

    def do(self, *actions: Action) -> None:
        """Add actions, after all those decided before."""
        self.actions += actions

    def say(self, level: int, event: str, text: str, detail: str = "", **about: Any) -> None:
        """Log an event."""
        self.do(LogEvent(level, event, text, detail, about))

    def say_of(self, worker: Worker, level: int, event: str, text: str, **about: Any) -> None:
        """Log an event about a process; the shell adds its PID to the record."""
        who = {"worker": worker.id, "generation": worker.generation.number, "slot": worker.slot}
        self.do(LogEvent(level, event, text, "", who | about))
