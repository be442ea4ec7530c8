"""The server as PID 1 (pid_namespaces(7)): no default actions to rely on, and every orphan of the container is its own.

The kernel gives PID 1 only the signals that it has handlers for, also when they come from outside the namespace.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.running import PATIENCE, RunningServer, children, connect, request, running, state_of

UNSHARE = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")

pytestmark = [
    pytest.mark.needs("unshare"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make a PID namespace"),
]

APP = """
import json, os, time

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        raise RuntimeError("none")
    path, told = scope["path"], {"listener": os.getppid(), "slot": scope["extensions"]["serve"]["slot"]}
    told["generation"] = scope["extensions"]["serve"]["generation"]
    if path.startswith("/orphan/"):  # a grandchild, whose parent leaves at once, lives this long
        if not (child := os.fork()):
            if not os.fork():
                time.sleep(float(path.removeprefix("/orphan/")))
            os._exit(0)
        os.waitpid(child, 0)
    body = json.dumps(told).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})
"""

BLOCKED = """
open({path!r}, "w").close()  # a fifo: opens when the test reads it
import time
time.sleep(1000)
"""


@contextlib.contextmanager
def contained(directory: Path, *arguments: str) -> Iterator[tuple[RunningServer, int]]:
    """A server that is PID 1 of its own namespace, and its PID outside."""
    (directory / "app.py").write_text(APP)
    with running("app:app", "--workers", "2", *arguments, directory=directory, wrapper=UNSHARE) as server:
        (pid,) = children(server.pid)
        yield server, pid


def told(server: RunningServer, path: str = "/") -> dict[str, int]:
    with connect(server) as connection:
        status, body = request(connection, path)
    assert status == 200
    answer: dict[str, int] = json.loads(body)
    return answer


def wait_for_generation(server: RunningServer, number: int) -> None:
    """Wait until this generation alone is left."""
    server.wait_until(lambda status: [each["number"] for each in status["generations"]] == [number])


def pid_within(pid: int) -> int:
    """The PID that a process has in its own namespace (proc(5), NSpid)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("NSpid:")).split()[-1])


def wait_for_end(pid: int) -> None:
    """Wait until a process that is not our child has ended (pidfd_open(2))."""
    with contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(pid)
        try:
            assert select.select([descriptor], [], [], PATIENCE)[0], f"process {pid} lives on"
        finally:
            os.close(descriptor)


def test_it_is_pid_1_and_term_stops_it(tmp_path: Path) -> None:
    with contained(tmp_path, "--pid-file", str(tmp_path / "pid")) as (server, pid):
        assert pid_within(pid) == 1
        assert (tmp_path / "pid").read_text().split() == ["1"]
        assert told(server)["listener"] == 1
        os.kill(pid, signal.SIGTERM)
        assert server.wait() == 0


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGQUIT])
def test_int_and_quit_stop_it_quickly(tmp_path: Path, sign: signal.Signals) -> None:
    with contained(tmp_path) as (server, pid):
        os.kill(pid, sign)
        assert server.wait() == 0


def test_hup_reloads_on_the_same_connection(tmp_path: Path) -> None:
    with contained(tmp_path) as (server, pid):
        with connect(server) as connection:
            assert json.loads(request(connection)[1])["generation"] == 1
            for generation in (2, 3):
                os.kill(pid, signal.SIGHUP)
                wait_for_generation(server, generation)
                assert json.loads(request(connection)[1])["generation"] == generation
        assert children(server.pid) == [pid]
        os.kill(pid, signal.SIGTERM)
        assert server.wait() == 0


@pytest.mark.once
def test_signals_without_a_meaning_do_nothing(tmp_path: Path) -> None:
    with contained(tmp_path) as (server, pid):
        for sign in (signal.SIGALRM, signal.SIGPIPE, signal.SIGWINCH, signal.SIGUSR1):
            os.kill(pid, sign)
        assert told(server)["generation"] == 1
        os.kill(pid, signal.SIGTERM)
        assert server.wait() == 0


def test_a_killed_worker_is_reaped_and_replaced(tmp_path: Path) -> None:
    with contained(tmp_path) as (server, pid):
        before = children(pid)
        os.kill(before[0], signal.SIGKILL)
        server.wait_until(lambda _: before[0] not in children(pid))
        server.wait_for_workers(2)
        after = children(pid)
        assert len(after) == 2
        assert before[0] not in after
        assert {told(server)["generation"] for _ in range(4)} == {1}
        os.kill(pid, signal.SIGTERM)
        assert server.wait() == 0


def test_orphans_are_reaped(tmp_path: Path) -> None:
    with contained(tmp_path) as (server, pid):
        workers = set(children(pid))
        for _ in range(20):
            told(server, "/orphan/0.2")
        adopted = set(children(pid)) - workers
        for orphan in adopted:
            wait_for_end(orphan)
        server.wait_until(lambda _: set(children(pid)) == workers)
        assert not [child for child in workers if state_of(child) == "Z"]
        assert told(server)["generation"] == 1
        os.kill(pid, signal.SIGTERM)
        assert server.wait() == 0


@pytest.mark.once
def test_an_orphan_that_lives_does_not_hold_up_the_end(tmp_path: Path) -> None:
    with contained(tmp_path) as (server, pid):
        workers = set(children(pid))
        told(server, "/orphan/1000")
        (orphan,) = set(children(pid)) - workers
        os.kill(pid, signal.SIGHUP)
        wait_for_generation(server, 2)
        assert orphan in children(pid)
        os.kill(pid, signal.SIGTERM)
        assert server.wait() == 0
        wait_for_end(orphan)  # the kernel ends the namespace with its PID 1


def test_term_during_the_first_start(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    (tmp_path / "app.py").write_text(BLOCKED.format(path=str(fifo)))
    server = RunningServer("app:app", directory=tmp_path, wrapper=UNSHARE)
    try:
        with fifo.open("rb") as opened:
            assert opened.read() == b""
        (pid,) = children(server.pid)
        os.kill(pid, signal.SIGTERM)
        assert server.wait() == 0
    finally:
        print(server.log())
        server.close()


@pytest.mark.once
def test_an_application_that_cannot_start_ends_it_with_status_1(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("raise RuntimeError('broken')\n")
    server = RunningServer("app:app", directory=tmp_path, wrapper=UNSHARE)
    try:
        assert server.wait() == 1
        assert "RuntimeError: broken" in server.log()
    finally:
        server.close()
