"""The watch after a switch, as tables of events and actions: what is bad is rolled back, what is not stays."""

from __future__ import annotations

import math

import pytest

from serve_asgi.supervisor import actions
from serve_asgi.supervisor import events as e
from serve_asgi.supervisor.canary_verdict import TrafficSample
from serve_asgi.supervisor.lifecycles import GenerationState, Worker, WorkerState
from tests.supervisor.shell import Shell

USUAL = TrafficSample(100_000, 100)


def switched(**policy: float) -> tuple[Shell, list[Worker], list[Worker]]:
    """A server right after a switch that is watched: the shell, the workers that stand by, those that serve."""
    shell = Shell(**{"keep_previous": 60.0, "auto_rollback": True, **policy}).up()
    old = shell.workers()
    for worker in old:
        worker.can_stand_by = True
    shell.reload()
    return shell, old, [worker for worker in shell.workers() if worker not in old]


def rolled_back(shell: Shell, why: str) -> bool:
    """Whether the first generation is told to serve again, for this reason."""
    said = [each for each in shell.of(actions.LogEvent) if each.event == "rollback_started"]
    return len(said) == 1 and why in said[0].text and "--auto-rollback" in said[0].text


def test_a_generation_that_fails_more_than_the_one_before_is_rolled_back() -> None:
    shell, _, new = switched()
    (watch,) = shell.of(actions.WatchSwitch)
    assert (watch.current, watch.previous) == (new[0].generation, shell.supervisor.generations[1])
    assert shell.supervisor.watched_until < math.inf
    shell.send(e.SwitchObserved(new[0].generation, TrafficSample(500, 1), USUAL))
    assert not shell.of(actions.BeginRollback)
    assert shell.supervisor.watches_switch
    shell.send(e.SwitchObserved(new[0].generation, TrafficSample(520, 21), USUAL))
    assert rolled_back(shell, "21 of 520")
    assert not shell.supervisor.watches_switch
    assert shell.of(actions.WatchSwitch)[-1] == actions.WatchSwitch(None, None)
    assert shell.supervisor.watched_until == math.inf
    assert shell.supervisor.generations[1].state is GenerationState.RETURNING
    shell.send(e.SwitchObserved(new[0].generation, TrafficSample(600, 100), USUAL))
    assert len(shell.of(actions.BeginRollback)) == 1


@pytest.mark.parametrize("what", ["crash", "blocked", "memory"])
def test_one_fault_is_enough(what: str) -> None:
    shell, old, (victim, _) = switched()
    events: dict[str, e.Event] = {
        "crash": e.WorkerDied(victim, "signal SIGSEGV", 1),
        "blocked": e.WorkerWantsReplacement(victim, "its event loop has been blocked", blocked=5.0),
        "memory": e.WorkerWantsReplacement(victim, "it uses 900 MiB of memory", too_large=True),
    }
    shell.send(e.WorkerDied(old[0], "signal SIGKILL"))  # one that stands by says nothing of the new ones
    assert not shell.of(actions.BeginRollback)
    shell.send(events[what])
    assert rolled_back(shell, {"crash": "SIGSEGV", "blocked": "blocked", "memory": "900 MiB"}[what])


def test_a_good_one_stays_and_that_is_said() -> None:
    shell, _, new = switched()
    shell.send(e.SwitchObserved(new[0].generation, TrafficSample(5_000, 4), USUAL))
    shell.send(e.Wakeup(), after=60.0)
    assert [each.event for each in shell.of(actions.LogEvent) if each.event == "deploy_confirmed"]
    shell.forget()
    shell.send(e.WorkerDied(new[0], "signal SIGKILL"))
    assert not shell.of(actions.BeginRollback), "the watch is over"


def test_nothing_is_watched_without_the_option_or_after_a_roll_back() -> None:
    shell, _, _ = switched(auto_rollback=False)
    assert not shell.of(actions.WatchSwitch)
    shell, _, new = switched()
    shell.send(e.WorkerDied(new[0], "signal SIGKILL"))
    shell.forget()
    shell.accept()
    assert shell.supervisor.current is not None
    assert shell.supervisor.current.number == 1
    assert [each for each in shell.of(actions.WatchSwitch) if each.current is not None] == []
    assert {each.worker for each in shell.of(actions.TellRetire)} >= {w for w in new if w.state is WorkerState.RETIRING}


def test_the_watch_ends_when_nothing_stands_by_any_more() -> None:
    shell, _, (worker, _) = switched(keep_previous=10.0)
    shell.send(e.Wakeup(), after=10.0)
    assert shell.of(actions.WatchSwitch)[-1] == actions.WatchSwitch(None, None)
    shell.forget()
    shell.send(e.WorkerDied(worker, "signal SIGKILL"))
    assert not shell.of(actions.BeginRollback)
