"""The state in a Redis that several servers share, and what becomes of it when that Redis is lost."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve_asgi.config.state_location import redis_address
from serve_asgi.hub.state.write_evaluation import AcceptedWrite, StateEntry, StateLimits
from serve_asgi.ipc.channel import pair
from serve_asgi.ipc.frames import decode
from serve_asgi.store import replies
from serve_asgi.store.listener_link import ListenerLink
from serve_asgi.store.reconnect import SessionLost
from serve_asgi.store.redis_state import RedisState
from tests.store.stores import Redis, free_port, own_redis, pair_of, scaled, store, wait_for

pytestmark = [pytest.mark.once, pytest.mark.needs("redis-server")]


def test_a_killed_redis_is_told_and_recovers_by_itself(tmp_path: Path) -> None:
    """Nothing that was confirmed is lost with `appendfsync always`; what was under way is told to be unknown."""
    with own_redis(tmp_path / "data", persistent=True) as server, pair_of(server.url) as (a, b):
        confirmed = unknown = 0
        for _ in range(scaled(3)):
            for number in range(60):
                if number == 30:
                    server.kill()
                frame = a.write("incr", "n", by=1)
                if frame.kind == "store.written":
                    confirmed += 1
                    continue
                assert frame.head["code"] in ("unknown", "unavailable")
                assert "Redis at unix://" in frame.head["text"]
                unknown += frame.head["code"] == "unknown"
            a.wait("store.down")
            b.wait("store.down")
            server.start()
            assert confirmed <= a.up()["n"][1] <= confirmed + unknown
            b.up()
            confirmed, unknown = a.read("n"), 0
        a.set("after", 1)
        b.wait("store.change", key="after")


def test_a_write_whose_changes_before_are_missing_is_not_applied_when_redis_is_lost() -> None:
    """No process gets a later change without the earlier ones."""

    async def main(lane: ListenerLink) -> None:
        state = RedisState(lane, redis_address("redis://nowhere"), StateLimits(100, 1000), "n")
        await state._following.reply_at(2, replies.written(7, AcceptedWrite("k", 2, b"\x01", 3)))
        await state._following.reply_at(3, replies.value(8, "k", StateEntry(2, b"\x01")))
        with pytest.raises(BlockingIOError):
            theirs.recv(1)
        await state._disconnected(SessionLost("it is gone"))

    ours, theirs = pair()
    with contextlib.closing(ListenerLink(ours)) as lane, theirs:
        theirs.setblocking(False)
        asyncio.run(main(lane))
        found = [decode(theirs.recv(10_000)) for _ in range(3)]
    assert [frame.kind for frame in found] == ["store.refused", "store.value", "store.down"]
    assert (found[0].head["id"], found[0].head["code"]) == (7, "unknown")


def test_a_redis_that_stands_still_is_told_and_recovers_by_itself(tmp_path: Path) -> None:
    with own_redis(tmp_path / "data") as server, store(f"{server.url}?timeout=0.3") as process:
        process.up()
        process.set("a", 1)
        server.signal(signal.SIGSTOP)
        refused = process.write("incr", "n", by=1)
        assert (refused.kind, refused.head["code"]) == ("store.refused", "unknown")
        assert "did not answer in time" in refused.head["text"]
        process.wait("store.down")
        assert process.write("incr", "n", by=1).head["code"] == "unavailable"
        assert process.grant("tick", time.time()).head["why"] == "trouble"
        process.ask("store.send", {"kind": "broadcast"})
        assert process.wait("store.unsent").head["code"] == "unavailable"
        server.signal(signal.SIGCONT)
        assert process.up().get("n", (0, 0))[1] in (0, 1)
        process.set("a", 2)


def test_a_redis_that_comes_back_empty_gets_the_state_again(tmp_path: Path) -> None:
    with own_redis(tmp_path / "data") as server, pair_of(server.url) as (a, b):
        version = a.set("kept", {"x": [1, b"2"]}).head["version"]
        b.wait("store.change", key="kept")
        token = a.grant("tick", 1.0).head["token"]
        server.kill()
        a.wait("store.down"), b.wait("store.down")
        server.start()
        assert a.up() == b.up() == {"kept": (version, {"x": [1, b"2"]})}
        said = [frame.head["event"] for process in (a, b) for frame in process.said if frame.kind == "store.say"]
        assert sorted(said) == [
            "store_messages_missed",
            "store_messages_missed",
            "store_restored",
        ]  # each may have missed broadcasts
        assert a.set("new", 1).head["version"] > version
        assert b.grant("tick", 2.0).head["token"] > token
        assert b.wait("store.change", key="new").head["version"] > version


def test_a_server_that_comes_first_and_knows_nothing_costs_no_state(tmp_path: Path) -> None:
    """Redis comes back empty, and a server that begins finds it before the one that has the state."""
    with own_redis(tmp_path / "data") as server, store(server.url) as old:
        old.up()
        version = old.set("kept", 1).head["version"]
        old.process.send_signal(signal.SIGSTOP)
        server.kill()
        server.start()
        with store(server.url) as new:
            assert new.up() == {}
            old.process.send_signal(signal.SIGCONT)
            assert old.up() == {"kept": (version, 1)}
            new.wait("store.down")  # its data were replaced
            assert new.up() == {"kept": (version, 1)}
            assert new.set("more", 2).head["version"] == version + 1
            old.wait("store.change", key="more")


def test_data_that_somebody_deletes_are_noticed_without_a_write(tmp_path: Path) -> None:
    with own_redis(tmp_path / "data") as server, store(server.url) as process:
        process.up()
        process.set("kept", 1)
        with server.client() as client:
            client.flushall()
        assert "its data was replaced" in process.wait("store.down").head["text"]
        assert process.up() == {"kept": (1, 1)}


def test_a_fail_over_may_lose_what_no_replica_has(tmp_path: Path) -> None:
    """The window: confirmed by the old master, not yet by the replica that is promoted. It is told, and no version
    comes again."""
    with _master_and_replica(tmp_path) as (master, replica), store(_both(master, replica)) as process:
        process.up()
        process.set("early", 1)
        with replica.client() as client:
            wait_for(lambda: client.hget("serve:state", "early") is not None)
            client.replicaof("NO", "ONE")  # the replica hears of nothing more: then the master dies
        late = process.set("late", 2).head["version"]
        master.kill()
        assert process.wait("store.down")
        assert process.up() == {"early": (1, 1)}
        lost = process.wait("store.say", timeout=1.0)
        assert (lost.head["event"], lost.head["about"]["changes"]) == ("store_data_lost", 1)
        assert process.set("new", 3).head["version"] == late + 1


def test_replicas_may_have_to_confirm(tmp_path: Path) -> None:
    """`replicas=1`: a write that a fail-over could lose is told to its writer."""
    with _master_and_replica(tmp_path) as (master, replica):
        url = f"{_both(master, replica)}?replicas=1&timeout=1"
        with store(url) as process:
            process.up()
            process.set("safe", 1)
            with replica.client() as client:
                assert client.hget("serve:state", "safe") == b"1:\x01"
                client.replicaof("NO", "ONE")
            refused = process.write("set", "unsafe", 2)
            assert refused.head["code"] == "replicas"
            assert "it is written, but fewer than 1 replicas have it" in refused.head["text"]
            assert process.read("unsafe") == 2
            tick = process.grant("report", 1.0)
            assert (tick.head["why"], tick.head["text"]) == (
                "trouble",
                "it is granted, but fewer than 1 replicas have it",
            )
            master.kill()
            process.wait("store.down")
            assert process.up() == {"safe": (1, 1)}  # the promoted one: nothing that was confirmed is lost


def test_a_master_without_replicas_may_take_no_writes(tmp_path: Path) -> None:
    """min-replicas-to-write: Redis's own way to bound the window."""
    with own_redis(tmp_path / "data", "--min-replicas-to-write", "1") as server, store(server.url) as process:
        assert "cannot be used: NOREPLICAS" in process.wait("store.down").head["text"]
        with server.client() as client:
            client.config_set("min-replicas-to-write", 0)
            process.up()
            process.set("a", 1)
            client.config_set("min-replicas-to-write", 1)
        refused = process.write("set", "a", 2)
        assert refused.head["code"] == "storage"
        assert "NOREPLICAS" in refused.head["text"]
        assert process.read("a") == 1


