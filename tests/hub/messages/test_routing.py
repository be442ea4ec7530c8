"""Where messages go, as tables: what is sent, by whom, who is there, and who is given and told what."""

from __future__ import annotations

import pytest

from serve_asgi.hub.messages.consumers import CONSUMER_WINDOW, NO_CONSUMER_GRACE, STRANDED_TIME
from serve_asgi.hub.messages.queues import QUEUE_BYTES, QUEUE_LIMIT, STARTING_QUEUE_LIMIT
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


# Who gets it


def test_a_broadcast_reaches_all_who_handle_the_topic_and_says_how_many(table: Table) -> None:
    table.join(3, 2)
    table.up(3, b=1)
    id = table.send(1, MessageKind.BROADCAST, "a", b"body")
    assert [table.ids(m) for m in (1, 2, 3)] == [[id], [id], []]
    assert table.told[1] == [[id, "a", 2]]
    assert table.given[2][0].body == b"body"


def test_the_agent_gets_broadcasts_but_not_what_is_for_the_workers(table: Table) -> None:
    table.join(AGENT, -1, Role.AGENT)
    table.up(AGENT, a=1)
    table.serve(AGENT)
    first = table.send(AGENT, MessageKind.BROADCAST, "a", slot=-1)
    second = table.send(AGENT, MessageKind.BROADCAST, "a", slot=0)
    assert table.told[AGENT] == [[first, "a", 3], [second, "a", 2]]
    assert table.ids(AGENT) == [first]


def test_who_starts_gets_what_was_sent_meanwhile_once_it_is_up_if_it_handles_it(table: Table) -> None:
    table.join(3, 0, generation=2)
    a = [table.send(1, MessageKind.BROADCAST, "a") for _ in range(3)]
    table.send(1, MessageKind.BROADCAST, "c")
    assert table.told[1][0] == [a[0], "a", 3]
    assert table.ids(3) == []
    table.up(3, a=1, b=1)
    assert table.ids(3) == a


def test_a_member_that_starts_never_holds_up_a_broadcast_and_is_told_what_was_not_kept(table: Table) -> None:
    table.join(3, 2)
    body = b"x" * 1000
    count = QUEUE_BYTES // 1000 + 10
    for _ in range(count):
        table.send(1, MessageKind.BROADCAST, "a", body)
        for member in (1, 2):
            table.done(member, table.given[member][-1].delivery)
    assert [each[1] for each in table.told[1]] == ["a"] * count
    assert table.events() == []
    table.up(3, a=1)
    assert table.events() == ["messages_dropped"]
    assert count < STARTING_QUEUE_LIMIT


def test_the_copies_of_a_generation_that_fails_are_forgotten(table: Table) -> None:
    table.join(3, 0, generation=2)
    table.send(1, MessageKind.BROADCAST, "a")
    table.retire(3)
    table.leave(3)
    assert table.events() == []
    assert table.part.routing.consumers.budget.bytes == 0


def test_work_goes_to_one_that_has_a_hand_free(table: Table) -> None:
    ids = [table.work(1, "a") for _ in range(3)]
    assert sorted(table.ids(1) + table.ids(2)) == ids[:2]
    table.done(2, table.given[2][0].delivery)
    assert table.ids(2)[-1] == ids[2]
    first = table.given[2][0].id
    assert [told for told in table.told[1] if told[1] == "h"] == [[first, "h", [1, "worker", 1, 1]]]


def test_work_is_not_given_to_who_does_not_serve(table: Table) -> None:
    table.retire(1)
    table.join(3, 0)
    table.up(3, a=5)
    ids = [table.work(2, "a") for _ in range(2)]
    assert (table.ids(1), table.ids(2), table.ids(3)) == ([], ids[:1], [])
    table.serve(3)
    assert table.ids(3) == ids[1:]


def test_work_is_not_given_behind_other_messages_of_its_topic(table: Table) -> None:
    for _ in range(3):
        table.send(1, MessageKind.BROADCAST, "a")
    id = table.work(1, "a")
    assert id not in table.ids(1) + table.ids(2)
    for given in list(table.given[1]):
        table.done(1, given.delivery)
    assert table.ids(1)[-1] == id


