"""Datasette: whole pages, JSON, and a table streamed as CSV."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.frameworks.driving import client, reload_under_use, serving
from tests.running import RunningServer

pytestmark = pytest.mark.frameworks("datasette", "httpx")
CSV = "number,square\r\n" + "".join(f"{n},{n * n}\r\n" for n in range(2000))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with serving("datasette_app:app", tmp_path_factory.mktemp("datasette")) as server:
        yield server


def rows(asking: httpx.Client) -> int:
    found = asking.get("/data/numbers.json?_shape=array&number__gte=1998").json()
    assert found == [{"number": n, "square": n * n} for n in (1998, 1999)]
    return int(asking.get("/-/pid").json()["pid"])


def test_requests_over_a_reload(server: RunningServer) -> None:
    reload_under_use(server, rows, rows)


def test_what_it_answers(server: RunningServer) -> None:
    with client(server) as asking:
        assert "numbers" in asking.get("/").text
        assert asking.get("/data/numbers.csv?_stream=on").text == CSV
        assert asking.get("/nowhere").status_code == 404
