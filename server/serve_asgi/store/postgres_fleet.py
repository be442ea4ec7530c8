"""The fleet in a PostgreSQL: announcements of servers, orders for them, and the latest operation of `serve fleet`.

    fleet            name of a server, what it announces (`serve_asgi.ipc.fleet_records`), when it was last heard (unix
                     time by the database's clock), and an order that it has not taken
    fleet_operation  one row: version, document

An announcement takes no lock but that of its row, and its COMMIT does not wait for the disk: what a crash loses is
announced again. Taking an order is part of it: an order that comes back after a crash has the id of one that the server
has carried out already. It owns no connection but that of `postgres_fleet`, which is the operator's.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

import psycopg

from serve_asgi.config.state_location import PostgresAddress
from serve_asgi.ipc.fleet_records import FORGET
from serve_asgi.store import postgres_tables as tables
from serve_asgi.store.fleet_access import NAME, FleetAccess, FleetUnreachable, FleetView, HeardServer
from serve_asgi.store.postgres_connector import Connection, PostgresConnector

_MAKE: Final = (
    """
    CREATE TABLE IF NOT EXISTS SCHEMA.fleet (
        name text PRIMARY KEY, record bytea NOT NULL, heard double precision NOT NULL, ordered bytea
    ) WITH (fillfactor = 50)
    """,
    """
    CREATE TABLE IF NOT EXISTS SCHEMA.fleet_operation (
        one boolean PRIMARY KEY DEFAULT true CHECK (one), version bigint NOT NULL, document bytea NOT NULL)
    """,
    "INSERT INTO SCHEMA.fleet_operation (version, document) VALUES (0, '') ON CONFLICT DO NOTHING",
)
_FORGET: Final = "DELETE FROM SCHEMA.fleet WHERE heard < extract(epoch FROM clock_timestamp()) - %s"
_QUICKLY: Final = "SET LOCAL synchronous_commit = off"
_ORDER: Final = "SELECT ordered FROM SCHEMA.fleet WHERE name = %s FOR UPDATE"
_ANNOUNCE: Final = """
    INSERT INTO SCHEMA.fleet (name, record, heard) VALUES (%s, %s, extract(epoch FROM clock_timestamp()))
    ON CONFLICT (name) DO UPDATE SET record = excluded.record, heard = excluded.heard, ordered = NULL