def test_what_is_for_a_slot_waits_for_who_serves_there(table: Table) -> None:
    table.leave(1)
    first = table.send(2, MessageKind.DIRECT, "a", slot=0)
    table.join(3, 0)
    second = table.send(2, MessageKind.DIRECT, "a", slot=0)
    table.up(3, a=1)
    assert table.ids(3) == []
    table.serve(3)
    assert table.ids(3) == [first, second]
    assert table.told[2] == [[first, "a", 0], [second, "a", 0]]


def test_what_is_for_a_slot_goes_to_the_old_worker_until_the_switch(table: Table) -> None:
    table.join(3, 0, generation=2)
    table.up(3, a=1)
    old = table.send(2, MessageKind.DIRECT, "a", slot=0)
    table.serve(3)
    table.retire(1)
    new = table.send(2, MessageKind.DIRECT, "a", slot=0)
    assert (table.ids(1), table.ids(3)) == ([old], [])  # the old one may give it back, and it was the first
    table.back(1, all=False)
    assert (table.ids(1), table.ids(3)) == ([old], [])
    table.back(1)
    assert (table.ids(1), table.ids(3)) == ([old], [new])


def test_what_has_not_begun_goes_from_the_old_worker_of_a_slot_to_the_new_one(table: Table) -> None:
    ids = [table.send(2, MessageKind.DIRECT, "a", slot=0) for _ in range(CONSUMER_WINDOW + 2)]
    table.join(3, 0, generation=2)
    table.up(3, a=1)
    table.serve(3)
    table.retire(1)
    table.back(1, *[given.delivery for given in table.given[1][1:]])
    assert table.ids(1)[0] == ids[0]
    assert sorted(table.ids(3), key=ids.index) == ids[1 : CONSUMER_WINDOW + 1]  # the window
    for given in list(table.given[3]):
        table.done(3, given.delivery)
    assert sorted(table.ids(3), key=ids.index) == ids[1:]
    assert {given.attempt for given in table.given[3]} == {1}


@pytest.mark.parametrize(
    ("kind", "slot", "text"), [(MessageKind.DIRECT, 7, "no worker 7"), (MessageKind.DIRECT, -1, "--agent")]
)
def test_who_is_not_there_is_told_at_once(table: Table, kind: MessageKind, slot: int, text: str) -> None:
    id = table.send(1, kind, "a", slot=slot)
    assert table.told[1][0][:2] == [id, "f"]
    assert table.told[1][0][2][0] == "nobody"
    assert text in table.told[1][0][2][1]


def test_a_slot_that_was_scaled_away_is_not_there(table: Table) -> None:
    table.retire(2)
    table.leave(2)
    table.send(1, MessageKind.DIRECT, "a", slot=1)
    assert table.told[1][0][1] == "f"


@pytest.mark.parametrize(("kind", "slot"), [(MessageKind.ANY_WORKER, 0), (MessageKind.DIRECT, 1)])
def test_a_topic_that_nobody_handles_is_refused_after_a_grace(table: Table, kind: MessageKind, slot: int) -> None:
    id = table.send(1, kind, "nothing", slot=slot)
    table.pass_time(NO_CONSUMER_GRACE / 2)
    assert table.told[1] == []
    table.pass_time(NO_CONSUMER_GRACE)
    assert table.told[1][0][:2] == [id, "f"]
    assert table.hub.deadline() > table.now
    assert not table.part.routing.consumers.topic_queues


@pytest.mark.parametrize(("kind", "slot"), [(MessageKind.ANY_WORKER, 0), (MessageKind.DIRECT, 1)])
def test_a_handler_that_comes_within_the_grace_gets_it(table: Table, kind: MessageKind, slot: int) -> None:
    id = table.send(1, kind, "late", slot=slot)
    table.take(2, "msg.topics", {"topics": {"late": 1}})
    assert table.ids(2) == [id]
    table.pass_time(2 * NO_CONSUMER_GRACE)
    assert [told[1] for told in table.told[1]] == ["a"]


