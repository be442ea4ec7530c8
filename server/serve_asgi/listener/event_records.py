"""What has happened is told once: the same record goes to the log and to all who want to know."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from serve_asgi.listener.history import Record
from serve_asgi.supervisor import actions

log = logging.getLogger("serve")


class EventRecorder:
    """That of one listener."""

    def __init__(self, pid_of: Callable[[int], int | None]) -> None:
        """`pid_of` knows the PID of a process by its number in the listener's life, while it has one."""
        self._pid_of = pid_of
        self.to: list[Callable[[Record], None]] = []
        """Who is told besides the log, in this order."""

    def record(self, said: actions.LogEvent) -> None:
        """Log it, and tell everybody who wants to know."""
        level = logging.getLevelName(said.level).lower()
        about = dict(said.about)
        if (number := about.pop("worker", None)) is not None and (pid := self._pid_of(number)) is not None:
            about["pid"] = pid
        extra = {"event": said.event, "about": {**about, "detail": said.detail.rstrip()}}
        log.log(said.level, "%s", said.text, extra=extra)
        what = {"at": round(time.time(), 3), "level": level, "event": said.event, "text": said.text}
        made: Record = {**about, **what, "detail": said.detail}
        for tell in self.to:
            tell(made)
