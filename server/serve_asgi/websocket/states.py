"""The life of a WebSocket connection as a table: its states, and what may follow what. Pure."""

from __future__ import annotations

import enum
from typing import Final


class WebSocketState(enum.Enum):
    """Where the connection is in its life."""

    HANDSHAKE = "handshake"  # the application has the request and has not answered
    DENYING = "denying"  # the application has begun an HTTP response instead
    OPEN = "open"
    FINISHING = "finishing"  # the client has ended; our answer follows those to its messages, or the deadline
    CLOSING = "closing"  # our close frame is out, the client's is awaited until the deadline
    LINGERING = "lingering"  # all is said: our side is shut down, the client's end is awaited until the deadline
    CLOSED = "closed"


# Bound once: an attribute of an enum costs a lookup for each message.
HANDSHAKE: Final = WebSocketState.HANDSHAKE
DENYING: Final = WebSocketState.DENYING
OPEN: Final = WebSocketState.OPEN
FINISHING: Final = WebSocketState.FINISHING
CLOSING: Final = WebSocketState.CLOSING
LINGERING: Final = WebSocketState.LINGERING
CLOSED: Final = WebSocketState.CLOSED

TRANSITIONS: Final[dict[WebSocketState, frozenset[WebSocketState]]] = {
    HANDSHAKE: frozenset((DENYING, OPEN, LINGERING, CLOSED)),
    DENYING: frozenset((LINGERING, CLOSED)),
    OPEN: frozenset((FINISHING, CLOSING, LINGERING, CLOSED)),
    FINISHING: frozenset((LINGERING, CLOSED)),
    CLOSING: frozenset((LINGERING, CLOSED)),
    LINGERING: frozenset((CLOSED,)),
    CLOSED: frozenset(),
}
"""The only ways from state to state."""
