"""The supervisor's decisions as tables: an event, and what is to be done because of it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import TypeVar

import pytest

from serve_asgi.supervisor import actions
from serve_asgi.supervisor import events as e
from serve_asgi.supervisor.lifecycles import (
    END_TIMEOUT,
    SUPERSEDED_TIMEOUT,
    Cause,
    GenerationState,
    IllegalTransition,
    Policy,
    ServerState,
    Worker,
    WorkerState,
    advance,
)
from serve_asgi.supervisor.lifecycles import WORKER_TRANSITIONS as WORKERS
from serve_asgi.supervisor.retiring import KILL_MARGIN
from serve_asgi.supervisor.starting import SWITCH_TIMEOUT
from serve_asgi.supervisor.supervisor import Supervisor

POLICY = Policy(
    workers=2,
    start_concurrency=2,
    max_generations=3,
    startup_timeout=60.0,
    graceful_timeout=30.0,
    shutdown_timeout=10.0,
    drain_delay=0.0,
)
A = TypeVar("A", bound=actions.Action)


class Shell:
    """Feeds a supervisor and keeps what it wants done; a stand-in for the processes, with the tests' own clock."""

    def __init__(self, **policy: float) -> None:
        self.now = 100.0
        self.policy = dataclasses.replace(POLICY, **policy)  # type: ignore[arg-type]
        """What the configuration says when it is read again."""
        self.prepares = True
        self.supervisor = Supervisor(self.policy)
        self.done: list[actions.Action] = self.supervisor.start(self.now)

    def send(self, event: e.Event, after: float = 0.0) -> list[actions.Action]:
        self.now += after
        decided = self.supervisor.handle(event, self.now)
        self.done += decided
        if self.prepares and any(isinstance(action, actions.PrepareReload) for action in decided):
            decided += self.send(e.ReloadPrepared(self.policy))
        return decided

    def tick_at_deadline(self) -> list[actions.Action]:
        self.now = max(self.now, self.supervisor.next_deadline())
        return self.send(e.Wakeup())

    def of(self, kind: type[A]) -> list[A]:
        return [action for action in self.done if isinstance(action, kind)]

    def forget(self) -> None:
        self.done.clear()

    def workers(self, *states: WorkerState) -> list[Worker]:
        return [w for w in self.supervisor.workers.values() if not states or w.state in states]

    def make_ready(self) -> None:
        while starting := self.workers(WorkerState.STARTING):
            self.send(e.WorkerReady(starting[0]))

    def accept(self) -> None:
        for worker in self.workers(WorkerState.SWITCHING):
            self.send(e.WorkerAccepts(worker))

    def up(self) -> Shell:
        """The first generation serves."""
        self.make_ready()
        self.send(e.PortsOpened())
        self.accept()
        assert self.supervisor.state is ServerState.RUNNING
        self.forget()
        return self

    def reload(self) -> None:
        self.send(e.ReloadAsked())
        self.make_ready()
        self.accept()

    def reap(self, *states: WorkerState) -> None:
        for worker in self.workers(*states):
            self.send(e.WorkerFinished(worker, {"handed_over": 0, "cut": 0}))
            self.send(e.WorkerDied(worker, "exit status 0"))


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


def failed(worker: Worker) -> e.Event:
    return e.WorkerFailed(worker, "ImportError", "Traceback of the new code")


def died(worker: Worker) -> e.Event:
    return e.WorkerDied(worker, "signal SIGKILL")


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


def test_the_table_refuses_what_it_does_not_hold() -> None:
    with pytest.raises(IllegalTransition):
        advance(WORKERS, WorkerState.RETIRING, WorkerState.SERVING)
    assert GenerationState.CURRENT.value == "current"


def test_a_reload_asked_for_during_a_first_start_that_fails_is_answered() -> None:
    shell = Shell(workers=1)
    shell.send(e.ReloadAsked(ticket=1))
    shell.send(e.WorkerFailed(shell.workers()[0], "no such module"))
    assert [(answer.ticket, answer.ok) for answer in shell.of(actions.AnswerReload)] == [(1, False)]
    shell.reap()
    assert [end.again for end in shell.of(actions.Exit)] == [True]


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


