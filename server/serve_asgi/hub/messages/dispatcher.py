"""When a message is delivered, and to which worker: how much each process may have in flight, and what it has.

It owns a delivery from the moment the message leaves its queue until the process has handled or returned it. What
happens to it then `serve_asgi.hub.messages.routing` decides.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable

from serve_asgi.hub.core import Hub, HubPort
from serve_asgi.hub.messages.consumers import IN_FLIGHT_BYTES, Consumer, Consumers, MemberState, SharedQueue
from serve_asgi.hub.messages.queues import DELIVERY_OVERHEAD, Delivery, MessageStage
from serve_asgi.ipc.membership_frames import MemberPhase, Role
from serve_asgi.ipc.message_frames import DEAD_LETTER_TOPIC, AckMode, FrameBatcher, MessageKind


class Dispatcher:
    """Delivers the messages of one hub."""

    def __init__(self, hub: Hub, consumers: Consumers, out: FrameBatcher, counts: dict[str, int]) -> None:
        self._hub = hub
        self._consumers = consumers
        self._out = out
        self._counts = counts
        self.last_number = 0
        """The number of the last delivery."""
        self.retiring: dict[int, set[int]] = {}
        """Retiring members that may still return messages to their slot, by slot; later messages wait for these."""

    def dispatch(self, owner: Consumer | SharedQueue) -> None:
        """Deliver what is queued there, as far as possible."""
        if isinstance(owner, Consumer):
            self.dispatch_to_consumer(owner)
        elif isinstance(owner.key, str):
            self.dispatch_topic_queue(owner)

    def dispatch_to_consumer(self, consumer: Consumer) -> None:
        """Deliver what is queued for a consumer, as far as it may have more in flight."""
        queued = consumer.queue.queued
        if not consumer.concurrency:
            return
        while queued:
            message = queued[0].message
            if message.ack_mode is AckMode.REPLY and message.stage is MessageStage.SETTLED:
                consumer.queue.take()  # its caller has gone
                continue
            phase = consumer.process.member.phase
            if phase is MemberPhase.EXPECTED:
                return
            if message.kind is MessageKind.DIRECT and (
                phase is not MemberPhase.SERVING or consumer.process.slot in self.retiring
            ):
                return
            if message.ack_mode is AckMode.REPLY and consumer.in_flight >= consumer.concurrency:
                return  # once delivered, it would be started even if the caller had gone
            if not consumer.window_open or not self._hub.port.has_room(consumer.process.member.id):
                return
            self._deliver(consumer, consumer.queue.take())

    def dispatch_topic_queue(self, topic_queue: SharedQueue) -> None:
        """Deliver work to workers that have capacity."""
        assert isinstance(topic_queue.key, str)
        queued = topic_queue.queue.queued
        while queued:
            message = queued[0].message
            if message.ack_mode is AckMode.REPLY and message.stage is MessageStage.SETTLED:
                topic_queue.queue.take()
                continue
            consumer = least_loaded(self._consumers.of_topic(topic_queue.key), self._hub.port)
            if consumer is None:
                return
            self._deliver(consumer, topic_queue.queue.take())
        if not topic_queue.queue:
            self._consumers.discard(topic_queue)

    def dispatch_topic(self, consumer: Consumer) -> None:
        """A consumer has capacity: deliver what is queued for it, and work of its topic."""
        if consumer.process.was_full and consumer.process.bytes < IN_FLIGHT_BYTES // 2:
            consumer.process.was_full = False
            self.dispatch_to_process(consumer.process)
        self.dispatch_to_consumer(consumer)
        if (topic_queue := self._consumers.topic_queues.get(consumer.topic)) is not None:
            self.dispatch_topic_queue(topic_queue)
        consumer.process.discard_if_idle(consumer)

    def dispatch_to_process(self, process: MemberState) -> None:
        """A process may get more than before: deliver what is queued for any of its topics."""
        for consumer in list(process.consumers.values()):
            self.dispatch_topic(consumer)

    def _deliver(self, consumer: Consumer, delivery: Delivery) -> None:
        message = delivery.message
        delivery.attempt += 1
        self.last_number += 1
        self._counts["given"] += 1
        consumer.delivered += 1
        self._add_in_flight(consumer, self.last_number, delivery)
        entry = [
            self.last_number,
            consumer.topic,
            message.id,
            delivery.attempt,
            int(message.kind),
            int(message.ack_mode),
            message.origin,
        ]
        self._out.deliver(consumer.process.member.id, [*entry, message.subject], message.body)
        if consumer.awaited:
            self.set_awaited(consumer, consumer.awaited - 1)

    def _add_in_flight(self, consumer: Consumer, number: int, delivery: Delivery) -> None:
        consumer.process.in_flight[number] = (consumer, delivery)
        consumer.in_flight += 1
        size = len(delivery.message.body)
        consumer.bytes += size
        consumer.process.bytes += size + DELIVERY_OVERHEAD

    def remove_in_flight(self, process: MemberState, number: int) -> tuple[Consumer, Delivery]:
        """A process no longer has a delivery. Raises KeyError if it never had."""
        consumer, delivery = process.in_flight.pop(number)
        consumer.in_flight -= 1
        size = len(delivery.message.body)
        consumer.bytes -= size
        process.bytes -= size + DELIVERY_OVERHEAD
        return consumer, delivery

    # A process that retires

    def starts_retiring(self, process: MemberState) -> None:
        """It may return what it has in flight for its slot: later messages to the slot have to wait for that."""
        if any(delivery.message.kind is MessageKind.DIRECT for _, delivery in process.in_flight.values()):
            self.retiring.setdefault(process.slot, set()).add(process.member.id)

    def count_awaited(self, process: MemberState) -> None:
        """A process that begins to retire still gets what is queued for it, if it was ever up, and waits for it."""
        for consumer in process.consumers.values():
            consumer.awaited = len(consumer.queue.queued) if process.member.up else 0
        self._send_last_if_due(process)

    def set_awaited(self, consumer: Consumer, count: int) -> None:
        """`count` of the messages that were queued before the process began to retire are still queued."""
        consumer.awaited = count
        self._send_last_if_due(consumer.process)

    def _send_last_if_due(self, process: MemberState) -> None:
        if not any(consumer.awaited for consumer in process.consumers.values()):
            process.last_awaited = self.last_number
            self._out.last(process.member.id)

    def resumes(self, process: MemberState) -> None:
        """It serves again: what it still had to return for its slot, it keeps."""
        for consumer in process.consumers.values():
            consumer.awaited = 0
        process.last_awaited = None
        self.returned_all(process)

    def returned_all(self, process: MemberState) -> None:
        """A retiring process has returned all that it had not started: its successor may get what follows."""
        slot = process.slot
        self.retiring.get(slot, set()).discard(process.member.id)
        if not self.retiring.get(slot):
            self.retiring.pop(slot, None)
            for other in self._consumers.processes.values():
                if other.is_for(slot):
                    self.dispatch_to_process(other)

    # A new program of the listener

    def restore_in_flight(self, process: MemberState, topic: str, number: int, delivery: Delivery) -> None:
        """Restore a delivery that a process has in flight."""
        self._add_in_flight(process.consumer(topic, self._consumers.budget), number, delivery)


def least_loaded(consumers: Iterable[Consumer], port: HubPort) -> Consumer | None:
    """The consumer of a topic that has the fewest of its messages in flight, at random among equals.

    None if none may get more now. Work goes to workers that serve; dead letters may go to the agent as well.
    """
    best: Consumer | None = None
    least, ties = math.inf, 0
    for consumer in consumers:
        member = consumer.process.member
        if consumer.in_flight >= consumer.concurrency or consumer.in_flight > least or consumer.queue.queued:
            continue
        if member.phase is not MemberPhase.SERVING:
            continue
        if member.role is not Role.WORKER and consumer.topic != DEAD_LETTER_TOPIC:
            continue
        if not port.has_room(member.id) or not consumer.process.has_capacity():
            continue
        ties = ties + 1 if consumer.in_flight == least else 1
        if ties == 1 or random.random() * ties < 1:
            best, least = consumer, consumer.in_flight
    return best
