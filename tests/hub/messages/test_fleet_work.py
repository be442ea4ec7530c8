"""Work of the fleet, as one hub sees it: what it hands to the store, what it takes, and what it says of that."""

from __future__ import annotations

from typing import Any

import pytest

from serve_asgi.errors import ChannelError
from serve_asgi.hub.core import HubSettings
from serve_asgi.hub.messages.consumers import NO_CONSUMER_GRACE
from serve_asgi.hub.messages.fleet_work import MAX_CREDIT, NOT_SHARED, SETTLE_AGAIN
from serve_asgi.ipc.frames import encode
from serve_asgi.ipc.message_frames import AckMode, MessageKind
from tests.hub.messages.table import Table


class FleetTable(Table):
    """A hub whose store a test speaks for; worker 1 handles `a`, one at a time."""

    def __init__(self, **topics: int) -> None:
        super().__init__(shared=True)
        self.hub.store_changed("")
        self.worker(1, 0, **(topics or {"a": 1}))
        self.stored("store.topics", topics=["a", "b"], fresh=True)

    def stored(self, kind: str, body: bytes = b"", **head: Any) -> None:
        self.hub.take_from_store(encode(kind, head, body))
        self.collect()

    def asked(self, *kinds: str) -> list[dict[str, Any]]:
        """What the store was sent since the last time, of these kinds."""
        frames, self.port.to_store = self.port.to_store, []
        return [frame.head for frame in frames if frame.kind in kinds]

    def fleet(self, want: AckMode = AckMode.HANDLED, topic: str = "a") -> str:
        return self.send(1, MessageKind.ANY_IN_FLEET, topic, b"x", want, 3, 0)

    def posted(self, id: str, handlers: int = 1, entry: str = "e1") -> None:
        self.stored("store.posted", id=f"1/{id}", entry=entry, handlers=handlers)

    def taken(self, entry: str = "e1", attempt: int = 1, ack: AckMode = AckMode.HANDLED, **more: Any) -> None:
        head = {"topic": "a", "entry": entry, "message": f"m{entry}", "attempt": attempt, "ack": int(ack), "limit": 3}
        self.stored("store.work", b"x", origin=["worker", 0, 1], **head | more)

    def settled(self) -> list[tuple[str, Any]]:
        """The outcomes that were reported since the last time; the store has got them."""
        found = self.asked("store.settle")
        for head in found:
            self.stored("store.settled", id=head["id"])
        return [(head["outcome"], head["value"]) for head in found]


@pytest.fixture
def table() -> FleetTable:
    return FleetTable()


# Sending


def test_a_server_that_shares_nothing_says_what_to_do() -> None:
    table = Table()
    table.worker(1, 0, a=1)
    id = table.send(1, MessageKind.ANY_IN_FLEET, "a", b"", AckMode.HANDLED, 3, 0)
    assert table.told[1] == [[id, "f", ["nobody", NOT_SHARED]]]


def test_a_process_on_its_own_is_the_fleet() -> None:
    table = Table()
    table.settings = HubSettings(alone=True)
    table.hub = table.fresh()
    table.worker(1, 0, a=1)
    id = table.send(1, MessageKind.ANY_IN_FLEET, "a", b"", AckMode.HANDLED, 3, 0)
    table.done(1, table.given[1][0].delivery)
    assert [entry[:2] for entry in table.told[1]] == [[id, "a"], [id, "h"]]


def test_a_message_is_accepted_when_it_is_queued_and_confirmed_when_it_was_handled(table: FleetTable) -> None:
    id = table.fleet()
    (head,) = table.asked("store.post")
    assert head == {"id": f"1/{id}", "message": id, "topic": "a", "ack": 2, "limit": 3, "origin": ["worker", 0, 1]}
    assert table.told[1] == []
    table.posted(id)
    assert table.told[1].pop()[:2] == [id, "a"]
    table.stored("store.outcome", id=f"1/{id}", outcome="handled", by=[2, "worker", 5, 9])
    assert table.told[1].pop() == [id, "h", [2, "worker", 5, 9]]
    table.stored("store.outcome", id=f"1/{id}", outcome="dead", text="again")  # it is over
    assert table.told[1] == []


def test_an_outcome_may_come_before_the_word_that_it_is_queued(table: FleetTable) -> None:
    id = table.fleet()
    table.stored("store.outcome", id=f"1/{id}", outcome="dead", text="it was given up")
    assert [entry[1] for entry in table.told[1]] == ["a", "f"]
    assert table.told[1][1][2] == ["dead", "it was given up"]
    table.posted(id, handlers=0)
    table.pass_time(NO_CONSUMER_GRACE)
    assert table.asked("store.withdraw") == []


