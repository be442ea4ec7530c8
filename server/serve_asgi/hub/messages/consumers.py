"""Who has which messages: each member's place, with a desk for each topic, and the frames that go to it next.

It keeps the accounts of what is in a member's hands, and decides nothing (`serve_asgi.hub.messages.routing` does).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, Protocol, TypeVar

from serve_asgi.errors import ChannelError
from serve_asgi.hub.core import HubPort, Member, MemberPhase, Role
from serve_asgi.hub.messages.queues import QUEUE_LIMIT, STARTING_QUEUE_LIMIT, BoundedQueue, Delivery, QueueBudget
from serve_asgi.ipc.frames import Frame, encode

FRAME_MESSAGES: Final = 8
"""Messages in one frame at most."""
FRAME_BYTES: Final = 60_000
"""Bytes of payload in one frame, unless a single payload is larger."""
CONSUMER_WINDOW: Final = 64
"""Messages of one topic, other than work, in a process's hands."""
CONSUMER_WINDOW_BYTES: Final = 512 * 1024
"""Bytes of their payloads, unless a single one is larger."""
IN_FLIGHT_BYTES: Final = 16 * 1024 * 1024
"""Bytes of all that is in a process's hands, with `COPY_BYTES` for each message: then no more before some end."""

STARTING_TOPICS: Final = 2_000
"""Topics that copies are kept of for a process that starts; it will handle 1,000 at most, not known yet which."""


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
    """One topic at one member: what waits for it, and how much it has in its hands."""

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
        """What it has in its hands counts as."""
        self.was_full = False
        """Something may wait until that is less."""
        self.held: dict[int, tuple[Consumer, Delivery]] = {}
        """What is in its hands, by the delivery's number, oldest first."""
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


class EntryBatch:
    """Entries for one member, to be sent as few frames."""

    __slots__ = ("bodies", "entries", "kind", "size")

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.entries: list[list[Any]] = []
        self.bodies: list[bytes] = []
        self.size = 0


class FrameBatcher:
    """Frames `msg.give` and `msg.told`, collected until what has happened has been dealt with."""

    def __init__(self, port: HubPort) -> None:
        self._port = port
        self._give: dict[int, EntryBatch] = {}
        self._told: dict[int, EntryBatch] = {}
        self._last: list[int] = []

    def give(self, member: int, entry: list[Any], body: bytes) -> None:
        """Have a message given; the length of the payload is put at the end of `entry`."""
        self._add(self._give, "msg.give", member, entry, body)

    def tell(self, member: int, entry: list[Any], body: bytes = b"") -> None:
        """Have a sender told."""
        self._add(self._told, "msg.told", member, entry, body)

    def last(self, member: int) -> None:
        """Have a member that retires told that it has been given all that had a place for it before."""
        self._last.append(member)

    def flush(self) -> None:
        """Send it all."""
        for batches in (self._told, self._give):
            if batches:
                for member, batch in batches.items():
                    self._send(member, batch)
                batches.clear()
        while self._last:
            self._port.send(self._last.pop(), encode("msg.last"))

    def _add(self, batches: dict[int, EntryBatch], kind: str, member: int, entry: list[Any], body: bytes) -> None:
        batch = batches.get(member)
        if batch is None:
            batch = batches[member] = EntryBatch(kind)
        elif len(batch.entries) >= FRAME_MESSAGES or batch.size + len(body) > FRAME_BYTES:
            self._send(member, batch)
            batch = batches[member] = EntryBatch(kind)
        entry.append(len(body))
        batch.entries.append(entry)
        if body:
            batch.bodies.append(body)
            batch.size += len(body)

    def _send(self, member: int, batch: EntryBatch) -> None:
        self._port.send(member, encode(batch.kind, {"m": batch.entries}, b"".join(batch.bodies)))


class SizedEntry(Protocol):
    """An entry whose payload has this size."""

    @property
    def size(self) -> int: ...


S = TypeVar("S", bound=SizedEntry)


def split_bodies(found: Sequence[S], body: bytes) -> Iterator[tuple[S, bytes]]:
    """The entries of a member's frame, each with its payload. Raises ChannelError if the sizes are not those."""
    at = 0
    for entry in found:
        end = at + entry.size
        if end > len(body):
            raise ChannelError("the payloads of a frame do not have the announced lengths")
        yield entry, body[at:end]
        at = end


def split_entries(frame: Frame) -> list[tuple[list[Any], bytes]]:
    """The entries of a frame with many of them, each with its payload. Raises LookupError, TypeError or ValueError."""
    body, at = frame.body, 0
    found: list[tuple[list[Any], bytes]] = []
    for entry in frame.head["m"]:
        end = at + entry[-1]
        if end > len(body) or end < at:
            raise ValueError("the payloads do not fit the lengths")
        found.append((entry, body[at:end]))
        at = end
    return found
