"""What seldom happens to messages: answers that come too late, queues whose process leaves, nonsense."""

from __future__ import annotations

import pytest

from serve_asgi.errors import ChannelError
from serve_asgi.hub.messages.consumers import CONSUMER_WINDOW, NO_CONSUMER_GRACE, STARTING_TOPICS, STRANDED_TIME
from serve_asgi.hub.messages.dead_letters import MAX_SINGLE_RECORDS
from serve_asgi.hub.messages.queues import QUEUE_BYTES, QUEUE_LIMIT, TOTAL_BYTES
from serve_asgi.ipc.frames import encode
from serve_asgi.ipc.membership_frames import Role
from serve_asgi.ipc.message_frames import DEAD_LETTER_TOPIC, AckMode, MessageKind
from tests.hub.messages.table import AGENT, Table


@pytest.fixture
def table() -> Table:
    """Two workers, 1 and 2 in slots 0 and 1, that handle `a` one at a time."""
    made = Table()
    made.worker(1, 0, a=1)
    made.worker(2, 1, a=1)
    return made


def test_what_is_said_of_messages_that_are_over_is_passed_over(table: Table) -> None:
    table.send(1, MessageKind.BROADCAST, "a")
    before = (table.told, table.given)
    table.done(2, 999)
    table.back(2, 999)
    table.hub.take_from_store(encode("store.sent", {"id": "m99"}))
    table.withdraw(2, "m1", "m99")
    assert (table.told, table.given) == before


@pytest.mark.parametrize("length", [-1, 4])
def test_lengths_that_do_not_fit_are_nonsense(table: Table, length: int) -> None:
    with pytest.raises(ChannelError):
        table.take(1, "msg.send", {"m": [["m1", 0, "a", 0, 1, -1, length]]}, b"abc")


def test_what_waits_for_a_slot_that_is_scaled_away_is_a_dead_letter(table: Table) -> None:
    ids = [table.send(1, MessageKind.DIRECT, "a", slot=1) for _ in range(CONSUMER_WINDOW + QUEUE_LIMIT + 1)]
    table.retire(2)
    lost = ids[CONSUMER_WINDOW:-1]
    assert [about["id"] for _, _, about in table.port.records] == lost[:MAX_SINGLE_RECORDS]
    table.pass_time(NO_CONSUMER_GRACE)
    assert table.port.records[-1][2] == {"topics": ["a"], "count": len(lost) - MAX_SINGLE_RECORDS}
    assert table.told[1][-1][:2] == [ids[-1], "f"]


def test_senders_that_wait_go_with_their_messages_to_the_successor(table: Table) -> None:
    ids = [table.send(1, MessageKind.DIRECT, "a", slot=1) for _ in range(CONSUMER_WINDOW + QUEUE_LIMIT + 2)]
    table.join(3, 1)
    table.up(3, a=1)
    table.serve(3)
    table.retire(2)
    table.back(2, *[given.delivery for given in table.given[2]])
    while len(table.given[3]) < len(ids):
        table.done(3, table.given[3][len(table.given[3]) - CONSUMER_WINDOW].delivery)
    assert table.ids(3) == ids
    assert [told[:2] for told in table.told[1]] == [[id, "a"] for id in ids]


def test_what_follows_waits_for_all_that_retire_in_a_slot(table: Table) -> None:
    table.send(2, MessageKind.DIRECT, "a", slot=0)
    for id in (3, 4):
        table.join(id, 0, generation=id)
        table.up(id, a=1)
        table.serve(id)
        table.retire(id - 2 if id == 3 else 3)
        if id == 3:
            table.back(1, table.given[1][0].delivery)
            last = table.send(2, MessageKind.DIRECT, "a", slot=0)
            assert table.ids(3)[-1] == last
    new = table.send(2, MessageKind.DIRECT, "a", slot=0)
    assert table.ids(4) == []
    table.leave(3)
    assert table.ids(4) == [new]


def test_a_call_to_a_slot_whose_caller_has_gone_is_not_begun(table: Table) -> None:
    ids = [table.send(1, MessageKind.DIRECT, "a", slot=1) for _ in range(CONSUMER_WINDOW)]
    call = table.send(1, MessageKind.DIRECT, "a", want=AckMode.REPLY, slot=1)
    after = table.send(1, MessageKind.DIRECT, "a", slot=1)
    table.withdraw(1, call)
    table.done(2, table.given[2][0].delivery)
    assert table.ids(2) == [*ids, after]


