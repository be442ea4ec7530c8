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
At = tuple[Short, Count]
"""A place in the stream of messages."""


class Piece(msgspec.Struct):
    """`store.snapshot`; the body is some `ENTRIES`."""

    first: bool = False


class Up(msgspec.Struct):
    """`store.up`."""

    server: Short = ""
    shared: bool = False
    at: At | None = None


class Trouble(msgspec.Struct):
    """`store.down`, `store.refuses`."""

    text: Sentence


class Change(msgspec.Struct):
    """`store.change`; the body is the value."""

    key: Key
    version: Count
    deleted: bool = False


class Written(Change, kw_only=True):
    """`store.written`."""

    id: Count


class Refused(msgspec.Struct):
    """`store.refused`; the body is the present value."""

    id: Count
    code: Short
    text: Sentence
    version: Count = 0


class Value(msgspec.Struct):
    """`store.value`; the body is the value."""

    id: Count
    version: Count


class Sent(msgspec.Struct):
    """`store.sent`."""

    id: Short


class Unsent(msgspec.Struct):
    """`store.unsent`."""

    id: Short
    text: Sentence


Origin = tuple[Short, int, int]
"""Of a message: role, slot and generation of the process that has sent it."""


class Message(msgspec.Struct):
    """`store.message`, from another server; the body is the payload."""

    topic: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
    workers: bool
    origin: Origin
    message: Short = ""
    at: At | None = None


class Place(msgspec.Struct):
    """`store.at`."""

    at: At


class Granted(msgspec.Struct):
    """`store.granted`."""

    id: Count
    token: Count
    renewed_until: Seconds


class Taken(msgspec.Struct):
    """`store.taken`."""

    id: Count
    why: Short
    text: Sentence


class Renewed(msgspec.Struct):
    """`store.renewed`."""

    token: Count
    renewed_until: Seconds


class Lost(msgspec.Struct):
    """`store.lost`."""

    token: Count


class Say(msgspec.Struct):
    """`store.say`: a record of the log (docs/events.md), of an event that is the store's to tell."""

    level: Annotated[int, msgspec.Meta(ge=0, le=50)]
    event: Annotated[str, msgspec.Meta(pattern="^store_[a-z_]{1,50}$")]
    text: Sentence
    about: Annotated[dict[Short, bool | int | float | Sentence | None], msgspec.Meta(max_length=20)] = {}


class Failed(msgspec.Struct):
    """`store.failed`: it could not start."""

    text: Sentence
    status: Annotated[int, msgspec.Meta(ge=1, le=255)]


FROM_STORE: Final[Mapping[str, type]] = {
    "store.snapshot": Piece,
    "store.up": Up,
    "store.down": Trouble,
    "store.refuses": Trouble,
    "store.written": Written,
    "store.refused": Refused,
    "store.change": Change,
    "store.value": Value,
    "store.sent": Sent,
    "store.unsent": Unsent,
    "store.message": Message,
    "store.at": Place,
    "store.granted": Granted,
    "store.taken": Taken,
    "store.renewed": Renewed,
    "store.lost": Lost,
    "store.say": Say,
    "store.failed": Failed,
}
ENTRIES: Final[Bodies[list[tuple[Key, Count, bytes]]]] = Bodies(list[tuple[Key, Count, bytes]], "a snapshot")
"""Keys, each with its version and value."""
