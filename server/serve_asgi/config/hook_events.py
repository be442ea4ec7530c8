"""The events that hooks can be attached to, and the syntax of a hook: EVENT=COMMAND or EVENT=MODULE:CALLABLE.

Pure. docs/guides/hooks.md describes the events; `serve_asgi.listener.hooks` runs the hooks.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import shlex
from typing import Final

BEFORE: Final = frozenset({"pre_reload", "canary_check", "pre_drain", "pre_stop"})
"""Events that wait for their hooks."""
OBJECTING: Final = frozenset({"pre_reload", "canary_check"})
"""Those of which a hook that fails prevents what would follow."""

NAMES: Final = {
    "post_reload": "reload_finished",
    "post_rollback": "rollback_finished",
    "post_drain": "drain_started",
    "post_stop": "server_stopped",
}
"""Hooks' names for events of the log (docs/reference/events.md); the events' own names work, too."""

AFTER: Final = frozenset(
    {
        "server_started",
        "reload_requested",
        "reload_started",
        "reload_finished",
        "reload_refused",
        "reload_delayed",
        "canary_started",
        "canary_slowed",
        "canary_undecided",
        "canary_promoted",
        "canary_withdrawn",
        "deploy_confirmed",
        "rollback_started",
        "rollback_finished",
        "rollback_refused",
        "standby_started",
        "standby_ended",
        "generation_ended",
        "worker_started",
        "worker_ready",
        "worker_activated",
        "worker_retire_requested",
        "worker_standby_requested",
        "worker_standby_reached",
        "worker_finished",
        "worker_died",
        "worker_killed",
        "worker_blocked",
        "worker_recycled",
        "slot_failed",
        "agent_started",
        "agent_prepared",
        "agent_delayed",
        "agent_activated",
        "agent_returned",
        "agent_blocked",
        "agent_finish_requested",
        "agent_finished",
        "agent_killed",
        "agent_died",
        "agent_failed",
        "drain_started",
        "drain_ended",
        "workers_scaled",
        "logs_reopened",
        "config_changed",
        "listener_replaced",
        "socket_shut_down",
        "stop_delayed",
        "stop_started",
        "quick_stop_started",
        "server_stopped",
    }
)

_CALLABLE: Final = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*:[^\W\d]\w*(?:\.[^\W\d]\w*)*")


@dataclasses.dataclass(frozen=True, slots=True)
class Hook:
    """One hook."""

    event: str
    """As written: `post_reload`."""
    command: str
    """As written."""
    arguments: tuple[str, ...]
    """The command's words; empty for a callable."""

    @property
    def is_callable(self) -> bool:
        """Whether `command` is module:callable."""
        return not self.arguments

    def wants(self, event: str) -> bool:
        """Whether it is run for this event of the log."""
        return NAMES.get(self.event, self.event) == event

    def __str__(self) -> str:
        return f"hook {self.event}={self.command}"


def read_hook(text: str) -> Hook:
    """Read EVENT=COMMAND. Raises ValueError with a sentence."""
    event, equals, command = (part.strip() for part in text.partition("="))
    event = event.replace("-", "_")
    if not equals or not event or not command:
        raise ValueError(
            f"{text!r} is not a hook: write EVENT=COMMAND, for example post_reload=/usr/local/bin/tell-chat"
        )
    known = BEFORE | AFTER | NAMES.keys()
    if event not in known:
        near = difflib.get_close_matches(event, sorted(known), 1)
        instead = f"did you mean {near[0]}?" if near else "docs/guides/hooks.md lists all of them"
        raise ValueError(f"hooks know no event {event!r}: {instead}")
    if _CALLABLE.fullmatch(command):
        return Hook(event, command, ())
    try:
        words = tuple(shlex.split(command))
    except ValueError as error:
        raise ValueError(f"the command of the hook {event} cannot be read: {str(error).lower()}") from None
    return Hook(event, command, words)
