"""What the log says of actions, with a listener that does nothing."""

from __future__ import annotations

import logging
import math
from types import SimpleNamespace
from typing import Any, cast

import pytest

from serve_asgi.listener.action_performer import ActionPerformer
from serve_asgi.supervisor import actions
from serve_asgi.supervisor.lifecycles import Cause, Worker, WorkerState


@pytest.mark.parametrize(
    ("state", "since", "level", "text"),
    [
        (WorkerState.ENDING, math.inf, logging.INFO, "is killed: it was late, before it had served"),
        (WorkerState.STARTING, math.inf, logging.WARNING, "is killed: it was late; lost: 0 requests"),
        (WorkerState.RETIRING, 1.0, logging.WARNING, "is killed: it was late; lost: 0 requests"),
    ],
)
def test_one_that_was_not_needed_any_more_is_killed_without_a_warning(
    state: WorkerState, since: float, level: int, text: str
) -> None:
    recorded: list[actions.LogEvent] = []
    listener = SimpleNamespace(
        children=SimpleNamespace(kill=lambda worker: 0), recorder=SimpleNamespace(record=recorded.append)
    )
    generation = SimpleNamespace(superseded=False, number=1)
    worker = Worker(7, cast("Any", generation), 0, Cause.RECYCLE, state, serving_since=since)
    ActionPerformer(cast("Any", listener)).perform([actions.Kill(worker, "it was late")])
    assert [(each.level, each.event, each.text) for each in recorded] == [
        (level, "worker_killed", f"worker 0 of generation 1 {text}")
    ]
