"""How new connections are spread over the workers, and that nobody waits for a worker that does not answer."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
import re
import select
import signal
import socket
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loadtest.balance import PASS_ON, Address, ask, connect, ratio, spread
from tests.running import PATIENCE, RunningServer, answer, running, state_of

WORKERS = 4
RUNS = 9
COUNT = 100
EVEN = 1.3
"""What a random choice exceeds rarely, over the median of nine runs never, and the kernel's own choice always."""

APP = """
import asyncio, os, time

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            kind = (await receive())["type"]
            await send({"type": kind + ".complete"})
            if kind == "lifespan.shutdown":
                return
    if scope["path"].startswith("/block"):  # until the named file exists: the loop of this worker stands still
        os.close(os.open(scope["path"][6:] + ".blocked", os.O_CREAT))
        while not os.path.exists(scope["path"][6:]):
            time.sleep(0.01)
    body = b"%d" % os.getpid()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Served:
    """One server that listens in every way there is."""

    server: RunningServer
    addresses: dict[str, Address]


def start(directory: Path, *arguments: str, **more: Any) -> contextlib.AbstractContextManager[RunningServer]:
    (directory / "balanced.py").write_text(APP)
    workers = ("--workers", str(WORKERS), "--start-concurrency", str(WORKERS))
    return running("balanced:app", *workers, "--no-access-log", *arguments, directory=directory, **more)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    directory = tmp_path_factory.mktemp("served")
    path = str(directory / "socket")
    with (
        socket.create_server(("127.0.0.1", 0), backlog=2048) as given,
        socket.create_server(("127.0.0.1", 0), backlog=2048) as managed,
        start(
            directory,
            *("--fd", str(given.fileno()), "--bind", "127.0.0.1:0", "--bind", f"unix:{path}"),
            bind="",
            pass_fds=[given.fileno(), managed.fileno()],
            wrapper=[sys.executable, "-c", PASS_ON, str(managed.fileno())],
        ) as server,
    ):
        told = [name for name in server.status()["listening"] if name.startswith("http://")]
        tcp = ("127.0.0.1", int(told[0].rpartition(":")[2]))
        addresses: dict[str, Address] = {"tcp": tcp, "unix": path}
        yield Served(server, addresses | {"fd": given.getsockname(), "listen_fds": managed.getsockname()})


def even(address: Address, keep: bool, workers: int = WORKERS) -> float:
    """The median over the runs of what the busiest worker got in relation to the mean."""
    return statistics.median(ratio(spread(address, COUNT, keep), workers) for _ in range(RUNS))


@pytest.mark.parametrize("keep", [True, False], ids=["kept", "one-shot"])
@pytest.mark.parametrize("kind", ["tcp", "unix", "fd", "listen_fds"])
def test_new_connections_are_spread_evenly(kind: str, keep: bool, served: Served) -> None:
    assert even(served.addresses[kind], keep) <= EVEN


def test_on_asyncios_own_loop_too(tmp_path: Path) -> None:
    with start(tmp_path, "--loop", "asyncio") as server:
        assert even(server.address(), keep=False) <= EVEN
        assert_in_line(server, server.address()[1])


def test_the_workers_stand_in_line(served: Served) -> None:
    address = served.addresses["tcp"]
    spread(address, 20, keep=False)
    assert_in_line(served.server, int(address[1]))


def test_a_stopped_worker_keeps_nobody_waiting(served: Served) -> None:
    address = served.addresses["tcp"]
    with connect(address) as one:
        stopped = ask(one)
        os.kill(stopped, signal.SIGSTOP)
        try:
            while state_of(stopped) != "T":
                pass
            found = spread(address, COUNT, keep=False)
        finally:
            os.kill(stopped, signal.SIGCONT)
        assert ask(one) == stopped
    assert found.total() == COUNT
    assert stopped not in found
    assert ratio(found, WORKERS - 1) <= EVEN
    assert stopped in spread(address, COUNT, keep=False)  # it goes on as one of them


def test_a_blocked_worker_keeps_nobody_waiting(served: Served, tmp_path: Path) -> None:
    address = served.addresses["tcp"]
    release = tmp_path / "release"
    with connect(address) as blocking:
        blocked = ask(blocking)
        blocking.sendall(f"GET /block{release} HTTP/1.1\r\nhost: test\r\n\r\n".encode())
        while not Path(f"{release}.blocked").exists():
            select.select([], [], [], 0.01)
        try:
            found = spread(address, COUNT, keep=False)
        finally:
            release.touch()
        assert answer(blocking) == (200, str(blocked).encode())
    assert found.total() == COUNT
    assert blocked not in found
    assert ratio(found, WORKERS - 1) <= EVEN


def test_a_burst_is_answered_whole(served: Served) -> None:
    """Clients that come all at once, and then nobody: no later one wakes a worker for them."""
    address = served.addresses["tcp"]
    for _ in range(10):
        with contextlib.ExitStack() as kept:
            burst = [kept.enter_context(connect(address)) for _ in range(50)]
            assert len([ask(each) for each in burst]) == 50


def test_after_the_number_of_workers_has_changed(served: Served) -> None:
    address = served.addresses["tcp"]
    for number, workers in ((signal.SIGTTIN, WORKERS + 1), (signal.SIGTTOU, WORKERS)):
        served.server.signal(number)
        served.server.wait_for_workers(workers)
        assert even(address, keep=False, workers=workers) <= EVEN


def until_all_wait(server: RunningServer) -> None:
    """Wait until every worker sleeps: one that is still busy with the last client is not in the line for the next."""
    pids = server.worker_pids()
    limit = time.monotonic() + PATIENCE
    while any(state_of(pid) != "S" for pid in pids):
        assert time.monotonic() < limit, "a worker never waits"
        os.sched_yield()


def clients_of_a_fresh_worker(server: RunningServer, address: Address) -> tuple[int, int]:
    """Of 60 clients, one by one: how many a worker gets that has just started, and how many workers get some."""
    with contextlib.ExitStack() as kept:
        for _ in range(60 * WORKERS):
            ask(kept.enter_context(connect(address)))
        before = set(server.worker_pids())
        killed = min(before)
        os.kill(killed, signal.SIGKILL)
        server.wait_until(lambda _: killed not in server.worker_pids())
        server.wait_for_workers(WORKERS)
        (fresh,) = set(server.worker_pids()) - before
        found: collections.Counter[int] = collections.Counter()
        for _ in range(60):
            until_all_wait(server)
            found[ask(kept.enter_context(connect(address)))] += 1
    return found[fresh], len(found)


def test_a_worker_with_fewer_connections_gets_more_but_not_all(served: Served) -> None:
    clients, workers = clients_of_a_fresh_worker(served.server, served.addresses["tcp"])
    assert workers == WORKERS
    assert clients > 60 / WORKERS


def test_connections_are_answered_while_a_reload_replaces_the_workers(served: Served) -> None:
    server, address = served.server, served.addresses["tcp"]
    found: list[collections.Counter[int]] = []
    over = threading.Event()

    def load() -> None:
        while not over.is_set():
            found.append(spread(address, COUNT, keep=False))

    loading = threading.Thread(target=load)
    loading.start()
    try:
        server.reload()
    finally:
        over.set()
        loading.join(PATIENCE)
    assert sum(each.total() for each in found) == COUNT * len(found) > 0
    server.wait_for_workers(WORKERS)
    assert even(address, keep=True) <= EVEN


def assert_in_line(server: RunningServer, port: int) -> None:
    """The loops' own epolls hold the listening socket with EPOLLEXCLUSIVE: else evenness would be luck."""
    inode = listening_inode(port)
    for pid in server.worker_pids():
        links = {int(link.name): os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()}
        (number,) = [number for number, target in links.items() if target == f"socket:[{inode}]"]
        registered = [
            int(events, 16)
            for epoll in [epoll for epoll, target in links.items() if target == "anon_inode:[eventpoll]"]
            for target, events in re.findall(
                r"tfd: +(\d+) events: +([0-9a-f]+)", Path(f"/proc/{pid}/fdinfo/{epoll}").read_text()
            )
            if int(target) == number
        ]
        assert registered
        assert all(events & select.EPOLLEXCLUSIVE for events in registered)


def listening_inode(port: int) -> str:
    """The inode of the socket that listens on a port (proc(5), /proc/net/tcp)."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1].endswith(f":{port:04X}") and fields[3] == "0A":
            return fields[9]
    raise AssertionError(f"nobody listens on {port}")
