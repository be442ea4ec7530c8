"""What the store process may say to the listener, by kind of frame (`serve_asgi.ipc.store_frames` has their meanings).

The process runs as the workers do (--user). It is trusted with the state, and with nothing besides: what it says is
taken through these structs, and a store process that says anything else ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final

import msgspec

from serve_asgi.ipc.schema import Bodies, Count, Seconds, Sentence, Short

Key = Annotated[str, msgspec.Meta(min_length=1, max_length=1_000)]
"""Of the state, also the server's own."""
StreamPositionPair = tuple[Short, Count]
"""A place in the stream of messages."""


class StoreSnapshotFrame(msgspec.Struct):
    """`store.snapshot`; the body is some `SNAPSHOT_ENTRIES`."""

    first: bool = False


class StoreUpFrame(msgspec.Struct):
    """`store.up`."""

    server: Short = ""
    shared: bool = False
    at: StreamPositionPair | None = None


class StoreProblemFrame(msgspec.Struct):
    """`store.down`, `store.refuses`."""

    text: Sentence


class StoreChangeFrame(msgspec.Struct):
    """`store.change`; the body is the value."""

    key: Key
    version: Count
    deleted: bool = False


class StoreWrittenFrame(StoreChangeFrame, kw_only=True):
    """`store.written`."""

    id: Count


class StoreRefusedFrame(msgspec.Struct):
    """`store.refused`; the body is the present value."""

    id: Count
    code: Short
    text: Sentence
    version: Count = 0


class StoreValueFrame(msgspec.Struct):
    """`store.value`; the body is the value."""

    id: Count
    version: Count


class StoreSentFrame(msgspec.Struct):
    """`store.sent`."""

    id: Short


class StoreUnsentFrame(msgspec.Struct):
    """`store.unsent`."""

    id: Short
    text: Sentence


Origin = tuple[Short, int, int]
"""Of a message: role, slot and generation of the process that has sent it."""


class StoreMessageFrame(msgspec.Struct):
    """`store.message`, from another server; the body is the payload."""

    topic: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
    workers: bool
    origin: Origin
    message: Short = ""
    at: StreamPositionPair | None = None


class StorePositionFrame(msgspec.Struct):
    """`store.at`."""

    at: StreamPositionPair


class StoreGrantedFrame(msgspec.Struct):
    """`store.granted`."""

    id: Count
    token: Count
    renewed_until: Seconds


class StoreTakenFrame(msgspec.Struct):
    """`store.taken`."""

    id: Count
    why: Short
    text: Sentence


class StoreRenewedFrame(msgspec.Struct):
    """`store.renewed`."""

    token: Count
    renewed_until: Seconds


class StoreLostFrame(msgspec.Struct):
    """`store.lost`."""

    token: Count


class StoreLogFrame(msgspec.Struct):
    """`store.say`: a record of the log (docs/reference/events.md), of an event that is the store's to tell."""

    level: Annotated[int, msgspec.Meta(ge=0, le=50)]
    event: Annotated[str, msgspec.Meta(pattern="^store_[a-z_]{1,50}$")]
    text: Sentence
    about: Annotated[dict[Short, bool | int | float | Sentence | None], msgspec.Meta(max_length=20)] = {}


class StoreFailedFrame(msgspec.Struct):
    """`store.failed`: it could not start."""

    text: Sentence
    status: Annotated[int, msgspec.Meta(ge=1, le=255)]


FROM_STORE: Final[Mapping[str, type]] = {
    "store.snapshot": StoreSnapshotFrame,
    "store.up": StoreUpFrame,
    "store.down": StoreProblemFrame,
    "store.refuses": StoreProblemFrame,
    "store.written": StoreWrittenFrame,
    "store.refused": StoreRefusedFrame,
    "store.change": StoreChangeFrame,
    "store.value": StoreValueFrame,
    "store.sent": StoreSentFrame,
    "store.unsent": StoreUnsentFrame,
    "store.message": StoreMessageFrame,
    "store.at": StorePositionFrame,
    "store.granted": StoreGrantedFrame,
    "store.taken": StoreTakenFrame,
    "store.renewed": StoreRenewedFrame,
    "store.lost": StoreLostFrame,
    "store.say": StoreLogFrame,
    "store.failed": StoreFailedFrame,
}
SNAPSHOT_ENTRIES: Final[Bodies[list[tuple[Key, Count, bytes]]]] = Bodies(list[tuple[Key, Count, bytes]], "a snapshot")
"""Keys, each with its version and value."""