def test_work_sent_before_the_others_are_ready_waits() -> None:
    table = Table()
    table.join(1, 0)
    table.join(2, 1)
    id = table.work(1, "a")
    assert table.told[1] == [[id, "a", 0]]
    table.pass_time(10)
    table.up(2, a=1)
    assert table.ids(2) == []
    table.serve(2)
    assert table.ids(2) == [id]


# The agent


def test_the_agent_that_is_replaced_gets_what_was_sent_between() -> None:
    table = Table(agent=True)
    table.worker(1)
    before = table.send(1, MessageKind.DIRECT, "a", slot=-1)
    table.join(AGENT, -1, Role.AGENT)
    table.up(AGENT, a=1)
    table.serve(AGENT)
    assert table.ids(AGENT) == [before]
    table.retire(AGENT)
    between = table.send(1, MessageKind.DIRECT, "a", slot=-1)
    table.join(AGENT + 1, -1, Role.AGENT, 2)
    table.up(AGENT + 1, a=1)
    table.leave(AGENT)
    assert table.ids(AGENT + 1) == []
    table.serve(AGENT + 1)
    assert table.ids(AGENT + 1) == [between]
    assert table.events() == ["messages_lost"]  # what the first agent had in flight


# Bounds


def test_a_full_queue_holds_up_the_sender_and_nobody_else(table: Table) -> None:
    ids = [table.send(1, MessageKind.DIRECT, "a", slot=1) for _ in range(CONSUMER_WINDOW + QUEUE_LIMIT + 2)]
    assert [told[0] for told in table.told[1]] == ids[:-2]
    other = table.send(1, MessageKind.DIRECT, "a", slot=0)
    assert table.told[1][-1] == [other, "a", 0]
    table.done(2, table.given[2][0].delivery)
    assert table.told[1][-1] == [ids[-2], "a", 0]
    assert table.ids(2) == ids[: CONSUMER_WINDOW + 1]


def test_what_was_not_taken_in_time_is_withdrawn_and_says_by_whom(table: Table) -> None:
    ids = [table.send(1, MessageKind.BROADCAST, "a") for _ in range(CONSUMER_WINDOW + QUEUE_LIMIT)]
    for given in list(table.given[1]):
        table.done(1, given.delivery)
    late = table.send(1, MessageKind.BROADCAST, "a")
    assert late not in [told[0] for told in table.told[1]]
    table.withdraw(1, late, ids[0], "unknown")
    assert table.told[1][-1] == [late, "f", ["full", "not delivered in time to worker 1 of generation 1"]]
    for given in list(table.given[2]):
        table.done(2, given.delivery)
    while len(table.given[2]) < CONSUMER_WINDOW + QUEUE_LIMIT:
        table.done(2, table.given[2][-1].delivery)
        for given in list(table.given[2])[-CONSUMER_WINDOW:]:
            table.done(2, given.delivery)
    assert late not in table.ids(2)


def test_bytes_count_as_well(table: Table) -> None:
    body = b"x" * 100_000
    ids = [table.send(1, MessageKind.DIRECT, "a", body, slot=1) for _ in range(60)]
    accepted = [told[0] for told in table.told[1]]
    assert accepted == ids[: len(accepted)]
    assert QUEUE_BYTES < len(accepted) * len(body) < QUEUE_BYTES + 10 * len(body)


def test_work_that_nobody_takes_holds_up_its_senders(table: Table) -> None:
    ids = [table.work(1, "a", AckMode.ACCEPTED) for _ in range(QUEUE_LIMIT + 3)]
    assert [told[0] for told in table.told[1]] == ids[: QUEUE_LIMIT + 2]
    table.withdraw(1, ids[-1])
    assert table.told[1][-1][2][0] == "full"


def test_nothing_is_given_to_who_has_no_room(table: Table) -> None:
    table.port.without_room = {1}
    copy = table.send(2, MessageKind.BROADCAST, "a")
    work = table.work(2, "a")
    assert (table.ids(1), table.ids(2)) == ([], [copy])
    table.port.without_room = set()
    table.hub.room_available(1)
    table.collect()
    assert table.ids(1) == [copy]
    table.done(1, table.given[1][0].delivery)
    assert table.ids(1) == [copy, work]