@pytest.mark.parametrize("waits", [True, False], ids=["while it is read", "between two reads"])
def test_a_master_that_becomes_a_replica_is_left(tmp_path: Path, waits: bool) -> None:
    """Also by a server that writes nothing; Redis itself tells only those whose read it is waiting with."""
    with _master_and_replica(tmp_path) as (master, replica), store(_both(master, replica)) as process:
        process.up()
        process.set("a", 1)
        with replica.client() as second, master.client() as first:
            wait_for(lambda: second.hget("serve:state", "a") is not None)
            if not waits:
                process.process.send_signal(signal.SIGSTOP)
                wait_for(lambda: first.info("clients")["blocked_clients"] == 0)
            second.replicaof("NO", "ONE")
            first.replicaof("127.0.0.1", str(replica.port))
            process.process.send_signal(signal.SIGCONT)
        process.wait("store.down")
        assert process.up() == {"a": (1, 1)}
        process.set("b", 2)
        with replica.client() as second:
            assert second.hget("serve:state", "b") == b"2:\x02"


def test_servers_of_different_names_share_nothing(shared_redis: Redis) -> None:
    with store(f"{shared_redis.url}?prefix=one") as a, store(f"{shared_redis.url}?prefix=two") as b:
        a.up(), b.up()
        a.set("k", 1)
        assert b.read("k") is None


