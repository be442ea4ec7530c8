"""The schema in a PostgreSQL: its tables are made where they are missing, and those of somebody else are left alone.

What the tables hold is said in `serve_asgi.store.postgres_tables` and `serve_asgi.store.postgres_work_tables`.
"""

from __future__ import annotations

import uuid

import psycopg

from serve_asgi.errors import UsageError
from serve_asgi.store import postgres_tables as tables
from serve_asgi.store import postgres_work_tables
from serve_asgi.store.postgres_connector import Connection, PostgresConnector


async def make_tables(postgres: PostgresConnector, connection: Connection) -> None:
    """Make what is missing; of several servers that start together one does.

    Raises UsageError if the tables belong to something else, and psycopg.Error.
    """
    run, schema = postgres.execute, postgres.schema
    if await _has_tables(postgres, connection):
        return
    await postgres.begin(connection)
    await run(connection, tables.LOCK_SCHEMA, (tables.channel(schema),))
    if not (await _there(postgres, connection, "about"))[0]:
        await connection.execute(f'CREATE SCHEMA "{schema}"'.encode())
    for statement in (*tables.MAKE, *postgres_work_tables.MAKE):
        await run(connection, statement)
    await run(connection, tables.BEGIN_LIFE, (tables.FORMAT, uuid.uuid4().hex))
    await connection.execute(b"COMMIT")


async def _there(postgres: PostgresConnector, connection: Connection, table: str) -> tuple[bool, ...]:
    """Whether the schema is there, and this table in it."""
    schema = f'"{postgres.schema}"'
    (found,) = await postgres.rows(connection, tables.EXISTS, (schema, f"{schema}.{table}"))
    return found


async def _has_tables(postgres: PostgresConnector, connection: Connection) -> bool:
    """Whether the tables are there and ours. Raises UsageError if they belong to something else."""
    schema, where = postgres.schema, postgres.where
    if not (await _there(postgres, connection, "about"))[1]:
        return False
    try:
        found = await postgres.rows(connection, tables.ABOUT)
    except (psycopg.errors.UndefinedColumn, psycopg.errors.WrongObjectType):
        raise UsageError(
            f"the table about in schema {schema} of {where} is not this server's: choose another schema with "
            "?prefix=NAME at the end of --state"
        ) from None
    if found and found[0][0] != tables.FORMAT:
        raise UsageError(
            f"what schema {schema} of {where} holds is in format {found[0][0]}, of another version of this server "
            f"(this one reads {tables.FORMAT}): start that version, or add ?prefix=NAME to --state"
        )
    return bool(found) and (await _there(postgres, connection, "outcomes"))[1]
