"""A Redis behind Sentinels: the master that they name is used, also after they have promoted a replica."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.store.stores import Redis, free_port, own_redis, store, wait_for

pytestmark = [pytest.mark.once, pytest.mark.needs("redis-server")]


class Sentinel:
    """One Sentinel, which alone may decide that the master is dead."""

    def __init__(self, directory: Path, master: Redis) -> None:
        self.port = free_port()
        configuration = directory / "sentinel.conf"
        configuration.write_text(
            f"port {self.port}\nbind 127.0.0.1\ndir {directory}\n"
            f"sentinel monitor shop 127.0.0.1 {master.port} 1\n"
            "sentinel down-after-milliseconds shop 500\nsentinel failover-timeout shop 2000\n"
        )
        self._process = subprocess.Popen(
            ["redis-server", str(configuration), "--sentinel"], stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL
        )

    def knows_a_replica(self) -> bool:
        with contextlib.suppress(redis.ConnectionError), redis.Redis(port=self.port) as client:
            return any("slave" in each["flags"] for each in client.sentinel_slaves("shop"))
        return False

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture
def promoting(tmp_path: Path) -> Iterator[tuple[Redis, Redis, Sentinel]]:
    """A master, its replica, and a Sentinel that knows both."""
    with own_redis(tmp_path / "master", tcp=True) as master:
        options = ("--replicaof", f"127.0.0.1 {master.port}", "--repl-diskless-sync-delay", "0")
        with own_redis(tmp_path / "replica", *options, tcp=True) as replica, replica.client() as client:
            wait_for(lambda: client.info("replication").get("master_link_status") == "up")
            sentinel = Sentinel(tmp_path, master)
            try:
                wait_for(sentinel.knows_a_replica)
                yield master, replica, sentinel
            finally:
                sentinel.close()


def test_what_a_replica_has_confirmed_survives_the_promotion(promoting: tuple[Redis, Redis, Sentinel]) -> None:
    """The master is killed while a server writes: nothing that was confirmed is lost, and no tick is granted twice."""
    master, replica, sentinel = promoting
    nobody = free_port()  # a Sentinel that is dead: the next one is asked
    url = f"redis+sentinel://127.0.0.1:{nobody},127.0.0.1:{sentinel.port}/shop?replicas=1&timeout=1"
    with store(url) as one, store(url) as other:
        one.up(), other.up()
        assert one.grant("report", 1.0).kind == "store.granted"
        confirmed = unknown = 0
        for number in range(40):
            if number == 20:
                master.kill()
            frame = one.write("incr", "n", by=1)
            confirmed += frame.kind == "store.written"
            unknown += frame.head.get("code") in ("unknown", "replicas")
        assert "Redis at shop of the Sentinels redis://" in one.wait("store.down").head["text"]
        assert confirmed <= one.up()["n"][1] <= confirmed + unknown
        other.up()
        with replica.client() as client:
            assert client.role()[0] == b"master"
        assert other.grant("report", 1.0).head["why"] == "granted"
        assert other.grant("report", 2.0).head["why"] == "trouble"  # no replica is left to confirm it, nor this:
        one.ask("store.write", {"op": "set", "key": "after"}, b"\x01")
        other.wait("store.change", key="after")


def test_a_service_that_no_sentinel_knows_is_told(promoting: tuple[Redis, Redis, Sentinel]) -> None:
    _, _, sentinel = promoting
    with store(f"redis+sentinel://127.0.0.1:{sentinel.port}/other") as process:
        assert "no Sentinel knows a master 'other'" in process.wait("store.down").head["text"]
    with store(f"redis+sentinel://127.0.0.1:{free_port()}/shop") as process:
        assert "cannot be asked" in process.wait("store.down").head["text"]
