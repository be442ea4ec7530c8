"""What waits in the hub to be delivered: sends, their copies, and the bounded queues that the copies stand in.

It owns the bounds. A copy beyond them waits as well, in order, but its sender has no answer yet: that is how a full
queue holds up whoever fills it. It knows neither members nor frames.
"""

from __future__ import annotations

import collections
import dataclasses
import enum
from collections.abc import Callable, Iterator
from typing import Any, Final

from serve_asgi.ipc.message_frames import AckMode, MessageKind

QUEUE_LIMIT: Final = 1_000
"""Messages that have a place in one lane."""
STARTING_QUEUE_LIMIT: Final = 10_000
"""The same for a process that starts: it takes none before it is up."""
QUEUE_BYTES: Final = 4 * 1024 * 1024
"""Bytes of payload in the places of one lane."""
TOTAL_BYTES: Final = 64 * 1024 * 1024
"""Bytes in the places of all lanes together; a payload counts for each copy."""
DELIVERY_OVERHEAD: Final = 512
"""Bytes that a copy counts in that, beside its payload: many small ones take memory as well."""


class MessageStage(enum.Enum):
    """What the sender of a message has been told."""

    OFFERED = "offered"  # nothing: not every copy has a place
    ACCEPTED = "accepted"  # it has its places; there will be more to tell
    SETTLED = "settled"  # the last; or the sender waits no more, or there is none


@dataclasses.dataclass(slots=True, eq=False)
class QueuedMessage:
    """One message, as it was sent."""

    id: str
    sender: int  # the member that waits to be told of it; 0 for none
    origin: list[Any]  # [role, slot, generation] of the sender
    topic: str
    body: bytes
    kind: MessageKind
    want: AckMode
    limit: int = 1  # how often it is delivered at most
    slot: int = -1  # of DIRECT; -1 for the agent
    subject: list[Any] | None = None  # of a dead letter: [topic, id, attempts, reason]
    stage: MessageStage = MessageStage.OFFERED
    copies: int = 0
    missing: int = 0  # copies that have no place yet, and answers of the store that are due
    held_up: bool = False  # it counts as one of its sender's that are not accepted
    key: str = ""  # what it is known by while its sender waits: its id is the sender's own word

    @property
    def again(self) -> bool:
        """Whether it is delivered again if the process that had it dies."""
        return self.want >= AckMode.HANDLED


class Delivery:
    """One message on its way to one process."""

    __slots__ = ("attempt", "send")

    def __init__(self, send: QueuedMessage, attempt: int = 0) -> None:
        self.send = send
        self.attempt = attempt
        """How often it has been given to a process."""


class QueueBudget:
    """What is in the places of all lanes."""

    __slots__ = ("bytes", "copies")

    def __init__(self) -> None:
        self.bytes = 0
        self.copies = 0


class BoundedQueue:
    """Copies in order. Those in `placed` have their place, those in `offered` wait for one."""

    __slots__ = ("_budget", "bytes", "closed", "limit", "offered", "placed", "since")

    def __init__(self, budget: QueueBudget, limit: int) -> None:
        self.placed: collections.deque[Delivery] = collections.deque()
        self.offered: collections.deque[Delivery] = collections.deque()
        self.bytes = 0
        self.limit = limit
        self.closed = False
        """Nobody would take what is in it: nothing more gets a place."""
        self.since: float | None = None
        """Since when nobody has been there who might take what is in it (the hub's clock)."""
        self._budget = budget

    def __bool__(self) -> bool:
        return bool(self.placed or self.offered)

    def _room(self) -> bool:
        return (
            not self.closed
            and len(self.placed) < self.limit
            and self.bytes < QUEUE_BYTES
            and self._budget.bytes < TOTAL_BYTES
        )

    def _place(self, copy: Delivery) -> None:
        size = len(copy.send.body)
        self.bytes += size
        self._budget.bytes += size + DELIVERY_OVERHEAD
        self._budget.copies += 1
        self.placed.append(copy)

    def put(self, copy: Delivery) -> bool:
        """Give the copy a place, or let it wait for one; return which."""
        if self.offered or not self._room():
            self.offered.append(copy)
            return False
        self._place(copy)
        return True

    def put_if_room(self, copy: Delivery) -> bool:
        """Give the copy a place if there is one; of all there are, those without a sender to wait get half at most."""
        if self.offered or not self._room() or self._budget.bytes >= TOTAL_BYTES // 2:
            return False
        self._place(copy)
        return True

    def put_placed(self, copy: Delivery) -> None:
        """Give a place to what has had one elsewhere: the bound was its sender's."""
        self._place(copy)

    def put_back(self, copy: Delivery) -> None:
        """Put what was taken before all others again."""
        size = len(copy.send.body)
        self.bytes += size
        self._budget.bytes += size + DELIVERY_OVERHEAD
        self._budget.copies += 1
        self.placed.appendleft(copy)

    def take(self) -> Delivery:
        """The first one that has a place. Raises IndexError if there is none."""
        copy = self.placed.popleft()
        self._left(copy)
        return copy

    def refill(self) -> Iterator[Delivery]:
        """Give places to those that wait for one, as far as there are some; yield them."""
        while self.offered and self._room():
            copy = self.offered.popleft()
            self._place(copy)
            yield copy

    def take_placed(self, which: Callable[[QueuedMessage], bool]) -> list[Delivery]:
        """Take out the copies with a place whose sends are meant."""
        taken = [copy for copy in self.placed if which(copy.send)]
        if taken:
            self.placed = collections.deque(copy for copy in self.placed if not which(copy.send))
            for copy in taken:
                self._left(copy)
        return taken

    def take_offered(self, which: Callable[[QueuedMessage], bool]) -> list[Delivery]:
        """Take out the copies without a place whose sends are meant."""
        taken = [copy for copy in self.offered if which(copy.send)]
        if taken:
            self.offered = collections.deque(copy for copy in self.offered if not which(copy.send))
        return taken

    def _left(self, copy: Delivery) -> None:
        size = len(copy.send.body)
        self.bytes -= size
        self._budget.bytes -= size + DELIVERY_OVERHEAD
        self._budget.copies -= 1
