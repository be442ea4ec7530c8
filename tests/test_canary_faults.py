"""Deaths, standstills and other orders at each step of a trial, in real processes.

Whatever happens, the old version or the new one serves, never neither; connections of workers that were not killed go
on; and a deploy afterwards leaves nothing behind. One server for all faults of a step, as far as it survives them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from serve_asgi.cli import control_client
from serve_asgi.cli.control_client import RequestRefused
from tests.applications import info
from tests.hand_over_traps import TRAPS, alive, opened, told
from tests.running import RunningServer, connect, running, state_of, until

PREFIX = (
    TRAPS
    + """
import time
from serve_asgi.worker.acceptor import Acceptor

while os.path.exists("import waits"):
    time.sleep(0.02)
if os.path.exists("stops when told to serve"):
    trap(Acceptor, "start", once(stop))
"""
)
SLOW = """    if scope['path'] == '/slow':
        import asyncio
        while not os.path.exists('slow request ends'): await asyncio.sleep(0.02)
    more = True
"""
MARKS = ("import waits", "stops when told to serve", "slow request ends")
OPTIONS = ("--workers", "2", "--no-access-log", "--graceful-timeout", "2", "--shutdown-timeout", "0")


class Trial:
    """A server, and the version that is on trial there."""

    def __init__(self, server: RunningServer, directory: Path) -> None:
        self.server = server
        self.directory = directory
        self.old: set[int] = set()
        """The PIDs of the workers that served before the trial."""
        self.version = 1
        self._slow: socket.socket | None = None
        self._replacing: threading.Thread | None = None

    def deploy(self, *, seconds: float = 60.0) -> None:
        """Have the next version begin its trial, which is held if there is no verdict."""
        self.old = set(self.server.worker_pids())
        self.write()
        wish = {"on": True, "time": seconds, "hold": True}
        control_client.ask(self.server.control, "reload", wait=False, canary=wish)

    def write(self) -> None:
        """Write the next version."""
        self.version += 1
        text = info(f"{self.version}").replace("    more = True\n", SLOW)
        (self.directory / "app.py").write_text(PREFIX + text)

    def mark(self, name: str) -> None:
        (self.directory / name).touch()

    def unmark(self, *names: str) -> None:
        for name in names:
            (self.directory / name).unlink(missing_ok=True)

    def canaries(self) -> list[int]:
        """The PIDs of the new version's processes."""
        return sorted(set(self.server.worker_pids()) - self.old)

    def wait_for_state(self, state: str) -> None:
        """Wait until the trial is in this state."""
        self.server.wait_until(lambda status: (status["canary"] or {}).get("state") == state)

    def hang_up(self) -> None:
        """Leave the request that takes long, if there is one."""
        if self._slow is not None:
            self._slow.close()
            self._slow = None

    def begin_slow_request(self) -> None:
        """Have the canary begin a request that takes long."""

        def begun() -> bool:
            connection = connect(self.server)
            if told(connection)["version"] != f"{self.version}":
                connection.close()
                return False
            connection.sendall(b"GET /slow HTTP/1.1\r\nhost: test\r\n\r\n")
            self._slow = connection
            return True

        self.hang_up()
        until(begun, "a connection to the canary")
        self.server.wait_until(lambda status: any(each["in_flight"] for each in status["workers"]))

    def replace_listener(self) -> None:
        """`serve reload --listener`, which waits for the trial to end, or gives up."""

        def ask() -> None:
            with contextlib.suppress(RequestRefused):
                control_client.ask(self.server.control, "reload-listener", patience=60.0)

        self._replacing = threading.Thread(target=ask)
        self._replacing.start()

    def recover(self) -> None:
        """Another deploy, without a trial, is all that there is afterwards."""
        self.unmark(*MARKS)
        self.mark("slow request ends")
        for pid in self.server.worker_pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self.write()
        control_client.ask(self.server.control, "reload", canary={"on": False})
        if self._replacing is not None:
            self._replacing.join()
            self._replacing = None
        control_client.ask(self.server.control, "scale", to=2)
        self.server.wait_until(
            lambda status: (
                [each["state"] for each in status["workers"]] == ["serving"] * 2
                and (status["canary"], len(status["generations"])) == (None, 1)
            )
        )
        assert len(self.server.worker_pids()) == 2, "something is left behind"
        with connect(self.server) as connection:
            assert told(connection)["version"] == f"{self.version}"
        self.hang_up()
        self.unmark("slow request ends")


# The steps of a trial


def starting(trial: Trial) -> None:
    trial.mark("import waits")
    trial.deploy()
    trial.wait_for_state("starting canary")
    until(trial.canaries, "the canary's process")


