"""What an operator sees of the messages: topics with their consumers, and how much waits where.

It only reads (`serve_asgi.hub.messages.consumers`), within bounds, since the listener's loop makes the report.
"""

from __future__ import annotations

from typing import Any, Final

from serve_asgi.hub.messages.broker import MessageBroker
from serve_asgi.hub.messages.consumers import Consumer, SharedQueue
from serve_asgi.ipc.membership_frames import Role
from serve_asgi.ipc.message_frames import RESERVED

MOST_TOPICS: Final = 500
"""Topics in one report."""
MOST_CONSUMERS: Final = 50
"""Consumers of a topic that a report names."""


def report(broker: MessageBroker, topic: str = "", most: int = MOST_TOPICS) -> dict[str, Any]:
    """The topics with the most waiting messages first, or the one with this name.

    `delivered` counts what was delivered to the present consumers since they subscribed: their processes may end, so
    it may go down.
    """
    consumers = broker.routing.consumers
    found: dict[str, list[Consumer]] = {name: [] for name in consumers.topic_queues}
    for process in consumers.processes.values():
        for consumer in process.consumers.values():
            found.setdefault(consumer.topic, []).append(consumer)
    if topic:
        found = {topic: found[topic]} if topic in found else {}
    topics = [_topic(name, theirs, consumers.topic_queues.get(name)) for name, theirs in found.items()]
    topics.sort(key=lambda each: (-each["waiting"], each["topic"]))
    slots = [
        {"slot": "agent" if slot < 0 else slot, "waiting": _waiting(queue)}
        for slot, queue in sorted(consumers.slot_queues.items())
    ]
    return {
        "topics": topics[: min(most, MOST_TOPICS)],
        "total": len(topics),
        "slots": [each for each in slots if each["waiting"]],
        "counts": dict(broker.routing.counts),
        "waiting": consumers.budget.deliveries,
        "waiting_bytes": consumers.budget.bytes,
    }


def _topic(name: str, consumers: list[Consumer], shared: SharedQueue | None) -> dict[str, Any]:
    handling = [each for each in consumers if each.concurrency]
    return {
        "topic": name,
        "own": name.startswith(RESERVED),
        "consumers": [_consumer(each) for each in handling[:MOST_CONSUMERS]],
        "subscribers": len(handling),
        "waiting": sum(len(each.queue.queued) + len(each.queue.overflow) for each in consumers)
        + (0 if shared is None else _waiting(shared)),
        "in_flight": sum(each.in_flight for each in consumers),
        "delivered": sum(each.delivered for each in consumers),
    }


def _consumer(consumer: Consumer) -> dict[str, Any]:
    member = consumer.process.member
    return {
        "slot": "agent" if member.role is Role.AGENT else member.slot,
        "generation": member.generation,
        "phase": member.phase.value,
        "concurrency": consumer.concurrency,
        "waiting": len(consumer.queue.queued) + len(consumer.queue.overflow),
        "in_flight": consumer.in_flight,
        "delivered": consumer.delivered,
    }


def _waiting(shared: SharedQueue) -> int:
    return len(shared.queue.queued) + len(shared.queue.overflow)
