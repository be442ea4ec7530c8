"""One reload over a fleet, as it lies in the store: its servers in order, how far it has come, and whose turn it is.

    phase of the operation          RUNNING -> DONE, or STOPPED -> RUNNING; any -> TAKING_BACK -> TAKEN_BACK
    of each server, in a reload     WAITING -> ORDERED -> RELOADED or REFUSED -> ORDERED; WAITING -> LEFT or SKIPPED
    in a roll-back                  ORDERED or RELOADED -> TAKING_BACK -> TAKEN_BACK or KEPT -> TAKING_BACK

Whoever carries it out is its operator, for `TURN` from each write on; the store refuses a write by anybody who does not
know the latest version, so that two operators cannot both give orders. It knows no store and no clock.
"""

from __future__ import annotations

import enum
import uuid
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from serve_asgi.cli.command import counted
from serve_asgi.cli.fleet_view import FleetServer
from serve_asgi.errors import StartError

TURN: Final = 20.0
"""Seconds after which an operator that says nothing any more has lost its turn."""
STALE: Final = 3600.0
"""Seconds after which it has to be said whether an unfinished operation is meant."""


class FleetPhase(enum.Enum):
    """The state of the operation."""

    RUNNING = "running"
    STOPPED = "stopped"
    DONE = "done"
    TAKING_BACK = "taking back"
    TAKEN_BACK = "taken back"


class FleetStepState(enum.Enum):
    """The state of one server."""

    WAITING = "waiting"
    ORDERED = "ordered"
    RELOADED = "reloaded"
    REFUSED = "refused"
    LEFT = "left"
    SKIPPED = "skipped"
    TAKING_BACK = "taking back"
    TAKEN_BACK = "taken back"
    KEPT = "kept"


NOT_RELOADED: Final = frozenset({FleetStepState.WAITING, FleetStepState.ORDERED, FleetStepState.REFUSED})
"""What a reload still has to do."""
TO_TAKE_BACK: Final = frozenset(
    {FleetStepState.ORDERED, FleetStepState.RELOADED, FleetStepState.TAKING_BACK, FleetStepState.KEPT}
)
"""What a roll-back still has to do."""


class FleetStep(msgspec.Struct, omit_defaults=True):
    """One server."""

    name: str
    label: str
    state: FleetStepState = FleetStepState.WAITING
    reload: str = ""
    """The order to reload it."""
    rollback: str = ""
    """The order to roll it back."""
    text: str = ""
    """Why it was refused, or not taken back."""


class FleetOperation(msgspec.Struct):
    """The operation."""

    id: str
    who: str
    began: float
    """Unix time, as all times here by the store's clock (s)."""
    steps: list[FleetStep]
    phase: FleetPhase = FleetPhase.RUNNING
    operator: str = ""
    """Who carries it out."""
    touched: float = 0.0
    until: float = 0.0
    """When the operator's turn ends."""
    orders: int = 0
    text: str = ""
    """Why it has stopped."""

    @classmethod
    def begun(cls, who: str, now: float, servers: Sequence[FleetServer]) -> FleetOperation:
        """A reload of these servers, in this order."""
        return cls(uuid.uuid4().hex[:12], who, now, [FleetStep(each.name, each.label) for each in servers])

    @property
    def unfinished(self) -> bool:
        return self.phase in (FleetPhase.RUNNING, FleetPhase.STOPPED, FleetPhase.TAKING_BACK)

    def has_turn(self, now: float) -> bool:
        """Whether somebody carries it out at present."""
        return self.unfinished and self.until > now

    def next_order(self) -> str:
        """The id of an order that no server has had."""
        self.orders += 1
        return f"{self.id}.{self.orders}"

    def in_state(self, *states: FleetStepState) -> list[FleetStep]:
        """The servers in any of these states, in order."""
        return [step for step in self.steps if step.state in states]

    def progress(self) -> str:
        """How far it has come: "1 of 3 servers reloaded (web1:/srv/app)"."""
        taken = self.phase in (FleetPhase.TAKING_BACK, FleetPhase.TAKEN_BACK)
        done = self.in_state(FleetStepState.TAKEN_BACK if taken else FleetStepState.RELOADED)
        said = f"{len(done)} of {counted(len(self.steps), 'server')} {'taken back' if taken else 'reloaded'}"
        return said + (f" ({named(done)})" if done else "")

    def lines(self, now: float) -> Iterator[str]:
        """For `serve fleet status`."""
        state = f"{self.operator} carries it out" if self.has_turn(now) else self.phase.value
        if self.phase is FleetPhase.TAKING_BACK and not self.has_turn(now):
            state = "its roll-back is unfinished"
        elif self.phase is FleetPhase.RUNNING and not self.has_turn(now):
            state = "its operator has gone"
        yield f"reload by {self.who}: {state}; {self.progress()}" + (f". {self.text}" if self.text else "")

    def encoded(self) -> bytes:
        """As it lies in the store."""
        return msgspec.json.encode(self)


_DECODER: Final = msgspec.json.Decoder(FleetOperation)


def operation_from(document: bytes) -> FleetOperation | None:
    """The operation; None if there was none. Raises StartError if this version cannot read it."""
    if not document:
        return None
    try:
        return _DECODER.decode(document)
    except (ValueError, RecursionError) as error:
        raise StartError(
            f"the latest operation over this fleet cannot be read ({error}): it was begun by another version; "
            "`serve fleet reload --restart` begins a new one"
        ) from None


def named(steps: Sequence[FleetStep], most: int = 5) -> str:
    """Their names."""
    more = len(steps) - most
    return ", ".join(step.label for step in steps[:most]) + (f" and {more} more" if more > 0 else "")
