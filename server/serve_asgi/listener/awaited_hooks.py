"""Orders that wait for hooks: a drain for pre_drain, a graceful stop for pre_stop.

It owns the orders that are held meanwhile and releases each one, in order, when its hooks are done or out of time: none
is lost. Everything else passes at once: a second TERM ends the wait, INT and QUIT do not wait. Orders that arrive
behind a waiting drain (a reload, the end of the drain) stay behind it: until it has passed, later orders join the end
of the same queue.
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
    """The hooks of an order are done, or out of time."""

    order: e.Event
    by: str
    """The hooks' event: pre_stop or pre_drain."""


class HookState(enum.Enum):
    """NOT_ASKED -> ASKING -> DONE; pre_drain starts over once the last held order has passed."""

    NOT_ASKED = "not asked"
    ASKING = "asking"  # hooks are running, orders are held
    DONE = "done"  # they pass as they come out of the event queue


class AwaitedHooks:
    """Holds orders until their hooks have run."""

    def __init__(self, hooks: Hooks, post: Callable[[e.Event], None], running: Callable[[], bool]) -> None:
        """`running` returns whether the server is up and not stopping; otherwise orders pass."""
        self.tasks: TaskGroup
        """Set before the first event."""
        self._hooks = hooks
        self._post = post
        self._running = running
        self._stop = self._drain = HookState.NOT_ASKED
        self._stop_scope: anyio.CancelScope
        """Set while pre_stop is ASKING."""
        self._held: list[e.Event] = []
        """The waiting drain, and the orders behind it."""
        self._passing = 0
        """How many of these are in the event queue; pre_drain is DONE while there are any."""

    @property
    def asking(self) -> str:
        """The hooks that orders are held for, pre_stop or pre_drain; "" if none are held."""
        if self._stop is HookState.ASKING:
            return "pre_stop"
        return "pre_drain" if self._drain is not HookState.NOT_ASKED else ""

    def admit(self, event: e.Event, draining: bool) -> e.Event | None:
        """Return the event to handle now, or None if it is held; it will be posted again."""
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
        if self._stop is HookState.ASKING:  # a second time: stop now
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
        if self._drain is HookState.DONE:  # it was queued before the held orders
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
        except Exception:  # a bug of ours must not hold anything up
            log.exception("the hooks %s could not be run", event)
