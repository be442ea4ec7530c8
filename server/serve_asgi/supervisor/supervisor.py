"""The supervisor: the listener's decisions as `event -> actions`, without processes, sockets or a clock of its own.

`handle` takes one event and the time and returns the actions, in order; the shell (`serve_asgi.listener.listener`)
performs them and feeds back the outcomes. The laws of the design are enforced here: ready before retire, bad code takes
nothing down, every wait has an end (each state's deadline). After every event `_reconcile` compares the actual state
with the desired one, so that no event needs to know what it interrupts.

`processes` holds the state, `decisions` the actions of one event. Each subject has a part of its own, which knows
nothing of the parts after it: drain, retiring, starting, slots, agents, previous_generation, reload_requests, reload,
rollback, switch_watch, stop. This module handles the events of single workers and agents, and calls the parts in order.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any, Final

from serve_asgi.supervisor import actions
from serve_asgi.supervisor import events as e
from serve_asgi.supervisor.actions import Decisions
from serve_asgi.supervisor.agents import Agents
from serve_asgi.supervisor.canary import CanaryTrials
from serve_asgi.supervisor.drain import DrainSwitch
from serve_asgi.supervisor.lifecycles import (
    BEFORE_RUNNING,
    LEAVING,
    ON_TRIAL,
    RELOADABLE,
    SERVING,
    WARM,
    Agent,
    AppProcess,
    Generation,
    GenerationState,
    Policy,
    ServerState,
    Worker,
    WorkerState,
    counted,
    hint_at_death,
)
from serve_asgi.supervisor.previous_generation import PreviousGeneration
from serve_asgi.supervisor.process_table import ProcessTable
from serve_asgi.supervisor.reload import ReloadTransaction
from serve_asgi.supervisor.reload_requests import ReloadRequests
from serve_asgi.supervisor.retiring import RetiringWorkers
from serve_asgi.supervisor.rollback import RollbackTransaction
from serve_asgi.supervisor.slots import Slots
from serve_asgi.supervisor.starting import StartingWorkers
from serve_asgi.supervisor.stop import StopSequence
from serve_asgi.supervisor.switch_watch import SwitchWatch

_WITH_AGENT: Final = frozenset({ServerState.RUNNING, ServerState.DRAINING})
"""States in which a lost agent is replaced: later, the workers leave, and the agent after them."""
_NOT_YET_SERVING: Final = frozenset({WorkerState.STARTING, WorkerState.READY, WorkerState.SWITCHING})
_LEAVES_SERVICE: Final = WARM | {WorkerState.RETIRING}


class Supervisor:
    """The state of one server's processes. Call `start` first, then `handle` for every event, in order."""

    def __init__(self, policy: Policy) -> None:
        self.processes = processes = ProcessTable(policy)
        self.decisions = decisions = Decisions()
        self.drain = DrainSwitch(decisions)
        self.retiring = RetiringWorkers(processes, decisions)
        self._starting = StartingWorkers(processes, decisions, self.retiring)
        self.slots = Slots(processes, decisions, self.retiring)
        self.agents = Agents(decisions.do, processes.process_number, leased=not policy.agent_in_fleet)
        self.previous = PreviousGeneration(processes, decisions, self.retiring)
        self.requests = ReloadRequests(processes, decisions, self.previous)
        self._reload = ReloadTransaction(
            processes,
            decisions,
            self.requests,
            self._starting,
            self.retiring,
            self.slots,
            self.agents,
            self.drain,
            self.previous,
        )
        self._rollback = RollbackTransaction(
            processes, decisions, self.requests, self._starting, self.retiring, self.previous, self._reload, self.drain
        )
        self._switch_watch = SwitchWatch(processes, decisions, self.previous, self._rollback.asked)
        self._stop = StopSequence(
            processes, decisions, self._reload, self._rollback, self.retiring, self.agents, self.drain
        )
        self._handlers: dict[type[e.Event], Callable[[Any], None]] = {
            e.Wakeup: lambda _: None,
            e.ReloadAsked: self._on_reload,
            e.ReloadPrepared: self._reload.prepared,
            e.RollbackAsked: self._rollback.asked,
            e.DrainAsked: self.drain.asked,
            e.StopAsked: self._stop.asked,
            e.QuickStopAsked: lambda _: self._stop.quickly(),
            e.ScaleAsked: self._on_scale,
            e.ReopenAsked: lambda _: self._reopen(),
            e.CanaryObserved: self._reload.trials.observed,
            e.SwitchObserved: self._switch_watch.observed,
            e.CanaryRefused: self._reload.trials.refused,
            e.PromotionAsked: self._reload.trials.promotion_asked,
            e.PortsOpened: self._reload.ports_opened,
            e.ShutOutDone: lambda _: self._stop.shut_out_done(),
            e.WorkerReady: lambda event: self._starting.ready(event.worker, event.can_stand_by),
            e.WorkerFailed: self._on_failed,
            e.WorkerAccepts: self._on_accepts,
            e.WorkerStandsBy: lambda event: self.previous.worker_stands_by(event.worker),
            e.WorkerWantsReplacement: self._on_wants_replacement,
            e.WorkerFinished: self._on_finished,
            e.WorkerDied: self._on_died,
            e.PairWithdrawn: lambda event: self.retiring.withdrawn(event.worker, event.pair),
            e.PairLost: lambda event: self.retiring.lost(event.worker, event.pair),
            e.PairOrphaned: lambda event: self.retiring.orphaned(event.worker, event.pair),
            e.AgentPrepared: lambda event: self.agents.prepared(event.agent),
            e.AgentWaits: lambda event: self.agents.waits(event.agent, event.holder),
            e.AgentEntered: lambda event: self.agents.entered(event.agent, decisions.now),
            e.AgentReturned: lambda event: self.agents.returned(event.agent, decisions.now),
            e.AgentLeaseChanged: lambda event: self.agents.lease_changed(event.token, decisions.now),
            e.AgentFailed: self._on_agent_failed,
            e.AgentBlocked: self._on_agent_blocked,
            e.AgentFinished: lambda event: self.agents.finished(event.agent),
            e.AgentDied: self._on_agent_died,
        }

    # State

    @property
    def state(self) -> ServerState:
        """The server's state."""
        return self.processes.state

    @property
    def size(self) -> int:
        """The number of slots to fill."""
        return self.processes.size

    @property
    def current(self) -> Generation | None:
        """The serving generation; None before the first one serves."""
        return self.processes.current

    @property
    def candidate(self) -> Generation | None:
        """The generation that is to become current."""
        return self.processes.candidate

    @property
    def generations(self) -> Mapping[int, Generation]:
        """Those with a process left, by number."""
        return self.processes.generations

    @property
    def workers(self) -> Mapping[int, Worker]:
        """Those that have not been reaped, by process number."""
        return self.processes.workers

    @property
    def trials(self) -> CanaryTrials:
        """The trials of canaries."""
        return self._reload.trials

    @property
    def has_agent(self) -> bool:
        """Whether there is an agent, or will be soon."""
        holder, preparing = self._lease()
        given_up = self.agents.is_given_up() and not self.agents.all
        comes = preparing is not None or holder is not self.current
        return self.wants_agent and (comes or not given_up)

    @property
    def wants_agent(self) -> bool:
        """Whether there should be an agent: it may be lost, and not be started again before a reload."""
        return any(each is not None and each.policy.agent for each in self._lease())

    # Entry points

    def start(self, now: float) -> list[actions.Action]:
        """Begin the first generation."""
        self.decisions.begin(now)
        self._reload.begin_first()
        self._reconcile()
        return self.decisions.actions

    def handle(self, event: e.Event, now: float) -> list[actions.Action]:
        """Handle one event at the time `now` (CLOCK_MONOTONIC, s); return the actions, in order."""
        self.decisions.count += 1
        self.decisions.begin(now)
        if self.state is not ServerState.STOPPED:
            self._handlers[type(event)](event)
            self._check_deadlines()
            self._reconcile()
        return self.decisions.actions

    @property
    def watches_switch(self) -> bool:
        """Whether the current generation is still watched after its switch (`--auto-rollback`)."""
        return self._switch_watch.deadline < math.inf

    def next_deadline(self) -> float:
        """When `handle` must be called with a Wakeup if nothing else happens before; may be infinity."""
        deadline = min((worker.deadline for worker in self.workers.values()), default=math.inf)
        if self.state in SERVING:
            deadline = min(deadline, self.slots.next_due())
        holder = self._lease()[0] if self.state in _WITH_AGENT else None
        deadline = min(deadline, self.trials.deadline, self._switch_watch.deadline)
        deadline = min(deadline, self.previous.next_deadline(), self._rollback.next_deadline())
        return min(deadline, self._stop.deadline, self.agents.next_deadline(self.decisions.now, holder))

    @property
    def watched_until(self) -> float:
        """Until when the latest switch is watched (`--auto-rollback`); infinity if it is not."""
        return self._switch_watch.deadline

    # From signals and the control socket

    def _on_reload(self, event: e.ReloadAsked) -> None:
        if self.state not in RELOADABLE:
            self.requests.refuse_new(event)
            return
        self.requests.add(event)
        if event.supersedes or (self.candidate is not None and self.candidate.state in ON_TRIAL):
            self._reload.supersede()

    def _on_scale(self, event: e.ScaleAsked) -> None:
        if self.state in RELOADABLE:
            self.slots.scale(event)

    def _reopen(self) -> None:
        self.decisions.do(actions.ReopenLogs())
        self.decisions.say(logging.DEBUG, "logs_reopened", "log files are reopened")
        for worker in self.workers.values():
            if worker.state not in (WorkerState.PENDING, WorkerState.ENDING):
                self.decisions.do(actions.TellReopen(worker))
        self.agents.reopen()

    # From workers and the kernel

    def _on_failed(self, event: e.WorkerFailed) -> None:
        if event.worker.state in _NOT_YET_SERVING:
            self.retiring.ends_by_itself(event.worker)
            self._start_failed(event.worker, event.message, event.detail, event.usage)

    def _on_accepts(self, event: e.WorkerAccepts) -> None:
        worker = event.worker
        if worker.state is not WorkerState.SWITCHING:
            return
        worker.become(WorkerState.SERVING)
        worker.serving_since = self.decisions.now
        self.retiring.took_back(worker)
        if worker.generation is self.current:
            self.slots.taken_over(worker)
        else:
            self.decisions.say_of(worker, logging.DEBUG, "worker_activated", f"{worker} accepts connections")

    def _on_wants_replacement(self, event: e.WorkerWantsReplacement) -> None:
        faulty = event.blocked is not None or event.too_large
        if faulty and event.worker.generation is self.candidate and self.candidate.state in ON_TRIAL:
            self.trials.give_back(f"{event.worker}: {event.reason}")
        elif not (faulty and self._switch_watch.faulty(event.worker, event.reason)):
            self.slots.wants_replacement(event)

    def _on_finished(self, event: e.WorkerFinished) -> None:
        worker, cut, passed = event.worker, int(event.report.get("cut", 0)), int(event.report.get("handed_over", 0))
        worker.finished = True
        worker.generation.cut += cut
        worker.generation.handed_over += passed
        self.processes.lost += cut
        text = f"{worker} has ended: {counted(passed, 'connection')} handed over, {counted(cut, 'request')} cut"
        level = logging.WARNING if cut else logging.INFO
        about: dict[str, Any] = {"handed_over": passed, "cut": cut, "reason": worker.reason}
        self.decisions.say_of(worker, level, "worker_finished", text, **about)

    def _on_died(self, event: e.WorkerDied) -> None:
        worker, before, say = event.worker, event.worker.state, self.decisions.say_of
        self.processes.remove(worker)
        self.retiring.died(worker)
        how = event.how + (f" ({worker.stuck})" if worker.stuck else "")
        if not worker.finished:
            worker.generation.cut += event.in_flight
            self.processes.lost += event.in_flight
        hint = hint_at_death(event.how, worker.stuck)
        about: dict[str, Any] = {"reason": how, "how": how, "in_flight": event.in_flight, "state": before.value}
        if before in _NOT_YET_SERVING:
            say(worker, logging.DEBUG, "worker_died", f"{worker} died before it served: {how}{hint}", **about)
            self._start_failed(worker, f"it died before it served: {how}{hint}")
        elif before is WorkerState.SERVING:
            text = f"{worker} died: {how}; lost: {counted(event.in_flight, 'request')}{hint}"
            say(worker, logging.ERROR, "worker_died", text, **about)
            if worker.generation is self.candidate:
                self._lost_before_the_switch(worker, how)
            else:
                self.slots.failed(worker, how + hint)
                self._switch_watch.faulty(worker, f"it died: {how}")
        elif not worker.finished and before in _LEAVES_SERVICE:
            doing = "retired" if before is WorkerState.RETIRING else "stood by"
            text = f"{worker} died while it {doing}: {how}; lost: {counted(event.in_flight, 'request')}{hint}"
            say(worker, logging.ERROR, "worker_died", text, **about)
        elif not worker.finished and event.in_flight:
            text = f"{worker} ended: {how}; cut: {counted(event.in_flight, 'request')}"
            say(worker, logging.WARNING, "worker_died", text, **about)

    def _lost_before_the_switch(self, worker: Worker, how: str) -> None:
        if worker.generation.state is GenerationState.RETURNING:
            self._does_not_return(worker, f"it died: {how}")
        elif self.candidate is not None and self.candidate.state in ON_TRIAL:
            self.trials.give_back(f"{worker} died: {how}")
        else:
            self._reload.worker_lost(worker, f"it died before the switch: {how}")

    def _start_failed(self, worker: Worker, message: str, detail: str = "", usage: bool = False) -> None:
        """A worker has failed to start: its generation has failed, or its slot stays empty for a while."""
        if worker.generation.state is GenerationState.RETURNING:
            self._does_not_return(worker, message)
        elif worker.generation is self.candidate:
            self._reload.worker_lost(worker, message, detail, usage)
        else:  # of the current generation, and filling a slot: all others have been told to quit by now
            self.slots.failed(worker, f"{message}\n{detail}" if detail else message)

    def _does_not_return(self, worker: Worker, trouble: str) -> None:
        """A roll-back goes on with the others."""
        text = f"{worker} does not serve again: {trouble}"
        self.decisions.say_of(worker, logging.ERROR, "slot_failed", text, reason=trouble, delay=0.0)

    # From agents and the kernel

    def _on_agent_failed(self, event: e.AgentFailed) -> None:
        if self.agents.failed(event.agent, self.decisions.now):
            self._agent_lost(event.agent, event.message, event.detail, event.usage)

    def _on_agent_blocked(self, event: e.AgentBlocked) -> None:
        if self.agents.blocked(event.agent, self.decisions.now):
            self._agent_lost(event.agent, event.reason)

    def _on_agent_died(self, event: e.AgentDied) -> None:
        if trouble := self.agents.died(event.agent, event.how, self.decisions.now):
            self._agent_lost(event.agent, trouble)

    def _agent_lost(self, agent: Agent, message: str, detail: str = "", usage: bool = False) -> None:
        """A wanted agent is missing: its generation has failed, or another agent replaces it."""
        if agent.generation is self.candidate:
            told = usage or detail  # by the agent itself, in a sentence that names it
            self._reload.fail(message if told else f"{agent}: {message}", detail, usage)
        elif agent.generation.state is not GenerationState.FAILED:  # or the failure has been reported already
            again = agent.generation is self.current and self.state in _WITH_AGENT
            self.agents.lost(agent, message, detail, self.decisions.now if again else None)

    # Deadlines

    def _check_deadlines(self) -> None:
        now = self.decisions.now
        self._stop.check_deadline()
        self.trials.check_deadline()
        self._switch_watch.check_deadline()
        self.previous.check()
        for worker in list(self.workers.values()):
            if now >= worker.deadline:  # still: an earlier one may have failed the whole generation
                self._overdue(worker)
        for agent, why in self.agents.overdue(now):
            self._agent_lost(agent, why)

    def _overdue(self, worker: Worker) -> None:
        worker.deadline = math.inf
        if worker.state in (WorkerState.STARTING, WorkerState.SWITCHING):
            self._start_failed(worker, self._starting.overdue(worker))
        else:
            self.retiring.overdue(worker)

    # Reconciling actual and desired state

    def _reconcile(self) -> None:
        self._forget_generations()
        if self.state in RELOADABLE | SERVING:
            self.requests.begin_wanted()
            self._tend_agents()
            self._fill_slots()
            self._start_pending()
            if self._reload.advance() or self._rollback.advance():
                self._reconcile()
                return
            self.trials.tend()
            self._switch_watch.tend()
            self._starting.serve_replacements()
        if self.state is ServerState.AWAITING:
            if not self._stop.serves():
                self._fill_slots()
            self._start_pending()
            self._starting.serve_replacements()
            self._stop.await_one_that_serves()
        if self.state in LEAVING:
            self._tend_agents()
            self._stop.conclude()

    def _fill_slots(self) -> None:
        if self.current is not None and self.state in SERVING | {ServerState.AWAITING}:
            self.slots.fill(self.current)

    def _start_pending(self) -> None:
        candidate = self.candidate
        if self.state in BEFORE_RUNNING and candidate is not None and not self.agents.has_passed(candidate):
            return  # the agent comes first
        self._starting.start_pending()

    def _tend_agents(self) -> None:
        """One agent while the server serves; it starts before the first workers, and leaves after the last."""
        now = self.decisions.now
        if self.state in LEAVING and not self.workers:
            if self.state is ServerState.ENDING:
                self.agents.hurry(now)
            self.agents.tend(now, None, None, again=False)
        elif self.state in BEFORE_RUNNING | _WITH_AGENT:
            holder, preparing = self._lease()
            self.agents.tend(now, holder, preparing, again=holder is self.current)
        else:
            self.agents.hold(now)

    def _lease(self) -> tuple[Generation | None, Generation | None]:
        """The generation whose agent is to be active, and the one whose agent is to be prepared."""
        candidate = self.candidate
        if self.current is None or candidate is None:
            return self.current or candidate, None
        if candidate.state in ON_TRIAL or candidate.state is GenerationState.RETURNING:
            return self.current, None  # its agent follows after the switch
        starting = candidate.state is GenerationState.STARTING
        return (self.current, candidate) if starting else (candidate, None)

    def _forget_generations(self) -> None:
        """Forget generations without processes."""
        processes: list[AppProcess] = [*self.workers.values(), *self.agents.all.values()]
        alive = {each.generation.number for each in processes}
        ended = (GenerationState.RETIRING, GenerationState.FAILED)
        for generation in [g for g in self.generations.values() if g.number not in alive and g.state in ended]:
            generation.become(GenerationState.GONE)
            del self.processes.generations[generation.number]
            self.decisions.do(actions.ForgetGeneration(generation))
            cut, passed = generation.cut, generation.handed_over
            text = f"generation {generation.number} has ended: {counted(passed, 'connection')} handed over, "
            about: dict[str, Any] = {"generation": generation.number, "handed_over": passed, "cut": cut}
            text += f"{counted(cut, 'request')} cut"
            self.decisions.say(logging.DEBUG, "generation_ended", text, **about)
