"""Slots as tables of events and actions: replacement of dead, worn and blocked workers, and scaling."""

from __future__ import annotations

import dataclasses
import math

import pytest

from serve_asgi.supervisor import actions
from serve_asgi.supervisor import events as e
from serve_asgi.supervisor.lifecycles import (
    Cause,
    WorkerState,
)
from tests.supervisor.shell import POLICY, Shell


def test_a_dead_worker_is_replaced_with_back_off() -> None:
    shell = Shell().up()
    delays = []
    for _ in range(6):
        victim = next(w for w in shell.workers(WorkerState.SERVING) if w.slot == 0)
        shell.send(e.WorkerDied(victim, "signal SIGSEGV"), after=1.0)
        before = shell.now
        while not shell.workers(WorkerState.STARTING):
            shell.tick_at_deadline()
        delays.append(shell.now - before)
        shell.make_ready()
        shell.accept()
    assert delays[0] == 0.0
    assert delays == sorted(delays)
    assert delays[-1] > 5.0


def test_a_replacement_that_cannot_start_leaves_its_slot_degraded_and_the_rest_alone() -> None:
    shell = Shell().up()
    victim, other = shell.workers()
    shell.send(e.WorkerDied(victim, "signal SIGSEGV"))
    (replacement,) = shell.workers(WorkerState.STARTING)
    assert replacement.generation is victim.generation
    shell.send(e.WorkerFailed(replacement, "ImportError", "Traceback"))
    shell.reap(WorkerState.ENDING)
    assert other.state is WorkerState.SERVING
    assert shell.supervisor.slots.all[victim.slot].trouble
    assert math.isfinite(shell.supervisor.next_deadline())
    shell.tick_at_deadline()
    shell.make_ready()
    shell.accept()
    assert not shell.supervisor.slots.all[victim.slot].trouble


def test_recycling_has_the_replacement_accept_first() -> None:
    shell = Shell().up()
    worn = shell.workers()[0]
    shell.send(e.WorkerWantsReplacement(worn, "it has served 1000 requests"))
    shell.make_ready()
    assert worn in shell.workers(WorkerState.SERVING)
    shell.accept()
    assert worn in shell.workers(WorkerState.RETIRING)
    assert len({i.receiver for i in shell.of(actions.ConnectPair) if i.sender is worn}) == 2


def test_a_failed_replacement_leaves_the_worn_worker_serving() -> None:
    shell = Shell().up()
    worn = shell.workers()[0]
    shell.send(e.WorkerWantsReplacement(worn, "old age"))
    shell.send(e.WorkerFailed(shell.workers(WorkerState.STARTING)[0], "ImportError"))
    assert worn.state is WorkerState.SERVING
    assert not shell.of(actions.TellRetire)


def test_a_blocked_worker_is_replaced_with_back_off_and_retires_only_then() -> None:
    shell = Shell().up()
    delays = []
    for _ in range(6):  # each replacement blocks as soon as it serves
        blocked = next(w for w in shell.workers(WorkerState.SERVING) if w.slot == 0)
        shell.send(e.WorkerWantsReplacement(blocked, "its event loop is blocked", blocked=2.0), after=2.0)
        before = shell.now
        while not (starting := shell.workers(WorkerState.STARTING)):
            shell.tick_at_deadline()
        delays.append(shell.now - before)
        assert [worker.cause for worker in starting] == [Cause.BLOCKED]
        assert shell.supervisor.slots.all[0].trouble == "its event loop is blocked"
        shell.make_ready()
        assert blocked.state is WorkerState.SERVING
        shell.accept()
        assert blocked.state in (WorkerState.RETIRING, WorkerState.GONE)
        assert not shell.supervisor.slots.all[0].trouble
    assert delays == [0.0, 1.0, 2.0, 4.0, 8.0, 16.0]


def test_a_worker_that_served_for_long_before_it_was_blocked_is_replaced_at_once() -> None:
    shell = Shell().up()
    for _ in range(3):
        blocked = next(w for w in shell.workers(WorkerState.SERVING) if w.slot == 0)
        shell.send(e.WorkerWantsReplacement(blocked, "its event loop is blocked", blocked=60.0), after=60.0 + 30.0)
        assert shell.workers(WorkerState.STARTING)
        shell.make_ready()
        shell.accept()