def test_a_change_of_files_gives_up_a_first_start_for_another() -> None:
    shell = Shell()
    shell.send(e.ReloadAsked(by="a.py has changed", supersedes=True))
    shell.reap()
    assert [end.again for end in shell.of(actions.Exit)] == [True]


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


def test_a_new_generation_that_hangs_holds_up_no_replacement() -> None:
    shell = Shell(workers=2, start_concurrency=1).up()
    victim = shell.workers()[0]
    shell.send(e.ReloadAsked())
    (hanging,) = shell.workers(WorkerState.STARTING)
    shell.send(e.WorkerDied(victim, "signal SIGSEGV"))
    assert [w.slot for w in shell.workers(WorkerState.STARTING) if w is not hanging] == [victim.slot]
    shell.send(e.WorkerReady(hanging))
    assert len(shell.workers(WorkerState.STARTING)) == 1  # the new generation waits for the replacement


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


def settled(shell: Shell) -> tuple[object, ...]:
    """What an event without a meaning must not change."""
    supervisor = shell.supervisor
    workers = tuple((w.id, w.state, w.deadline) for w in supervisor.workers.values())
    return supervisor.state, supervisor.size, supervisor.drain.on, supervisor.requests.wanted, workers


@pytest.mark.parametrize(
    "event",
    [
        lambda w: e.WorkerReady(w),
        lambda w: e.WorkerFailed(w, "too late"),
        lambda w: e.WorkerAccepts(w),
        lambda w: e.PairWithdrawn(w, 99),
        lambda w: e.PairLost(w, 99),
        lambda _: e.PortsOpened(),
        lambda _: e.ShutOutDone(),
        lambda _: e.DrainAsked(on=False),
        lambda _: e.ScaleAsked(by=-1),
        lambda _: e.Wakeup(),
    ],
)
def test_an_event_that_comes_at_the_wrong_time_changes_nothing(event: Callable[[Worker], e.Event]) -> None:
    shell = Shell(workers=1).up()
    before = settled(shell)
    assert not [a for a in shell.send(event(shell.workers()[0])) if not isinstance(a, actions.LogEvent)]
    assert settled(shell) == before


def test_a_worker_is_replaced_once_however_often_it_asks() -> None:
    shell = Shell(workers=1).up()
    (worn,) = shell.workers()
    for _ in range(2):
        shell.send(e.WorkerWantsReplacement(worn, "worn"))
    assert len(shell.of(actions.StartWorker)) == 1


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


def test_log_files_are_opened_anew_by_everybody_who_has_any() -> None:
    shell = Shell(workers=2, start_concurrency=1)
    shell.send(e.ReopenAsked())
    assert len(shell.of(actions.ReopenLogs)) == 1
    assert [told.worker for told in shell.of(actions.TellReopen)] == shell.workers(WorkerState.STARTING)


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


def test_a_stop_gives_up_a_reload_that_is_prepared() -> None:
    shell = Shell().up()
    shell.prepares = False
    shell.send(e.ReloadAsked(ticket=1))
    shell.send(e.StopAsked())
    assert [(answer.ticket, answer.ok) for answer in shell.of(actions.AnswerReload)] == [(1, False)]
    shell.send(e.ReloadPrepared(shell.policy))
    assert not shell.of(actions.StartWorker)


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


def test_records_tell_what_they_are_about() -> None:
    shell = Shell().up()
    shell.reload()
    shell.reap(WorkerState.RETIRING)
    said = [(each.event, each.about.get("generation"), each.about.get("slot")) for each in shell.of(actions.LogEvent)]
    assert said[:2] == [("reload_requested", None, None), ("reload_started", 2, None)]
    for event in ("worker_started", "worker_ready", "worker_activated"):
        assert [each[1:] for each in said if each[0] == event] == [(2, 0), (2, 1)]
    assert ("reload_finished", 2, None) in said
    assert [each[1:] for each in said if each[0] == "worker_finished"] == [(1, 0), (1, 1)]
    assert said[-1] == ("generation_ended", 1, None)