def test_without_a_handler_anywhere_it_is_taken_back_after_a_moment(table: FleetTable) -> None:
    gone, taken = table.fleet(), table.fleet()
    table.posted(gone, 0, "e1")
    table.posted(taken, 0, "e2")
    assert table.told[1] == []
    table.pass_time(NO_CONSUMER_GRACE)
    assert [head["entry"] for head in table.asked("store.withdraw")] == ["e1", "e2"]
    table.stored("store.withdrawn", id=f"1/{gone}", found=True)
    table.stored("store.withdrawn", id=f"1/{taken}", found=False)  # a server came, and has it
    assert [entry[:2] for entry in table.told[1]] == [[gone, "f"], [taken, "a"]]
    assert table.told[1][0][2][0] == "nobody"


def test_what_the_store_cannot_take_is_told(table: FleetTable) -> None:
    id = table.fleet()
    table.stored("store.unsent", id=f"1/{id}", code="unavailable", text="Redis is away")
    assert table.told[1] == [[id, "f", ["store", "it could not be handed to the fleet: Redis is away"]]]


@pytest.mark.parametrize("replied", [False, True])
def test_a_sender_that_gives_up_leaves_nothing_behind(table: FleetTable, replied: bool) -> None:
    id = table.fleet()
    if replied:
        table.posted(id, 0)
    table.withdraw(1, id)
    assert table.told[1][0][1:] == ["f", ["full", "not delivered in time to the other servers"]]
    if not replied:
        assert table.asked("store.withdraw") == []
        table.posted(id, 1)
    assert table.asked("store.withdraw") == [{"id": f"1/{id}", "topic": "a", "entry": "e1"}]
    table.stored("store.withdrawn", id=f"1/{id}", found=True)
    later = table.fleet()
    table.withdraw(1, later)
    table.stored("store.unsent", id=f"1/{later}", code="busy", text="full")
    assert len(table.told[1]) == 2


def test_one_that_is_taken_back_already_is_withdrawn_once(table: FleetTable) -> None:
    id = table.fleet()
    table.posted(id, 0)
    table.pass_time(NO_CONSUMER_GRACE)
    table.withdraw(1, id)
    assert len(table.asked("store.withdraw")) == 1
    table.stored("store.withdrawn", id=f"1/{id}", found=False)
    assert [entry[1] for entry in table.told[1]] == ["f"]


def test_nobody_calls_the_fleet(table: FleetTable) -> None:
    with pytest.raises(ChannelError):
        table.fleet(AckMode.REPLY)
    with pytest.raises(ChannelError):
        table.taken(ack=AckMode.REPLY)


# Taking


def test_the_store_hands_over_as_much_as_workers_can_begin(table: FleetTable) -> None:
    assert table.asked("store.handles", "store.credit") == [{"topics": {"a": True}}, {"topics": {"a": 1}}]
    table.taken()
    assert table.asked("store.credit") == []  # it is busy
    table.done(1, table.given[1][0].delivery)
    assert table.asked("store.settle", "store.credit") == [
        {"id": 1, "topic": "a", "entry": "e1", "outcome": "handled", "value": [1, "worker", 0, 1]},
        {"topics": {"a": 1}},
    ]
    table.worker(2, 1, a=500)
    assert table.asked("store.credit") == [{"topics": {"a": MAX_CREDIT - 1}}]
    for _ in range(2):  # handed over twice: it is held already
        table.taken("e1")
    assert table.ids(1) + table.ids(2) == ["me1", "me1"]


def test_a_new_topic_of_the_fleet_is_handled_at_once() -> None:
    table = FleetTable(c=2)
    assert table.asked("store.handles") == []
    table.stored("store.topics", topics=["c"])
    assert table.asked("store.handles", "store.credit") == [{"topics": {"c": True}}, {"topics": {"c": 2}}]


def test_a_failure_is_put_back_until_it_is_a_dead_letter(table: FleetTable) -> None:
    for attempt in (1, 2, 3):
        table.taken(f"e{attempt}", attempt, AckMode.SUCCESS)
        table.done(1, table.given[1][-1].delivery, ok=False)
        assert table.given[1][-1].attempt == attempt
    found = table.settled()
    assert [outcome for outcome, _ in found] == ["again", "again", "dead"]
    assert found[:2] == [("again", 1), ("again", 2)]
    assert "was given up after 3 deliveries: its handler raised" in found[2][1]
    assert table.events() == ["message_dead_lettered"]


