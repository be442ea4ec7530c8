"""Deaths and standstills at every step of a reload, in real processes.

The application runs inside the worker, so a test reaches the exact step by having the application's module lay a
trap in the server's own code: the process kills or stops itself there. After each fault the server must serve, and
what was lost must be no more than what was in flight in the killed process.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from pathlib import Path
from typing import BinaryIO

import pytest

from serve_asgi.cli.control_client import RequestRefused
from tests.applications import info
from tests.running import PATIENCE, RunningServer, answer, connect, request, running, state_of

TRAP = """
import os, signal
from serve_asgi.worker.hand_over_receiver import HandOverReceiver
from serve_asgi.worker.hand_over_sender import HandOverSender

def trap(owner, name, act, before=True):
    original = getattr(owner, name)
    def sprung(*args, **kwargs):
        if before:
            act(*args)
            return original(*args, **kwargs)
        result = original(*args, **kwargs)
        act(*args)
        return result
    setattr(owner, name, sprung)

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def stop(*_):
    os.kill(os.getpid(), signal.SIGSTOP)

def once(act):
    done = []
    def acted(*args):
        if not done:
            done.append(1)
            act(*args)
    return acted

def after(count, act):
    seen = []
    def acted(*args):
        seen.append(1)
        if len(seen) == count:
            act(*args)
    return acted

def packet(kind, act):
    def acted(receiver, pair, packet, descriptors):
        if packet and packet.__struct_config__.tag == kind:
            act()
    return acted
