"""What the service manager is told again and again: the rule as a table, and a real server with its watchdog."""

from __future__ import annotations

import math
import os
import signal
import socket
import time
from pathlib import Path

import pytest

from serve_asgi.listener.sd_watchdog import under_way, well
from serve_asgi.supervisor.lifecycles import Cause, Generation, Policy, ServerState, Worker, WorkerState
from tests.running import PATIENCE, RunningServer, answer, connect, running

POLICY = Policy(4, 4, 3, 60.0, 30.0, 10.0, 0.0)
WATCHDOG = 20.0


@pytest.mark.parametrize(
    ("workers", "fed"),
    [
        ({"serving": 0.4}, True),
        ({"serving": 9.9}, True),
        ({"serving": 10.1}, False),
        ({"serving": math.inf}, False),
        ({}, False),
        ({"retiring": 0.1}, False),
        ({"ending": 0.1}, False),
        ({"pending": math.inf}, True),
        ({"starting": math.inf}, True),
        ({"ready": 0.5}, True),
        ({"switching": 0.5}, True),
    ],
)
def test_a_worker_that_answers_or_comes_is_enough(workers: dict[str, float], fed: bool) -> None:
    assert decide(ServerState.RUNNING, list(workers.items())) is fed
    others = [("retiring", 0.0), ("serving", 11.0), ("ending", 0.0)]
    assert decide(ServerState.RUNNING, [*workers.items(), *others]) is fed


@pytest.mark.parametrize("state", [state for state in ServerState if state is not ServerState.RUNNING])
def test_a_start_and_a_stop_have_deadlines_of_their_own(state: ServerState) -> None:
    assert decide(state, [])
    assert decide(state, [("serving", 100.0)])


def test_an_impatient_watchdog_expects_no_more_than_a_beat_per_second() -> None:
    assert decide(ServerState.RUNNING, [("serving", 2.0)], watchdog=1.0)
    assert not decide(ServerState.RUNNING, [("serving", 3.0)], watchdog=1.0)


def decide(state: ServerState, workers: list[tuple[str, float]], watchdog: float = WATCHDOG) -> bool:
    generation = Generation(1, POLICY, len(workers), 0, [], 0.0)
    silences = {
        Worker(number, generation, number, Cause.GENERATION, WorkerState(name)): silence
        for number, (name, silence) in enumerate(workers)
    }
    return well(state, silences, silences.__getitem__, watchdog)


@pytest.mark.parametrize(
    ("state", "reloading", "asking", "text"),
    [
        (ServerState.STARTING, True, "", "starting"),
        (ServerState.OPENING, True, "", "starting"),
        (ServerState.RUNNING, False, "", None),
        (ServerState.RUNNING, True, "", "reloading"),
        (ServerState.RUNNING, False, "pre_stop", "waiting for the hooks pre_stop"),
        (ServerState.DRAINING, False, "", "draining before the stop: 1 request in progress"),
        (ServerState.AWAITING, False, "", "stopping: 1 request in progress"),
        (ServerState.STOPPING, False, "", "stopping: 1 request in progress"),
    ],
)
def test_what_takes_time_is_told(state: ServerState, reloading: bool, asking: str, text: str | None) -> None:
    assert under_way(state, reloading, asking, 1) == text


APP = """
import asyncio

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        open("starting", "w").close()
        while not __import__("os").path.exists("go"):
            await asyncio.sleep(0.02)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    if scope["path"] == "/slow":
        open("asked", "w").close()
        while not __import__("os").path.exists("answer"):
            await asyncio.sleep(0.02)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})
"""


def test_the_watchdog_is_fed_while_the_workers_answer(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "go").touch()
    with running("app:app", "--workers", "2", directory=tmp_path, environment={"WATCHDOG_USEC": "1000000"}) as server:
        server.notices.wait("^WATCHDOG=1$")
        workers = server.worker_pids()
        assert "WATCHDOG" not in Path(f"/proc/{workers[0]}/environ").read_text()
        for pid in workers:
            os.kill(pid, signal.SIGSTOP)
        try:  # longer than this watchdog has patience with
            server.wait_until(lambda status: all(worker["heard"] > 3.0 for worker in status["workers"]))
            assert not fed(server, 1, within=1.0)
        finally:
            for pid in workers:
                os.kill(pid, signal.SIGCONT)
        assert fed(server, 2)


def forget(server: RunningServer) -> None:
    """Take away all notices that have come so far."""
    try:
        while True:
            server.notices.wait(".", timeout=0.0)
    except AssertionError:
        pass


def fed(server: RunningServer, times: int, within: float = PATIENCE) -> bool:
    forget(server)
    try:
        for _ in range(times):
            server.notices.wait("WATCHDOG=1", timeout=within)
    except AssertionError:
        return False
    return True


def test_more_time_is_asked_for_while_it_starts_reloads_and_stops(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    server = RunningServer("app:app", directory=tmp_path, environment={"WATCHDOG_USEC": "200000"})
    try:
        for _ in range(3):  # again and again
            server.notices.wait("EXTEND_TIMEOUT_USEC=15000000\nSTATUS=starting")
        (tmp_path / "go").touch()
        server.ready()
        forget(server)
        server.notices.wait("WATCHDOG=1")
        assert not [text for text in server.notices.seen[-1:] if "EXTEND" in text]

        (tmp_path / "go").unlink()
        server.signal(signal.SIGHUP)
        server.notices.wait("RELOADING=1\nMONOTONIC_USEC=[0-9]+\nEXTEND_TIMEOUT_USEC=15000000\nSTATUS=reloading$")
        server.notices.wait("^STATUS=reloading: generation 2 starts$")
        server.notices.wait("EXTEND_TIMEOUT_USEC=15000000\nSTATUS=reloading")
        (tmp_path / "go").touch()
        server.notices.wait("READY=1\nSTATUS=generation 2 serves")

        with connect(server) as client:
            client.sendall(b"GET /slow HTTP/1.1\r\nhost: test\r\n\r\n")
            wait_for_file(tmp_path / "asked")
            server.signal(signal.SIGTERM)
            server.notices.wait("STOPPING=1\nEXTEND_TIMEOUT_USEC=15000000")
            for _ in range(3):
                server.notices.wait("EXTEND_TIMEOUT_USEC=15000000\nSTATUS=stopping: 1 request in progress")
            (tmp_path / "answer").touch()
            assert answer(client)[0] == 200
        assert server.wait() == 0
    finally:
        print(server.log())
        server.close()


def wait_for_file(path: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.01)


def test_without_a_manager_nothing_is_done(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "go").touch()
    environment = {"NOTIFY_SOCKET": "", "WATCHDOG_USEC": "100000"}
    server = RunningServer("app:app", directory=tmp_path, environment=environment)
    try:
        deadline = time.monotonic() + PATIENCE
        while not answers(server):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert server.stop() == 0
        with pytest.raises(AssertionError, match="no notice"):
            server.notices.wait(".", timeout=0.0)
    finally:
        server.close()


def answers(server: RunningServer) -> bool:
    try:
        with socket.create_connection(server.address(), timeout=PATIENCE):
            return True
    except Exception:  # not there yet
        return False
