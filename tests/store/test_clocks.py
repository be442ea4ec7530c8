"""Two servers with one Redis or PostgreSQL and one schedule, whose clocks are seconds apart: each tick runs once."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import pytest

from tests.running import PATIENCE, ROOT, running
from tests.schedule_application import APPLICATION, notes

pytestmark = pytest.mark.once

SCHEDULED = """
@schedule(every="1s")
async def tick():
    note("ran")
"""
WRONG_CLOCK = """
import time
real = time.time
time.time = lambda: real() + {apart}
"""


@pytest.mark.parametrize("apart", [2.5])
def test_each_tick_runs_once_though_the_clocks_differ(tmp_path: Path, url: str, apart: float) -> None:
    (tmp_path / "app.py").write_text(APPLICATION + SCHEDULED)
    clock = tmp_path / "clock"
    clock.mkdir()
    (clock / "sitecustomize.py").write_text(WRONG_CLOCK.format(apart=apart))
    wrong = {"PYTHONPATH": f"{clock}:{ROOT}"}
    with running("app:app", "--state", url, directory=tmp_path) as right:
        _wait_for(tmp_path, 2, servers=1)
        with running("app:app", "--state", url, directory=tmp_path, environment=wrong) as fast:
            _wait_for(tmp_path, len(notes(tmp_path)) + 3, servers=2)
            assert fast.stop() == 0
        _wait_for(tmp_path, len(notes(tmp_path)) + 2, servers=2)  # the right one goes on where the other was
        assert right.stop() == 0
    found = notes(tmp_path)
    instants = [each.instant for each in found]
    assert instants == sorted(set(instants))
    tokens = [int(each.token) for each in found]
    assert tokens == sorted(set(tokens))
    gaps = [later - earlier for earlier, later in itertools.pairwise(instants) if later - earlier > 1000]
    assert len(gaps) <= 1, gaps  # when the fast one comes, it is ahead at once: that is what a wrong clock costs
    assert all(gap <= (apart + 2) * 1000 for gap in gaps)


def _wait_for(directory: Path, count: int, servers: int) -> None:
    """Until there were so many runs, by workers of so many servers."""
    deadline = time.monotonic() + PATIENCE
    while len(notes(directory)) < count or len({each.pid for each in notes(directory)}) < servers:
        assert time.monotonic() < deadline, notes(directory)
        time.sleep(0.02)
