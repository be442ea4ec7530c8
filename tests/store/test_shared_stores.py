"""What holds for a Redis and a PostgreSQL alike: the order of changes, messages, leases, servers that are behind."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

import pytest

from serve_asgi.ipc.frames import Frame, pack_value, unpack_value
from tests.store.stores import StoreProcess, pair_of, scaled, store, wait_for

pytestmark = pytest.mark.once


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
        for _ in range(count // 10):
            for id in [a.ask("store.send", {"kind": "broadcast"}, body) for _ in range(10)]:
                a.wait("store.sent", id=id)
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
        wait_for(lambda: b.grant("report", now + 1, exclusive=True).kind == "store.granted")
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


def test_it_leaves_with_its_listener(url: str) -> None:
    with store(url) as process:
        process.up()
        ids = [process.ask("store.write", {"op": "incr", "key": "n", "by": 1}) for _ in range(20)]
        process.wait("store.written", id=ids[-1])
        process.leave()
    with store(url) as process:
        assert process.up()["n"][1] == 20
