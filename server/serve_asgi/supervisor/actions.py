"""What the supervisor wants done (actions): plain values, to be tabled in tests; and the list of those of one event.

All parts of the supervisor share one `Decisions`, so that what they want done keeps its order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from serve_asgi.supervisor.lifecycles import Agent, AppProcess, Generation, Worker


class Action:
    """Something that the shell is to do, at once and without waiting."""

    __slots__ = ()


@dataclasses.dataclass(frozen=True, slots=True)
class PrepareReload(Action):
    """Read the configuration again and ask the hooks; answer with ReloadPrepared."""

    by: str


@dataclasses.dataclass(frozen=True, slots=True)
class PrepareGeneration(Action):
    """This generation begins, with the configuration that was read last and what that has come to mean."""

    generation: Generation


@dataclasses.dataclass(frozen=True, slots=True)
class AdoptGeneration(Action):
    """This generation serves: what it was configured with is now the server's own."""

    generation: Generation


@dataclasses.dataclass(frozen=True, slots=True)
class ForgetGeneration(Action):
    generation: Generation


@dataclasses.dataclass(frozen=True, slots=True)
class StartWorker(Action):
    worker: Worker


@dataclasses.dataclass(frozen=True, slots=True)
class OpenPorts(Action):
    """Call listen(); answer with PortsOpened."""


@dataclasses.dataclass(frozen=True, slots=True)
class ShutOut(Action):
    """Keep new connections out, resetting none; answer with ShutOutDone."""


@dataclasses.dataclass(frozen=True, slots=True)
class ClosePorts(Action):
    pass


@dataclasses.dataclass(frozen=True, slots=True)
class TellServe(Action):
    worker: Worker


@dataclasses.dataclass(frozen=True, slots=True)
class TellRetire(Action):
    """`accept_queued`: accept what is in the kernel's queue first, for nobody else will."""

    worker: Worker
    reason: str
    accept_queued: bool


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
    """It has the lease."""

    agent: Agent


@dataclasses.dataclass(frozen=True, slots=True)
class TellFinish(Action):
    """`timeout` (s): how long it has until it is killed."""

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
    """Connect a retiring worker with one that receives its connections."""

    sender: Worker
    receiver: Worker
    pair: int


@dataclasses.dataclass(frozen=True, slots=True)
class Kill(Action):
    worker: AppProcess
    why: str


@dataclasses.dataclass(frozen=True, slots=True)
class SetDrain(Action):
    on: bool


@dataclasses.dataclass(frozen=True, slots=True)
class ReopenLogs(Action):
    pass


@dataclasses.dataclass(frozen=True, slots=True)
class LogEvent(Action):
    """What has happened: a line of the log, and a record for those who follow.

    `level` is that of the logging module, `event` the name of the kind of thing (docs/reference/events.md), `about` its
    particulars, JSON-compatible.
    """

    level: int
    event: str
    text: str
    detail: str = ""
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True)
class AnswerReload(Action):
    """The outcome of a reload, for whoever holds the ticket."""

    ticket: int
    ok: bool
    text: str
    detail: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Announce(Action):
    """Tell the service manager: "ready", "reloading", "stopping"; or only the status text."""

    what: str
    text: str


@dataclasses.dataclass(frozen=True, slots=True)
class Exit(Action):
    """`again`: a reload was asked for while the first start failed, so that another one may do better."""

    status: int
    message: str = ""
    detail: str = ""
    again: bool = False


class Decisions:
    """Those about the event that is being handled."""

    def __init__(self) -> None:
        self.now = 0.0
        """CLOCK_MONOTONIC, s."""
        self.count = 0
        """The event's number: who began later has a greater one."""
        self.actions: list[Action] = []

    def begin(self, now: float) -> None:
        """Nothing has been decided yet about what is handled from here on."""
        self.now = now
        self.actions = []

    def do(self, *actions: Action) -> None:
        """Have this done, after all that was decided before."""
        self.actions += actions

    def say(self, level: int, event: str, text: str, detail: str = "", **about: Any) -> None:
        """Tell what has happened."""
        self.do(LogEvent(level, event, text, detail, about))

    def say_of(self, worker: Worker, level: int, event: str, text: str, **about: Any) -> None:
        """`worker` in the record is the number of the process in its listener's life; the shell adds the PID."""
        who = {"worker": worker.id, "generation": worker.generation.number, "slot": worker.slot}
        self.do(LogEvent(level, event, text, "", who | about))
