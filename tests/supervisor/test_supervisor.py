"""The supervisor as a whole: events that come at the wrong time, records, log files."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from serve_asgi.supervisor import actions
from serve_asgi.supervisor import events as e
from serve_asgi.supervisor.lifecycles import WORKER_TRANSITIONS as WORKERS
from serve_asgi.supervisor.lifecycles import (
    GenerationState,
    IllegalTransition,
    Worker,
    WorkerState,
    advance,
)
from tests.supervisor.shell import Shell


def test_the_table_refuses_what_it_does_not_hold() -> None:
    with pytest.raises(IllegalTransition):
        advance(WORKERS, WorkerState.RETIRING, WorkerState.SERVING)
    assert GenerationState.CURRENT.value == "current"


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


def test_log_files_are_opened_anew_by_everybody_who_has_any() -> None:
    shell = Shell(workers=2, start_concurrency=1)
    shell.send(e.ReopenAsked())
    assert len(shell.of(actions.ReopenLogs)) == 1
    assert [told.worker for told in shell.of(actions.TellReopen)] == shell.workers(WorkerState.STARTING)


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
