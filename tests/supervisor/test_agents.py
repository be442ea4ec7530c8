"""The supervisor's decisions about agents, as tables of events and actions."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable
from typing import Any

import pytest

from serve_asgi.supervisor import actions
from serve_asgi.supervisor import events as e
from serve_asgi.supervisor.agents import LEASE_GRACE
from serve_asgi.supervisor.lifecycles import (
    AGENT_TRANSITIONS,
    END_TIMEOUT,
    Agent,
    AgentState,
    Cause,
    GenerationState,
    IllegalTransition,
    ServerState,
    WorkerState,
    advance,
)
from tests.supervisor.shell import Shell

STARTUP, ALLOWED = 60.0, 10.0


class AgentShell(Shell):
    """A shell whose servers have agents."""

    def __init__(self, **policy: Any) -> None:
        super().__init__(**{"agent": True, "agent_timeout": ALLOWED} | policy)

    def agents(self, *states: AgentState) -> list[Agent]:
        return [a for a in self.supervisor.agents.all.values() if not states or a.state in states]

    def one(self, *states: AgentState) -> Agent:
        (agent,) = self.agents(*states)
        return agent

    def prepare(self) -> None:
        for agent in self.agents(AgentState.STARTING):
            self.send(e.AgentPrepared(agent))

    def enter(self) -> None:
        for agent in self.agents(AgentState.ENTERING):
            self.send(e.AgentEntered(agent))

    def finish(self) -> None:
        for agent in self.agents(AgentState.FINISHING):
            self.send(e.AgentFinished(agent))
            self.end(agent)

    def end(self, agent: Agent, how: str = "exit status 0") -> list[actions.Action]:
        return self.send(e.AgentDied(agent, how))

    def up(self) -> AgentShell:
        self.prepare()
        self.enter()
        super().up()
        return self

    def to_passing(self) -> tuple[Agent, Agent]:
        """A reload, up to the moment when the old agent has been told to finish."""
        (old,) = self.agents()
        self.send(e.ReloadAsked(ticket=1))
        self.make_ready()
        self.prepare()
        assert old.state is AgentState.FINISHING
        (new,) = [agent for agent in self.agents() if agent is not old]
        return old, new

    def said(self, event: str) -> list[actions.LogEvent]:
        return [say for say in self.of(actions.LogEvent) if say.event == event]


# The start and the stop


def test_the_agent_is_entered_before_the_first_worker_starts() -> None:
    shell = AgentShell()
    assert [type(action) for action in shell.done if not isinstance(action, actions.LogEvent)] == [
        actions.PrepareGeneration,
        actions.StartAgent,
    ]
    agent = shell.one(AgentState.STARTING)
    shell.send(e.AgentPrepared(agent))
    assert shell.of(actions.TellEnter) == [actions.TellEnter(agent)]
    assert not shell.of(actions.StartWorker)
    shell.send(e.AgentEntered(agent))
    assert len(shell.of(actions.StartWorker)) == 2
    shell.make_ready()
    shell.send(e.PortsOpened())
    shell.accept()
    assert shell.supervisor.state is ServerState.RUNNING


def prepared(agent: Agent) -> e.Event:
    return e.AgentPrepared(agent)


def entered(agent: Agent) -> e.Event:
    return e.AgentEntered(agent)


def failed(agent: Agent) -> e.Event:
    return e.AgentFailed(agent, "ImportError", "Traceback of the new code")


def misnamed(agent: Agent) -> e.Event:
    return e.AgentFailed(agent, "there is no module agnet", usage=True)


def died(agent: Agent) -> e.Event:
    return e.AgentDied(agent, "signal SIGKILL")


@pytest.mark.parametrize(
    ("events", "status"),
    [
        ([failed], 1),
        ([misnamed], 2),
        ([died], 1),
        ([prepared, failed], 1),
        ([prepared, died], 1),
        ([prepared, entered, failed], 1),
        ([prepared, entered, died], 1),
    ],
)
def test_an_agent_that_fails_in_the_first_start_ends_the_server(
    events: list[Callable[[Agent], e.Event]], status: int
) -> None:
    shell = AgentShell()
    agent = shell.one()
    for event in events:
        shell.send(event(agent))
    shell.reap()
    for left in shell.agents():
        shell.end(left)
    (end,) = shell.of(actions.Exit)
    assert end.status == status
    assert not shell.of(actions.OpenPorts)


def test_the_workers_leave_before_the_agent() -> None:
    shell = AgentShell().up()
    agent = shell.one()
    shell.send(e.StopAsked())
    shell.send(e.ShutOutDone())
    assert shell.of(actions.TellRetire)
    assert agent.state is AgentState.ACTIVE
    shell.reap()
    assert shell.of(actions.TellFinish) == [actions.TellFinish(agent, "stop", ALLOWED)]
    assert not shell.of(actions.Exit)
    shell.finish()
    assert shell.of(actions.Exit) == [actions.Exit(0)]


def test_an_agent_that_hangs_in_a_stop_is_killed() -> None:
    shell = AgentShell().up()
    agent = shell.one()
    shell.send(e.StopAsked())
    shell.send(e.ShutOutDone())
    shell.reap()
    shell.now += ALLOWED
    shell.send(e.Wakeup())
    assert [kill.worker for kill in shell.of(actions.Kill)] == [agent]
    assert not shell.of(actions.Exit)
    shell.end(agent, "signal SIGKILL")
    assert shell.of(actions.Exit) == [actions.Exit(0)]


def test_a_quick_stop_hurries_the_agent_too_and_the_next_kills_it() -> None:
    shell = AgentShell().up()
    agent = shell.one()
    shell.send(e.QuickStopAsked())
    assert not shell.of(actions.TellFinish)
    shell.reap()
    # it is told the time that it has: it shares it out between its handlers and its own end
    assert shell.of(actions.TellFinish) == [actions.TellFinish(agent, "stop", END_TIMEOUT)]
    assert shell.supervisor.next_deadline() <= shell.now + END_TIMEOUT
    shell.send(e.QuickStopAsked())
    assert [kill.worker for kill in shell.of(actions.Kill)] == [agent]


def test_a_quick_stop_hurries_an_agent_that_finishes_already() -> None:
    shell = AgentShell().up()
    agent = shell.one()
    shell.send(e.StopAsked())
    shell.send(e.ShutOutDone())
    shell.reap()
    shell.send(e.QuickStopAsked())
    shell.now += END_TIMEOUT
    shell.send(e.Wakeup())
    assert [(kill.worker, kill.why) for kill in shell.of(actions.Kill)] == [
        (agent, f"it had not finished after {END_TIMEOUT:g} s (quick stop)")
    ]


@pytest.mark.parametrize("so_far", [0, 1, 2])
def test_a_stop_amid_the_first_start_ends_an_agent_that_has_not_begun_at_once(so_far: int) -> None:
    shell = AgentShell()
    agent = shell.one()
    for event in [prepared, entered][:so_far]:
        shell.send(event(agent))
    shell.send(e.StopAsked())
    shell.reap()
    assert agent.state is [AgentState.ENDING, AgentState.FINISHING, AgentState.FINISHING][so_far]
    shell.end(agent)
    assert shell.of(actions.Exit) == [actions.Exit(0)]


# The reload


def test_the_lease_passes_when_all_is_ready_and_the_old_agent_has_been_reaped() -> None:
    shell = AgentShell().up()
    old = shell.one()
    shell.send(e.ReloadAsked(ticket=1))
    new = shell.one(AgentState.STARTING)
    shell.send(e.AgentPrepared(new))
    assert old.state is AgentState.ACTIVE  # the workers are not ready
    shell.make_ready()
    assert shell.of(actions.TellFinish) == [actions.TellFinish(old, "reload", ALLOWED)]
    assert not shell.of(actions.TellServe)
    shell.send(e.AgentFinished(old))
    assert not shell.of(actions.TellEnter)  # what it says does not count
    shell.end(old)
    assert shell.of(actions.TellEnter) == [actions.TellEnter(new)]
    assert not shell.of(actions.TellServe)
    shell.send(e.AgentEntered(new))
    assert len(shell.of(actions.TellServe)) == 2
    assert not shell.of(actions.TellRetire)
    shell.accept()
    assert [answer.ok for answer in shell.of(actions.AnswerReload)] == [True]
    assert len(shell.of(actions.TellRetire)) == 2


def test_workers_that_are_ready_wait_for_the_agent_to_be_prepared() -> None:
    shell = AgentShell().up()
    shell.send(e.ReloadAsked())
    shell.make_ready()
    assert not shell.of(actions.TellFinish)
    assert not shell.of(actions.TellServe)
    shell.prepare()
    assert shell.of(actions.TellFinish)


@pytest.mark.parametrize("event", [failed, misnamed, died])
def test_an_agent_that_cannot_be_prepared_fails_the_reload_and_the_old_one_never_knew(
    event: Callable[[Agent], e.Event],
) -> None:
    shell = AgentShell().up()
    old = shell.one()
    shell.send(e.ReloadAsked(ticket=1))
    shell.send(event(shell.one(AgentState.STARTING)))
    assert [answer.ok for answer in shell.of(actions.AnswerReload)] == [False]
    assert old.state is AgentState.ACTIVE
    assert not shell.of(actions.TellFinish)
    shell.reap(WorkerState.ENDING)
    for ending in shell.agents(AgentState.ENDING):
        shell.end(ending)
    assert set(shell.supervisor.generations) == {1}


@pytest.mark.parametrize("event", [failed, died])
def test_if_entering_fails_the_old_codes_agent_is_started_again(event: Callable[[Agent], e.Event]) -> None:
    shell = AgentShell().up()
    old, new = shell.to_passing()
    shell.end(old)
    shell.send(event(new))
    (answer,) = shell.of(actions.AnswerReload)
    assert not answer.ok
    again = shell.one(AgentState.STARTING)
    assert (again.generation, again.cause) == (old.generation, Cause.RETURN)
    shell.send(e.AgentPrepared(again))
    if new in shell.agents():  # it has the lease until it has been reaped
        assert again.state is AgentState.PREPARED
        shell.end(new)
    assert shell.of(actions.TellEnter)[-1] == actions.TellEnter(again)
    assert not shell.of(actions.TellServe)
    shell.enter()
    assert shell.one() is again
    shell.reap(WorkerState.ENDING)
    assert set(shell.supervisor.generations) == {1}


@pytest.mark.parametrize("state", [WorkerState.READY, WorkerState.SWITCHING, WorkerState.SERVING])
def test_if_a_worker_fails_the_switch_the_agents_change_back(state: WorkerState) -> None:
    shell = AgentShell().up()
    old, new = shell.to_passing()
    if state is not WorkerState.READY:
        shell.end(old)
        shell.enter()
    if state is WorkerState.SERVING:
        shell.send(e.WorkerAccepts(shell.workers(WorkerState.SWITCHING)[0]))
    victim = next(w for w in shell.workers(state) if w.generation is new.generation)
    shell.send(e.WorkerDied(victim, "signal SIGKILL"))
    assert not shell.of(actions.AnswerReload)[0].ok
    if state is WorkerState.READY:  # the new one had not begun
        assert new.state is AgentState.ENDING
        shell.end(old)
    else:
        assert new.state is AgentState.FINISHING
        shell.end(new)
    shell.prepare()
    again = shell.one(AgentState.ENTERING)
    assert again.generation is old.generation
    shell.enter()
    assert again.state is AgentState.ACTIVE


def test_an_old_agent_that_does_not_finish_is_killed_and_only_then_the_lease_passes() -> None:
    shell = AgentShell().up()
    old, new = shell.to_passing()
    shell.now += ALLOWED
    shell.send(e.Wakeup())
    assert [kill.worker for kill in shell.of(actions.Kill)] == [old]
    assert shell.agents(AgentState.PREPARED) == [new]
    shell.end(old, "signal SIGKILL")
    assert shell.agents(AgentState.ENTERING) == [new]


@pytest.mark.parametrize("entering", [False, True])
def test_a_new_agent_that_hangs_is_killed_and_the_reload_has_failed(entering: bool) -> None:
    shell = AgentShell().up()
    if entering:
        old, new = shell.to_passing()
        shell.end(old)
        allowed = STARTUP + ALLOWED
    else:
        shell.send(e.ReloadAsked(ticket=1))
        new, allowed = shell.one(AgentState.STARTING), STARTUP
        shell.make_ready()
    shell.now += allowed
    shell.send(e.Wakeup())
    assert new in [kill.worker for kill in shell.of(actions.Kill)]
    assert not shell.of(actions.AnswerReload)[0].ok
    assert new.state is (AgentState.KILLED if entering else AgentState.ENDING)


def test_an_agent_that_hangs_as_long_as_a_worker_of_its_generation_is_killed_without_a_word() -> None:
    shell = AgentShell().up()
    shell.send(e.ReloadAsked(ticket=1))
    new = shell.one(AgentState.STARTING)
    shell.now += STARTUP
    shell.send(e.Wakeup())
    assert new in [kill.worker for kill in shell.of(actions.Kill)]
    assert [answer.ok for answer in shell.of(actions.AnswerReload)] == [False]
    assert not shell.said("agent_failed")  # the active one is not lost, and the server does not stop


def test_the_agent_may_come_with_a_reload() -> None:
    shell = AgentShell(agent=False).up()
    shell.policy = dataclasses.replace(shell.policy, agent=True)
    shell.send(e.ReloadAsked(ticket=1))
    shell.make_ready()
    assert not shell.of(actions.TellServe)
    shell.prepare()
    shell.enter()
    shell.accept()
    assert shell.of(actions.AnswerReload)[0].ok
    assert shell.one().state is AgentState.ACTIVE


def test_the_agent_may_go_with_a_reload() -> None:
    shell = AgentShell().up()
    (old,) = shell.agents()
    shell.policy = dataclasses.replace(shell.policy, agent=False)
    shell.send(e.ReloadAsked(ticket=1))
    shell.make_ready()
    assert old.state is AgentState.FINISHING
    assert not shell.of(actions.TellServe)
    shell.finish()
    shell.accept()
    assert shell.of(actions.AnswerReload)[0].ok
    assert not shell.agents()


def test_a_reload_without_agents_switches_at_once() -> None:
    shell = AgentShell(agent=False).up()
    shell.send(e.ReloadAsked(ticket=1))
    shell.make_ready()
    assert len(shell.of(actions.TellServe)) == 2
    assert [g.state for g in shell.supervisor.generations.values()][-1] is GenerationState.SWITCHING


@pytest.mark.parametrize("entered", [False, True])
def test_a_stop_while_the_lease_passes_starts_no_agent_any_more(entered: bool) -> None:
    shell = AgentShell().up()
    old, new = shell.to_passing()
    if entered:
        shell.end(old)
        shell.enter()
    shell.forget()
    shell.send(e.StopAsked())
    assert not shell.of(actions.AnswerReload)[0].ok
    assert not shell.of(actions.StartAgent)
    assert new.state is (AgentState.ACTIVE if entered else AgentState.ENDING)
    shell.send(e.ShutOutDone())
    shell.reap()
    assert new.state is (AgentState.FINISHING if entered else AgentState.ENDING)
    for agent in shell.agents():
        shell.end(agent)
    assert shell.of(actions.Exit) == [actions.Exit(0)]


def test_a_stop_with_a_delay_has_an_agent_meanwhile() -> None:
    shell = AgentShell(drain_delay=60.0).up()
    old, new = shell.to_passing()
    shell.end(old)
    shell.enter()
    shell.send(e.StopAsked())
    assert new.state is AgentState.FINISHING
    shell.end(new)
    shell.prepare()
    assert shell.one().generation is old.generation
    assert shell.one().state is AgentState.ENTERING


# An agent that is lost


@pytest.mark.parametrize("event", [failed, died])
def test_a_lost_agent_is_started_again_with_back_off_and_the_workers_serve_on(
    event: Callable[[Agent], e.Event],
) -> None:
    shell = AgentShell().up()
    delays = []
    for _ in range(6):
        agent = shell.one()
        shell.send(event(agent), after=1.0)
        if agent in shell.agents():
            shell.end(agent)
        before = shell.now
        while not shell.agents(AgentState.STARTING):
            shell.tick_at_deadline()
        delays.append(shell.now - before)
        assert shell.one().cause is Cause.CRASH
        shell.prepare()
        shell.enter()
    assert delays[0] == 0.0
    assert delays == sorted(delays)
    assert delays[-1] > 5.0
    assert all(w.state is WorkerState.SERVING for w in shell.workers())
    assert len(shell.said("agent_failed")) == 6
    assert shell.said("agent_activated")[-1].about["vacant"] == delays[-1]


def test_one_that_fails_has_the_lease_until_it_has_been_reaped() -> None:
    shell = AgentShell().up()
    lost = shell.one()
    shell.send(failed(lost))
    again = shell.one(AgentState.STARTING)
    shell.send(e.AgentPrepared(again))
    assert shell.agents(AgentState.PREPARED) == [again]
    shell.now += END_TIMEOUT
    shell.send(e.Wakeup())
    assert [kill.worker for kill in shell.of(actions.Kill)] == [lost]
    shell.end(lost)
    assert shell.agents(AgentState.ENTERING) == [again]


def test_one_that_cannot_start_again_is_tried_again_later() -> None:
    shell = AgentShell().up()
    shell.end(shell.one(), "signal SIGSEGV")
    shell.send(failed(shell.one()))
    for agent in shell.agents():
        shell.end(agent)
    assert not shell.agents()
    assert math.isfinite(shell.supervisor.next_deadline())
    assert shell.supervisor.agents.restart.trouble
    shell.tick_at_deadline()
    shell.prepare()
    shell.enter()
    assert not shell.supervisor.agents.restart.trouble


def test_a_reload_mends_a_lost_agent() -> None:
    shell = AgentShell().up()
    shell.end(shell.one(), "signal SIGSEGV")
    shell.send(failed(shell.one()))
    for agent in shell.agents():
        shell.end(agent)
    shell.send(e.ReloadAsked(ticket=1))
    shell.prepare()
    shell.make_ready()
    shell.enter()
    shell.accept()
    assert shell.of(actions.AnswerReload)[0].ok
    assert shell.one().state is AgentState.ACTIVE


def test_an_agent_that_starts_again_gives_way_to_that_of_the_reload() -> None:
    shell = AgentShell().up()
    shell.send(e.ReloadAsked())
    new = shell.one(AgentState.STARTING)
    shell.end(shell.one(AgentState.ACTIVE), "signal SIGSEGV")
    again = next(agent for agent in shell.agents(AgentState.STARTING) if agent is not new)
    shell.make_ready()
    shell.send(e.AgentPrepared(new))
    assert again.state is AgentState.ENDING
    assert new.state is AgentState.ENTERING


def test_a_lost_agent_is_not_started_again_once_the_workers_leave() -> None:
    shell = AgentShell().up()
    shell.send(e.StopAsked())
    shell.forget()
    shell.send(failed(shell.one()))
    assert not shell.of(actions.StartAgent)
    assert shell.said("agent_failed")[0].detail
    shell.send(e.ShutOutDone())
    shell.reap()
    shell.end(shell.one())
    assert shell.of(actions.Exit) == [actions.Exit(0)]


def test_one_whose_loop_is_blocked_makes_way_for_another() -> None:
    shell = AgentShell().up()
    blocked = shell.one()
    shell.send(e.AgentBlocked(blocked, "its event loop has been blocked for 60 s"))
    assert shell.of(actions.TellFinish) == [actions.TellFinish(blocked, "blocked", ALLOWED)]
    assert len(shell.agents(AgentState.STARTING)) == 1
    shell.now += ALLOWED
    shell.send(e.Wakeup())
    assert [kill.worker for kill in shell.of(actions.Kill)] == [blocked]
    assert shell.send(e.AgentBlocked(blocked, "once more")) == []


def test_one_that_returns_stays() -> None:
    shell = AgentShell().up()
    agent = shell.one()
    shell.send(e.AgentReturned(agent))
    assert agent.state is AgentState.RETURNED
    (said,) = shell.said("agent_returned")
    assert said.level == logging.WARNING
    shell.send(e.AgentReturned(agent))
    assert len(shell.said("agent_returned")) == 1
    assert len(shell.agents(AgentState.STARTING)) == 0
    shell.send(e.AgentBlocked(agent, "its event loop has been blocked for 60 s"))
    assert shell.of(actions.TellFinish)[-1].agent is agent


def lost(shell: AgentShell) -> None:
    """The agent dies, and its process is reaped."""
    shell.end(shell.one(), "signal SIGKILL")


def returned(shell: AgentShell) -> None:
    shell.send(e.AgentReturned(shell.one()))


@pytest.mark.parametrize(
    ("restart", "event", "again"),
    [
        ("never", lost, False),
        ("never", returned, False),
        ("on-failure", lost, True),
        ("on-failure", returned, False),
        ("always", lost, True),
        ("always", returned, True),
    ],
)
def test_the_option_says_what_has_it_started_again(
    restart: str, event: Callable[[AgentShell], None], again: bool
) -> None:
    shell = AgentShell(agent_restart=restart).up()
    event(shell)
    assert shell.supervisor.agents.missing
    assert shell.of(actions.SetAgentMissing) == [actions.SetAgentMissing(True)]
    assert bool(shell.agents(AgentState.STARTING)) is again
    assert shell.supervisor.wants_agent
    assert shell.supervisor.has_agent is (again or event is returned)  # messages to it wait, or fail at once
    if not again:
        shell.send(e.Wakeup(), after=3600.0)
        assert not shell.agents(AgentState.STARTING)
        assert shell.supervisor.next_deadline() == math.inf
    if event is lost:
        assert ("--agent-restart never" in shell.said("agent_failed")[0].text) is not again
    shell.send(e.ReloadAsked(ticket=1))
    shell.make_ready()
    shell.prepare()
    shell.finish()
    shell.enter()
    shell.accept()
    assert shell.one(AgentState.ACTIVE).generation is shell.supervisor.current
    assert not shell.supervisor.agents.missing


def test_one_that_returns_is_replaced_with_back_off_and_never_by_a_second_at_once() -> None:
    shell = AgentShell(agent_restart="always").up()
    delays = []
    for _ in range(5):
        agent = shell.one(AgentState.ACTIVE)
        shell.send(e.AgentReturned(agent), after=1.0)
        before = shell.now
        while not shell.agents(AgentState.STARTING):
            assert agent.state is AgentState.RETURNED  # its messages and schedules go on meanwhile
            shell.tick_at_deadline()
        delays.append(shell.now - before)
        assert shell.said("agent_returned")[-1].about == {
            "worker": agent.id,
            "generation": 1,
            "delay": delays[-1],
        }
        assert shell.of(actions.TellFinish)[-1] == actions.TellFinish(agent, "returned", ALLOWED)
        assert shell.one(AgentState.STARTING).cause is Cause.RETURN
        shell.prepare()
        assert not shell.agents(AgentState.ENTERING)
        assert shell.supervisor.agents.missing
        shell.finish()
        shell.enter()
        assert not shell.supervisor.agents.missing
    assert delays == [0.0, 1.0, 2.0, 4.0, 8.0]


@pytest.mark.parametrize("restart", ["on-failure", "always"])
def test_one_that_returns_before_the_server_has_started_does_not_delay_the_start(restart: str) -> None:
    shell = AgentShell(agent_restart=restart)
    shell.prepare()
    shell.enter()
    agent = shell.one()
    shell.send(e.AgentReturned(agent))
    shell.make_ready()
    shell.send(e.PortsOpened())
    shell.accept()
    assert shell.supervisor.state is ServerState.RUNNING
    assert shell.supervisor.agents.missing
    assert (agent.state is AgentState.FINISHING) is (restart == "always")


def test_one_that_waits_for_another_servers_says_so() -> None:
    shell = AgentShell()
    shell.prepare()
    agent = shell.one(AgentState.ENTERING)
    shell.send(e.AgentWaits(agent, 4711))
    assert "4711" in shell.said("agent_delayed")[0].text
    assert shell.supervisor.next_deadline() == shell.now + STARTUP + ALLOWED
    shell.tick_at_deadline()
    shell.end(agent)
    (end,) = shell.of(actions.Exit)
    assert "PID 4711, has not ended" in end.message


def test_logs_are_opened_again() -> None:
    shell = AgentShell().up()
    shell.send(e.ReopenAsked())
    assert shell.one() in [tell.worker for tell in shell.of(actions.TellReopen)]


@pytest.mark.parametrize("late", [prepared, entered, failed, misnamed])
@pytest.mark.parametrize("state", [AgentState.FINISHING, AgentState.KILLED, AgentState.ENDING])
def test_what_comes_too_late_changes_nothing(late: Callable[[Agent], e.Event], state: AgentState) -> None:
    shell = AgentShell().up()
    if state is AgentState.ENDING:
        shell.send(e.ReloadAsked())
        agent = shell.one(AgentState.STARTING)
        shell.send(failed(agent))
    else:
        agent, _ = shell.to_passing()
    if state is AgentState.KILLED:
        shell.now += ALLOWED
        shell.send(e.Wakeup())
    assert agent.state is state
    assert shell.send(late(agent)) == []
    assert agent.state is state


def test_the_table_refuses_what_it_does_not_hold() -> None:
    with pytest.raises(IllegalTransition):
        advance(AGENT_TRANSITIONS, AgentState.FINISHING, AgentState.ACTIVE)


# What comes where it changes nothing


def test_log_files_are_reopened_by_agents_that_are_not_ending() -> None:
    shell = AgentShell().up()
    old, new = shell.to_passing()
    shell.send(e.StopAsked())
    assert (old.state, new.state) == (AgentState.FINISHING, AgentState.ENDING)
    shell.forget()
    shell.send(e.ReopenAsked())
    assert [told.worker for told in shell.of(actions.TellReopen) if isinstance(told.worker, Agent)] == [old]


def test_an_agent_that_is_active_waits_for_nobody() -> None:
    shell = AgentShell().up()
    agent = shell.one(AgentState.ACTIVE)
    assert shell.send(e.AgentWaits(agent, 7)) == []
    assert (agent.state, agent.in_the_way) == (AgentState.ACTIVE, "")


def test_an_agent_may_be_killed_again() -> None:
    """It has been told to end, or been killed, and a third request to stop finds it still there."""
    shell = AgentShell().up()
    old, new = shell.to_passing()
    for _ in range(4):
        shell.send(e.QuickStopAsked())
    assert (old.state, new.state) == (AgentState.KILLED, AgentState.ENDING)
    killed = [kill.worker for kill in shell.of(actions.Kill) if isinstance(kill.worker, Agent)]
    assert killed.count(old) == killed.count(new) > 1


class TestFleet:
    """`--agent-scope cluster`: the agent is prepared on every server, and active where the lease is."""

    def started(self) -> AgentShell:
        shell = AgentShell(agent_in_fleet=True)
        shell.prepare()
        Shell.up(shell)
        return shell

    def test_a_server_without_the_lease_starts_and_reloads_with_a_prepared_agent(self) -> None:
        shell = self.started()
        assert shell.supervisor.state is ServerState.RUNNING
        first = shell.one(AgentState.PREPARED)
        shell.send(e.ReloadAsked(ticket=1))
        shell.make_ready()
        shell.prepare()
        assert first.state is AgentState.ENDING
        shell.end(first)
        assert shell.one(AgentState.PREPARED) is not first

    def test_the_agent_enters_with_the_lease_and_its_token(self) -> None:
        shell = self.started()
        agent = shell.one(AgentState.PREPARED)
        told = shell.send(e.AgentLeaseChanged(7))
        assert actions.TellEnter(agent, 7) in told
        assert shell.supervisor.agents.could_be_active()
        shell.enter()
        assert agent.state is AgentState.ACTIVE

    def test_a_lost_lease_ends_the_agent_soon_and_prepares_another(self) -> None:
        shell = self.started()
        shell.send(e.AgentLeaseChanged(7))
        shell.enter()
        agent = shell.one(AgentState.ACTIVE)
        told = shell.send(e.AgentLeaseChanged(0))
        assert actions.TellFinish(agent, "lease lost", LEASE_GRACE) in told
        assert agent.deadline == shell.now + LEASE_GRACE
        shell.now = agent.deadline
        shell.send(e.Wakeup())
        assert agent.state is AgentState.KILLED
        shell.end(agent)
        (another,) = shell.agents(AgentState.STARTING)
        shell.prepare()
        assert another.state is AgentState.PREPARED
        shell.send(e.AgentLeaseChanged(9))
        assert shell.one(AgentState.ENTERING) is another

    def test_a_lease_that_is_lost_while_the_agent_finishes_leaves_it_less_time(self) -> None:
        shell = self.started()
        shell.send(e.AgentLeaseChanged(7))
        shell.enter()
        old, _ = shell.to_passing()
        assert old.deadline == shell.now + ALLOWED
        shell.send(e.AgentLeaseChanged(0))
        assert old.deadline == shell.now + LEASE_GRACE
        shell.end(old)
        assert shell.one(AgentState.PREPARED)
