"""The supervisor under random histories: every event at every moment, and the laws that must hold after each one.

The machine plays shell and processes: it keeps what it was told to do, lets workers and agents do anything that a
process can (also nothing at all), lets time pass, and at last stops the server, which must end with nobody's help.
"""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any, ClassVar

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from serve_asgi.supervisor import actions
from serve_asgi.supervisor import events as e
from serve_asgi.supervisor.canary_verdict import TrafficSample
from serve_asgi.supervisor.lifecycles import (
    HANDING_OVER,
    LEASED,
    ON_TRIAL,
    STANDING,
    Agent,
    AgentState,
    AppProcess,
    Generation,
    GenerationState,
    Policy,
    ServerState,
    Worker,
    WorkerState,
)
from serve_asgi.supervisor.re_exec_snapshot import at_rest, from_state, to_state
from serve_asgi.supervisor.supervisor import Supervisor

RESTING = {WorkerState.PENDING, WorkerState.READY, WorkerState.SERVING, WorkerState.STANDBY}
"""States that a worker may be in for ever: nothing is waited for."""
WAITING = {AgentState.PREPARED, AgentState.ACTIVE, AgentState.RETURNED}
"""The same for an agent."""
HURRIED = {ServerState.STOPPING, ServerState.ENDING, ServerState.STOPPED}
PLENTY = 2000
"""Steps within which a stop must have come to its end."""
which = st.integers(0, 1_000)
shares = st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.9])


def replacement(supervisor: Supervisor) -> Supervisor:
    """What the program that takes this one's place begins with."""
    return from_state(json.loads(json.dumps(to_state(supervisor))))


