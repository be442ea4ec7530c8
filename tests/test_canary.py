"""A deploy on trial, in real processes: a bad version is taken back, a good one stays, and no client notices either."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve_asgi.cli import control_client
from serve_asgi.cli.control_client import RequestRefused
from tests.running import RunningServer, answer, connect, request, running, until

APP = """
import asyncio, json, os, sys
from serve_asgi import canary

VERSION = {version!r}
seen = 0


async def app(scope, receive, send):
    global seen
    if scope["type"] == "lifespan":
        while True:
            event = await receive()
            await send({{"type": event["type"] + ".complete"}})
            if event["type"] == "lifespan.shutdown":
                return
    seen += 1
    status = 200
    {trouble}
    data = json.dumps({{"version": VERSION, "pid": os.getpid(), "canary": canary()}}).encode()
    await send({{"type": "http.response.start", "status": status, "headers": [(b"content-length", b"%d" % len(data))]}})
    await send({{"type": "http.response.body", "body": data}})
"""
TROUBLES = {
    "500s": "status = 500",
    "exceptions": "raise RuntimeError('this version is bad')",
    "500s later": "status = 500 if seen > 50 else 200",
    "crash": "if seen > 5: os._exit(3)",
    "leak": "leaked = globals().setdefault('leaked', []); leaked.append(bytearray(8 << 20))",
    "blocked": "import time\n    while seen == 5 and not os.path.exists('goes on'): time.sleep(0.01)",
    "slow": "await asyncio.sleep(0.03)",
    "vote": "canary.fail('the books do not balance')",
}
SAYS = {
    "500s": r"requests failed",
    "exceptions": r"requests failed",
    "500s later": r"requests failed",
    "crash": r"died: exit status 3",
    "leak": r"MiB of memory",
    "blocked": r"blocked",
    "slow": r"times",
    "vote": r"the books do not balance",
}
OPTIONS = {
    "leak": ["--max-rss", "300"],
    "blocked": ["--worker-timeout", "1"],
    "slow": ["--canary-latency", "3", "--canary-time", "20"],
}


def deploy(directory: Path, version: str, trouble: str = "pass") -> None:
    """Put this version where the server finds it."""
    (directory / "app.py").write_text(APP.format(version=version, trouble=trouble))


class Clients:
    """Kept-alive connections that are used one after another by a thread; none is ever opened again."""

    def __init__(self, server: RunningServer, number: int) -> None:
        self._connections = [connect(server) for _ in range(number)]
        self.answers: collections.Counter[tuple[str, int]] = collections.Counter()
        """By version ("" for an answer of the server's own) and status."""
        self.pids: dict[str, set[int]] = {}
        """Of the workers that have answered, by version."""
        self.trouble: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.is_set():
            for each in self._connections:
                try:
                    status, body = request(each)
                except (AssertionError, OSError) as error:
                    self.trouble.append(repr(error))
                    self._stop.set()
                    return
                version = ""
                if body[:1] == b"{":
                    told = json.loads(body)
                    version = told["version"]
                    self.pids.setdefault(version, set()).add(told["pid"])
                self.answers[version, status] += 1
            self._stop.wait(0.005)

    def wait_for(self, version: str) -> None:
        """Wait until this version has answered."""
        until(lambda: self.trouble or any(each == version for each, _ in self.answers), f"an answer of {version}")

    @property
    def open(self) -> list[socket.socket]:
        return self._connections

    def __enter__(self) -> Clients:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        for each in self._connections:
            each.close()


@contextlib.contextmanager
def serving(tmp_path: Path, *options: str, workers: int = 2) -> Iterator[RunningServer]:
    """A server of version 1 whose reloads begin with a trial."""
    deploy(tmp_path, "1")
    arguments = (
        "--workers",
        str(workers),
        "--canary",
        "--canary-time",
        "60",
        "--graceful-timeout",
        "10",
        "--no-access-log",
    )
    with running("app:app", *arguments, *options, directory=tmp_path) as server:
        yield server


def ask(server: RunningServer) -> tuple[str, str, bool]:
    """On a connection of its own: the version that answers, the generation in its header, whether it is on trial."""
    with connect(server) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n")
        data = b""
        while piece := connection.recv(65536):
            data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    generation = [line.partition(b": ")[2] for line in head.split(b"\r\n") if line.startswith(b"x-generation")]
    found = json.loads(body)
    return found["version"], generation[0].decode() if generation else "", found["canary"]


@pytest.mark.once
@pytest.mark.parametrize("how", TROUBLES)
def test_a_bad_version_is_taken_back_and_no_connection_notices(tmp_path: Path, how: str) -> None:
    with serving(tmp_path, *OPTIONS.get(how, [])) as server:
        with Clients(server, 24) as clients:
            clients.wait_for("1")
            deploy(tmp_path, "2", TROUBLES[how])
            with pytest.raises(
                RequestRefused, match=f"(?s)generation 1 serves on: the canary was taken back.*{SAYS[how]}"
            ):
                server.reload()
            (tmp_path / "goes on").touch()  # what is blocked answers then, and leaves
            if how == "crash":  # what the process had in hand went with it, and with it alone
                server.wait_for_workers(2)
                return
            server.wait_until(lambda status: len(status["generations"]) == 1)
            before = clients.answers["1", 200]
            until(lambda: clients.trouble or clients.answers["1", 200] > before + 100, "answers of version 1")
        assert clients.trouble == []
        failed = sum(number for (_, status), number in clients.answers.items() if status == 500)
        assert failed <= 40, "a failure of all requests shows after 7 of them"
        assert server.status()["canary"] is None


def test_a_good_version_serves_its_share_and_then_everything(tmp_path: Path) -> None:
    with serving(tmp_path, "--canary-time", "2") as server, Clients(server, 24) as clients:
        clients.wait_for("1")
        deploy(tmp_path, "2")
        told: list[str] = []
        reload = threading.Thread(target=lambda: told.append(server.reload()))
        reload.start()
        clients.wait_for("2")
        status = server.status()
        assert status["generation"] == 1
        assert status["canary"]["generation"] == 2
        assert status["canary"]["share"] == pytest.approx(1 / 3, abs=0.01)
        until(lambda: server.workers()[0] and _connections(server, 2) >= 6, "the canary's share of idle connections")
        reload.join()
        assert "generation 2 serves, 2 workers" in told[0]
        old = clients.answers["1", 200]
        new = clients.answers["2", 200]
        assert 0.1 < new / (old + new) < 0.6, clients.answers
        server.wait_until(lambda status: len(status["generations"]) == 1)
    assert clients.trouble == []


def _connections(server: RunningServer, generation: int) -> int:
    return sum(each["connections"] for each in server.workers() if each["generation"] == generation)


def test_the_application_knows_whether_it_is_on_trial(tmp_path: Path) -> None:
    with serving(tmp_path, "--canary-header", "X-Generation") as server, Clients(server, 8) as clients:
        clients.wait_for("1")
        deploy(tmp_path, "2")
        reload = threading.Thread(target=server.reload)
        reload.start()
        clients.wait_for("2")
        found = {ask(server) for _ in range(12)}
        assert found == {("1", "1", False), ("2", "2", True)}
        control_client.ask(server.control, "promote")
        reload.join()
        server.wait_until(lambda status: status["generation"] == 2 and len(status["generations"]) == 1)
        assert ask(server) == ("2", "2", False)


CHECK = """
import json, os, socket, sys

with socket.socket(socket.AF_UNIX) as connection:
    answers = []
    for _ in range(5):
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(os.environ["SERVE_EVENT_SOCKET"])
        connection.sendall(b"GET / HTTP/1.1\\r\\nhost: test\\r\\nconnection: close\\r\\n\\r\\n")
        data = b""
        while piece := connection.recv(65536):
            data += piece
        answers.append(json.loads(data.partition(b"\\r\\n\\r\\n")[2])["version"])
print("answered by", *answers)
sys.exit("it is version 3" if "3" in answers else 0)
"""


@pytest.mark.once
def test_a_check_of_the_operators_asks_the_canary_alone(tmp_path: Path) -> None:
    (tmp_path / "check.py").write_text(CHECK)
    hook = f"canary_check={sys.executable} check.py"
    with serving(tmp_path, "--canary-time", "2", "--hook", hook) as server:
        deploy(tmp_path, "2")
        assert "generation 2 serves" in server.reload()
        server.logged("answered by 2 2 2 2 2")
        left = Path(f"{server.control}.canary")
        assert not left.exists()
        deploy(tmp_path, "3")
        with pytest.raises(RequestRefused, match=r"canary_check.*exit status 1"):
            server.reload()
        server.wait_until(lambda status: len(status["generations"]) == 1)
        assert not left.exists()
        assert server.status()["generation"] == 2


@pytest.mark.once
def test_too_few_requests_are_said_and_held_for_an_operator(tmp_path: Path) -> None:
    with serving(tmp_path, "--canary-time", "1", "--canary-inconclusive", "hold") as server:
        deploy(tmp_path, "2")
        told: list[str] = []
        reload = threading.Thread(target=lambda: told.append(server.reload()))
        reload.start()
        server.logged("inconclusive, it is held")
        assert server.status()["canary"]["state"] == "held"
        control_client.ask(server.control, "promote")
        reload.join()
        assert "generation 2 serves" in told[0]
        with pytest.raises(RequestRefused, match="no canary is on trial"):
            control_client.ask(server.control, "promote")


def test_a_newer_deploy_ends_the_trial_of_the_older(tmp_path: Path) -> None:
    with serving(tmp_path) as server, Clients(server, 12) as clients:
        clients.wait_for("1")
        deploy(tmp_path, "2")
        server.signal(signal.SIGHUP)
        clients.wait_for("2")
        deploy(tmp_path, "3")
        control_client.ask(server.control, "reload", canary={"on": False})
        server.wait_until(lambda status: status["generation"] == 3 and len(status["generations"]) == 1)
        clients.wait_for("3")
    assert clients.trouble == []


@pytest.mark.once
@pytest.mark.parametrize(("workers", "percentage", "gets"), [(1, 0, 0.5), (2, 10, 0.1), (4, 5, 0.05), (4, 30, 0.3)])
def test_clients_that_come_and_go_are_shared_as_configured(
    tmp_path: Path, workers: int, percentage: int, gets: float
) -> None:
    with serving(tmp_path, "--canary-share", f"{percentage}", workers=workers) as server:
        deploy(tmp_path, "2")
        server.signal(signal.SIGHUP)
        server.wait_until(lambda status: bool((status["canary"] or {}).get("seconds_left")))
        versions = []
        for _ in range(200):
            versions.append(ask(server)[0])
            time.sleep(0.005)  # what all have accepted is looked at 20 times a second
        assert versions.count("2") / len(versions) == pytest.approx(gets, abs=0.06)


@pytest.mark.parametrize("who", ["old worker", "scale", "drain", "stop"])
def test_whatever_else_happens_in_a_trial(tmp_path: Path, who: str) -> None:
    with serving(tmp_path) as server, Clients(server, 12) as clients:
        clients.wait_for("1")
        deploy(tmp_path, "2")
        server.signal(signal.SIGHUP)
        clients.wait_for("2")
        match who:
            case "old worker":
                os.kill(clients.pids["1"].pop(), signal.SIGKILL)
                server.logged("slot . lost worker . of generation 1")
                server.wait_until(lambda status: [w["state"] for w in status["workers"]] == ["serving"] * 3)
                assert server.status()["canary"] is not None
                return
            case "scale":
                control_client.ask(server.control, "scale", to=3)
                server.wait_until(
                    lambda status: [w["generation"] for w in status["workers"] if w["state"] == "serving"].count(1) == 3
                )
                control_client.ask(server.control, "promote")
                server.wait_until(lambda status: status["generation"] == 2 and len(status["workers"]) == 3)
            case "drain":
                server.signal(signal.SIGUSR2)
                server.wait_until(lambda status: status["draining"] is not None)
                with connect(server) as connection:
                    connection.sendall(b"GET /ping HTTP/1.1\r\nhost: test\r\n\r\n")
                    assert answer(connection)[0] == 503
                control_client.ask(server.control, "promote")
                server.wait_until(lambda status: status["generation"] == 2)
            case "stop":
                before = server.worker_pids()
                assert server.stop() == 0
                assert [pid for pid in before if Path(f"/proc/{pid}").exists()] == []
                return
    assert clients.trouble == []


def test_a_version_that_turns_bad_after_the_switch_is_rolled_back_by_itself(tmp_path: Path) -> None:
    deploy(tmp_path, "1")
    with running(
        *("app:app", "--workers", "2", "--auto-rollback", "--no-access-log", "--graceful-timeout", "10"),
        directory=tmp_path,
    ) as server:
        with Clients(server, 16) as clients:
            until(lambda: clients.answers["1", 200] > 200, "some usual traffic")
            deploy(tmp_path, "2", TROUBLES["500s later"])
            server.reload()
            server.logged(
                r"roll-back from generation 2 to generation 1 \(--auto-rollback\): \d+ of \d+ requests failed"
            )
            server.wait_until(lambda status: status["generation"] == 1 and len(status["generations"]) == 1)
            before = clients.answers["1", 200]
            until(lambda: clients.trouble or clients.answers["1", 200] > before + 100, "answers of version 1")
        assert clients.trouble == []
