"""Consumers of messages: which member handles which topic, what it has in flight, and the queues without a consumer.

It owns these accounts and the queues as a whole (their common budget, which of them overflow, which have no consumer),
and answers questions about them. What is done with a message `serve_asgi.hub.messages.routing` decides.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from typing import Final

from serve_asgi.hub.core import Hub, Member
from serve_asgi.hub.messages.queues import QUEUE_LIMIT, STARTING_QUEUE_LIMIT, BoundedQueue, Delivery, QueueBudget
from serve_asgi.ipc.membership_frames import MemberPhase, Role
from serve_asgi.ipc.message_frames import DEAD_LETTER_TOPIC

CONSUMER_WINDOW: Final = 64
"""Messages of one topic, other than work, that one process may have in flight."""
CONSUMER_WINDOW_BYTES: Final = 512 * 1024
"""Bytes of their payloads, unless a single payload is larger."""
IN_FLIGHT_BYTES: Final = 16 * 1024 * 1024
"""Bytes that one process may have in flight, with `DELIVERY_OVERHEAD` for each message."""
STARTING_TOPICS: Final = 2_000
"""Topics whose broadcasts are queued for a process that starts; it will handle at most 1,000 of them."""
NO_CONSUMER_GRACE: Final = 1.0
"""Seconds that a message waits for a consumer when all processes are up and none handles its topic."""
STRANDED_TIME: Final = 60.0
"""Seconds that an accepted message waits while no consumer might take it."""


class SharedQueue:
    """A queue of no single consumer: the work of a topic, or messages to a slot (agent: -1) without a process."""

    __slots__ = ("key", "queue")

    def __init__(self, key: str | int, budget: QueueBudget) -> None:
        self.key = key
        self.queue = BoundedQueue(budget, QUEUE_LIMIT)

    def __str__(self) -> str:
        if isinstance(self.key, str):
            return "every worker that handles the topic"
        return "the agent" if self.key < 0 else f"worker {self.key}"


class Consumer:
    """One topic in one process: what is queued for it, and how much it has in flight."""

    __slots__ = ("awaited", "bytes", "concurrency", "delivered", "in_flight", "process", "queue", "topic")

    def __init__(self, process: MemberState, topic: str, budget: QueueBudget) -> None:
        self.process = process
        self.topic = topic
        self.concurrency = 0  # of its handlers; 0 if there is none
        self.in_flight = 0
        self.delivered = 0
        """How many were delivered to it, for operators."""
        self.bytes = 0
        self.awaited = 0  # how many of the queued ones were there before its process began to retire
        self.queue = BoundedQueue(
            budget, STARTING_QUEUE_LIMIT if process.member.phase is MemberPhase.EXPECTED else QUEUE_LIMIT
        )

    def __str__(self) -> str:
        return str(self.process.member)

    @property
    def window_open(self) -> bool:
        """Whether more messages, other than work, may be delivered to it."""
        if self.in_flight >= CONSUMER_WINDOW or self.bytes >= CONSUMER_WINDOW_BYTES:
            return False
        return self.process.bytes < IN_FLIGHT_BYTES or self.process.has_capacity()


class MemberState:
    """One process as a receiver of messages: its consumers by topic, and what it has in flight."""

    __slots__ = ("bytes", "consumers", "dropped", "in_flight", "last_awaited", "member", "was_full")

    def __init__(self, member: Member) -> None:
        self.member = member
        self.consumers: dict[str, Consumer] = {}
        self.bytes = 0
        """In flight, with `DELIVERY_OVERHEAD` for each message."""
        self.was_full = False
        """Something may be waiting until less is in flight."""
        self.in_flight: dict[int, tuple[Consumer, Delivery]] = {}
        """By the number of the delivery, oldest first."""
        self.dropped: dict[str, int] = {}
        """Broadcasts that were dropped because there was no room while it started or retires, by topic; "" stands for
        the topics beyond `STARTING_TOPICS`."""
        self.last_awaited: int | None = None
        """While it retires: the last delivery that had been queued before; later ones are broadcasts sent since."""

    def topic_count(self) -> int:
        """How many topics it handles."""
        return sum(bool(consumer.concurrency) for consumer in self.consumers.values())

    def has_capacity(self) -> bool:
        """Whether it may have more in flight."""
        if self.bytes < IN_FLIGHT_BYTES:
            return True
        self.was_full = True
        return False

    def consumer(self, topic: str, budget: QueueBudget) -> Consumer:
        """The consumer of a topic; it is made if there is none."""
        consumer = self.consumers.get(topic)
        if consumer is None:
            consumer = self.consumers[topic] = Consumer(self, topic, budget)
        return consumer

    def queue_while_starting(self, delivery: Delivery, budget: QueueBudget) -> bool:
        """While it starts, queue a broadcast for it or count it as dropped; return whether it is queued."""
        topic = delivery.message.topic
        if topic not in self.consumers and len(self.consumers) >= STARTING_TOPICS:
            self.dropped[""] = self.dropped.get("", 0) + 1
            return False
        if self.consumer(topic, budget).queue.put_if_room(delivery):
            return True
        self.dropped[topic] = self.dropped.get(topic, 0) + 1
        return False

    def discard_if_idle(self, consumer: Consumer) -> None:
        """Remove a consumer that has nothing to do."""
        if not consumer.concurrency and not consumer.in_flight and not consumer.queue:
            self.consumers.pop(consumer.topic, None)

    @property
    def slot(self) -> int:
        """Of a worker; -1 for the agent."""
        return -1 if self.member.role is Role.AGENT else self.member.slot

    def is_for(self, slot: int) -> bool:
        """Whether a message to this slot (agent: -1) may go to it."""
        return self.slot == slot


class Consumers:
    """All processes, consumers and queues of one hub."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.budget = QueueBudget()
        self.processes: dict[int, MemberState] = {}
        self.topic_queues: dict[str, SharedQueue] = {}
        """Work that waits for a worker, by topic."""
        self.slot_queues: dict[int, SharedQueue] = {}
        """Messages to slots whose process has died and has no successor yet."""
        self.overflowing: dict[Consumer | SharedQueue, None] = {}
        """Those whose queues overflow."""
        self._abandoned: dict[Consumer | SharedQueue, None] = {}
        """Those whose queues have no consumer and are not empty."""
        self._by_topic: dict[str, dict[int, Consumer]] = {}

    # Look-ups

    def process_for_slot(self, slot: int) -> MemberState | None:
        """The process of a slot: the one that serves, or else the first that will."""
        candidates = [
            p for p in self.processes.values() if p.is_for(slot) and p.member.phase is not MemberPhase.RETIRING
        ]
        return next(
            (p for p in candidates if p.member.phase is MemberPhase.SERVING), candidates[0] if candidates else None
        )

    def of_topic(self, topic: str) -> Collection[Consumer]:
        """The consumers of a topic."""
        return self._by_topic.get(topic, {}).values()

    def has_consumer(self, topic: str) -> bool:
        """Whether some process handles work of this topic, or may do so once it is up."""
        for process in self.processes.values():
            member = process.member
            if member.phase is MemberPhase.RETIRING or not (member.role is Role.WORKER or topic == DEAD_LETTER_TOPIC):
                continue
            consumer = process.consumers.get(topic)
            if member.phase is MemberPhase.EXPECTED or (consumer is not None and consumer.concurrency):
                return True
        return False

    def is_handled(self, topic: str) -> bool:
        """Whether some process handles this topic."""
        return topic in self._by_topic

    def generation_serves(self, generation: int) -> bool:
        """Whether the workers of this generation serve."""
        members = [process.member for process in self.processes.values() if process.member.role is Role.WORKER]
        return any(each.generation == generation and each.phase is MemberPhase.SERVING for each in members)

    def subscribe(self, process: MemberState, topic: str, concurrency: int) -> Consumer:
        """A process handles `concurrency` messages of a topic at a time; with 0 it no longer handles the topic."""
        consumer = process.consumer(topic, self.budget)
        consumer.concurrency = concurrency
        if concurrency:
            self._by_topic.setdefault(topic, {})[process.member.id] = consumer
        else:
            self.unsubscribe(consumer)
        self.update_consumer(consumer)
        return consumer

    def unsubscribe(self, consumer: Consumer) -> None:
        """No more is delivered to this consumer."""
        found = self._by_topic.get(consumer.topic)
        if found is not None and found.pop(consumer.process.member.id, None) is not None and not found:
            del self._by_topic[consumer.topic]

    # Queues

    def topic_queue(self, topic: str) -> SharedQueue:
        """The queue of a topic's work."""
        topic_queue = self.topic_queues.get(topic)
        if topic_queue is None:
            topic_queue = self.topic_queues[topic] = SharedQueue(topic, self.budget)
            self.update_topic_queue(topic_queue)
        return topic_queue

    def slot_queue(self, slot: int) -> SharedQueue:
        """The queue of a slot without a process."""
        waiting = self.slot_queues.setdefault(slot, SharedQueue(slot, self.budget))
        if waiting.queue.no_consumer_since is None:
            waiting.queue.no_consumer_since = self.hub.clock()
        return waiting

    def expected_slot_queue(self, slot: int) -> SharedQueue | None:
        """The same, if a process is expected in that slot; otherwise None."""
        if slot < 0 and self.hub.settings.agent:
            return self.slot_queue(slot)
        return self.slot_queues.get(slot)

    def discard(self, owner: Consumer | SharedQueue) -> None:
        """Its queue is empty, or not needed any more."""
        self._abandoned.pop(owner, None)
        self.overflowing.pop(owner, None)
        if isinstance(owner, Consumer):
            owner.process.discard_if_idle(owner)
        elif isinstance(owner.key, str) and self.topic_queues.get(owner.key) is owner:
            del self.topic_queues[owner.key]

    # Queues without a consumer

    def update_topic_queue(self, topic_queue: SharedQueue) -> None:
        """Members have changed: note whether there is a consumer for this work."""
        assert isinstance(topic_queue.key, str)
        has_consumer = self.has_consumer(topic_queue.key)
        phases = {process.member.phase for process in self.processes.values() if process.member.role is Role.WORKER}
        ends = phases == {MemberPhase.RETIRING} and not any(slot >= 0 for slot in self.slot_queues)
        self._set_abandoned(
            topic_queue, not has_consumer, closed=not has_consumer and (MemberPhase.SERVING in phases or ends)
        )

    def update_consumer(self, consumer: Consumer) -> None:
        """Note whether this process handles the topic, or may do so once it is up."""
        may_consume = bool(consumer.concurrency) or consumer.process.member.phase is MemberPhase.EXPECTED
        self._set_abandoned(consumer, not may_consume, closed=not may_consume)

    def _set_abandoned(self, owner: Consumer | SharedQueue, abandoned: bool, closed: bool) -> None:
        owner.queue.closed = closed
        if not abandoned:
            owner.queue.no_consumer_since = None
            self._abandoned.pop(owner, None)
            return
        if owner.queue.no_consumer_since is None:
            owner.queue.no_consumer_since = self.hub.clock()
        self.watch_if_abandoned(owner)

    def watch_if_abandoned(self, owner: Consumer | SharedQueue) -> None:
        """Something has been queued: if there is no consumer, watch for its deadline."""
        if owner.queue.no_consumer_since is not None and owner.queue:
            self._abandoned[owner] = None

    def deadline(self) -> float:
        """When something without a consumer has to be given up."""
        due = math.inf
        for owner in self._abandoned:
            queue = owner.queue
            if queue.no_consumer_since is not None and queue:
                due = min(
                    due,
                    queue.no_consumer_since + (NO_CONSUMER_GRACE if queue.closed and queue.overflow else STRANDED_TIME),
                )
        return due

    def expired(self) -> Iterator[tuple[Consumer | SharedQueue, bool]]:
        """Those without a consumer for too long: their overflow is given up, and if True, what is queued as well."""
        now = self.hub.clock()
        for owner in list(self._abandoned):
            since = owner.queue.no_consumer_since
            if since is not None and now >= since + (NO_CONSUMER_GRACE if owner.queue.closed else STRANDED_TIME):
                yield owner, now >= since + STRANDED_TIME
                if not owner.queue:
                    self.discard(owner)