def test_retiring_ones_hold_up_nobody(table: Table) -> None:
    ids = [table.send(2, MessageKind.BROADCAST, "a") for _ in range(CONSUMER_WINDOW + QUEUE_LIMIT)]
    for given in list(table.given[2]):
        table.done(2, given.delivery)
    held_up = table.send(2, MessageKind.BROADCAST, "a")
    table.retire(1)
    assert table.told[2][-1][:2] == [held_up, "a"]
    assert table.send(2, MessageKind.BROADCAST, "a") == table.told[2][-1][0]
    assert table.ids(1) == ids[:CONSUMER_WINDOW]


# Deaths


def test_acknowledged_work_of_a_dead_worker_goes_to_another_one_in_order(table: Table) -> None:
    table.worker(3, 2, b=3)
    ids = [table.work(1, "b") for _ in range(4)]
    assert table.ids(3) == ids[:3]
    table.worker(4, 3, b=5)
    assert table.ids(4) == ids[3:]
    table.leave(3)
    assert table.ids(4)[1:] == ids[:3]
    assert [given.attempt for given in table.given[4]] == [1, 2, 2, 2]
    assert table.events() == []


def test_what_was_given_back_is_given_again_in_order_and_counts_no_attempt(table: Table) -> None:
    table.worker(3, 2, b=3)
    ids = [table.work(1, "b") for _ in range(4)]
    table.retire(3)
    table.back(3, *[given.delivery for given in table.given[3]])
    table.worker(4, 2, b=5)
    assert table.ids(4) == ids
    assert {given.attempt for given in table.given[4]} == {1}


def test_what_happens_is_counted(table: Table) -> None:
    for _ in range(4):
        table.work(2, "a", AckMode.SUCCESS)
    holder = 1
    table.done(holder, table.given[holder][0].delivery, False)
    table.send(2, MessageKind.DIRECT, "a", slot=0)
    table.leave(1)
    figures = table.hub.metrics()
    assert figures == {
        "messages_accepted_total": 5,
        "messages_delivered_total": 4,
        "messages_failed_total": 1,
        "messages_redelivered_total": 2,
        "messages_dead_lettered_total": 0,
        "messages_lost_total": 1,
        "messages_waiting": 3,
    }


def test_a_sender_that_dies_changes_nothing_for_what_was_accepted(table: Table) -> None:
    table.worker(3, 2)
    ids = [table.work(3, "a") for _ in range(4)]
    table.leave(3)
    for _ in ids:
        for member in (1, 2):
            for given in list(table.given[member]):
                table.done(member, given.delivery)
    assert sorted(table.ids(1) + table.ids(2)) == ids


def test_what_a_dead_sender_was_not_told_of_is_withdrawn(table: Table) -> None:
    table.worker(3, 2)
    ids = [table.send(3, MessageKind.DIRECT, "a", slot=1) for _ in range(CONSUMER_WINDOW + QUEUE_LIMIT + 1)]
    table.leave(3)
    for _ in range(CONSUMER_WINDOW + QUEUE_LIMIT):
        table.done(2, table.given[2][0].delivery)
        table.given[2].pop(0)
    assert not table.given[2]
    assert ids[-1] not in [told[0] for told in table.told[1]]


def test_unacknowledged_messages_in_the_hands_of_the_dead_are_reported(table: Table) -> None:
    table.send(2, MessageKind.BROADCAST, "a")
    table.send(2, MessageKind.DIRECT, "a", slot=0)
    waiting = table.send(2, MessageKind.DIRECT, "a", slot=0)
    assert waiting
    table.leave(1)
    event, text, about = table.port.records[0]
    assert (event, about["count"], about["topics"], about["slot"]) == ("messages_lost", 3, ["a"], 0)
    assert "worker 0 of generation 1" in text


