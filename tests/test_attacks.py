"""Attempts to bring the server down or to make it lose something, each one after a sentence that it promises.

What is tried here is rare and none of a client's doing: deaths by odd signals, signals at the very end, limits,
directories that vanish, a listener that is stopped or killed while a worker is busy.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import time
from pathlib import Path

import pytest

from serve_asgi.cli.control_client import RequestRefused
from tests.applications import info
from tests.running import RunningServer, connect, request, running, state_of, until


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A directory with an application in it."""
    (tmp_path / "app.py").write_text(info())
    return tmp_path


def await_end(pids: list[int]) -> None:
    """Wait until none of these processes lives."""
    until(lambda: all(state_of(pid) in ("", "Z") for pid in pids), lambda: f"the end of {pids}")


def check_serves(server: RunningServer, workers: int) -> None:
    server.wait_for_workers(workers)
    with connect(server) as connection:
        assert request(connection)[0] == 200
    assert server.stop() == 0


def test_a_worker_may_die_of_a_signal_without_a_name(project: Path) -> None:
    with running("app:app", "--workers", "2", directory=project) as server:
        victim = server.worker_pids()[0]
        os.kill(victim, 40)  # a real-time signal
        await_end([victim])
        check_serves(server, 2)
        assert "signal 40" in server.log()


def test_signals_up_to_the_last_moment_change_nothing_about_the_end(project: Path) -> None:
    """HUP, USR1 and USR2 without a handler are death: the pid file would stay, and the exit status would lie."""
    with running("app:app", "--pid-file", "server.pid", directory=project) as server:
        server.signal(signal.SIGTERM)
        while server.process.poll() is None:
            for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(server.pid, number)
            time.sleep(0.001)
        assert server.wait() == 0
    assert not (project / "server.pid").exists()


def test_a_deploy_may_remove_the_directory_that_the_server_was_started_in(tmp_path: Path) -> None:
    """`current` pointed to a release that is gone by now; the listener's own directory is still that one."""
    for release in ("1", "2"):
        (tmp_path / release).mkdir()
        (tmp_path / release / "app.py").write_text(info(release))
    current = tmp_path / "current"
    current.symlink_to("1")
    with running("app:app", directory=current, environment={"PWD": str(current)}) as server:
        with connect(server) as connection:
            assert b'"version": "1"' in request(connection)[1]
            (tmp_path / "next").symlink_to("2")
            (tmp_path / "next").replace(current)
            shutil.rmtree(tmp_path / "1")
            server.reload()
            server.wait_for_workers(1)
            assert b'"version": "2"' in request(connection)[1]
        check_serves(server, 1)


def test_a_flood_of_the_control_socket_leaves_descriptors_for_a_reload(project: Path) -> None:
    """Who asks waits then, and nobody else notices."""
    wrapper = ("bash", "-c", 'ulimit -n 80; exec "$@"', "bash")
    with running("app:app", "--workers", "2", directory=project, wrapper=wrapper) as server, connect(server) as client:
        with contextlib.ExitStack() as stack:
            for _ in range(100):
                caller = stack.enter_context(socket.socket(socket.AF_UNIX))
                caller.connect(str(server.control))
            server.signal(signal.SIGHUP)
            while b'"generation": 2' not in request(client)[1]:
                time.sleep(0.01)
            assert "Too many open files" not in server.log()
        server.reload()
        client.close()
        check_serves(server, 2)


def test_a_long_traceback_in_any_script_reaches_the_operator(project: Path) -> None:
    with running("app:app", directory=project) as server:
        (project / "app.py").write_text("raise RuntimeError('\u00fc\u4e2d\U0001f426' * 40_000 + 'the last words')\n")
        with pytest.raises(RequestRefused, match="cannot be imported") as refused:
            server.reload()
        assert "the last words" in refused.value.detail
        check_serves(server, 1)


STUBBORN = """    if scope["path"] == "/block":
        import time
        time.sleep(1000)
    if scope["path"] == "/ignore":
        import asyncio
        while True:
            try:
                await asyncio.sleep(1000)
            except asyncio.CancelledError:
                pass
    more = True
"""
SHORT = ("--graceful-timeout", "0.5", "--shutdown-timeout", "0.5")


@pytest.fixture
def stubborn(project: Path) -> Path:
    """An application that blocks its loop for /block, and ignores cancellation for /ignore."""
    (project / "app.py").write_text(info().replace("    more = True\n", STUBBORN))
    return project


