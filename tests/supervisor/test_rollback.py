"""The generation that stands by, and the way back to it, as tables of events and actions."""

from __future__ import annotations

import json

import pytest

from serve_asgi.supervisor import actions
from serve_asgi.supervisor import events as e
from serve_asgi.supervisor.lifecycles import AgentState, GenerationState, ServerState, Worker, WorkerState
from serve_asgi.supervisor.re_exec_snapshot import at_rest, from_state, to_state
from serve_asgi.supervisor.rollback import PATIENCE
from serve_asgi.supervisor.starting import SWITCH_TIMEOUT
from tests.supervisor.shell import Shell, died
from tests.supervisor.test_agents import AgentShell

KEPT = 60.0


def make_ready(shell: Shell, *, can_stand_by: bool = True) -> None:
    while starting := shell.workers(WorkerState.STARTING):
        shell.send(e.WorkerReady(starting[0], can_stand_by))


def started(**policy: float) -> Shell:
    """The first generation serves, and would stand by after a reload."""
    shell = Shell(**{"keep_previous": KEPT, **policy})
    make_ready(shell)
    return shell.up()


def reload(shell: Shell, *, stand_by: bool = True) -> None:
    shell.send(e.ReloadAsked())
    make_ready(shell)
    shell.accept()
    if stand_by:
        for worker in shell.workers(WorkerState.STANDING_DOWN):
            shell.send(e.WorkerStandsBy(worker))


def states(shell: Shell) -> dict[int, GenerationState]:
    return {number: each.state for number, each in shell.supervisor.generations.items()}


def of(shell: Shell, generation: int, *wanted: WorkerState) -> list[Worker]:
    return [worker for worker in shell.workers(*wanted) if worker.generation.number == generation]


def answers(shell: Shell) -> list[tuple[int, bool]]:
    return [(each.ticket, each.ok) for each in shell.of(actions.AnswerReload)]


def said(shell: Shell) -> list[str]:
    return [action.event for action in shell.of(actions.LogEvent)]


def test_the_old_generation_stands_by_after_the_switch_and_serves_again_in_a_roll_back() -> None:
    shell = started()
    old = shell.workers()
    reload(shell, stand_by=False)
    assert {action.worker for action in shell.of(actions.TellStandBy)} == set(old)
    assert not shell.of(actions.TellRetire)
    new = of(shell, 2)
    assert {(i.sender, i.receiver) for i in shell.of(actions.ConnectPair)} == {(o, n) for o in old for n in new}
    for worker in old:
        shell.send(e.WorkerStandsBy(worker))
    assert states(shell) == {1: GenerationState.STANDBY, 2: GenerationState.CURRENT}
    shell.forget()
    shell.send(e.RollbackAsked(ticket=7))
    assert {action.worker for action in shell.of(actions.TellServe)} == set(old)
    assert not shell.of(actions.StartWorker)
    shell.send(e.WorkerAccepts(old[0]))
    assert not shell.of(actions.TellRetire)
    shell.send(e.WorkerAccepts(old[1]))
    assert {(action.worker, action.reason) for action in shell.of(actions.TellRetire)} == {
        (each, "rollback") for each in new
    }
    assert {(i.sender, i.receiver) for i in shell.of(actions.ConnectPair)} == {(n, o) for n in new for o in old}
    assert [each.generation.number for each in shell.of(actions.AdoptGeneration)] == [1]
    assert answers(shell) == [(7, True)]
    assert states(shell) == {1: GenerationState.CURRENT, 2: GenerationState.RETIRING}
    shell.reap(WorkerState.RETIRING)
    assert set(shell.supervisor.generations) == {1}
    reload(shell)  # and it can be superseded, and come back, again
    assert states(shell) == {1: GenerationState.STANDBY, 3: GenerationState.CURRENT}
    shell.send(e.RollbackAsked())
    shell.accept()
    assert states(shell)[1] is GenerationState.CURRENT


