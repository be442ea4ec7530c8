"""The life of a WebSocket connection as a table, and the two decisions about time in it. Pure: no clock of its own.

It owns the states and what may follow what, when a ping is due and what its answer's absence means, and the moment at
which a retiring worker closes. It must not know the transport, the framing or the application.
"""

from __future__ import annotations

import enum
import math
import random
from typing import Final

from serve_asgi.config.options import Config

CLOSE_TIMEOUT: Final = 5.0
"""How long the client may take to answer our close frame, in seconds; then the connection is shut down without it."""
FINISH_TIMEOUT: Final = 5.0
"""How long the application may take over the messages that came before the client's end, in seconds."""
LINGER_TIMEOUT: Final = 2.0
"""How long the client may take to close its side after we have shut down ours, in seconds; then it is cut."""
LINGER_BYTES: Final = 256 * 1024
"""What is read and thrown away meanwhile; at more the connection is cut."""
RETIRE_MARGIN: Final = 1.0
"""With `--ws-retire late` the last close comes this long (s) before the graceful timeout: time for its answer."""


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


class PingVerdict(enum.Enum):
    """What the keep-alive asks for when its deadline has passed."""

    PING = "ping"  # send one
    REST = "rest"  # the client is alive: nothing to do until the new deadline
    DEAD = "dead"  # it has not answered


class KeepAlive:
    """Pings in a fixed rhythm.

    Any byte since the ping is as good a sign of life as the pong: in the middle of a large message there can be none.
    """

    __slots__ = ("_asked", "_interval", "_next_ping", "_timeout", "deadline", "heard")

    def __init__(self, config: Config, now: float) -> None:
        self._interval = config.ws_ping_interval or math.inf
        self._timeout = config.ws_ping_timeout
        self._asked = False
        """Whether the deadline is that of the answer to a ping, else that of the next ping."""
        self._next_ping = now + self._interval
        self.deadline = self._next_ping
        """When `expire` is due (loop time, s); infinity if there are no pings."""
        self.heard = False
        """Set by whoever reads; looked at when an answer is due."""

    def expire(self, now: float, deaf: bool, mute: bool = False) -> PingVerdict:
        """The deadline has passed. `deaf` says that the client may have answered, or may not have got the ping yet;
        `mute` that the transport is full, so that a ping would have to wait (that has a deadline of its own).
        """
        if not self._asked:
            if mute:
                self.deadline = self._next_ping = now + self._interval
                return PingVerdict.REST
            self._asked = True
            self.heard = False
            self._next_ping = now + self._interval
            self.deadline = now + self._timeout
            return PingVerdict.PING
        if self.heard or deaf or mute:
            self._asked = False
            self.deadline = max(now, self._next_ping)
            return PingVerdict.REST
        return PingVerdict.DEAD


def closing_moment(config: Config, now: float, deadline: float, share: float | None = None) -> float:
    """When a retiring worker closes this WebSocket (loop time, s), so that the clients do not come back all at once.

    `deadline` is when the graceful timeout ends; `share` (0 to 1, at random if None) is this connection's place in the
        window. Infinity if there is no deadline to be early for.
    """
    window = config.ws_retire_window
    if config.ws_retire == "early":
        first, last = now, now + window
    elif math.isinf(deadline):
        return math.inf
    else:
        first = max(now, deadline - window)
        last = max(first, deadline - RETIRE_MARGIN)
    return first + (last - first) * (random.random() if share is None else share)
