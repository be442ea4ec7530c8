"""Reloads as tables of events and actions: a generation becomes current as a whole, or not at all."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from serve_asgi.supervisor import actions
from serve_asgi.supervisor import events as e
from serve_asgi.supervisor.lifecycles import (
    SUPERSEDED_TIMEOUT,
    GenerationState,
    Worker,
    WorkerState,
)
from serve_asgi.supervisor.starting import SWITCH_TIMEOUT
from tests.supervisor.shell import POLICY, Shell, died, failed


def test_a_reload_retires_the_old_only_when_every_new_one_accepts() -> None:
    shell = Shell().up()
    old = shell.workers()
    shell.send(e.ReloadAsked(ticket=7))
    new = [w for w in shell.workers() if w not in old]
    assert len(new) == 2
    shell.make_ready()
    assert {action.worker for action in shell.of(actions.TellServe)} == set(new)
    shell.send(e.WorkerAccepts(new[0]))
    assert not shell.of(actions.TellRetire)
    shell.send(e.WorkerAccepts(new[1]))
    assert {action.worker for action in shell.of(actions.TellRetire)} == set(old)
    assert {(i.sender, i.receiver) for i in shell.of(actions.ConnectPair)} == {(o, n) for o in old for n in new}
    assert [(answer.ticket, answer.ok) for answer in shell.of(actions.AnswerReload)] == [(7, True)]
    shell.reap(WorkerState.RETIRING)
    assert set(shell.supervisor.generations) == {2}


@pytest.mark.parametrize(
    ("event", "state"),
    [
        (failed, WorkerState.STARTING),
        (died, WorkerState.STARTING),
        (died, WorkerState.READY),
        (died, WorkerState.SWITCHING),
        (died, WorkerState.SERVING),
    ],
)
def test_any_failure_before_the_switch_leaves_the_old_untouched(
    event: Callable[[Worker], e.Event], state: WorkerState
) -> None:
    shell = Shell().up()
    old = shell.workers()
    shell.send(e.ReloadAsked(ticket=1))
    new = [w for w in shell.workers() if w not in old]
    if state is WorkerState.READY:
        shell.send(e.WorkerReady(new[0]))
    elif state is not WorkerState.STARTING:
        shell.make_ready()
    if state is WorkerState.SERVING:
        shell.send(e.WorkerAccepts(new[0]))
    assert new[0].state is state
    shell.send(event(new[0]))
    assert not [a for a in shell.of(actions.TellRetire) + shell.of(actions.TellQuit) if a.worker in old]
    assert all(w.state is WorkerState.SERVING for w in old)
    (answer,) = shell.of(actions.AnswerReload)
    assert not answer.ok
    assert "generation 1 serves on" in answer.text
    for retiring in shell.of(actions.TellRetire):  # what may have accepted hands over to the old ones
        assert {i.receiver for i in shell.of(actions.ConnectPair) if i.sender is retiring.worker} == set(old)
    shell.reap(WorkerState.ENDING, WorkerState.RETIRING)
    assert set(shell.supervisor.generations) == {1}
    shell.reload()
    assert shell.supervisor.current is not None
    assert shell.supervisor.current.number == 3


def test_what_one_that_is_late_takes_along_has_time_to_end() -> None:
    """All of a generation are late at the same moment; no more than one of them is killed for it."""
    shell = Shell(start_concurrency=2).up()
    shell.send(e.ReloadAsked())
    shell.send(e.Wakeup(), after=POLICY.startup_timeout)
    late, other = (worker for worker in shell.workers() if worker.generation.number == 2)
    assert [kill.worker for kill in shell.of(actions.Kill)] == [late]
    assert [quit.worker for quit in shell.of(actions.TellQuit)] == [other]
    shell.reap(WorkerState.ENDING)
    shell.forget()
    shell.send(e.ReloadAsked())
    shell.make_ready()
    shell.send(e.Wakeup(), after=SWITCH_TIMEOUT)
    late, other = (worker for worker in shell.workers() if worker.generation.number == 3)
    assert [kill.worker for kill in shell.of(actions.Kill)] == [late]
    assert [retire.worker for retire in shell.of(actions.TellRetire)] == [other]  # it may have accepted connections


def test_reloads_during_a_reload_become_one() -> None:
    shell = Shell().up()
    shell.send(e.ReloadAsked(ticket=1))
    for ticket in range(2, 500):
        shell.send(e.ReloadAsked(ticket))
    assert len(shell.supervisor.generations) == 2
    shell.make_ready()
    shell.accept()
    assert [answer.ticket for answer in shell.of(actions.AnswerReload)] == [1]
    shell.make_ready()
    shell.accept()
    assert len(shell.of(actions.AnswerReload)) == 499
    assert shell.supervisor.requests.done == 2


def test_a_reload_waits_while_too_many_generations_are_alive() -> None:
    shell = Shell().up()
    shell.reload()
    shell.reload()
    assert len(shell.supervisor.generations) == 3
    shell.send(e.ReloadAsked())
    assert shell.supervisor.candidate is None
    assert shell.supervisor.requests.wanted is not None
    oldest = [w for w in shell.workers(WorkerState.RETIRING) if w.generation.number == 1]
    for worker in oldest:
        shell.send(e.WorkerDied(worker, "exit status 0"))
    assert shell.supervisor.candidate is not None


def test_a_change_of_files_gives_up_what_starts_with_the_old_ones() -> None:
    shell = Shell().up()
    shell.send(e.ReloadAsked(ticket=1))
    shell.send(e.ReloadAsked(by="a.py has changed", supersedes=True))
    assert [(g.number, g.state) for g in shell.supervisor.generations.values()] == [
        (1, GenerationState.CURRENT),
        (2, GenerationState.FAILED),
        (3, GenerationState.STARTING),
    ]
    assert not shell.of(actions.AnswerReload)
    shell.reap(WorkerState.ENDING)
    shell.make_ready()
    shell.accept()
    assert [(answer.ticket, answer.ok) for answer in shell.of(actions.AnswerReload)] == [(1, True)]
    assert shell.supervisor.requests.refusals == 0


def test_who_waits_is_told_what_really_is_in_the_way() -> None:
    shell = Shell(max_generations=2).up()
    shell.send(e.ReloadAsked())
    shell.send(e.WorkerDied(shell.workers(WorkerState.STARTING)[0], "signal SIGKILL"))
    shell.send(e.ReloadAsked())
    (waits,) = [say for say in shell.of(actions.LogEvent) if say.event == "reload_delayed"]
    assert waits.about["oldest"] == 2  # the first one serves
    assert "generation 2, which failed, has not ended" in waits.text


def test_what_changes_of_files_have_given_up_is_gone_before_long() -> None:
    shell = Shell().up()
    for _ in range(3):
        shell.send(e.ReloadAsked(by="a.py has changed", supersedes=True))
    given_up = shell.workers(WorkerState.ENDING)
    assert {worker.generation.number for worker in given_up} == {2, 3}
    shell.send(e.Wakeup(), after=SUPERSEDED_TIMEOUT)
    assert {kill.worker for kill in shell.of(actions.Kill)} == set(given_up)


def test_a_reload_is_prepared_before_anything_of_it_begins() -> None:
    shell = Shell().up()
    shell.prepares = False
    shell.send(e.ReloadAsked(ticket=1, by="serve reload"))
    assert shell.of(actions.PrepareReload) == [actions.PrepareReload("serve reload")]
    shell.send(e.ReloadAsked(ticket=2))
    assert len(shell.of(actions.PrepareReload)) == 1
    assert not shell.of(actions.StartWorker)
    shell.send(e.ReloadPrepared(None, "the hook says no", "its output"))
    assert shell.of(actions.AnswerReload) == [
        actions.AnswerReload(1, False, "reload refused, generation 1 serves on: the hook says no", "its output")
    ]
    assert shell.supervisor.requests.refusals == 1
    assert len(shell.of(actions.PrepareReload)) == 2, "the second one was asked for while the first was prepared"


def test_the_service_manager_hears_of_a_reload_before_it_is_prepared_and_of_its_end_in_any_case() -> None:
    shell = Shell().up()
    shell.prepares = False
    shell.send(e.ReloadAsked())
    assert [action.what for action in shell.of(actions.Announce)] == ["reloading"]
    shell.send(e.ReloadPrepared(None, "the hook says no"))
    assert [action.what for action in shell.of(actions.Announce)] == ["reloading", "ready"]
    shell.forget()
    shell.prepares = True
    shell.reload()
    assert [action.what for action in shell.of(actions.Announce)] == ["reloading", "status", "ready"]


def test_a_new_configuration_counts_from_the_switch_on_and_not_if_it_is_refused() -> None:
    shell = Shell().up()
    shell.policy = dataclasses.replace(shell.policy, workers=3, graceful_timeout=5.0)
    shell.send(e.ReloadAsked())
    shell.send(e.WorkerFailed(shell.workers(WorkerState.STARTING)[0], "no such module"))
    shell.reap(WorkerState.STARTING, WorkerState.ENDING)
    assert (shell.supervisor.size, shell.supervisor.processes.policy.graceful_timeout) == (2, 30.0)
    assert not shell.of(actions.AdoptGeneration)
    shell.reload()
    assert (shell.supervisor.size, shell.supervisor.processes.policy.graceful_timeout) == (3, 5.0)
    assert [adopted.generation for adopted in shell.of(actions.AdoptGeneration)] == [shell.supervisor.current]