def test_a_worker_that_is_still_finishing_requests_is_called_back() -> None:
    shell = started()
    old = shell.workers()
    reload(shell, stand_by=False)
    shell.send(e.WorkerStandsBy(old[0]))
    shell.send(e.RollbackAsked())
    assert {action.worker for action in shell.of(actions.TellServe)} >= set(old)
    shell.send(e.WorkerStandsBy(old[1]))  # said before it heard of it
    shell.accept()
    assert all(worker.state is WorkerState.SERVING for worker in old)


def test_pairs_are_made_anew_after_a_standby() -> None:
    shell = started(workers=1)
    reload(shell)
    (old,) = of(shell, 1)
    shell.send(e.RollbackAsked())
    shell.accept()
    (new,) = of(shell, 2)
    (pair,) = [each.pair for each in shell.of(actions.ConnectPair) if each.sender is new]
    shell.forget()
    shell.send(e.PairOrphaned(old, pair))
    assert not shell.of(actions.TellVerdict)  # its sender lives, and may withdraw or die
    shell.send(died(new))
    assert [each.keep for each in shell.of(actions.TellVerdict)] == [True]
    reload(shell, stand_by=False)
    assert [(each.sender, each.receiver) for each in shell.of(actions.ConnectPair)] == [(old, of(shell, 3)[0])]


def test_without_the_option_and_for_workers_of_an_earlier_version_it_retires() -> None:
    for shell, capable in ((started(keep_previous=0.0), True), (Shell(keep_previous=KEPT).up(), False)):
        old = shell.workers()
        shell.send(e.ReloadAsked())
        make_ready(shell, can_stand_by=capable)
        shell.accept()
        assert {action.worker for action in shell.of(actions.TellRetire)} == set(old)
        shell.prepares = False
        shell.forget()
        shell.send(e.RollbackAsked(ticket=1))  # then the previous release is deployed again, if there is one
        assert shell.of(actions.PrepareReload) == [actions.PrepareReload("serve rollback", previous=True)]
        shell.send(e.ReloadPrepared(None, "there is none"))
        assert [(each.ok, each.text.partition(",")[0]) for each in shell.of(actions.AnswerReload)] == [
            (False, "roll-back refused")
        ]
        assert said(shell)[-1] == "rollback_refused"


def test_the_previous_release_is_deployed_again_by_a_reload() -> None:
    shell = started()
    reload(shell)
    shell.tick_at_deadline()
    shell.reap(WorkerState.RETIRING)
    shell.forget()
    shell.send(e.RollbackAsked(ticket=1))
    shell.send(e.RollbackAsked(ticket=2))  # somebody is impatient
    make_ready(shell)
    shell.accept()
    assert answers(shell) == [(1, True), (2, True)]
    assert "rollback_finished" in said(shell)
    assert states(shell) == {2: GenerationState.RETIRING, 3: GenerationState.CURRENT}, "what is bad does not stand by"
    assert shell.supervisor.requests.done == 1


def test_a_worker_that_is_to_be_replaced_does_not_stand_by() -> None:
    shell = started()
    worn, fresh = shell.workers()
    shell.send(e.WorkerWantsReplacement(worn, "it leaks"))
    reload(shell)
    assert worn.state is WorkerState.RETIRING
    assert fresh.state is WorkerState.STANDBY


def test_it_retires_when_its_time_is_over() -> None:
    shell = started()
    reload(shell)
    shell.forget()
    shell.send(e.Wakeup(), after=KEPT - 1.0)
    assert not shell.of(actions.TellRetire)
    shell.tick_at_deadline()
    assert {action.worker.generation.number for action in shell.of(actions.TellRetire)} == {1}
    assert states(shell)[1] is GenerationState.RETIRING
    assert "standby_ended" in said(shell)
    shell.reap(WorkerState.RETIRING)
    assert set(shell.supervisor.generations) == {2}


def test_one_generation_stands_by_the_older_one_retires() -> None:
    shell = started()
    reload(shell)
    reload(shell)
    assert states(shell) == {1: GenerationState.RETIRING, 2: GenerationState.STANDBY, 3: GenerationState.CURRENT}


