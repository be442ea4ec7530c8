"""Records each event once (docs/reference/events.md): for the log, for all who follow, and for the history.

The history is bounded, so that a server may run for years: the last records and reloads, and how often workers were
started, by cause.
"""

from __future__ import annotations

import collections
import logging
import time
from collections.abc import Callable
from typing import Any, Final

from serve_asgi.ipc.lifecycle_states import OUTCOMES
from serve_asgi.supervisor import actions

log = logging.getLogger("serve")

RECORDS: Final = 200
RELOADS: Final = 50

Record = dict[str, Any]
"""`at` (unix time, s), `level`, `event`, `text`, `detail` and the event's own fields; JSON-compatible."""

KEPT_OF_RELOADS: Final = ("at", "seconds", "generation", "reason")


class History:
    """What has happened so far; is given every record, in order."""

    def __init__(self) -> None:
        self.records: collections.deque[Record] = collections.deque(maxlen=RECORDS)
        """Those of level info and above."""
        self.reloads: collections.deque[Record] = collections.deque(maxlen=RELOADS)
        """`at`, `outcome` (done, refused), `seconds`, `generation` (absent if it never began), `reason`."""
        self.outcomes: collections.Counter[str] = collections.Counter()
        """Reloads since the start, by outcome."""
        self.reload_seconds: dict[str, float] = {}
        """Total duration by outcome."""
        self.starts: collections.Counter[str] = collections.Counter()
        """Workers started since the start of the server, by cause (`serve_asgi.supervisor.lifecycles.Cause`)."""
        self.began = round(time.time(), 3)
        """When the server was started (unix time, s); setting the clock later does not change it."""

    def to_state(self) -> dict[str, Any]:
        """All of it, JSON-compatible."""
        return {
            "records": list(self.records),
            "reloads": list(self.reloads),
            "outcomes": dict(self.outcomes),
            "reload_seconds": self.reload_seconds,
            "starts": dict(self.starts),
            "began": self.began,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> History:
        """The reverse of `to_state`."""
        history = cls()
        history.records.extend(state["records"])
        history.reloads.extend(state["reloads"])
        history.outcomes.update(state["outcomes"])
        history.reload_seconds = state["reload_seconds"]
        history.starts.update(state["starts"])
        history.began = state.get("began", history.began)
        return history

    def add(self, record: Record) -> None:
        """Keep a record, and what it says about reloads and starts."""
        event = record["event"]
        if event == "worker_started":
            self.starts[record["cause"]] += 1
        if outcome := OUTCOMES.get(event):
            self.outcomes[outcome] += 1
            self.reload_seconds[outcome] = self.reload_seconds.get(outcome, 0.0) + record.get("seconds", 0.0)
            kept: Record = {name: record[name] for name in KEPT_OF_RELOADS if name in record}
            self.reloads.append(kept | {"outcome": outcome})
        if record["level"] != "debug":
            self.records.append(record)


class EventRecorder:
    """Records what happens to one server."""

    def __init__(self, pid_of: Callable[[int], int | None]) -> None:
        """`pid_of` returns the PID of the process with this number, while it has one."""
        self._pid_of = pid_of
        self.recipients: list[Callable[[Record], None]] = []
        """Called with each record, in this order, besides the log."""

    def record(self, said: actions.LogEvent) -> None:
        """Log an event, and pass it to all recipients."""
        level = logging.getLevelName(said.level).lower()
        about = dict(said.about)
        if (number := about.pop("worker", None)) is not None and (pid := self._pid_of(number)) is not None:
            about["pid"] = pid
        extra = {"event": said.event, "about": {**about, "detail": said.detail.rstrip()}}
        log.log(said.level, "%s", said.text, extra=extra)
        what = {"at": round(time.time(), 3), "level": level, "event": said.event, "text": said.text}
        made: Record = {**about, **what, "detail": said.detail}
        for tell in self.recipients:
            tell(made)
