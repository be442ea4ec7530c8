"""Orders that wait for their hooks: the drain for pre_drain, a graceful stop for pre_stop.

It owns the orders that are held back meanwhile and gives each one back, in order, when its hooks are done or out of
time: none is lost. Everything else passes at once: a second TERM ends the waiting, INT and QUIT wait for nothing. What
was asked for behind a drain that waits (a reload, the end of the drain) stays behind it: until it has passed,
later orders go to the end of the same queue.
"""

from __future__ import annotations

import dataclasses
import enum
import logging
import time
from collections.abc import Callable
from typing import Any

import anyio
from anyio.abc import TaskGroup

from serve_asgi.listener.hooks import Hooks
from serve_asgi.supervisor import events as e

log = logging.getLogger("serve")


@dataclasses.dataclass(frozen=True, slots=True)
class HooksDone(e.Event):
    """An order that has waited long enough."""

    order: e.Event
    by: str
    """What has been asked: pre_stop or pre_drain."""


class HookState(enum.Enum):
    """NOT_ASKED -> ASKING -> DONE; those before the drain are asked anew once the last order held has passed."""

    NOT_ASKED = "not asked"
    ASKING = "asking"  # hooks are being run, orders are held
    DONE = "done"  # they pass, as they come out of the queue of events


class AwaitedHooks:
    """Holds orders back until their hooks have run."""

    def __init__(self, hooks: Hooks, post: Callable[[e.Event], None], running: Callable[[], bool]) -> None:
        """`running` says whether the server is up and not about to stop: else orders pass."""
        self.tasks: TaskGroup
        """Set before the first event."""
        self._hooks = hooks
        self._post = post
        self._running = running
        self._stop = self._drain = HookState.NOT_ASKED
        self._stop_scope: anyio.CancelScope
        """Set while the hooks before the stop are ASKING."""
        self._held: list[e.Event] = []
        """The drain that waits, and what was asked for behind it."""
        self._passing = 0
        """Of these: how many are in the queue of events; those before the drain are DONE while there are any."""

    @property
    def asking(self) -> str:
        """What orders are held for, pre_stop or pre_drain; "" if none are."""
        if self._stop is HookState.ASKING:
            return "pre_stop"
        return "pre_drain" if self._drain is not HookState.NOT_ASKED else ""

    def admit(self, event: e.Event, draining: bool) -> e.Event | None:
        """The event that is to be handled now, or None: it is held and will come again."""
        if isinstance(event, HooksDone):
            if event.by == "pre_drain":
                self._passing -= 1
                self._drain = HookState.DONE if self._passing else HookState.NOT_ASKED
            return event.order
        if isinstance(event, e.StopAsked):
            return self._admit_stop(event)
        if isinstance(event, e.QuickStopAsked) and self._stop is HookState.ASKING:
            self._stop = HookState.DONE
            self._stop_scope.cancel()
        elif isinstance(event, (e.DrainAsked, e.ReloadAsked)):
            return self._admit_to_drain(event, draining)
        return event

    def _admit_stop(self, event: e.StopAsked) -> e.Event | None:
        if self._stop is HookState.ASKING:  # told twice: now
            self._stop = HookState.DONE
            self._stop_scope.cancel()
            return event
        if self._stop is HookState.NOT_ASKED and self._running() and self._hooks.any("pre_stop"):
            self._stop, self._stop_scope = HookState.ASKING, anyio.CancelScope()
            self.tasks.start_soon(self._ask_before_stop, event)
            return None
        return event

    async def _ask_before_stop(self, event: e.StopAsked) -> None:
        with self._stop_scope:
            await self._ask("pre_stop", "the server is about to stop")
        if self._stop is HookState.ASKING:
            self._stop = HookState.DONE
            self._post(HooksDone(event, "pre_stop"))

    def _admit_to_drain(self, event: e.Event, draining: bool) -> e.Event | None:
        if self._drain is HookState.ASKING:
            self._held.append(event)
            return None
        if self._drain is HookState.DONE:  # it was in the queue before what was held is
            self._pass(event)
            return None
        begins = isinstance(event, e.DrainAsked) and event.on and not draining
        if begins and self._running() and self._hooks.any("pre_drain"):
            self._drain = HookState.ASKING
            self._held = [event]
            self.tasks.start_soon(self._ask_before_drain)
            return None
        return event

    async def _ask_before_drain(self) -> None:
        try:
            await self._ask("pre_drain", "the server is about to drain")
        finally:
            held, self._held = self._held, []
            self._drain = HookState.DONE
            for order in held:
                self._pass(order)

    def _pass(self, order: e.Event) -> None:
        self._passing += 1
        self._post(HooksDone(order, "pre_drain"))

    async def _ask(self, event: str, text: str) -> None:
        record: dict[str, Any] = {"at": round(time.time(), 3), "level": "info", "event": event, "text": text}
        try:
            await self._hooks.before(event, record)
        except Exception:  # a bug of ours holds up nothing
            log.exception("the hooks %s could not be run", event)