def on_trial(trial: Trial) -> None:
    trial.deploy()
    trial.wait_for_state("canary")
    trial.server.wait_until(lambda status: len([w for w in status["workers"] if w["state"] == "serving"]) == 3)


def held(trial: Trial) -> None:
    trial.deploy(seconds=1.0)
    trial.wait_for_state("held")


def promoting(trial: Trial) -> None:
    on_trial(trial)
    trial.mark("import waits")
    control_client.ask(trial.server.control, "promote")
    until(lambda: len(trial.canaries()) == 2, "the rest of the new version's workers")


def switching(trial: Trial) -> None:
    on_trial(trial)
    trial.mark("stops when told to serve")
    control_client.ask(trial.server.control, "promote")
    until(lambda: any(state_of(pid) == "T" for pid in trial.canaries()), "the new worker to stop in the switch")


def going_back(trial: Trial) -> None:
    on_trial(trial)
    trial.begin_slow_request()
    control_client.ask(trial.server.control, "rollback")
    trial.server.wait_until(lambda status: any(each["state"] == "retiring" for each in status["workers"]))


STEPS: dict[str, Callable[[Trial], None]] = {
    "starting": starting,
    "on trial": on_trial,
    "held": held,
    "promoting": promoting,
    "switching": switching,
    "going back": going_back,
}


# What may happen in each


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def canary_killed(trial: Trial) -> None:
    victim = trial.canaries()[-1]
    kill(victim)
    until(lambda: victim not in trial.server.worker_pids(), "the killed worker to be reaped")


def old_worker_killed(trial: Trial) -> None:
    victim = sorted(trial.old)[0]
    kill(victim)
    until(lambda: victim not in trial.server.worker_pids(), "the killed worker to be reaped")


def canary_stopped(trial: Trial) -> None:
    os.kill(trial.canaries()[-1], signal.SIGSTOP)


def hup(trial: Trial) -> None:
    trial.unmark("import waits", "stops when told to serve")
    generation = trial.server.status()["generation"]
    trial.server.signal(signal.SIGHUP)
    for pid in trial.canaries():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    trial.server.wait_until(lambda status: status["generation"] > generation and status["canary"] is None)


def orders(trial: Trial) -> None:
    """Those that change nothing about the trial, one after another; the listener is replaced when it is over."""
    trial.server.signal(signal.SIGUSR2)
    trial.server.wait_until(lambda status: status["draining"] is not None)
    control_client.ask(trial.server.control, "scale", to=3)
    trial.replace_listener()


FAULTS: dict[str, Callable[[Trial], None]] = {
    "canary killed": canary_killed,
    "old worker killed": old_worker_killed,
    "canary stopped": canary_stopped,
    "HUP": hup,
    "USR2, scale, reload --listener": orders,
}
LOSING = ("canary killed", "old worker killed", "canary stopped")


@contextlib.contextmanager
def trial_server(tmp_path: Path) -> Iterator[Trial]:
    (tmp_path / "app.py").write_text(info("1"))
    with running("app:app", *OPTIONS, directory=tmp_path) as server:
        trial = Trial(server, tmp_path)
        try:
            yield trial
        finally:
            trial.hang_up()


def check_somebody_serves(server: RunningServer, count: int = 10) -> None:
    """New clients are answered, each by a version that is meant to serve."""
    for _ in range(count):
        with connect(server) as connection:
            told(connection)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("step", STEPS)
def test_a_fault_at_this_step_leaves_one_version_that_serves(tmp_path: Path, step: str) -> None:
    with trial_server(tmp_path) as trial:
        for name, fault in FAULTS.items():
            print(f"--- {step}: {name}", flush=True)
            connections = opened(trial.server, 8)
            STEPS[step](trial)
            fault(trial)
            check_somebody_serves(trial.server)
            trial.recover()
            if name not in LOSING and step != "switching":
                assert alive(connections) == len(connections), name
            for connection in connections:
                connection.close()
        STEPS[step](trial)
        pids = trial.server.worker_pids()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        assert trial.server.stop() == 0
        assert [pid for pid in pids if state_of(pid)] == []


@pytest.mark.timeout(120)
@pytest.mark.parametrize("step", STEPS)
def test_the_listener_is_killed_at_this_step_and_the_next_server_starts(tmp_path: Path, step: str) -> None:
    with trial_server(tmp_path) as trial:
        host, port = trial.server.address()
        STEPS[step](trial)
        pids = trial.server.worker_pids()
        trial.server.signal(signal.SIGKILL)
        trial.server.process.wait()
        trial.unmark(*MARKS)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        with running("app:app", directory=tmp_path, bind=f"{host}:{port}") as successor:
            check_somebody_serves(successor, 3)
        until(lambda: not [pid for pid in pids if state_of(pid) not in ("", "Z")], "the workers to leave")
