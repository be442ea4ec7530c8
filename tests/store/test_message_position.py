"""Messages of other servers while this one is away: they arrive, or it is said that they do not."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve_asgi.cli import control_client
from tests.running import PATIENCE, RunningServer, running
from tests.store.stores import Redis, StoreProcess, own_redis, store
from tests.store.test_servers import store_process
from tests.test_messenger import APP, Asking

pytestmark = [pytest.mark.once, pytest.mark.needs("redis-server")]


def _send(process: StoreProcess, *numbers: int) -> None:
    """Send numbered messages; Redis has each when the next one is sent."""
    for number in numbers:
        process.wait("store.sent", id=process.ask("store.send", {"kind": "broadcast", "n": number}))


def _came(process: StoreProcess, last: int) -> list[int]:
    """The numbers of the messages up to the last one."""
    came: list[int] = []
    while not came or came[-1] != last:
        came.append(process.wait("store.message").head["n"])
    return came


def _said(process: StoreProcess) -> list[tuple[str, int | None]]:
    said = [frame.head for frame in process.said if frame.kind == "store.say"]
    return [(each["event"], each["about"].get("messages")) for each in said if "broadcasts" in each["text"]]


@contextlib.contextmanager
def stopped(process: StoreProcess) -> Iterator[None]:
    process.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.process.send_signal(signal.SIGCONT)


@pytest.mark.parametrize("before", [0, 3, 10])
def test_what_is_sent_before_a_server_is_back_at_an_emptied_redis_arrives(tmp_path: Path, before: int) -> None:
    with own_redis(tmp_path / "data") as redis, store(redis.url) as a, store(redis.url) as b:
        a.up(), b.up()
        _send(a, *range(before))
        assert not before or _came(b, before - 1) == list(range(before))
        with stopped(b):
            with redis.client() as client:
                client.flushall()
            a.wait("store.down"), a.up()
            _send(a, *range(100, 105))
        b.wait("store.up")
        assert _came(b, 104) == [100, 101, 102, 103, 104]
        assert _said(b) == [("store_messages_missed", None)]
        _send(b, 7)
        assert _came(a, 7) == [7]


def test_a_read_that_waits_while_redis_is_emptied_takes_nothing_twice(tmp_path: Path) -> None:
    """What comes after it has a number that is larger than the last one before: it is of another life of the data."""
    with own_redis(tmp_path / "data") as redis, store(redis.url) as a, store(redis.url) as b:
        a.up(), b.up()
        _send(a, 1, 2)
        assert _came(b, 2) == [1, 2]
        for turn in range(3):
            with redis.client() as client:
                client.flushall()
            a.write("set", "k", turn)  # finds it empty at once; the other one is still reading
            a.wait("store.down"), a.up()
            numbers = [1000 * turn + n for n in range(100, 110)]
            _send(a, *numbers)
            assert _came(b, numbers[-1]) == numbers


def test_a_fail_over_to_a_replica_that_had_less_repeats_and_skips_none(tmp_path: Path) -> None:
    with own_redis(tmp_path / "master", tcp=True) as master:
        arguments = ("--replicaof", f"127.0.0.1 {master.port}", "--repl-diskless-sync-delay", "0")
        with own_redis(tmp_path / "replica", *arguments, tcp=True) as replica:
            url = f"redis://127.0.0.1:{master.port},127.0.0.1:{replica.port}/0"
            with store(url) as a, store(url) as b:
                _fail_over(master, replica, a, b)


def _fail_over(master: Redis, replica: Redis, a: StoreProcess, b: StoreProcess) -> None:
    a.up(), b.up()
    _send(a, 1, 2)
    assert _came(b, 2) == [1, 2]
    deadline = time.monotonic() + PATIENCE
    with replica.client() as client:
        while client.hget("serve:about", "sent") != b"2":
            assert time.monotonic() < deadline
            time.sleep(0.01)  # of another program, which has no event for us
        client.replicaof("NO", "ONE")  # it hears of nothing more: then the master dies
    _send(a, 3, 4, 5)
    assert _came(b, 5) == [3, 4, 5]
    with stopped(b):
        master.kill()
        a.wait("store.down"), a.up()
        _send(a, 16, 17, 18, 19, 20)
    b.wait("store.up")
    assert _came(b, 20) == [16, 17, 18, 19, 20]
    assert _said(b) == [("store_data_lost", 3)]


@contextlib.contextmanager
def two_servers(directory: Path) -> Iterator[tuple[Asking, Asking]]:
    with own_redis(directory / "redis") as redis, contextlib.ExitStack() as stack:
        found = []
        for name in ("one", "two"):
            (directory / name).mkdir()
            record = directory / name / "record"
            arguments = (APP, "--workers", "1", "--state", redis.url)
            server = running(*arguments, directory=directory / name, environment={"RECORD": str(record)})
            found.append(Asking(stack.enter_context(server), record))
        yield found[0], found[1]


def _heard(asking: Asking, *payloads: str) -> list[str]:
    """What has been heard of these, when the last one was."""
    deadline = time.monotonic() + PATIENCE
    while payloads[-1] not in (found := [line[1] for line in asking.lines("news") if line[1] in payloads]):
        assert time.monotonic() < deadline, found
        time.sleep(0.01)
    return found


def _replaced(server: RunningServer) -> None:
    control_client.ask(server.control, "reload-listener")


def test_what_is_sent_while_a_store_process_is_replaced_arrives(tmp_path: Path) -> None:
    """It dies, or a new program of the listener puts one of its own in its place: the next one reads on."""
    with two_servers(tmp_path) as (one, two):
        one.ask("/broadcast?topic=news&payload=first")
        _heard(two, "first")
        for turn, replace in enumerate((None, _replaced)):
            payloads = [f"{turn}-{number}" for number in range(20)]
            for number, payload in enumerate(payloads):
                pid = store_process(two.server) if number == 5 else 0
                if pid:  # it stands still, so that what follows is left to its successor
                    os.kill(pid, signal.SIGSTOP)
                one.ask(f"/broadcast?topic=news&payload={payload}")
                if number == 10:
                    os.kill(store_process(two.server), signal.SIGCONT if replace else signal.SIGKILL)
                    if replace:
                        replace(two.server)
            assert _heard(two, *payloads) == payloads
        assert "store_messages_missed" not in two.server.log()
