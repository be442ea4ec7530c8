"""Under supervisord, with the section of deploy/supervisord: no pidproxy, one PID for ever, and nobody is lost."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from loadtest.ledger import parse_executions
from loadtest.servers import free_port
from serve_asgi.cli import control_client
from tests.running import PATIENCE, answer, children, request, state_of, until
from tests.system.deployed import example, generation, put_programs
from tests.system.light_load import light_load, put_application

pytestmark = pytest.mark.once
RELOADS = 20

DAEMON = """
[supervisord]
nodaemon=true
user=root
logfile={0}/supervisord.log
pidfile={0}/supervisord.pid
childlogdir={0}
[unix_http_server]
file={0}/supervisor.sock
[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface
[supervisorctl]
serverurl=unix://{0}/supervisor.sock
"""


class Supervisord:
    """A running supervisord with one program, `serve`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_port()
        self.control = directory / "control.sock"
        self.executions = directory / "executions.log"
        environment = put_application(directory)
        put_programs(directory / "venv/bin")
        changes = {
            "/srv/app/current": str(directory),
            "/run/serve/control.sock": str(self.control),
            "0.0.0.0:8000": f"127.0.0.1:{self.port}",
            "--workers 4": "--workers 1",
            "user=www-data\n": "" if os.geteuid() else "user=root\n",
            "/var/log/supervisor": str(directory),
            "startsecs=3": "startsecs=1",
        }
        self.configuration = directory / "supervisord.conf"
        daemon = DAEMON.format(directory).replace("user=root\n", "" if os.geteuid() else "user=root\n")
        self.configuration.write_text(daemon + example("supervisord/serve.conf", **changes))
        with (directory / "output").open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "supervisor.supervisord", "-c", str(self.configuration)],
                cwd=directory,
                env=os.environ | environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def ctl(self, *words: str) -> str:
        """`supervisorctl …` and what it says."""
        done = subprocess.run(
            [sys.executable, "-m", "supervisor.supervisorctl", "-c", str(self.configuration), *words],
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE,
            check=False,
        )
        return done.stdout + done.stderr

    @property
    def pid(self) -> int:
        """The server's PID, as supervisord tells it."""
        found = re.search(r"RUNNING +pid (\d+)", said := self.ctl("status", "serve"))
        assert found, said
        return int(found[1])

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Ask again and again, since supervisord has no events that would reach us."""
        until(condition, self.words)

    def wait_until_it_serves(self) -> None:
        self.wait_for(lambda: generation(self.control) > 0)
        self.wait_for(lambda: "RUNNING" in self.ctl("status", "serve"))

    def wait_for_generation(self, number: int) -> None:
        self.wait_for(lambda: generation(self.control) == number)

    def words(self) -> str:
        """What supervisord and the server have said."""
        return "".join(path.read_text() for path in sorted(self.directory.glob("*.log")) if path != self.executions)

    def close(self) -> None:
        """End it and what is left of its program, by PID."""
        left = children(self.process.pid)
        self.process.terminate()
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            for pid in [*left, *(grandchild for child in left for grandchild in children(child))]:
                os.kill(pid, signal.SIGKILL)
            self.process.kill()
            self.process.wait()


@pytest.fixture
def supervisord(tmp_path: Path) -> Iterator[Supervisord]:
    daemon = Supervisord(tmp_path)
    try:
        daemon.wait_until_it_serves()
        yield daemon
    finally:
        daemon.close()
        print(daemon.words())


def defunct(pid: int) -> list[int]:
    """The children of the server that are defunct and stay so: one may be, for the moment until it is reaped."""
    found = [child for child in children(pid) if state_of(child) == "Z"]
    deadline = time.monotonic() + PATIENCE
    while found and time.monotonic() < deadline:
        time.sleep(0.01)
        found = [child for child in found if state_of(child) == "Z"]
    return found


def test_reloads_are_noticed_by_nobody_and_the_pid_stays(supervisord: Supervisord) -> None:
    pid = supervisord.pid
    with light_load(supervisord.port, supervisord.executions) as ledger:
        for number in range(2, RELOADS + 2):
            if number % 10 == 0:
                assert "signalled" in supervisord.ctl("signal", "HUP", "serve")
                supervisord.wait_for_generation(number)
            else:
                control_client.ask(supervisord.control, "reload")
            assert defunct(pid) == []
        supervisord.wait_for(lambda: len(children(pid)) == 1)  # nobody is left of the others, defunct or not
    status = control_client.ask(supervisord.control, "status")["status"]
    assert (status["pid"], status["generation"], status["failed_reloads"]) == (pid, RELOADS + 1, 0)
    assert supervisord.pid == pid
    assert children(supervisord.process.pid) == [pid]
    assert len({entry.generation for entry in ledger.entries}) > RELOADS / 2, "the load saw the reloads"
    assert len(parse_executions(supervisord.executions.read_bytes())) == 2 * len(ledger.entries)


def test_signals_logs_stop_and_restart(supervisord: Supervisord) -> None:
    first = supervisord.pid
    assert "signalled" in supervisord.ctl("signal", "USR2", "serve")
    with socket.create_connection(("127.0.0.1", supervisord.port), timeout=PATIENCE) as client:
        while request(client, "/ping")[0] != 503:
            pass
        assert request(client, "/")[0] == 200

        client.sendall(b"POST /echo?id=1&wait=1.5 HTTP/1.1\r\nhost: test\r\ncontent-length: 0\r\n\r\n")
        supervisord.wait_for(lambda: b"S 1 " in supervisord.executions.read_bytes())
        assert "stopped" in supervisord.ctl("stop", "serve")
        assert answer(client)[0] == 200, "TERM lets a request finish, and supervisorctl waits for that"
    assert children(supervisord.process.pid) == []
    said = (supervisord.directory / "serve.log").read_text()
    assert f"http://127.0.0.1:{supervisord.port}" in said
    assert "/echo" not in said
    assert "/echo" in (supervisord.directory / "serve-access.log").read_text()
    assert "STOPPED" in supervisord.ctl("status", "serve")

    assert "started" in supervisord.ctl("start", "serve")
    supervisord.wait_until_it_serves()
    second = supervisord.pid
    assert "started" in supervisord.ctl("restart", "serve")
    supervisord.wait_until_it_serves()
    third = supervisord.pid
    assert len({first, second, third}) == 3
    with socket.create_connection(("127.0.0.1", supervisord.port), timeout=PATIENCE) as client:
        assert request(client, "/ping")[0] == 200
        assert request(client, "/")[0] == 200

    serve = str(supervisord.directory / "venv/bin/serve")
    stop = [serve, "stop", "--control", str(supervisord.control), "--delay", "0"]
    assert subprocess.run(stop, capture_output=True, timeout=2 * PATIENCE, check=False).returncode == 0
    supervisord.wait_for(lambda: "EXITED" in supervisord.ctl("status", "serve"))
