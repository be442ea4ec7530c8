"""The examples on real servers: started as their READMEs say, asked by real clients."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.running import PATIENCE, ROOT, RunningServer, connect, request, running

EXAMPLES = ROOT / "examples"


@contextlib.contextmanager
def example(app: str, *arguments: str, directory: Path, environment: dict[str, str]) -> Iterator[RunningServer]:
    """The example that the module of `app` belongs to, run in `directory`."""
    name = app.partition(":")[0]
    place = ("--app-dir", str(EXAMPLES / name))
    # no proxy of this machine's stands between an example and what the test has on the loopback
    environment = {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", **environment}
    with running(app, *place, *arguments, directory=directory, environment=environment) as server:
        yield server


def ask(server: RunningServer, path: str) -> dict[str, Any]:
    """The JSON of an answer, on a connection of its own: the next worker's turn."""
    with connect(server) as connection:
        status, content = request(connection, path)
    assert status == 200, (status, content)
    found: dict[str, Any] = json.loads(content)
    return found


def ask_each(server: RunningServer, path: str, workers: int) -> dict[int, dict[str, Any]]:
    """The first answer of each worker, by its slot; the answers name it as `worker`."""
    found: dict[int, dict[str, Any]] = {}

    def all_have_answered() -> bool:
        answer = ask(server, path)
        found.setdefault(answer["worker"], answer)
        return len(found) == workers

    until(all_have_answered)
    return found


def reload(server: RunningServer) -> None:
    """Reload, and wait until no worker of the old code is left to answer."""
    server.reload()
    server.wait_until(lambda status: len(status["generations"]) == 1)


def until(condition: Callable[[], bool]) -> None:
    """Look again and again until it holds: for what has no event on this side of a socket."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "in vain"
        time.sleep(0.02)
