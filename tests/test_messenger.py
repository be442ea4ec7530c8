"""Messages between the workers of real servers: who gets them, and what happens when workers are slow, leave or die."""

from __future__ import annotations

import collections
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.running import PATIENCE, RunningServer, connect, request, running

APP = "tests.messenger_application:app"


class Asking:
    """A server with the application, and what a test asks it."""

    def __init__(self, server: RunningServer, record: Path) -> None:
        self.server = server
        self.record = record

    def ask(self, path: str) -> Any:
        """One request; return what it says."""
        with connect(self.server) as connection:
            status, body = request(connection, path)
        assert status == 200, body
        return json.loads(body)

    def lines(self, *words: str) -> list[list[str]]:
        """What was recorded under these words."""
        found = [line.split() for line in self.record.read_text().splitlines()]
        return [line for line in found if line[0] in words]

    def wait_for(self, count: int, *words: str) -> list[list[str]]:
        deadline = time.monotonic() + PATIENCE
        while len(found := self.lines(*words)) < count:
            assert time.monotonic() < deadline, (words, found)
            time.sleep(0.01)
        return found


@pytest.fixture(scope="module")
def asking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asking]:
    """Three workers for the tests that leave them as they are."""
    directory = tmp_path_factory.mktemp("messenger")
    record = directory / "record"
    with running(APP, "--workers", "3", directory=directory, environment={"RECORD": str(record)}) as server:
        yield Asking(server, record)


def of_its_own(tmp_path: Path, workers: int, *arguments: str) -> Any:
    record = tmp_path / "record"
    return running(APP, "--workers", str(workers), *arguments, directory=tmp_path, environment={"RECORD": str(record)})


def test_what_is_sent_before_the_others_are_ready_waits_for_them(asking: Asking) -> None:
    found = asking.wait_for(9, "news")  # each worker has sent at its start
    senders = collections.Counter(line[1] for line in found)
    receivers = collections.Counter(line[2] for line in found)
    assert (sorted(senders.values()), sorted(receivers.values())) == ([3, 3, 3], [3, 3, 3])
    assert {f"from-{pid}" for pid in receivers} == set(senders)


def test_calls_are_answered_by_one_worker_or_the_one_that_is_named(asking: Asking) -> None:
    pids = {slot: asking.ask(f"/call?topic=who&payload=x&to={slot}")[0] for slot in range(3)}
    assert len(set(pids.values())) == 3
    assert asking.ask("/call?topic=who&payload=x&to=1") == [pids[1], "x"]
    assert asking.ask("/call?topic=who&payload=y")[0] in pids.values()


@pytest.mark.parametrize(
    ("path", "error", "text"),
    [
        ("/call?topic=wrong&payload=x", "CallFailed", "ValueError: as it must be"),
        ("/call?topic=nobody", "NoReceiver", "'nobody'"),
        ("/acked?topic=nobody", "NoReceiver", "'nobody'"),
        ("/to?topic=who&to=9", "NoReceiver", "worker 9"),
        ("/agent?topic=who", "NoReceiver", "--agent"),
    ],
)
def test_what_cannot_be_delivered_raises(asking: Asking, path: str, error: str, text: str) -> None:
    told = asking.ask(path)
    assert told["error"] == error
    assert text in told["text"]


def test_a_broadcast_says_how_many_get_it(asking: Asking) -> None:
    assert asking.ask("/broadcast?topic=nobody") == [0]
    assert asking.ask("/broadcast?topic=news&payload=later&count=3") == [3, 3, 3]
    found = [line for line in asking.wait_for(18, "news") if line[1] == "later"]
    assert sorted(collections.Counter(line[2] for line in found).values()) == [3, 3, 3]


def test_a_handler_that_raises_counts_unless_success_is_asked_for(asking: Asking) -> None:
    assert asking.ask("/acked?topic=wrong&payload=once") == {"attempts": 1}
    told = asking.ask("/success?topic=wrong&payload=thrice")
    assert told["error"] == "DeadLettered"
    assert [line[2] for line in asking.lines("wrong") if line[1] == "thrice"] == ["1", "2", "3"]
    dead = [line for line in asking.wait_for(1, "dead") if line[2] == "thrice"]
    assert dead == [["dead", "wrong", "thrice", "3"]]
    assert "ValueError: as it must be" in asking.server.log()


