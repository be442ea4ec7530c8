"""`serve_asgi.store.fleet_access` in a PostgreSQL."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator

import psycopg

from serve_asgi.config.state_location import PostgresAddress
from serve_asgi.store.fleet_access import NAME, FleetAccess, FleetUnreachable, FleetView
from serve_asgi.store.postgres_connector import Connection, PostgresConnector
from serve_asgi.store.postgres_fleet import PostgresFleet


class PostgresFleetAccess(FleetAccess):
    """The fleet in one PostgreSQL, over a connection of the caller's."""

    def __init__(self, connector: PostgresConnector, connection: Connection) -> None:
        self._connector = connector
        self._connection = connection
        self._fleet = PostgresFleet(connector)

    async def look(self, name: str = "") -> FleetView:
        with _in_words(self._connector):
            return await self._fleet.look(self._connection, name)

    async def advance(self, version: int, document: bytes, name: str = "", order: bytes = b"") -> bool:
        with _in_words(self._connector):
            return await self._fleet.advance(self._connection, version, document, name, order)


@contextlib.asynccontextmanager
async def postgres_fleet(address: PostgresAddress) -> AsyncIterator[PostgresFleetAccess]:
    """Connect to the first address that takes writes. Raises FleetUnreachable, UsageError."""
    connector = PostgresConnector(address, NAME)
    connector.check()
    with _in_words(connector):
        connection = await connector.connect()
    try:
        yield PostgresFleetAccess(connector, connection)
    finally:
        await connection.close()


@contextlib.contextmanager
def _in_words(connector: PostgresConnector) -> Iterator[None]:
    try:
        yield
    except (psycopg.Error, TimeoutError, OSError) as error:
        raise FleetUnreachable(connector.sentence(error)) from None