def test_copies_that_a_process_does_not_want_are_no_loss(table: Table) -> None:
    ids = [table.send(1, MessageKind.BROADCAST, "a") for _ in range(CONSUMER_WINDOW + QUEUE_LIMIT)]
    for given in list(table.given[1]):
        table.done(1, given.delivery)
    held_up = table.send(1, MessageKind.BROADCAST, "a")
    assert table.told[1][-1][0] == ids[-1]
    table.take(2, "msg.topics", {"topics": {"a": 0}})
    assert table.told[1][-1] == [held_up, "a", 1]
    table.back(2, table.given[2][0].delivery)
    assert table.events() == []


def test_copies_that_wait_for_a_process_that_dies_are_reported_with_those_in_its_hands(table: Table) -> None:
    for _ in range(CONSUMER_WINDOW + 5):
        table.send(1, MessageKind.BROADCAST, "a")
    table.leave(2)
    assert [about["count"] for _, _, about in table.port.records] == [CONSUMER_WINDOW + 5]


def test_dead_letters_that_nobody_wants_are_told_of_once() -> None:
    table = Table(agent=True)
    table.worker(1, 0, a=1)
    table.join(2, 1)  # it may want them, once it is up
    table.work(1, "a", AckMode.SUCCESS, limit=1)
    table.done(1, table.given[1][0].delivery, False)
    table.up(2)
    table.pass_time(STRANDED_TIME + 1)
    assert table.events() == ["message_dead_lettered"]
    assert not table.part.routing.consumers.topic_queues


def test_work_is_given_again_only_to_who_has_room(table: Table) -> None:
    table.port.without_room = {1, 2}
    id = table.work(1, "a")
    table.port.without_room = {2}
    table.hub.room_available(1)
    table.collect()
    assert (table.ids(1), table.ids(2)) == ([id], [])


def test_a_process_that_starts_and_handles_something_else_is_not_told_what_was_not_kept(table: Table) -> None:
    table.join(3, 2)
    body = b"x" * 100_000
    for _ in range(50):
        table.send(1, MessageKind.BROADCAST, "a", body)
    table.up(3, b=1)
    assert table.events() == []


def test_what_waits_outlives_the_program_in_each_queue() -> None:
    table = Table(agent=True)
    table.worker(1, 0, a=1)
    direct = [table.send(1, MessageKind.DIRECT, "a", slot=0) for _ in range(CONSUMER_WINDOW + QUEUE_LIMIT + 1)]
    agent = table.send(1, MessageKind.DIRECT, "x", slot=-1)
    work = table.work(1, "b", AckMode.ACCEPTED)
    table.join(2, 1)
    table.replace()
    assert direct[-1] not in [told[0] for told in table.told[1]]
    table.done(1, table.given[1][0].delivery)
    assert table.told[1][-1] == [direct[-1], "a", 0]
    table.up(2, b=1)
    table.serve(2)
    assert table.ids(2) == [work]
    table.join(AGENT, -1, Role.AGENT)
    table.up(AGENT, x=1)
    table.serve(AGENT)
    assert table.ids(AGENT) == [agent]


def test_the_end_of_the_server_with_nothing_left_is_quiet(table: Table) -> None:
    table.join(AGENT, -1, Role.AGENT)
    table.up(AGENT, **{DEAD_LETTER_TOPIC: 1})
    for member in (1, 2, AGENT):
        table.retire(member)
    for member in (1, 2, AGENT):
        table.leave(member)
    assert table.events() == []


def test_what_waits_for_a_vacant_slot_at_the_end_is_reported(table: Table) -> None:
    table.leave(2)
    table.send(1, MessageKind.DIRECT, "a", slot=1)
    table.retire(1)
    table.leave(1)
    assert [about["count"] for _, _, about in table.port.records] == [1]


def test_a_process_that_starts_has_so_many_topics_kept_for_it(table: Table) -> None:
    table.join(3, 2)
    for number in range(STARTING_TOPICS + 5):
        table.send(1, MessageKind.BROADCAST, f"topic {number}")
    table.send(1, MessageKind.BROADCAST, "topic 0")
    place = table.part.routing.consumers.processes[3]
    assert (len(place.consumers), place.dropped) == (STARTING_TOPICS, {"": 5})
    table.replace()
    table.up(3, **{"topic 0": 1, "topic 2001": 1})
    assert len(table.ids(3)) == 2
    assert table.events() == ["messages_dropped"]
    assert "5 messages of more than" in table.port.records[-1][1]


