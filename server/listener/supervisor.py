"""The supervisor: what the listener decides, as `event -> actions`, without processes, sockets or a clock of its own.

It owns all state about generations, workers, slots and the lame duck; `server.listener.agents` is its part for agents.
`handle` takes one event and the time and returns what is to be done, in order; the shell (`server.listener.main`) does
it and feeds back what comes of it. The laws of DESIGN.md live here: ready before retire, bad code takes nothing down,
every wait has an end (each state's deadline).
After every event `_reconcile` compares what is with what should be, so that no event needs to know what it interrupts.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable
from typing import Any, Final

from server.listener import events as e
from server.listener.agents import Agents
from server.listener.introductions import Introductions
from server.listener.lifecycle import (
    SERVER_TRANSITIONS,
    UP,
    Agent,
    Cause,
    Generation,
    GenerationState,
    Policy,
    Process,
    ServerState,
    Slot,
    Worker,
    WorkerState,
    advance,
    counted,
)

_BEFORE_RUNNING: Final = frozenset({ServerState.STARTING, ServerState.OPENING})
_RELOADABLE: Final = _BEFORE_RUNNING | {ServerState.RUNNING}
_SERVING: Final = frozenset({ServerState.RUNNING, ServerState.DRAINING, ServerState.SHUTTING_OUT})
"""States in which every slot is to be filled: all traffic is served, also in the delay before a stop."""
_FILLING: Final = _SERVING | {ServerState.AWAITING}
_WITH_AGENT: Final = frozenset({ServerState.RUNNING, ServerState.DRAINING})
"""States in which an agent that is lost is started again: later, the workers leave, and it after them."""
_LEAVING: Final = frozenset({ServerState.STOPPING, ServerState.ENDING})

SWITCH_TIMEOUT: Final = 10.0
"""Seconds between being told to serve and saying so; a worker that takes longer fails its generation."""
END_TIMEOUT: Final = 5.0
"""Seconds between being told to quit and SIGKILL."""
HAMMER_MARGIN: Final = 5.0
"""Seconds that a retiring worker has on top of its own timeouts before the listener ends it with SIGKILL."""
MAX_RECEIVERS: Final = 8
"""Receivers that a retiring worker is introduced to: n old times m new pairs would exhaust descriptors."""


@dataclasses.dataclass(slots=True)
class LameDuck:
    """Who set it decides how it ends; `began` is the event count, to tell a reload that began later."""

    by_control: bool
    began: int


@dataclasses.dataclass(slots=True)
class Preparation:
    """A reload whose configuration is being read and whose hooks are being asked."""

    tickets: list[int]
    began: int  # the event count, for the generation that comes of it
    began_at: float  # CLOCK_MONOTONIC, s


class Supervisor:
    """All state of one server's processes. `start` first; then `handle` every event, in order."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.state = ServerState.STARTING
        self.size = policy.workers
        self.generations: dict[int, Generation] = {}
        self.workers: dict[int, Worker] = {}
        self.slots: dict[int, Slot] = {}
        self.current: Generation | None = None
        self.candidate: Generation | None = None
        self.lame_duck: LameDuck | None = None
        self.reload_wanted: list[int] | None = None
        self.reload_by = ""  # who asked for it first
        self.preparation: Preparation | None = None
        self.reloads = 0
        self.failed_reloads = 0
        self.last_failure = ""
        self.lost = 0  # requests that were cut, or in the hands of a worker that died
        self.introductions = Introductions()
        self.agents = Agents(self._do, self._next_number)
        self._deadline = math.inf  # of the server's own state: the drain delay, or until nobody will come to serve
        self._outcome = e.Exit(0)
        self._waiting_said = False
        self._next_generation = 1
        self._next_worker = 1
        self._scaled = 0  # the event count at which the size was last set by hand
        self._count = 0
        self._now = 0.0
        self._actions: list[e.Action] = []
        self._handlers: dict[type[e.Event], Callable[[Any], None]] = {
            e.Tick: lambda _: None,
            e.ReloadAsked: self._on_reload,
            e.ReloadPrepared: self._on_prepared,
            e.LameDuckAsked: self._on_lame_duck,
            e.StopAsked: self._on_stop,
            e.QuickStopAsked: self._on_quick_stop,
            e.ScaleAsked: self._on_scale,
            e.ReopenAsked: self._on_reopen,
            e.PortsOpened: self._on_ports_opened,
            e.ShutOutDone: self._on_shut_out,
            e.WorkerReady: self._on_ready,
            e.WorkerFailed: self._on_failed,
            e.WorkerAccepts: self._on_accepts,
            e.WorkerWantsReplacement: self._on_wants_replacement,
            e.WorkerFinished: self._on_finished,
            e.WorkerDied: self._on_died,
            e.AgentPrepared: lambda event: self.agents.prepared(event.agent),
            e.AgentWaits: lambda event: self.agents.waits(event.agent, event.holder),
            e.AgentEntered: lambda event: self.agents.entered(event.agent, self._now),
            e.AgentReturned: lambda event: self.agents.returned(event.agent),
            e.AgentFailed: self._on_agent_failed,
            e.AgentBlocked: self._on_agent_blocked,
            e.AgentFinished: lambda event: self.agents.finished(event.agent),
            e.AgentDied: self._on_agent_died,
            e.PairWithdrawn: self._on_withdrawn,
            e.PairOrphaned: lambda event: self._do(*self.introductions.orphaned(event.worker, event.pair)),
        }

    @property
    def has_agent(self) -> bool:
        """Whether there is an agent, or will be one before long."""
        holder, preparing = self._lease()
        return any(each is not None and each.policy.agent for each in (holder, preparing))

    # The two ways in

    def start(self, now: float) -> list[e.Action]:
        """Begin the first generation."""
        self._now = now
        self._actions = []
        self._begin_generation(Preparation([], self._count, now), self.policy)
        self._reconcile()
        return self._actions

    def handle(self, event: e.Event, now: float) -> list[e.Action]:
        """Take one event at the time `now` (CLOCK_MONOTONIC, s); return what is to be done, in order."""
        self._count += 1
        self._now = now
        self._actions = []
        if self.state is not ServerState.STOPPED:
            self._handlers[type(event)](event)
            self._check_deadlines()
            self._reconcile()
        return self._actions

    def next_deadline(self) -> float:
        """When `handle` must be called with a Tick if nothing else happens before; may be infinity."""
        deadline = min((worker.deadline for worker in self.workers.values()), default=math.inf)
        if self.state in _SERVING:
            deadline = min([deadline, *(s.not_before for s in self._empty_slots() if s.not_before > self._now)])
        holder = self._lease()[0] if self.state in _WITH_AGENT else None
        return min(deadline, self._deadline, self.agents.next_deadline(self._now, holder))

    # Asked for by signals and the control socket

    def _on_reload(self, event: e.ReloadAsked) -> None:
        tickets = [] if event.ticket is None else [event.ticket]
        if self.state not in _RELOADABLE:
            for ticket in tickets:
                self._do(e.Answer(ticket, False, "the server is stopping; there is nothing to reload"))
            self._say(logging.WARNING, "reload_refused", "reload ignored: the server is stopping", by=event.by)
            return
        if self.reload_wanted is None:
            self.reload_wanted, self.reload_by = [], event.by
            if self.candidate is not None:
                number = self.candidate.number
                text = f"reload asked for while generation {number} starts; another follows it"
                self._say(logging.INFO, "reload_asked", text, by=event.by)
            else:
                self._say(logging.DEBUG, "reload_asked", f"reload asked for ({event.by})", by=event.by)
        self.reload_wanted += tickets
        if event.supersedes and self.candidate is not None and self.candidate.state is GenerationState.STARTING:
            self._supersede(self.candidate)

    def _supersede(self, generation: Generation) -> None:
        """Give up a generation that starts, for the reload that is wanted; who asked for it gets that one."""
        text = f"generation {generation.number} is given up while it starts: {self.reload_by}"
        if self.current is None:
            self._generation_failed(text)
            return
        self.candidate = None
        generation.become(GenerationState.FAILED)
        self.reload_wanted = [*(self.reload_wanted or []), *generation.tickets]
        self._say(logging.INFO, "reload_asked", text, by=self.reload_by)
        self._leave_all(generation)

    def _on_prepared(self, event: e.ReloadPrepared) -> None:
        preparation, self.preparation = self.preparation, None
        if preparation is None:
            return  # the server stops
        if event.policy is not None:
            self._begin_generation(preparation, event.policy)
        else:
            self._reload_refused(event.trouble, event.detail, preparation.tickets, self._now - preparation.began_at)

    def _on_lame_duck(self, event: e.LameDuckAsked) -> None:
        if not event.on:
            if self.lame_duck is not None:
                self._end_lame_duck("told off")
            return
        by_control = event.by_control or (self.lame_duck is not None and self.lame_duck.by_control)
        if self.lame_duck is None:
            self._do(e.SetLameDuck(True))
            until = "until it is told off" if by_control else "until the next successful reload"
            text = f"lame duck: the health endpoint says no {until}; everything is served"
            self._say(logging.INFO, "lame_duck_on", text, until="told off" if by_control else "the next reload")
        self.lame_duck = LameDuck(by_control, self._count)

    def _end_lame_duck(self, why: str) -> None:
        self.lame_duck = None
        self._do(e.SetLameDuck(False))
        self._say(logging.INFO, "lame_duck_off", f"lame duck ended: {why}", reason=why)

    def _on_stop(self, event: e.StopAsked) -> None:
        delay = self.policy.drain_delay if event.delay is None else event.delay
        if self.state in _BEFORE_RUNNING:
            self._leave_start("stopped before the first start was complete")
        elif self.state is ServerState.RUNNING and delay > 0:
            self._become(ServerState.DRAINING)
            self._deadline = self._now + delay
            self._refuse_reloads()
            self._on_lame_duck(e.LameDuckAsked(on=True, by_control=True))
            self._do(e.Announce("stopping", f"in lame duck for {delay:g} s before the stop"))
            text = f"stopping in {delay:g} s; until then in lame duck"
            self._say(logging.INFO, "stopping", text, delay=delay)
        elif self.state is ServerState.RUNNING:
            self._shut_out()
        else:
            self._on_quick_stop(e.QuickStopAsked())

    def _on_quick_stop(self, event: e.QuickStopAsked) -> None:
        if self.state is ServerState.ENDING:
            for worker in self._in(WorkerState.ENDING):
                self._kill(worker, "told twice to stop quickly")
            self.agents.kill_all("told twice to stop quickly")
            return
        self._become(ServerState.ENDING)
        self._deadline = math.inf
        self._say(logging.INFO, "quick_stop", "quick stop: what is in progress is cut")
        self._do(e.Announce("stopping", "quick stop"))
        for worker in list(self.workers.values()):
            self._cut_short(worker)
        self._refuse_reloads()

    def _on_scale(self, event: e.ScaleAsked) -> None:
        if self.state not in _RELOADABLE:
            return
        size = max(1, event.to if event.to is not None else self.size + event.by)
        if size != self.size:
            self._say(logging.INFO, "scaled", f"workers: {self.size} -> {size}", workers=size, before=self.size)
            self.size, self._scaled = size, self._count
        elif event.to is None:
            self._say(logging.WARNING, "scaled", "one worker is the least there can be", workers=size, before=size)

    def _on_reopen(self, event: e.ReopenAsked) -> None:
        self._do(e.ReopenLogs())
        self._say(logging.DEBUG, "logs_reopened", "log files are opened again")
        for worker in self.workers.values():
            if worker.state not in (WorkerState.PENDING, WorkerState.ENDING):
                self._do(e.TellReopen(worker))
        self.agents.reopen()

    # Told by workers and the kernel

    def _on_ready(self, event: e.WorkerReady) -> None:
        worker = event.worker
        if worker.state is WorkerState.STARTING:
            worker.become(WorkerState.READY)
            self._say_of(worker, logging.DEBUG, "worker_ready", f"{worker} is ready")

    def _on_failed(self, event: e.WorkerFailed) -> None:
        worker = event.worker
        if worker.state in (WorkerState.STARTING, WorkerState.READY, WorkerState.SWITCHING):
            worker.become(WorkerState.ENDING, self._now + END_TIMEOUT)
            self._start_failed(worker, event.message, event.detail, event.usage)

    def _on_accepts(self, event: e.WorkerAccepts) -> None:
        worker = event.worker
        if worker.state is not WorkerState.SWITCHING:
            return
        worker.become(WorkerState.SERVING)
        worker.serving_since = self._now
        if worker.generation is self.current:
            self._take_over_slot(worker)
        else:
            self._say_of(worker, logging.DEBUG, "worker_serving", f"{worker} accepts connections")

    def _on_wants_replacement(self, event: e.WorkerWantsReplacement) -> None:
        worker = event.worker
        if worker.state is WorkerState.SERVING and not worker.recycling:
            worker.recycling = event.reason
            when = ""
            if event.blocked is not None:
                worker.blocked = True
                when = self._back_off(worker, event)
            text = f"{worker} is to be replaced{when}: {event.reason}"
            self._say_of(worker, logging.INFO, "worker_recycling", text, reason=event.reason)

    def _back_off(self, worker: Worker, event: e.WorkerWantsReplacement) -> str:
        """If the replacement blocks at once as well, and so on, they come at longer and longer intervals."""
        if worker.generation is not self.current or event.blocked is None:
            return ""
        served = max(0.0, self._now - worker.serving_since - event.blocked)
        delay = self.slots.setdefault(worker.slot, Slot()).failed(self._now, served, event.reason)
        return f" in {delay:g} s" if delay else ""

    def _on_finished(self, event: e.WorkerFinished) -> None:
        worker, cut, passed = event.worker, int(event.report.get("cut", 0)), int(event.report.get("handed_over", 0))
        worker.finished = True
        worker.generation.cut += cut
        worker.generation.handed_over += passed
        self.lost += cut
        text = f"{worker} has ended: {counted(passed, 'connection')} handed over, {counted(cut, 'request')} cut"
        level = logging.WARNING if cut else logging.INFO
        self._say_of(worker, level, "worker_finished", text, handed_over=passed, cut=cut, reason=worker.reason)

    def _on_died(self, event: e.WorkerDied) -> None:
        worker, before = event.worker, event.worker.state
        worker.become(WorkerState.GONE)
        del self.workers[worker.id]
        self._do(*self.introductions.died(worker))
        how = event.how + (f" ({worker.stuck})" if worker.stuck else "")
        if not worker.finished:
            worker.generation.cut += event.in_flight
            self.lost += event.in_flight
        about: dict[str, Any] = {"how": how, "in_flight": event.in_flight, "state": before.value}
        if before in (WorkerState.STARTING, WorkerState.READY, WorkerState.SWITCHING):
            self._say_of(worker, logging.DEBUG, "worker_died", f"{worker} died before it served: {how}", **about)
            self._start_failed(worker, f"it died before it served: {how}")
        elif before is WorkerState.SERVING:
            text = f"{worker} died: {how}; in its hands: {counted(event.in_flight, 'request')}"
            self._say_of(worker, logging.ERROR, "worker_died", text, **about)
            if worker.generation is self.candidate:
                self._start_failed(worker, f"it died before the switch: {how}")
            else:
                self._slot_failed(worker, how)
        elif not worker.finished and before is WorkerState.RETIRING:
            text = f"{worker} died while it retired: {how}; lost: {counted(event.in_flight, 'request')}"
            self._say_of(worker, logging.ERROR, "worker_died", text, **about)
        elif not worker.finished and event.in_flight:
            text = f"{worker} ended: {how}; cut: {counted(event.in_flight, 'request')}"
            self._say_of(worker, logging.WARNING, "worker_died", text, **about)

    def _on_withdrawn(self, event: e.PairWithdrawn) -> None:
        """The receiver did not take in time: it may do so later, over a pair of its own."""
        self._do(*self.introductions.withdrawn(event.worker, event.pair))
        if event.worker.state is WorkerState.RETIRING:
            self._introduce(event.worker)

    def _on_agent_failed(self, event: e.AgentFailed) -> None:
        if self.agents.failed(event.agent, self._now):
            self._agent_lost(event.agent, event.message, event.detail, event.usage)

    def _on_agent_blocked(self, event: e.AgentBlocked) -> None:
        if self.agents.blocked(event.agent, self._now):
            self._agent_lost(event.agent, event.reason)

    def _on_agent_died(self, event: e.AgentDied) -> None:
        if trouble := self.agents.died(event.agent, event.how, self._now):
            self._agent_lost(event.agent, trouble)

    def _agent_lost(self, agent: Agent, message: str, detail: str = "", usage: bool = False) -> None:
        """One that was wanted is not there: its generation has failed, or another one takes its place."""
        if agent.generation is self.candidate:
            told = usage or detail  # by the agent itself, in a sentence that names it
            self._generation_failed(message if told else f"{agent}: {message}", detail, usage)
        elif agent.generation.state is not GenerationState.FAILED:  # in which case somebody else was faster
            again = agent.generation is self.current and self.state in _WITH_AGENT
            self.agents.lost(agent, message, detail, self._now if again else None)

    # Generations

    def _begin_generation(self, preparation: Preparation, policy: Policy) -> None:
        size = self.size if policy.workers == self.policy.workers else policy.workers  # who scaled by hand meant it
        number, self._next_generation = self._next_generation, self._next_generation + 1
        generation = Generation(number, policy, size, preparation.began, preparation.tickets, preparation.began_at)
        self.generations[generation.number] = self.candidate = generation
        self._do(e.PrepareGeneration(generation))
        for slot in range(generation.size):
            self._add_worker(generation, slot, Cause.GENERATION)
        if self.current is not None:
            text = f"reload: generation {generation.number} starts, {counted(generation.size, 'worker')}"
            self._say(logging.INFO, "reload_started", text, generation=number, workers=size, by=self.reload_by)
            self._do(e.Announce("status", f"reloading: generation {generation.number} starts"))

    def _add_worker(self, generation: Generation, slot: int, cause: Cause) -> None:
        worker = Worker(self._next_number(), generation, slot, cause)
        self.workers[worker.id] = worker

    def _start_failed(self, worker: Worker, message: str, detail: str = "", usage: bool = False) -> None:
        """A worker did not come to serve: its generation has failed, or its slot stays empty for a while."""
        if worker.generation is self.candidate:
            self._generation_failed(f"{worker}: {message}" if not usage else message, detail, usage)
        else:  # of the current generation, in a state that fills slots: all others have been told to quit by now
            if detail:
                message = f"{message}\n{detail}"
            self._slot_failed(worker, message)

    def _generation_failed(self, message: str, detail: str = "", usage: bool = False) -> None:
        generation = self.candidate
        assert generation is not None
        self.candidate = None
        generation.become(GenerationState.FAILED)
        if self.current is None:
            self._outcome = e.Exit(2 if usage else 1, message, detail, again=self.reload_wanted is not None)
            self._become(ServerState.STOPPING)
            self._leave_all(generation)
            self._refuse_reloads()
            return
        self._leave_all(generation)
        took = self._now - generation.began_at
        self._reload_refused(message, detail, generation.tickets, took, generation=generation.number)

    def _reload_refused(self, message: str, detail: str, tickets: list[int], took: float, **about: Any) -> None:
        """All stays as it was, and those who asked are told why."""
        assert self.current is not None
        self.failed_reloads += 1
        self.last_failure = message
        stays = f"generation {self.current.number} serves on"
        if self.lame_duck is not None:
            stays += ", still in lame duck"
        text = f"reload refused, {stays}: {message}"
        self._say(logging.ERROR, "reload_refused", text, detail, reason=message, seconds=round(took, 3), **about)
        self._do(e.Announce("ready", f"reload refused; {stays}"))
        for ticket in tickets:
            self._do(e.Answer(ticket, False, text, detail))

    def _switch(self, generation: Generation) -> None:
        """Every worker of `generation` accepts: it is current from here on, and the older ones retire."""
        old, self.current, self.candidate = self.current, generation, None
        generation.become(GenerationState.CURRENT)
        self.slots = {}
        if generation.policy.workers != self.policy.workers and self._scaled <= generation.began:
            self.size = generation.size  # who scaled while it started meant it
        self.policy = generation.policy
        self.agents.restart = Slot()
        self._do(e.Adopt(generation))
        took = self._now - generation.began_at
        if old is not None:
            old.become(GenerationState.RETIRING)
            self.reloads += 1
            self.last_failure = ""
            if self.lame_duck and not self.lame_duck.by_control and self.lame_duck.began < generation.began:
                self._end_lame_duck(f"generation {generation.number} serves")
            self._retire_all(old, "reload")
        else:
            self._become(ServerState.RUNNING)
        text = f"generation {generation.number} serves, {counted(generation.size, 'worker')}, after {took:.2f} s"
        event = "serving" if old is None else "reload_done"
        about: dict[str, Any] = {"generation": generation.number, "workers": generation.size, "seconds": round(took, 3)}
        self._say(logging.INFO, event, text, **about)
        self._do(e.Announce("ready", text))
        for ticket in generation.tickets:
            self._do(e.Answer(ticket, True, text))
        for worker in self._in(WorkerState.RETIRING):
            self._introduce(worker)

    # Slots of the current generation

    def _take_over_slot(self, worker: Worker) -> None:
        """A replacement serves: the one that it replaces retires, and those that retire already may hand over to it."""
        slot = self.slots.setdefault(worker.slot, Slot())
        slot.trouble = ""
        text = f"{worker} serves (cause: {worker.cause.value})"
        self._say_of(worker, logging.INFO, "worker_serving", text, cause=worker.cause.value)
        for other in self._in(WorkerState.SERVING):
            if other is not worker and other.generation is self.current and other.slot == worker.slot:
                self._retire(other, "recycle")
        for retiring in self._in(WorkerState.RETIRING):
            self._introduce(retiring)

    def _slot_failed(self, worker: Worker, trouble: str) -> None:
        slot = self.slots.setdefault(worker.slot, Slot())
        served = self._now - worker.serving_since if worker.serving_since < math.inf else None
        delay = slot.failed(self._now, served, trouble.partition("\n")[0])
        when = f"in {delay:g} s" if delay else "now"
        text = f"slot {worker.slot} lost {worker}; a replacement starts {when}: {trouble}"
        self._say_of(worker, logging.ERROR, "slot_failed", text, reason=slot.trouble, delay=delay)

    def _filling(self, slot: int) -> list[Worker]:
        """The workers of the current generation that fill `slot` and do not want to be replaced."""
        return [
            worker
            for worker in self.workers.values()
            if worker.generation is self.current and worker.slot == slot and worker.state in UP and not worker.recycling
        ]

    def _empty_slots(self) -> list[Slot]:
        return [self.slots.setdefault(number, Slot()) for number in range(self.size) if not self._filling(number)]

    # Reconciling what is with what should be

    def _check_deadlines(self) -> None:
        if self._now >= self._deadline:
            if self.state is ServerState.DRAINING:
                self._shut_out()
            else:
                self._let_all_retire()
        for worker in [w for w in self.workers.values() if self._now >= w.deadline]:
            worker.deadline = math.inf
            if worker.state is WorkerState.STARTING:
                allowed = worker.generation.policy.startup_timeout
                timeout = f"it was not ready after {allowed:g} s (--startup-timeout)"
                self._kill(worker, timeout)
                worker.become(WorkerState.ENDING)
                self._start_failed(worker, timeout)
            elif worker.state is WorkerState.SWITCHING:
                timeout = f"it did not begin to serve within {SWITCH_TIMEOUT:g} s"
                self._kill(worker, timeout)
                worker.become(WorkerState.ENDING)
                self._start_failed(worker, timeout)
            else:
                hammer = "the hammer: " if worker.state is WorkerState.RETIRING else ""
                self._kill(worker, f"{hammer}it had not ended in time")
        for agent, why in self.agents.overdue(self._now):
            self._agent_lost(agent, why)

    def _reconcile(self) -> None:
        for generation in [g for g in self.generations.values() if not self._alive(g)]:
            if generation.state in (GenerationState.RETIRING, GenerationState.FAILED):
                generation.become(GenerationState.GONE)
                del self.generations[generation.number]
                self._do(e.ForgetGeneration(generation))
                self._say_ended(generation)
        if self.state in _RELOADABLE | _SERVING:
            self._begin_wanted_reload()
            self._tend_agents()
            self._fill_slots()
            self._start_pending()
            self._advance_candidate()
            self._serve_replacements()
        if self.state is ServerState.AWAITING:
            self._await_one_that_serves()
        if self.state in _LEAVING:
            self._tend_agents()
        if self.state in _LEAVING and not self.workers and not self.agents.all:
            self._become(ServerState.STOPPED)
            self._do(e.ClosePorts())
            self._say(logging.DEBUG, "stopped", f"all has ended; lost: {counted(self.lost, 'request')}", lost=self.lost)
            self._do(self._outcome)

    def _alive(self, generation: Generation) -> bool:
        processes: list[Process] = [*self.workers.values(), *self.agents.all.values()]
        return any(each.generation is generation for each in processes)

    def _tend_agents(self) -> None:
        """One agent while the server serves; it is there before the first workers, and leaves after the last."""
        if self.state in _LEAVING and not self.workers:
            if self.state is ServerState.ENDING:
                self.agents.hurry(self._now)
            self.agents.tend(self._now, None, None, again=False)
        elif self.state in _BEFORE_RUNNING | _WITH_AGENT:
            holder, preparing = self._lease()
            self.agents.tend(self._now, holder, preparing, again=holder is self.current)
        else:
            self.agents.hold(self._now)

    def _lease(self) -> tuple[Generation | None, Generation | None]:
        """Whose agent is to be active, and whose is to be prepared for that."""
        candidate = self.candidate
        if self.current is None or (candidate is not None and candidate.state is not GenerationState.STARTING):
            return candidate, None
        return self.current, candidate

    def _begin_wanted_reload(self) -> None:
        if self.reload_wanted is None or self.current is None:
            return
        if self.candidate is not None or self.preparation is not None:
            return
        if len(self.generations) >= self.policy.max_generations:
            if not self._waiting_said:
                self._waiting_said = True
                oldest = min(self.generations)
                text = (
                    f"reload waits: {len(self.generations)} generations are alive (--max-generations); "
                    f"generation {oldest} still finishes its requests"
                )
                self._say(logging.WARNING, "reload_waiting", text, oldest=oldest)
                self._do(e.Announce("status", text))
            return
        self._waiting_said = False
        self.preparation = Preparation(self.reload_wanted, self._count, self._now)
        self.reload_wanted = None
        self._do(e.Announce("reloading", "reloading"), e.PrepareReload(self.reload_by))

    def _fill_slots(self) -> None:
        """Give every slot that should have one a worker of the current generation; retire those of other slots."""
        if self.current is None or self.state not in _FILLING:
            return
        for number in range(self.size):
            slot = self.slots.setdefault(number, Slot())
            if not self._filling(number) and slot.not_before <= self._now:
                replaced = [w for w in self.workers.values() if w.generation is self.current and w.slot == number]
                if any(w.blocked and w.state in UP for w in replaced):
                    cause = Cause.BLOCKED
                elif any(w.recycling and w.state in UP for w in replaced):
                    cause = Cause.RECYCLE
                elif slot.failures:
                    cause = Cause.CRASH
                else:
                    cause = Cause.SCALE
                self._add_worker(self.current, number, cause)
        for worker in list(self.workers.values()):
            if worker.generation is self.current and worker.slot >= self.size and worker.state in UP:
                self._leave(worker, "scale")

    def _start_pending(self) -> None:
        """Start as many at a time as the policy says; a new generation that hangs holds up no replacement."""
        pending = self._in(WorkerState.PENDING)
        if self.state in _BEFORE_RUNNING and self.candidate and not self.agents.has_passed(self.candidate):
            return  # the agent comes first
        pending.sort(key=lambda w: (w.generation is self.candidate, w.slot))
        for worker in pending:
            starting = self._in(WorkerState.STARTING)
            if worker.generation is self.current:
                starting = [w for w in starting if w.generation is self.current]
            policy = worker.generation.policy
            if len(starting) < policy.start_concurrency:
                worker.become(WorkerState.STARTING, self._now + policy.startup_timeout)
                self._do(e.Start(worker))
                cause = worker.cause.value
                self._say_of(worker, logging.DEBUG, "worker_started", f"{worker} starts ({cause})", cause=cause)

    def _advance_candidate(self) -> None:
        generation = self.candidate
        if generation is None:
            return
        workers = [w for w in self.workers.values() if w.generation is generation]
        if generation.state is GenerationState.STARTING and all(w.state is WorkerState.READY for w in workers):
            if self.state is ServerState.RUNNING and self.agents.is_prepared(generation):
                self._pass_lease(generation)
            elif self.state is ServerState.STARTING:
                self._become(ServerState.OPENING)
                self._do(e.OpenPorts())
        elif generation.state is GenerationState.SWITCHING and all(w.state is WorkerState.SERVING for w in workers):
            self._switch(generation)
            self._reconcile()
        elif generation.state is GenerationState.PASSING and self.agents.has_passed(generation):
            self._begin_switch(generation)

    def _on_ports_opened(self, event: e.PortsOpened) -> None:
        if self.candidate is None or self.state is not ServerState.OPENING:
            return
        if event.trouble:
            self._generation_failed(event.trouble, usage=True)
        else:
            self._begin_switch(self.candidate)

    def _pass_lease(self, generation: Generation) -> None:
        """All is ready: the agent that is active finishes, the new one is entered, then the workers switch."""
        if self.agents.all:
            generation.become(GenerationState.PASSING)
            self._reconcile()
        else:
            self._begin_switch(generation)

    def _begin_switch(self, generation: Generation) -> None:
        generation.become(GenerationState.SWITCHING)
        for worker in self._in(WorkerState.READY):
            self._tell_serve(worker)

    def _serve_replacements(self) -> None:
        for worker in self._in(WorkerState.READY):
            if worker.generation is self.current:
                self._tell_serve(worker)

    def _tell_serve(self, worker: Worker) -> None:
        worker.become(WorkerState.SWITCHING, self._now + SWITCH_TIMEOUT)
        self._do(e.TellServe(worker))

    # Leaving

    def _leave(self, worker: Worker, reason: str) -> None:
        """Let go of a worker in whatever state it is, losing nothing that it may have accepted."""
        if worker.state is WorkerState.PENDING:
            worker.become(WorkerState.GONE)
            del self.workers[worker.id]
        elif worker.state in (WorkerState.STARTING, WorkerState.READY):
            self._end(worker)
        elif worker.state in (WorkerState.SWITCHING, WorkerState.SERVING):
            self._retire(worker, reason)

    def _leave_all(self, generation: Generation) -> None:
        for worker in [w for w in self.workers.values() if w.generation is generation]:
            self._leave(worker, "failed")

    def _retire_all(self, generation: Generation, reason: str) -> None:
        for worker in [w for w in self.workers.values() if w.generation is generation]:
            self._leave(worker, reason)

    def _retire(self, worker: Worker, reason: str) -> None:
        policy = worker.generation.policy
        allowed = policy.graceful_timeout + policy.shutdown_timeout + HAMMER_MARGIN
        worker.reason = reason
        worker.become(WorkerState.RETIRING, self._now + allowed)
        stopping = reason == "stop"
        if not stopping:
            self._introduce(worker)
        self._do(e.TellRetire(worker, reason, drain_queue=stopping))
        self._say_of(worker, logging.DEBUG, "worker_retiring", f"{worker} retires ({reason})", reason=reason)

    def _introduce(self, sender: Worker) -> None:
        """Connect a retiring worker with the workers that serve now, unless it retires for a stop."""
        serving = [w for w in self._in(WorkerState.SERVING) if w.generation is self.current]
        receivers = [w for w in serving if w is not sender and w.slot < self.size]
        receivers.sort(key=lambda w: (w.slot - sender.slot) % max(1, self.size))
        for receiver in receivers[:MAX_RECEIVERS]:
            if sender.reason != "stop" and not self.introductions.introduced(sender, receiver):
                self._do(e.Introduce(sender, receiver, self.introductions.introduce(sender, receiver)))

    def _cut_short(self, worker: Worker) -> None:
        """Let go of a worker at once, whatever it has in its hands."""
        if worker.state is WorkerState.PENDING:
            self._leave(worker, "stop")
        elif worker.state is not WorkerState.ENDING:
            self._end(worker)

    def _end(self, worker: Worker) -> None:
        worker.become(WorkerState.ENDING, self._now + END_TIMEOUT)
        self._do(e.TellQuit(worker))

    def _kill(self, worker: Worker, why: str) -> None:
        worker.stuck = why
        self._do(e.Kill(worker, why))

    # Stopping

    def _refuse_reloads(self) -> None:
        """No reload goes on or begins any more."""
        tickets = list(self.reload_wanted or [])
        self.reload_wanted = None
        if self.preparation is not None:
            preparation, self.preparation = self.preparation, None
            tickets += preparation.tickets
        if self.candidate is not None:
            generation, self.candidate = self.candidate, None
            tickets += generation.tickets
            generation.become(GenerationState.FAILED)
            self._leave_all(generation)
        for ticket in tickets:
            self._do(e.Answer(ticket, False, "reload given up: the server is stopping"))

    def _shut_out(self) -> None:
        self._become(ServerState.SHUTTING_OUT)
        self._deadline = math.inf
        self._refuse_reloads()
        self._do(e.Announce("stopping", "stopping"))
        allowed = self.policy.graceful_timeout
        text = f"stopping: requests in progress have {allowed:g} s"
        self._say(logging.INFO, "stopping", text, delay=0.0, timeout=allowed)
        self._do(e.ShutOut())

    def _on_shut_out(self, event: e.ShutOutDone) -> None:
        if self.state is ServerState.SHUTTING_OUT:
            self._become(ServerState.AWAITING)
            self._deadline = self._now + self.policy.startup_timeout + SWITCH_TIMEOUT

    def _await_one_that_serves(self) -> None:
        """Let the workers retire as soon as one serves that can accept what the kernel has queued, or none will."""
        if not self._in(WorkerState.SERVING):
            self._fill_slots()
        self._start_pending()
        self._serve_replacements()
        coming = UP - {WorkerState.SERVING}
        if self._in(WorkerState.SERVING) or not any(w.generation is self.current for w in self._in(*coming)):
            self._let_all_retire()

    def _let_all_retire(self) -> None:
        self._become(ServerState.STOPPING)
        self._deadline = math.inf
        for worker in list(self.workers.values()):
            if worker.state is WorkerState.RETIRING:
                worker.reason = "stop"  # its receivers leave as well
                self._do(e.TellRetire(worker, "stop", drain_queue=False))
            self._leave(worker, "stop")

    def _leave_start(self, text: str) -> None:
        self._become(ServerState.STOPPING)
        self._say(logging.INFO, "stopping", text)
        self._refuse_reloads()

    # Small things

    def _next_number(self) -> int:
        """The number of one more process, worker or agent."""
        number, self._next_worker = self._next_worker, self._next_worker + 1
        return number

    def _become(self, state: ServerState) -> None:
        self.state = advance(SERVER_TRANSITIONS, self.state, state)

    def _in(self, *states: WorkerState) -> list[Worker]:
        return [worker for worker in self.workers.values() if worker.state in states]

    def _do(self, *actions: e.Action) -> None:
        self._actions += actions

    def _say(self, level: int, event: str, text: str, detail: str = "", **about: Any) -> None:
        self._do(e.Say(level, event, text, detail, about))

    def _say_of(self, worker: Worker, level: int, event: str, text: str, **about: Any) -> None:
        """`worker` in the record is the number of the process in its listener's life; the shell adds the PID."""
        who = {"worker": worker.id, "generation": worker.generation.number, "slot": worker.slot}
        self._do(e.Say(level, event, text, "", who | about))

    def _say_ended(self, generation: Generation) -> None:
        cut, passed = generation.cut, generation.handed_over
        text = f"generation {generation.number} has ended: {counted(passed, 'connection')} handed over, "
        about: dict[str, Any] = {"generation": generation.number, "handed_over": passed, "cut": cut}
        self._say(logging.DEBUG, "generation_ended", text + f"{counted(cut, 'request')} cut", **about)
