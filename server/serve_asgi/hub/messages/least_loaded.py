"""Which worker gets what any one of them may handle: the least loaded, at random among equals."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable

from serve_asgi.hub.core import HubPort
from serve_asgi.hub.messages.consumers import Consumer
from serve_asgi.ipc.membership_frames import MemberPhase, Role
from serve_asgi.ipc.message_frames import DEAD_LETTER_TOPIC


def least_loaded(consumers: Iterable[Consumer], port: HubPort) -> Consumer | None:
    """Of these of one topic, the one that has the fewest messages of it in flight; None if none may get more now.

    Work is for workers that serve; dead letters the agent may have as well.
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