def test_a_slow_start_leaves_room_for_the_others(table: Table) -> None:
    table.join(3, 2)
    body = b"x" * 100_000
    sent = 0
    for number in range(TOTAL_BYTES // QUEUE_BYTES + 4):
        for _ in range(QUEUE_BYTES // len(body) + 1):
            table.send(1, MessageKind.BROADCAST, f"topic {number}", body)
            sent += 1
    assert len(table.told[1]) == sent
    assert table.part.routing.consumers.budget.bytes < TOTAL_BYTES * 0.6
    id = table.work(1, "a", AckMode.ACCEPTED)
    assert table.told[1][-1] == [id, "a", 0]


def test_an_error_names_only_some_of_many(table: Table) -> None:
    for member in range(10, 30):
        table.worker(member, member, b=1)
    ids = [table.send(1, MessageKind.BROADCAST, "b") for _ in range(CONSUMER_WINDOW + QUEUE_LIMIT + 1)]
    table.withdraw(1, ids[-1])
    _, outcome, (code, text) = table.told[1][-1]
    assert (outcome, code) == ("f", "full")
    assert text.count("worker") == 10
    assert text.endswith(" and 10 others")


def test_what_a_retiring_worker_had_no_room_for_is_reported_and_not_counted_as_a_copy(table: Table) -> None:
    def handled_by_first() -> None:
        for given in table.given[1][-1:]:
            table.done(1, given.delivery)

    for _ in range(CONSUMER_WINDOW + QUEUE_LIMIT):
        table.send(1, MessageKind.BROADCAST, "a")
        handled_by_first()
    offered = table.send(1, MessageKind.BROADCAST, "a")
    handled_by_first()
    table.join(3, 1, generation=2)
    table.up(3, b=1)
    table.serve(3)
    table.retire(2)
    assert table.told[1][-1] == [offered, "a", 1]
    later = table.send(1, MessageKind.BROADCAST, "a")
    handled_by_first()
    assert table.told[1][-1] == [later, "a", 1]
    assert table.events() == []
    table.leave(2)
    assert [about["count"] for _, _, about in table.port.records] == [CONSUMER_WINDOW + QUEUE_LIMIT, 2]
    assert "2 messages came faster" in table.port.records[-1][1]


def test_what_waits_for_a_replacement_that_never_comes_up_is_reported(table: Table) -> None:
    """Of a generation that is there; one that fails as a whole was never promised to anybody."""
    table.leave(2)
    table.join(3, 1)
    table.join(4, 0, generation=2)
    for _ in range(3):
        table.send(1, MessageKind.BROADCAST, "a")
    table.leave(4)
    assert table.events() == []
    table.leave(3)
    assert [(event, about["count"]) for event, _, about in table.port.records] == [("messages_lost", 3)]


def test_what_other_servers_sent_too_fast_is_reported_by_the_next_program(table: Table) -> None:
    head = {"origin": ["worker", 0, 1], "topic": "a", "workers": True}
    for _ in range(CONSUMER_WINDOW + QUEUE_LIMIT + 2):
        table.hub.take_from_store(encode("store.message", head))
    table.replace()
    table.pass_time(1.1)
    assert sorted(about["count"] for _, _, about in table.port.records) == [4]


def test_a_call_to_a_slot_is_given_when_it_can_begin_so_that_its_caller_may_go(table: Table) -> None:
    """What lies in a process's hands would be begun there, whoever waits."""
    first, second = (table.send(2, MessageKind.DIRECT, "a", want=AckMode.REPLY, slot=0) for _ in range(2))
    news = table.send(2, MessageKind.BROADCAST, "a")
    assert table.ids(1) == [first]
    table.withdraw(2, second)
    assert table.told[2][-1][:2] == [second, "f"]
    table.done(1, table.given[1][0].delivery)
    assert table.ids(1) == [first, news]
    third = table.send(2, MessageKind.DIRECT, "a", want=AckMode.REPLY, slot=0)
    assert table.ids(1) == [first, news]
    table.done(1, table.given[1][1].delivery)
    assert table.ids(1) == [first, news, third]


def test_who_retires_gets_what_is_sent_to_all_and_is_not_counted_among_those_who_get_it(table: Table) -> None:
    table.join(3, 0, generation=2)
    table.retire(1)
    id = table.send(2, MessageKind.BROADCAST, "a")
    assert table.told[2] == [[id, "a", 2]]  # the one that starts and this one
    assert table.ids(1) == [id]
