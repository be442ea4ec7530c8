"""How a worker comes to serve: it waits for its turn, starts, is ready, is told to serve; or takes too long.

The reload decides when a new generation is told to serve (`serve_asgi.supervisor.reload`); a replacement is told at
once.
"""

from __future__ import annotations

import logging
from typing import Final

from serve_asgi.supervisor import actions
from serve_asgi.supervisor.actions import Decisions
from serve_asgi.supervisor.lifecycles import WARM, Cause, Generation, Worker, WorkerState
from serve_asgi.supervisor.process_table import ProcessTable
from serve_asgi.supervisor.retiring import RetiringWorkers

SWITCH_TIMEOUT: Final = 10.0
"""Seconds from being told to serve to confirming it; a worker that takes longer fails its generation."""


class StartingWorkers:
    """Takes workers from waiting for their turn to serving."""

    def __init__(self, processes: ProcessTable, decisions: Decisions, retiring: RetiringWorkers) -> None:
        self._processes = processes
        self._decisions = decisions
        self._retiring = retiring

    def start_pending(self) -> None:
        """Start as many at once as the policy allows.

        A new generation that hangs does not delay replacements; nor is it delayed by a steady stream of them, when
        workers are recycled as fast as they start. (Replacements of dead workers are subject to the back-off.)
        """
        processes = self._processes
        pending = processes.workers_in(WorkerState.PENDING)
        pending.sort(key=lambda w: (w.generation is processes.candidate, w.slot))
        for worker in pending:
            starting = processes.workers_in(WorkerState.STARTING)
            if worker.generation is processes.current:
                starting = [w for w in starting if w.generation is processes.current]
            else:
                starting = [w for w in starting if w.cause is not Cause.RECYCLE]
            if len(starting) < worker.generation.policy.start_concurrency:
                self._start(worker)

    def _start(self, worker: Worker) -> None:
        worker.become(WorkerState.STARTING, self._decisions.now + worker.generation.policy.startup_timeout)
        self._decisions.do(actions.StartWorker(worker))
        cause = worker.cause.value
        self._decisions.say_of(worker, logging.DEBUG, "worker_started", f"{worker} starts ({cause})", cause=cause)

    def ready(self, worker: Worker, can_stand_by: bool = False) -> None:
        """It reports that it can serve."""
        worker.can_stand_by = can_stand_by
        if worker.state is WorkerState.STARTING:
            worker.become(WorkerState.READY)
            self._decisions.say_of(worker, logging.DEBUG, "worker_ready", f"{worker} is ready")

    def serve_replacements(self) -> None:
        """Tell ready replacements to serve: in the current generation none waits for another."""
        for worker in self._processes.workers_in(WorkerState.READY):
            if worker.generation is self._processes.current:
                self._tell_serve(worker)

    def serve_all(self) -> None:
        """Tell all ready workers to serve: the switch of a generation begins."""
        for worker in self._processes.workers_in(WorkerState.READY):
            self._tell_serve(worker)

    def serve_again(self, generation: Generation) -> None:
        """Tell the workers of a generation that stands by to serve again."""
        for worker in self._processes.workers_of(generation):
            if worker.state in WARM:
                self._tell_serve(worker)

    def _tell_serve(self, worker: Worker) -> None:
        worker.reason = ""
        worker.become(WorkerState.SWITCHING, self._decisions.now + SWITCH_TIMEOUT)
        self._decisions.do(actions.TellServe(worker))

    def overdue(self, worker: Worker) -> str:
        """Its time to become ready (--startup-timeout), or to serve, is over: end it; return why."""
        if worker.state is WorkerState.STARTING:
            why = f"it was not ready after {worker.generation.policy.startup_timeout:g} s (--startup-timeout)"
        else:
            why = f"it did not begin to serve within {SWITCH_TIMEOUT:g} s"
        self._retiring.kill(worker, why)
        worker.become(WorkerState.ENDING)
        return why
