"""Has a worker that serves make the span of a reload that was refused, or of a roll-back (--opentelemetry on).

The listener makes no spans: the application sets up the SDK, in its workers. A reload that is done is traced by a
worker of the new generation, which is told when that began in its first packet; of what ends otherwise there is no such
worker, so one that serves on, or serves again, is told. It must not know whether it traces anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

from serve_asgi.ipc.channel import Packet
from serve_asgi.listener.child import Child
from serve_asgi.listener.event_history import Record
from serve_asgi.supervisor.lifecycles import Generation, Worker

OUTCOMES: Final = {
    "reload_refused": "refused",
    "rollback_refused": "refused",
    "rollback_finished": "rolled_back",
}
"""What the span says of each event."""
REASON_LIMIT: Final = 1_000
"""Characters of the reason."""


class ReloadSpans:
    """Of one listener: is given every record."""

    def __init__(
        self,
        children: Iterable[Child],
        current: Callable[[], Generation | None],
        tell: Callable[[Worker, Packet], Any],
    ) -> None:
        """`current` returns the generation that serves; `tell` sends a worker a packet."""
        self._children = children
        self._current = current
        self._tell = tell
        self._reason = ""
        """Why a roll-back has begun."""

    def happened(self, record: Record) -> None:
        """Tell a worker if this is the end of a reload or roll-back that nobody else traces."""
        event = record["event"]
        if event == "rollback_started":
            self._reason = record["reason"]
        if (outcome := OUTCOMES.get(event)) is None or (worker := self._serving()) is None:
            return
        reason = str(record.get("reason") or self._reason)[:REASON_LIMIT]
        seconds = record.get("seconds", 0.0)
        self._tell(worker, {"type": "reload ended", "outcome": outcome, "reason": reason, "seconds": seconds})

    def _serving(self) -> Worker | None:
        """The worker of the current generation that is in the first slot."""
        current = self._current()
        workers = (child.worker for child in self._children if child.serves)
        found = [each for each in workers if isinstance(each, Worker) and each.generation is current]
        return min(found, key=lambda each: each.slot, default=None)
