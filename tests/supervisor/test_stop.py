"""The stop as tables of events and actions: graceful and quick, at any moment."""

from __future__ import annotations

import pytest

from serve_asgi.supervisor import actions
from serve_asgi.supervisor import events as e
from serve_asgi.supervisor.lifecycles import (
    END_TIMEOUT,
    ServerState,
    Worker,
    WorkerState,
)
from serve_asgi.supervisor.starting import SWITCH_TIMEOUT
from tests.supervisor.shell import POLICY, Shell


def test_stop_shuts_out_first_and_then_retires() -> None:
    shell = Shell().up()
    shell.send(e.StopAsked())
    assert shell.of(actions.ShutOut)
    assert not shell.of(actions.TellRetire)
    shell.send(e.ShutOutDone())
    assert all(action.accept_queued and action.reason == "stop" for action in shell.of(actions.TellRetire))
    assert not shell.of(actions.ConnectPair)
    shell.reap()
    assert shell.of(actions.ClosePorts)
    assert shell.of(actions.Exit) == [actions.Exit(0)]


def test_stop_while_nobody_serves_awaits_the_worker_that_starts() -> None:
    """What the kernel has accepted is served: the queue is the replacement's to accept."""
    shell = Shell(workers=1).up()
    shell.send(e.WorkerDied(shell.workers()[0], "signal SIGKILL"))
    shell.send(e.StopAsked())
    shell.send(e.ShutOutDone())
    assert not shell.of(actions.TellQuit)
    shell.make_ready()
    assert shell.of(actions.TellServe)
    shell.accept()
    assert [action.accept_queued for action in shell.of(actions.TellRetire)] == [True]
    shell.reap()
    assert shell.of(actions.Exit) == [actions.Exit(0)]


def test_stop_while_nobody_serves_ends_when_nobody_will() -> None:
    shell = Shell(workers=1).up()
    shell.send(e.WorkerDied(shell.workers()[0], "signal SIGKILL"))
    shell.send(e.StopAsked())
    shell.send(e.ShutOutDone())
    shell.send(e.WorkerFailed(shell.workers()[0], "ImportError"))
    shell.reap()
    assert shell.of(actions.Exit) == [actions.Exit(0)]


def test_stop_while_nobody_serves_does_not_await_one_after_another_for_ever() -> None:
    """Each hangs at its start; when one is given up, the back-off of the other slot is over."""
    shell = Shell(start_concurrency=1).up()
    for worker in shell.workers():
        shell.send(e.WorkerDied(worker, "signal SIGKILL"))
    shell.send(e.StopAsked())
    shell.send(e.ShutOutDone())
    began = shell.now
    while shell.supervisor.state is ServerState.AWAITING:
        for kill in [action for action in shell.tick_at_deadline() if isinstance(action, actions.Kill)]:
            assert isinstance(kill.worker, Worker)
            shell.send(e.WorkerDied(kill.worker, "signal SIGKILL"))
    assert shell.supervisor.state is ServerState.STOPPING
    assert shell.now <= began + POLICY.startup_timeout + SWITCH_TIMEOUT


def test_stop_during_a_reload_gives_the_reload_up() -> None:
    shell = Shell().up()
    shell.send(e.ReloadAsked(ticket=1))
    shell.send(e.StopAsked())
    assert not shell.of(actions.AnswerReload)[0].ok
    shell.send(e.ShutOutDone())
    shell.reap()
    assert shell.of(actions.Exit) == [actions.Exit(0)]


def test_stop_during_the_first_start() -> None:
    shell = Shell(start_concurrency=1)
    shell.send(e.StopAsked())
    shell.reap()
    assert shell.of(actions.Exit) == [actions.Exit(0)]


@pytest.mark.parametrize("second", [e.StopAsked(), e.QuickStopAsked()])
def test_a_second_signal_stops_at_once(second: e.Event) -> None:
    shell = Shell().up()
    shell.send(e.StopAsked())
    shell.send(e.ShutOutDone())
    shell.send(second)
    assert len(shell.of(actions.TellQuit)) == 2
    shell.now += END_TIMEOUT
    shell.send(e.Wakeup())
    assert len(shell.of(actions.Kill)) == 2
    shell.reap()
    assert shell.of(actions.Exit) == [actions.Exit(0)]


def test_after_the_stop_nothing_counts() -> None:
    shell = Shell().up()
    shell.send(e.QuickStopAsked())
    shell.reap()
    shell.forget()
    assert shell.send(e.ReloadAsked()) == []


