"""What the supervisor's parts decide about one event: the actions, in order, and the time at which it is handled.

All parts share one `Decisions`, so that what they want done keeps its order. It knows nothing of what is decided.
"""

from __future__ import annotations

from typing import Any

from serve_asgi.supervisor import events as e
from serve_asgi.supervisor.lifecycles import Worker


class Decisions:
    """Those about the event that is being handled."""

    def __init__(self) -> None:
        self.now = 0.0
        """CLOCK_MONOTONIC, s."""
        self.count = 0
        """The event's number: who began later has a greater one."""
        self.actions: list[e.Action] = []

    def begin(self, now: float) -> None:
        """Nothing has been decided yet about what is handled from here on."""
        self.now = now
        self.actions = []

    def do(self, *actions: e.Action) -> None:
        """Have this done, after all that was decided before."""
        self.actions += actions

    def say(self, level: int, event: str, text: str, detail: str = "", **about: Any) -> None:
        """Tell what has happened."""
        self.do(e.Say(level, event, text, detail, about))

    def say_of(self, worker: Worker, level: int, event: str, text: str, **about: Any) -> None:
        """`worker` in the record is the number of the process in its listener's life; the shell adds the PID."""
        who = {"worker": worker.id, "generation": worker.generation.number, "slot": worker.slot}
        self.do(e.Say(level, event, text, "", who | about))
