"""Work of the fleet in a PostgreSQL: one table, from which servers take rows that no other one has locked.

It shares the connection of `serve_asgi.store.postgres_state`, and needs no lock on the row `about`: what servers post,
take (FOR UPDATE SKIP LOCKED) and settle does not wait for the changes of the shared state. NOTIFY wakes the servers, as
it does for everything else. The tables are `serve_asgi.store.postgres_work_tables`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from serve_asgi.ipc.frames import Frame, pack_value, unpack_value
from serve_asgi.ipc.store_frames import StoreFailure
from serve_asgi.ipc.work_frames import QUEUED, QUEUED_BYTES, WorkOutcome
from serve_asgi.store import postgres_tables, replies
from serve_asgi.store import postgres_work_tables as tables
from serve_asgi.store.listener_link import ListenerLink
from serve_asgi.store.postgres_connector import Connection, PostgresConnector
from serve_asgi.store.replies import StoreReply
from serve_asgi.store.taken_work import TakenWork

Rows = Sequence[tuple[Any, ...]]


class PostgresWorkQueue:
    """The work of one server, over all sessions."""

    def __init__(self, link: ListenerLink, postgres: PostgresConnector, server: str, lease: float) -> None:
        """`server` identifies this server uniquely."""
        self._link = link
        self._postgres = postgres
        self._server = server
        self.taken = TakenWork(lease)

    async def begin(self, connection: Connection) -> None:
        """A session begins: find the topics of the fleet. `store.up` has been sent."""
        with self._postgres.bounded(connection):
            rows = await self._postgres.rows(connection, tables.TOPICS, ([],))
            await self._postgres.execute(connection, tables.FORGET_OLD_OUTCOMES)
        names = [topic.decode() for (topic,) in rows]
        self.taken.begin(names)
        await self._link.send_all(replies.topics(names, fresh=True))

    # Requests

    async def carry_out(self, connection: Connection, frames: Sequence[Frame]) -> list[StoreReply]:
        """Carry out requests in a transaction that has begun, and commit; return the replies."""
        room = await self._waiting(connection, {frame.head["topic"] for frame in frames if frame.kind == "store.post"})
        found: list[tuple[Frame, Any, StoreReply | None]] = []
        async with connection.pipeline():
            for frame in frames:
                refused = self._refusal(frame, room) if frame.kind == "store.post" else None
                cursor = None if refused is not None else await self._request(connection, frame)
                found.append((frame, cursor, refused))
            await self._notify(connection)
            await connection.execute(b"COMMIT")
            rows = [[] if cursor is None else await cursor.fetchall() for _, cursor, _ in found]
        return [refused or self._reply(frame, row, room) for (frame, _, refused), row in zip(found, rows, strict=True)]

    async def _waiting(self, connection: Connection, topics: set[str]) -> dict[str, list[int]]:
        """Of each topic: how many servers handle it, how many messages wait, and their bytes."""
        async with connection.pipeline():
            asked = {
                topic: await self._postgres.execute(connection, tables.WAITING, {"topic": topic.encode()})
                for topic in topics
            }
            return {topic: [int(n or 0) for n in (await cursor.fetchall())[0]] for topic, cursor in asked.items()}

    def _refusal(self, frame: Frame, room: dict[str, list[int]]) -> StoreReply | None:
        """Why a message is not queued; if it is, it counts from now on."""
        topic, size = frame.head["topic"], len(frame.body)
        _, count, bytes = account = room[topic]
        if count >= QUEUED or (count and bytes + size > QUEUED_BYTES):
            return replies.failed(frame.kind, frame.head, StoreFailure.BUSY, replies.queue_full(topic, count))
        account[1:] = count + 1, bytes + size
        return None

    async def _request(self, connection: Connection, frame: Frame) -> Any:
        execute, head = self._postgres.execute, frame.head
        if frame.kind == "store.post":
            topic = head["topic"].encode()
            await execute(connection, tables.NAME_TOPIC, (topic,))
            origin = pack_value(head["origin"], "an origin")
            values = (topic, self._server, head["id"], head["message"], head["ack"], head["limit"], origin, frame.body)
            return await execute(connection, tables.POST, values)
        entry = int(head["entry"])
        if frame.kind == "store.withdraw":
            return await execute(connection, tables.WITHDRAW, (entry,))
        outcome, value = WorkOutcome(head["outcome"]), head["value"]
        if outcome is WorkOutcome.AGAIN:
            return await execute(connection, tables.PUT_BACK, (value, entry, self._server))
        if outcome is WorkOutcome.LOST:
            return await execute(connection, tables.FORGET, (entry, self._server))
        packed = pack_value(value, "an outcome")
        return await execute(connection, tables.FINISH, (entry, self._server, outcome.value, packed))

    def _reply(self, frame: Frame, rows: Rows, room: dict[str, list[int]]) -> StoreReply:
        head = frame.head
        if frame.kind == "store.post":
            more = {"entry": str(rows[0][0]), "handlers": room[head["topic"]][0]}
            return StoreReply("store.posted", {"id": head["id"], **more})
        if frame.kind == "store.withdraw":
            return StoreReply("store.withdrawn", {"id": head["id"], "found": bool(rows)})
        self.taken.settled(head["topic"], head["entry"])
        return StoreReply("store.settled", {"id": head["id"]})

    async def _notify(self, connection: Connection) -> None:
        await self._postgres.execute(
            connection, postgres_tables.NOTIFY, (postgres_tables.channel(self._postgres.schema),)
        )

    # Following

    async def ask_news(self, connection: Connection) -> list[Any]:
        """Ask, within a pipeline, for what `take_news` takes."""
        known = [topic.encode() for topic in self.taken.topics]
        return [
            await self._postgres.execute(connection, tables.TOPICS, (known,)),
            await self._postgres.execute(connection, tables.OUTCOMES, (self._server,)),
        ]

    async def take_news(self, connection: Connection, topics: Rows, outcomes: Rows) -> None:
        """Tell the hub of new topics, and of what has become of work that it has sent."""
        if topics:
            names = [topic.decode() for (topic,) in topics]
            self.taken.topics.update(names)
            await self._link.send_all(replies.topics(names, fresh=False))
        for _, key, outcome, value in outcomes:
            await self._link.send(*replies.outcome(key, outcome, value))
        if outcomes:
            with self._postgres.bounded(connection):
                await self._postgres.execute(connection, tables.FORGET_OUTCOMES, ([row[0] for row in outcomes],))

    # Taking and keeping

    async def turn(self, connection: Connection, *, looks: bool) -> None:
        """Renew the leases if it is time, and take what is wanted if there may be some: if this server `looks`."""
        if self.taken.keep_due():
            with self._postgres.bounded(connection):
                looks |= await self._keep(connection)
        if not (looks or self.taken.changed.is_set()):
            return
        self.taken.changed.clear()
        if wanted := self.taken.wanted():
            counts = {"topics": [topic.encode() for topic in wanted], "counts": list(wanted.values())}
            more = {"server": self._server, "lease": self.taken.lease}
            with self._postgres.bounded(connection):
                rows = await self._postgres.rows(connection, tables.TAKE, counts | more)
            for number, topic, message, tries, ack, limit, origin, body in sorted(rows):
                frame = self.taken.taken(
                    topic.decode(), str(number), message, tries, ack, limit, unpack_value(origin), body
                )
                await self._link.send(*frame)

    async def _keep(self, connection: Connection) -> bool:
        """Say what this server handles and still has; return whether something of dead servers was put back."""
        kept, execute, server, lease = self.taken.to_keep(), self._postgres.execute, self._server, self.taken.lease
        handled = [topic.encode() for topic, (yes, _) in kept.items() if yes]
        given_up = [topic.encode() for topic, (yes, _) in kept.items() if not yes]
        held = [int(entry) for _, entries in kept.values() for entry in entries]
        async with connection.pipeline():
            await execute(connection, tables.HOLD, (lease, server, held))
            await execute(connection, tables.HANDLE, (server, lease, handled))
            await execute(connection, tables.HANDLE_NO_MORE, (server, given_up))
            cursor = await execute(connection, tables.PUT_BACK_LOST, (handled,))
            found = bool(await cursor.fetchall())
        if found:
            await self._notify(connection)
        return found
