"""What the servers that share a store say of themselves there, and the orders that they get through it, as JSON.

A server announces a `ServerRecord` under its name (`serve_asgi.listener.fleet_member`); `serve fleet` reads all of them
and places a `FleetOrder` beside one of them, whose outcome that server announces with its next record. Both ends decode
what lies in the store within bounds, since whoever may write to the store may have written it. Members may be added:
unknown ones are ignored.
"""

from __future__ import annotations

import enum
from typing import Annotated, Final

import msgspec

from serve_asgi.errors import ChannelError
from serve_asgi.ipc.untrusted_input import BAD, Count, Seconds, Sentence, Short, why

BEAT: Final = 5.0
"""Seconds between two announcements of a server to which nothing happens."""
SILENT: Final = 3 * BEAT
"""Seconds without an announcement after which a server counts as one that does not answer."""
FORGET: Final = 600.0
"""Seconds without an announcement after which a server is forgotten."""
LARGEST: Final = 16 * 1024
"""Most bytes of a record or an order."""
Path = Annotated[str, msgspec.Meta(max_length=4_096)]


class OrderKind(enum.Enum):
    """What a server is told to do."""

    RELOAD = "reload"
    ROLLBACK = "rollback"


class OrderState(enum.Enum):
    """RUNNING -> DONE or REFUSED."""

    RUNNING = "running"
    DONE = "done"
    REFUSED = "refused"


class FleetOrder(msgspec.Struct, omit_defaults=True):
    """An order for one server."""

    id: Short
    """A server carries out no two orders with the same one."""
    kind: OrderKind
    who: Sentence = ""
    """Who runs `serve fleet`."""
    of: Short = ""
    """Of a roll-back: the order whose reload is taken back, and nothing else."""


class OrderOutcome(msgspec.Struct, omit_defaults=True):
    """What has become of the latest order of a server."""

    id: Short
    kind: OrderKind
    state: OrderState
    text: Sentence = ""
    """How it ended, or why it was refused."""
    generation: Count = 0
    """The one that serves since."""


class ServerRecord(msgspec.Struct):
    """One server, as it describes itself."""

    host: Short
    pid: Count
    directory: Path
    app: Short
    version: Short
    state: Short
    """`serve_asgi.supervisor.lifecycles.ServerState`."""
    health: Short
    """"healthy", "draining" or "agent missing"."""
    generation: Count
    size: Count
    """How many workers there should be."""
    serving: Count
    """How many of the current generation serve."""
    up: Seconds
    """Seconds since its start."""
    starting: Count | None = None
    """The generation that is being started."""
    agent: Short = ""
    """The state of its agent, "elsewhere" if the fleet's is on another server, "missing"; "" if it has none."""
    release: Path = ""
    """The directory of the release that serves, if it is found through a link, as after `serve deploy`."""
    canary: bool = False
    """Whether its reloads begin with a trial."""
    takes_orders: bool = False
    """--fleet-orders"""
    order: OrderOutcome | None = None
    """The latest order, if there was one."""
    moved_link: Sentence = ""
    """Which link leads to another release than the one that serves, so that a restart would start that one."""


_RECORD: Final = msgspec.json.Decoder(ServerRecord)
_ORDER: Final = msgspec.json.Decoder(FleetOrder)


def encoded(record: ServerRecord | FleetOrder) -> bytes:
    """As it lies in the store."""
    return msgspec.json.encode(record)


def record_from(data: bytes) -> ServerRecord | None:
    """A server's record; None if it is none that this version can read."""
    try:
        return _RECORD.decode(data) if len(data) <= LARGEST else None
    except BAD:
        return None


def order_from(data: bytes) -> FleetOrder:
    """An order. Raises ChannelError if it is invalid."""
    try:
        if len(data) > LARGEST:
            raise ValueError("it is too long")
        return _ORDER.decode(data)
    except BAD as error:
        raise ChannelError(f"an order of the fleet that is invalid: {why(error)}") from None
