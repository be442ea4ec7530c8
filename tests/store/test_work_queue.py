"""Work of the fleet in a Redis and in a PostgreSQL, frame by frame: taken once, kept, put back, settled, told."""

from __future__ import annotations

import signal
import threading
from typing import Any

import pytest

from serve_asgi.ipc.frames import Frame
from serve_asgi.ipc.message_frames import AckMode
from serve_asgi.ipc.work_frames import QUEUED_BYTES
from tests.store.stores import StoreProcess, own_redis, pair_of, store, wait_for

pytestmark = pytest.mark.once

ORIGIN = ["worker", 1, 7]


@pytest.fixture
def url(url: str) -> str:
    """With a short lease: a server that is dead is noticed soon."""
    return f"{url}&lease=1"


def post(process: StoreProcess, topic: str = "job", body: bytes = b"body", **more: Any) -> Frame:
    """Hand over one message; the reply."""
    process._count += 1
    id = f"3/{process._count}"
    head = {"id": id, "message": f"m{id}", "topic": topic, "ack": int(AckMode.HANDLED), "limit": 3, "origin": ORIGIN}
    process.send("store.post", head | more, body)
    return process.wait("store.posted", "store.unsent", id=id)


def handle(process: StoreProcess, topic: str = "job", credit: int = 10) -> None:
    """It handles the topic, and has room."""
    process.send("store.handles", {"topics": {topic: True}})
    process.send("store.credit", {"topics": {topic: credit}})


def settle(process: StoreProcess, work: Frame, outcome: str = "handled", value: Any = None) -> None:
    process._count += 1
    head = {"id": process._count, "topic": work.head["topic"], "entry": work.head["entry"], "outcome": outcome}
    process.send("store.settle", head | {"value": value})
    process.wait("store.settled", id=process._count)


def test_work_goes_to_one_server_and_its_outcome_to_the_sender(url: str) -> None:
    with pair_of(url) as (a, b):
        assert a.topics == b.topics == []
        first = post(a)
        assert first.kind == "store.posted", first
        assert first.head["handlers"] == 0  # the first to this topic: nobody has said so yet
        assert [process.wait("store.topics").head["topics"] for process in (a, b)] == [["job"], ["job"]]
        handle(b)
        work = b.wait("store.work")
        assert work.body == b"body"
        assert (work.head["attempt"], work.head["origin"], work.head["message"]) == (1, ORIGIN, "m3/1")
        assert (work.head["ack"], work.head["limit"], work.head["entry"]) == (2, 3, first.head["entry"])
        settle(b, work, value=[1, "worker", 0, 7])
        assert a.wait("store.outcome").head == {"id": "3/1", "outcome": "handled", "by": [1, "worker", 0, 7]}
        assert post(a).head["handlers"] == 1
        settle(b, again := b.wait("store.work"), "dead", "given up")
        assert a.wait("store.outcome").head["text"] == "given up"
        settle(b, again)  # a second time changes nothing
        post(b, ack=int(AckMode.ACCEPTED))  # one of its own, of which nobody wants to hear
        settle(b, b.wait("store.work"), value=[1, "worker", 0, 7])
        with store(url) as c:  # what is new is known to a server that comes later
            c.up()
            assert c.topics == ["job"]
        assert not [frame for frame in (*a.said, *b.said) if frame.kind in ("store.work", "store.outcome")]


def test_a_fleet_takes_each_message_once(url: str) -> None:
    """Three servers that take a few at a time; each gets no more than it has room for."""
    count = 120
    with store(url) as a, store(url) as b, store(url) as c:
        for process in (a, b, c):
            process.up()
            post(process, message=process.name)
        got: dict[str, list[str]] = {}

        def work(process: StoreProcess, name: str) -> None:
            handle(process, credit=4)
            found = got[name] = []
            while sum(map(len, got.values())) < count + 3:
                try:
                    frame = process.wait("store.work", timeout=0.2)
                except TimeoutError:
                    continue
                found.append(frame.head["message"])
                settle(process, frame, value=[1, "worker", 0, 7])
                process.send("store.credit", {"topics": {"job": 1}})

        threads = [threading.Thread(target=work, args=each) for each in ((b, "b"), (c, "c"))]
        for thread in threads:
            thread.start()
        for _ in range(count):
            assert post(a).kind == "store.posted"
        for thread in threads:
            thread.join()
        every = [id for ids in got.values() for id in ids]
        assert len(set(every)) == len(every) == count + 3


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_what_a_dead_server_had_taken_goes_to_another_one(url: str, how: str) -> None:
    """And is marked; a server that only stood still cannot settle it any more, for it is the other one's."""
    with pair_of(url) as (a, b):
        post(a)
        handle(b)
        lost = b.wait("store.work")
        b.process.send_signal(signal.SIGKILL if how == "killed" else signal.SIGSTOP)
        handle(a)
        work = a.wait("store.work")
        assert (work.head["message"], work.head["attempt"], work.body) == (lost.head["message"], 2, b"body")
        if how == "stopped":
            b.process.send_signal(signal.SIGCONT)
            settle(b, lost, value=[1, "worker", 0, 7])
        settle(a, work, value=[2, "worker", 0, 7])
        outcome = a.wait("store.outcome").head
        assert outcome["by"][0] in (1, 2)
        assert not [frame for frame in a.said if frame.kind in ("store.work", "store.outcome")]


