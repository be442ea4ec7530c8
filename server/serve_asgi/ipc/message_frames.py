"""Messages on the wire between a process and its hub: the frames, and the batches in which messages travel.

member -> hub
    msg.topics   {topics: {topic: concurrency}}            topics that it handles from now on; 0: no more
    msg.send     {m: [[id, kind, topic, ack mode, limit, slot, length], …]} body=the payloads, one after another
                 slot: of DIRECT, -1 for the agent; of BROADCAST, 0 for the workers alone, -1 for all
    msg.withdraw {m: [id, …]}                              it no longer waits
    msg.done     {m: [[delivery, ok, length], …]} body     handlers have ended; replies or errors
    msg.return     {m: [delivery, …], all?}                  not started, and will not be; all: once, when it retires
hub -> member
    msg.deliver     {m: [[delivery, handled topic, id, attempt, kind, ack mode, origin, subject, length], …]} body
    msg.last     {}                                        it retires: everything queued for it has been sent
    msg.confirm     {m: [[id, outcome, value, length], …]} body
                 outcome: a accepted (deliveries) | h handled ([attempt, role, slot, generation]) | r reply (body)
                 | x the handler raised (body) | f failed ([code, text]); `a` is not the last where more is wanted
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Final, Protocol, TypeVar

import msgspec

from serve_asgi.errors import ChannelError
from serve_asgi.ipc.frames import Frame, encode
from serve_asgi.ipc.untrusted_input import Count, Short

DEAD_LETTER_TOPIC: Final = "serve:dead"
"""The topic under which dead letters are delivered."""
RESERVED: Final = "serve:"
"""Prefix of the server's own topics: no process can send to them."""
MAX_TOPICS_PER_FRAME: Final = 200
"""Most topics in one frame; `serve_asgi.app.message_receiver` sends half as many."""
Topic = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
FRAME_MESSAGES: Final = 8
"""Most messages in one frame."""
FRAME_BYTES: Final = 60_000
"""Bytes of payload in one frame, unless a single payload is larger."""


class MessageKind(enum.IntEnum):
    """The destination of a message."""

    BROADCAST = 0  # for every process, or every worker, that handles the topic
    DIRECT = 1  # for one slot, or the agent
    ANY_WORKER = 2  # for one worker that handles the topic
    ANY_IN_FLEET = 3  # for one worker of any server that shares the state


class AckMode(enum.IntEnum):
    """What the sender waits for."""

    ACCEPTED = 0  # until each destination has room for it in its queue
    REPLY = 1  # for what the handler returns
    HANDLED = 2  # until the handler has ended, successfully or not; redelivered if the process dies before
    SUCCESS = 3  # until the handler has succeeded; redelivered if it raises, too


class SendEntry(msgspec.Struct, array_like=True, gc=False):
    """An entry of `msg.send`."""

    id: Short
    kind: MessageKind
    topic: Topic
    ack_mode: AckMode
    limit: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]
    slot: Annotated[int, msgspec.Meta(ge=-1, le=1_000_000)]
    size: Count


class SendFrame(msgspec.Struct):
    """`msg.send`."""

    m: Annotated[list[SendEntry], msgspec.Meta(max_length=100)]


class DoneEntry(msgspec.Struct, array_like=True, gc=False):
    """An entry of `msg.done`."""

    delivery: Count
    ok: bool
    size: Count


class DoneFrame(msgspec.Struct):
    """`msg.done`."""

    m: Annotated[list[DoneEntry], msgspec.Meta(max_length=500)]


class ReturnFrame(msgspec.Struct):
    """`msg.return`."""

    m: Annotated[list[Count], msgspec.Meta(max_length=20_000)]
    all: bool = False


class TopicsFrame(msgspec.Struct):
    """`msg.topics`."""

    topics: Annotated[
        dict[Topic, Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]], msgspec.Meta(max_length=MAX_TOPICS_PER_FRAME)
    ]


class WithdrawFrame(msgspec.Struct):
    """`msg.withdraw`."""

    m: Annotated[list[Short], msgspec.Meta(max_length=2_000)]


MESSAGE_FRAMES: Final[Mapping[str, type]] = {
    "msg.topics": TopicsFrame,
    "msg.send": SendFrame,
    "msg.withdraw": WithdrawFrame,
    "msg.done": DoneFrame,
    "msg.return": ReturnFrame,
}
"""The kinds that a member may send, and the struct of each head."""


class EntryBatch:
    """Entries for one member, to be sent in few frames."""

    __slots__ = ("bodies", "entries", "kind", "size")

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.entries: list[list[Any]] = []
        self.bodies: list[bytes] = []
        self.size = 0


class FrameBatcher:
    """Collects frames `msg.deliver` and `msg.confirm` until the current event has been handled."""

    def __init__(self, send: Callable[[int, bytes], None]) -> None:
        """`send` sends an encoded frame to a member."""
        self._send = send
        self._deliveries: dict[int, EntryBatch] = {}
        self._confirmations: dict[int, EntryBatch] = {}
        self._last: list[int] = []

    def deliver(self, member: int, entry: list[Any], body: bytes) -> None:
        """Deliver a message; the length of the payload is appended to `entry`."""
        self._add(self._deliveries, "msg.deliver", member, entry, body)

    def confirm(self, member: int, entry: list[Any], body: bytes = b"") -> None:
        """Report the outcome of a message to its sender."""
        self._add(self._confirmations, "msg.confirm", member, entry, body)

    def last(self, member: int) -> None:
        """Tell a retiring member that everything queued for it has been sent."""
        self._last.append(member)

    def flush(self) -> None:
        """Send everything collected."""
        for batches in (self._confirmations, self._deliveries):
            if batches:
                for member, batch in batches.items():
                    self._send_batch(member, batch)
                batches.clear()
        while self._last:
            self._send(self._last.pop(), encode("msg.last"))

    def _add(self, batches: dict[int, EntryBatch], kind: str, member: int, entry: list[Any], body: bytes) -> None:
        batch = batches.get(member)
        if batch is None:
            batch = batches[member] = EntryBatch(kind)
        elif len(batch.entries) >= FRAME_MESSAGES or batch.size + len(body) > FRAME_BYTES:
            self._send_batch(member, batch)
            batch = batches[member] = EntryBatch(kind)
        entry.append(len(body))
        batch.entries.append(entry)
        if body:
            batch.bodies.append(body)
            batch.size += len(body)

    def _send_batch(self, member: int, batch: EntryBatch) -> None:
        self._send(member, encode(batch.kind, {"m": batch.entries}, b"".join(batch.bodies)))


class SizedEntry(Protocol):
    """An entry with the size of its payload."""

    @property
    def size(self) -> int: ...


S = TypeVar("S", bound=SizedEntry)


def split_bodies(found: Sequence[S], body: bytes) -> Iterator[tuple[S, bytes]]:
    """The entries of a member's frame, each with its payload. Raises ChannelError if the sizes do not match."""
    at = 0
    for entry in found:
        end = at + entry.size
        if end > len(body):
            raise ChannelError("the payloads of a frame do not have the announced lengths")
        yield entry, body[at:end]
        at = end


def split_entries(frame: Frame) -> list[tuple[list[Any], bytes]]:
    """The entries of a frame, each with its payload. Raises LookupError, TypeError or ValueError."""
    body, at = frame.body, 0
    found: list[tuple[list[Any], bytes]] = []
    for entry in frame.head["m"]:
        end = at + entry[-1]
        if end > len(body) or end < at:
            raise ValueError("the payloads do not match the lengths")
        found.append((entry, body[at:end]))
        at = end
    return found