def test_a_reload_that_needs_the_room_does_not_wait_for_it() -> None:
    shell = started(max_generations=2)
    reload(shell)
    shell.send(e.ReloadAsked())
    assert shell.supervisor.candidate is not None
    assert states(shell)[1] is GenerationState.RETIRING
    make_ready(shell)
    shell.accept()
    assert states(shell)[2] is GenerationState.STANDBY
    shell.send(e.ReloadAsked())  # the first one has not ended, and counts
    assert shell.supervisor.candidate is None
    shell.reap(WorkerState.RETIRING)
    assert shell.supervisor.candidate is not None


def test_a_reload_with_room_leaves_it_standing_by() -> None:
    shell = started()
    reload(shell)
    shell.send(e.ReloadAsked())
    assert states(shell)[1] is GenerationState.STANDBY
    shell.send(died(shell.workers(WorkerState.STARTING)[0]))
    assert states(shell)[1] is GenerationState.STANDBY
    shell.send(e.RollbackAsked())
    shell.accept()
    assert states(shell)[1] is GenerationState.CURRENT


@pytest.mark.parametrize("stage", ["preparing", "starting", "switching", "one accepts"])
def test_a_reload_that_is_under_way_is_what_a_roll_back_takes_back(stage: str) -> None:
    shell = started()
    reload(shell)
    serving = of(shell, 2)
    shell.prepares = stage != "preparing"
    shell.send(e.ReloadAsked(ticket=1))
    if stage in ("switching", "one accepts"):
        make_ready(shell)
    if stage == "one accepts":
        shell.send(e.WorkerAccepts(shell.workers(WorkerState.SWITCHING)[0]))
    shell.forget()
    shell.send(e.RollbackAsked(ticket=2))
    assert answers(shell) == [(1, False), (2, True)]
    assert shell.supervisor.current is not None
    assert shell.supervisor.current.number == 2
    assert all(worker.state is WorkerState.SERVING for worker in serving)
    assert states(shell)[1] is GenerationState.STANDBY
    if stage == "preparing":
        shell.send(e.ReloadPrepared(shell.policy))
        assert shell.supervisor.candidate is None
        assert at_rest(shell.supervisor)
    shell.reap(WorkerState.ENDING, WorkerState.RETIRING)
    shell.send(e.RollbackAsked(ticket=3))  # and the next one takes back the one before
    shell.accept()
    assert states(shell)[1] is GenerationState.CURRENT


def test_a_current_generation_that_is_bad_is_taken_back_whatever_reload_is_under_way() -> None:
    shell = started()
    reload(shell)
    shell.send(e.ReloadAsked(ticket=1))
    shell.send(e.RollbackAsked(by="--auto-rollback", reason="it fails", of=2))
    assert answers(shell) == [(1, False)]
    shell.accept()
    assert states(shell)[1] is GenerationState.CURRENT
    shell.send(e.RollbackAsked(by="--auto-rollback", reason="late", of=2))  # it is no longer the current one
    assert states(shell)[1] is GenerationState.CURRENT


def test_a_worker_that_died_meanwhile_is_replaced_after_the_switch() -> None:
    shell = started()
    reload(shell)
    lost, left = of(shell, 1)
    shell.send(died(lost))
    assert not [action for action in shell.of(actions.StartWorker) if action.worker.generation.number == 1]
    shell.send(e.RollbackAsked(ticket=1))
    shell.forget()
    shell.send(e.WorkerAccepts(left))
    assert answers(shell) == [(1, True)]
    (replacement,) = of(shell, 1, WorkerState.STARTING)
    assert replacement.slot == lost.slot


def test_one_that_dies_during_the_switch_back_holds_up_nothing() -> None:
    shell = started()
    reload(shell)
    first, second = of(shell, 1)
    shell.send(e.RollbackAsked(ticket=1))
    shell.send(died(first))
    shell.send(e.WorkerAccepts(second))
    assert answers(shell) == [(1, True)]
    assert {worker.slot for worker in of(shell, 1)} == {0, 1}


