"""What waits in the hub to be delivered: messages, their deliveries, and the bounded queues these stand in.

It owns the bounds. A delivery beyond them waits as well, in order, but its sender is not told yet that the message is
accepted: that is the back-pressure of a full queue on whoever fills it. It knows neither members nor frames.
"""

from __future__ import annotations

import collections
import dataclasses
import enum
from collections.abc import Callable, Iterator
from typing import Any, Final

from serve_asgi.ipc.message_frames import AckMode, MessageKind

QUEUE_LIMIT: Final = 1_000
"""Deliveries in one queue."""
STARTING_QUEUE_LIMIT: Final = 10_000
"""The same for a process that is starting: it takes none before it is up."""
QUEUE_BYTES: Final = 4 * 1024 * 1024
"""Bytes of payload in one queue."""
TOTAL_BYTES: Final = 64 * 1024 * 1024
"""Bytes in all queues together; a payload counts once per delivery."""
DELIVERY_OVERHEAD: Final = 512
"""Bytes that a delivery counts in that besides its payload: many small ones take memory as well."""


class MessageStage(enum.Enum):
    """What the sender of a message has been told."""

    OFFERED = "offered"  # nothing: not every delivery is queued
    ACCEPTED = "accepted"  # all are queued; there will be more to tell
    SETTLED = "settled"  # the last; or the sender no longer waits, or there is none


@dataclasses.dataclass(slots=True, eq=False)
class QueuedMessage:
    """One message, as it was sent."""

    id: str
    sender: int  # the member that waits to be told of it; 0 for none
    origin: list[Any]  # [role, slot, generation] of the sender
    topic: str
    body: bytes
    kind: MessageKind
    ack_mode: AckMode
    limit: int = 1  # how often it is delivered at most
    slot: int = -1  # of DIRECT; -1 for the agent
    subject: list[Any] | None = None  # of a dead letter: [topic, id, attempts, reason]
    stage: MessageStage = MessageStage.OFFERED
    receivers: int = 0  # processes that get it
    pending: int = 0  # deliveries that are not queued yet, and replies of the store that are due
    unaccepted: bool = False  # it counts against its sender's limit of messages that are not accepted
    key: str = ""  # names it while its sender waits: its id is the sender's own choice

    @property
    def redelivers(self) -> bool:
        """Whether it is delivered again if the process that had it dies."""
        return self.ack_mode >= AckMode.HANDLED


class Delivery:
    """One message on its way to one process."""

    __slots__ = ("attempt", "message")

    def __init__(self, message: QueuedMessage, attempt: int = 0) -> None:
        self.message = message
        self.attempt = attempt
        """How often it has been delivered to a process."""


class QueueBudget:
    """What all queues of one hub hold together."""

    __slots__ = ("bytes", "deliveries")

    def __init__(self) -> None:
        self.bytes = 0
        self.deliveries = 0


class BoundedQueue:
    """Deliveries in order: those in `queued` are within the bounds, those in `overflow` wait for room."""

    __slots__ = ("_budget", "bytes", "closed", "limit", "no_consumer_since", "overflow", "queued")

    def __init__(self, budget: QueueBudget, limit: int) -> None:
        self.queued: collections.deque[Delivery] = collections.deque()
        self.overflow: collections.deque[Delivery] = collections.deque()
        self.bytes = 0
        self.limit = limit
        self.closed = False
        """Nobody would take what is in it: nothing more is queued."""
        self.no_consumer_since: float | None = None
        """Since when there has been no consumer that might take what is in it (the hub's clock)."""
        self._budget = budget

    def __bool__(self) -> bool:
        return bool(self.queued or self.overflow)

    def _has_room(self) -> bool:
        return (
            not self.closed
            and len(self.queued) < self.limit
            and self.bytes < QUEUE_BYTES
            and self._budget.bytes < TOTAL_BYTES
        )

    def _append(self, delivery: Delivery) -> None:
        size = len(delivery.message.body)
        self.bytes += size
        self._budget.bytes += size + DELIVERY_OVERHEAD
        self._budget.deliveries += 1
        self.queued.append(delivery)

    def put(self, delivery: Delivery) -> bool:
        """Queue a delivery, or let it wait for room; return whether it is queued."""
        if self.overflow or not self._has_room():
            self.overflow.append(delivery)
            return False
        self._append(delivery)
        return True

    def put_if_room(self, delivery: Delivery) -> bool:
        """Queue a delivery if there is room; those whose sender cannot wait get half of the budget at most."""
        if self.overflow or not self._has_room() or self._budget.bytes >= TOTAL_BYTES // 2:
            return False
        self._append(delivery)
        return True

    def put_over_limit(self, delivery: Delivery) -> None:
        """Queue what was in another queue: the bound has been its sender's already."""
        self._append(delivery)

    def put_first(self, delivery: Delivery) -> None:
        """Put back, before all others, what was taken."""
        size = len(delivery.message.body)
        self.bytes += size
        self._budget.bytes += size + DELIVERY_OVERHEAD
        self._budget.deliveries += 1
        self.queued.appendleft(delivery)

    def take(self) -> Delivery:
        """The first one that is queued. Raises IndexError if there is none."""
        delivery = self.queued.popleft()
        self._removed(delivery)
        return delivery

    def admit_overflow(self) -> Iterator[Delivery]:
        """Queue those that wait for room, as far as there is some; yield them."""
        while self.overflow and self._has_room():
            delivery = self.overflow.popleft()
            self._append(delivery)
            yield delivery

    def remove_queued(self, which: Callable[[QueuedMessage], bool]) -> list[Delivery]:
        """Take out the queued deliveries of the messages that are meant."""
        taken = [delivery for delivery in self.queued if which(delivery.message)]
        if taken:
            self.queued = collections.deque(delivery for delivery in self.queued if not which(delivery.message))
            for delivery in taken:
                self._removed(delivery)
        return taken

    def remove_overflow(self, which: Callable[[QueuedMessage], bool]) -> list[Delivery]:
        """Take out those that wait for room, of the messages that are meant."""
        taken = [delivery for delivery in self.overflow if which(delivery.message)]
        if taken:
            self.overflow = collections.deque(delivery for delivery in self.overflow if not which(delivery.message))
        return taken

    def _removed(self, delivery: Delivery) -> None:
        size = len(delivery.message.body)
        self.bytes -= size
        self._budget.bytes -= size + DELIVERY_OVERHEAD
        self._budget.deliveries -= 1
