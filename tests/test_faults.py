"""Deaths and standstills of workers and of the listener, in real processes.

After each fault the server must serve, and what was lost must be no more than what was in flight in the killed
process. The steps of a hand-over have tests of their own (tests/test_hand_over_faults.py).
"""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path

import pytest

from serve_asgi.cli.control_client import RequestRefused
from tests.applications import info
from tests.hand_over_traps import alive, check_serves, opened, told, trapped
from tests.running import PATIENCE, answer, connect, running, state_of

NEW_DIES_EARLY = {
    "at import": "die()",
    "in startup": "trap(Lifespan, '_send', die)",
    "after ready": "trap(WorkerProcess, '_serve_and_retire', die)",
    "when told to serve": "trap(Acceptor, 'start', die)",
    "when it accepts": "trap(Acceptor, 'start', die, before=False)",
}


@pytest.mark.parametrize("step", NEW_DIES_EARLY)
def test_the_new_worker_dies_before_the_switch(tmp_path: Path, step: str) -> None:
    (tmp_path / "app.py").write_text(info("1"))
    imports = (
        "from serve_asgi.worker.lifespan import Lifespan\n"
        "from serve_asgi.worker.acceptor import Acceptor\n"
        "from serve_asgi.worker.worker import WorkerProcess\n"
    )
    with running("app:app", "--workers", "2", directory=tmp_path) as server:
        connections = opened(server, 10)
        (tmp_path / "app.py").write_text(trapped("2", imports + NEW_DIES_EARLY[step]))
        with pytest.raises(RequestRefused, match="SIGKILL"):
            server.reload()
        assert alive(connections) == 10
        assert told(connections[0])["version"] == "1"
        server.wait_for_workers(2)
        assert alive(connections) == 10
        for connection in connections:
            connection.close()
        check_serves(server, 2)


def test_a_stopped_worker_is_passed_over(tmp_path: Path) -> None:
    """One of three workers stands still over a reload: new connections are answered, and the others' kept ones."""
    (tmp_path / "app.py").write_text(info("1"))
    with running(
        "app:app", "--workers", "3", "--graceful-timeout", "1", "--shutdown-timeout", "0", directory=tmp_path
    ) as server:
        connections = opened(server, 30)
        victim = server.worker_pids()[0]
        by_victim = [c for c in connections if told(c)["pid"] == victim]
        others = [c for c in connections if c not in by_victim]
        os.kill(victim, signal.SIGSTOP)
        for _ in range(20):
            with connect(server) as connection:
                told(connection)
        server.reload()
        assert alive(others) == len(others)
        server.wait_for_workers(3)  # the stopped one is killed after its graceful timeout
        assert not state_of(victim)
        for connection in connections:
            connection.close()
        check_serves(server, 3)


def test_a_receiver_out_of_descriptors_serves_on_and_loses_nothing(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(info("1"))
    full = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))"
    with running("app:app", "--graceful-timeout", "3", directory=tmp_path) as server:
        connections = opened(server, 60)
        (tmp_path / "app.py").write_text(trapped("2", full))
        server.reload()
        assert alive(connections) == 60
        versions = {told(connection)["version"] for connection in connections}
        assert versions == {"1", "2"}
        for connection in connections:
            connection.close()
        check_serves(server, 1)


UNPRIVILEGED = (
    "setpriv",
    *("--reuid=65534", "--regid=65534", "--clear-groups"),
    *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"),
)
"""As nobody, who may read the interpreter wherever it lies, and has no other capability."""


@pytest.mark.needs("setpriv")
def test_the_hand_over_of_hundreds_as_an_unprivileged_user(tmp_path: Path) -> None:
    """RLIMIT_NOFILE 1024 without CAP_SYS_RESOURCE: the kernel counts descriptors in flight (ETOOMANYREFS)."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to become somebody else")
    limit = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))\n"
    (tmp_path / "app.py").write_text(limit + info("1"))
    with running("app:app", directory=tmp_path, wrapper=UNPRIVILEGED) as server:
        connections = opened(server, 900)
        (tmp_path / "app.py").write_text(limit + info("2"))
        server.reload()
        server.wait_for_workers(1)
        assert {told(connection)["version"] for connection in connections} == {"2"}
        assert server.status()["totals"]["taken_over"] == 900
        for connection in connections:
            connection.close()
        check_serves(server, 1)


def test_a_worker_that_blocks_its_loop_delays_nobody_else(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(
        info("1").replace(
            "    more = True\n", "    if scope['path'] == '/block': import time; time.sleep(3)\n    more = True\n"
        )
    )
    with running("app:app", "--workers", "2", directory=tmp_path) as server:
        with connect(server) as blocked:
            blocked.sendall(b"GET /block HTTP/1.1\r\nhost: x\r\n\r\n")
            server.reload()
            for _ in range(10):
                with connect(server) as connection:
                    assert told(connection)["generation"] == 2
            assert answer(blocked)[0] == 200
            server.wait_for_workers(2)
            assert told(blocked)["generation"] == 2
        check_serves(server, 2)


def test_the_listener_is_killed(tmp_path: Path) -> None:
    """The workers finish what they have, give the port up first, and leave; the next server can start at once."""
    slow = "    if scope['path'] == '/slow':\n        import asyncio; await asyncio.sleep(2)\n    more = True\n"
    (tmp_path / "app.py").write_text(info("1").replace("    more = True\n", slow))
    with running("app:app", "--workers", "2", directory=tmp_path) as server:
        host, port = server.address()
        pids = server.worker_pids()
        with connect(server) as connection:
            connection.sendall(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n")
            server.wait_until(lambda status: any(w["in_flight"] for w in status["workers"]))
            server.signal(signal.SIGKILL)
            server.process.wait()
            with running("app:app", directory=tmp_path, bind=f"{host}:{port}") as successor:
                assert answer(connection)[0] == 200
                with connect(successor) as another:
                    told(another)
                assert successor.stop() == 0
        deadline = time.monotonic() + PATIENCE
        while any(state_of(pid) not in ("", "Z") for pid in pids):
            assert time.monotonic() < deadline, "workers outlived their listener"
            time.sleep(0.05)


@pytest.mark.once
def test_a_crash_loop_takes_nobody_down(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(info("1"))
    with running("app:app", "--workers", "2", directory=tmp_path) as server:
        (tmp_path / "app.py").write_text("raise RuntimeError('bad code on disk')\n")
        os.kill(server.worker_pids()[0], signal.SIGKILL)
        server.wait_until(lambda status: "cannot be imported" in str(status["degraded"]))
        with connect(server) as connection:
            told(connection)
        (tmp_path / "app.py").write_text(info("1"))
        check_serves(server, 2)
        assert server.log().count("bad code on disk") <= 4


def test_stop_right_after_the_only_worker_died(tmp_path: Path) -> None:
    """The clients in the kernel's queue are served by its replacement, which leaves after that."""
    (tmp_path / "app.py").write_text(info("1"))
    with running("app:app", directory=tmp_path) as server:
        where = server.address()
        os.kill(server.worker_pids()[0], signal.SIGKILL)
        clients = [socket.create_connection(where) for _ in range(5)]
        for client in clients:
            client.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        server.signal(signal.SIGTERM)
        assert [answer(client)[0] for client in clients] == [200] * 5
        for client in clients:
            client.close()
        assert server.wait() == 0