def test_one_that_is_late_holds_up_the_switch_for_a_moment_only() -> None:
    shell = started()
    reload(shell)
    quick, late = of(shell, 1)
    shell.send(e.RollbackAsked(ticket=1))
    shell.send(e.WorkerAccepts(quick))
    assert answers(shell) == []
    shell.send(e.Wakeup(), after=PATIENCE)
    assert answers(shell) == [(1, True)]
    assert late in shell.workers(WorkerState.SWITCHING)
    shell.send(e.WorkerAccepts(late))
    assert late in shell.workers(WorkerState.SERVING)
    assert len(of(shell, 1)) == 2
    shell.reap(WorkerState.RETIRING)
    assert set(shell.supervisor.generations) == {1}


def test_if_none_serves_again_the_current_one_serves_on() -> None:
    shell = started(workers=1)
    reload(shell)
    shell.send(e.RollbackAsked(ticket=1))
    shell.send(e.Wakeup(), after=SWITCH_TIMEOUT)
    assert answers(shell) == [(1, False)]
    assert shell.supervisor.current is not None
    assert shell.supervisor.current.number == 2
    assert of(shell, 2, WorkerState.SERVING)
    shell.reap(WorkerState.ENDING)
    assert states(shell) == {2: GenerationState.CURRENT}


def test_with_all_of_its_workers_dead_it_no_longer_stands_by() -> None:
    shell = started()
    reload(shell)
    for worker in of(shell, 1):
        shell.send(died(worker))
    assert states(shell) == {2: GenerationState.CURRENT}
    shell.send(e.RollbackAsked(ticket=1))
    assert shell.of(actions.PrepareReload)[-1].previous


def test_a_second_request_gets_the_outcome_of_the_first_and_a_reload_waits_for_it() -> None:
    shell = started()
    reload(shell)
    shell.send(e.RollbackAsked(ticket=1))
    shell.send(e.RollbackAsked(ticket=2))
    shell.send(e.ReloadAsked(ticket=3))
    assert len(shell.supervisor.generations) == 2
    shell.accept()
    assert answers(shell) == [(1, True), (2, True)]
    assert shell.supervisor.candidate is not None
    make_ready(shell)
    shell.accept()
    assert answers(shell)[2:] == [(3, True)]


@pytest.mark.parametrize("moment", ["standby", "returning"])
def test_a_stop_ends_it(moment: str) -> None:
    shell = started()
    reload(shell)
    if moment == "returning":
        shell.send(e.RollbackAsked(ticket=1))
    shell.send(e.StopAsked())
    assert {worker.state for worker in of(shell, 1)} == {WorkerState.RETIRING}
    assert answers(shell) == ([(1, False)] if moment == "returning" else [])
    shell.send(e.ShutOutDone())
    assert not [each for each in shell.of(actions.TellRetire) if each.worker in of(shell, 1) and each.accept_queued]
    shell.reap(WorkerState.RETIRING)
    assert shell.supervisor.state is ServerState.STOPPED


def test_a_quick_stop_ends_it_too() -> None:
    shell = started()
    reload(shell)
    shell.send(e.QuickStopAsked())
    assert {each.worker.generation.number for each in shell.of(actions.TellQuit)} == {1, 2}


def test_workers_added_or_removed_meanwhile_are_so_after_the_roll_back() -> None:
    for size in (1, 3):
        shell = started()
        reload(shell)
        shell.send(e.ScaleAsked(to=size))
        make_ready(shell)
        shell.accept()
        shell.send(e.RollbackAsked())
        shell.accept()
        wanted = of(shell, 1, WorkerState.SERVING, WorkerState.STARTING)
        assert {worker.slot for worker in wanted} == set(range(size))


def test_the_size_of_the_old_configuration_comes_back_with_it() -> None:
    shell = started()
    shell.policy = Shell(workers=4, keep_previous=KEPT).policy
    reload(shell)
    make_ready(shell)
    assert shell.supervisor.size == 4
    shell.send(e.RollbackAsked())
    shell.accept()
    assert shell.supervisor.size == 2


def test_a_drain_ends_with_a_roll_back_that_began_after_it() -> None:
    shell = started()
    reload(shell)
    shell.send(e.DrainAsked(on=True))
    shell.send(e.RollbackAsked())
    shell.accept()
    assert shell.supervisor.drain.on is None


