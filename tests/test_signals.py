"""Signals as an operator sends them, at any moment: what each does to health, to clients and to the processes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
import time
from pathlib import Path

import pytest

from serve_asgi.cli import control_client
from serve_asgi.cli.control_client import RequestRefused
from tests.applications import info
from tests.running import PATIENCE, RunningServer, answer, connect, request, running, state_of

SLOW = """    if scope["path"].startswith("/slow"):
        import asyncio
        await asyncio.sleep(float(scope["path"][5:]))
    more = True
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A directory with an application in it, that takes N seconds for /slowN."""
    (tmp_path / "app.py").write_text(info().replace("    more = True\n", SLOW))
    return tmp_path


def health(server: RunningServer, path: str = "/ping") -> int:
    with connect(server) as connection:
        return request(connection, path)[0]


def in_flight(status: dict[str, object]) -> bool:
    return any(worker["in_flight"] for worker in status["workers"])  # type: ignore[attr-defined]


def test_drain_until_the_next_deploy(project: Path) -> None:
    with running("app:app", "--workers", "2", directory=project) as server:
        assert health(server) == 200
        server.signal(signal.SIGUSR2)
        server.signal(signal.SIGUSR2)
        server.wait_until(lambda status: bool(status["draining"]))
        assert [health(server) for _ in range(10)] == [503] * 10
        assert health(server, "/ping?live") == 200
        assert health(server, "/") == 200
        os.kill(server.worker_pids()[0], signal.SIGKILL)  # a worker that is born meanwhile drains as well
        server.wait_for_workers(2)
        assert [health(server) for _ in range(10)] == [503] * 10
        app = (project / "app.py").read_text()
        (project / "app.py").write_text("broken(")
        with pytest.raises(RequestRefused, match="still draining"):
            server.reload()
        assert health(server) == 503
        (project / "app.py").write_text(app)
        server.reload()
        assert [health(server) for _ in range(10)] == [200] * 10
        assert server.stop() == 0


def test_a_drain_of_the_control_command_holds_over_reloads(project: Path) -> None:
    with running("app:app", "--drain-status", "429", directory=project) as server:
        control_client.ask(server.control, "drain")
        server.reload()
        assert health(server) == 429
        control_client.ask(server.control, "drain", off=True)
        server.wait_until(lambda status: not status["draining"])
        assert health(server) == 200
        assert server.stop() == 0


def test_a_long_drain_closes_connections_politely(project: Path) -> None:
    with running("app:app", "--drain-close-after", "0", directory=project) as server:
        with connect(server) as connection:
            assert request(connection)[0] == 200
            server.signal(signal.SIGUSR2)
            server.wait_until(lambda status: bool(status["draining"]))
            deadline = time.monotonic() + PATIENCE
            with contextlib.suppress(AssertionError):  # closed after an answer that said so
                while time.monotonic() < deadline:
                    assert request(connection)[0] == 200
            assert time.monotonic() < deadline
        assert server.stop() == 0


def test_stop_finishes_what_is_in_progress(project: Path) -> None:
    with running("app:app", "--workers", "2", directory=project) as server:
        pids = server.worker_pids()
        with connect(server) as slow, connect(server) as idle, connect(server) as fresh:
            request(idle)
            slow.sendall(b"GET /slow1 HTTP/1.1\r\nhost: x\r\n\r\n")
            server.wait_until(in_flight)
            server.signal(signal.SIGTERM)
            server.notices.wait("STOPPING=1")
            fresh.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")  # connected before, and never served
            assert answer(fresh)[0] == 200
            assert answer(slow)[0] == 200
            assert slow.recv(100) == b""
            assert server.wait() == 0
        assert not [pid for pid in pids if state_of(pid)]


def test_stop_resets_nobody_who_got_in(project: Path) -> None:
    """A storm of one-shot clients over the stop: each is refused, or answered in full."""
    lost: list[object] = []
    answered = [0]
    over = threading.Event()
    with running("app:app", "--workers", "2", directory=project) as server:
        where = server.address()

        def client() -> None:
            while not over.is_set():
                with socket.socket() as connection:
                    connection.settimeout(1.0)
                    try:
                        connection.connect(where)
                    except OSError:
                        continue
                    try:
                        request(connection, connection="close")
                        answered[0] += 1
                    except (OSError, AssertionError) as error:
                        lost.append(error)

        threads = [threading.Thread(target=client) for _ in range(6)]
        for thread in threads:
            thread.start()
        server.wait_until(lambda status: status["totals"]["requests"] > 300)
        assert server.stop() == 0
        over.set()
        for thread in threads:
            thread.join()
    assert lost == []
    assert answered[0] > 300


def test_stop_with_a_drain_delay_does_the_whole_dance(project: Path) -> None:
    with running("app:app", "--drain-delay", "1.5", directory=project) as server:
        server.signal(signal.SIGTERM)
        server.wait_until(lambda status: bool(status["draining"]))
        assert health(server) == 503
        assert health(server, "/") == 200
        with pytest.raises(RequestRefused, match="stopping"):
            server.reload()
        assert server.wait() == 0


def test_a_second_term_is_quick(project: Path) -> None:
    with running("app:app", directory=project) as server, connect(server) as slow:
        slow.sendall(b"GET /slow100 HTTP/1.1\r\nhost: x\r\n\r\n")
        server.wait_until(in_flight)
        server.signal(signal.SIGTERM)
        server.notices.wait("STOPPING=1")
        server.wait_until(lambda status: status["state"] == "stopping")
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        assert slow.recv(100) == b""
        assert "1 request cut" in server.log()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
def test_a_quick_stop_cuts(project: Path, number: signal.Signals) -> None:
    with running("app:app", directory=project) as server, connect(server) as slow:
        slow.sendall(b"GET /slow100 HTTP/1.1\r\nhost: x\r\n\r\n")
        server.wait_until(in_flight)
        server.signal(number)
        assert server.wait() == 0
        with contextlib.suppress(ConnectionResetError):
            assert slow.recv(100) == b""


def test_the_graceful_timeout_cuts_and_counts(project: Path) -> None:
    with running("app:app", "--graceful-timeout", "1", directory=project) as server, connect(server) as slow:
        slow.sendall(b"GET /slow100 HTTP/1.1\r\nhost: x\r\n\r\n")
        server.wait_until(in_flight)
        server.reload()
        server.wait_for_workers(1)
        assert server.status()["totals"]["cut"] == 1
        with contextlib.suppress(ConnectionResetError):
            assert slow.recv(100) == b""
        assert server.stop() == 0


def test_one_worker_more_and_fewer(project: Path) -> None:
    with running("app:app", directory=project) as server:
        connections = [connect(server) for _ in range(5)]
        for number in (2, 3):
            server.signal(signal.SIGTTIN)
            server.wait_for_workers(number)
        server.reload()
        server.wait_for_workers(3)
        for number in (2, 1):
            server.signal(signal.SIGTTOU)
            server.wait_for_workers(number)
            assert [request(connection)[0] for connection in connections] == [200] * 5
        for connection in connections:
            connection.close()
        assert server.stop() == 0


def test_workers_obey_their_channel_alone(project: Path) -> None:
    with running("app:app", "--workers", "2", directory=project) as server:
        pids = server.worker_pids()
        for number in ("HUP", "USR1", "USR2", "INT", "QUIT", "TERM", "WINCH") * 3:  # together: their frames nest
            for pid in pids:
                os.kill(pid, signal.Signals[f"SIG{number}"])
        for pid in pids:
            assert os.getpgid(pid) == pid
        server.reload()
        server.wait_for_workers(2)
        assert "died" not in server.log()
        assert server.stop() == 0


def test_signals_during_the_first_start_are_not_lost(project: Path) -> None:
    gate = project / "gate"
    os.mkfifo(gate)
    source = (project / "app.py").read_text()
    (project / "app.py").write_text(f"open({str(gate)!r}).close()\n" + source)
    server = RunningServer("app:app", directory=project)
    try:
        with gate.open("w"):  # the worker is amid its import now
            (project / "app.py").write_text(source)
            server.signal(signal.SIGHUP)
            server.signal(signal.SIGUSR2)
        server.ready()
        server.wait_until(lambda status: status["generation"] == 2)
        assert server.stop() == 0
    finally:
        print(server.log())
        server.close()


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT])
def test_a_signal_from_the_first_moment_on_kills_nobody_by_accident(project: Path, number: signal.Signals) -> None:
    server = RunningServer("app:app", directory=project)
    try:
        time.sleep(0.03)  # the interpreter itself needs about that long until its first line
        blocked = 0
        while not blocked:
            status = Path(f"/proc/{server.pid}/status").read_text()
            blocked = int(status.partition("SigBlk:\t")[2].split()[0], 16)
        server.signal(number)
        if number in (signal.SIGTERM, signal.SIGINT):
            assert server.wait() == 0
        else:
            server.ready()
            assert server.stop() == 0
    finally:
        print(server.log())
        server.close()


def test_log_files_are_opened_anew(project: Path) -> None:
    log, access = project / "serve.log", project / "access.log"
    files = ("--log-file", str(log), "--access-log-file", str(access), "--access-log-format", "json")
    with running("app:app", *files, directory=project) as server:
        with connect(server) as connection:
            assert request(connection, "/before")[0] == 200
            access.rename(project / "access.1")
            log.rename(project / "serve.1")
            server.signal(signal.SIGUSR1)
            server.wait_until(lambda _: log.exists() and access.exists())
            assert request(connection, "/after")[0] == 200
        assert server.stop() == 0
    lines = ((project / "access.1").read_text() + access.read_text()).splitlines()
    assert [json.loads(line)["target"] for line in lines] == ["/before", "/after"]
    assert "stopped" in log.read_text()


def test_output_that_nobody_reads_stops_nobody(project: Path) -> None:
    """Both ends of the trouble: a full pipe and, later, a closed one behind stdout and stderr."""
    noisy = SLOW.replace("    more = True\n", "    print('x' * 100_000)\n    more = True\n")
    (project / "app.py").write_text(info().replace("    more = True\n", noisy))
    reading, writing = os.pipe()
    wrapper = ("bash", "-c", f'exec "$@" >&{writing} 2>&{writing}', "bash")
    server = RunningServer("app:app", directory=project, wrapper=wrapper, pass_fds=(writing,))
    os.close(writing)
    try:
        server.ready()
        with connect(server) as connection:
            for _ in range(60):
                assert request(connection)[0] == 200
            server.reload()
            os.close(reading)
            reading = -1
            for _ in range(60):
                assert request(connection)[0] == 200
            server.reload()
            assert request(connection)[0] == 200
        assert server.stop() == 0
    finally:
        if reading >= 0:
            os.close(reading)
        server.close()


def test_recycling_loses_nothing(project: Path) -> None:
    with running("app:app", "--workers", "2", "--max-requests", "50", directory=project) as server:
        connections = [connect(server) for _ in range(4)]
        pids: set[int] = set()
        deadline = time.monotonic() + PATIENCE
        while len(pids) < 6 and time.monotonic() < deadline:
            for connection in connections:
                status, data = request(connection)
                assert status == 200
                pids.add(json.loads(data)["pid"])
            time.sleep(0.005)
        assert len(pids) >= 6
        assert server.status()["generation"] == 1
        for connection in connections:
            connection.close()
        assert server.stop() == 0


def test_a_lifetime_and_a_size_end_in_replacement_too(project: Path) -> None:
    limits = ("--max-lifetime", "2", "--max-rss", "4000")
    with running("app:app", *limits, directory=project) as server, connect(server) as connection:
        first = json.loads(request(connection)[1])["pid"]
        server.wait_until(lambda status: json.loads(request(connection)[1])["pid"] != first)
        assert "lifetime" in server.log()
        connection.close()
        assert server.stop() == 0


def test_stop_answers_every_pipelined_request(project: Path) -> None:
    with running("app:app", directory=project) as server, connect(server) as connection:
        paths = ["/slow1", "/a", "/b", "/c"]
        connection.sendall(b"".join(f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode() for path in paths))
        server.wait_until(in_flight)
        server.signal(signal.SIGTERM)
        data = b""
        while piece := connection.recv(65536):
            data += piece
        assert data.count(b"HTTP/1.1 200") == 4
        assert data.count(b"connection: close") == 1
        assert server.wait() == 0
