"""Who consumes messages: each member with its topics, the queues without a consumer, and who may take what.

It owns the accounts of what a member has in flight, the queues as a whole (their common budget, which of them overflow,
which have no consumer), and answers questions about them. It decides nothing: what is done with the messages is
`serve_asgi.hub.messages.routing`'s affair.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import Final

from serve_asgi.hub.core import Hub, Member
from serve_asgi.hub.messages.queues import QUEUE_LIMIT, STARTING_QUEUE_LIMIT, BoundedQueue, Delivery, QueueBudget
from serve_asgi.ipc.member_frames import MemberPhase, Role
from serve_asgi.ipc.message_frames import DEAD_LETTER_TOPIC

CONSUMER_WINDOW: Final = 64
"""Messages of one topic, other than work, in a process's hands."""
CONSUMER_WINDOW_BYTES: Final = 512 * 1024
"""Bytes of their payloads, unless a single one is larger."""
IN_FLIGHT_BYTES: Final = 16 * 1024 * 1024
"""Bytes of all that is in a process's hands, with `COPY_BYTES` for each message: then no more before some end."""
STARTING_TOPICS: Final = 2_000
"""Topics that copies are kept of for a process that starts; it will handle 1,000 at most, not known yet which."""
NO_CONSUMER_GRACE: Final = 1.0
"""Seconds that a message waits for a handler where all are up and none handles its topic."""
STRANDED_TIME: Final = 60.0
"""Seconds that an accepted message waits where nobody is there who might take it."""


class SharedQueue:
    """What waits for nobody in particular: a topic's work, or what is for a slot (agent: -1) without a process."""

    __slots__ = ("key", "lane")

    def __init__(self, key: str | int, budget: QueueBudget) -> None:
        self.key = key
        self.lane = BoundedQueue(budget, QUEUE_LIMIT)

    def __str__(self) -> str:
        if isinstance(self.key, str):
            return "every worker that handles the topic"
        return "the agent" if self.key < 0 else f"worker {self.key}"


class Consumer:
    """One topic at one member: what waits for it, and how much it has in flight."""

    __slots__ = ("bytes", "concurrency", "held", "lane", "place", "rest", "topic")

    def __init__(self, place: MemberState, topic: str, budget: QueueBudget) -> None:
        self.place = place
        self.topic = topic
        self.concurrency = 0  # of its handlers; 0: there is none
        self.held = 0
        self.bytes = 0
        self.rest = 0  # of what waits: so many had their places before its process began to retire
        self.lane = BoundedQueue(
            budget, STARTING_QUEUE_LIMIT if place.member.phase is MemberPhase.EXPECTED else QUEUE_LIMIT
        )

    def __str__(self) -> str:
        return str(self.place.member)

    @property
    def window_open(self) -> bool:
        """Whether more may be given to it of what is no work."""
        if self.held >= CONSUMER_WINDOW or self.bytes >= CONSUMER_WINDOW_BYTES:
            return False
        return self.place.bytes < IN_FLIGHT_BYTES or self.place.hand_free()


