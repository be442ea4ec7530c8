"""What the tests of the store share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.store.stores import Redis, own_redis


@pytest.fixture(scope="module")
def shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    """One for all tests of a module that do it no harm; each uses a prefix of its own."""
    with own_redis(tmp_path_factory.mktemp("redis") / "data") as server:
        yield server


@pytest.fixture
def url(shared_redis: Redis, tmp_path: Path) -> str:
    """A place of the test's own in it."""
    return f"{shared_redis.url}?prefix={tmp_path.name}"
