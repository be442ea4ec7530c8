"""Messages under random histories: anything that processes can do, in any order, and what must hold after each thing.

The machine plays the processes: they come up, send, handle, give back, retire and die at any moment, the listener's
program is replaced, and at last everything that is left is handled. Bounds are small, so that they are met.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
from unittest import mock

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from serve_asgi.hub.messages.consumers import NO_CONSUMER_GRACE, STRANDED_TIME, Consumer, SharedQueue
from serve_asgi.hub.messages.queues import DELIVERY_OVERHEAD, MessageStage
from serve_asgi.ipc.membership_frames import MemberPhase, Role
from serve_asgi.ipc.message_frames import AckMode, MessageKind
from tests.hub.messages.table import AGENT, Given, Table

SLOTS = 2
LIMIT, STARTING, WINDOW = 3, 5, 2
TOPICS = ("a", "b")
which = st.integers(0, 1_000)
topics = st.sampled_from(TOPICS)
OF_ONE_SERVER = [kind for kind in MessageKind if kind is not MessageKind.ANY_IN_FLEET]
"""What goes to other servers waits for their store: tests/hub/messages/test_fleet_work.py."""


@dataclasses.dataclass
class Sent:
    """A message, as its sender knows it."""

    number: int
    sender: int
    kind: MessageKind
    topic: str
    want: AckMode
    limit: int


class Processes(RuleBasedStateMachine):
    """The machine."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = contextlib.ExitStack()
        for where, name, bound in (
            ("serve_asgi.hub.messages.consumers", "QUEUE_LIMIT", LIMIT),
            ("serve_asgi.hub.messages.routing", "QUEUE_LIMIT", LIMIT),
            ("serve_asgi.hub.messages.consumers", "STARTING_QUEUE_LIMIT", STARTING),
            ("serve_asgi.hub.messages.consumers", "CONSUMER_WINDOW", WINDOW),
        ):
            self.patches.enter_context(mock.patch(f"{where}.{name}", bound))
        self.table = Table(agent=True)
        self.next_id = 0
        self.alive: dict[int, Role] = {}
        self.handlers: dict[int, dict[str, int]] = {}
        self.sent: dict[str, Sent] = {}
        self.ended = collections.Counter[str]()
        """How often a handler has ended, for work and what is for a slot."""
        self.settled: set[tuple[int, int]] = set()
        """Deliveries that have been dealt with: (member, delivery)."""
        self.may_repeat = collections.Counter[str]()
        """How often a message may be given once more: given back, its process died, or its handler raised."""

    def teardown(self) -> None:
        try:
            self.finish()
        finally:
            self.patches.close()

    # What the processes do

    def phase(self, id: int) -> MemberPhase:
        return self.table.hub.members[id].phase

    def some(self, chosen: int, *phases: MemberPhase) -> int | None:
        found = [id for id in self.alive if not phases or self.phase(id) in phases]
        return found[chosen % len(found)] if found else None

    def hands(self, id: int) -> list[Given]:
        return [each for each in self.table.given[id] if (id, each.delivery) not in self.settled]

    @precondition(lambda self: len(self.alive) < 6)
    @rule(slot=st.integers(-1, SLOTS - 1))
    def join(self, slot: int) -> None:
        self.next_id += 1
        role = Role.AGENT if slot < 0 else Role.WORKER
        agents = [id for id, role in self.alive.items() if role is Role.AGENT]
        if slot < 0 and any(self.phase(id) is not MemberPhase.RETIRING for id in agents):
            return
        self.alive[self.next_id] = role
        self.handlers[self.next_id] = {}
        self.table.join(self.next_id, slot, role, self.next_id)

    @rule(chosen=which, handled=st.dictionaries(topics, st.integers(1, 3)))
    def come_up(self, chosen: int, handled: dict[str, int]) -> None:
        if (id := self.some(chosen, MemberPhase.EXPECTED)) is not None:
            self.handlers[id] = handled
            self.table.up(id, **handled)

    @rule(chosen=which)
    def serve(self, chosen: int) -> None:
        if (id := self.some(chosen, MemberPhase.UP, MemberPhase.EXPECTED)) is not None:
            self.table.serve(id)

    @rule(chosen=which)
    def retire(self, chosen: int) -> None:
        if (id := self.some(chosen, MemberPhase.SERVING, MemberPhase.UP, MemberPhase.EXPECTED)) is not None:
            self.table.retire(id)

    @rule(chosen=which, kept=st.integers(0, 2))
    def give_back(self, chosen: int, kept: int) -> None:
        """A process that has been told to retire keeps what it has begun."""
        if (id := self.some(chosen, MemberPhase.RETIRING)) is not None:
            given = [each for each in self.hands(id)[kept:] if self.sent[each.id].kind is not MessageKind.BROADCAST]
            for each in given:
                self.settled.add((id, each.delivery))
                self.may_repeat[each.id] += 1
            self.table.back(id, *[each.delivery for each in given])

    @rule(chosen=which)
    def die(self, chosen: int) -> None:
        if (id := self.some(chosen)) is not None:
            for each in self.hands(id):
                self.may_repeat[each.id] += 1
            del self.alive[id]
            self.table.leave(id)

    @rule(chosen=which, topic=topics, concurrency=st.integers(0, 2))
    def handle(self, chosen: int, topic: str, concurrency: int) -> None:
        if (id := self.some(chosen, MemberPhase.SERVING, MemberPhase.UP)) is not None:
            self.handlers[id][topic] = concurrency
            self.table.take(id, "msg.topics", {"topics": {topic: concurrency}})

    @rule(
        chosen=which,
        kind=st.sampled_from(OF_ONE_SERVER),
        topic=topics,
        want=st.sampled_from(AckMode),
        limit=st.integers(1, 3),
        slot=st.integers(-1, SLOTS),
        size=st.integers(0, 3),
        count=st.integers(1, 4),
    )
    def send(
        self, chosen: int, kind: MessageKind, topic: str, want: AckMode, limit: int, slot: int, size: int, count: int
    ) -> None:
        id = self.some(chosen)
        if id is None:
            return
        if kind is MessageKind.BROADCAST:
            want, slot = AckMode.ACCEPTED, min(slot, 0)
        elif kind is MessageKind.DIRECT:
            want = min(want, AckMode.REPLY)
        for _ in range(count):
            name = f"m{self.table.count + 1}"  # told, perhaps, within the call
            self.sent[name] = Sent(self.table.count, id, kind, topic, want, limit)
            self.table.send(id, kind, topic, b"x" * size, want, limit, slot)

    @rule(chosen=which, first=which, ok=st.booleans(), count=st.integers(1, 4))
    def end_handlers(self, chosen: int, first: int, ok: bool, count: int) -> None:
        if (id := self.some(chosen)) is None:
            return
        for each in self.hands(id)[first % 2 :][:count]:
            self.end(id, each, ok)

    def end(self, id: int, given: Given, ok: bool) -> None:
        self.settled.add((id, given.delivery))
        sent = self.sent.get(given.id)
        if sent is not None and sent.kind is not MessageKind.BROADCAST:
            self.ended[given.id] += 1
            if sent.want is AckMode.SUCCESS and not ok:
                self.may_repeat[given.id] += 1
                self.ended[given.id] -= 1
        self.table.done(id, given.delivery, ok, b"answer")

    @rule(chosen=which)
    def withdraw(self, chosen: int) -> None:
        waiting = list(self.table.part.routing.confirmations.waiting.values())
        if waiting:
            send = waiting[chosen % len(waiting)]
            self.table.withdraw(send.sender, send.id)

    @rule(chosen=which)
    def no_room(self, chosen: int) -> None:
        if (id := self.some(chosen)) is not None:
            if id in self.table.port.without_room:
                self.table.port.without_room.discard(id)
                self.table.hub.room_available(id)
                self.table.collect()
            else:
                self.table.port.without_room.add(id)

    @rule(seconds=st.sampled_from([NO_CONSUMER_GRACE / 2, NO_CONSUMER_GRACE, STRANDED_TIME]))
    def pass_time(self, seconds: float) -> None:
        self.table.pass_time(seconds)

    @rule()
    def replace(self) -> None:
        self.table.replace()

    # What must hold

    @invariant()
    def bounds_are_kept(self) -> None:
        routing = self.table.part.routing
        owners: list[Consumer | SharedQueue] = [
            *routing.consumers.topic_queues.values(),
            *routing.consumers.slot_queues.values(),
        ]
        for process in routing.consumers.processes.values():
            owners += process.consumers.values()
            for consumer in process.consumers.values():
                held = [delivery for each, delivery in process.in_flight.values() if each is consumer]
                assert (consumer.in_flight, consumer.bytes) == (len(held), sum(len(d.message.body) for d in held))
                others = [d for d in held if d.message.kind is not MessageKind.ANY_WORKER]
                assert len(others) <= WINDOW
        queued = [delivery for owner in owners for delivery in owner.queue.queued]
        assert routing.consumers.budget.bytes == sum(
            len(delivery.message.body) + DELIVERY_OVERHEAD for delivery in queued
        )
        pending = collections.Counter(d.message.id for owner in owners for d in owner.queue.overflow)
        for message in routing.confirmations.waiting.values():
            assert message.pending == pending[message.id]
            assert (message.stage is MessageStage.OFFERED) == (message.pending > 0)
        assert all(each.queue for each in routing.consumers.topic_queues.values())

    @invariant()
    def nobody_is_given_what_is_not_his(self) -> None:
        for id, given in self.table.given.items():
            orders: dict[tuple[int, str, MessageKind], int] = collections.defaultdict(lambda: -1)
            seen = set[str]()
            for each in given:
                sent = self.sent.get(each.id)
                if sent is None or sent.kind is MessageKind.ANY_WORKER:
                    continue
                assert each.id not in seen
                seen.add(each.id)
                key = (sent.sender, sent.topic, sent.kind)
                assert orders[key] < sent.number, f"{id} is given {each} out of order"
                orders[key] = sent.number

    @invariant()
    def no_message_is_given_again_without_a_reason(self) -> None:
        times = collections.Counter[str]()
        for given in self.table.given.values():
            for each in given:
                sent = self.sent.get(each.id)
                if sent is not None and sent.kind is not MessageKind.BROADCAST:
                    times[each.id] += 1
                    assert each.attempt <= max(sent.limit, 1) or sent.want < AckMode.HANDLED
        for name, count in times.items():
            assert count <= 1 + self.may_repeat[name], name

    @invariant()
    def every_sender_is_told_in_order(self) -> None:
        for told in self.table.told.values():
            said: dict[str, str] = collections.defaultdict(str)
            for id, outcome, *_ in told:
                said[id] += outcome
            for id, outcomes in said.items():
                final = "a" if self.sent[id].want is AckMode.ACCEPTED else "hrxf"
                ok = outcomes in ("a", "f") if final == "a" else outcomes in ("a", "f", "ah", "ar", "ax", "af")
                assert ok, (id, outcomes)

    # The end

    def finish(self) -> None:
        """Let everyone be there and handle all: then each sender knows, and each accepted message has its end."""
        table = self.table
        for id in list(table.port.without_room):
            table.port.without_room.discard(id)
            if id in self.alive:
                table.hub.room_available(id)
        for slot in range(-1, SLOTS + 1):
            id = AGENT + slot
            table.join(id, slot, Role.AGENT if slot < 0 else Role.WORKER)
            self.alive[id] = Role.AGENT if slot < 0 else Role.WORKER
            table.up(id, **dict.fromkeys(TOPICS, 2))
            table.serve(id)
        for id in [id for id in self.alive if id < AGENT - 1]:
            table.retire(id)
            table.back(id)
        for _ in range(1000):
            left = [(id, each) for id in self.alive for each in self.hands(id)]
            if not left:
                break
            for id, each in left:
                self.end(id, each, True)
        else:
            raise AssertionError("there is no end to it")
        for id in [id for id in self.alive if id < AGENT - 1]:
            table.leave(id)
        table.pass_time(STRANDED_TIME)  # dead letters that nobody wants
        self.bounds_are_kept()
        routing = table.part.routing
        assert (routing.consumers.budget.bytes, routing.confirmations.waiting) == (0, {})
        records = table.port.records
        dead = collections.Counter(about["id"] for event, _, about in records if event == "message_dead_lettered")
        lost = sum(about["count"] for event, _, about in records if event == "messages_lost")
        at_the_end = sum(about["count"] for _, text, about in records if text.startswith("the server ended"))
        open_ends = acknowledged = 0
        for name, sent in self.sent.items():
            outcomes = [told[1] for told in table.told.get(sent.sender, []) if told[0] == name]
            if sent.kind is MessageKind.BROADCAST or sent.want is AckMode.REPLY or "a" not in outcomes:
                continue
            if not (self.ended[name] or dead[name]):
                open_ends += 1
                acknowledged += sent.want >= AckMode.HANDLED
        assert open_ends <= lost, "messages were lost and nobody was told"
        assert acknowledged <= at_the_end, "acknowledged messages were accepted and have no end"


TestProcesses = Processes.TestCase
TestProcesses.settings = settings(
    max_examples=150, stateful_step_count=60, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
