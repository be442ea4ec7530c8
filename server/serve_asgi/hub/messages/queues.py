"""Messages that wait in the hub, their deliveries, and the bounded queues that hold these.

It owns the bounds. A delivery beyond them waits as well, in order, but its message is not confirmed as accepted yet:
that is the back-pressure of a full queue on its senders. It knows neither members nor frames.
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
"""The same for a process that is starting, which takes none until it is up."""
QUEUE_BYTES: Final = 4 * 1024 * 1024
"""Bytes of payload in one queue."""
TOTAL_BYTES: Final = 64 * 1024 * 1024
"""Bytes in all queues together; a payload counts once per delivery."""
DELIVERY_OVERHEAD: Final = 512
"""Bytes that a delivery counts as, besides its payload: many small ones take memory as well."""


class MessageStage(enum.Enum):
    """What has been confirmed to the sender of a message."""

    OFFERED = "offered"  # nothing yet: not every delivery is queued
    ACCEPTED = "accepted"  # that it is accepted: all deliveries are queued; more will follow
    SETTLED = "settled"  # everything; or the sender no longer waits, or there is none


@dataclasses.dataclass(slots=True, eq=False)
class QueuedMessage:
    """One message, as it was sent."""

    id: str
    sender: int  # the member that waits for confirmations; 0 for none
    origin: list[Any]  # [role, slot, generation] of the sender
    topic: str
    body: bytes
    kind: MessageKind
    ack_mode: AckMode
    limit: int = 1  # most deliveries
    slot: int = -1  # of DIRECT; -1 for the agent
    subject: list[Any] | None = None  # of a dead letter: [topic, id, attempts, reason]
    stage: MessageStage = MessageStage.OFFERED
    receivers: int = 0  # how many processes get it
    pending: int = 0  # deliveries not queued yet, and replies of the store that are due
    unaccepted: bool = False  # it counts against its sender's limit
    key: str = ""  # unique, while its sender waits; the id is the sender's choice
    entry: str = ""  # of the fleet's work: what the store calls it

    @property
    def redelivers(self) -> bool:
        """Whether it is delivered again if the process that has it dies."""
        return self.ack_mode >= AckMode.HANDLED


class Delivery:
    """One message on its way to one process."""

    __slots__ = ("attempt", "message")

    def __init__(self, message: QueuedMessage, attempt: int = 0) -> None:
        self.message = message
        self.attempt = attempt
        """How often it has been delivered to a process."""


class QueueBudget:
    """The total of all queues of one hub."""

    __slots__ = ("bytes", "deliveries")

    def __init__(self) -> None:
        self.bytes = 0
        self.deliveries = 0


class BoundedQueue:
    """Deliveries in order: `queued` ones are within the bounds, those in `overflow` wait for room."""

    __slots__ = ("_budget", "bytes", "closed", "limit", "no_consumer_since", "overflow", "queued")

    def __init__(self, budget: QueueBudget, limit: int) -> None:
        self.queued: collections.deque[Delivery] = collections.deque()
        self.overflow: collections.deque[Delivery] = collections.deque()
        self.bytes = 0
        self.limit = limit
        self.closed = False
        """Nobody takes what is in it: nothing more is queued."""
        self.no_consumer_since: float | None = None
        """Since when it has had no possible consumer (the hub's clock)."""
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
        """Queue a delivery, or let it wait for room in the overflow; return whether it is queued."""
        if self.overflow or not self._has_room():
            self.overflow.append(delivery)
            return False
        self._append(delivery)
        return True

    def put_if_room(self, delivery: Delivery) -> bool:
        """Queue a delivery if there is room; deliveries whose sender cannot wait get at most half of the budget."""
        if self.overflow or not self._has_room() or self._budget.bytes >= TOTAL_BYTES // 2:
            return False
        self._append(delivery)
        return True

    def put_over_limit(self, delivery: Delivery) -> None:
        """Queue a delivery that another queue had accepted, even beyond the bounds."""
        self._append(delivery)

    def put_first(self, delivery: Delivery) -> None:
        """Put a delivery back at the head."""
        size = len(delivery.message.body)
        self.bytes += size
        self._budget.bytes += size + DELIVERY_OVERHEAD
        self._budget.deliveries += 1
        self.queued.appendleft(delivery)

    def take(self) -> Delivery:
        """Take the first queued delivery. Raises IndexError if there is none."""
        delivery = self.queued.popleft()
        self._removed(delivery)
        return delivery

    def admit_overflow(self) -> Iterator[Delivery]:
        """Queue overflowing deliveries as far as there is room; yield them."""
        while self.overflow and self._has_room():
            delivery = self.overflow.popleft()
            self._append(delivery)
            yield delivery

    def remove_queued(self, which: Callable[[QueuedMessage], bool]) -> list[Delivery]:
        """Remove the queued deliveries of the messages that `which` selects."""
        taken = [delivery for delivery in self.queued if which(delivery.message)]
        if taken:
            self.queued = collections.deque(delivery for delivery in self.queued if not which(delivery.message))
            for delivery in taken:
                self._removed(delivery)
        return taken

    def remove_overflow(self, which: Callable[[QueuedMessage], bool]) -> list[Delivery]:
        """Remove the overflowing deliveries of the messages that `which` selects."""
        taken = [delivery for delivery in self.overflow if which(delivery.message)]
        if taken:
            self.overflow = collections.deque(delivery for delivery in self.overflow if not which(delivery.message))
        return taken

    def _removed(self, delivery: Delivery) -> None:
        size = len(delivery.message.body)
        self.bytes -= size
        self._budget.bytes -= size + DELIVERY_OVERHEAD
        self._budget.deliveries -= 1
