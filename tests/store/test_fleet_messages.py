"""`send_to_any(…, scope="cluster")` between whole servers: once in the fleet, and again if a server dies."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.running import PATIENCE, RunningServer, running
from tests.store.test_servers import another_store, ask, store_process, wait_for_store

pytestmark = pytest.mark.once

APP = "tests.store.fleet_application:app"
SENDER = {"HANDLES": "no"}


def handled(directory: Path, payload: str = "") -> list[tuple[int, str, int]]:
    """What was begun, with this payload if it is named: process, payload, attempt."""
    with contextlib.suppress(FileNotFoundError):
        lines = [line.split() for line in (directory / "handled").read_text().splitlines()]
        return [(int(pid), said, int(attempt)) for pid, said, attempt in lines if payload in ("", said)]
    return []


def until_begun(directory: Path, payload: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not handled(directory, payload):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def kill_all(server: RunningServer) -> None:
    for pid in [server.pid, *server.worker_pids()]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    server.process.wait()


def test_a_fleet_handles_each_message_once_and_again_what_a_dead_server_had(tmp_path: Path, url: str) -> None:
    state = ("--state", f"{url}&lease=2")
    with (
        concurrent.futures.ThreadPoolExecutor(32) as clients,
        running(APP, *state, directory=tmp_path, environment=SENDER) as sender,
    ):

        def send(payload: str, ack: str = "ack") -> concurrent.futures.Future[tuple[int, Any]]:
            return clients.submit(ask, sender, f"/send/{payload}/{ack}")

        status, text = send("nobody").result()
        assert (status, text.partition(": ")[0]) == (503, "NoReceiver")
        assert "no server of the fleet handles topic 'job'" in text
        with running(APP, *state, "--workers", "2", directory=tmp_path) as first:
            assert ask(first, "/send/own/ack")[1][:2] == [1, "worker"]  # a server's own work as well
            assert send("quiet", "none").result() == (200, None)
            status, text = send("raises", "ack").result()
            assert (status, text[0]) == (200, 1)  # it counts as handled
            status, text = send("raise", "success").result()
            assert "DeadLettered" in text
            assert "was given up after 3 deliveries: its handler raised" in text
            lost = send("wait-for-death")
            until_begun(tmp_path, "wait-for-death")
            with running(APP, *state, "--workers", "2", directory=tmp_path) as second:
                _each_once(tmp_path, [send(f"n{number}") for number in range(100)])
                held = send("wait-over-reload")
                until_begun(tmp_path, "wait-over-reload")
                kill_all(first)
                assert lost.result()[1][0] == 2
                attempts = [attempt for _, _, attempt in handled(tmp_path, "wait-for-death")]
                assert attempts == [1, 2]
                dead = store_process(sender)
                os.kill(dead, signal.SIGKILL)  # another one reads on where it was
                sender.wait_until(lambda _: another_store(sender, {dead}))
                wait_for_store(sender)
                (tmp_path / "go").touch()
                assert held.result()[1][0] in (1, 2)  # 2 if it was the dead server's, too
                (tmp_path / "go").unlink()
                retiring = send("wait-in-a-retiring-worker")
                until_begun(tmp_path, "wait-in-a-retiring-worker")
                second.reload()
                (tmp_path / "go").touch()
                assert retiring.result()[1][0] == 1
                assert len(handled(tmp_path, "wait-in-a-retiring-worker")) == 1
                assert second.stop() == 0
        assert sender.stop() == 0


def _each_once(directory: Path, sent: list[concurrent.futures.Future[tuple[int, Any]]]) -> None:
    assert all(each.result()[1][0] == 1 for each in sent)
    begun = handled(directory)
    counts = collections.Counter(payload for _, payload, _ in begun if payload.startswith("n"))
    assert set(counts.values()) == {1}
    assert len(counts) == len(sent)


def test_a_server_that_shares_no_state_says_what_to_do(tmp_path: Path) -> None:
    with running(APP, "--state", "state.db", directory=tmp_path) as server:
        status, text = ask(server, "/send/x/ack")
        assert status == 503
        assert "start it with --state redis://… or postgresql://…" in text
