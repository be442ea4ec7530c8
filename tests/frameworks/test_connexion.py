"""Connexion."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.frameworks.driving import client, reload_under_use, serving
from tests.running import RunningServer

pytestmark = pytest.mark.frameworks("connexion", "httpx")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with serving("connexion_app:app", tmp_path_factory.mktemp("connexion")) as server:
        yield server


def square(asking: httpx.Client) -> int:
    told = asking.get("/square/12").json()
    assert told == {"pid": told["pid"], "square": 144}
    return int(told["pid"])


def add(asking: httpx.Client) -> int:
    answer = asking.post("/items", json={"name": "tea"})
    told = answer.json()
    assert (answer.status_code, told) == (201, {"pid": told["pid"], "added": "tea"})
    return int(told["pid"])


def test_requests_over_a_reload(server: RunningServer) -> None:
    reload_under_use(server, square, add)


def test_what_it_refuses(server: RunningServer) -> None:
    with client(server) as asking:
        assert asking.post("/items", json={"name": 1}).status_code == 400
        assert asking.get("/square/x").status_code == 404
        assert asking.get("/nowhere").status_code == 404
