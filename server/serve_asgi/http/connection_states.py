"""The life of an HTTP/1.1 connection as a table, also of one that still awaits its PROXY protocol header. Pure."""

from __future__ import annotations

import enum
from typing import Final


class ConnectionState(enum.Enum):
    """Of a connection."""

    NEW = "new"  # not attached yet
    IDLE = "idle"  # no request in progress; half a head may be in the buffer
    REQUEST = "request"  # a request is in progress
    PARTED = "parted"  # between two lives of a response: it is written out and handed over
    DISCARDING = "discarding"  # answered; the rest of that request's body is read and dropped
    CLOSING = "closing"  # the last response is being written, then the client's end awaited
    LEAVING = "leaving"  # being handed over: neither reads nor writes
    UPGRADED = "upgraded"  # another protocol has the transport
    CLOSED = "closed"


NEW: Final = ConnectionState.NEW
IDLE: Final = ConnectionState.IDLE
REQUEST: Final = ConnectionState.REQUEST
PARTED: Final = ConnectionState.PARTED
DISCARDING: Final = ConnectionState.DISCARDING
CLOSING: Final = ConnectionState.CLOSING
LEAVING: Final = ConnectionState.LEAVING
UPGRADED: Final = ConnectionState.UPGRADED
CLOSED: Final = ConnectionState.CLOSED

TRANSITIONS: Final = {
    NEW: {IDLE, REQUEST},
    IDLE: {REQUEST, CLOSING, LEAVING, UPGRADED, CLOSED},
    REQUEST: {IDLE, DISCARDING, PARTED, CLOSING, CLOSED},
    PARTED: {REQUEST, LEAVING, CLOSING, CLOSED},
    DISCARDING: {IDLE, CLOSING, CLOSED},
    CLOSING: {CLOSED},
    LEAVING: {IDLE, PARTED, CLOSED},
    UPGRADED: set[ConnectionState](),
    CLOSED: set[ConnectionState](),
}
"""The only ways from state to state."""


def check_transition(before: ConnectionState, after: ConnectionState) -> None:
    """Raises AssertionError."""
    assert after in TRANSITIONS[before], f"{before} -> {after}"
