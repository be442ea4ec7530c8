"""The Dockerfile: its steps as they are written, and its container as an orchestrator treats it, without Docker."""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from serve_asgi.config.options import Config
from tests.image import Instruction, Stage, built, parse
from tests.running import PATIENCE, ROOT, children, request

STAGES = parse((ROOT / "Dockerfile").read_text())


def last(name: str) -> Instruction:
    """The instruction of this name that counts for the image."""
    return next(step for step in reversed(STAGES[-1]) if step.name == name)


class Container:
    """A running container: what Docker knows of it."""

    def __init__(self, image: Stage, log: Path, port: int) -> None:
        self.image = image
        self.log = log
        self.port = port
        command = [*last("ENTRYPOINT").command, *last("CMD").command]
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                image.entered(command, image.user, PORT=str(port)),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def pid(self) -> int:
        """Its PID 1, as seen from here."""
        return children(self.process.pid)[0]

    def execute(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """As `docker exec` does: one more process of the image's user, in the container."""
        enter = ["nsenter", f"--target={self.pid}", "--mount", "--pid", f"--root=/proc/{self.pid}/root"]
        enter.append(f"--wd=/proc/{self.pid}/cwd")  # WORKDIR
        return subprocess.run(
            [*enter, *self.image.started(command, self.image.user, PORT=str(self.port))],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    def healthy(self) -> bool:
        """What its HEALTHCHECK says."""
        check = last("HEALTHCHECK")
        assert check.rest.startswith("CMD ")
        return self.execute(Instruction("CMD", check.rest.removeprefix("CMD ")).command).returncode == 0

    def wait_until_healthy(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while not (children(self.process.pid) and self.healthy()):
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)


@pytest.fixture(scope="module")
def image() -> Iterator[Stage]:
    """The image, built in a clean folder."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to make namespaces")
    with built(STAGES, ROOT) as stage:
        yield stage


@pytest.fixture
def container(image: Stage, tmp_path: Path) -> Iterator[Container]:
    """A container that has become healthy."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    container = Container(image, tmp_path / "log", port)
    try:
        container.wait_until_healthy()
        yield container
    finally:
        print(container.log.read_text())
        if container.process.poll() is None:
            with contextlib.suppress(IndexError, ProcessLookupError):
                os.kill(container.pid, signal.SIGKILL)
            container.process.wait()


def test_signals_reach_the_server_and_no_shell() -> None:
    assert last("ENTRYPOINT").command == ["serve"]
    assert last("CMD").command[0] == "serve_asgi.demo:asgi"
    assert last("STOPSIGNAL").rest == "SIGTERM"


def test_nothing_runs_as_root() -> None:
    uid, gid = last("USER").rest.split(":")
    assert int(uid) > 0
    assert int(gid) > 0


def test_the_image_is_slim_and_the_build_stays_out_of_it() -> None:
    assert len(STAGES) > 1
    assert "-slim" in STAGES[-1][0].rest
    assert not [step for step in STAGES[-1] if step.name == "RUN"]


def test_the_port_is_the_same_everywhere() -> None:
    environment = dict(word.split("=", 1) for word in last("ENV").words)
    assert environment["PORT"] == last("EXPOSE").rest == "8000"
    assert environment["SERVE_HOST"] == "0.0.0.0"


def test_the_health_check_asks_for_liveness_without_curl() -> None:
    check = last("HEALTHCHECK").rest
    assert f"{Config(app='').health_path}?live" in check
    assert "curl" not in check
    assert "wget" not in check


def test_what_is_copied_is_in_the_context_and_nothing_else_is() -> None:
    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    copied = {
        word.removeprefix("./")
        for steps in STAGES
        for step in steps
        if step.name == "COPY" and "from" not in step.options
        for word in step.words[:-1]
    }
    assert patterns[0] == "*"
    assert {pattern[1:] for pattern in patterns if pattern[0] == "!"} == copied
    assert [name for name in copied if not (ROOT / name).exists()] == []
    assert any(fnmatch.fnmatch("server/serve_asgi/worker/__pycache__", pattern) for pattern in patterns[1:])


@pytest.mark.needs("unshare", "nsenter", "setpriv")
@pytest.mark.timeout(600)
def test_a_container_lives_reloads_lets_go_and_stops(container: Container) -> None:
    with socket.create_connection(("127.0.0.1", container.port), timeout=PATIENCE) as client:
        who = json.loads(request(client, "/who")[1])
        assert (who["listener"], who["generation"]) == (1, 1)
        status = (Path("/proc") / str(container.pid) / "status").read_text()
        assert "\nUid:\t" + "\t".join([container.image.user.split(":")[0]] * 4) in status

        os.kill(container.pid, signal.SIGHUP)
        reloaded = container.execute(["serve", "reload"])
        assert reloaded.returncode == 0, reloaded.stderr
        told = json.loads(container.execute(["serve", "status", "--json"]).stdout)
        assert json.loads(request(client, "/who")[1])["generation"] == told["generation"] > 1

        os.kill(container.pid, signal.SIGUSR2)
        while request(client, "/ping")[0] != 503:
            pass
        assert container.healthy(), "a node that drains is alive"
        assert json.loads(request(client, "/who")[1])["generation"] == told["generation"]

    os.kill(container.pid, signal.Signals[last("STOPSIGNAL").rest])
    assert container.process.wait(PATIENCE) == 0


@pytest.mark.needs("unshare", "nsenter", "setpriv")
@pytest.mark.timeout(600)
def test_a_container_whose_server_does_not_answer_is_unhealthy(container: Container) -> None:
    stopped = [container.pid, *children(container.pid)]
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    assert not container.healthy()
    for pid in stopped:
        os.kill(pid, signal.SIGCONT)
    assert container.healthy()