def test_keys_of_somebody_else_are_left_as_they_are(shared_redis: Redis) -> None:
    with shared_redis.client() as client:
        client.set("taken:about", "mine")
        with store(f"{shared_redis.url}?prefix=taken") as process:
            assert "is not this server's: choose other names with ?prefix=NAME" in process.failed()
        assert client.get("taken:about") == b"mine"
        client.hset("later:about", "format", "2")
        with store(f"{shared_redis.url}?prefix=later") as process:
            assert "is in format 2, of another version of this server" in process.failed()


def test_a_redis_that_is_not_there_is_told_until_it_is(tmp_path: Path) -> None:
    path = tmp_path / "data" / "redis.sock"
    with store(f"unix://:hunter2@{path}") as process:
        down = process.wait("store.down")
        assert "cannot be reached" in down.head["text"]
        with own_redis(tmp_path / "data", "--requirepass", "hunter2"):
            assert process.up() == {}


def test_a_wrong_password_is_told_and_not_shown(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with own_redis(tmp_path / "data", "--requirepass", "right") as server:
        with store(f"unix://:hunter2@{server.path}") as process:
            text = process.wait("store.down").head["text"]
            assert "does not let this server in" in text
            assert "hunter2" not in text
            assert "unix://***@" in text
        assert "hunter2" not in capfd.readouterr().err


def test_a_redis_that_throws_keys_away_is_told(tmp_path: Path) -> None:
    arguments = ("--maxmemory", "64mb", "--maxmemory-policy", "allkeys-lru")
    with own_redis(tmp_path / "data", *arguments) as server, store(server.url) as process:
        process.up()
        assert "set it to noeviction" in process.wait("store.say", timeout=1.0).head["text"]


def test_a_redis_that_is_full_is_an_error_of_the_writer(tmp_path: Path) -> None:
    with own_redis(tmp_path / "data", "--maxmemory", "1gb") as server, store(server.url) as process:
        process.up()
        process.set("a", 1)
        with server.client() as client:
            client.config_set("maxmemory", "1mb")
            refused = process.write("set", "a", "x" * 1000)
            assert refused.head["code"] == "storage"
            assert refused.head["text"] == "Redis refused it: command not allowed when used memory > 'maxmemory'"
            assert process.wait("store.refuses").head["text"] == refused.head["text"]
            assert process.read("a") == 1
            process.write("set", "a", "x" * 1000)
            client.config_set("maxmemory", "1gb")
        assert process.wait("store.refuses").head["text"] == ""  # it tries by itself, and tells each only once
        process.set("a", 2)


def test_scripts_that_somebody_drops_are_brought_again(shared_redis: Redis) -> None:
    with store(f"{shared_redis.url}?prefix=dropped") as process:
        process.up()
        with shared_redis.client() as client:
            client.script_flush()
        refused = process.write("set", "a", 1)
        assert refused.head["code"] == "unavailable"  # it was not written, and the next one is
        process.wait("store.down")
        process.up()
        process.set("a", 1)


@pytest.mark.needs("openssl")
def test_tls(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    port = free_port()
    arguments = ["--tls-port", str(port), "--tls-cert-file", str(certificate), "--tls-key-file", str(key)]
    with own_redis(tmp_path / "data", *arguments, "--tls-auth-clients", "no"):
        with store(f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={certificate}") as process:
            process.up()
            process.set("a", 1)
        with store(f"rediss://127.0.0.1:{port}/0") as process:
            assert "certificate" in process.wait("store.down").head["text"].lower()


def test_a_missing_package_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "redis.py").write_text("raise ModuleNotFoundError(name='redis')\n")
    (tmp_path / "serve_asgi").symlink_to(Path(__file__).parents[2] / "server" / "serve_asgi")
    with store("redis://:hunter2@localhost", modules=tmp_path) as process:
        text = process.failed()
    assert "pip install 'serve-asgi[redis]'" in text
    assert "hunter2" not in text


@contextlib.contextmanager
def _master_and_replica(directory: Path) -> Iterator[tuple[Redis, Redis]]:
    with own_redis(directory / "master", tcp=True) as master:
        arguments = ("--replicaof", f"127.0.0.1 {master.port}", "--repl-diskless-sync-delay", "0")
        with own_redis(directory / "replica", *arguments, tcp=True) as replica, replica.client() as client:
            wait_for(lambda: client.info("replication").get("master_link_status") == "up")
            yield master, replica


def _both(master: Redis, replica: Redis) -> str:
    return f"redis://127.0.0.1:{master.port},127.0.0.1:{replica.port}/0"


def test_a_port_that_answers_no_redis_is_told(tmp_path: Path) -> None:
    port = free_port()
    with (
        socket.create_server(("127.0.0.1", port)),
        store(f"redis://127.0.0.1:{port}/0?timeout=0.2") as process,
    ):
        assert "did not answer in time" in process.wait("store.down").head["text"]
