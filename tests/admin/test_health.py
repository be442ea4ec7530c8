"""One verdict, wherever somebody asks whether the server is healthy: `serve status`, `serve top` and /healthz."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serve_asgi.cli import control_client
from tests.admin.scraping import ADMIN, admin_address, fetch
from tests.applications import info
from tests.cli.serving import serve
from tests.running import RunningServer, running, until

BREAKS = """
import pathlib

if pathlib.Path("broken").exists():
    raise RuntimeError("broken")

"""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The application's; new workers fail once there is a file `broken`."""
    made = tmp_path_factory.mktemp("health")
    (made / "app.py").write_text(BREAKS + info())
    return made


@pytest.fixture(scope="module")
def server(directory: Path) -> Iterator[RunningServer]:
    with running("app:app", "--workers", "2", "--worker-timeout", "0", *ADMIN, directory=directory) as server:
        yield server


def healthz(server: RunningServer, query: str = "") -> tuple[int, dict[str, Any]]:
    """What the admin address says: the status, and its reason."""
    status, _, text = fetch(admin_address(server), "/healthz" + query)
    return status, json.loads(text)


def workers_of(server: RunningServer) -> list[int]:
    """The PIDs of the workers, without the admin process."""
    return [each["pid"] for each in control_client.ask(server.control, "stacks")["stacks"]["workers"]]


def first_line(server: RunningServer) -> str:
    return serve(server, "status").stdout.splitlines()[0]


def test_health_of_the_server_as_a_whole_is_told(server: RunningServer) -> None:
    """200 while it should be given traffic, 503 while it drains; with ?live whether it is there."""
    whole = {name: server.status()[name] for name in ("generation", "size")}
    good = {"status": "ok", "workers": 2, "blocked": 0}
    until(lambda: healthz(server) == (200, {**good, **whole}), lambda: healthz(server))
    assert server.status()["health"] == good
    assert first_line(server).endswith(": running, healthy")
    control_client.ask(server.control, "drain")
    until(lambda: healthz(server)[0] == 503, "the drain")
    assert healthz(server)[1]["status"] == server.status()["health"]["status"] == "draining"
    assert healthz(server, "?live")[0] == 200
    control_client.ask(server.control, "drain", off=True)
    until(lambda: healthz(server)[0] == 200, "the end of the drain")


def test_workers_that_are_blocked_are_told_everywhere(server: RunningServer) -> None:
    one, other = workers_of(server)
    os.kill(one, signal.SIGSTOP)
    until(lambda: healthz(server)[1]["blocked"] == 1, lambda: healthz(server))
    server.wait_until(lambda status: bool(status["health"]["blocked"] == 1))
    assert healthz(server)[0] == 200, "the other one serves"
    assert first_line(server).endswith(": running, healthy, but 1 of 2 workers blocked")

    os.kill(other, signal.SIGSTOP)
    server.wait_until(lambda status: bool(status["health"]["blocked"] == 2))
    until(lambda: healthz(server)[0] == 503, lambda: healthz(server))
    assert healthz(server)[1]["status"] == "every worker is blocked"
    assert first_line(server).endswith(": running, unhealthy: every worker is blocked")
    for command in (("workers",), ("top", "--once", "--interval", "0.1")):
        done = serve(server, *command, COLUMNS="80")
        assert done.stdout.count(" blocked ") == 2 + ("top" in command), done.stdout

    for pid in (one, other):
        os.kill(pid, signal.SIGCONT)
    until(lambda: healthz(server)[0] == 200, lambda: healthz(server))
    server.wait_until(lambda status: status["health"] == {"status": "ok", "workers": 2, "blocked": 0})


def test_a_server_whose_workers_all_die_is_unhealthy_everywhere(server: RunningServer, directory: Path) -> None:
    (directory / "broken").touch()
    for pid in workers_of(server):
        os.kill(pid, signal.SIGKILL)
    server.wait_until(lambda status: len(status["degraded"]) == 2)
    until(lambda: healthz(server)[0] == 503, lambda: healthz(server))
    assert healthz(server)[1]["status"] == server.status()["health"]["status"] == "no worker serves"
    assert first_line(server).endswith(": running, unhealthy: no worker serves")
    assert "● no worker serves" in serve(server, "top", "--once", "--interval", "0.1").stdout