def test_what_is_left_when_the_server_ends_is_reported(table: Table) -> None:
    for _ in range(5):
        table.work(1, "a", AckMode.ACCEPTED)
    for member in (1, 2):
        table.retire(member)
        table.back(member, table.given[member][0].delivery)
    late = table.work(1, "a")
    table.pass_time(NO_CONSUMER_GRACE + 0.1)
    assert table.told[1][-1][:2] == [late, "f"]
    table.leave(1)
    assert table.events() == []
    table.leave(2)
    assert [(event, about["count"]) for event, _, about in table.port.records] == [("messages_lost", 5)]


def test_what_the_agent_sends_before_there_are_workers_waits() -> None:
    table = Table(agent=True)
    table.join(AGENT, -1, Role.AGENT)
    table.up(AGENT)
    table.serve(AGENT)
    id = table.work(AGENT, "a")
    table.pass_time(10)
    assert table.told[AGENT] == [[id, "a", 0]]
    table.worker(1, a=1)
    assert table.ids(1) == [id]


def test_what_is_sent_to_all_while_a_worker_retires_is_no_loss_if_it_ends(table: Table) -> None:
    table.send(2, MessageKind.BROADCAST, "a")
    table.retire(1)
    for _ in range(CONSUMER_WINDOW + 1):
        table.send(2, MessageKind.BROADCAST, "a")
    table.done(1, table.given[1][0].delivery)
    table.leave(1)
    assert table.events() == []


def test_what_was_sent_to_all_before_a_worker_retired_it_handles_or_it_is_reported(table: Table) -> None:
    def handled(member: int, most: int) -> None:
        for number in range(most):
            table.done(member, table.given[member][number].delivery)

    ids = [table.send(2, MessageKind.BROADCAST, "a") for _ in range(2 * CONSUMER_WINDOW + 3)]
    handled(2, CONSUMER_WINDOW)
    table.retire(1)
    late = table.send(2, MessageKind.BROADCAST, "a")
    handled(1, 2)
    assert table.lasts == {}
    table.replace()
    handled(1, CONSUMER_WINDOW + 4)
    assert table.ids(1) == [*ids, late]
    assert table.lasts == {1: len(ids)}
    table.leave(1)
    assert [about["count"] for _, _, about in table.port.records] == [CONSUMER_WINDOW - 1]  # but not the late one


def test_a_worker_that_retires_with_nothing_that_waits_is_told_so_at_once(table: Table) -> None:
    table.send(2, MessageKind.BROADCAST, "a")
    table.retire(1)
    assert table.lasts == {1: 1}
    for _ in range(CONSUMER_WINDOW + 1):
        table.send(1, MessageKind.BROADCAST, "a")
    table.retire(2)
    assert 2 not in table.lasts
    table.take(2, "msg.topics", {"topics": {"a": 0}})
    assert 2 in table.lasts


def test_a_call_is_answered_and_fails_if_its_worker_dies(table: Table) -> None:
    call = table.work(1, "a", AckMode.REPLY)
    holder = 1 if table.ids(1) else 2
    table.done(holder, table.given[holder][0].delivery, True, b"answer")
    assert table.told[1][-1] == [call, "r", None, b"answer"]
    call = table.send(1, MessageKind.DIRECT, "a", want=AckMode.REPLY, slot=1)
    table.leave(2)
    assert table.told[1][-1][:2] == [call, "f"]
    assert table.told[1][-1][2][0] == "lost"


def test_a_handler_that_raises_tells_the_caller(table: Table) -> None:
    call = table.send(1, MessageKind.DIRECT, "a", want=AckMode.REPLY, slot=1)
    table.done(2, table.given[2][0].delivery, False, b"ValueError: no")
    assert table.told[1][-1] == [call, "x", None, b"ValueError: no"]


def test_a_call_whose_caller_waits_no_more_is_not_begun(table: Table) -> None:
    slow = [table.work(1, "a") for _ in range(2)]
    call = table.work(1, "a", AckMode.REPLY)
    table.withdraw(1, call)
    assert table.told[1][-1][2][0] == "late"
    for member in (1, 2):
        table.done(member, table.given[member][0].delivery)
    assert sorted(table.ids(1) + table.ids(2)) == slow


