"""How the listener lets a worker go: never started, told to quit, retired with receivers for its connections, killed.

It owns the pairs of those who retire to those who serve. Why a worker is to leave is decided elsewhere.
"""

from __future__ import annotations

import logging
from typing import Final

from serve_asgi.supervisor import actions
from serve_asgi.supervisor.actions import Decisions
from serve_asgi.supervisor.hand_over_pairs import HandOverPairs
from serve_asgi.supervisor.lifecycles import Generation, Worker, WorkerState
from serve_asgi.supervisor.process_table import ProcessTable

KILL_MARGIN: Final = 5.0
"""Seconds that a retiring worker has on top of its own timeouts before the listener ends it with SIGKILL."""
MAX_RECEIVERS: Final = 8
"""Receivers that a retiring worker is connected with: n old times m new pairs would exhaust descriptors."""


class RetiringWorkers:
    """Lets workers go, and tells who may receive their connections."""

    def __init__(self, processes: ProcessTable, decisions: Decisions) -> None:
        self._processes = processes
        self._decisions = decisions
        self.pairs = HandOverPairs()

    def leave(self, worker: Worker, reason: str) -> None:
        """Let go of a worker in whatever state it is, losing nothing that it may have accepted."""
        if worker.state is WorkerState.PENDING:
            self._processes.remove(worker)
        elif worker.state in (WorkerState.STARTING, WorkerState.READY):
            self._quit(worker)
        elif worker.state in (WorkerState.SWITCHING, WorkerState.SERVING):
            self.retire(worker, reason)

    def leave_all(self, generation: Generation, reason: str) -> None:
        """Let go of a whole generation."""
        for worker in self._processes.workers_of(generation):
            self.leave(worker, reason)

    def retire(self, worker: Worker, reason: str) -> None:
        """Have it hand over, finish and end."""
        policy = worker.generation.policy
        allowed = policy.graceful_timeout + policy.shutdown_timeout + KILL_MARGIN
        worker.reason = reason
        worker.become(WorkerState.RETIRING, self._decisions.now + allowed)
        stopping = reason == "stop"
        if not stopping:
            self.connect(worker)
        self._decisions.do(actions.TellRetire(worker, reason, accept_queued=stopping))
        text = f"{worker} retires ({reason})"
        self._decisions.say_of(worker, logging.DEBUG, "worker_retire_requested", text, reason=reason)

    def retire_for_stop(self, worker: Worker) -> None:
        """Let go of a worker because the server stops: the receivers of those who retire already leave as well."""
        if worker.state is WorkerState.RETIRING:
            worker.reason = "stop"
            self._decisions.do(actions.TellRetire(worker, "stop", accept_queued=False))
        self.leave(worker, "stop")

    def cut_short(self, worker: Worker) -> None:
        """Let go of a worker at once, whatever is in flight."""
        if worker.state is WorkerState.PENDING:
            self.leave(worker, "stop")
        elif worker.state is not WorkerState.ENDING:
            self._quit(worker)

    def _quit(self, worker: Worker) -> None:
        self.ends_by_itself(worker)
        self._decisions.do(actions.TellQuit(worker))

    def ends_by_itself(self, worker: Worker) -> None:
        """Nothing is expected of it any more but its end, which is not awaited for long."""
        worker.become(WorkerState.ENDING, self._decisions.now + worker.generation.end_timeout)

    def overdue(self, worker: Worker) -> None:
        """The time that it had to finish (--graceful-timeout), or to end by itself, is over: kill it."""
        timeout = "the graceful timeout" if worker.state is WorkerState.RETIRING else "its time to end"
        self.kill(worker, f"it had not ended when {timeout} was over")

    def kill(self, worker: Worker, why: str) -> None:
        """Wait for it no longer."""
        worker.stuck = why
        self._decisions.do(actions.Kill(worker, why))

    # Who receives what they hand over

    def connect(self, sender: Worker) -> None:
        """Connect a retiring worker with the workers that serve now, unless it retires for a stop."""
        size = self._processes.size
        serving = [
            w for w in self._processes.workers_in(WorkerState.SERVING) if w.generation is self._processes.current
        ]
        receivers = [w for w in serving if w is not sender and w.slot < size]
        receivers.sort(key=lambda w: (w.slot - sender.slot) % max(1, size))
        for receiver in receivers[:MAX_RECEIVERS]:
            if sender.reason != "stop" and not self.pairs.connected(sender, receiver):
                pair = self.pairs.connect(sender, receiver)
                self._decisions.do(actions.ConnectPair(sender, receiver, pair))

    def connect_all(self) -> None:
        """There is somebody new who can receive: all that retire are to know."""
        for worker in self._processes.workers_in(WorkerState.RETIRING):
            self.connect(worker)

    def withdrawn(self, worker: Worker, pair: int) -> None:
        """The receiver did not take in time: it may do so later, over a pair of its own."""
        self._decisions.do(*self.pairs.withdrawn(worker, pair))
        if worker.state is WorkerState.RETIRING:
            self.connect(worker)

    def lost(self, worker: Worker, pair: int) -> None:
        """One of the two has not got its end of the pair: they are connected again, over another one."""
        sender = self.pairs.lost(worker, pair)
        if sender is not None and sender.state is WorkerState.RETIRING:
            self.connect(sender)

    def orphaned(self, worker: Worker, pair: int) -> None:
        """A receiver asks what to do with what it was offered."""
        self._decisions.do(*self.pairs.orphaned(worker, pair))

    def died(self, worker: Worker) -> None:
        """It has been reaped: what it had offered becomes the receivers'."""
        self._decisions.do(*self.pairs.died(worker))
