"""The verdict on a server: what it depends on, and which reason comes first."""

from __future__ import annotations

import pytest

from serve_asgi.ipc.health_verdict import BLOCKED_AFTER, HealthVerdict, is_blocked, judge

LONG = BLOCKED_AFTER + 0.1
Workers = list[tuple[str, float | None]]


@pytest.mark.parametrize(
    ("workers", "expected"),
    [
        ([("serving", 0.5), ("serving", None)], HealthVerdict("ok", 2, 0)),
        ([("switching", LONG), ("starting", None)], HealthVerdict("ok", 1, 0)),
        ([("serving", 0.5), ("serving", LONG)], HealthVerdict("ok", 1, 1)),
        ([("serving", LONG), ("serving", 60.0)], HealthVerdict("every worker is blocked", 0, 2)),
        ([("starting", None), ("retiring", 0.5)], HealthVerdict("no worker serves", 0, 0)),
        ([], HealthVerdict("no worker serves", 0, 0)),
    ],
)
def test_the_workers_count(workers: Workers, expected: HealthVerdict) -> None:
    assert judge("running", draining=False, agent_missing=False, workers=workers) == expected


@pytest.mark.parametrize(
    ("state", "draining", "agent_missing", "expected"),
    [
        ("running", True, True, "draining"),
        ("stopping", False, True, "stopping"),
        ("starting", False, False, "starting"),
        ("running", False, True, "agent missing"),
    ],
)
def test_the_most_telling_reason_comes_first(state: str, draining: bool, agent_missing: bool, expected: str) -> None:
    assert judge(state, draining=draining, agent_missing=agent_missing, workers=[]).status == expected


@pytest.mark.parametrize(
    ("state", "silent", "blocked"),
    [
        ("serving", LONG, True),
        ("serving", BLOCKED_AFTER, False),
        ("serving", None, False),
        ("active", LONG, True),
        ("returned", LONG, True),
        ("starting", LONG, False),
        ("retiring", LONG, False),
    ],
)
def test_only_loops_that_should_run_can_be_blocked(state: str, silent: float | None, blocked: bool) -> None:
    assert is_blocked(state, silent) is blocked
