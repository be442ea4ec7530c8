"""Acknowledged messages while the server is reloaded and its workers are killed: each is handled; without kills, once.

The default is small. The long run is 100,000 messages over 50 reloads and 20 kills, about four minutes:

    SERVE_TEST_MESSAGES=100000 python -m pytest tests/test_messenger_reloads.py --timeout 1800
"""

from __future__ import annotations

import collections
import contextlib
import http.client
import json
import os
import queue
import random
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from serve_asgi.cli.control_client import RequestRefused
from tests.running import PATIENCE, RunningServer, running

pytestmark = pytest.mark.once

MESSAGES = int(os.environ.get("SERVE_TEST_MESSAGES", "3000"))
RELOADS = max(2, MESSAGES // 2000)
KILLS = max(2, MESSAGES // 5000)
BATCH = 50
SENDERS = 4


class Load:
    """Clients that have batches of messages sent; a batch whose connection broke is sent once more."""

    def __init__(self, server: RunningServer, total: int) -> None:
        self.address = server.address()
        self.batches: queue.SimpleQueue[int] = queue.SimpleQueue()
        for first in range(0, total, BATCH):
            self.batches.put(first)
        self.total = total
        self.sent = 0
        self.allowed = 0
        self.broken = 0
        self.failed: list[object] = []
        self.news = threading.Condition()
        self.threads = [threading.Thread(target=self.run) for _ in range(SENDERS)]

    def run(self) -> None:
        connection: http.client.HTTPConnection | None = None
        with contextlib.suppress(queue.Empty):
            while True:
                first = self.batches.get_nowait()
                with self.news:
                    self.news.wait_for(lambda: self.sent < self.allowed)
                count = min(BATCH, self.total - first)
                try:
                    connection = connection or http.client.HTTPConnection(*self.address, timeout=2 * PATIENCE)
                    connection.request("POST", f"/send?first={first}&count={count}")
                    self.failed += json.loads(connection.getresponse().read())
                except (OSError, http.client.HTTPException):
                    connection = None
                    self.batches.put(first)
                    self.broken += 1
                    continue
                with self.news:
                    self.sent += count
                    self.news.notify_all()
        if connection is not None:
            connection.close()

    def allow(self, share: float) -> None:
        """Let so much of it be sent, and return when the half of what was allowed is."""
        with self.news:
            self.allowed = int(self.total * share)
            self.news.notify_all()
            enough = (self.sent + self.allowed) // 2
            assert self.news.wait_for(lambda: self.sent >= enough, 4 * PATIENCE), self.sent

    def alive(self) -> bool:
        return any(thread.is_alive() for thread in self.threads)


def handled(record: Path) -> tuple[collections.Counter[int], collections.Counter[int]]:
    """How often the handler began with each number, and how often it ended."""
    begun, ended = collections.Counter[int](), collections.Counter[int]()
    for line in record.read_text().splitlines():
        word, number, *_ = line.split()
        if word in ("begin", "end"):
            (begun if word == "begin" else ended)[int(number)] += 1
    return begun, ended


def carry_out(server: RunningServer, load: Load, steps: list[Callable[[], None]]) -> None:
    """Take the steps one after another while messages are sent, a share during each."""
    for thread in load.threads:
        thread.start()
    for number, step in enumerate(steps, 1):
        load.allow(number / (len(steps) + 1))
        step()
    load.allow(1)
    for thread in load.threads:
        thread.join(10 * PATIENCE)
    assert not load.alive()


def test_every_acknowledged_message_is_handled_once_over_reloads(tmp_path: Path) -> None:
    record = tmp_path / "record"
    with running(
        "tests.messenger_application:app", "--workers", "3", directory=tmp_path, environment={"RECORD": str(record)}
    ) as server:
        load = Load(server, MESSAGES)
        reload: Callable[[], None] = lambda: print(server.reload())  # noqa: E731
        carry_out(server, load, [reload] * RELOADS)
        assert (load.sent, load.broken, load.failed) == (MESSAGES, 0, [])
        assert server.stop() == 0
    begun, ended = handled(record)
    once = dict.fromkeys(range(MESSAGES), 1)
    assert begun == once
    assert ended == once
    assert "messages_lost" not in server_log(server)


def test_every_acknowledged_message_is_handled_though_workers_are_killed(tmp_path: Path) -> None:
    record = tmp_path / "record"
    killed: list[int] = []

    with running(
        "tests.messenger_application:app", "--workers", "3", directory=tmp_path, environment={"RECORD": str(record)}
    ) as server:

        def kill() -> None:
            victim = random.choice(server.worker_pids())
            os.kill(victim, signal.SIGKILL)
            killed.append(victim)

        def reload() -> None:
            for _ in range(5):
                try:
                    print(server.reload())
                    return
                except RequestRefused as refused:  # the victim was one of the new generation
                    print(refused)
            pytest.fail("no reload succeeded")

        load = Load(server, MESSAGES)
        steps: list[Callable[[], None]] = [reload] * RELOADS + [kill] * KILLS
        random.shuffle(steps)
        carry_out(server, load, steps)
        assert (load.sent, load.failed) == (MESSAGES, [])
        assert server.stop() == 0
    _, ended = handled(record)
    assert len(killed) == KILLS
    assert set(ended) == set(range(MESSAGES))
    twice = sum(count - 1 for count in ended.values())
    print(f"{twice} handled again, {load.broken} batches sent again")


def server_log(server: RunningServer) -> str:
    return "" if not server.log_path.exists() else server.log()
