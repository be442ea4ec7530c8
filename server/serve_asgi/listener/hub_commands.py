"""The commands of the control socket that are for the hub: the shared state, messages and schedules.

It turns requests into calls of the hub and its answers into replies. What is long-lived, a watch, is ended by whoever
asked for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

from serve_asgi.hub.core import Hub
from serve_asgi.hub.messages.broker import MessageBroker
from serve_asgi.hub.messages.topic_report import report
from serve_asgi.hub.schedules.commands import CommandReply, ScheduleCommands
from serve_asgi.hub.schedules.scheduler import Scheduler
from serve_asgi.hub.state.operator_access import OperatorAccess
from serve_asgi.hub.state.shared_state import SharedState

MOST_SHOWN: Final = 12
"""Keys, topics and schedules each that the admin process is told."""
LONGEST_NAME: Final = 60
"""Characters of a name, or of a value, that it is told."""
MOST_CONSUMERS: Final = 2_000
"""With more than these, topics are not listed for it: a report goes through all of them."""
PERIOD: Final = 0.9
"""Seconds for which one report for it is good; it is asked for each second, and with each event."""


class HubCommands:
    """The operator's commands for one hub."""

    def __init__(self, hub: Hub, changed: Callable[[], None]) -> None:
        """`changed` is called after whatever may have changed the hub's next deadline."""
        self._hub = hub
        self._changed = changed
        self.shared = OperatorAccess(hub.component(SharedState))
        self._shown: dict[str, Any] = {}
        self._shown_at = -math.inf

    @property
    def schedules(self) -> ScheduleCommands:
        """Those for schedules."""
        return self._hub.component(Scheduler).commands

    def schedule(self, do: str, name: str, reply: CommandReply) -> None:
        """Pause, resume or run a schedule; `reply` is called with the outcome."""
        self.schedules.do(do, name, reply, by="the command line")
        self._changed()

    def write(
        self, do: str, key: str, value: Any, version: int | None, timeout: float, reply: Callable[[str, int], None]
    ) -> None:
        """Set or delete a shared key; `reply` as for `OperatorAccess`."""
        if do == "set":
            self.shared.set(key, value, version, timeout, reply)
        else:
            self.shared.delete(key, version, timeout, reply)
        self._changed()

    def messages(self, topic: str, most: int) -> dict[str, Any]:
        """The topics (`serve_asgi.hub.messages.topic_report`)."""
        return report(self._hub.component(MessageBroker), topic, most)

    def shown(self, *, values: bool) -> dict[str, Any]:
        """What the page of the admin process shows of the hub; with `values`, also what the shared keys hold."""
        if self._hub.clock() >= self._shown_at + PERIOD:
            self._shown_at = self._hub.clock()
            self._shown = self._made(values)
        return self._shown

    def _made(self, values: bool) -> dict[str, Any]:
        consumers = self._hub.component(MessageBroker).routing.consumers
        few = sum(len(process.consumers) for process in consumers.processes.values()) <= MOST_CONSUMERS
        messages: dict[str, Any] = self.messages("", MOST_SHOWN) if few else {"topics": [], "total": 0}
        metrics = self._hub.metrics()
        return {
            "topics": [
                {name: each[name] for name in ("subscribers", "waiting", "in_flight", "delivered")}
                | {"topic": _cut(each["topic"])}
                for each in messages["topics"]
            ],
            "topics_total": messages["total"],
            "schedules": [_schedule(each) for each in self.schedules.report(most=MOST_SHOWN)],
            "schedules_total": self.schedules.count(),
            "keys": [
                {**each, "key": _cut(each["key"]), "value": _cut(each["value"]) if values else ""}
                for each in self.shared.newest(MOST_SHOWN)
            ],
            "keys_total": int(metrics["state_keys"]),
            "waiting": metrics["messages_waiting"],
        }


def _schedule(found: dict[str, Any]) -> dict[str, Any]:
    last = found["history"][0] if found["history"] else None
    return {
        "name": _cut(found["name"]),
        "when": _cut(found["when"]),
        "on": found["on"],
        "paused": bool(found["paused"]),
        "running": found["runs"],
        "next": found["next"],
        "last": None if last is None else {"outcome": last["outcome"], "at": last["last"], "text": _cut(last["text"])},
    }


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_NAME else text[: LONGEST_NAME - 1] + "…"
