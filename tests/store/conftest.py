"""What the tests of the store share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.store.postgres import Postgres, own_place, own_postgres
from tests.store.stores import POSTGRES, REDIS, Redis, own_redis


@pytest.fixture(scope="module")
def shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    """One for all tests of a module that do it no harm; each uses a prefix of its own."""
    with own_redis(tmp_path_factory.mktemp("redis") / "data") as server:
        yield server


@pytest.fixture(scope="session")
def shared_postgres() -> Iterator[Postgres]:
    """One for all tests that do it no harm; each uses a schema of its own."""
    with own_postgres() as server:
        yield server


@pytest.fixture(params=[REDIS, POSTGRES])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place of the test's own in what several servers share."""
    if request.param == "postgres":
        server: Postgres = request.getfixturevalue("shared_postgres")
        return own_place(server)
    redis: Redis = request.getfixturevalue("shared_redis")
    return f"{redis.url}?prefix={tmp_path.name.replace('[', '-').replace(']', '')}"
