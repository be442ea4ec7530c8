"""Under runit and s6 with the run script of deploy/runit, and below a container's init: signals come, one PID stays."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from loadtest.app import EXECUTIONS
from loadtest.servers import free_port
from serve_asgi.cli import control_client
from tests.running import PATIENCE, answer, children, request, running, until
from tests.system.deployed import example, generation, put_programs
from tests.system.light_load import light_load, put_application

pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, as these supervisors have"),
]


class Service:
    """A service directory with its supervisor running. `words` are its commands, by what they ask for."""

    def __init__(self, directory: Path, supervisor: str, words: dict[str, list[str]]) -> None:
        self.directory = directory
        self.port = free_port()
        self.control = directory / "control.sock"
        self.executions = directory / "executions.log"
        environment = put_application(directory)
        put_programs(directory / "venv/bin")
        place = directory / "service"
        place.mkdir()
        changes = {
            "/srv/app/current": str(directory),
            "/run/serve/control.sock": str(self.control),
            "0.0.0.0:8000": f"127.0.0.1:{self.port}",
            "--workers 4": "--workers 2 --start-concurrency 2",
            "--user www-data": "--user root",
            "mkdir -p /run/serve": f"export {EXECUTIONS}={environment[EXECUTIONS]}",
        }
        run = place / "run"
        run.write_text(example("runit/run", **changes))
        run.chmod(0o755)
        self._words = words
        self._place = place
        self.log = directory / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [supervisor, str(place)], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )

    def ask(self, what: str) -> None:
        """Have the supervisor do something."""
        subprocess.run([*self._words[what], str(self._place)], check=True, capture_output=True, timeout=PATIENCE)

    def wait_for(self, condition: Callable[[], object]) -> None:
        until(condition, self.log.read_text)

    def close(self) -> None:
        """End the supervisor and the server, by PID."""
        left = children(self.process.pid)
        left += [worker for server in left for worker in children(server)]
        self.process.kill()
        self.process.wait()
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        print(self.log.read_text())


SUPERVISORS = {
    "runsv": {
        "reload": ["sv", "hup"],
        "drain": ["sv", "2"],
        "stop": ["sv", "-w", "30", "down"],
        "start": ["sv", "up"],
        "leave": ["sv", "-w", "30", "exit"],
    },
    "s6-supervise": {
        "reload": ["s6-svc", "-h"],
        "drain": ["s6-svc", "-2"],
        "stop": ["s6-svc", "-d"],
        "start": ["s6-svc", "-u"],
        "leave": ["s6-svc", "-xd"],
    },
}


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.needs(name)) for name in SUPERVISORS])
def service(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Service]:
    service = Service(tmp_path, request.param, SUPERVISORS[request.param])
    try:
        service.wait_for(lambda: generation(service.control) == 1)
        yield service
    finally:
        service.close()


def test_hup_reloads_usr2_drains_and_term_stops(service: Service) -> None:
    (pid,) = children(service.process.pid)
    with light_load(service.port, service.executions) as ledger:
        service.wait_for(lambda: len(ledger.entries) > 50)
        for number in (2, 3):
            service.ask("reload")
            service.wait_for(lambda number=number: generation(service.control) == number)  # type: ignore[misc]
    assert children(service.process.pid) == [pid]
    service.ask("drain")
    service.wait_for(lambda: control_client.ask(service.control, "status")["status"]["draining"])
    with socket.create_connection(("127.0.0.1", service.port), timeout=PATIENCE) as client:
        client.sendall(b"POST /echo?id=1000000&wait=1 HTTP/1.1\r\nhost: test\r\ncontent-length: 0\r\n\r\n")
        service.wait_for(lambda: b"S 1000000 " in service.executions.read_bytes())
        service.ask("stop")
        assert answer(client)[0] == 200
    service.wait_for(lambda: children(service.process.pid) == [])
    service.ask("start")
    service.wait_for(lambda: generation(service.control) == 1)
    service.ask("leave")
    service.wait_for(lambda: service.process.poll() is not None)
    assert "Traceback" not in service.log.read_text()


@pytest.mark.needs("unshare")
@pytest.mark.parametrize("init", [pytest.param(name, marks=pytest.mark.needs(name)) for name in ("tini", "dumb-init")])
def test_below_the_init_of_a_container(tmp_path: Path, init: str) -> None:
    """What `docker run --init` (which is tini) and images with an init of their own make of it."""
    put_application(tmp_path)
    wrapper = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child", init, "--")
    with running("app:asgi", "--workers", "2", directory=tmp_path, wrapper=wrapper) as server:
        (first,) = children(server.pid)
        (listener,) = children(first)
        with socket.create_connection(server.address(), timeout=PATIENCE) as client:
            assert request(client, "/")[0] == 200
            os.kill(first, signal.SIGHUP)
            server.wait_until(lambda status: [each["number"] for each in status["generations"]] == [2])
            assert request(client, "/")[0] == 200, "on the same connection"
        assert children(first) == [listener]
        assert len(children(listener)) == 2
        os.kill(first, signal.SIGTERM)
        assert server.wait() == 0
