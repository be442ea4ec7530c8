"""How the server stops: it drains, shuts new connections out, accepts queued ones, retires all workers; or at once.

Its steps are the server's states (`lifecycles.ServerState`) from DRAINING to STOPPED; each that waits has a deadline.
The workers leave first, the agent after the last of them.
"""

from __future__ import annotations

import logging
import math

from serve_asgi.supervisor import actions
from serve_asgi.supervisor import events as e
from serve_asgi.supervisor.actions import Decisions
from serve_asgi.supervisor.agents import Agents
from serve_asgi.supervisor.drain import DrainSwitch
from serve_asgi.supervisor.lifecycles import BEFORE_RUNNING, UP, ServerState, WorkerState, counted
from serve_asgi.supervisor.process_table import ProcessTable
from serve_asgi.supervisor.reload import ReloadTransaction
from serve_asgi.supervisor.retiring import RetiringWorkers
from serve_asgi.supervisor.rollback import RollbackTransaction
from serve_asgi.supervisor.starting import SWITCH_TIMEOUT


class StopSequence:
    """The stop of one server."""

    def __init__(
        self,
        processes: ProcessTable,
        decisions: Decisions,
        reload: ReloadTransaction,
        rollback: RollbackTransaction,
        retiring: RetiringWorkers,
        agents: Agents,
        drain: DrainSwitch,
    ) -> None:
        self._processes = processes
        self._decisions = decisions
        self._reload = reload
        self._rollback = rollback
        self._retiring = retiring
        self._agents = agents
        self._drain_switch = drain
        self.deadline = math.inf
        """Of the server's state: the end of the drain delay, or of the wait for a serving worker."""

    # Requests

    def asked(self, event: e.StopAsked) -> None:
        """Stop gracefully; a second request makes it a quick stop."""
        delay = self._processes.policy.drain_delay if event.delay is None else event.delay
        if self._processes.state in BEFORE_RUNNING:
            self._leave_start("stopped before the first start was complete")
        elif self._processes.state is ServerState.RUNNING and delay > 0:
            self._drain(delay)
        elif self._processes.state is ServerState.RUNNING:
            self._shut_out()
        else:
            self.quickly()

    def quickly(self) -> None:
        """Stop quickly; a second request kills."""
        if self._processes.state is ServerState.ENDING:
            for worker in self._processes.workers_in(WorkerState.ENDING):
                self._retiring.kill(worker, "asked twice to stop quickly")
            self._agents.kill_all("asked twice to stop quickly")
            return
        self._processes.become(ServerState.ENDING)
        self.deadline = math.inf
        self._decisions.say(logging.INFO, "quick_stop_started", "quick stop: what is in progress is cut")
        self._decisions.do(actions.Announce("stopping", "quick stop"))
        for worker in list(self._processes.workers.values()):
            self._retiring.cut_short(worker)
        self._give_up_reloads()

    # Steps

    def _leave_start(self, text: str) -> None:
        self._processes.become(ServerState.STOPPING)
        self._decisions.say(logging.INFO, "stop_started", text)
        self._give_up_reloads()

    def _give_up_reloads(self) -> None:
        self._rollback.give_up()
        self._reload.give_up()

    def _drain(self, delay: float) -> None:
        self._processes.become(ServerState.DRAINING)
        self.deadline = self._decisions.now + delay
        self._give_up_reloads()
        self._drain_switch.begin(by_control=True, until="the stop")
        self._decisions.do(actions.Announce("stopping", f"draining for {delay:g} s before the stop"))
        text = f"stopping in {delay:g} s; until then draining"
        self._decisions.say(logging.INFO, "stop_delayed", text, delay=delay)

    def _shut_out(self) -> None:
        self._processes.become(ServerState.SHUTTING_OUT)
        self.deadline = math.inf
        self._give_up_reloads()
        self._decisions.do(actions.Announce("stopping", "stopping"))
        allowed = self._processes.policy.graceful_timeout
        text = f"stopping: requests in progress have {allowed:g} s"
        self._decisions.say(logging.INFO, "stop_started", text, delay=0.0, timeout=allowed)
        self._decisions.do(actions.ShutOut())

    def shut_out_done(self) -> None:
        """No new connection can arrive any more."""
        if self._processes.state is ServerState.SHUTTING_OUT:
            self._processes.become(ServerState.AWAITING)
            self.deadline = self._decisions.now + self._processes.policy.startup_timeout + SWITCH_TIMEOUT

    def await_one_that_serves(self) -> None:
        """Retire the workers as soon as one serves that can accept the kernel's queue, or none will."""
        coming = self._processes.workers_in(*UP - {WorkerState.SERVING})
        if self.serves() or not any(worker.generation is self._processes.current for worker in coming):
            self._let_all_retire()

    def serves(self) -> bool:
        """Whether any worker accepts connections."""
        return bool(self._processes.workers_in(WorkerState.SERVING))

    def check_deadline(self) -> None:
        """Take the next step if this one's deadline has passed."""
        if self._decisions.now < self.deadline:
            return
        if self._processes.state is ServerState.DRAINING:
            self._shut_out()
        else:
            self._let_all_retire()

    def _let_all_retire(self) -> None:
        self._processes.become(ServerState.STOPPING)
        self.deadline = math.inf
        for worker in list(self._processes.workers.values()):
            self._retiring.retire_for_stop(worker)

    def conclude(self) -> None:
        """End the server if all processes have ended."""
        if self._processes.workers or self._agents.all:
            return
        self._processes.become(ServerState.STOPPED)
        self._decisions.do(actions.ClosePorts())
        lost = self._processes.lost
        self._decisions.say(
            logging.DEBUG, "server_stopped", f"everything has ended; lost: {counted(lost, 'request')}", lost=lost
        )
        self._decisions.do(self._processes.outcome)
