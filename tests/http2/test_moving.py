"""An HTTP/2 connection that goes from worker to worker, at any moment, under a client that never retries."""

from __future__ import annotations

import pytest

from serve_asgi.http import survival
from tests.http2.two_workers import history

RUNS = 12
EACH = 25


@pytest.mark.parametrize("run", range(RUNS))
def test_any_history_loses_nothing_and_does_nothing_twice(run: int) -> None:
    moves = 0
    for seed in range(run * EACH, (run + 1) * EACH):
        moves += history(seed).moves
    assert moves


def test_long_histories() -> None:
    for seed in range(100_000, 100_010):
        history(seed, 1500)


@pytest.mark.parametrize("run", range(4))
def test_streams_that_survive_go_along(run: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survival, "LEAST_LIFE", 0.0)
    moves = 0
    for seed in range(run * 10, (run + 1) * 10):
        moves += history(seed, 600, lives=True).moves_of_lives
    assert moves
