"""`--agent-scope cluster` with real servers: one agent among all, and how long there is none when its server goes."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from serve_asgi.hub.agent_lease import ASK, GRACE, LEASE_TIME
from tests.running import PATIENCE, RunningServer, running
from tests.store.postgres import Postgres, own_postgres
from tests.store.stores import POSTGRES, REDIS, Redis, own_redis

APPLICATION = """
import asyncio, os, time
from serve_asgi import agent

DIARY = os.open(os.path.dirname(__file__) + "/diary", os.O_WRONLY | os.O_APPEND | os.O_CREAT)


async def alone():
    while True:
        os.write(DIARY, f"{time.monotonic()} {os.getpid()} {agent.token}\\n".encode())
        await asyncio.sleep(0.01)


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
"""


class Beat(NamedTuple):
    at: float
    pid: int
    token: int


def beats(directory: Path) -> list[Beat]:
    with contextlib.suppress(FileNotFoundError):
        lines = (directory / "diary").read_text().splitlines()
        return [Beat(float(at), int(pid), int(token)) for at, pid, token in map(str.split, lines)]
    return []


def lives(directory: Path) -> list[tuple[Beat, Beat]]:
    """The first and the last beat of each agent, in order; none begins before the one before it has ended."""
    by_pid: dict[int, list[Beat]] = {}
    for beat in beats(directory):
        by_pid.setdefault(beat.pid, []).append(beat)
    found = [(each[0], each[-1]) for each in by_pid.values()]
    for (before, last), (first, _) in itertools.pairwise(found):
        assert last.at < first.at
        assert before.token <= first.token  # the same lease over a reload
    return found


def until(condition: Callable[[], Any], patience: float = PATIENCE) -> None:
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(params=[REDIS, POSTGRES])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Redis | Postgres]:
    with own_postgres() if request.param == "postgres" else own_redis(tmp_path / "redis", persistent=True) as server:
        yield server


@contextlib.contextmanager
def fleet(directory: Path, place: Redis | Postgres) -> Iterator[tuple[RunningServer, RunningServer]]:
    (directory / "app.py").write_text(APPLICATION)
    options = ("app:app", "--agent", "app:alone", "--agent-scope", "cluster", "--state", place.url)
    with running(*options, directory=directory) as one:
        until(lambda: beats(directory))
        with running(*options, directory=directory) as other:
            yield one, other


def test_one_server_of_two_has_the_agent_and_it_passes_on(tmp_path: Path, place: Redis | Postgres) -> None:
    """By a reload within its server; to the other one when that ends in order."""
    with fleet(tmp_path, place) as (one, other):
        assert other.status()["agent_elsewhere"]
        assert [agent["state"] for agent in other.status()["agents"]] == ["prepared"]
        one.reload()
        other.reload()
        until(lambda: len(lives_of(tmp_path)) == 2)
        assert beats(tmp_path)[-1].pid in one.worker_pids()
        assert one.stop() == 0
        until(lambda: len(lives_of(tmp_path)) == 3)
        assert beats(tmp_path)[-1].pid in other.worker_pids()
        assert not other.status()["agent_elsewhere"]
    (reloaded, _), (_, last), (first, _) = lives(tmp_path)
    assert reloaded.token < first.token
    print(f"the gap of an end in order: {first.at - last.at:.2f} s")
    assert first.at - last.at < ASK + PATIENCE


def lives_of(directory: Path) -> set[int]:
    return {beat.pid for beat in beats(directory)}


@pytest.mark.needs("redis-server")
def test_a_server_that_dies_or_is_cut_off_loses_the_agent_and_never_are_there_two(tmp_path: Path) -> None:
    """All processes of the first are killed: the lease has to end. Then the store stops: the agent ends before that."""
    with own_redis(tmp_path / "redis", persistent=True) as place, fleet(tmp_path, place) as (one, other):
        for pid in [one.pid, *one.worker_pids()]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        killed = time.monotonic()
        until(lambda: len(lives_of(tmp_path)) == 2, LEASE_TIME + ASK + PATIENCE)
        print(f"the gap of a killed server: {time.monotonic() - killed:.2f} s")
        place.signal(signal.SIGSTOP)
        stopped = time.monotonic()
        until(lambda: "the lease of the fleet's agent is lost" in other.log(), LEASE_TIME + PATIENCE)
        until(
            lambda: not [agent for agent in other.status()["agents"] if agent["state"] not in ("starting", "prepared")]
        )
        assert beats(tmp_path)[-1].at < stopped + LEASE_TIME
        assert beats(tmp_path)[-1].at > stopped + LEASE_TIME - 5 - 2 * GRACE
        place.signal(signal.SIGCONT)
        until(lambda: len(lives_of(tmp_path)) == 3)
    tokens = [first.token for first, _ in lives(tmp_path)]
    assert tokens == sorted(set(tokens))