def plain(value: Any) -> Any:
    """An action that can be compared with another supervisor's."""
    if isinstance(value, Worker):
        return f"worker {value.id}"
    if isinstance(value, Agent):
        return f"agent {value.id}"
    if isinstance(value, Generation):
        return f"generation {value.number}"
    if dataclasses.is_dataclass(value):
        parts = {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return (type(value).__name__, parts)
    return value


class SupervisedServer(RuleBasedStateMachine):
    """One server's life."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.count = 0
        self.supervisor: Supervisor
        self.started: set[Worker] = set()
        self.killed: set[AppProcess] = set()
        self.dead: set[Worker] = set()
        self.agents: set[Agent] = set()  # those that have been started and not reaped
        self.leased: Agent | None = None  # told to enter, and not reaped
        self.entered: set[Agent] = set()  # said that they are active
        self.opened = 0
        self.opening = self.shutting_out = self.preparing = False
        self.asked: set[int] = set()
        self.answers: dict[int, bool] = {}
        self.exits: list[actions.Exit] = []
        self.drain: tuple[bool, int] | None = None  # by control, the event's number
        self.pairs: dict[int, tuple[Worker, Worker]] = {}
        self.fates: dict[int, str] = {}
        self.questions: set[int] = set()
        self.verdicts: dict[int, bool] = {}
        self.closed: set[int] = set()  # pairs that a receiver has closed which lives on
        self.reloads_seen = 0
        self.stood_by: set[int] = set()  # generations that have ever stood by

    @initialize(
        workers=st.integers(1, 4),
        concurrency=st.integers(1, 3),
        generations=st.integers(2, 3),
        drain_delay=st.sampled_from([0.0, 5.0]),
        agent=st.sampled_from([False, True, True]),
        keep_previous=st.sampled_from([0.0, 20.0, 200.0]),
        up=st.integers(0, 4),
    )
    def start(
        self,
        workers: int,
        concurrency: int,
        generations: int,
        drain_delay: float,
        agent: bool,
        keep_previous: float,
        up: int,
    ) -> None:
        self.supervisor = Supervisor(
            Policy(
                workers=workers,
                start_concurrency=concurrency,
                max_generations=generations,
                startup_timeout=60.0,
                graceful_timeout=30.0,
                shutdown_timeout=10.0,
                drain_delay=drain_delay,
                agent=agent,
                keep_previous=keep_previous,
            )
        )
        self.perform(self.supervisor.start(self.now), {}, None)
        if up:  # a start is told to fail too often for much to come after it
            self.agents_go_on()
            self.all_become_ready()
            self.ports_open(1)
            self.all_accept()

    # The shell

    def send(self, event: e.Event) -> None:
        deadlines = {each: each.deadline for each in self.processes()}
        current = self.supervisor.current
        self.count += 1
        replaced = replacement(self.supervisor) if at_rest(self.supervisor) else None
        wanted = self.supervisor.handle(event, self.now)
        if replaced is not None:
            self.check_replacement(replaced, event, wanted)
        self.perform(wanted, deadlines, current, event)

    def check_replacement(self, replaced: Supervisor, event: e.Event, wanted: list[actions.Action]) -> None:
        """What a new program would have made of the event, had it taken this one's place just before."""
        values = {field.name: getattr(event, field.name) for field in dataclasses.fields(event)}  # type: ignore[arg-type]
        if isinstance(worker := values.get("worker"), Worker):
            values["worker"] = replaced.workers[worker.id]
        if isinstance(agent := values.get("agent"), Agent):
            values["agent"] = replaced.agents.all[agent.id]
        decided = replaced.handle(type(event)(**values), self.now)
        assert [plain(action) for action in decided] == [plain(action) for action in wanted]
        assert replaced.next_deadline() == self.supervisor.next_deadline()
        if at_rest(self.supervisor):
            assert to_state(replaced) == to_state(self.supervisor)

    def perform(
        self,
        wanted: list[actions.Action],
        deadlines: dict[AppProcess, float],
        before: Generation | None,
        event: e.Event | None = None,
    ) -> None:
        for action in wanted:
            for name in ("worker", "sender", "receiver"):
                worker = getattr(action, name, None)
                if isinstance(worker, Worker):
                    assert worker.state is not WorkerState.GONE, action
                    assert isinstance(action, actions.StartWorker) or worker in self.started, action
            self.perform_one(action, deadlines, event)
        current = self.supervisor.current
        if current is not before:
            self.check_switch(before, current)
        assert self.supervisor.next_deadline() > self.now, "the listener would spin"

    def perform_one(self, action: actions.Action, deadlines: dict[AppProcess, float], event: e.Event | None) -> None:
        supervisor = self.supervisor
        match action:
            case actions.StartWorker(worker):
                assert worker not in self.started
                if supervisor.current is None and worker.generation.policy.agent:
                    assert self.leased in self.entered, "the agent comes before the first workers"
                self.started.add(worker)
            case actions.StartAgent() | actions.TellEnter() | actions.TellFinish() | actions.TellServe():
                self.check_agents(action)
            case actions.TellQuit(Agent() as agent):
                assert agent in self.agents
                assert agent is not self.leased
            case actions.TellReopen(Agent() as agent):
                assert agent in self.agents
            case actions.Kill(Agent() as agent, why):
                assert agent in self.agents
                assert deadlines[agent] <= self.now or why == "asked twice to stop quickly"
                self.killed.add(agent)
            case actions.OpenPorts():
                self.opened += 1
                self.opening = True
            case actions.ShutOut():
                self.shutting_out = True
            case actions.PrepareReload():
                assert not self.preparing, "one reload is prepared at a time"
                self.preparing = True
            case actions.Exit():
                self.exits.append(action)
            case actions.AnswerReload(ticket, ok, _):
                assert ticket in self.asked
                assert ticket not in self.answers
                self.answers[ticket] = ok
            case actions.SetDrain(on):
                self.check_drain_word(on, event)
            case actions.TellLend(worker, 0.0):
                self.takes_back(worker)
            case actions.TellStandBy(worker, _):
                assert worker.can_stand_by
                assert worker.generation.state in (
                    GenerationState.STANDBY,
                    GenerationState.RETIRING,  # the next reload, which waited, needs the room
                )
            case actions.LogEvent(_, "standby_started", _, _, about):
                self.stood_by.add(about["generation"])
            case actions.TellRetire(worker, reason, _):
                self.check_retire(worker, reason)
            case actions.TellQuit(worker):
                assert (
                    supervisor.state in HURRIED
                    or worker.generation.state
                    in (GenerationState.FAILED, GenerationState.RETIRING, GenerationState.STANDBY)
                    or worker.slot >= supervisor.size
                )
            case actions.Kill(worker, _):
                twice = isinstance(event, (e.QuickStopAsked, e.StopAsked)) and supervisor.state is ServerState.ENDING
                assert twice or deadlines[worker] <= self.now
                self.killed.add(worker)
            case actions.ConnectPair(sender, receiver, pair):
                assert pair not in self.pairs
                assert receiver.state is WorkerState.SERVING
                if sender.state is WorkerState.SERVING:  # it lends connections to a canary
                    assert sender.generation is supervisor.current
                    assert receiver.generation is supervisor.candidate
                    assert receiver.generation.state is GenerationState.CANARY
                else:
                    assert sender.state in HANDING_OVER
                self.pairs[pair] = (sender, receiver)
                self.fates[pair] = ""
            case actions.TellVerdict(worker, pair, keep):
                assert pair in self.questions
                assert pair not in self.verdicts
                assert self.pairs[pair][1] is worker
                assert keep == (self.fates[pair] == "died")
                self.verdicts[pair] = keep

    def check_agents(self, action: actions.Action) -> None:
        """Never two agents between being told to enter and being reaped; and who serves has the right one."""
        supervisor = self.supervisor
        match action:
            case actions.StartAgent(agent):
                assert agent not in self.agents
                assert agent.generation in (supervisor.current, supervisor.candidate)
                assert supervisor.state not in HURRIED
                self.agents.add(agent)
            case actions.TellEnter(agent):
                assert self.leased is None
                assert agent in self.agents
                self.leased = agent
            case actions.TellFinish(agent, reason):
                assert agent is self.leased
                assert reason in ("reload", "blocked") or not supervisor.workers, "the agent leaves last"
            case actions.TellServe(worker) if worker.generation.state is GenerationState.CANARY:
                assert supervisor.current is not None, "there is nothing to compare it with"
                if supervisor.current.policy.agent and self.leased is not None:
                    assert self.leased.generation is not worker.generation, "the agent stays until the promotion"
            case actions.TellServe(worker) if worker.generation.state is GenerationState.RETURNING:
                assert worker.generation is supervisor.candidate
            case actions.TellServe(worker) if worker.generation is supervisor.candidate:
                if not worker.generation.policy.agent:
                    assert self.leased is None
                elif supervisor.current is not None or supervisor.state is ServerState.STARTING:
                    assert self.leased in self.entered
                    assert self.leased is not None
                    assert self.leased.generation is worker.generation

    def check_retire(self, worker: Worker, reason: str) -> None:
        """A worker retires for one of six reasons, and never because a reload has only begun."""
        supervisor = self.supervisor
        match reason:
            case "reload":  # of a generation that stands by those that are not in order retire
                assert worker.generation.state in (GenerationState.RETIRING, GenerationState.STANDBY)
                assert supervisor.current is not None
                assert supervisor.current.number > worker.generation.number
            case "rollback":  # of a canary, or of a generation that was current
                assert worker.generation.state in (GenerationState.RETIRING, GenerationState.FAILED)
                assert worker.generation is not supervisor.current
            case "recycle":
                assert any(
                    other.slot == worker.slot and other.generation is worker.generation
                    for other in supervisor.workers.values()
                    if other is not worker and other.state is WorkerState.SERVING
                )
            case "scale":
                assert worker.slot >= supervisor.size
            case "failed":
                assert worker.generation.state is GenerationState.FAILED
            case "stop":
                assert supervisor.state is ServerState.STOPPING
            case _:
                raise AssertionError(reason)

    def check_switch(self, before: Generation | None, current: Generation | None) -> None:
        """A generation becomes current as a whole; the drain of a signal before it ends, and no other."""
        assert current is not None
        workers = [w for w in self.supervisor.workers.values() if w.generation is current]
        serving = {w.slot for w in workers if w.state in (WorkerState.SERVING, WorkerState.RETIRING)}
        if current.is_rollback:  # missing ones are replaced afterwards
            assert serving
        else:
            assert serving == set(range(current.size))
        if before is not None and self.drain is not None and not self.drain[0]:
            assert self.drain[1] >= current.began, "the drain outlived the deploy that it was for"

    def check_drain_word(self, on: bool, event: e.Event | None) -> None:
        if on:
            assert self.drain is None
            draining = isinstance(event, e.StopAsked)
            assert draining or isinstance(event, e.DrainAsked)
            self.drain = (draining or getattr(event, "by_control", False), self.count)
        else:
            assert self.drain is not None
            if not isinstance(event, e.DrainAsked):
                assert not self.drain[0], "a drain of the control command ended by itself"
                current = self.supervisor.current
                assert current is not None
                assert current.began > self.drain[1]
                assert current.is_rollback or self.supervisor.requests.done == self.reloads_seen + 1
            self.drain = None

    def processes(self) -> list[AppProcess]:
        """All that the supervisor has not forgotten."""
        return [*self.supervisor.workers.values(), *self.supervisor.agents.all.values()]

    def agents_in(self, *states: AgentState) -> list[Agent]:
        """Those that have been started and not reaped, oldest first."""
        return sorted((a for a in self.agents if not states or a.state in states), key=lambda agent: agent.id)

    def workers(self, *states: WorkerState) -> list[Worker]:
        """Those that have been started and not reaped."""
        return [w for w in self.supervisor.workers.values() if w in self.started and (not states or w.state in states)]

    def pick(self, number: int, *states: WorkerState) -> Worker | None:
        found = self.workers(*states)
        return found[number % len(found)] if found else None

    # What people ask for

    @rule(ticket=st.booleans())
    def reload(self, ticket: bool) -> None:
        number = len(self.asked) if ticket else None
        if number is not None:
            self.asked.add(number)
        stopped = self.supervisor.state is ServerState.STOPPED
        self.send(e.ReloadAsked(number))
        if stopped and number is not None:
            self.asked.discard(number)  # the loop has ended; nobody handles this

    @rule(ticket=st.booleans(), accept=st.booleans(), of=st.sampled_from([None, None, 1, 2]))
    def roll_back(self, ticket: bool, accept: bool, of: int | None) -> None:
        number = len(self.asked) if ticket else None
        if number is not None:
            self.asked.add(number)
        stopped = self.supervisor.state is ServerState.STOPPED
        self.send(e.RollbackAsked(number, of=of))
        if stopped and number is not None:
            self.asked.discard(number)
        if accept:
            self.all_accept()

    @precondition(lambda self: self.supervisor.state is ServerState.RUNNING)
    @rule()
    def files_change(self) -> None:
        """As with --reload: what starts is given up for another."""
        self.send(e.ReloadAsked(by="a.py has changed", supersedes=True))

    @rule(on=st.booleans(), by_control=st.booleans())
    def ask_drain(self, on: bool, by_control: bool) -> None:
        held = self.drain
        stopped = self.supervisor.state is ServerState.STOPPED
        self.send(e.DrainAsked(on, by_control))
        if not stopped and on and held is not None:
            self.drain = (held[0] or by_control, self.count)

    @rule(by=st.sampled_from([-1, 1]))
    def scale(self, by: int) -> None:
        if self.supervisor.size < 6 or by < 0:
            self.send(e.ScaleAsked(by))

    @rule()
    def reopen(self) -> None:
        self.send(e.ReopenAsked())

    @precondition(lambda self: self.supervisor.state is ServerState.RUNNING)
    @rule(workers=st.integers(1, 4), agent=st.sampled_from([False, True, True, True]))
    def deploys(self, workers: int, agent: bool) -> None:
        """A reload that nothing comes between, if it is its turn."""
        self.reload(True)
        self.reload_is_prepared(workers, agent)
        self.all_become_ready()
        self.agents_go_on()
        self.all_accept()

    @precondition(lambda self: self.supervisor.state is ServerState.RUNNING)
    @rule(stage=st.integers(0, 2), agent=st.sampled_from([False, True, True]))
    def comes_to_passing(self, stage: int, agent: bool) -> None:
        """A reload up to the moment when the lease passes, or into it."""
        self.reload(True)
        self.reload_is_prepared(2, agent)
        self.all_become_ready()
        self.agents_are_prepared()
        if stage:
            self.agents_that_leave_end()
        if stage > 1:
            self.agents_enter()

    @precondition(lambda self: self.count > 40)
    @rule(quick=st.integers(0, 9))
    def stop(self, quick: int) -> None:
        held = self.drain
        before = self.supervisor.state
        self.send(e.StopAsked() if quick else e.QuickStopAsked())
        if before is ServerState.RUNNING and self.supervisor.state is ServerState.DRAINING and held is not None:
            self.drain = (True, self.count)

    @rule(
        workers=st.integers(0, 6), agent=st.booleans(), canary=st.booleans(), share=st.floats(0, 1), hold=st.booleans()
    )
    def reload_is_prepared(
        self, workers: int, agent: bool, canary: bool = False, share: float = 0.0, hold: bool = False
    ) -> None:
        if self.preparing:
            self.preparing = False
            policy = None
            if workers:
                policy = dataclasses.replace(
                    self.supervisor.processes.policy,
                    workers=workers,
                    agent=agent,
                    canary=canary,
                    canary_share=share,
                    canary_hold=hold,
                )
            self.send(e.ReloadPrepared(policy, "" if policy else "a hook says no"))

    @precondition(lambda self: self.supervisor.state is ServerState.RUNNING)
    @rule(agent=st.sampled_from([False, True, True]), share=shares, hold=st.booleans())
    def comes_to_a_trial(self, agent: bool, share: float, hold: bool) -> None:
        """A reload up to the moment when its canary serves."""
        self.reload(True)
        self.reload_is_prepared(4, agent, True, share, hold)
        self.all_become_ready()
        self.all_accept()

    @rule(requests=st.integers(0, 1000), errors=st.integers(0, 100), others=st.integers(0, 5))
    def canary_is_observed(self, requests: int, errors: int, others: int) -> None:
        self.send(
            e.CanaryObserved(TrafficSample(requests, min(errors, requests)), TrafficSample(10 * requests, others))
        )

    @rule(number=which, by_application=st.booleans())
    def canary_is_refused(self, number: int, by_application: bool) -> None:
        worker = self.pick(number) if by_application else None
        if not by_application or worker is not None:
            self.send(e.CanaryRefused("it fails", "Traceback", worker))

    @rule()
    def promotion_is_asked(self) -> None:
        stopped = self.supervisor.state is ServerState.STOPPED
        on_trial = self.supervisor.trials.trial is not None
        answers: list[bool] = []
        self.send(e.PromotionAsked("serve promote", lambda ok, _: answers.append(ok)))
        assert stopped or answers[:1] == [on_trial]

    # What processes do

    @rule(number=which)
    def becomes_ready(self, number: int) -> None:
        if worker := self.pick(number, WorkerState.STARTING) or self.pick(number):
            self.send(e.WorkerReady(worker, can_stand_by=number % 3 > 0))

    @rule()
    def all_become_ready(self) -> None:
        while starting := self.pick(0, WorkerState.STARTING):
            self.send(e.WorkerReady(starting, can_stand_by=True))

    @rule(number=which)
    def accepts(self, number: int) -> None:
        if worker := self.pick(number, WorkerState.SWITCHING) or self.pick(number):
            self.accept(worker)

    @rule()
    def all_accept(self) -> None:
        for worker in self.workers(WorkerState.SWITCHING):
            self.accept(worker)

    def accept(self, worker: Worker) -> None:
        if worker.state is WorkerState.SWITCHING:
            self.takes_back(worker)
        self.send(e.WorkerAccepts(worker))

    @rule(number=which)
    def stands_by(self, number: int) -> None:
        if worker := self.pick(number, WorkerState.STANDING_DOWN) or self.pick(number):
            self.stand_by(worker)

    @rule()
    def all_stand_by(self) -> None:
        for worker in self.workers(WorkerState.STANDING_DOWN):
            self.stand_by(worker)

    def stand_by(self, worker: Worker) -> None:
        if worker.state is WorkerState.STANDING_DOWN:
            self.takes_back(worker)
            for pair, (_, receiver) in self.pairs.items():
                if receiver is worker:  # it has closed it, whatever it had asked
                    self.closed.add(pair)
        self.send(e.WorkerStandsBy(worker))

    def takes_back(self, sender: Worker) -> None:
        for pair, (other, _) in self.pairs.items():
            if other is sender:
                self.fates[pair] = self.fates[pair] or "withdrawn"

    @rule(number=which, usage=st.booleans())
    def fails(self, number: int, usage: bool) -> None:
        if worker := self.pick(number, WorkerState.STARTING, WorkerState.READY) or self.pick(number):
            self.send(e.WorkerFailed(worker, "it cannot", "Traceback", usage))

    @rule(number=which, blocked=st.sampled_from([None, 5.0]))
    def is_worn_out(self, number: int, blocked: float | None, too_large: bool = False) -> None:
        if worker := self.pick(number, WorkerState.SERVING) or self.pick(number):
            self.send(e.WorkerWantsReplacement(worker, "worn", blocked, too_large))

    @rule(number=which, in_flight=st.integers(0, 2), state=st.sampled_from([None, *WorkerState]))
    def dies(self, number: int, in_flight: int, state: WorkerState | None) -> None:
        if worker := self.pick(number, *([state] if state else [])):
            self.die(worker, in_flight)

    @rule(number=which)
    def ends_in_order(self, number: int) -> None:
        if worker := self.pick(number, WorkerState.RETIRING, WorkerState.ENDING):
            self.send(e.WorkerFinished(worker, {"handed_over": 1, "cut": number % 2}))
            self.die(worker, 0)

    @rule()
    def all_that_leave_end(self) -> None:
        for worker in self.workers(WorkerState.RETIRING, WorkerState.ENDING):
            self.die(worker, 0)

    # What agents do

    @rule()
    def agents_are_prepared(self) -> None:
        for agent in self.agents_in(AgentState.STARTING):
            self.send(e.AgentPrepared(agent))

    @rule()
    def agents_that_leave_end(self) -> None:
        for agent in self.agents_in(AgentState.FINISHING, AgentState.KILLED, AgentState.ENDING):
            if agent.state is AgentState.FINISHING:
                self.send(e.AgentFinished(agent))
            self.agent_ends(agent)

    @rule()
    def agents_enter(self) -> None:
        for agent in self.agents_in(AgentState.ENTERING):
            self.entered.add(agent)
            self.send(e.AgentEntered(agent))

    @rule()
    def agents_go_on(self) -> None:
        """All that they are told to do, they do."""
        self.agents_are_prepared()
        self.agents_that_leave_end()
        self.agents_enter()

    @rule(
        number=which,
        what=st.sampled_from(["prepared", "waits", "entered", "returned", "failed", "misnamed", "blocked"]),
    )
    def an_agent_says(self, number: int, what: str) -> None:
        """Anything, at any moment, also out of turn."""
        if found := self.agents_in():
            agent = found[number % len(found)]
            if what == "entered" and agent.state is AgentState.ENTERING:
                self.entered.add(agent)
            events: dict[str, e.Event] = {
                "prepared": e.AgentPrepared(agent),
                "waits": e.AgentWaits(agent, number),
                "entered": e.AgentEntered(agent),
                "returned": e.AgentReturned(agent),
                "failed": e.AgentFailed(agent, "it cannot", "Traceback"),
                "blocked": e.AgentBlocked(agent, "its loop does not turn"),
                "misnamed": e.AgentFailed(agent, "there is none", usage=True),
            }
            self.send(events[what])

    @rule(number=which, state=st.sampled_from([None, *AgentState]))
    def an_agent_dies(self, number: int, state: AgentState | None) -> None:
        if found := self.agents_in(*([state] if state else [])):
            self.agent_ends(found[number % len(found)])

    def agent_ends(self, agent: Agent) -> None:
        self.agents.discard(agent)
        if agent is self.leased:
            self.leased = None
        self.send(e.AgentDied(agent, "signal SIGKILL"))

    def die(self, worker: Worker, in_flight: int) -> None:
        self.dead.add(worker)
        for pair, (sender, _) in self.pairs.items():
            if sender is worker and not self.fates[pair]:
                self.fates[pair] = "died"
        self.send(e.WorkerDied(worker, "signal SIGKILL", in_flight))

    @rule(number=which)
    def withdraws(self, number: int) -> None:
        mine = [pair for pair, (sender, _) in self.pairs.items() if sender not in self.dead]
        if mine:
            pair = mine[number % len(mine)]
            self.fates[pair] = self.fates[pair] or "withdrawn"
            self.send(e.PairWithdrawn(self.pairs[pair][0], pair))

    @rule(number=which)
    def asks_about_orphans(self, number: int) -> None:
        settled = self.questions | self.closed
        mine = [p for p, (_, r) in self.pairs.items() if r not in self.dead and p not in settled]
        if mine:
            pair = mine[number % len(mine)]
            self.questions.add(pair)
            self.send(e.PairOrphaned(self.pairs[pair][1], pair))

    # What the kernel and the clock do

    @rule(trouble=st.integers(0, 9))
    def ports_open(self, trouble: int) -> None:
        if self.opening:
            self.opening = False
            self.send(e.PortsOpened("" if trouble else "another program listens there"))

    @rule()
    def nobody_gets_in(self) -> None:
        if self.shutting_out:
            self.shutting_out = False
            self.send(e.ShutOutDone())

    @rule(seconds=st.sampled_from([0.0, 0.1, 1.0, 40.0]))
    def time_passes(self, seconds: float) -> None:
        """At most until the next deadline: the listener wakes up then."""
        self.now = min(self.now + seconds, self.supervisor.next_deadline())
        self.send(e.Wakeup())

    @rule(late=st.sampled_from([0.0, 0.001, 100.0]))
    def a_deadline_passes(self, late: float) -> None:
        """The listener may be late: it was stopped, or the machine slept."""
        deadline = self.supervisor.next_deadline()
        if deadline < math.inf:
            self.now = max(self.now, deadline) + late
            self.send(e.Wakeup())

    # The laws

    @invariant()
    def every_wait_has_an_end(self) -> None:
        for worker in getattr(self, "supervisor", Nobody).workers.values():
            assert worker.state in RESTING or worker.deadline < math.inf or worker in self.killed, worker.state
        for agent in self.agents:
            assert agent.state in WAITING or agent.deadline < math.inf or agent in self.killed, agent.state

    @invariant()
    def not_too_many_at_once(self) -> None:
        supervisor = getattr(self, "supervisor", None)
        if supervisor is None:
            return
        made_room = any(
            each.number in self.stood_by and each.state is GenerationState.RETIRING
            for each in supervisor.generations.values()
        )
        assert len(supervisor.generations) - made_room <= supervisor.processes.policy.max_generations
        assert [each.state for each in supervisor.generations.values()].count(GenerationState.STANDBY) <= 1
        assert {w.generation.number for w in supervisor.workers.values()} <= set(supervisor.generations)
        starting = [w.generation for w in self.workers(WorkerState.STARTING)]
        assert all(starting.count(each) <= supervisor.processes.policy.start_concurrency for each in starting)
        assert self.opened <= 1
        self.reloads_seen = supervisor.requests.done

    @invariant()
    def who_waits_is_answered(self) -> None:
        supervisor = getattr(self, "supervisor", None)
        if supervisor is None or (supervisor.candidate is not None and supervisor.state is not ServerState.STOPPED):
            return
        waits = supervisor.requests.wanted is not None or supervisor.requests.preparation is not None
        if not waits or supervisor.state is ServerState.STOPPED:
            assert self.asked == set(self.answers)

    @invariant()
    def every_question_gets_its_verdict(self) -> None:
        if getattr(self, "supervisor", None) is None or self.supervisor.state is ServerState.STOPPED:
            return
        for pair in self.questions - self.closed:
            if self.fates[pair] and self.pairs[pair][1] not in self.dead:
                assert pair in self.verdicts

    @invariant()
    def no_slot_is_forgotten(self) -> None:
        """While the server serves, also in the delay of a stop, each slot is filled or waits for its time."""
        supervisor = getattr(self, "supervisor", None)
        if supervisor is None or supervisor.state not in (ServerState.RUNNING, ServerState.DRAINING):
            return
        filled = {
            w.slot
            for w in supervisor.workers.values()
            if w.generation is supervisor.current
            and w.state not in (WorkerState.RETIRING, WorkerState.ENDING, WorkerState.GONE)
        }
        for slot in set(range(supervisor.size)) - filled:
            assert self.now < supervisor.slots.all[slot].not_before < math.inf
            assert supervisor.next_deadline() <= supervisor.slots.all[slot].not_before

    @invariant()
    def one_agent_has_the_lease(self) -> None:
        """Exactly the one that was told to enter; each generation has one agent that is not on its way out."""
        supervisor = getattr(self, "supervisor", None)
        if supervisor is None:
            return
        assert self.agents == set(supervisor.agents.all.values())
        assert [agent for agent in self.agents if agent.state in LEASED] == ([self.leased] if self.leased else [])
        standing = [agent.generation.number for agent in self.agents if agent.state in STANDING]
        assert len(standing) == len(set(standing))
        if supervisor.state is ServerState.STOPPED:
            assert not self.agents

    @invariant()
    def no_agent_is_forgotten(self) -> None:
        """While the server serves, the current generation has its agent, or waits for its time, or passes it on."""
        supervisor = getattr(self, "supervisor", None)
        if supervisor is None or supervisor.state not in (ServerState.RUNNING, ServerState.DRAINING):
            return
        current, candidate = supervisor.current, supervisor.candidate
        lets_be = ON_TRIAL | {GenerationState.STARTING, GenerationState.RETURNING}
        if candidate is not None and candidate.state not in lets_be:
            current = candidate
        own = [agent for agent in self.agents if agent.generation is current and agent.state in STANDING]
        assert len(own) <= 1
        if not current.policy.agent:
            assert not own
        elif not own:
            assert self.now < supervisor.agents.restart.not_before < math.inf
            assert supervisor.next_deadline() <= supervisor.agents.restart.not_before

    @invariant()
    def the_drain_is_as_modelled(self) -> None:
        supervisor = getattr(self, "supervisor", None)
        if supervisor is not None:
            assert (supervisor.drain.on is None) == (self.drain is None)

    def teardown(self) -> None:
        """TERM, and then nobody does anything: workers hang, and only deadlines and SIGKILL are left."""
        supervisor: Any = getattr(self, "supervisor", None)
        if supervisor is None:
            return
        if supervisor.state in (ServerState.STARTING, ServerState.OPENING, ServerState.RUNNING):
            self.stop(1)
        for _ in range(PLENTY):
            if supervisor.state is ServerState.STOPPED:
                break
            self.nobody_gets_in()
            for worker in [w for w in self.workers() if w in self.killed]:
                self.die(worker, 0)
            for agent in [a for a in self.agents_in() if a in self.killed]:
                self.agent_ends(agent)
            self.a_deadline_passes(0.0)
            self.every_wait_has_an_end()
        assert supervisor.state is ServerState.STOPPED
        assert len(self.exits) == 1
        assert self.asked == set(self.answers)
        assert self.started == self.dead


class Nobody:
    """A server before its start."""

    workers: ClassVar[dict[int, Worker]] = {}


SupervisedServer.TestCase.settings = settings(
    max_examples=150,
    stateful_step_count=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
TestRandomHistories = SupervisedServer.TestCase