class MemberState:
    """One member, as messages go."""

    __slots__ = ("bytes", "desks", "held", "last", "member", "not_kept", "was_full")

    def __init__(self, member: Member) -> None:
        self.member = member
        self.desks: dict[str, Consumer] = {}
        self.bytes = 0
        """What it has in flight counts as."""
        self.was_full = False
        """Something may wait until that is less."""
        self.held: dict[int, tuple[Consumer, Delivery]] = {}
        """What is in flight, by the delivery's number, oldest first."""
        self.not_kept: dict[str, int] = {}
        """Copies that had no place while it started, or that have none while it retires, by topic; by "" those of
        topics beyond `STARTING_TOPICS`."""
        self.last: int | None = None
        """While it retires: the delivery after which it is given only what was sent since, once that is so."""

    def handled(self) -> int:
        """How many topics it handles."""
        return sum(bool(desk.concurrency) for desk in self.desks.values())

    def hand_free(self) -> bool:
        """Whether it may get more."""
        if self.bytes < IN_FLIGHT_BYTES:
            return True
        self.was_full = True
        return False

    def desk(self, topic: str, budget: QueueBudget) -> Consumer:
        """The desk of a topic, a new one if there is none."""
        desk = self.desks.get(topic)
        if desk is None:
            desk = self.desks[topic] = Consumer(self, topic, budget)
        return desk

    def keep(self, copy: Delivery, budget: QueueBudget) -> bool:
        """While it starts: have a copy wait for it, or count it as not kept; return which."""
        topic = copy.send.topic
        if topic not in self.desks and len(self.desks) >= STARTING_TOPICS:
            self.not_kept[""] = self.not_kept.get("", 0) + 1
            return False
        if self.desk(topic, budget).lane.put_if_room(copy):
            return True
        self.not_kept[topic] = self.not_kept.get(topic, 0) + 1
        return False

    def tidy(self, desk: Consumer) -> None:
        """Forget a desk that has nothing to do."""
        if not desk.concurrency and not desk.held and not desk.lane:
            self.desks.pop(desk.topic, None)

    @property
    def slot(self) -> int:
        """Of a worker; -1 for the agent."""
        return -1 if self.member.role is Role.AGENT else self.member.slot

    def is_for(self, slot: int) -> bool:
        """Whether what is sent to this slot (the agent: -1) may go here."""
        return self.slot == slot


