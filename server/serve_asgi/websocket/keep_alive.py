"""When a ping is due on a WebSocket, and what a missing answer means. Pure: no clock of its own."""

from __future__ import annotations

import enum
import math

from serve_asgi.config.options import Config


class PingVerdict(enum.Enum):
    """What the keep-alive asks for when its deadline has passed."""

    PING = "ping"  # send one
    REST = "rest"  # the client is alive: nothing to do until the new deadline
    DEAD = "dead"  # it has not answered


class KeepAlive:
    """Pings at a fixed interval.

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