def test_what_a_living_server_has_stays_its_own(url: str) -> None:
    """Longer than a lease, and over a new store process of the same server."""
    with pair_of(url) as (a, b):
        post(a)
        handle(b)
        held = b.wait("store.work")
        handle(a)
        post(a, "other")
        for _ in range(2):  # at the end of the first, `job` has been put back if it ever is
            with pytest.raises(TimeoutError):
                a.wait("store.work", timeout=1.3)
        again = StoreProcess(url)
        try:
            again.name = b.name
        finally:
            again.close()
        settle(b, held, value=[1, "worker", 0, 7])
        assert a.wait("store.outcome").head["by"][0] == 1


def test_what_is_put_back_goes_to_any_server_and_counts_as_the_hub_says(url: str) -> None:
    with pair_of(url) as (a, b):
        post(a)
        handle(b, credit=1)
        settle(b, b.wait("store.work"), "again", 0)  # it was not begun
        handle(a)
        work = a.wait("store.work")
        assert work.head["attempt"] == 1
        settle(a, work, "again", 1)
        work = a.wait("store.work")
        assert work.head["attempt"] == 2
        settle(a, work, "lost")
        assert not [frame for frame in a.said if frame.kind == "store.outcome"]


def test_what_nobody_has_taken_is_taken_back(url: str) -> None:
    with pair_of(url) as (a, b):
        entry = post(a).head["entry"]
        for found in (True, False):  # the second time it is not there
            a.send("store.withdraw", {"id": "x", "topic": "job", "entry": entry})
            assert a.wait("store.withdrawn").head == {"id": "x", "found": found}
        entry = post(a).head["entry"]
        handle(b)
        work = b.wait("store.work")
        assert work.head["entry"] == entry
        a.send("store.withdraw", {"id": "y", "topic": "job", "entry": entry})
        assert a.wait("store.withdrawn").head == {"id": "y", "found": False}


def test_a_server_that_gives_a_topic_up_counts_no_more(url: str) -> None:
    with pair_of(url) as (a, b):
        post(a)
        handle(b)
        wait_for(lambda: post(a).head["handlers"] == 1)
        b.send("store.handles", {"topics": {"job": False}})
        wait_for(lambda: post(a).head["handlers"] == 0)


def test_topics_that_are_wanted_later_wait_for_no_other(url: str) -> None:
    """While it waits for work of one topic, a server has room for another one."""
    with pair_of(url) as (a, b):
        post(a, "one"), post(a, "two")
        handle(b, "one")
        settle(b, b.wait("store.work", topic="one"), value=[1, "worker", 0, 7])
        handle(b, "two", credit=1)
        settle(b, b.wait("store.work", topic="two"), value=[1, "worker", 0, 7])
        post(a, "two")
        b.send("store.credit", {"topics": {"two": 1}})
        assert b.wait("store.work", topic="two").head["attempt"] == 1


def test_a_queue_is_bounded_and_says_so(url: str) -> None:
    """By bytes here, which takes fewer messages than `QUEUED`."""
    with store(url) as process:
        process.up()
        body = b"x" * 131_000
        fits = QUEUED_BYTES // len(body)
        for number in range(fits):
            head = {"id": f"x/{number}", "message": "m", "topic": "job", "ack": 0, "limit": 1, "origin": ORIGIN}
            process.send("store.post", head, body)
            if number % 10 == 9:
                process.wait("store.posted", id=f"x/{number}")
        refused = post(process, body=body)
        assert refused.kind == "store.unsent"
        assert refused.head["code"] == "busy"
        assert f"{fits} messages of topic 'job' wait for a worker of the fleet already" in refused.head["text"]
        assert post(process, "other").kind == "store.posted"
        handle(process, credit=1)
        settle(process, process.wait("store.work"), value=[1, "worker", 0, 7])
        assert post(process, body=body).kind == "store.posted"


@pytest.mark.needs("redis-server")
def test_a_redis_that_is_away_is_said_and_what_waited_in_it_is_there_again(tmp_path: Any) -> None:
    with own_redis(tmp_path / "redis", persistent=True) as kept, pair_of(f"{kept.url}?lease=1&timeout=1") as (a, b):
        post(a)
        kept.kill()
        refused = post(a)
        assert (refused.kind, "cannot be reached" in refused.head["text"]) == ("store.unsent", True)
        kept.start()
        a.up(), b.up()
        assert a.topics == ["job"]
        handle(b)
        settle(b, b.wait("store.work"), value=[1, "worker", 0, 7])
        assert a.wait("store.outcome").head["id"] == "3/1"