def test_the_next_program_of_the_listener_knows_what_stands_by() -> None:
    shell = started()
    reload(shell)
    assert at_rest(shell.supervisor)
    replaced = from_state(json.loads(json.dumps(to_state(shell.supervisor))))
    assert to_state(replaced) == to_state(shell.supervisor)
    assert replaced.next_deadline() == shell.supervisor.next_deadline() < shell.now + KEPT + 1
    shell.send(e.RollbackAsked())
    assert not at_rest(shell.supervisor)
    decided = replaced.handle(e.RollbackAsked(), shell.now)
    assert len([each for each in decided if isinstance(each, actions.TellServe)]) == 2


def test_the_agent_follows_after_the_switch_and_is_never_two() -> None:
    shell = AgentShell(keep_previous=KEPT)
    shell.prepare()
    shell.enter()
    make_ready(shell)
    shell.up()
    shell.send(e.ReloadAsked())
    make_ready(shell)
    shell.prepare()
    shell.finish()
    shell.enter()
    shell.accept()
    (agent,) = shell.supervisor.agents.all.values()
    assert (agent.generation.number, agent.state) == (2, AgentState.ACTIVE)
    shell.send(e.RollbackAsked())
    assert shell.agents(AgentState.ACTIVE) == [agent]  # the workers come first
    shell.accept()
    assert shell.agents(AgentState.FINISHING) == [agent]
    shell.prepare()
    (own,) = [each for each in shell.supervisor.agents.all.values() if each.generation.number == 1]
    assert shell.agents(AgentState.PREPARED) == [own]
    shell.finish()
    assert shell.agents(AgentState.ENTERING) == [own]


def test_one_that_dies_when_it_serves_again_holds_up_nothing() -> None:
    shell = started()
    first, second = shell.workers()
    reload(shell)
    shell.send(e.RollbackAsked(ticket=7))
    assert shell.supervisor.next_deadline() <= shell.now + PATIENCE
    shell.send(e.WorkerAccepts(first))
    shell.send(died(first))
    shell.send(e.WorkerAccepts(second))
    assert states(shell)[1] is GenerationState.CURRENT
    assert answers(shell) == [(7, True)]


@pytest.mark.parametrize("ticket", [7, None], ids=["of an operator", "the server's own"])
def test_a_server_that_stops_takes_nothing_back(ticket: int | None) -> None:
    shell = started()
    reload(shell)
    shell.send(e.StopAsked())
    shell.send(e.RollbackAsked(ticket=ticket))
    assert answers(shell) == ([] if ticket is None else [(7, False)])
    assert {worker.state for worker in of(shell, 1)} == {WorkerState.RETIRING}


def test_only_the_current_generation_can_be_taken_back() -> None:
    shell = started()
    reload(shell)
    shell.send(e.RollbackAsked(ticket=7, of=1))
    assert answers(shell) == [(7, False)]
    assert states(shell) == {1: GenerationState.STANDBY, 2: GenerationState.CURRENT}


def test_a_roll_back_during_a_trial_takes_the_canary_back_and_what_waits_behind_it() -> None:
    shell = started(canary=True)
    shell.send(e.ReloadAsked(ticket=1))
    make_ready(shell)
    shell.accept()
    assert states(shell)[2] is GenerationState.CANARY
    shell.send(e.RollbackAsked(ticket=7))
    assert answers(shell) == [(1, False), (7, True)]
    assert "canary_withdrawn" in said(shell)


def test_a_reload_that_waits_for_another_is_given_up_with_it() -> None:
    shell = started()
    shell.send(e.ReloadAsked(ticket=1))
    shell.send(e.ReloadAsked(ticket=2))
    shell.send(e.RollbackAsked(ticket=7))
    assert sorted(answers(shell)) == [(1, False), (2, False), (7, True)]


def test_who_could_not_stand_by_is_not_told_to_serve_again() -> None:
    shell = Shell(keep_previous=KEPT)
    first, second = shell.workers()
    shell.send(e.WorkerReady(first, can_stand_by=True))
    shell.send(e.WorkerReady(second, can_stand_by=False))
    shell.up()
    reload(shell)
    assert second.state is WorkerState.RETIRING
    shell.forget()
    shell.send(e.RollbackAsked())
    assert shell.of(actions.TellServe) == [actions.TellServe(first)]
