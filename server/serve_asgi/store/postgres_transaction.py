"""One transaction in a PostgreSQL: decided upon what the lock has made certain, and written as a whole.

The decisions are those of the file's store (`serve_asgi.store.state_writes`, `serve_asgi.store.schedule_leases`), by
the database's clock. It sends nothing to the hub: the replies are sent when COMMIT has come back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from serve_asgi.errors import ChannelError
from serve_asgi.ipc.frames import Frame, pack_value
from serve_asgi.ipc.state_frames import Write
from serve_asgi.store import postgres_tables as tables
from serve_asgi.store import replies
from serve_asgi.store.postgres_connector import Connection, PostgresConnector
from serve_asgi.store.replies import StoreReply
from serve_asgi.store.schedule_leases import LeaseTable, TickGrant, lease_until
from serve_asgi.store.state_writes import StateWrites

ABOUT_LEASES: Final = frozenset({"store.grant", "store.renew", "store.release"})
CHANGING: Final = ABOUT_LEASES | {"store.write", "store.send"}
"""Frames that need the lock."""


class About(NamedTuple):
    """The row `about`."""

    format: int
    epoch: str
    seq: int
    used: int
    token: int
    sent: int
    change_bytes: int
    message_bytes: int


class StoreTransaction:
    """What one transaction does; it takes effect when it has been committed."""

    def __init__(self, about: About, writes: StateWrites, leases: LeaseTable, now: float) -> None:
        self.about = about
        self.writes = writes
        self.leases = leases
        self.now = now  # by the database's clock
        self.granted: set[str] = set()  # schedules with a new grant
        self.leased: set[str] = set()  # schedules whose leases have changed
        self.messages: list[tuple[bytes, bytes]] = []
        self.replies: list[StoreReply] = []

    @property
    def changes_anything(self) -> bool:
        return bool(self.writes.accepted or self.leased or self.messages)

    def handle(self, frame: Frame, began: float) -> None:
        """Decide a request, which was sent at `began` (s, monotonic).

        Raises LookupError, TypeError, ValueError or ChannelError for an invalid frame.
        """
        head = frame.head
        match frame.kind:
            case "store.write":
                self.replies.append(self.writes.write(head["id"], Write.of(head, frame.body)))
            case "store.read":
                self.replies.append(replies.value(head["id"], head["key"], self.writes.entry(head["key"])))
            case "store.send":
                told = {name: value for name, value in head.items() if name != "id"}
                self.messages.append((pack_value(told, "a message's head"), frame.body))
                self.replies.append(StoreReply("store.sent", {"id": head["id"]}))
            case "store.grant":
                self._grant(head, began)
            case "store.renew":
                name, token = head["name"], head["token"]
                self.leased.add(name)
                if self.leases.renew(name, token, float(head["lease"]), self.now):
                    self.replies.append(replies.renewed(name, token, lease_until(head["lease"], began)))
                else:
                    self.replies.append(replies.lost(name, token, f"the lease of {name} was not renewed in time"))
            case "store.release":
                self.leased.add(head["name"])
                self.leases.release(head["name"], head["token"])
            case _:
                raise ChannelError(f"the listener asks for {frame.kind!r}, which this version does not know")

    def _grant(self, head: dict[str, Any], began: float) -> None:
        name, lease, exclusive = head["name"], float(head["lease"]), bool(head.get("exclusive"))
        found = self.leases.grant(name, float(head["tick"]), head["holder"], lease, exclusive, self.now)
        if isinstance(found, TickGrant):
            self.granted.add(name)
            self.leased.add(name)
            self.replies.append(replies.granted(head["id"], found.token, lease_until(lease, began)))
        else:
            self.replies.append(replies.taken(head["id"], *found))

    async def commit(self, postgres: PostgresConnector, connection: Connection, server: str) -> None:
        """Write all that was decided, wake the other servers, and commit. Raises psycopg.Error."""
        about, execute, channel = self.about, postgres.execute, tables.channel(postgres.schema)
        change_bytes, message_bytes = about.change_bytes, about.message_bytes
        async with connection.pipeline():
            if self.writes.accepted:
                change_bytes = await self._put_changes(postgres, connection, server)
            if self.messages:
                message_bytes = await self._put_messages(postgres, connection, server)
            if self.leased:
                await self._put_leases(postgres, connection)
            numbers = (self.writes.version, self.writes.used, self.leases.token, about.sent + len(self.messages))
            await execute(connection, tables.SET_ABOUT, (*numbers, change_bytes, message_bytes))
            if self.writes.accepted or self.messages:
                await execute(connection, tables.NOTIFY, (channel,))
            await connection.execute(b"COMMIT")

    async def _put_changes(self, postgres: PostgresConnector, connection: Connection, server: str) -> int:
        before = ends = self.about.change_bytes
        last = self.writes.changes.values()
        gone = [change.key.encode() for change in last if change.value is None]
        there = [(change.key.encode(), change.version, change.value) for change in last if change.value is not None]
        logged = []
        for change in self.writes.accepted:
            ends += tables.ROW_BYTES + len(change.key) + len(change.value or b"")
            logged.append((change.version, change.key.encode(), change.value, ends))
        await postgres.execute(connection, tables.DELETE, (gone,))
        await postgres.execute(connection, tables.PUT, columns(there, 3))
        await postgres.execute(connection, tables.LOG, (server, *columns(logged, 4)))
        if ends // tables.TRIM_STEP > before // tables.TRIM_STEP:
            await postgres.execute(connection, tables.TRIM_CHANGES, (ends - tables.CHANGE_BYTES,))
        return ends

    async def _put_messages(self, postgres: PostgresConnector, connection: Connection, server: str) -> int:
        before = ends = self.about.message_bytes
        sent = []
        for number, (head, body) in enumerate(self.messages, self.about.sent + 1):
            ends += tables.ROW_BYTES + len(head) + len(body)
            sent.append((number, head, body, ends))
        await postgres.execute(connection, tables.SEND, (self.about.epoch, server, *columns(sent, 4)))
        if ends // tables.TRIM_STEP > before // tables.TRIM_STEP:
            await postgres.execute(connection, tables.TRIM_MESSAGES, (ends - tables.MESSAGE_BYTES,))
        return ends

    async def _put_leases(self, postgres: PostgresConnector, connection: Connection) -> None:
        leases = self.leases
        last = [(name, leases.last[name]) for name in sorted(self.granted)]
        granted = [(name.encode(), grant.tick, grant.holder, grant.token) for name, grant in last]
        kept = [(name.encode(), token, end) for (name, token), end in leases.until.items() if end > self.now]
        await postgres.execute(connection, tables.GRANT, columns(granted, 4))
        await postgres.execute(connection, tables.FORGET_LEASES, ([name.encode() for name in self.leased],))
        await postgres.execute(connection, tables.LEASE, columns(kept, 3))


def columns(rows: Sequence[tuple[Any, ...]], width: int) -> tuple[list[Any], ...]:
    """Rows as one list for each column, as unnest takes them."""
    return tuple([row[column] for row in rows] for column in range(width))