def test_order_is_kept_for_each_sender(asking: Asking) -> None:
    with ThreadPoolExecutor(4) as senders:
        told = list(senders.map(asking.ask, ["/order?count=40"] * 4))
    assert told == [[3] * 40] * 4
    ways: dict[tuple[str, str], list[int]] = collections.defaultdict(list)
    for _, number, sender, receiver in asking.wait_for(4 * 40 * 3, "order"):
        ways[sender, receiver].append(int(number))
    for numbers in ways.values():  # several requests of one sender are as many ascending series
        came = collections.Counter[int]()
        for each in numbers:
            assert not each or came[each - 1] > came[each], numbers
            came[each] += 1
        assert came == dict.fromkeys(range(40), len(numbers) // 40)


@pytest.mark.once
def test_a_poison_message_kills_no_more_workers_than_it_has_deliveries(tmp_path: Path) -> None:
    with of_its_own(tmp_path, 2) as server:
        asking = Asking(server, tmp_path / "record")
        pids = set(server.worker_pids())
        # the worker that asks may be the one that dies: then its client hears nothing, and the message stands
        with connect(server) as connection:
            connection.sendall(b"GET /acked?topic=poison&payload=bad&timeout=60 HTTP/1.1\r\nhost: test\r\n\r\n")
            found = asking.wait_for(1, "dead")
        assert found == [["dead", "poison", "bad", "3"]]
        deaths = asking.lines("poison")
        assert [line[2] for line in deaths] == ["1", "2", "3"]
        assert len({line[3] for line in deaths}) == 3
        server.wait_for_workers(2)
        assert len(pids - set(server.worker_pids())) <= 2
        assert "was given up after 3 deliveries: the process that had it died" in server.log()
        assert asking.ask("/call?topic=who&payload=x")[1] == "x"


@pytest.mark.once
def test_who_does_not_take_holds_up_its_senders_and_is_named(tmp_path: Path) -> None:
    with of_its_own(tmp_path, 1) as server:
        asking = Asking(server, tmp_path / "record")
        told = asking.ask("/filled?topic=hold&count=1200&timeout=2")
        taken = [each for each in told if each == 1]
        refused = [each for each in told if each != 1]
        assert len(taken) == 64 + 1000  # in the worker's hands, and in the queue
        assert told[: len(taken)] == taken
        assert {each["error"] for each in refused} == {"NotDelivered"}
        assert "worker 0 of generation 1" in refused[0]["text"]
        assert asking.ask("/call?topic=who&payload=x")[1] == "x"  # other topics are not concerned
        asking.ask("/broadcast?topic=release")
        asking.wait_for(len(taken), "hold")
        assert asking.ask("/filled?topic=hold&count=1") == [1]
        asking.wait_for(len(taken) + 1, "hold")
        assert len(asking.lines("hold")) == len(taken) + 1


def test_a_retiring_worker_ends_what_it_has_and_gets_no_more(tmp_path: Path) -> None:
    with of_its_own(tmp_path, 1) as server:
        asking = Asking(server, tmp_path / "record")
        told: list[Any] = []
        senders = [
            threading.Thread(target=lambda n=n: told.append(asking.ask(f"/acked?topic=hold&payload={n}&timeout=60")))
            for n in range(3)
        ]
        for sender in senders:
            sender.start()
        ((_, _, old, _),) = asking.wait_for(1, "hold")
        server.reload()
        found = asking.wait_for(2, "hold")
        new = found[1][2]
        assert new != old
        asking.ask("/broadcast?topic=release")  # it still reaches the old one
        for sender in senders:
            sender.join(PATIENCE)
        assert told == [{"attempts": 1}] * 3
        assert [line[2] for line in asking.wait_for(3, "hold")] == [old, new, new]
        assert sorted(line[1] for line in asking.lines("hold")) == ["0", "1", "2"]
        assert {line[1] for line in asking.lines("release")} == {old, new}
        server.wait_until(lambda status: len(status["generations"]) == 1)
        assert "messages_lost" not in server.log()


def test_the_agent_gets_each_message_once_and_in_order_over_reloads(tmp_path: Path) -> None:
    with of_its_own(tmp_path, 1, "--agent", "tests.messenger_application:agent") as server:
        asking = Asking(server, tmp_path / "record")
        told: list[Any] = []

        over = threading.Event()

        def send() -> None:
            while not over.is_set():
                told.append(asking.ask(f"/agents?first={20 * len(told)}&count=20"))

        sender = threading.Thread(target=send)
        sender.start()
        for reload in range(2):
            asking.wait_for(100 * (reload + 1), "agent")
            server.reload()
        asking.wait_for(len(asking.lines("agent")) + 1, "agent")  # the last of the agents has some
        over.set()
        sender.join(PATIENCE)
        found = asking.wait_for(20 * len(told), "agent")
        assert told == [[]] * len(told)
        assert [int(line[1]) for line in found] == list(range(20 * len(told)))
        assert len({line[2] for line in found}) == 3
        assert {line[3] for line in found} == {"agent"}


def test_messages_outlive_the_listeners_program(tmp_path: Path) -> None:
    with of_its_own(tmp_path, 2) as server:
        asking = Asking(server, tmp_path / "record")
        with ThreadPoolExecutor(4) as senders:
            sent = [senders.submit(asking.ask, f"/acked?topic=hold&payload={n}&timeout=60") for n in range(4)]
            asking.wait_for(2, "hold")
            from serve_asgi.cli import control_client

            control_client.ask(server.control, "reload", listener=True)
            asking.ask("/broadcast?topic=release")
            assert [each.result(PATIENCE) for each in sent] == [{"attempts": 1}] * 4
        assert sorted(line[1] for line in asking.wait_for(4, "hold")) == ["0", "1", "2", "3"]


def test_a_worker_that_retires_handles_what_was_broadcast_before_and_does_not_wait_for_more(tmp_path: Path) -> None:
    """More than is in flight to it, each slow; meanwhile more is sent than it would ever have done with."""
    with of_its_own(tmp_path, 1) as server:
        asking = Asking(server, tmp_path / "record")
        old = asking.ask("/pid")
        count = 300
        assert asking.ask(f"/broadcast?topic=order&payload=0&count={count}") == [1] * count
        with ThreadPoolExecutor(1) as pool:
            reload = pool.submit(server.reload)
            sent = 0
            while not (reload.done() and old not in server.worker_pids()):
                sent += len(asking.ask("/broadcast?topic=order&payload=1&count=20"))
                assert sent < 100_000
            reload.result()
        handled = [line[1] for line in asking.lines("order") if line[3] == str(old)]
        assert handled.count("0") == count
        assert "messages_lost" not in server.log()
        assert "cut" not in server.log().replace("0 requests cut", "")
