"""The state in a PostgreSQL that several servers share: this process's sessions with it.

One connection does everything. What has arrived is one transaction, which locks the row `about` first: from then on
this process knows all changes before it, so that it decides upon its own copy of the state as the file's store does
(`serve_asgi.store.state_writes`, `serve_asgi.store.schedule_leases`), by the database's clock. A reply goes to the hub
after COMMIT, and after the changes that it depends on. What others have written is read when NOTIFY wakes this process,
and in any case each `LOOK`: a lost notification costs time, nothing else. What becomes of requests when a session is
lost is `serve_asgi.store.shared_store`'s; the tables are `serve_asgi.store.postgres_tables`'s.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Sequence
from typing import Any, Final

import psycopg

from serve_asgi.config.state_location import PostgresAddress
from serve_asgi.hub.state.write_evaluation import AcceptedWrite, StateEntry, StateLimits, entry_size
from serve_asgi.ipc.frames import Frame
from serve_asgi.ipc.store_frames import StoreFailure
from serve_asgi.ipc.work_frames import WORK_REQUESTS
from serve_asgi.store import postgres_tables as tables
from serve_asgi.store import replies
from serve_asgi.store.listener_link import ListenerLink
from serve_asgi.store.message_following import MessageFollower
from serve_asgi.store.message_position import StreamEntry
from serve_asgi.store.postgres_connector import (
    Connection,
    PostgresConnector,
    ends_session,
    reason_of,
    surely_undone,
)
from serve_asgi.store.postgres_fleet import PostgresFleet
from serve_asgi.store.postgres_schema import make_tables
from serve_asgi.store.postgres_transaction import ABOUT_LEASES, CHANGING, About, StoreTransaction, columns
from serve_asgi.store.postgres_work_queue import PostgresWorkQueue
from serve_asgi.store.reconnect import SessionLost
from serve_asgi.store.replies import StoreReply
from serve_asgi.store.schedule_leases import LeaseTable, TickGrant
from serve_asgi.store.shared_store import NOTHING_KNOWN, KnownState, SharedStore
from serve_asgi.store.state_writes import StateWrites, apply_change

LOOK: Final = 1.0
"""Seconds without news after which it is looked for some."""
FOLLOWED: Final = 64
"""Most messages that are read at a time."""


class _Behind(Exception):
    """Changes that this process has not read have been deleted."""


class PostgresState(SharedStore):
    """The store in one PostgreSQL."""

    ERRORS = (psycopg.Error,)

    def __init__(
        self,
        link: ListenerLink,
        address: PostgresAddress,
        limits: StateLimits,
        name: str,
        known: KnownState = NOTHING_KNOWN,
    ) -> None:
        """`name` identifies this server uniquely; `known` is what its hub has from an earlier store process."""
        super().__init__(link)
        self._address = address
        self._limits = limits
        self._name = name
        self._postgres = PostgresConnector(address, name)
        self._fleet = PostgresFleet(self._postgres)
        self._messages = MessageFollower(link, name, "PostgreSQL", known.at)
        self._queue = PostgresWorkQueue(link, self._postgres, name, address.lease)
        self._entries = known.entries
        self._seq = 0  # version of the last change that has gone to the hub
        self._highest = known.version  # the highest version that ever went to the hub
        self._epoch = ""
        self._notified = False
        self._rung = False

    def _note(self, frame: Frame) -> bool:
        return self._queue.taken.note(frame)

    def _sentence(self, error: Exception) -> str:
        return self._postgres.sentence(error)

    # Sessions

    async def _session(self) -> None:
        connection = await self._postgres.connect()
        try:
            connection.add_notify_handler(self._wake)
            async with self._postgres.finished(connection):
                await connection.execute(f'LISTEN "{tables.channel(self._address.schema)}"'.encode())
                await make_tables(self._postgres, connection)
            await self._fleet.prepare(connection)
            await self._greet(connection)
            about = await self._take_all(connection)
            await self._messages.begin(about.epoch, about.sent, lambda number: self._entry_from(connection, number))
            self._trouble = ""
            await self._up()
            await self._queue.begin(connection)
            await self._work(connection)
        finally:
            await connection.close()

    def _wake(self, notification: psycopg.Notify) -> None:
        if notification.payload == self._name:
            self._rung = True
        else:
            self._notified = True

    async def _greet(self, connection: Connection) -> None:
        """Give an empty database the state that this process or the hub has; find out what it has lost."""
        run, entries = self._postgres.execute, self._entries
        if not entries and not self._highest:
            return
        restored, lost = False, 0
        async with self._postgres.finished(connection):
            await self._postgres.begin(connection)
            about = About(*self._row(await self._postgres.rows(connection, tables.LOCK)))
            if about.seq == 0 and entries:
                seq = max(self._highest, *(entry.version for entry in entries.values()))
                used = sum(entry_size(key, entry.value) for key, entry in entries.items())
                for statement in tables.BEGIN_ANEW:
                    await run(connection, statement)
                await run(connection, tables.PUT, columns([(k.encode(), *entry) for k, entry in entries.items()], 3))
                await run(connection, tables.SET_LIFE, (uuid.uuid4().hex, seq, used))
                restored = True
            elif about.seq < self._highest:
                lost = self._highest - about.seq
                await run(connection, tables.SET_SEQ, (self._highest,))
            await connection.execute(b"COMMIT")
        if restored:
            text = f"PostgreSQL came back without the shared state: {len(entries)} keys have been written to it again"
            await self._link.log(logging.WARNING, "store_restored", text, keys=len(entries))
        elif lost:
            text = f"PostgreSQL came back without the latest changes of the shared state: {lost} are lost"
            await self._link.log(logging.ERROR, "store_data_lost", text, changes=lost)

    def _row(self, found: Sequence[tuple[Any, ...]]) -> tuple[Any, ...]:
        """The row `about`. Raises SessionLost if it is gone."""
        if not found:
            raise SessionLost("its data was replaced")
        return found[0]

    async def _take_all(self, connection: Connection) -> About:
        """Send the hub the whole state, and follow from there."""
        async with self._postgres.finished(connection):
            await self._postgres.begin(connection, tables.BEGIN_SNAPSHOT)
            about = About(*self._row(await self._postgres.rows(connection, tables.ABOUT)))
            rows = await self._postgres.rows(connection, tables.ENTRIES)
            await connection.execute(b"COMMIT")
        self._entries = {key.decode(): StateEntry(version, value) for key, version, value in rows}
        for piece in replies.snapshot(self._entries.items()):
            await self._link.send(*piece)
        self._epoch, self._seq, self._highest = about.epoch, about.seq, max(self._highest, about.seq)
        return about

    async def _entry_from(self, connection: Connection, number: int) -> list[StreamEntry]:
        with self._postgres.bounded(connection):
            rows = await self._postgres.rows(connection, tables.MESSAGES, (number - 1, 1))
        return [(b"%d-0" % row[0], _fields(*row[1:])) for row in rows]

    async def _up(self) -> None:
        await self._link.send("store.up", {"server": self._name, "shared": True, "at": self._messages.at})

    async def _work(self, connection: Connection) -> None:
        """Carry out requests and follow what others do, until the connection is lost, which raises."""
        behind, looked = True, 0.0
        while True:
            self._news.clear()
            if self._availability.due():
                await self._probe_writes(connection)
            if self._rung:
                self._rung = False
                await self._link.send("store.bell")
            if self._inbox:
                await self._carry_out_next(connection)
            elif not behind:
                await self._postgres.wait(connection, self._news, min(LOOK, self._queue.taken.patience))
                self._notified = self._notified or not self._inbox  # it may be the socket that woke this task
            looks = behind or self._notified or time.monotonic() - looked >= LOOK
            if looks:
                self._notified = False
                behind = await self._follow(connection)
                looked = time.monotonic()
            await self._share_work(connection, looks=looks)

    # Following

    async def _follow(self, connection: Connection) -> bool:
        """Send the hub what is new; return whether there may be more."""
        with self._postgres.bounded(connection):
            async with connection.pipeline():
                asked = [
                    await self._postgres.execute(connection, tables.ABOUT),
                    await self._postgres.execute(connection, tables.CHANGES, (self._seq,)),
                    await self._postgres.execute(connection, tables.MESSAGES, (self._messages.at.number, FOLLOWED)),
                    *await self._queue.ask_news(connection),
                ]
                found, changes, messages, *news = [await each.fetchall() for each in asked]
        self._check_epoch(self._row(found))
        try:
            await self._link.send_all(self._changed(changes))
        except _Behind:
            await self._take_all(connection)
            await self._up()
        for number, *rest in messages:
            if not await self._messages.take(number, _fields(*rest)):
                raise SessionLost("its data was replaced")
        await self._queue.take_news(connection, *news)
        return FOLLOWED in (len(messages), len(news[1]))

    def _check_epoch(self, row: tuple[Any, ...]) -> About:
        about = About(*row)
        if about.epoch != self._epoch:
            raise SessionLost("its data was replaced")
        return about

    def _changed(self, rows: Sequence[tuple[int, bytes, bytes | None]]) -> list[StoreReply]:
        """Make changes of others; return the frames for the hub. Raises _Behind if earlier ones have been deleted."""
        found = []
        for version, key, value in rows:
            if version != self._seq + 1:
                raise _Behind
            change = AcceptedWrite(key.decode(), version, value, 0)
            self._made(change)
            found.append(replies.changed(change))
        return found

    def _made(self, change: AcceptedWrite) -> None:
        self._seq, self._highest = change.version, max(self._highest, change.version)
        apply_change(self._entries, change)

    # Requests

    async def _announced(self, connection: Connection, frames: list[Frame]) -> list[Frame]:
        """Do what the frames say of this server's place in the fleet; return the others."""
        for frame in frames:
            try:
                if frame.kind == "store.announce":
                    if (order := await self._fleet.announce(connection, self._name, frame.body)) is not None:
                        await self._link.send("store.order", {}, order)
                elif frame.kind == "store.leave":
                    await self._fleet.leave(connection, self._name)
            except psycopg.Error as error:  # such as a full disk: writes of the state are told of it
                if ends_session(error, connection):
                    raise
        return [frame for frame in frames if frame.kind not in ("store.announce", "store.leave")]

    async def _carry_out_next(self, connection: Connection) -> None:
        """Carry out requests that are next to each other: work of the fleet needs no lock, everything else does."""
        of_work = [frame.kind in WORK_REQUESTS for frame in self._inbox]
        frames = self._next_batch(next((n for n, each in enumerate(of_work) if each is not of_work[0]), len(of_work)))
        if of_work[0]:
            await self._carry_out_work(connection, frames)
        elif frames := await self._announced(connection, frames):
            await self._carry_out(connection, frames)
        else:
            self._asked = []

    async def _carry_out_work(self, connection: Connection, frames: list[Frame]) -> None:
        """Carry out requests about work of the fleet in one transaction, and reply."""
        begun = False
        try:
            async with self._postgres.finished(connection):
                await self._postgres.begin(connection)
                begun = True
                found = await self._queue.carry_out(connection, frames)
        except (psycopg.Error, TimeoutError) as error:
            await self._failed(connection, frames, error, unknown=begun and not surely_undone(error))
            return
        self._asked = []
        self._notified = True  # its own work may be for this server
        await self._link.send_all([*self._availability.taken(), *found])

    async def _share_work(self, connection: Connection, *, looks: bool) -> None:
        try:
            await self._queue.turn(connection, looks=looks)
        except psycopg.Error as error:
            if ends_session(error, connection):
                raise
            await self._link.send_all(self._availability.refused(f"PostgreSQL refused it: {reason_of(error)}"))

    async def _carry_out(self, connection: Connection, frames: list[Frame]) -> None:
        """Carry out requests in one transaction, and reply."""
        committing, changed = False, list[StoreReply]()
        try:
            async with self._postgres.finished(connection):
                transaction = await self._decided(connection, frames, changed)
                if transaction.changes_anything:
                    committing = True
                    await transaction.commit(self._postgres, connection, self._name)
        except _Behind:
            self._inbox.extendleft(reversed(frames))
            self._asked = []
            await self._take_all(connection)
            await self._up()
            return
        except (psycopg.Error, TimeoutError, SessionLost) as error:
            await self._link.send_all(changed)
            await self._failed(connection, frames, error, unknown=committing and not surely_undone(error))
            return
        for change in transaction.writes.accepted:
            self._made(change)
        if transaction.messages:
            self._notified = True  # they are read as those of others are
        recovered = self._availability.taken() if committing else ()
        await self._link.send_all([*changed, *recovered, *transaction.replies])
        self._asked = []

    async def _failed(self, connection: Connection, frames: list[Frame], error: Exception, *, unknown: bool) -> None:
        """The transaction has failed. Raises the error if the session has to begin anew."""
        if not isinstance(error, psycopg.Error) or ends_session(error, connection):
            if not unknown:
                self._asked = []
                for frame in frames:
                    await self._refuse(frame, StoreFailure.UNAVAILABLE, f"it was not done: {self._sentence(error)}")
            raise error
        text = f"PostgreSQL refused it: {reason_of(error)}"
        self._asked = []
        await self._link.send_all(self._availability.refused(text))
        for frame in frames:
            await self._refuse(frame, StoreFailure.STORAGE, text)

    async def _decided(
        self, connection: Connection, frames: list[Frame], changed: list[StoreReply]
    ) -> StoreTransaction:
        """Take the lock if something is to be changed, get to know what others have done, and decide.

        What others have changed is added to `changed`, for the hub.
        """
        began = time.monotonic()
        names = sorted({frame.head["name"].encode() for frame in frames if frame.kind in ABOUT_LEASES})
        changing = any(frame.kind in CHANGING for frame in frames)
        execute = self._postgres.execute
        async with connection.pipeline():
            await self._postgres.begin(connection)
            asked = [
                await execute(connection, tables.LOCK if changing else tables.ABOUT),
                await execute(connection, tables.CLOCK),  # after the lock, which may have taken a while
                await execute(connection, tables.CHANGES, (self._seq,)),
            ]
            if names:
                asked += [
                    await execute(connection, tables.TICKS, (names,)),
                    await execute(connection, tables.LEASES, (names,)),
                ]
            found, ((now,),), changes, *leased = [await each.fetchall() for each in asked]
        about = self._check_epoch(self._row(found))
        changed += self._changed(changes)
        ticks, leases = leased or ((), ())
        last = {name.decode(): TickGrant(*rest) for name, *rest in ticks}
        until = {(name.decode(), token): end for name, token, end in leases}
        writes = StateWrites(self._entries, self._limits, self._seq, about.used)
        transaction = StoreTransaction(about, writes, LeaseTable(last, about.token, until), now)
        for frame in frames:
            transaction.handle(frame, began)
        return transaction

    async def _probe_writes(self, connection: Connection) -> None:
        """Try whether writes are still refused, with one that changes nothing."""
        try:
            with self._postgres.bounded(connection):
                await self._postgres.execute(connection, tables.TOUCH)
        except psycopg.Error as error:
            if ends_session(error, connection):
                raise
            await self._link.send_all(self._availability.refused(f"PostgreSQL refused it: {reason_of(error)}"))
        else:
            await self._link.send_all(self._availability.taken())


def _fields(epoch: str, origin: str, head: bytes, body: bytes) -> dict[bytes, bytes]:
    return {b"e": epoch.encode(), b"o": origin.encode(), b"h": head, b"b": body}