@pytest.mark.parametrize("stop", [e.StopAsked(), e.QuickStopAsked()])
def test_once_the_stop_has_begun_reloads_are_refused_and_sizes_stay(stop: e.Event) -> None:
    shell = Shell().up()
    shell.send(stop)
    shell.send(e.ReloadAsked(ticket=1))
    shell.send(e.ReloadAsked())
    shell.send(e.ScaleAsked(by=1))
    assert [(answer.ticket, answer.ok) for answer in shell.of(actions.AnswerReload)] == [(1, False)]
    assert shell.supervisor.size == 2
    assert not shell.of(actions.StartWorker)


def test_a_quick_stop_lets_go_of_everything_and_a_second_one_kills() -> None:
    shell = Shell(workers=3, start_concurrency=1).up()
    first, second, third = shell.workers()
    for victim in (first, second):
        shell.send(e.WorkerDied(victim, "signal SIGSEGV"))
    (starting,) = shell.workers(WorkerState.STARTING)
    assert len(shell.workers(WorkerState.PENDING)) == 1
    shell.send(e.QuickStopAsked())
    assert not shell.workers(WorkerState.PENDING)
    assert {quit_.worker for quit_ in shell.of(actions.TellQuit)} == {starting, third}
    shell.send(e.QuickStopAsked())
    assert {kill.worker for kill in shell.of(actions.Kill)} == {starting, third}
    shell.send(e.WorkerDied(starting, "signal SIGKILL"))
    shell.send(e.WorkerDied(third, "signal SIGKILL", in_flight=2))
    assert any("cut: 2 requests" in said.text for said in shell.of(actions.LogEvent))
    assert shell.of(actions.Exit) == [actions.Exit(0)]


def test_a_quick_stop_amid_a_stop_does_not_wait_for_the_shut_out() -> None:
    shell = Shell().up()
    shell.send(e.StopAsked())
    shell.send(e.QuickStopAsked())
    shell.send(e.ShutOutDone())
    assert shell.supervisor.state is ServerState.ENDING
    shell.now += END_TIMEOUT
    shell.send(e.Wakeup())
    assert len(shell.of(actions.Kill)) == 2


def test_a_stop_while_an_older_generation_retires_tells_it_that_its_receivers_leave() -> None:
    shell = Shell().up()
    shell.reload()
    old, new = shell.workers(WorkerState.RETIRING), shell.workers(WorkerState.SERVING)
    deadlines = [worker.deadline for worker in old]
    shell.forget()
    shell.send(e.StopAsked(), after=5.0)
    shell.send(e.ShutOutDone())
    assert {(t.worker, t.reason, t.accept_queued) for t in shell.of(actions.TellRetire)} == {
        *((worker, "stop", False) for worker in old),
        *((worker, "stop", True) for worker in new),
    }
    assert [worker.deadline for worker in old] == deadlines
    shell.forget()
    shell.send(e.PairWithdrawn(old[0], 1))
    assert not shell.of(actions.ConnectPair)


def test_a_start_that_fails_once_the_stop_has_begun_is_passed_over() -> None:
    shell = Shell().up()
    shell.send(e.WorkerDied(shell.workers()[0], "signal SIGSEGV"))
    (replacement,) = shell.workers(WorkerState.STARTING)
    shell.send(e.StopAsked())
    shell.send(e.ShutOutDone())
    shell.send(e.WorkerFailed(replacement, "ImportError"))
    assert not [said for said in shell.of(actions.LogEvent) if "ImportError" in said.text]
    assert replacement.state is WorkerState.ENDING


def test_a_worker_that_is_ending_keeps_its_deadline_over_a_quick_stop() -> None:
    shell = Shell()
    failed, starting = shell.workers()
    shell.send(e.WorkerFailed(failed, "no such module"))
    deadline = failed.deadline
    shell.send(e.QuickStopAsked(), after=1.0)
    assert failed.deadline == deadline == shell.supervisor.next_deadline()
    assert [quit_.worker for quit_ in shell.of(actions.TellQuit)] == [starting]


def test_a_stop_gives_up_a_reload_that_is_prepared() -> None:
    shell = Shell().up()
    shell.prepares = False
    shell.send(e.ReloadAsked(ticket=1))
    shell.send(e.StopAsked())
    assert [(answer.ticket, answer.ok) for answer in shell.of(actions.AnswerReload)] == [(1, False)]
    shell.send(e.ReloadPrepared(shell.policy))
    assert not shell.of(actions.StartWorker)
