"""The short version of the strict load test; `python -m loadtest.reload --reloads 200` is the long one."""

from __future__ import annotations

import pytest

from loadtest.reload import run
from loadtest.report import table
from loadtest.result import Settings


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("workers", "http", "loop", "reloads"),
    [(2, "httptools", "uvloop", 12), (4, "h11", "asyncio", 8)],
)
def test_reloads_under_load_are_noticed_by_nobody(workers: int, http: str, loop: str, reloads: int) -> None:
    result = run(Settings(reloads=reloads, interval=0.2, workers=workers, http=http, loop=loop))
    outcome = (result.lost, result.duplicated, result.reconnects, result.problems)
    assert outcome == (0, 0, 0, []), table(result)
