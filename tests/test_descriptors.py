"""What a whole server does when open files run out: clients wait, nothing is lost, deploys cost no more."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve_asgi.ipc import open_files_limit as descriptors
from tests.applications import info
from tests.running import RunningServer, answer, connect, request, running, until

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
HALF = b"GET /half HTTP/1.1\r\nHo"


def few(limit: int) -> tuple[str, ...]:
    return ("bash", "-c", f'ulimit -n {limit}; exec "$@"', "bash")


@contextlib.contextmanager
def flooded(server: RunningServer, count: int) -> Iterator[tuple[list[socket.socket], list[socket.socket]]]:
    """So many clients that have asked for something: those that have been answered, and those that wait."""
    with contextlib.ExitStack() as opened:
        clients = [opened.enter_context(connect(server)) for _ in range(count)]
        for client in clients:
            client.sendall(GET)
        answered = set[socket.socket]()

        def rest() -> bool:
            waiting = [client for client in clients if client not in answered]
            found, _, _ = select.select(waiting, [], [], 0.5)
            answered.update(client for client in found if answer(client)[0] == 200)
            return not found

        until(rest)
        yield [client for client in clients if client in answered], [c for c in clients if c not in answered]


def generation(connection: socket.socket) -> bytes:
    """Who answers."""
    return request(connection)[1].partition(b'"generation": ')[2][:1]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_a_flood_before_a_reload_changes_nothing_about_it(tmp_path: Path, loop: str, workers: int) -> None:
    """Idle and half-sent alike: those who are connected go on, before those who would like to be."""
    (tmp_path / "app.py").write_text(info())
    options = ("--workers", str(workers), "--loop", loop, "--graceful-timeout", "10")
    with running("app:app", *options, directory=tmp_path, wrapper=few(80)) as server:
        with flooded(server, 70 * workers) as (connected, waiting):
            assert len(connected) >= 25 * workers
            assert len(waiting) >= 10
            assert "the rest is reserved" in server.log()
            halves = connected[::3]
            for client in halves:
                client.sendall(HALF)
            server.reload()
            for client in waiting:
                client.close()
            whole = [client for client in connected if client not in halves]
            until(lambda: {generation(client) for client in whole} == {b"2"})
            for client in halves:
                client.sendall(b"st: a\r\n\r\n")
                assert answer(client)[0] == 200
            server.wait_for_workers(workers)
            assert "without its descriptors" not in server.log()
        assert server.stop() == 0


def test_who_waits_is_served_as_soon_as_others_leave_and_nobody_spins(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(info())
    with running("app:app", directory=tmp_path, wrapper=few(64)) as server:
        with flooded(server, 60) as (connected, waiting):
            pid = server.worker_pids()[0]
            before = os.times().elapsed, cpu(pid)
            assert not select.select(waiting, [], [], 1.5)[0]
            assert cpu(pid) - before[1] < 0.3 * (os.times().elapsed - before[0])
            for client in connected:
                client.close()
            assert answer(waiting[0])[0] == 200
        assert server.stop() == 0


def cpu(pid: int) -> float:
    """Seconds of processor time."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


EATS = """
import contextlib

async def eats(scope, receive, send, app=app, eaten=[]):
    if scope["type"] == "http" and scope["path"] == "/eat":
        with contextlib.suppress(OSError):
            while True:
                eaten.append(os.eventfd(0))
    if scope["type"] == "http" and scope["path"] == "/free":
        while eaten:
            os.close(eaten.pop())
    await app(scope, receive, send)

app = eats
"""


def test_workers_are_introduced_again_once_a_descriptor_can_be_had(tmp_path: Path) -> None:
    """The application has used up what is kept as well: nothing is closed for it, and all travel in the end."""
    (tmp_path / "app.py").write_text(info() + EATS)
    with running("app:app", directory=tmp_path, wrapper=few(80)) as server, contextlib.ExitStack() as opened:
        clients = [opened.enter_context(connect(server)) for _ in range(20)]
        for client in clients:
            assert request(client)[0] == 200
        assert request(clients[0], "/eat")[0] == 200
        server.signal(signal.SIGHUP)
        server.logged("without its descriptors")
        clients[1].sendall(HALF)
        assert generation(clients[2]) == b"1"  # and goes on
        assert request(clients[0], "/free")[0] == 200
        server.wait_for_workers(1)
        clients[1].sendall(b"st: a\r\n\r\n")
        assert b'"generation": 2' in answer(clients[1])[1]
        assert {generation(client) for client in clients} == {b"2"}
        assert server.status()["totals"]["taken_over"] == 20


def test_a_stop_serves_those_whom_the_kernel_has_accepted(tmp_path: Path) -> None:
    """Idle connections make room for them."""
    (tmp_path / "app.py").write_text(info())
    with running("app:app", directory=tmp_path, wrapper=few(64)) as server, flooded(server, 60) as (_, waiting):
        server.signal(signal.SIGTERM)
        assert [answer(client)[0] for client in waiting] == [200] * len(waiting)
        assert server.wait() == 0


def test_the_reserve_leaves_room_for_clients() -> None:
    assert [descriptors.reserve(limit) for limit in (40, 64, 256, 1024, 4096, 1 << 20)] == [10, 12, 24, 72, 256, 256]
