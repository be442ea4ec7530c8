"""The consumer: each message of a Redis stream is handled once, whatever is reloaded meanwhile."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.examples.serving import EXAMPLES, ask, example, until
from tests.running import PATIENCE, ROOT, RunningServer, answer, connect, request, running
from tests.store.stores import own_redis

pytestmark = pytest.mark.needs("redis-server")
SLOW = """
import asyncio
from pathlib import Path

import consumer


async def app(scope, receive, send):
    if scope["type"] == "http" and scope["path"] == "/slow":
        Path("begun").touch()
        while not Path("end").exists():
            await asyncio.sleep(0.02)
        scope = {**scope, "path": "/"}
    await consumer.app(scope, receive, send)
"""
"""The consumer, and a request that lasts until the test ends it."""
RELOADS = int(os.environ.get("EXAMPLES_RELOADS", "2"))
KILLED_AMONG = 400
AT_A_TIME = 64
"""Of examples/consumer."""
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


@contextlib.contextmanager
def consuming(directory: Path, waiting: range = range(0)) -> Iterator[tuple[RunningServer, redis.Redis]]:
    """The consumer on a server with two workers, and a client of its Redis; `waiting` is put there before it starts."""
    with own_redis(directory / "redis") as own, own.client() as queue:
        put(queue, waiting)
        options = ("--agent", "consumer:consume", "--workers", "2")
        with example(
            "consumer:app", *options, directory=directory, environment={"CONSUMER_REDIS_URL": own.url}
        ) as server:
            yield server, queue


def handled(directory: Path) -> list[dict[str, Any]]:
    """What the workers have written."""
    file = directory / "handled.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def agent_pid(server: RunningServer) -> int:
    (found,) = [
        pid for pid in server.worker_pids() if b"serve_asgi.agent_process" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    return found


def pending(queue: redis.Redis) -> int:
    """Messages that were given out and not acknowledged."""
    return int(queue.xpending("orders", "serve")["pending"])


@pytest.mark.timeout(60 + 30 * RELOADS)
def test_each_message_is_handled_once_over_reloads_under_load(tmp_path: Path) -> None:
    with consuming(tmp_path) as (server, queue):
        with connect(server) as connection:
            for wrong in (b"tea", b"[1]", b"{}"):
                assert request(connection, "/", wrong)[0] == 400
        with Load(server) as load:
            for _ in range(RELOADS):
                load.wait_for(BEFORE_EACH)
                server.reload()
            load.wait_for(BEFORE_EACH)
        until(lambda: ask(server, "/")["handled"] >= len(load.put))
        lines = handled(tmp_path)
        assert Counter(line["order"]["order"] for line in lines) == Counter(load.put)
        assert {line["attempt"] for line in lines} == {1}
        assert {line["generation"] for line in lines} == set(range(1, RELOADS + 2))
        until(lambda: pending(queue) == 0)
        assert [consumer["name"] for consumer in queue.xinfo_consumers("orders", "serve")] == [b"agent"]
        assert server.stop() == 0
        print(f"{len(lines)} messages, each handled once, over {RELOADS} reloads")


def put(queue: redis.Redis, numbers: range) -> None:
    """Orders with these numbers, at once."""
    with queue.pipeline() as pipeline:
        for number in numbers:
            pipeline.xadd("orders", {"order": str(number)})
        pipeline.execute()


def wait_for(directory: Path, count: int) -> None:
    """Wait until so many orders have been handled, those that were handled again counted once."""
    until(lambda: len({line["order"]["order"] for line in handled(directory)}) >= count)


def test_nothing_is_lost_when_a_worker_and_the_agent_are_killed(tmp_path: Path) -> None:
    half, soon = KILLED_AMONG, 10
    with consuming(tmp_path, waiting=range(half)) as (server, queue):
        wait_for(tmp_path, soon)
        os.kill(handled(tmp_path)[-1]["pid"], signal.SIGKILL)
        wait_for(tmp_path, half)
        put(queue, range(half, 2 * half))
        wait_for(tmp_path, half + soon)
        os.kill(agent_pid(server), signal.SIGKILL)
        wait_for(tmp_path, 2 * half)
        until(lambda: pending(queue) == 0)
        lines = handled(tmp_path)
        again = len(lines) - 2 * half
        assert 0 <= again <= 2 * AT_A_TIME, "only what was under way at a kill is handled again"
        noted = [line for line in lines if line["attempt"] > 1 or line["redelivered"]]
        assert len({line["id"] for line in noted}) >= again, "and the handler can tell that it may have been"
        assert queue.xlen("orders") == 0, "what was handled does not fill the Redis"
        server.wait_for_workers(2)
        assert server.stop() == 0
        print(f"{again} of {2 * half} were handled again")


def test_what_cannot_be_handed_on_is_put_aside_and_a_stop_hands_on_nothing_more(tmp_path: Path) -> None:
    """At a stop the workers leave first, and the agent last: what still comes then is for the next start."""
    (tmp_path / "slow.py").write_text(SLOW)
    with own_redis(tmp_path / "redis") as own, own.client() as queue:
        environment = {"CONSUMER_REDIS_URL": own.url, "PYTHONPATH": f"{EXAMPLES / 'consumer'}:{ROOT}"}
        with running(
            "slow:app", "--agent", "consumer:consume", "--workers", "2", directory=tmp_path, environment=environment
        ) as server:
            queue.xadd("orders", {"order": "x" * 200_000})
            queue.xadd("orders", {"order": b"\xff\xfe"})
            put(queue, range(1))
            wait_for(tmp_path, 2)
            assert {line["order"]["order"] for line in handled(tmp_path)} == {"\ufffd\ufffd", "0"}
            until(lambda: queue.xlen("orders") == 0)
            dead: Any = queue.xrange("orders:dead")
            assert [b"131072" in fields[b"error"] for _, fields in dead] == [True]
            with connect(server) as connection:
                connection.sendall(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n")
                until((tmp_path / "begun").exists)
                server.signal(signal.SIGTERM)
                server.wait_until(lambda _: not server.workers("serving"))
                put(queue, range(1, 100))
                time.sleep(
                    1.5
                )  # after a second without a receiver a message is given up (serve_asgi.hub.messages.consumers)
                (tmp_path / "end").touch()
                assert answer(connection)[0] == 200
            assert server.wait() == 0
            assert '"error"' not in server.log()
        assert queue.xlen("orders") == 99