@pytest.mark.parametrize(("path", "by"), [("/block", signal.SIGKILL), ("/ignore", signal.SIGTERM)])
def test_a_worker_that_does_not_end_has_an_end(stubborn: Path, path: str, by: signal.Signals) -> None:
    """Its listener kills it at the timeout, or, with the listener dead, its own watch does."""
    with running("app:app", *SHORT, directory=stubborn) as server, connect(server) as connection:
        pids = server.worker_pids()
        connection.sendall(f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        server.wait_until(lambda status: any(w["in_flight"] for w in status["workers"]))
        server.signal(by)
        assert server.wait() == (-by if by == signal.SIGKILL else 0)
        await_end(pids)


def test_the_port_is_free_soon_after_the_listener_was_killed_amid_a_reload_that_hangs(project: Path) -> None:
    with running("app:app", *SHORT, directory=project) as server:
        host, port = server.address()
        (project / "app.py").write_text("open('importing', 'w').close()\nimport time\ntime.sleep(1000)\n")
        server.signal(signal.SIGHUP)
        while not (project / "importing").exists():
            time.sleep(0.01)
        pids = server.worker_pids()
        assert len(pids) == 2
        server.signal(signal.SIGKILL)
        server.process.wait()
        (project / "app.py").write_text(info())
        with running("app:app", directory=project, bind=f"{host}:{port}") as successor:
            check_serves(successor, 1)
        await_end(pids)


def test_another_servers_control_socket_is_left_alone(project: Path) -> None:
    with running("app:app", directory=project) as first:
        with running("app:app", "--control", str(first.control), directory=project) as second:
            assert "another server listens" in second.log()
            assert first.status()["pid"] == first.pid
            assert second.stop() == 0
        check_serves(first, 1)


def test_a_listener_with_few_descriptors_introduces_all_the_same(project: Path) -> None:
    """Eight old workers and eight new ones are 64 pairs; no more than one of them is in the listener's hands.

    It holds five descriptors for each worker and a dozen more.
    """
    wrapper = ("bash", "-c", 'ulimit -n 98; exec "$@"', "bash")
    many = ("--workers", "8", "--start-concurrency", "8")
    with running("app:app", *many, directory=project, wrapper=wrapper) as server:
        connections = [connect(server) for _ in range(16)]
        for connection in connections:
            assert request(connection)[0] == 200
        server.reload()
        server.wait_for_workers(8)
        for connection in connections:
            assert b'"generation": 2' in request(connection)[1]
            connection.close()
        assert "Too many open files" not in server.log()
        check_serves(server, 8)


def test_a_listener_at_its_limit_keeps_no_descriptor_of_what_it_could_not_tell(project: Path) -> None:
    """Nearly all are in use while two generations live: who serves beside whom cannot be told to all of them."""
    wrapper = ("bash", "-c", 'ulimit -n 97; exec "$@"', "bash")
    with running("app:app", "--workers", "8", directory=project, wrapper=wrapper) as server:
        at_rest = len(os.listdir(f"/proc/{server.pid}/fd"))
        for _ in range(3):
            server.reload()
            server.wait_for_workers(8)
        server.wait_until(lambda _: len(os.listdir(f"/proc/{server.pid}/fd")) <= at_rest)
        check_serves(server, 8)


TAKES_AND_WAITS = """
import os, time
from serve_asgi.ipc import packets
from serve_asgi.worker.hand_over_receiver import HandOverReceiver

def offered(receiver, pair, packet, descriptors, original=HandOverReceiver._offered):
    if isinstance(packet, packets.Commit) and not os.path.exists("listener-dead"):
        open("taken", "w").close()
        while not os.path.exists("listener-dead"):
            time.sleep(0.01)
        packet = packets.Commit(10**9)  # of nothing: as if the sender had died or withdrawn before it
    original(receiver, pair, packet, descriptors)

HandOverReceiver._offered = offered
"""


def test_workers_amid_a_hand_over_leave_soon_after_their_listener_was_killed(project: Path) -> None:
    """A receiver that holds what was not committed has nobody to ask any more, and waits for nobody."""
    with running("app:app", "--graceful-timeout", "60", directory=project) as server:
        connections = [connect(server) for _ in range(10)]
        for connection in connections:
            assert request(connection)[0] == 200
        (project / "app.py").write_text(TAKES_AND_WAITS + info("2"))
        server.signal(signal.SIGHUP)
        while not (project / "taken").exists():
            time.sleep(0.005)
        pids = server.worker_pids()
        server.signal(signal.SIGKILL)
        server.process.wait()
        (project / "listener-dead").touch()
        await_end(pids)
        for connection in connections:
            connection.close()
