"""What `serve fleet` reads and writes in the store that servers share, without being one of them.

It owns the connection, for as long as one command runs. What the records, orders and the operation mean is not known
here: bytes. Every failure is one sentence, and nothing is tried again here: that is up to who carries an operation out.
"""

from __future__ import annotations

import abc
import contextlib
from collections.abc import AsyncIterator
from typing import Final, NamedTuple

from serve_asgi.config.state_location import RedisAddress, is_url, shown, store_address
from serve_asgi.errors import StartError, UsageError

NAME: Final = "fleet"
"""How its connection is called, in CLIENT LIST and pg_stat_activity."""


class HeardServer(NamedTuple):
    """What one server has announced."""

    name: str
    record: bytes
    heard: float
    """When (unix time by the store's clock, s)."""
    ordered: bool
    """Whether an order waits that it has not taken."""


class FleetView(NamedTuple):
    """What lies in the store."""

    now: float
    """Unix time by the store's clock (s)."""
    servers: list[HeardServer]
    version: int
    """That of the operation; 0 before the first one."""
    document: bytes
    """The latest operation; empty before the first one."""


class FleetUnreachable(StartError):
    """The store cannot be used."""


class FleetAccess(abc.ABC):
    """The fleet in one store."""

    @abc.abstractmethod
    async def look(self, name: str = "") -> FleetView:
        """All servers, or the one that is named if it is there, and the operation. Raises FleetUnreachable."""

    @abc.abstractmethod
    async def advance(self, version: int, document: bytes, name: str = "", order: bytes = b"") -> bool:
        """Write the operation, and with it an order for a server, as one step.

        False, and nothing is written, if the operation's version is not `version` any more. A server that has left gets
        no order; an empty order withdraws one that the server has not taken. Raises FleetUnreachable; then it may be
        written.
        """


@contextlib.asynccontextmanager
async def fleet_at(state: str) -> AsyncIterator[FleetAccess]:
    """The fleet whose servers share `state`, the URL of --state. Raises UsageError, FleetUnreachable."""
    if not is_url(state):
        raise UsageError(
            f"--state {state} is a file, which no other server shares: a fleet has a Redis or PostgreSQL "
            "(docs/guides/fleet.md)"
        )
    address = store_address(state)
    try:
        if isinstance(address, RedisAddress):
            from serve_asgi.store.redis_fleet import redis_fleet

            fleet: contextlib.AbstractAsyncContextManager[FleetAccess] = redis_fleet(address)
        else:
            from serve_asgi.store.postgres_fleet import postgres_fleet

            fleet = postgres_fleet(address)
    except ImportError as error:
        package, extra = ("redis", "redis") if isinstance(address, RedisAddress) else ("psycopg", "postgres")
        raise UsageError(
            f"--state {shown(state)} needs the package {package}, which cannot be used here ({error}): pip install "
            f"'serve-asgi[{extra}]'"
        ) from None
    async with fleet as found:
        yield found
