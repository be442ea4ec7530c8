"""The consumer: each message of a Redis stream is handled once, whatever is reloaded meanwhile."""

from __future__ import annotations

import json
import threading
from collections import Counter
from pathlib import Path

import pytest
import redis

from tests.examples.redis_server import redis_server
from tests.examples.serving import ask, example, until
from tests.running import PATIENCE, RunningServer, connect, request

pytestmark = pytest.mark.needs("redis-server")
RELOADS = 3
BEFORE_EACH = 60
"""Messages that come between two reloads at least; more come while they go on."""


class Load:
    """Clients over HTTP that never stop: each puts numbered messages into the queue and asks how many are handled."""

    def __init__(self, server: RunningServer, clients: int = 2) -> None:
        self._server = server
        self._over = threading.Event()
        self._told = threading.Condition()
        self.put: list[str] = []
        self.failures: list[BaseException] = []
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(PATIENCE)
        assert not self.failures

    def wait_for(self, more: int) -> None:
        with self._told:
            enough = len(self.put) + more
            assert self._told.wait_for(lambda: len(self.put) >= enough or bool(self.failures), PATIENCE)
            assert not self.failures

    def _run(self, client: int) -> None:
        try:
            with connect(self._server) as connection:
                number = 0
                while not self._over.wait(0.002):
                    status, content = request(connection, "/", json.dumps({"order": f"{client}-{number}"}).encode())
                    assert status == 200, content
                    with self._told:
                        self.put.append(f"{client}-{number}")
                        self._told.notify_all()
                    number += 1
                    assert request(connection, "/")[0] == 200
        except BaseException as error:
            with self._told:
                self.failures.append(error)
                self._told.notify_all()


def test_each_message_is_handled_once_over_reloads_under_load(tmp_path: Path) -> None:
    with redis_server(tmp_path) as url:
        environment = {"CONSUMER_REDIS_URL": url, "CONSUMER_FILE": str(tmp_path / "handled.jsonl")}
        options = ("--agent", "consumer:consume", "--workers", "2")
        with example("consumer:app", *options, directory=tmp_path, environment=environment) as server:
            with Load(server) as load:
                for _ in range(RELOADS):
                    load.wait_for(BEFORE_EACH)
                    server.reload()
                load.wait_for(BEFORE_EACH)
            until(lambda: ask(server, "/")["handled"] >= len(load.put))
            lines = [json.loads(line) for line in (tmp_path / "handled.jsonl").read_text().splitlines()]
            assert Counter(line["order"] for line in lines) == Counter(load.put)
            assert {line["attempt"] for line in lines} == {1}
            assert len({line["pid"] for line in lines}) > RELOADS + 1, "workers of every generation have handled some"
            with redis.Redis.from_url(url) as queue:
                assert queue.xpending("orders", "serve")["pending"] == 0
                assert [consumer["name"] for consumer in queue.xinfo_consumers("orders", "serve")] == [b"agent"]
            assert server.stop() == 0