def test_an_acknowledged_message_stands_when_its_sender_waits_no_more(table: Table) -> None:
    ids = [table.work(1, "a") for _ in range(3)]
    table.withdraw(1, *ids)
    assert [told[1] for told in table.told[1]] == ["a", "a", "a", "f", "f", "f"]
    for member in (1, 2):
        table.done(member, table.given[member][0].delivery)
    assert sorted(table.ids(1) + table.ids(2)) == ids


# Again, and at last not


@pytest.mark.parametrize(("want", "times"), [(AckMode.HANDLED, 1), (AckMode.SUCCESS, 3)])
def test_a_handler_that_raises_counts_unless_success_is_wanted(table: Table, want: AckMode, times: int) -> None:
    id = table.work(1, "a", want, 3)
    for attempt in range(1, times + 1):
        holder = next(m for m in (1, 2) if any(g.attempt == attempt for g in table.given[m]))
        table.done(holder, table.given[holder][-1].delivery, False)
    last = table.told[1][-1]
    assert last[:2] == [id, "h" if want is AckMode.HANDLED else "f"]
    assert table.events() == ([] if want is AckMode.HANDLED else ["message_dead_lettered"])


def test_a_poison_message_kills_no_more_than_its_deliveries_and_is_a_dead_letter(table: Table) -> None:
    id = table.work(1, "poison", limit=2)
    table.worker(3, 2, poison=1)
    table.worker(4, 3, poison=1)
    table.join(AGENT, -1, Role.AGENT)
    table.up(AGENT, **{DEAD_LETTER_TOPIC: 1})
    table.serve(AGENT)
    for attempt in (1, 2):
        holder = next(m for m in (3, 4) if any(given.attempt == attempt for given in table.given[m]))
        table.leave(holder)
    assert table.told[1][-1][:2] == [id, "f"]
    assert table.told[1][-1][2][0] == "dead"
    event, _, about = table.port.records[-1]
    assert (event, about["id"], about["attempts"]) == ("message_dead_lettered", id, 2)
    letter = table.given[AGENT][0]
    assert (letter.topic, letter.subject[:3]) == (DEAD_LETTER_TOPIC, ["poison", id, 2])
    for _ in range(3):
        table.done(AGENT, table.given[AGENT][-1].delivery, False)
    assert len(table.given[AGENT]) == 3
    assert table.events() == ["message_dead_lettered"] * 2


def test_what_nobody_handles_any_more_is_a_dead_letter_in_the_end(table: Table) -> None:
    ids = [table.work(1, "a", AckMode.ACCEPTED) for _ in range(3)]
    table.take(1, "msg.topics", {"topics": {"a": 0}})
    table.take(2, "msg.topics", {"topics": {"a": 0}})
    table.pass_time(STRANDED_TIME / 2)
    assert table.events() == []
    table.pass_time(STRANDED_TIME)
    assert [about["id"] for _, _, about in table.port.records] == ids[2:]


def test_what_waits_for_a_slot_that_stays_empty_is_a_dead_letter_in_the_end(table: Table) -> None:
    table.leave(2)
    id = table.send(1, MessageKind.DIRECT, "a", slot=1)
    table.pass_time(STRANDED_TIME + 1)
    assert [about["id"] for _, _, about in table.port.records] == [id]


def test_a_handler_that_is_taken_away_gets_no_more(table: Table) -> None:
    for _ in range(3):
        table.send(1, MessageKind.BROADCAST, "a")
    table.take(2, "msg.topics", {"topics": {"a": 0}})
    last = table.send(1, MessageKind.BROADCAST, "a")
    assert table.told[1][-1] == [last, "a", 1]
    assert last not in table.ids(2)


# Order


def test_order_is_kept_though_some_wait_for_a_place(table: Table) -> None:
    ids = []
    for number in range(CONSUMER_WINDOW + QUEUE_LIMIT + 20):
        sender = 1 + number % 2
        ids.append(table.send(sender, MessageKind.DIRECT, "a", slot=1))
    while len(table.given[2]) < len(ids):
        table.done(2, table.given[2][len(table.given[2]) - CONSUMER_WINDOW].delivery)
        if len(table.given[2]) >= len(ids):
            break
    assert table.ids(2) == ids


