"""Retiring workers as tables of events and actions: their receivers, their pairs and their deadline."""

from __future__ import annotations

import pytest

from serve_asgi.supervisor import actions
from serve_asgi.supervisor import events as e
from serve_asgi.supervisor.lifecycles import (
    WorkerState,
)
from serve_asgi.supervisor.retiring import KILL_MARGIN
from tests.supervisor.shell import POLICY, Shell


def test_an_older_generation_that_still_retires_is_introduced_to_the_newest() -> None:
    shell = Shell().up()
    shell.reload()
    oldest = shell.workers(WorkerState.RETIRING)
    shell.forget()
    shell.reload()
    newest = shell.workers(WorkerState.SERVING)
    for worker in oldest:
        assert {i.receiver for i in shell.of(actions.ConnectPair) if i.sender is worker} == set(newest)


def test_what_has_not_ended_is_killed_at_the_deadline() -> None:
    shell = Shell().up()
    shell.reload()
    shell.now += POLICY.graceful_timeout + POLICY.shutdown_timeout + KILL_MARGIN
    shell.send(e.Wakeup())
    assert {k.worker for k in shell.of(actions.Kill)} == set(shell.workers(WorkerState.RETIRING))


def test_an_orphaned_pair_gets_its_verdict_when_the_senders_fate_is_known() -> None:
    shell = Shell().up()
    shell.reload()
    pair = shell.of(actions.ConnectPair)[0]
    shell.send(e.PairOrphaned(pair.receiver, pair.pair))
    assert not shell.of(actions.TellVerdict)
    shell.send(e.WorkerDied(pair.sender, "signal SIGKILL"))
    assert shell.of(actions.TellVerdict) == [actions.TellVerdict(pair.receiver, pair.pair, keep=True)]


def test_a_withdrawn_pair_is_dropped_even_if_the_sender_dies_later() -> None:
    shell = Shell().up()
    shell.reload()
    pair = shell.of(actions.ConnectPair)[0]
    shell.send(e.PairWithdrawn(pair.sender, pair.pair))
    shell.send(e.WorkerDied(pair.sender, "signal SIGKILL"))
    shell.send(e.PairOrphaned(pair.receiver, pair.pair))
    assert shell.of(actions.TellVerdict) == [actions.TellVerdict(pair.receiver, pair.pair, keep=False)]


@pytest.mark.parametrize("end", ["sender", "receiver"])
def test_who_has_not_got_an_end_of_a_pair_is_introduced_again(end: str) -> None:
    shell = Shell().up()
    shell.reload()
    pair = shell.of(actions.ConnectPair)[0]
    shell.forget()
    shell.send(e.PairLost(getattr(pair, end), pair.pair))
    again = shell.of(actions.ConnectPair)
    assert [(each.sender, each.receiver) for each in again] == [(pair.sender, pair.receiver)]
    assert again[0].pair != pair.pair
    shell.forget()
    shell.send(e.PairLost(getattr(pair, end), pair.pair))  # once
    assert not shell.of(actions.ConnectPair)


def test_a_worker_that_was_recycled_before_the_reload_is_introduced_to_the_new_ones() -> None:
    shell = Shell(workers=1).up()
    (worn,) = shell.workers()
    shell.send(e.WorkerWantsReplacement(worn, "worn"))
    shell.make_ready()
    shell.accept()
    assert worn.state is WorkerState.RETIRING
    shell.forget()
    shell.reload()
    (new,) = shell.workers(WorkerState.SERVING)
    assert new in [introduced.receiver for introduced in shell.of(actions.ConnectPair) if introduced.sender is worn]


def test_nobody_is_introduced_to_a_worker_that_is_about_to_leave() -> None:
    shell = Shell().up()
    shell.send(e.ReloadAsked())
    shell.send(e.ScaleAsked(by=-1))
    shell.make_ready()
    shell.accept()
    assert {introduced.receiver.slot for introduced in shell.of(actions.ConnectPair)} == {0}


def test_what_dies_in_a_generation_that_was_given_up_is_counted() -> None:
    shell = Shell().up()
    shell.send(e.ReloadAsked())
    new, _ = shell.workers(WorkerState.STARTING)
    shell.make_ready()
    shell.send(e.WorkerAccepts(new))
    shell.send(e.StopAsked())
    assert new.state is WorkerState.RETIRING
    shell.send(e.WorkerDied(new, "signal SIGSEGV", in_flight=1))
    assert any("lost: 1 request" in said.text for said in shell.of(actions.LogEvent))
