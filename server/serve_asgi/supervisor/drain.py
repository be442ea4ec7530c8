"""The lame duck: while it is on, everything is served and only the health endpoint says no.

Set by USR2 it lasts until the next successful reload that began after it; set by the control command, or for a stop, it
lasts until told off. Setting it again never shortens it.
"""

from __future__ import annotations

import dataclasses
import logging

from serve_asgi.supervisor import events as e
from serve_asgi.supervisor.decisions import Decisions
from serve_asgi.supervisor.lifecycles import Generation


@dataclasses.dataclass(slots=True)
class LameDuck:
    """Who set it decides how it ends; `began` is the event count, to tell a reload that began later."""

    by_control: bool
    began: int


class LameDuckSwitch:
    """That of one server."""

    def __init__(self, decisions: Decisions) -> None:
        self._decisions = decisions
        self.on: LameDuck | None = None

    def asked(self, event: e.LameDuckAsked) -> None:
        """It is to be on, or off."""
        if event.on:
            self.begin(by_control=event.by_control)
        elif self.on is not None:
            self._end("told off")

    def begin(self, *, by_control: bool) -> None:
        """It is to be on."""
        by_control = by_control or (self.on is not None and self.on.by_control)
        if self.on is None:
            self._decisions.do(e.SetLameDuck(True))
            until = "until it is told off" if by_control else "until the next successful reload"
            text = f"lame duck: the health endpoint says no {until}; everything is served"
            ends = "told off" if by_control else "the next reload"
            self._decisions.say(logging.INFO, "lame_duck_on", text, until=ends)
        self.on = LameDuck(by_control, self._decisions.count)

    def deployed(self, generation: Generation) -> None:
        """`generation` serves from here on, by a reload."""
        if self.on is not None and not self.on.by_control and self.on.began < generation.began:
            self._end(f"generation {generation.number} serves")

    def _end(self, why: str) -> None:
        self.on = None
        self._decisions.do(e.SetLameDuck(False))
        self._decisions.say(logging.INFO, "lame_duck_off", f"lame duck ended: {why}", reason=why)
