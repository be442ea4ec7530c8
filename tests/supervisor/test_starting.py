"""Starts as tables of events and actions: the first one, a few workers at a time, and what fails or hangs."""

from __future__ import annotations

import pytest

from serve_asgi.supervisor import actions
from serve_asgi.supervisor import events as e
from serve_asgi.supervisor.lifecycles import (
    WorkerState,
)
from serve_asgi.supervisor.starting import SWITCH_TIMEOUT
from tests.supervisor.shell import POLICY, Shell


def test_ports_open_only_when_every_worker_is_ready() -> None:
    shell = Shell()
    first, second = shell.workers(WorkerState.STARTING)
    shell.send(e.WorkerReady(first))
    assert not shell.of(actions.OpenPorts)
    shell.send(e.WorkerReady(second))
    assert len(shell.of(actions.OpenPorts)) == 1
    assert not shell.of(actions.TellServe)
    shell.send(e.PortsOpened())
    assert {action.worker for action in shell.of(actions.TellServe)} == {first, second}
    shell.send(e.WorkerAccepts(first))
    assert not shell.of(actions.Announce)
    shell.send(e.WorkerAccepts(second))
    assert [action.what for action in shell.of(actions.Announce)] == ["ready"]


def test_workers_start_a_few_at_a_time() -> None:
    shell = Shell(workers=5, start_concurrency=2)
    assert len(shell.of(actions.StartWorker)) == 2
    shell.send(e.WorkerReady(shell.workers(WorkerState.STARTING)[0]))
    assert len(shell.of(actions.StartWorker)) == 3
    assert len(shell.workers(WorkerState.STARTING)) == 2


@pytest.mark.parametrize(("usage", "status"), [(False, 1), (True, 2)])
def test_a_failed_first_start_ends_the_server(usage: bool, status: int) -> None:
    shell = Shell()
    worker = shell.workers(WorkerState.STARTING)[0]
    shell.send(e.WorkerFailed(worker, "no such module", "Traceback", usage))
    assert [action.worker for action in shell.of(actions.TellQuit)] == [w for w in shell.workers() if w is not worker]
    shell.reap()
    (exit_,) = shell.of(actions.Exit)
    assert (exit_.status, exit_.detail) == (status, "Traceback")
    assert "no such module" in exit_.message


def test_a_port_that_cannot_be_opened_ends_the_server() -> None:
    shell = Shell()
    shell.make_ready()
    shell.send(e.PortsOpened("the port is taken"))
    shell.reap()
    assert shell.of(actions.Exit)[0].status == 2


def test_a_start_that_hangs_is_killed_at_its_deadline() -> None:
    shell = Shell().up()
    shell.send(e.ReloadAsked(ticket=1))
    shell.now += POLICY.startup_timeout
    shell.send(e.Wakeup())
    assert shell.of(actions.Kill)
    assert not shell.of(actions.AnswerReload)[0].ok


def test_a_worker_that_never_accepts_fails_the_reload() -> None:
    shell = Shell().up()
    shell.send(e.ReloadAsked(ticket=1))
    shell.make_ready()
    shell.now += SWITCH_TIMEOUT
    shell.send(e.Wakeup())
    assert shell.of(actions.Kill)
    assert not shell.of(actions.AnswerReload)[0].ok


def test_workers_that_are_recycled_all_the_time_hold_up_no_reload() -> None:
    """As with a small --max-requests under load: there is always one more that starts, one at a time."""
    shell = Shell(start_concurrency=1).up()
    shell.send(e.WorkerWantsReplacement(shell.workers()[0], "old age"))
    shell.send(e.ReloadAsked(ticket=1))
    for _ in range(4):
        shell.send(e.WorkerWantsReplacement(shell.workers(WorkerState.SERVING)[-1], "old age"))
        assert sorted(w.generation.number for w in shell.workers(WorkerState.STARTING)) == [1, 2]
        shell.send(e.WorkerReady(next(w for w in shell.workers(WorkerState.STARTING) if w.generation.number == 1)))
        shell.accept()
    shell.make_ready()
    shell.accept()
    assert [answer.ok for answer in shell.of(actions.AnswerReload)] == [True]


def test_a_reload_asked_for_during_a_first_start_that_fails_is_answered() -> None:
    shell = Shell(workers=1)
    shell.send(e.ReloadAsked(ticket=1))
    shell.send(e.WorkerFailed(shell.workers()[0], "no such module"))
    assert [(answer.ticket, answer.ok) for answer in shell.of(actions.AnswerReload)] == [(1, False)]
    shell.reap()
    assert [end.again for end in shell.of(actions.Exit)] == [True]


def test_a_change_of_files_gives_up_a_first_start_for_another() -> None:
    shell = Shell()
    shell.send(e.ReloadAsked(by="a.py has changed", supersedes=True))
    shell.reap()
    assert [end.again for end in shell.of(actions.Exit)] == [True]


def test_a_new_generation_that_hangs_holds_up_no_replacement() -> None:
    shell = Shell(workers=2, start_concurrency=1).up()
    victim = shell.workers()[0]
    shell.send(e.ReloadAsked())
    (hanging,) = shell.workers(WorkerState.STARTING)
    shell.send(e.WorkerDied(victim, "signal SIGSEGV"))
    assert [w.slot for w in shell.workers(WorkerState.STARTING) if w is not hanging] == [victim.slot]
    shell.send(e.WorkerReady(hanging))
    assert len(shell.workers(WorkerState.STARTING)) == 1  # the new generation waits for the replacement


def test_a_death_before_the_ports_are_open_ends_the_start() -> None:
    shell = Shell()
    first, _ = shell.workers()
    shell.make_ready()
    shell.send(e.Wakeup())
    shell.send(e.WorkerDied(first, "signal SIGSEGV"))
    shell.send(e.PortsOpened())
    assert not shell.of(actions.TellServe)
    shell.reap()
    assert shell.of(actions.Exit)[0].status == 1