class Consumers:
    """The places and queues of one hub."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.budget = QueueBudget()
        self.places: dict[int, MemberState] = {}
        self.pools: dict[str, SharedQueue] = {}
        """Work that waits for a worker, by topic."""
        self.vacant: dict[int, SharedQueue] = {}
        """What waits for a slot whose process has died and has no successor yet."""
        self.blocked: dict[Consumer | SharedQueue, None] = {}
        """Whose lanes have copies without a place."""
        self._hopeless: dict[Consumer | SharedQueue, None] = {}
        """Whose lanes nobody would take from."""
        self._handlers: dict[str, dict[int, Consumer]] = {}

    # Who is there

    def successor(self, slot: int) -> MemberState | None:
        """The process that is for a slot: the one that serves, or the first that will."""
        there = [p for p in self.places.values() if p.is_for(slot) and p.member.phase is not MemberPhase.RETIRING]
        return next((p for p in there if p.member.phase is MemberPhase.SERVING), there[0] if there else None)

    def free_desk(self, topic: str) -> Consumer | None:
        """Where work of this topic may go now: to the one with the fewest in flight, any of those."""
        best: Consumer | None = None
        least, ties = math.inf, 0
        for desk in self._handlers.get(topic, {}).values():
            member = desk.place.member
            if desk.held >= desk.concurrency or desk.held > least or desk.lane.placed:
                continue
            if member.phase is not MemberPhase.SERVING or not (
                member.role is Role.WORKER or topic == DEAD_LETTER_TOPIC
            ):
                continue
            if not self.hub.port.room(member.id) or not desk.place.hand_free():
                continue
            ties = ties + 1 if desk.held == least else 1
            if ties == 1 or random.random() * ties < 1:
                best, least = desk, desk.held
        return best

    def someone_for(self, topic: str) -> bool:
        """Whether there is a process that handles work of this topic, or may once it is up."""
        for place in self.places.values():
            member = place.member
            if member.phase is MemberPhase.RETIRING or not (member.role is Role.WORKER or topic == DEAD_LETTER_TOPIC):
                continue
            desk = place.desks.get(topic)
            if member.phase is MemberPhase.EXPECTED or (desk is not None and desk.concurrency):
                return True
        return False

    def handled(self, topic: str) -> bool:
        """Whether there is a process that handles this topic."""
        return topic in self._handlers

    def serves(self, generation: int) -> bool:
        """Whether this is the generation whose workers serve."""
        members = [place.member for place in self.places.values() if place.member.role is Role.WORKER]
        return any(each.generation == generation and each.phase is MemberPhase.SERVING for each in members)

    def handles(self, place: MemberState, topic: str, concurrency: int) -> Consumer:
        """The process handles a topic with so many messages at a time; with none it handles it no more."""
        desk = place.desk(topic, self.budget)
        desk.concurrency = concurrency
        if concurrency:
            self._handlers.setdefault(topic, {})[place.member.id] = desk
        else:
            self.forget_handler(desk)
        self.review_desk(desk)
        return desk

    def forget_handler(self, desk: Consumer) -> None:
        """Nothing more is given here."""
        there = self._handlers.get(desk.topic)
        if there is not None and there.pop(desk.place.member.id, None) is not None and not there:
            del self._handlers[desk.topic]

    # Queues

    def pool(self, topic: str) -> SharedQueue:
        """The queue of a topic's work."""
        pool = self.pools.get(topic)
        if pool is None:
            pool = self.pools[topic] = SharedQueue(topic, self.budget)
            self.review_pool(pool)
        return pool

    def vacate(self, slot: int) -> SharedQueue:
        """The queue of a slot that has no process."""
        waiting = self.vacant.setdefault(slot, SharedQueue(slot, self.budget))
        if waiting.lane.since is None:
            waiting.lane.since = self.hub.clock()
        return waiting

    def vacancy(self, slot: int) -> SharedQueue | None:
        """The same, if a process is to be expected there."""
        if slot < 0 and self.hub.settings.agent:
            return self.vacate(slot)
        return self.vacant.get(slot)

    def forget(self, owner: Consumer | SharedQueue) -> None:
        """Its lane is empty, or nobody's any more."""
        self._hopeless.pop(owner, None)
        self.blocked.pop(owner, None)
        if isinstance(owner, Consumer):
            owner.place.tidy(owner)
        elif isinstance(owner.key, str) and self.pools.get(owner.key) is owner:
            del self.pools[owner.key]

    # Hope

    def review_pool(self, pool: SharedQueue) -> None:
        """Who is there has changed: is there anybody for this work?"""
        assert isinstance(pool.key, str)
        hope = self.someone_for(pool.key)
        phases = {place.member.phase for place in self.places.values() if place.member.role is Role.WORKER}
        ends = phases == {MemberPhase.RETIRING} and not any(slot >= 0 for slot in self.vacant)
        self._hope(pool, hope, closed=not hope and (MemberPhase.SERVING in phases or ends))

    def review_desk(self, desk: Consumer) -> None:
        """Does this process handle the topic, or may it once it is up?"""
        hope = bool(desk.concurrency) or desk.place.member.phase is MemberPhase.EXPECTED
        self._hope(desk, hope, closed=not hope)

    def _hope(self, owner: Consumer | SharedQueue, hope: bool, closed: bool) -> None:
        owner.lane.closed = closed
        if hope:
            owner.lane.since = None
            self._hopeless.pop(owner, None)
            return
        if owner.lane.since is None:
            owner.lane.since = self.hub.clock()
        self.watch(owner)

    def watch(self, owner: Consumer | SharedQueue) -> None:
        """Something waits here: if there is no hope for it, its time runs."""
        if owner.lane.since is not None and owner.lane:
            self._hopeless[owner] = None

    def deadline(self) -> float:
        """When something hopeless is to be given up."""
        due = math.inf
        for owner in self._hopeless:
            lane = owner.lane
            if lane.since is not None and lane:
                due = min(due, lane.since + (NO_CONSUMER_GRACE if lane.closed and lane.offered else STRANDED_TIME))
        return due

    def given_up(self) -> Iterator[tuple[Consumer | SharedQueue, bool]]:
        """Whose lanes have had no hope for long enough: for what has no place, and whether also for what has one."""
        now = self.hub.clock()
        for owner in list(self._hopeless):
            since = owner.lane.since
            if since is not None and now >= since + (NO_CONSUMER_GRACE if owner.lane.closed else STRANDED_TIME):
                yield owner, now >= since + STRANDED_TIME
                if not owner.lane:
                    self.forget(owner)