"""


def trapped(version: str, trap: str) -> str:
    return TRAP + info(version) + "\n" + trap + "\n"


def told(connection: socket.socket, path: str = "/") -> dict[str, object]:
    status, data = request(connection, path)
    assert status == 200
    found: dict[str, object] = json.loads(data)
    return found


def alive(connections: list[socket.socket]) -> int:
    """How many kept connections still answer."""
    count = 0
    for connection in connections:
        try:
            told(connection)
        except (AssertionError, OSError):
            continue
        count += 1
    return count


def opened(server: RunningServer, count: int) -> list[socket.socket]:
    connections = [connect(server) for _ in range(count)]
    for connection in connections:
        told(connection)
    return connections


def check_serves(server: RunningServer, workers: int) -> None:
    """The server is whole again and answers; nothing is left behind at its end."""
    server.wait_for_workers(workers)
    with connect(server) as connection:
        told(connection)
    pids = server.worker_pids()
    assert len(pids) == workers
    assert server.stop() == 0
    assert not [pid for pid in pids if state_of(pid)]


SENDER_DIES = {
    "when asked to retire": "trap(HandOverSender, 'hand_over', die)",
    "after the first offer": "trap(HandOverSender, '_offer', once(die), before=False)",
    "after several offers": "trap(HandOverSender, '_offer', after(5, die), before=False)",
    "on the first take": "trap(HandOverSender, '_answered', once(die))",
    "after the first commit": "trap(HandOverSender, '_committed', once(die), before=False)",
    "after several commits": "trap(HandOverSender, '_committed', after(5, die), before=False)",
}
"""Where the old worker dies; what it had not offered dies with it, what it had offered lives."""


@pytest.mark.parametrize("step", SENDER_DIES)
def test_the_old_worker_dies_during_the_hand_over(tmp_path: Path, step: str) -> None:
    (tmp_path / "app.py").write_text(trapped("1", SENDER_DIES[step]))
    with running("app:app", directory=tmp_path) as server:
        connections = opened(server, 10)
        (tmp_path / "app.py").write_text(info("2"))
        server.reload()
        server.wait_for_workers(1)
        least = {"when asked to retire": 0, "after the first offer": 1, "after several offers": 5}.get(step, 10)
        assert alive(connections) >= least
        for connection in connections:
            connection.close()
        check_serves(server, 1)


RECEIVER_DIES = {
    "on the first offer": ("trap(HandOverReceiver, '_offered', once(die))", 10),
    "after the first take": ("trap(HandOverReceiver, '_offered', once(die), before=False)", 9),
    "on the first commit": ("trap(HandOverReceiver, '_offered', packet('commit', once(die)))", 0),
    "after the first commit": ("trap(HandOverReceiver, '_attach', once(die), before=False)", 0),
}
"""Where the new worker dies, and how many of ten connections must live: those that it had not been committed."""


@pytest.mark.parametrize("step", RECEIVER_DIES)
def test_the_new_worker_dies_during_the_hand_over(tmp_path: Path, step: str) -> None:
    trap, least = RECEIVER_DIES[step]
    (tmp_path / "app.py").write_text(info("1"))
    with running("app:app", directory=tmp_path) as server:
        connections = opened(server, 10)
        (tmp_path / "app.py").write_text(trapped("2", f"if not os.path.exists('died'): open('died', 'w'); {trap}"))
        server.reload()
        server.wait_for_workers(1)
        assert alive(connections) >= least
        for connection in connections:
            connection.close()
        check_serves(server, 1)


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


STOPS = {
    "on the first offer": "trap(HandOverReceiver, '_offered', packet('offer', once(stop)))",
    "after the first take": "trap(HandOverReceiver, '_offered', packet('offer', once(stop)), before=False)",
    "on the first commit": "trap(HandOverReceiver, '_offered', packet('commit', once(stop)))",
    "after the first commit": "trap(HandOverReceiver, '_offered', packet('commit', once(stop)), before=False)",
}


@pytest.mark.parametrize("step", STOPS)
def test_the_receiver_stops_and_goes_on_under_pipelined_load(tmp_path: Path, step: str) -> None:
    """No byte of a request may be read by two workers: every pipelined request gets its own answer, in order."""
    (tmp_path / "app.py").write_text(info("1"))
    with running("app:app", directory=tmp_path) as server:
        connections = opened(server, 10)
        (tmp_path / "app.py").write_text(
            trapped("2", f"if not os.path.exists('stopped'): open('stopped', 'w'); {STOPS[step]}")
        )
        server.reload()
        stopped = _stopped_worker(server)
        failures: list[str] = []
        threads = [
            threading.Thread(target=_pipeline, args=(connection, number, failures))
            for number, connection in enumerate(connections)
        ]
        for thread in threads:
            thread.start()
        time.sleep(2)  # longer than a receiver may take: the sender has withdrawn what was not committed
        os.kill(stopped, signal.SIGCONT)
        for thread in threads:
            thread.join(PATIENCE)
        assert failures == []
        for connection in connections:
            connection.close()
        check_serves(server, 1)


def _pipeline(connection: socket.socket, number: int, failures: list[str]) -> None:
    try:
        for round_ in range(20):
            paths = [f"/{number}/{round_}/{n}" for n in range(5)]
            data = b"".join(f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode() for path in paths)
            cut = (number * 7 + round_) % len(data)
            connection.sendall(data[:cut])
            time.sleep(0.01)
            connection.sendall(data[cut:])
            buffered = connection.makefile("rb")
            got = [json.loads(_read_answer(buffered))["path"] for _ in paths]
            if got != paths:
                failures.append(f"{paths} were answered as {got}")
    except (AssertionError, OSError, ValueError) as error:
        failures.append(f"connection {number}: {error!r}")


def _read_answer(stream: BinaryIO) -> bytes:
    length = 0
    while (line := stream.readline()) != b"\r\n":
        assert line, "closed"
        if line.lower().startswith(b"content-length:"):
            length = int(line.split(b":")[1])
    return stream.read(length)


def _stopped_worker(server: RunningServer) -> int:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        for pid in server.worker_pids():
            if state_of(pid) == "T":
                return pid
        time.sleep(0.01)
    raise AssertionError("no worker stopped itself")


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
