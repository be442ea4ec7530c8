"""Processes that an application forks: what they hold, how they end, and that they hold up nothing."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.forking_application import WAYS
from tests.running import PATIENCE, ROOT, RunningServer, children, connect, request, running, state_of, until

pytestmark = pytest.mark.once

APP = "tests.forking_application:app"
LOOPS = ("uvloop", "asyncio")
SEEN = [way for way in WAYS if way not in ("popen", "popen-open", "posix_spawn", "spawn", "forkserver")]
"""The ways of which Python tells at the moment of the fork."""
OURS = re.compile(r"socket:|/memfd:|anon_inode:\[(eventfd|timerfd|io_uring)\]|/schedstat")
"""What no child may hold: the application has none of its own."""
HANDLED = sum(
    1 << (number - 1)
    for number in (
        *(signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD),
        *(signal.SIGTTIN, signal.SIGTTOU, signal.SIGRTMIN + 9),
    )
)
"""The signals that a worker handles or ignores, but for INT, of which Python makes KeyboardInterrupt."""


@pytest.fixture
def ended() -> Iterator[list[int]]:
    """Processes to be ended after the test."""
    pids: list[int] = []
    yield pids
    for pid in pids:
        if state_of(pid) not in ("", "Z"):
            os.kill(pid, signal.SIGKILL)


def told(file: Path, ended: list[int]) -> dict[str, Any]:
    """What the child has written down."""
    until(file.exists, f"{file} is there")
    found: dict[str, Any] = json.loads(file.read_text())
    ended.append(found["pid"])
    return found


def check(child: dict[str, Any]) -> None:
    """It holds nothing of ours and is ended by the signals that end any process."""
    links = {number: link for number, link in child["descriptors"].items() if int(number) > 2}
    assert not [link for link in links.values() if OURS.match(link)], links
    signals = child["signals"]
    assert signals["SigBlk"] & HANDLED == 0, signals
    assert (signals["SigCgt"] | signals["SigIgn"]) & HANDLED == 0, signals


def alive(pid: int) -> bool:
    return state_of(pid) not in ("", "Z")


def terminate(pid: int) -> None:
    os.kill(pid, signal.SIGTERM)
    until(lambda: not alive(pid), f"{pid} ends by SIGTERM")


@pytest.mark.parametrize("loop", LOOPS)
def test_every_way_to_fork(tmp_path: Path, ended: list[int], loop: str) -> None:
    """In a handler and in a thread, while there are connections of several kinds."""
    with running(APP, "--loop", loop, "--workers", "2", directory=tmp_path) as server, connect(server) as idle:
        request(idle, "/pid")
        for way in WAYS:
            for where in ("", "thread:"):
                file = tmp_path / f"{way}-{where.strip(':')}"
                with connect(server) as client:
                    assert request(client, f"/{way}?{where}{file}") == (200, b"forked"), way
                    child = told(file, ended)
                    check(child)
                    assert request(client, "/pid")[0] == 200
                if way != "forkpty":
                    server.logged(f"a child of {file} prints")
                terminate(child["pid"])
        assert request(idle, "/pid")[0] == 200


@pytest.mark.parametrize("moment", ["import", "startup", "shutdown", "agent", "agent-end"])
def test_forks_at_other_moments(tmp_path: Path, ended: list[int], moment: str) -> None:
    file = tmp_path / "told"
    agent = ("--agent", "tests.forking_application:Agent") if moment.startswith("agent") else ()
    environment = {"FORKS_AT": moment, "FORKS_FILE": str(file)}
    server = RunningServer(APP, *agent, directory=tmp_path, environment=environment)
    try:
        server.ready()
        if moment in ("shutdown", "agent-end"):
            assert server.stop() == 0
        child = told(file, ended)
        check(child)
        assert moment in ("shutdown", "agent-end") or server.stop() == 0
        assert alive(child["pid"]), "the child is nobody's to end"
        terminate(child["pid"])
    finally:
        print(server.log())
        server.close()


@pytest.mark.parametrize("hook", ["hook", "async_hook"])
def test_hooks_fork(tmp_path: Path, ended: list[int], hook: str) -> None:
    environment = {"FORKS_FILE": str(tmp_path / "told")}
    option = ("--hook", f"post_reload=tests.forking_application:{hook}")
    with running(APP, *option, directory=tmp_path, environment=environment) as server:
        server.reload()
        check(told(tmp_path / "told", ended))


@pytest.mark.parametrize("loop", LOOPS)
def test_children_are_terminated_at_once(tmp_path: Path, loop: str) -> None:
    with running(APP, "--loop", loop, directory=tmp_path) as server, connect(server) as client:
        assert request(client, "/terminated") == (200, b"{-15}")


@pytest.mark.parametrize("where", ["tcp", "unix", "fd"])
def test_the_next_start(tmp_path: Path, ended: list[int], where: str) -> None:
    """A child lives on after the stop: everything is free for the next server."""
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        if where == "fd":
            free.listen()
            os.set_inheritable(free.fileno(), True)
        else:
            free.close()
        bind = {"tcp": address, "unix": f"unix:{tmp_path}/socket", "fd": ""}[where]
        fds = (free.fileno(),) if where == "fd" else ()
        pid_file = tmp_path / "pid"
        more: Any = {"directory": tmp_path, "bind": bind, "pass_fds": fds}
        arguments: tuple[str, ...] = (
            "--workers",
            "2",
            "--pid-file",
            str(pid_file),
            "--control",
            str(tmp_path / "control"),
        )
        if where == "fd":
            arguments += ("--fd", str(free.fileno()))
        file = tmp_path / "told"

        def client(server: RunningServer) -> socket.socket:
            if where != "unix":
                host, port = address.rsplit(":", 1)
                return socket.create_connection((host, int(port)), PATIENCE)
            connection = socket.socket(socket.AF_UNIX)
            connection.settimeout(PATIENCE)
            connection.connect(str(tmp_path / "socket"))
            return connection

        with running(APP, *arguments, **more) as server:
            with client(server) as connection:
                request(connection, f"/fork?{file}")
            child = told(file, ended)
            assert server.stop() == 0
        assert not pid_file.exists()
        with running(APP, *arguments, **more) as server:
            with client(server) as connection:
                assert request(connection, "/pid")[0] == 200
            assert alive(child["pid"])
            terminate(child["pid"])
            assert pid_file.exists()
            assert server.stop() == 0


BACK = ["return", "await", "raise", "exit", "loop", "late-return", "late-await", "late-raise", "late-exit"]


@pytest.mark.parametrize("loop", LOOPS)
def test_a_child_that_comes_back(tmp_path: Path, loop: str) -> None:
    """It is ended before it does anything of the server's; its parent, and the connection, do not notice."""
    log = tmp_path / "access"
    with (
        running(APP, "--loop", loop, "--access-log-file", str(log), "--access-log", directory=tmp_path) as server,
        connect(server) as client,
    ):
        for count, how in enumerate(BACK, 1):
            status = b"7" if how.endswith("exit") else b"1"
            assert request(client, f"/back?{how}") == (200, status), how
            if how.endswith("exit"):
                continue
            server.logged("a process that the application forked returned", count - BACK[:count].count("exit"))
        assert request(client, "/back-in-thread") == (200, b"1")
        assert len(server.logged("ValueError: in the child", 2)) == 2
        # Each request is answered and logged once, by the worker; and the hub hears nothing.
        assert server.stop() == 0
        assert len(log.read_text().splitlines()) == len(BACK) + 1
        assert "Fatal" not in server.log()
        assert "listener is gone" not in server.log()


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("http", ["1.0", "1.1"])
@pytest.mark.parametrize("way", ["unseen", "cut", "fork", "daemon"])
def test_a_client_sees_the_end_of_its_connection(
    tmp_path: Path, ended: list[int], way: str, http: str, loop: str
) -> None:
    """While a child lives, also one of which Python hears nothing; and half an answer never looks whole."""
    file = tmp_path / "told"
    with running(APP, "--loop", loop, directory=tmp_path) as server:
        with connect(server) as client:
            client.sendall(f"GET /{way}?{file} HTTP/{http}\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
            data, whole = b"", True
            try:
                while piece := client.recv(65536):
                    data += piece
            except ConnectionResetError:
                whole = False
        if way == "cut":
            assert not whole or (http == "1.1" and not data.endswith(b"0\r\n\r\n"))
        else:
            assert whole
            assert data.endswith((b"two" if http == "1.0" else b"0\r\n\r\n", b"forked"))
        if way in WAYS:
            check(told(file, ended))
        with connect(server) as client:
            request(client, "/end")


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("way", ["unseen", "fork"])
def test_a_websocket_ends(tmp_path: Path, ended: list[int], way: str, loop: str) -> None:
    file = tmp_path / "told"
    with running(APP, "--loop", loop, directory=tmp_path) as server:
        with connect(server) as client:
            key = base64.b64encode(bytes(16)).decode()
            lines = (f"GET /{way}?{file} HTTP/1.1", "Host: a", "Connection: Upgrade", "Upgrade: websocket")
            more = ("Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {key}", "", "")
            client.sendall("\r\n".join((*lines, *more)).encode())
            data = b""
            while b"\x88\x02\x03\xe8" not in data:
                piece = client.recv(65536)
                assert piece
                data += piece
            client.sendall(b"\x88\x82" + bytes(4) + b"\x03\xe8")
            assert client.recv(1) == b""
        if way in WAYS:
            check(told(file, ended))
        with connect(server) as client:
            request(client, "/end")


@pytest.mark.parametrize("loop", LOOPS)
def test_a_hand_over_goes_on(tmp_path: Path, ended: list[int], loop: str) -> None:
    """Children live in the old workers: connections travel all the same, and are not shut down."""
    with running(APP, "--loop", loop, directory=tmp_path) as server, connect(server) as client:
        for way in ("fork", "popen", "daemon"):
            request(client, f"/{way}?{tmp_path / way}")
            told(tmp_path / way, ended)
        request(client, "/unseen-fork")
        before = request(client, "/pid")
        server.reload()
        until(lambda: request(client, "/pid") != before, "the new worker answers on the same connection")
        server.wait_for_workers(1)


PIPED = """
import os, subprocess, sys
cat = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
for number in 1, 2:
    os.dup2(cat.stdin.fileno(), number)
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_output_of_children_that_outlive_their_worker(tmp_path: Path, ended: list[int]) -> None:
    """What they print still appears, and ends none of them by SIGPIPE; nothing waits for them."""
    ways = ("fork", "process", "double", "popen", "popen-preexec", "posix_spawn", "spawn")
    wrapper = (sys.executable, "-c", PIPED)
    with running(APP, "--workers", "2", directory=tmp_path, wrapper=wrapper) as server:
        pids = []
        for way in ways:
            with connect(server) as client:
                request(client, f"/{way}?{tmp_path / way}")
            pids.append(told(tmp_path / way, ended)["pid"])
        server.reload()
        server.wait_for_workers(2)
        for pid in pids:
            lines = server.log().count(f"{pid} lives")
            server.logged(f"{pid} lives", lines + 3)
        assert server.stop() == 0
        assert all(map(alive, pids[:3]))


def test_descriptors_are_not_inherited(tmp_path: Path) -> None:
    """What is executed gets nothing of the worker's, whatever it is started by."""
    with running(APP, directory=tmp_path) as server, connect(server) as client:
        assert request(client, "/own") == (200, b"[]")


def test_zombies_of_others(tmp_path: Path, ended: list[int]) -> None:
    """Children whose worker has gone are adopted by the listener where it is a subreaper, and reaped, not mistaken."""
    wrapper = (sys.executable, "-c", SUBREAPER)
    file = tmp_path / "told"
    with running(APP, "--workers", "2", directory=tmp_path, wrapper=wrapper) as server:
        with connect(server) as client:
            request(client, f"/fork?{file}")
        child = told(file, ended)["pid"]
        server.reload()
        until(lambda: child in children(server.pid), "the child is the listener's")
        os.kill(child, signal.SIGTERM)
        until(lambda: state_of(child) == "", "it is reaped")
        server.wait_for_workers(2)  # the older ones may still be on their way out
        assert "worker_died" not in server.log()
        assert "ended unexpectedly" not in server.log()


SUBREAPER = "import ctypes, os, sys; ctypes.CDLL(None).prctl(36, 1); os.execv(sys.argv[1], sys.argv[1:])"


def test_output_is_not_waited_for() -> None:
    """A process ends although a child of it holds its pipe."""
    program = """
        import os, subprocess, sys
        from serve_asgi.logs import nonblocking_sink, stdio_guard
        nonblocking_sink.FINISH_TIME = 1000.0
        with stdio_guard.guarded():
            print("before")
            child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
            print("after")
        os.write(1, b"end\\n")
        child.communicate(b"\\n")
        """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        timeout=PATIENCE,
        check=True,
        text=True,
    )
    assert ran.stdout == "before\nafter\nend\n"
