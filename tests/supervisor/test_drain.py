"""The drain as tables of events and actions: what begins it, and what ends it."""

from __future__ import annotations

import pytest

from serve_asgi.supervisor import actions
from serve_asgi.supervisor import events as e
from serve_asgi.supervisor.lifecycles import (
    ServerState,
    WorkerState,
)
from tests.supervisor.shell import Shell


def test_the_signals_drain_ends_with_a_reload_that_began_after_it() -> None:
    shell = Shell().up()
    shell.send(e.DrainAsked(on=True))
    shell.send(e.DrainAsked(on=True))
    assert [action.on for action in shell.of(actions.SetDrain)] == [True]
    shell.reload()
    assert [action.on for action in shell.of(actions.SetDrain)] == [True, False]


def test_a_reload_that_had_begun_before_does_not_end_the_drain() -> None:
    shell = Shell().up()
    shell.send(e.ReloadAsked())
    shell.send(e.DrainAsked(on=True))
    shell.make_ready()
    shell.accept()
    assert shell.supervisor.drain.on is not None


def test_a_failed_reload_leaves_the_drain() -> None:
    shell = Shell().up()
    shell.send(e.DrainAsked(on=True))
    shell.send(e.ReloadAsked(ticket=1))
    shell.send(e.WorkerFailed(shell.workers(WorkerState.STARTING)[0], "ImportError"))
    assert shell.supervisor.drain.on is not None
    assert "still draining" in shell.of(actions.AnswerReload)[0].text


def test_the_controls_drain_holds_until_the_control_ends_it() -> None:
    shell = Shell().up()
    shell.send(e.DrainAsked(on=True, by_control=True))
    shell.send(e.DrainAsked(on=True))
    shell.reload()
    assert shell.supervisor.drain.on is not None
    shell.send(e.DrainAsked(on=False, by_control=True))
    assert shell.supervisor.drain.on is None


def test_stop_with_a_drain_delay_is_a_drain_first() -> None:
    shell = Shell(drain_delay=10.0).up()
    shell.send(e.StopAsked())
    assert shell.of(actions.SetDrain) == [actions.SetDrain(True)]
    assert not shell.of(actions.ShutOut)
    assert shell.supervisor.next_deadline() == shell.now + 10.0
    shell.tick_at_deadline()
    assert shell.of(actions.ShutOut)


@pytest.mark.parametrize(("own", "asked", "drain"), [(0.0, 5.0, 5.0), (10.0, 5.0, 5.0), (10.0, 0.0, 0.0)])
def test_a_stop_may_bring_its_own_delay(own: float, asked: float, drain: float) -> None:
    shell = Shell(drain_delay=own).up()
    shell.send(e.StopAsked(delay=asked))
    assert bool(shell.of(actions.SetDrain)) == bool(drain)
    assert bool(shell.of(actions.ShutOut)) == (not drain)
    if drain:
        assert shell.supervisor.next_deadline() == shell.now + drain


def test_a_worker_that_dies_in_the_delay_of_a_stop_is_replaced() -> None:
    shell = Shell(workers=1, drain_delay=60.0).up()
    (victim,) = shell.workers()
    shell.send(e.StopAsked())
    shell.send(e.WorkerDied(victim, "signal SIGSEGV"))
    for _ in range(2):  # the second time, after a delay
        shell.make_ready()
        shell.accept()
        (replacement,) = shell.workers(WorkerState.SERVING)
        shell.send(e.WorkerDied(replacement, "signal SIGSEGV"), after=1.0)
        shell.tick_at_deadline()
    assert shell.supervisor.state is ServerState.DRAINING
    shell.make_ready()
    shell.accept()
    assert len(shell.workers(WorkerState.SERVING)) == 1


def test_a_drain_that_began_while_its_reload_was_prepared_outlives_it() -> None:
    shell = Shell().up()
    shell.prepares = False
    shell.send(e.ReloadAsked())
    shell.send(e.DrainAsked(on=True))
    shell.send(e.ReloadPrepared(shell.policy))
    shell.make_ready()
    shell.accept()
    assert shell.supervisor.requests.done == 1
    assert shell.supervisor.drain.on is not None
