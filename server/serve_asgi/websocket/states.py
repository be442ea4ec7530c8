"""The life of a WebSocket connection as a table: its states, and what may follow what. Pure."""

from __future__ import annotations

import enum
from typing import Final


class WebSocketState(enum.Enum):
    """Where the connection is in its life."""

    HANDSHAKE = "handshake"  # the application has the request and has not answered
    DENYING = "denying"  # the application has begun an HTTP response instead
    RESUMING = "resuming"  # it was open in another life, and the application of this one has not accepted it yet
    OPEN = "open"
    PARTING = "parting"  # the life has been told that it ends, and may still send for a moment
    PARTED = "parted"  # it has ended; all that is written goes out, then the connection is handed over
    LEAVING = "leaving"  # being handed over: neither reads nor writes
    FINISHING = "finishing"  # the client has ended; our answer follows those to its messages, or the deadline
    CLOSING = "closing"  # our close frame is out, the client's is awaited until the deadline
    LINGERING = "lingering"  # all is said: our side is shut down, the client's end is awaited until the deadline
    CLOSED = "closed"


# Bound once: an attribute of an enum costs a lookup for each message.
HANDSHAKE: Final = WebSocketState.HANDSHAKE
DENYING: Final = WebSocketState.DENYING
RESUMING: Final = WebSocketState.RESUMING
OPEN: Final = WebSocketState.OPEN
PARTING: Final = WebSocketState.PARTING
PARTED: Final = WebSocketState.PARTED
LEAVING: Final = WebSocketState.LEAVING
FINISHING: Final = WebSocketState.FINISHING
CLOSING: Final = WebSocketState.CLOSING
LINGERING: Final = WebSocketState.LINGERING
CLOSED: Final = WebSocketState.CLOSED

TRANSITIONS: Final[dict[WebSocketState, frozenset[WebSocketState]]] = {
    HANDSHAKE: frozenset((DENYING, OPEN, RESUMING, LINGERING, CLOSED)),
    DENYING: frozenset((LINGERING, CLOSED)),
    RESUMING: frozenset((OPEN, CLOSING, LINGERING, CLOSED)),
    OPEN: frozenset((PARTING, FINISHING, CLOSING, LINGERING, CLOSED)),
    PARTING: frozenset((PARTED, CLOSING, LINGERING, CLOSED)),
    PARTED: frozenset((LEAVING, RESUMING, CLOSING, LINGERING, CLOSED)),
    LEAVING: frozenset((PARTED, CLOSED)),
    FINISHING: frozenset((LINGERING, CLOSED)),
    CLOSING: frozenset((LINGERING, CLOSED)),
    LINGERING: frozenset((CLOSED,)),
    CLOSED: frozenset(),
}
"""The only ways from state to state."""

BETWEEN_LIVES: Final = frozenset((RESUMING, PARTING, PARTED, LEAVING))
"""What the client sends is kept for the next life, or for this one to begin with."""
