"""Broadcasts between servers that share a Redis: they reach all, and the loss of Redis is an error to the sender."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import pytest

from tests.running import PATIENCE, running
from tests.store.stores import own_redis
from tests.test_messenger import APP, Asking


@pytest.mark.needs("redis-server")
def test_a_broadcast_reaches_the_workers_of_every_server(tmp_path: Path) -> None:
    with own_redis(tmp_path / "redis") as redis, contextlib.ExitStack() as stack:
        servers = []
        for number in range(2):
            directory = tmp_path / str(number)
            directory.mkdir()
            record = directory / "record"
            environment = {"RECORD": str(record)}
            arguments = ("--workers", "2", "--state", redis.url)
            server = stack.enter_context(running(APP, *arguments, directory=directory, environment=environment))
            servers.append(Asking(server, record))

        def heard(asking: Asking, payload: str, count: int) -> list[str]:
            deadline = time.monotonic() + PATIENCE
            while True:
                found = [line[2] for line in asking.lines("news") if line[1] == payload]
                if len(found) >= count:
                    return found
                assert time.monotonic() < deadline, (payload, found)
                time.sleep(0.01)

        one, two = servers
        assert one.ask("/broadcast?topic=news&payload=first") == [2]
        assert [len(set(heard(each, "first", 2))) for each in servers] == [2, 2]
        assert two.ask("/broadcast?topic=news&payload=second&count=50") == [2] * 50
        assert [len(heard(each, "second", 100)) for each in servers] == [100, 100]
        assert one.ask("/call?topic=who&payload=x")[1] == "x"

        redis.kill()
        (told,) = one.ask("/broadcast?topic=news&payload=alone&timeout=10")
        assert told["error"] == "NotDelivered"
        assert "other servers" in told["text"]
        assert len(heard(one, "alone", 2)) == 2
        redis.start()
        deadline = time.monotonic() + PATIENCE
        while not [line for line in two.lines("news") if line[1] == "again"]:  # each comes back to it in its own time
            assert time.monotonic() < deadline
            one.ask("/broadcast?topic=news&payload=again")
        assert not [line for line in two.lines("news") if line[1] == "alone"]
