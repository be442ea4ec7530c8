"""The transaction by which a generation becomes current, as a whole or not at all: in a reload, and at the first start.

Its steps are the states of the candidate. With a trial (`serve_asgi.supervisor.canary`) STARTING_CANARY, CANARY and
perhaps HELD come first, with some of its workers. STARTING: every worker becomes ready and the agent is prepared.
PASSING: the old agent finishes, the new one enters. SWITCHING: the workers are told to serve. Once all of them accept
it is CURRENT, and the old generation retires. Any failure before that ends the candidate, and the old generation never
notices.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import Any, Final

from serve_asgi.supervisor import actions
from serve_asgi.supervisor import events as e
from serve_asgi.supervisor.actions import Decisions
from serve_asgi.supervisor.agents import Agents
from serve_asgi.supervisor.canary import CanaryTrials, canary_size, with_wish
from serve_asgi.supervisor.drain import DrainSwitch
from serve_asgi.supervisor.lifecycles import (
    ON_TRIAL,
    Cause,
    Generation,
    GenerationState,
    Policy,
    ServerState,
    Worker,
    WorkerState,
    counted,
)
from serve_asgi.supervisor.previous_generation import PreviousGeneration
from serve_asgi.supervisor.process_table import ProcessTable
from serve_asgi.supervisor.reload_requests import Preparation, ReloadRequests
from serve_asgi.supervisor.retiring import RetiringWorkers
from serve_asgi.supervisor.slots import Slots
from serve_asgi.supervisor.starting import StartingWorkers

_UNHURT: Final = frozenset({WorkerState.READY, WorkerState.SERVING})
"""States of workers that are ready, or have been on trial."""


class ReloadTransaction:
    """The candidates of one server, one after another."""

    def __init__(
        self,
        processes: ProcessTable,
        decisions: Decisions,
        requests: ReloadRequests,
        starting: StartingWorkers,
        retiring: RetiringWorkers,
        slots: Slots,
        agents: Agents,
        drain: DrainSwitch,
        previous: PreviousGeneration,
    ) -> None:
        self._processes = processes
        self._decisions = decisions
        self._requests = requests
        self._starting = starting
        self._retiring = retiring
        self._slots = slots
        self._agents = agents
        self._drain_switch = drain
        self.trials = CanaryTrials(processes, decisions, retiring, self.fail)
        self._previous = previous

    # Beginning

    def begin_first(self) -> None:
        """Begin the first generation."""
        self._begin(Preparation([], self._decisions.count, self._decisions.now), self._processes.policy)

    def prepared(self, event: e.ReloadPrepared) -> None:
        """The configuration of a reload has been read: begin it, or refuse it."""
        if (preparation := self._requests.taken()) is None:
            return  # the server is stopping, or a roll-back has given it up
        if event.policy is not None:
            self._begin(preparation, event.policy)
        else:
            self._requests.refused(event.trouble, event.detail, preparation, self._drain_switch.on is not None)

    def _begin(self, preparation: Preparation, policy: Policy) -> None:
        processes = self._processes
        policy = dataclasses.replace(policy, **with_wish(policy, preparation.canary))
        same = policy.workers == processes.policy.workers
        size = processes.size if same else policy.workers  # scaling by hand is kept
        trial = policy.canary and processes.current is not None
        number = processes.generation_number()
        state = GenerationState.STARTING_CANARY if trial else GenerationState.STARTING
        generation = Generation(
            number, policy, size, preparation.began, preparation.tickets, preparation.began_at, state
        )
        generation.is_rollback = preparation.is_rollback
        processes.generations[number] = processes.candidate = generation
        self._decisions.do(actions.PrepareGeneration(generation))
        for slot in range(canary_size(policy, processes.size) if trial else size):
            processes.add_worker(generation, slot, Cause.GENERATION)
        if processes.current is not None:
            text = f"reload: generation {number} starts, {counted(size, 'worker')}"
            about: dict[str, Any] = {"generation": number, "workers": size, "by": self._requests.by}
            self._decisions.say(logging.INFO, "reload_started", text, **about)
            self._decisions.do(actions.Announce("status", f"reloading: generation {number} starts"))

    # Steps

    def advance(self) -> bool:
        """Take the candidate's next step if what it waits for has happened; return whether to reconcile all again.

        That is the agents, when the lease is to pass, and all else once another generation is current.
        """
        generation = self._processes.candidate
        if generation is None:
            return False
        workers = self._processes.workers_of(generation)
        match generation.state:
            case GenerationState.STARTING_CANARY if all(w.state is WorkerState.READY for w in workers):
                generation.become(GenerationState.CANARY)
                self._starting.serve_all()
            case GenerationState.CANARY if self.trials.trial is None and all(
                w.state is WorkerState.SERVING for w in workers
            ):
                self.trials.begin(generation)
            case GenerationState.STARTING if all(w.state in _UNHURT for w in workers):
                return self._all_are_ready(generation)
            case GenerationState.PASSING if self._agents.has_passed(generation):
                return self._begin_switch(generation)
            case GenerationState.SWITCHING if all(w.state is WorkerState.SERVING for w in workers):
                self.switch(generation)
                return True
        return False

    def _all_are_ready(self, generation: Generation) -> bool:
        """Open the ports; or, in a reload, let the active agent finish, and then the new one enter."""
        if self._processes.state is ServerState.STARTING:
            self._processes.become(ServerState.OPENING)
            self._decisions.do(actions.OpenPorts())
        elif self._processes.state is ServerState.RUNNING and self._agents.is_prepared(generation):
            if self._agents.all:
                generation.become(GenerationState.PASSING)
                return True
            return self._begin_switch(generation)
        return False

    def ports_opened(self, event: e.PortsOpened) -> None:
        """The ports are open, and the first generation may serve; or the server cannot start."""
        if self._processes.candidate is None or self._processes.state is not ServerState.OPENING:
            return
        if event.trouble:
            self.fail(event.trouble, usage=True)
        else:
            self._begin_switch(self._processes.candidate)

    def _begin_switch(self, generation: Generation) -> bool:
        """Return whether there is nothing to wait for: all of a canary with as many workers serve already."""
        generation.become(GenerationState.SWITCHING)
        self._starting.serve_all()
        return all(worker.state is WorkerState.SERVING for worker in self._processes.workers_of(generation))

    def switch(self, generation: Generation) -> None:
        """All workers of `generation` accept: it is current from here on, and the one before retires or stands by."""
        processes = self._processes
        old, processes.current, processes.candidate = processes.current, generation, None
        generation.become(GenerationState.CURRENT)
        self._slots.begin_anew(generation)
        processes.policy = generation.policy
        self._agents.begin_anew(generation)
        self._decisions.do(actions.AdoptGeneration(generation))
        if old is None:
            processes.become(ServerState.RUNNING)
        else:
            if not generation.is_rollback:
                self._requests.succeeded()
            self._drain_switch.deployed(generation)
            self._previous.succeeded(old, generation)
        self._say_switched(generation, old)
        self._retiring.connect_all()

    def _say_switched(self, generation: Generation, old: Generation | None) -> None:
        took = self._decisions.now - generation.began_at
        if generation.is_rollback:
            event, verb = "rollback_finished", "serves again" if old and generation.number < old.number else "serves"
        else:
            event, verb = "server_started" if old is None else "reload_finished", "serves"
        size = counted(generation.size, "worker")
        text = f"generation {generation.number} {verb}, {size}, after {took:.{3 if generation.is_rollback else 2}f} s"
        about: dict[str, Any] = {"generation": generation.number, "workers": generation.size, "seconds": round(took, 3)}
        self._decisions.say(logging.INFO, event, text, **about)
        self._decisions.do(actions.Announce("ready", text))
        for ticket in generation.tickets:
            self._decisions.do(actions.AnswerReload(ticket, True, text))

    # Failure before the switch

    def worker_lost(self, worker: Worker, message: str, detail: str = "", usage: bool = False) -> None:
        """A worker of the candidate has failed to start."""
        self.fail(message if usage else f"{worker}: {message}", detail, usage)

    def fail(self, message: str, detail: str = "", usage: bool = False) -> None:
        """The candidate has failed: end it, and the server, too, if there is no older generation."""
        processes, generation = self._processes, self._processes.candidate
        assert generation is not None
        on_trial = self.trials.trial is not None
        self.trials.end()
        processes.candidate = None
        generation.become(GenerationState.FAILED)
        if processes.current is None:
            processes.outcome = actions.Exit(
                2 if usage else 1, message, detail, again=self._requests.wanted is not None
            )
            processes.become(ServerState.STOPPING)
        self._retiring.leave_all(generation, "rollback" if on_trial else "failed")
        if processes.current is None:
            self._requests.give_up()
        else:
            self._requests.refused(message, detail, generation, self._drain_switch.on is not None)

    def supersede(self) -> None:
        """Give up a starting generation for the wanted reload, whose outcome its tickets get."""
        generation = self._processes.candidate
        if generation is None or generation.state not in ON_TRIAL | {GenerationState.STARTING}:
            return
        doing = "is on trial" if self.trials.trial is not None else "starts"
        text = f"generation {generation.number} is given up while it {doing}: {self._requests.by}"
        if self._processes.current is None:
            self.fail(text)
            return
        self.trials.end()
        self._processes.candidate = None
        generation.become(GenerationState.FAILED)
        generation.superseded = True
        self._requests.wait_on(generation.tickets)
        self._decisions.say(logging.INFO, "reload_requested", text, by=self._requests.by)
        self._retiring.leave_all(generation, "failed")

    def give_up(self) -> None:
        """The server is stopping: end the reload under way, and what stands by, and begin no other."""
        self.trials.end()
        self._previous.retire("the server is stopping")
        generation, self._processes.candidate = self._processes.candidate, None
        if generation is not None:
            generation.become(GenerationState.FAILED)
            self._retiring.leave_all(generation, "failed")
        self._requests.give_up()
        if generation is not None:
            self._requests.answer_given_up(generation.tickets)
