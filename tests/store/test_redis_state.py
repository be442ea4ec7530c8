"""The state in a Redis that several servers share, and what becomes of it when that Redis is lost."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from serve_asgi.config.state_location import redis_address
from serve_asgi.hub.state.write_evaluation import AcceptedWrite, StateEntry, StateLimits
from serve_asgi.ipc.channel import pair
from serve_asgi.ipc.frames import Frame, decode, pack_value, unpack_value
from serve_asgi.store import replies
from serve_asgi.store.listener_link import ListenerLink
from serve_asgi.store.redis_requests import SessionLost
from serve_asgi.store.redis_state import RedisState
from tests.running import PATIENCE
from tests.store.stores import Redis, StoreProcess, free_port, own_redis, scaled, store

pytestmark = [pytest.mark.once, pytest.mark.needs("redis-server")]


@contextlib.contextmanager
def pair_of(url: str) -> Iterator[tuple[StoreProcess, StoreProcess]]:
    """The stores of two servers, both up."""
    with store(url) as a, store(url) as b:
        a.up(), b.up()
        yield a, b


def _changes(process: StoreProcess, count: int) -> list[tuple[int, str, object]]:
    """So many changes as the hub applies them, its own and others'."""
    found: list[tuple[int, str, object]] = []
    while len(found) < count:
        frame = process.wait("store.written", "store.change")
        if not found or frame.head["version"] > found[-1][0]:  # else it is only the answer
            found.append((frame.head["version"], frame.head["key"], unpack_value(frame.body) if frame.body else None))
    return found


def test_both_servers_see_all_changes_in_one_order(url: str) -> None:
    with pair_of(url) as (a, b):
        count = 50  # as much as the sockets hold: this end reads later
        for number in range(count):
            for name, process in (("a", a), ("b", b)):
                process.ask("store.write", {"op": "set", "key": f"{name}{number % 7}"}, pack_value(number, "a value"))
                process.ask("store.write", {"op": "incr", "key": "n", "by": 1})
        seen = _changes(a, 4 * count), _changes(b, 4 * count)
        assert seen[0] == seen[1]
        assert [version for version, _, _ in seen[0]] == list(range(1, 4 * count + 1))
        assert a.read("n") == b.read("n") == 2 * count


def test_an_answer_comes_after_the_changes_that_it_is_about(url: str) -> None:
    """Whoever is told of a conflict has what was in the way."""
    with pair_of(url) as (a, b):
        for _ in range(50):
            a.set("k", 1)
            id = b.ask("store.write", {"op": "cas", "key": "k", "version": 0}, pack_value(2, "a value"))
            kinds: list[tuple[str, int]] = []
            while not kinds or kinds[-1][0] != "store.refused":
                frame = b.receive()
                kinds.append((frame.kind, frame.head["version"]))
                assert frame.head.get("id", id) == id
            assert kinds[0][0] == "store.change" or len(kinds) == 1
            b.said.clear()
            assert kinds[-1][1] == a.write("cas", "k", 0, version=0).head["version"]