# Other servers


def test_a_broadcast_goes_to_other_servers_and_waits_for_their_store() -> None:
    table = Table(shared=True)
    table.worker(1, a=1)
    id = table.send(1, MessageKind.BROADCAST, "a", b"x", slot=0)
    (frame,) = table.port.to_store
    assert (frame.kind, frame.body) == ("store.send", b"x")
    key = frame.head["id"]
    assert frame.head == {"id": key, "message": id, "topic": "a", "workers": True, "origin": ["worker", 0, 1]}
    assert table.told[1] == []
    table.hub.take_from_store(encode("store.sent", {"id": key}))
    table.collect()
    assert table.told[1] == [[id, "a", 1]]
    table.send(1, MessageKind.BROADCAST, "a")
    key = table.port.to_store[-1].head["id"]
    table.hub.take_from_store(encode("store.unsent", {"id": key, "code": "unavailable", "text": "Redis is away"}))
    table.collect()
    assert table.told[1][-1][2][0] == "store"


def test_a_broadcast_of_another_server_is_given_and_too_many_are_reported() -> None:
    table = Table(shared=True)
    table.worker(1, a=1)
    head = {"server": "other", "topic": "a", "workers": False, "origin": ["agent", -1, 4]}
    for _ in range(CONSUMER_WINDOW + QUEUE_LIMIT + 3):
        table.hub.take_from_store(encode("store.message", head, b"x"))
    table.collect()
    assert len(table.given[1]) == CONSUMER_WINDOW
    assert not table.port.to_store
    table.pass_time(2)
    assert [(event, about["count"]) for event, _, about in table.port.records] == [("messages_lost", 3)]


# A new program of the listener


def test_all_of_it_outlives_the_program(table: Table) -> None:
    direct = [table.send(1, MessageKind.DIRECT, "a", b"d", slot=1) for _ in range(CONSUMER_WINDOW + QUEUE_LIMIT + 1)]
    work = [table.work(1, "b", body=b"w") for _ in range(2)]
    table.leave(1)
    vacant = table.send(2, MessageKind.DIRECT, "a", slot=0)
    table.replace()
    table.join(3, 0)
    table.up(3, a=1, b=5)
    table.serve(3)
    assert table.ids(3) == [vacant]  # what of worker 1's was not accepted is gone, and so is its wish for an answer
    assert work[0] not in table.ids(3)
    for _ in range(CONSUMER_WINDOW + QUEUE_LIMIT):
        table.done(2, table.given[2][0].delivery)
        table.given[2].pop(0)
    assert direct[-1] not in table.ids(2)
    assert table.part.routing.consumers.budget.bytes == 0


# A roll-back


def test_one_that_has_stood_by_gets_work_and_its_slots_messages_again(table: Table) -> None:
    table.retire(1)
    table.back(1, all=True)
    table.worker(3, 0, generation=2, a=1)
    direct = table.send(2, MessageKind.DIRECT, "a", slot=0)
    assert table.ids(3) == [direct]
    table.done(3, table.given[3][-1].delivery)
    copy = table.send(2, MessageKind.BROADCAST, "a")  # what it keeps in memory stays right
    assert table.ids(1) == [copy]
    table.done(1, table.given[1][-1].delivery)
    table.serve(1)
    table.retire(3)
    table.back(3, all=True)
    second = table.send(2, MessageKind.DIRECT, "a", slot=0)
    assert table.ids(1) == [copy, second]
    table.done(1, table.given[1][-1].delivery)
    works = {table.work(2, "a") for _ in range(2)}
    assert set(table.ids(1)) & works
    table.replace()
    table.retire(1)
    assert table.events() == []


def test_what_came_too_fast_for_one_that_stood_by_is_reported(table: Table) -> None:
    table.retire(1)
    for _ in range(CONSUMER_WINDOW + QUEUE_LIMIT + 3):
        table.send(2, MessageKind.BROADCAST, "a")
        table.done(2, table.given[2][-1].delivery)
    table.serve(1)
    table.now += 2
    table.part.tick()
    assert "messages_lost" in table.events()