"""
_LEAVE: Final = "DELETE FROM SCHEMA.fleet WHERE name = %s"
_ALL: Final = "SELECT name, record, heard, ordered IS NOT NULL FROM SCHEMA.fleet"
_ONE: Final = f"{_ALL} WHERE name = %s"
_OPERATION: Final = "SELECT version, document FROM SCHEMA.fleet_operation"
_ADVANCE: Final = "UPDATE SCHEMA.fleet_operation SET version = version + 1, document = %s WHERE version = %s"
_PLACE: Final = "UPDATE SCHEMA.fleet SET ordered = %s WHERE name = %s"
_RING: Final = "SELECT pg_notify(%s, %s)"


class PostgresFleet:
    """The fleet, over a connection of the caller's."""

    def __init__(self, postgres: PostgresConnector) -> None:
        self._postgres = postgres
        self._there = False

    async def prepare(self, connection: Connection) -> None:
        """Make the tables, and forget servers that have not been heard for long. Raises psycopg.Error.

        A role that may not make them any more does not take part in the fleet; the state is not concerned.
        """
        run, schema = self._postgres.execute, self._postgres.schema
        self._there = False
        async with self._postgres.finished(connection):
            ((_, there),) = await self._postgres.rows(
                connection, tables.EXISTS, (f'"{schema}"', f'"{schema}".fleet_operation')
            )
            with contextlib.suppress(psycopg.errors.InsufficientPrivilege):
                if not there:
                    await self._postgres.begin(connection)
                    await run(connection, tables.LOCK_SCHEMA, (tables.channel(schema),))
                    for statement in _MAKE:
                        await run(connection, statement)
                    await connection.execute(b"COMMIT")
                await run(connection, _FORGET, (FORGET,))
                self._there = True

    async def announce(self, connection: Connection, name: str, record: bytes) -> bytes | None:
        """Announce the server; return the order that waits for it, and take it. Raises psycopg.Error, TimeoutError."""
        if not self._there:
            return None
        async with self._postgres.finished(connection), connection.pipeline():
            await self._postgres.begin(connection)
            await connection.execute(_QUICKLY.encode())
            asked = await self._postgres.execute(connection, _ORDER, (name,))
            await self._postgres.execute(connection, _ANNOUNCE, (name, record))
            await connection.execute(b"COMMIT")
            found = await asked.fetchone()
        return None if found is None else found[0]

    async def leave(self, connection: Connection, name: str) -> None:
        """The server ends. Raises psycopg.Error, TimeoutError."""
        if self._there:
            with self._postgres.bounded(connection):
                await self._postgres.execute(connection, _LEAVE, (name,))

    async def look(self, connection: Connection, name: str) -> FleetView:
        """All servers, or the one that is named, and the operation. Raises psycopg.Error, TimeoutError."""
        rows = self._postgres.rows
        try:
            with self._postgres.bounded(connection):
                ((now,),) = await rows(connection, tables.CLOCK)
                found = await rows(connection, *((_ONE, (name,)) if name else (_ALL, None)))
                operation = await rows(connection, _OPERATION)
        except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
            return FleetView(now, [], 0, b"")
        version, document = operation[0] if operation else (0, b"")
        return FleetView(now, [HeardServer(*row) for row in found], version, bytes(document))

    async def advance(self, connection: Connection, version: int, document: bytes, name: str, order: bytes) -> bool:
        """Write the operation if its version is still this one, and with it an order for a server, or neither.

        An empty order withdraws one that the server has not taken.

        Raises psycopg.Error, TimeoutError.
        """
        async with self._postgres.finished(connection):
            await self._postgres.begin(connection)
            written: Any = await self._postgres.execute(connection, _ADVANCE, (document, version))
            if not written.rowcount:
                return False
            if name:
                await self._postgres.execute(connection, _PLACE, (order or None, name))
            if name and order:
                await connection.execute(_RING.encode(), (tables.channel(self._postgres.schema), name))
            await connection.execute(b"COMMIT")
        return True


class PostgresFleetAccess(FleetAccess):
    """The fleet in one PostgreSQL, over a connection that is made anew where it was cut."""

    def __init__(self, connector: PostgresConnector, connection: Connection) -> None:
        self._connector = connector
        self._connection = connection
        self._fleet = PostgresFleet(connector)

    async def look(self, name: str = "") -> FleetView:
        with _in_words(self._connector):
            return await self._fleet.look(await self._open(), name)

    async def advance(self, version: int, document: bytes, name: str = "", order: bytes = b"") -> bool:
        with _in_words(self._connector):
            return await self._fleet.advance(await self._open(), version, document, name, order)

    async def _open(self) -> Connection:
        if self._connection.closed:
            self._connection = await self._connector.connect()
        return self._connection

    async def close(self) -> None:
        """End the connection."""
        await self._connection.close()


@contextlib.asynccontextmanager
async def postgres_fleet(address: PostgresAddress) -> AsyncIterator[PostgresFleetAccess]:
    """Connect to the first address that takes writes. Raises FleetUnreachable, UsageError."""
    connector = PostgresConnector(address, NAME)
    connector.check()
    with _in_words(connector):
        connection = await connector.connect()
    access = PostgresFleetAccess(connector, connection)
    try:
        yield access
    finally:
        await access.close()


@contextlib.contextmanager
def _in_words(connector: PostgresConnector) -> Iterator[None]:
    try:
        yield
    except (psycopg.Error, TimeoutError, OSError) as error:
        raise FleetUnreachable(connector.sentence(error)) from None
