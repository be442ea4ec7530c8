"""Schedules of servers with one Redis or PostgreSQL: each tick once in all, fencing tokens, and what a loss does."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.running import running
from tests.schedule_application import APPLICATION, do, notes, outcomes, report, until
from tests.store.postgres import Postgres, own_postgres
from tests.store.stores import POSTGRES, REDIS, Redis, own_redis

SCHEDULES = """
@schedule(every="0.2s", overlap="allow")
async def often():
    note("ran")

@schedule(every="1s", overlap="skip")
async def slow():
    note("began")
    await asyncio.sleep(1.5)
    note("ended")
"""

pytestmark = pytest.mark.once


@pytest.fixture(params=[REDIS, POSTGRES])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Redis | Postgres]:
    with own_postgres() if request.param == "postgres" else own_redis(tmp_path / "redis") as server:
        yield server


def test_two_servers_run_each_tick_once(tmp_path: Path, place: Redis | Postgres) -> None:
    (tmp_path / "app.py").write_text(APPLICATION + SCHEDULES)
    options = ("app:app", "--workers", "2", "--state", place.url)
    with running(*options, directory=tmp_path) as one, running(*options, directory=tmp_path) as other:
        ours, theirs = set(one.worker_pids()), set(other.worker_pids())
        until(lambda: len({note.pid for note in notes(tmp_path, "often")} & ours) > 0)
        until(lambda: len({note.pid for note in notes(tmp_path, "often")} & theirs) > 0)
        other.reload()
        until(lambda: len(notes(tmp_path, "often")) > 30 and len(notes(tmp_path, "slow")) > 5)
        ran = notes(tmp_path, "often")
        assert len({note.instant for note in ran}) == len(ran)
        began = [note for note in notes(tmp_path, "slow") if note.what == "began"]
        assert len({note.instant for note in began}) == len(began)
        whats = [note.what for note in notes(tmp_path, "slow")]
        assert all(pair != ("began", "began") for pair in itertools.pairwise(whats))  # overlap, over both
        for found in (ran, began):
            tokens = [int(note.token) for note in sorted(found, key=lambda note: note.instant)]
            assert tokens == sorted(set(tokens))
        assert "elsewhere" in {*outcomes(one, "often"), *outcomes(other, "often")}


def test_a_pause_holds_on_all_servers(tmp_path: Path, place: Redis | Postgres) -> None:
    (tmp_path / "app.py").write_text(APPLICATION + SCHEDULES)
    options = ("app:app", "--state", place.url)
    with running(*options, directory=tmp_path) as one, running(*options, directory=tmp_path) as other:
        do(one, "pause", "often")
        until(lambda: report(other, "often")["paused"])
        do(other, "resume", "often")
        until(lambda: not report(one, "often")["paused"])


def test_without_the_store_nothing_runs_and_with_it_all_goes_on(tmp_path: Path, place: Redis | Postgres) -> None:
    (tmp_path / "app.py").write_text(APPLICATION + SCHEDULES)
    with running("app:app", "--state", place.url, directory=tmp_path) as server:
        until(lambda: notes(tmp_path, "often"))
        place.kill()
        until(lambda: "cannot be written at present" in server.log(), "the server has noticed")
        before = len(notes(tmp_path, "often"))
        place.start()
        until(lambda: len(notes(tmp_path, "often")) > before + 3)
        ran = [note.instant for note in notes(tmp_path, "often")]
        assert len(ran) == len(set(ran))
