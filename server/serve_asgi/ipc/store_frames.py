"""The protocol between a hub and its store process: frames (`serve_asgi.ipc.frames`), one per packet.

Every frame with an `id` gets exactly one reply, even if the store process dies or its disk is full: then a refusal. The
requester chooses ids, unique among writes and reads, among sends, and among grants. Values are MessagePack.

hub -> store
    store.snapshot {} body=[[key, version, value], …]         what the hub has from an earlier store process, in parts,
    store.known    {version}                                  and the version of its last change, for a shared store
                                                              that comes back empty. Only if `store.open` requests it
    store.write   {id, op, key, version?, by?} body=value     as `Write.head`; -> written | refused
    store.read    {id, key}                                   the authoritative value; -> value | refused
    store.send    {id, …} body                                to the hubs of all other servers; -> sent | unsent
    store.grant   {id, name, tick, holder, lease, exclusive?} may this server run the tick?; -> granted | taken
    store.renew   {name, token, lease}                        -> renewed | lost (no reply while the store is away)
    store.release {name, token}                               the run has ended; no reply
    store.announce {} body                                    this server's record, for `serve fleet`
                                                              (`serve_asgi.ipc.fleet_records`); -> order, if one waits
    store.leave   {}                                          the server ends: its record is removed; no reply

store -> hub
    store.snapshot  {first?} body=[[key, version, value], …]  parts of the whole state, before each `store.up`; parts
                                                              before a `first` belong to an interrupted snapshot
    store.up        {server, shared, at?}                     the snapshot is complete; the hub drops anything else.
                                                              Sent after each `store.down` and by each new process;
                                                              `shared`: there may be other servers; `at`: the
                                                              position in the stream of messages, for the next process
    store.down      {text}                                    why the store is unavailable
    store.refuses   {text}                                    why writes are refused although the store is available (a
                                                              full disk); "": they are accepted again. Sent when it
                                                              changes; `store.up` resets it
    store.written   {id, key, version, deleted} body=value    the write has been made; `version` is the change's
    store.refused   {id, code, text, version, exists?} body   reply to write and read: `RefusalCode` or `StoreFailure`;
                                                              for "conflict" the current version and value (`exists`)
    store.change    {key, version, deleted} body=value        a write of another hub, or one that this hub was told was
                                                              refused with code "unknown" or "replicas"
    store.value     {id, key, version, exists} body=value     reply to read
    store.sent      {id}                                      every server that follows gets it
    store.unsent    {id, code, text}                          `StoreFailure`
    store.message   {server, at, …} body                      sent by another server's hub: its head without `id`
    store.at        {at}                                      the position after this hub's own messages; now and then
    store.granted   {id, token, renewed_until}
    store.taken     {id, why, text}                           `GrantRefusal`
    store.renewed   {name, token, renewed_until}
    store.lost      {name, token, text}                       the lease has expired: another server may run it now
    store.bell      {}                                        an order waits: announce this server now
    store.order     {} body                                   an order of `serve fleet`, which comes once

`written` and `change` together are the changes of the state, in order: a hub applies them as they arrive (a `written`
that is not newer than a `change` before it is only the reply). A reply never arrives before the changes that it is
about: after a "conflict" the hub has the conflicting change.

What one worker of all servers is to handle has frames of its own (`serve_asgi.ipc.work_frames`).

`tick` is the scheduled instant (unix time, s) and has to grow with each grant of a name: one that is not later than the
last one granted is taken. `holder` identifies one life of a server (two grants of one tick to one holder are the same
grant, so that it may retry when a reply did not arrive). `lease` is in seconds; `renewed_until` is on the clock of
time.monotonic(), a little before the store's own deadline. With `exclusive`, a tick is not granted while any run of
that name has a lease. `token` is larger than that of every earlier grant (a fencing token). A server that does not
renew a lease loses it. With a file there is one server, and a lease ends with its store process.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Annotated, Final

import msgspec

from serve_asgi.ipc.untrusted_input import Bodies, Count, Seconds, Sentence, Short
from serve_asgi.ipc.work_frames import WORK_FROM_STORE

SNAPSHOT_FRAME_SIZE: Final = 120_000
"""Bytes of values in one part of a snapshot, unless a single value is larger."""
LEASE_MARGIN: Final = 0.05
"""Share of a lease that its holder does not use."""
Key = Annotated[str, msgspec.Meta(min_length=1, max_length=1_000)]
"""A key of the state, including the server's own."""
PositionPair = tuple[Short, Count]
"""A position in the stream of messages."""
Origin = tuple[Short, int, int]
"""The sender of a message: role, slot and generation of the process."""
SNAPSHOT_ENTRIES: Final[Bodies[list[tuple[Key, Count, bytes]]]] = Bodies(list[tuple[Key, Count, bytes]], "a snapshot")
"""Keys, each with its version and value."""


class StoreFailure(enum.Enum):
    """Why a request is refused that `evaluate_write` accepts; the values are sent as `code`."""

    UNKNOWN = "unknown"  # nobody knows whether it was written: the reply did not come
    UNAVAILABLE = "unavailable"  # the store or its process cannot be reached: it was not written
    STORAGE = "storage"  # the disk is full, or the store takes no writes: it was not written
    BUSY = "busy"  # the store's queue is full: it was not written
    REPLICAS = "replicas"  # it was written, but too few replicas have it: a fail-over may lose it


class GrantRefusal(enum.Enum):
    """Why a tick is not granted; the values are sent as `why`."""

    GRANTED = "granted"  # this tick, or a later one, has been granted already
    RUNNING = "running"  # `exclusive`, and a run of that name has a lease; ask again if it is to queue
    CLOCK = "clock"  # the instant is in the store's future: this machine's clock is wrong
    TROUBLE = "trouble"  # the store is unavailable; ask again


class StoreSnapshotFrame(msgspec.Struct):
    """`store.snapshot`; the body are `SNAPSHOT_ENTRIES`."""

    first: bool = False


class StoreUpFrame(msgspec.Struct):
    """`store.up`."""

    server: Short = ""
    shared: bool = False
    at: PositionPair | None = None


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


class StoreMessageFrame(msgspec.Struct):
    """`store.message`, from another server; the body is the payload."""

    topic: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
    workers: bool
    origin: Origin
    message: Short = ""
    at: PositionPair | None = None


class StorePositionFrame(msgspec.Struct):
    """`store.at`."""

    at: PositionPair


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


class StoreBellFrame(msgspec.Struct):
    """`store.bell`."""


class StoreOrderFrame(msgspec.Struct):
    """`store.order`; the body is a `serve_asgi.ipc.fleet_records.FleetOrder`."""


class StoreLogFrame(msgspec.Struct):
    """`store.say`: a record for the log (docs/reference/events.md) of an event in the store process."""

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
    "store.bell": StoreBellFrame,
    "store.order": StoreOrderFrame,
    "store.say": StoreLogFrame,
    "store.failed": StoreFailedFrame,
    **WORK_FROM_STORE,
}