def test_a_worker_that_is_blocked_before_its_generation_is_current_is_replaced_after_the_switch() -> None:
    shell = Shell().up()
    shell.send(e.ReloadAsked())
    shell.make_ready()
    first, second = shell.workers(WorkerState.SWITCHING)
    shell.send(e.WorkerAccepts(first))
    shell.send(e.WorkerWantsReplacement(first, "its event loop is blocked", blocked=2.0))
    assert not shell.workers(WorkerState.STARTING)
    shell.send(e.WorkerAccepts(second))
    assert [(w.slot, w.cause) for w in shell.workers(WorkerState.STARTING)] == [(first.slot, Cause.BLOCKED)]


def test_scaling_up_and_down() -> None:
    shell = Shell().up()
    shell.send(e.ScaleAsked(+1))
    shell.make_ready()
    shell.accept()
    assert sorted(w.slot for w in shell.workers(WorkerState.SERVING)) == [0, 1, 2]
    for _ in range(5):
        shell.send(e.ScaleAsked(-1))
    assert [w.slot for w in shell.workers(WorkerState.SERVING)] == [0]
    assert shell.supervisor.size == 1


@pytest.mark.parametrize(("before", "amid", "size"), [(None, None, 4), (3, None, 4), (None, 3, 3), (3, 1, 1)])
def test_the_last_word_about_the_size_counts(before: int | None, amid: int | None, size: int) -> None:
    """The configuration says 4 with a reload; somebody scales by hand before it, or while it starts."""
    shell = Shell().up()
    if before is not None:
        shell.send(e.ScaleAsked(to=before))
        shell.make_ready()
        shell.accept()
    shell.policy = dataclasses.replace(POLICY, workers=4)
    shell.send(e.ReloadAsked())
    if amid is not None:
        shell.send(e.ScaleAsked(to=amid))
    shell.make_ready()
    shell.accept()
    assert shell.supervisor.size == size
    serving = [worker for worker in shell.workers(WorkerState.SERVING) if worker.generation.number == 2]
    assert sorted(worker.slot for worker in serving) == list(range(size))


def test_a_worker_is_replaced_once_however_often_it_asks() -> None:
    shell = Shell(workers=1).up()
    (worn,) = shell.workers()
    for _ in range(2):
        shell.send(e.WorkerWantsReplacement(worn, "worn"))
    assert len(shell.of(actions.StartWorker)) == 1


def test_who_scaled_by_hand_keeps_that_size_over_a_reload_that_does_not_change_it() -> None:
    shell = Shell().up()
    shell.send(e.ScaleAsked(to=5))
    shell.make_ready()
    shell.accept()
    shell.reload()
    assert shell.supervisor.size == 5
    shell.policy = dataclasses.replace(shell.policy, workers=1)
    shell.reload()
    assert shell.supervisor.size == 1


@pytest.mark.parametrize(("to", "size"), [(4, 4), (1, 1), (0, 1), (2, 2)])
def test_scaling_to_a_number(to: int, size: int) -> None:
    shell = Shell().up()
    shell.send(e.ScaleAsked(to=to))
    assert shell.supervisor.size == size


@pytest.mark.parametrize(
    ("how", "stuck", "hint"),
    [
        ("signal SIGKILL", "", True),
        ("signal SIGKILL", "it sent nonsense", False),
        ("signal SIGSEGV", "", False),
    ],
)
def test_a_kill_that_the_server_has_not_sent_is_said_to_be_from_the_kernel(how: str, stuck: str, hint: bool) -> None:
    shell = Shell().up()
    victim = shell.workers(WorkerState.SERVING)[0]
    victim.stuck = stuck
    shell.send(e.WorkerDied(victim, how))
    (died,) = [said for said in shell.of(actions.LogEvent) if said.event == "worker_died"]
    assert died.text.endswith("; perhaps out of memory: see dmesg") is hint
    assert died.about["reason"] == died.about["how"] == how + (f" ({stuck})" if stuck else "")
