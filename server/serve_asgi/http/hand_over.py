"""How a connection leaves for another worker, idle or between two lives of a response: its side of a hand-over.

It owns the state LEAVING and the record of what came with the connection and goes with it. Rules: a connection that
leaves is neither read nor written; until the hand-over is committed it can stay and go on exactly as before; once it is
gone its client sees nothing of this end, since a duplicate lives elsewhere. It must not know how the worker finds a
receiver and what the two say to each other: that is `serve_asgi.worker.hand_over_sender`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
from typing import Protocol

from serve_asgi.http.client_socket import duplicate
from serve_asgi.http.connection_states import CLOSED, IDLE, LEAVING, ConnectionState
from serve_asgi.http.hand_over_record import HandOverRecord
from serve_asgi.http.survival_record import SurvivalRecord
from serve_asgi.http.underlying_tls import UnderlyingTls


class LeavingConnection(Protocol):
    """A connection, as far as its hand-over needs it."""

    state: ConnectionState
    deadline: float
    transport: asyncio.Transport
    tls: UnderlyingTls | None

    def become(self, state: ConnectionState) -> None:
        """Change the state, by a way that the table has."""

    def adjust_reading(self) -> None:
        """Pause reading while the state is LEAVING, and read on otherwise."""

    def forget(self) -> None:
        """The worker has one connection less."""


class HandOver:
    """Of one connection. With a `record`, another worker has handed it over to this one."""

    __slots__ = ("_before", "_record", "_survival", "refused")

    def __init__(self, record: HandOverRecord | None, survival: SurvivalRecord | None = None) -> None:
        """`survival`: the connection is in use, and this is what the next life of its response begins with."""
        self._record = record
        self._survival = survival
        self._before = IDLE
        self.refused = False
        """No worker that serves now could go on with it: one of its protocols is off there, or another version's."""

    def arrived(self) -> HandOverRecord | None:
        """What came with the connection; once, when its transport is attached."""
        record, self._record = self._record, None
        return record

    def next_life(self) -> SurvivalRecord | None:
        """What came with a connection that is in use; once."""
        survival, self._survival = self._survival, None
        return survival

    def leave(self, connection: LeavingConnection, record: HandOverRecord) -> tuple[int, HandOverRecord]:
        """Stop reading and writing; a duplicate of the descriptor, which the caller owns, and all that travels with it.

        Raises OSError, with nothing changed, if there is no descriptor to be had.
        """
        descriptor = duplicate(connection.transport)
        self._before = connection.state
        connection.become(LEAVING)
        connection.deadline, self._record = math.inf, record
        connection.adjust_reading()
        if connection.tls is not None:
            record = dataclasses.replace(record, tls=connection.tls.move().to_json())
        return descriptor, record

    def stay(self, connection: LeavingConnection) -> bool:
        """The hand-over has failed: as before it. False if the client has gone meanwhile."""
        record, self._record = self._record, None
        if connection.state is not LEAVING or record is None:
            return False
        connection.become(self._before)
        connection.deadline = record.deadline
        if connection.tls is not None:
            connection.tls.unmove()
        connection.adjust_reading()
        return True

    def commit(self, connection: LeavingConnection) -> bool:
        """The hand-over is committed: drop this end. False if the client has gone meanwhile."""
        if connection.state is not LEAVING:
            return False
        connection.become(CLOSED)
        connection.forget()
        connection.transport.abort()  # closes the descriptor; no shutdown, which would reach the duplicate too
        return True
