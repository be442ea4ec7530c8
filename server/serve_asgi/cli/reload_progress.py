"""The progress of a reload, and the two plain ways to show it: a line for each step, or a JSON object.

Each display (these, and the live view) gets the same: each record as it happens, the server's status now and then, and
the outcome.
"""

from __future__ import annotations

import dataclasses
import json
import time
from typing import Any, Final, Protocol

from serve_asgi.cli.command import counted, span, tell, tell_outcome

FRAME: Final = 0.15
"""Seconds between two requests for the status, for a live view."""
LOOK: Final = 5.0
"""Seconds without news after which the status is requested, and between two lines of progress."""
STEPS: Final = frozenset({"worker_ready", "worker_died", "worker_killed", "agent_prepared", "agent_finish_requested"})
"""Events of level debug that are shown nevertheless."""
ENDS: Final = frozenset({"reload_finished", "reload_refused", "rollback_finished", "rollback_refused"})
"""Events that the outcome reports anyway."""


@dataclasses.dataclass(frozen=True, slots=True)
class OlderGenerations:
    """What the older generations still have to do, and what they have done."""

    generations: tuple[int, ...]
    handed_over: int
    requests: int
    oldest: float
    """Seconds that the oldest request in progress has taken so far; 0 if unknown."""
    lost: int
    standing_by: tuple[int, ...] = ()
    """Those that have nothing left to do and stay for a roll-back."""

    def text(self) -> str:
        """All of it, as a sentence."""
        parts = [f"{counted(self.handed_over, 'connection')} handed over"] if self.handed_over else []
        if not self.generations:
            lost = f"{counted(self.lost, 'request')} cut" if self.lost else "nothing was cut"
            stands = "".join(f"generation {number} stands by" for number in self.standing_by)
            return "; ".join([*parts, stands or "all older workers have ended", lost])
        one = len(self.generations) == 1
        which = ("generation " if one else "generations ") + " and ".join(map(str, self.generations))
        if not self.requests:
            return "; ".join([*parts, f"{which} {'ends' if one else 'end'}"])
        verb = "is" if one else "are"
        oldest = f", the oldest for {span(self.oldest)}" if self.oldest else ""
        return "; ".join([*parts, f"{which} {verb} finishing {counted(self.requests, 'request')}{oldest}"])


def remains(before: dict[str, Any], seen: dict[str, Any]) -> OlderGenerations:
    """The remaining work according to the status `seen`, compared with the status before the reload."""
    others, older = _others(seen), _older(seen)
    return OlderGenerations(
        tuple(sorted({w["generation"] for w in older})),
        seen["totals"]["handed_over"] - before["totals"]["handed_over"],
        sum(w["in_flight"] + w["websockets"] for w in older),
        max((w.get("oldest") or 0.0 for w in older), default=0.0),
        seen.get("lost", 0) - before.get("lost", 0),
        tuple(sorted({w["generation"] for w in others if w.get("state") == "standby"})),
    )


def _others(seen: dict[str, Any]) -> list[dict[str, Any]]:
    """The workers that do not serve any more: older ones, and after a roll-back newer ones."""
    return [w for w in seen["workers"] if w["generation"] not in (seen["generation"], seen.get("starting"))]


def _older(seen: dict[str, Any]) -> list[dict[str, Any]]:
    """Those of them that have something left to do."""
    return [w for w in _others(seen) if w.get("state") != "standby"]


def settled(seen: dict[str, Any]) -> bool:
    """Whether the older workers hold only busy connections."""
    return all(w["connections"] <= w["in_flight"] + w["websockets"] for w in _older(seen))


class ReloadDisplay(Protocol):
    """A display of a reload's progress; used as a context manager around it."""

    pause: float
    """Seconds between two requests for the status while nothing happens."""

    def __enter__(self) -> Any: ...

    def __exit__(self, *_: object) -> None: ...

    def happened(self, record: dict[str, Any]) -> None:
        """Show a record."""

    def seen(self, status: dict[str, Any]) -> None:
        """Show the server's current status."""

    def outcome(self, response: dict[str, Any]) -> None:
        """Show the outcome: the new generation serves, or was refused."""

    def left(self, remains: OlderGenerations) -> None:
        """Show what is left to do when this command is about to end."""


class ReloadLines:
    """One plain line for each step."""

    pause = LOOK

    def __init__(self, before: dict[str, Any]) -> None:
        self._before = before
        self._next = time.monotonic() + LOOK
        self._told = ""

    def __enter__(self) -> ReloadLines:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def happened(self, record: dict[str, Any]) -> None:
        event = record["event"]
        if event not in ENDS and (record["level"] != "debug" or event in STEPS):
            tell(record["text"])

    def seen(self, status: dict[str, Any]) -> None:
        if status["generation"] != self._before["generation"] and time.monotonic() >= self._next:
            self._next = time.monotonic() + LOOK
            self._tell_once(remains(self._before, status).text())

    def outcome(self, response: dict[str, Any]) -> None:
        if response["ok"]:
            tell(response["text"])

    def left(self, remains: OlderGenerations) -> None:
        self._tell_once(remains.text())

    def _tell_once(self, text: str) -> None:
        if text != self._told:
            self._told = text
            tell(text)


class ReloadRecords:
    """One JSON object per line: the records, then the outcome."""

    pause = LOOK

    def __enter__(self) -> ReloadRecords:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def happened(self, record: dict[str, Any]) -> None:
        tell(json.dumps(record))

    def seen(self, status: dict[str, Any]) -> None:
        pass

    def outcome(self, response: dict[str, Any]) -> None:
        self._response = response

    def left(self, remains: OlderGenerations) -> None:
        tell_outcome(True, self._response["text"], detail="", **dataclasses.asdict(remains))