def test_a_worker_that_dies_has_it_put_back_and_counted(table: FleetTable) -> None:
    table.worker(2, 1, a=1)
    table.taken("e1")
    table.taken("e2", ack=AckMode.ACCEPTED)
    for member in (1, 2):
        table.leave(member)
    assert sorted(table.settled(), key=str) == [("again", 1), ("lost", None)]
    assert table.events() == ["messages_lost"]


def test_what_was_not_begun_goes_to_another_worker_or_uncounted_to_the_fleet(table: FleetTable) -> None:
    table.worker(2, 1, a=1)
    table.taken("e1")
    (holder,) = [member for member in (1, 2) if table.given[member]]
    table.retire(holder)
    table.back(holder, table.given[holder][0].delivery)
    other = 3 - holder
    assert table.ids(other) == ["me1"]
    assert table.settled() == []
    table.retire(other)
    table.back(other, table.given[other][0].delivery)
    assert table.settled() == [("again", 0)]
    assert table.asked("store.handles") == []  # said with it: it handles nothing any more
    table.taken("e2")  # too late: it was under way
    assert table.settled() == [("again", 0)]


def test_a_server_without_its_workers_handles_nothing(table: FleetTable) -> None:
    table.asked()
    table.leave(1)
    assert table.asked("store.handles") == [{"topics": {"a": False}}]
    table.join(2, 0)  # it may handle the topic, and may not
    assert table.asked("store.handles") == []
    table.up(2, a=1)
    table.serve(2)
    assert table.asked("store.handles") == [{"topics": {"a": True}}]


def test_work_of_a_server_that_died(table: FleetTable) -> None:
    """It is delivered with its attempt; not if it is not acknowledged, or has been delivered often enough."""
    table.taken("e1", 2, ack=AckMode.ACCEPTED)
    table.taken("e2", 4)
    assert [outcome for outcome, _ in table.settled()] == ["lost", "dead"]
    table.taken("e3", 3)
    assert [(each.id, each.attempt) for each in table.given[1]] == [("me3", 3)]
    assert table.events() == ["messages_lost", "message_dead_lettered"]


def test_what_the_store_may_not_have_heard_is_said_again(table: FleetTable) -> None:
    table.taken()
    table.done(1, table.given[1][0].delivery)
    (head,) = table.asked("store.settle")
    table.stored("store.unsettled", id=head["id"])
    table.pass_time(SETTLE_AGAIN)
    assert table.asked("store.settle") == [head]
    table.stored("store.unsettled", id=head["id"])
    table.stored("store.topics", topics=["a"], fresh=True)  # another session: now
    assert table.asked("store.settle") == [head]
    table.stored("store.settled", id=head["id"])
    table.stored("store.unsettled", id=head["id"])
    table.pass_time(SETTLE_AGAIN)
    assert table.asked("store.settle") == []


@pytest.mark.parametrize("replaced", [False, True])
def test_another_store_process_hears_what_this_server_has(table: FleetTable, replaced: bool) -> None:
    waits, gone, regretted = (table.fleet() for _ in range(3))
    table.posted(waits)
    table.posted(gone, 0, "e7")
    table.withdraw(1, regretted)
    table.taken("e5")
    if replaced:
        told, given = table.told, table.given
        table.replace()
        table.told, table.given = told, given
    table.asked()
    table.stored("store.topics", topics=["a", "b"], fresh=True)
    assert table.asked("store.held", "store.handles") == [{"m": [["a", "e5"]]}, {"topics": {"a": True}}]
    table.done(1, table.given[1][0].delivery)
    assert table.settled() == [("handled", [1, "worker", 0, 1])]
    table.stored("store.outcome", id=f"1/{waits}", outcome="handled", by=[1, "worker", 5, 9])
    assert table.told[1][-1][:2] == [waits, "h"]
    table.pass_time(NO_CONSUMER_GRACE)
    assert [head["entry"] for head in table.asked("store.withdraw")] == ["e7"]
    table.posted(regretted, entry="e8")
    assert [head["entry"] for head in table.asked("store.withdraw")] == ["e8"]


def test_topics_of_the_server_itself_are_nonsense(table: FleetTable) -> None:
    with pytest.raises(ChannelError):
        table.taken(topic="serve:dead")
