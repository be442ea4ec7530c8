"""How a worker leaves: never started, told to quit, retired with receivers for its connections, or killed.

It owns the pairs from retiring workers to serving ones. Why a worker is to leave is decided elsewhere.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

from serve_asgi.supervisor import actions
from serve_asgi.supervisor.actions import Decisions
from serve_asgi.supervisor.hand_over_pairs import HandOverPairs
from serve_asgi.supervisor.lifecycles import HANDING_OVER, WARM, Generation, Worker, WorkerState
from serve_asgi.supervisor.process_table import ProcessTable

KILL_MARGIN: Final = 5.0
"""Seconds that a retiring worker has on top of its own timeouts before the listener kills it."""
MAX_RECEIVERS: Final = 8
"""Most receivers that a retiring worker is connected to: n old times m new pairs would exhaust descriptors."""


class RetiringWorkers:
    """Retires workers, and connects them to receivers of their connections."""

    def __init__(self, processes: ProcessTable, decisions: Decisions) -> None:
        self._processes = processes
        self._decisions = decisions
        self.pairs = HandOverPairs()

    def leave(self, worker: Worker, reason: str) -> None:
        """Have a worker leave, whatever its state, without losing what it may have accepted."""
        if worker.state is WorkerState.PENDING:
            self._processes.remove(worker)
        elif worker.state in (WorkerState.STARTING, WorkerState.READY):
            self._quit(worker)
        elif worker.state in WARM | {WorkerState.SWITCHING, WorkerState.SERVING}:
            self.retire(worker, reason)

    def leave_all(self, generation: Generation, reason: str) -> None:
        """Have a whole generation leave."""
        for worker in self._processes.workers_of(generation):
            self.leave(worker, reason)

    def retire(self, worker: Worker, reason: str) -> None:
        """Have it hand over its connections, finish its requests and exit."""
        worker.reason = reason
        before = worker.state
        worker.become(WorkerState.RETIRING, self._decisions.now + self._allowed(worker))
        stopping = reason == "stop"
        self.stop_lending(worker)
        if not stopping and before is not WorkerState.STANDBY:  # which has no connections
            self.connect(worker)
        accepts = before not in WARM
        self._decisions.do(actions.TellRetire(worker, reason, accept_queued=stopping and accepts))
        text = f"{worker} retires ({reason})"
        self._decisions.say_of(worker, logging.DEBUG, "worker_retire_requested", text, reason=reason)

    def stand_by(self, worker: Worker) -> None:
        """Have it hand over its connections, finish its requests and wait."""
        worker.reason = "reload"
        worker.become(WorkerState.STANDING_DOWN, self._decisions.now + self._allowed(worker))
        self.stop_lending(worker)
        self.connect(worker)
        self._decisions.do(actions.TellStandBy(worker, worker.reason))
        text = f"{worker} is to stand by"
        self._decisions.say_of(worker, logging.DEBUG, "worker_standby_requested", text)

    @staticmethod
    def _allowed(worker: Worker) -> float:
        """Seconds that it has to leave, or to have nothing left."""
        policy = worker.generation.policy
        return policy.graceful_timeout + policy.shutdown_timeout + KILL_MARGIN

    def stop_lending(self, worker: Worker) -> None:
        """Have it hand nothing over to a canary any more; it closes all its pairs, before it gets new ones."""
        if worker.lends:
            worker.lends = False
            self._decisions.do(actions.TellLend(worker, 0.0))
            self.took_back(worker)

    def retire_for_stop(self, worker: Worker) -> None:
        """Retire a worker because the server stops, without receivers, since those leave as well."""
        if worker.state is WorkerState.RETIRING:
            worker.reason = "stop"
            self._decisions.do(actions.TellRetire(worker, "stop", accept_queued=False))
        self.leave(worker, "stop")

    def cut_short(self, worker: Worker) -> None:
        """Have a worker leave at once, whatever is in flight."""
        if worker.state is WorkerState.PENDING:
            self.leave(worker, "stop")
        elif worker.state is not WorkerState.ENDING:
            self._quit(worker)

    def _quit(self, worker: Worker) -> None:
        self.ends_by_itself(worker)
        self._decisions.do(actions.TellQuit(worker))

    def ends_by_itself(self, worker: Worker) -> None:
        """It only has to exit, which is not awaited for long."""
        worker.become(WorkerState.ENDING, self._decisions.now + worker.generation.end_timeout)

    def overdue(self, worker: Worker) -> None:
        """Its time to finish (--graceful-timeout), or to exit by itself, is over: kill it."""
        timeout = "the graceful timeout" if worker.state in HANDING_OVER else "its time to end"
        self.kill(worker, f"it had not ended when {timeout} was over")

    def kill(self, worker: Worker, why: str) -> None:
        """Kill it."""
        worker.stuck = why
        self._decisions.do(actions.Kill(worker, why))

    # Receivers

    def connect(self, sender: Worker) -> None:
        """Connect a retiring worker to the serving workers, unless it retires for a stop."""
        size = self._processes.size
        serving = [
            w for w in self._processes.workers_in(WorkerState.SERVING) if w.generation is self._processes.current
        ]
        receivers = [w for w in serving if w is not sender and w.slot < size]
        receivers.sort(key=lambda w: (w.slot - sender.slot) % max(1, size))
        if sender.reason != "stop":
            self.connect_to(sender, receivers)

    def connect_to(self, sender: Worker, receivers: Sequence[Worker]) -> None:
        """Connect a worker to these receivers of its connections, unless it is connected."""
        for receiver in receivers[:MAX_RECEIVERS]:
            if not self.pairs.connected(sender, receiver):
                pair = self.pairs.connect(sender, receiver)
                self._decisions.do(actions.ConnectPair(sender, receiver, pair))

    def connect_all(self) -> None:
        """There is a new receiver: connect all retiring workers."""
        for worker in self._processes.workers_in(*HANDING_OVER):
            self.connect(worker)

    def withdrawn(self, worker: Worker, pair: int) -> None:
        """The receiver was too slow; it may get connections later, over another pair."""
        self._decisions.do(*self.pairs.withdrawn(worker, pair))
        if worker.state in HANDING_OVER:
            self.connect(worker)

    def lost(self, worker: Worker, pair: int) -> None:
        """An end of the pair did not reach its worker: connect the two again, over another one."""
        sender = self.pairs.lost(worker, pair)
        if sender is not None and sender.state in HANDING_OVER:
            self.connect(sender)

    def orphaned(self, worker: Worker, pair: int) -> None:
        """A receiver asks what to do with uncommitted offers."""
        self._decisions.do(*self.pairs.orphaned(worker, pair))

    def took_back(self, worker: Worker) -> None:
        """It serves again, or stands by: it offers nothing any more over the pairs that it had as a sender."""
        self._decisions.do(*self.pairs.took_back(worker))

    def died(self, worker: Worker) -> None:
        """It has been reaped: its offers belong to the receivers."""
        self._decisions.do(*self.pairs.died(worker))