def test_another_server_hears_of_a_change_soon(url: str, record_property: Callable[[str, object], None]) -> None:
    """Measured, and bounded as everything is by what the test waits for; docs/guides/state-store.md has the figures."""
    with pair_of(url) as (a, b):
        took = []
        for number in range(scaled(100)):
            id = a.ask("store.write", {"op": "set", "key": "k"}, pack_value(number, "a value"))
            a.wait("store.written", id=id)
            confirmed = time.monotonic()
            b.wait("store.change")
            took.append(time.monotonic() - confirmed)
        took.sort()
        figures = {"median": took[len(took) // 2], "p99": took[len(took) * 99 // 100], "worst": took[-1]}
        print({name: f"{value * 1000:.2f} ms" for name, value in figures.items()})
        record_property("seconds behind", str(figures))


def test_messages_go_to_the_other_servers_in_order(url: str) -> None:
    with pair_of(url) as (a, b):
        for number in range(50):
            a.ask("store.send", {"kind": "broadcast", "topic": "t", "n": number}, b"body")
        for number in range(50):
            frame = b.wait("store.message")
            assert frame.head.pop("at")[1] == number + 1
            assert frame == Frame(
                "store.message", {"kind": "broadcast", "topic": "t", "n": number, "server": a.name}, b"body"
            )
            a.wait("store.sent")
        assert not [frame for frame in a.said if frame.kind == "store.message"]


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
            _wait_for(lambda: client.hget("serve:state", "early") is not None)
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
            _wait_for(lambda: second.hget("serve:state", "a") is not None)
            if not waits:
                process.process.send_signal(signal.SIGSTOP)
                _wait_for(lambda: first.info("clients")["blocked_clients"] == 0)
            second.replicaof("NO", "ONE")
            first.replicaof("127.0.0.1", str(replica.port))
            process.process.send_signal(signal.SIGCONT)
        process.wait("store.down")
        assert process.up() == {"a": (1, 1)}
        process.set("b", 2)
        with replica.client() as second:
            assert second.hget("serve:state", "b") == b"2:\x02"


def test_a_server_that_is_far_behind_takes_the_whole_state(url: str) -> None:
    """The stream of changes is bounded (16 MiB): whoever needs more of it begins anew, and misses no value."""
    with pair_of(url) as (a, b):
        b.set("old", 1)
        b.process.send_signal(signal.SIGSTOP)
        for number in range(350):
            a.set("large", f"{number:05}" + "x" * 60_000)
        a.write("delete", "old")
        b.process.send_signal(signal.SIGCONT)
        last = a.set("last", 1).head["version"]
        frame = b.wait("store.change", key="last") if not _anew(b) else None
        assert frame is None or frame.head["version"] == last
        assert b.read("large").startswith("00349")
        assert b.read("old") is None


def _anew(process: StoreProcess) -> bool:
    """Whether the whole state comes; the changes that were read before that are passed over."""
    while True:
        frame = process.wait("store.up", "store.change")
        if frame.kind == "store.up" or frame.head["key"] == "last":
            return frame.kind == "store.up"


def test_messages_that_were_missed_are_told(url: str) -> None:
    """The stream of messages is bounded (64 MiB) for a server that takes none."""
    with pair_of(url) as (a, b):
        b.process.send_signal(signal.SIGSTOP)
        count, body = 700, b"x" * 120_000
        for _ in range(count):
            a.wait("store.sent", id=a.ask("store.send", {"kind": "broadcast"}, body))
        b.process.send_signal(signal.SIGCONT)
        came = missed = 0
        while came + missed < count:
            frame = b.wait("store.message", "store.say")
            if frame.kind == "store.say":
                assert frame.head["event"] == "store_messages_missed"
                missed += frame.head["about"]["messages"]
            else:
                came += 1
        assert missed > 0
        assert came > 64 * 1024 * 1024 // 121_000


def test_a_lease_passes_on_when_its_holder_stands_still(url: str) -> None:
    """The fencing token of the next holder is larger: what the first one still writes can be told from it."""
    with pair_of(url) as (a, b):
        now = time.time()
        held = a.grant("report", now, lease=0.5, exclusive=True)
        assert b.grant("report", now + 1, exclusive=True).head["why"] == "running"
        a.process.send_signal(signal.SIGSTOP)
        _wait_for(lambda: b.grant("report", now + 1, exclusive=True).kind == "store.granted")
        a.process.send_signal(signal.SIGCONT)
        a.send("store.renew", {"name": "report", "token": held.head["token"], "lease": 30})
        assert "was not renewed in time" in a.wait("store.lost", token=held.head["token"]).head["text"]
        assert time.monotonic() > held.head["renewed_until"]
        again = b.grant("report", now + 1, exclusive=True)  # asked again by the same holder: the same grant
        assert again.head["token"] > held.head["token"]


@pytest.mark.parametrize("apart", [-7, -1, 1, 7])
def test_clocks_that_are_seconds_apart_double_no_tick(url: str, apart: int) -> None:
    """Each server asks for the tick that its own clock shows: each is granted once, and none twice."""
    with pair_of(url) as (a, b):
        began = int(time.time())
        granted: dict[int, int] = {}
        for second in range(20):
            for process, shows in ((a, second), (b, second + apart)):
                if process.grant("every second", began + shows).kind == "store.granted":
                    granted[shows] = granted.get(shows, 0) + 1
        assert set(granted.values()) == {1}
        later = [second for second in sorted(granted) if second >= apart]
        assert later == list(range(max(apart, 0), max(granted) + 1))  # once both are there, none is skipped


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


def test_scripts_that_somebody_drops_are_brought_again(url: str, shared_redis: Redis) -> None:
    with store(url) as process:
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


def test_it_leaves_with_its_listener(url: str) -> None:
    with store(url) as process:
        process.up()
        ids = [process.ask("store.write", {"op": "incr", "key": "n", "by": 1}) for _ in range(20)]
        process.wait("store.written", id=ids[-1])
        process.leave()
    with store(url) as process:
        assert process.up()["n"][1] == 20


@contextlib.contextmanager
def _master_and_replica(directory: Path) -> Iterator[tuple[Redis, Redis]]:
    with own_redis(directory / "master", tcp=True) as master:
        arguments = ("--replicaof", f"127.0.0.1 {master.port}", "--repl-diskless-sync-delay", "0")
        with own_redis(directory / "replica", *arguments, tcp=True) as replica, replica.client() as client:
            _wait_for(lambda: client.info("replication").get("master_link_status") == "up")
            yield master, replica


def _both(master: Redis, replica: Redis) -> str:
    return f"redis://127.0.0.1:{master.port},127.0.0.1:{replica.port}/0"


def _wait_for(condition: object) -> None:
    assert callable(condition)
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)  # of another program, which has no event for us


def test_a_port_that_answers_no_redis_is_told(tmp_path: Path) -> None:
    port = free_port()
    with (
        socket.create_server(("127.0.0.1", port)),
        store(f"redis://127.0.0.1:{port}/0?timeout=0.2") as process,
    ):
        assert "did not answer in time" in process.wait("store.down").head["text"]
