"""The application's own metrics in a whole server: who has none pays nothing, who counts is in the sums.

`tests.frameworks.test_prometheus` has what is built on prometheus_client.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve_asgi.cli import control_client
from tests.admin.scraping import ADMIN, Series, admin_address, fetch, parsed, scrape, wait_for
from tests.running import RunningServer, running, until

APPLICATION = """
import asyncio, os

async def app(scope, receive, send):
    assert scope["type"] == "http"
    content = str(os.getpid())
    if scope["path"] != "/":
        import counting
        if scope["path"] == "/count":
            counting.COUNTED.labels(by="worker").inc()
        else:
            content = counting.shown()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": content.encode()})

async def agent():
    while not os.path.exists("go"):
        await asyncio.sleep(0.01)
    import counting
    counting.COUNTED.labels(by="agent").inc()
    counting.ACTIVE.set(1)
    while True:
        await asyncio.sleep(0.01)
        with open("shown.new", "w") as file:
            file.write(counting.shown())
        os.replace("shown.new", "shown")
"""
COUNTING = """
from serve_asgi import metrics

COUNTED = metrics.Counter("counted", "Counted.", ["by"])
ACTIVE = metrics.Gauge("active", "Active.", mode="worker")

def shown():
    return metrics.exposition()[0].decode()
"""
BY_WORKERS: Series = ("counted_total", (("by", "worker"),))
BY_AGENTS: Series = ("counted_total", (("by", "agent"),))
ACTIVE: Series = ("active", (("worker", "agent"),))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    directory = tmp_path_factory.mktemp("counts")
    (directory / "app.py").write_text(APPLICATION)
    (directory / "counting.py").write_text(COUNTING)
    options = ("--workers", "2", "--agent", "app:agent", *ADMIN)
    with running("app:app", *options, directory=directory) as server:
        yield server


def memories(pid: int) -> list[str]:
    """The memories of metrics that this process has open."""
    found = []
    for each in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found.append(os.readlink(each))
    return [each for each in found if each.startswith("/memfd:serve-metrics")]


def pids(server: RunningServer) -> set[int]:
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    return {server.pid, *map(int, children)}


def at_agent(directory: Path) -> dict[Series, float]:
    """What the agent sees of the metrics of all processes."""
    shown = directory / "shown"
    return parsed(shown.read_text()) if shown.exists() else {}


def test_there_is_no_memory_until_something_is_counted(server: RunningServer) -> None:
    """Then that process has one, as does who is started in its place; what it had counted by then has gone along."""
    address, admin = server.address(), admin_address(server)
    assert fetch(address, "/")[0] == 200
    for pid in pids(server):
        assert memories(pid) == []
        assert "memfd:serve-metrics" not in Path(f"/proc/{pid}/maps").read_text()
    counter = int(fetch(address, "/count")[2])
    wait_for(admin, lambda metrics: metrics.get(BY_WORKERS) == 1)
    assert len(memories(server.pid)) == 1
    os.kill(counter, signal.SIGKILL)
    until(lambda: counter not in pids(server))
    for _ in range(4):
        fetch(address, "/count")
    wait_for(admin, lambda metrics: metrics[BY_WORKERS] == 5)
    assert len(memories(server.pid)) <= 2


def test_the_agents_counts_are_in_the_sums_and_outlive_it(server: RunningServer) -> None:
    """They never go back: not when it is killed, nor at a reload, nor with a new program of the listener."""
    admin = admin_address(server)
    by_workers = scrape(admin).get(BY_WORKERS, 0)
    (server.directory / "go").touch()
    wait_for(admin, lambda metrics: metrics.get(BY_AGENTS) == metrics.get(ACTIVE) == 1)

    def kill() -> None:
        name = f"serve-agent.{server.status()['generation']}"
        (agent,) = [pid for pid in pids(server) if Path(f"/proc/{pid}/comm").read_text().strip() == name]
        os.kill(agent, signal.SIGKILL)

    def replace_listener() -> None:
        control_client.ask(server.control, "reload-listener")

    for change, agents in ((kill, 2), (server.reload, 3), (replace_listener, 3), (kill, 4)):
        change()
        until(functools.partial(counted, server, by_workers, agents), lambda: (scrape(admin), server.log()))
    assert len(memories(server.pid)) <= 3


def counted(server: RunningServer, by_workers: float, by_agents: float) -> bool:
    """Whether the admin process and the agent show these sums; that they have not gone beyond or back is asserted."""
    at_admin, there = scrape(admin_address(server)), at_agent(server.directory)
    assert at_admin.get(BY_WORKERS, 0) == by_workers
    assert by_agents - 1 <= at_admin[BY_AGENTS] <= by_agents
    expected = (by_workers, by_agents)
    return all((shown.get(BY_WORKERS, 0), shown.get(BY_AGENTS)) == expected for shown in (at_admin, there))
