"""Connections to a PostgreSQL: made, bounded in time, waited for, and what their errors mean.

It owns no connection: whoever makes one closes it. psycopg waits without an end for a server that stands still, also
when its task is cancelled, so that `bounded` shuts the socket down instead.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, Final

import psycopg
from psycopg import conninfo
from psycopg.pq import TransactionStatus

from serve_asgi.config.state_location import PostgresAddress, shown
from serve_asgi.errors import UsageError
from serve_asgi.store import postgres_tables as tables
from serve_asgi.store.reconnect import SessionLost

logging.getLogger("psycopg").setLevel(logging.ERROR)  # its warnings of lost connections are ours to report, once

Connection = psycopg.AsyncConnection[tuple[Any, ...]]

LOCK_PART: Final = 0.8
"""The part of the timeout after which the database gives up waiting for another server's transaction."""
IDLE_PART: Final = 0.5
"""The part of the timeout after which it ends the session of a server that stopped in the middle of one."""
STATEMENT_PART: Final = 2.0
"""This end gives up first: a statement that the database itself ends while it waits for a standby counts as done."""
_ENDS_SESSION: Final = ("08", "25006", "0A000", "28", "3D000", "3F000", "42P01", "57P")
"""SQLSTATEs (or their classes) after which the session begins anew: the connection is lost, the server is a standby,
or the tables are gone (https://www.postgresql.org/docs/current/errcodes-appendix.html)."""
_NOT_LET_IN: Final = re.compile("authentication failed|no pg_hba.conf entry|no password supplied")
"""What libpq says of an attempt to connect, for which psycopg has no SQLSTATE."""


class PostgresConnector:
    """The connector to one PostgreSQL."""

    def __init__(self, address: PostgresAddress, server: str) -> None:
        """`server` is the name of this server, for pg_stat_activity."""
        self._address = address
        self._server = server
        self.schema = address.schema
        self.where = f"PostgreSQL at {shown(address.url)}"

    def check(self) -> None:
        """Raise UsageError, a sentence, for options of the URL that libpq does not have."""
        try:
            conninfo.conninfo_to_dict(self._address.url)
        except psycopg.ProgrammingError as error:
            said = str(error).strip().replace(self._address.url, shown(self._address.url))
            raise UsageError(f"--state {shown(self._address.url)}: {said}; correct the URL") from None

    async def connect(self) -> Connection:
        """Connect to the first address that takes writes. Raises psycopg.Error or TimeoutError."""
        more: dict[str, Any] = {"application_name": f"serve-{self._server[:8]}"}
        given = conninfo.conninfo_to_dict(self._address.url)
        if "target_session_attrs" not in given:
            more["target_session_attrs"] = "read-write"
        hosts = str(given.get("host") or "").count(",") + 1
        async with asyncio.timeout(self._address.timeout * hosts):
            connection: Connection = await psycopg.AsyncConnection.connect(
                self._address.url, autocommit=True, prepare_threshold=None, **more
            )
        return connection

    @contextlib.contextmanager
    def bounded(self, connection: Connection) -> Iterator[None]:
        """Raise TimeoutError, and cut the connection, if the server does not answer in time."""
        late = False

        def cut() -> None:
            nonlocal late
            late = True
            with contextlib.suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(connection.fileno())) as end:
                end.shutdown(socket.SHUT_RDWR)

        timer = asyncio.get_running_loop().call_later(self._address.timeout, cut)
        try:
            yield
        except psycopg.Error as error:
            if late:
                raise TimeoutError from error
            raise
        finally:
            timer.cancel()

    async def begin(self, connection: Connection, kind: str = tables.BEGIN) -> None:
        """Begin a transaction with limits; `finished` ends it."""
        milliseconds = self._address.timeout * 1000
        parts = {"lock": LOCK_PART, "idle": IDLE_PART, "statement": STATEMENT_PART}
        await connection.execute(kind.encode())
        await connection.execute(
            tables.LIMITS.encode(), {name: str(round(part * milliseconds)) for name, part in parts.items()}
        )

    @contextlib.asynccontextmanager
    async def finished(self, connection: Connection) -> AsyncIterator[None]:
        """Bound a transaction in time, and roll it back if the block leaves it open and there still is a connection."""
        try:
            with self.bounded(connection):
                yield
        finally:
            if not connection.closed and connection.info.transaction_status is not TransactionStatus.IDLE:
                with contextlib.suppress(psycopg.Error, TimeoutError), self.bounded(connection):
                    await connection.execute(b"ROLLBACK")

    async def execute(self, connection: Connection, statement: str, arguments: Any = None) -> Any:
        """Run a statement of `serve_asgi.store.postgres_tables`; the cursor has its rows."""
        return await connection.execute(tables.in_schema(statement, self._address.schema), arguments)

    async def rows(self, connection: Connection, statement: str, arguments: Any = None) -> Sequence[tuple[Any, ...]]:
        """The rows of a statement."""
        found: Sequence[tuple[Any, ...]] = await (await self.execute(connection, statement, arguments)).fetchall()
        return found

    async def wait(self, connection: Connection, news: asyncio.Event, seconds: float) -> None:
        """Wait for the server to say something, which may be a NOTIFY or that it ends, for `news`, or so long."""
        loop, end = asyncio.get_running_loop(), connection.fileno()
        loop.add_reader(end, news.set)
        try:
            async with asyncio.timeout(seconds):
                await news.wait()
        except TimeoutError:
            pass
        finally:
            loop.remove_reader(end)

    def sentence(self, error: Exception) -> str:
        """Why PostgreSQL cannot be used, as a sentence."""
        match error:
            case SessionLost():
                return f"{self.where}: {error}"
            case TimeoutError() | psycopg.errors.ConnectionTimeout():
                return f"{self.where} did not answer in time"
            case psycopg.Error() if (error.sqlstate or "").startswith("28") or _NOT_LET_IN.search(str(error)):
                return f"{self.where} does not let this server in: {reason_of(error)}"
            case psycopg.Error() if error.sqlstate:
                return f"{self.where} cannot be used: {reason_of(error)}"
        return f"{self.where} cannot be reached: {reason_of(error)}"


def reason_of(error: Exception) -> str:
    """The text of an error in one line, without an address that might hold a password."""
    if isinstance(error, psycopg.Error) and error.diag.message_primary:
        return error.diag.message_primary
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def ends_session(error: psycopg.Error, connection: Connection) -> bool:
    """Whether the session has to begin anew."""
    return connection.closed or error.sqlstate is None or error.sqlstate.startswith(_ENDS_SESSION)


def surely_undone(error: Exception) -> bool:
    """Whether the server itself has said that it did not commit, and lives to say so."""
    return isinstance(error, psycopg.Error) and error.diag.severity_nonlocalized == "ERROR"
