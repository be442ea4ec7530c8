"""A stand-in for the listener around a supervisor: it feeds events in and keeps the actions."""

from __future__ import annotations

import dataclasses
from typing import TypeVar

from serve_asgi.supervisor import actions
from serve_asgi.supervisor import events as e
from serve_asgi.supervisor.lifecycles import (
    Policy,
    ServerState,
    Worker,
    WorkerState,
)
from serve_asgi.supervisor.supervisor import Supervisor

POLICY = Policy(
    workers=2,
    start_concurrency=2,
    max_generations=3,
    startup_timeout=60.0,
    graceful_timeout=30.0,
    shutdown_timeout=10.0,
    drain_delay=0.0,
)


A = TypeVar("A", bound=actions.Action)


class Shell:
    """Feeds a supervisor and keeps what it wants done; a stand-in for the processes, with the tests' own clock."""

    def __init__(self, **policy: float) -> None:
        self.now = 100.0
        self.policy = dataclasses.replace(POLICY, **policy)  # type: ignore[arg-type]
        """What the configuration says when it is read again."""
        self.prepares = True
        self.supervisor = Supervisor(self.policy)
        self.done: list[actions.Action] = self.supervisor.start(self.now)

    def send(self, event: e.Event, after: float = 0.0) -> list[actions.Action]:
        self.now += after
        decided = self.supervisor.handle(event, self.now)
        self.done += decided
        if self.prepares and any(isinstance(action, actions.PrepareReload) for action in decided):
            decided += self.send(e.ReloadPrepared(self.policy))
        return decided

    def tick_at_deadline(self) -> list[actions.Action]:
        self.now = max(self.now, self.supervisor.next_deadline())
        return self.send(e.Wakeup())

    def of(self, kind: type[A]) -> list[A]:
        return [action for action in self.done if isinstance(action, kind)]

    def forget(self) -> None:
        self.done.clear()

    def workers(self, *states: WorkerState) -> list[Worker]:
        return [w for w in self.supervisor.workers.values() if not states or w.state in states]

    def make_ready(self) -> None:
        while starting := self.workers(WorkerState.STARTING):
            self.send(e.WorkerReady(starting[0]))

    def accept(self) -> None:
        for worker in self.workers(WorkerState.SWITCHING):
            self.send(e.WorkerAccepts(worker))

    def up(self) -> Shell:
        """The first generation serves."""
        self.make_ready()
        self.send(e.PortsOpened())
        self.accept()
        assert self.supervisor.state is ServerState.RUNNING
        self.forget()
        return self

    def reload(self) -> None:
        self.send(e.ReloadAsked())
        self.make_ready()
        self.accept()

    def reap(self, *states: WorkerState) -> None:
        for worker in self.workers(*states):
            self.send(e.WorkerFinished(worker, {"handed_over": 0, "cut": 0}))
            self.send(e.WorkerDied(worker, "exit status 0"))


def failed(worker: Worker) -> e.Event:
    return e.WorkerFailed(worker, "ImportError", "Traceback of the new code")


def died(worker: Worker) -> e.Event:
    return e.WorkerDied(worker, "signal SIGKILL")
