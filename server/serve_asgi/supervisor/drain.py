"""Draining: while it lasts, everything is served and only the health endpoint fails.

Set by USR2 it lasts until the next successful reload that began after it; set by the control command, or for a stop, it
lasts until the control command or the end of the server. Setting it again never shortens it.
"""

from __future__ import annotations

import dataclasses
import logging

from serve_asgi.supervisor import actions
from serve_asgi.supervisor import events as e
from serve_asgi.supervisor.actions import Decisions
from serve_asgi.supervisor.lifecycles import Generation


@dataclasses.dataclass(slots=True)
class Drain:
    """How it was set decides how it ends; `began` is the event count, to recognise a reload that began later."""

    by_control: bool
    began: int


class DrainSwitch:
    """Whether the node drains, and until when."""

    def __init__(self, decisions: Decisions) -> None:
        self._decisions = decisions
        self.on: Drain | None = None

    def asked(self, event: e.DrainAsked) -> None:
        """Handle a request to drain, or to end the drain."""
        if event.on:
            self.begin(by_control=event.by_control)
        elif self.on is not None:
            self._end("`serve drain --off`")

    def begin(self, *, by_control: bool, until: str = "`serve drain --off`") -> None:
        """Begin, or prolong, the drain; `until` says what ends one that no reload ends."""
        by_control = by_control or (self.on is not None and self.on.by_control)
        if self.on is None:
            self._decisions.do(actions.SetDrain(True))
            ends = until if by_control else "the next successful reload"
            text = f"drain: the health endpoint fails until {ends}; everything is served"
            self._decisions.say(logging.INFO, "drain_started", text, until=ends)
        self.on = Drain(by_control, self._decisions.count)

    def deployed(self, generation: Generation) -> None:
        """`generation` serves from here on, after a reload."""
        if self.on is not None and not self.on.by_control and self.on.began < generation.began:
            self._end(f"generation {generation.number} serves")

    def _end(self, why: str) -> None:
        self.on = None
        self._decisions.do(actions.SetDrain(False))
        self._decisions.say(logging.INFO, "drain_ended", f"drain ended: {why}", reason=why)
