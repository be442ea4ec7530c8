"""The record that travels with a connection that one worker hands over to another.

It says all that the receiver must know to go on as if nothing had happened. Deadlines are points in CLOCK_MONOTONIC,
which all processes of the machine share, so that a reload never renews a slow client's time.
"""

from __future__ import annotations

import base64
import dataclasses
import math
from typing import Any

from server.address import Address


@dataclasses.dataclass(frozen=True, slots=True)
class TravelRecord:
    """What is known about an idle HTTP/1.1 connection."""

    leftover: bytes
    """Bytes read since the end of the last request: half a head, or whole requests that were pipelined."""
    client: Address
    server: Address
    deadline: float
    """CLOCK_MONOTONIC, s: when the keep-alive or, with a half-sent head, the head timeout ends; may be infinity."""
    requests: int
    """Requests served on this connection so far."""

    def to_json(self) -> dict[str, Any]:
        """JSON-compatible values, the leftover as base64."""
        return {
            "leftover": base64.b64encode(self.leftover).decode(),
            "client": self.client,
            "server": self.server,
            "deadline": None if math.isinf(self.deadline) else self.deadline,
            "requests": self.requests,
        }

    def with_leftover(self, leftover: bytes) -> TravelRecord:
        """The same record with other leftover bytes, which travelled outside it."""
        return dataclasses.replace(self, leftover=leftover)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> TravelRecord:
        """The reverse of `to_json`."""

        def address(value: list[Any] | None) -> Address:
            return None if value is None else (value[0], value[1])

        deadline = values["deadline"]
        return cls(
            leftover=base64.b64decode(values["leftover"]),
            client=address(values["client"]),
            server=address(values["server"]),
            deadline=math.inf if deadline is None else deadline,
            requests=values["requests"],
        )
