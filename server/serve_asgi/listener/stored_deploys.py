"""Keeps the list of deploys in the shared state's store, so that it survives restarts (--state).

Each server writes its own deploys under a key of its own, when one of them has ended, and reads those of others: no two
servers write one key, so none overwrites what another has written. Keys whose deploys are all too old to be shown are
deleted. Nothing waits for a write; what the store does not take is written again with the next deploy, or when the
store is available again.
"""

from __future__ import annotations

import contextlib
from typing import Any, Final

import msgspec

from serve_asgi.errors import ChannelError
from serve_asgi.hub.core import Hub
from serve_asgi.hub.state.shared_state import SharedState
from serve_asgi.ipc.frames import pack_value
from serve_asgi.listener.deploy_history import KEPT, Deploy, DeployHistory

PREFIX: Final = "serve:deploys:"
"""The keys in the shared state, before the `life` of the server."""
WRITTEN: Final = 20
"""Newest deploys of this server that are written."""
MOST_BYTES: Final = 32 * 1024
"""Most bytes that are written, if --state-value-limit allows that."""
PART_OF_STATE: Final = 64
"""They take at most one part in so many of what --state-limit allows: the rest is the application's."""


class StoredDeploys:
    """The stored deploys of one server."""

    def __init__(self, hub: Hub, history: DeployHistory) -> None:
        self._hub = hub
        self._state = hub.component(SharedState)
        self._history = history
        self._key = PREFIX + history.life
        self._written = -1  # `DeployHistory.changes` of what was written last
        self._refused = False  # the store has not taken it
        self._state.follow(PREFIX, self._read)
        for key in self._state.keys(PREFIX):
            self._read(key, self._state.value(key))

    def write(self, again: bool = False) -> None:
        """Write this server's deploys, if one has changed; `again`: also if the store has not taken them."""
        changed = self._history.changes != self._written
        if self._hub.store_problem or not (changed or (again and self._refused)):
            return
        self._written, self._refused = self._history.changes, False
        if (deploys := self._fitting()) is not None:
            self._state.put(self._key, deploys, self._done)
        for key in self._too_old():
            self._state.put(key, None)

    def _done(self, trouble: str) -> None:
        if trouble:
            self._refused = True

    def _fitting(self) -> list[Any] | None:
        """As many of the newest as fit into one value; None if there are none."""
        deploys = [msgspec.to_builtins(each) for each in self._history.ended()[-WRITTEN:]]
        settings = self._hub.settings
        most = min(MOST_BYTES, settings.value_limit, settings.state_limit // PART_OF_STATE)
        while deploys and len(pack_value(deploys, self._key)) > most:
            del deploys[0]
        return deploys or None

    def _too_old(self) -> list[str]:
        """The keys of others that hold none of the deploys that are shown."""
        newest = {key: max((each.at for each in found), default=0.0) for key, found in self._history.others.items()}
        times = [each.at for each in self._history.own]
        times += [each.at for found in self._history.others.values() for each in found]
        if len(times) <= KEPT:
            return []
        oldest_shown = sorted(times)[-KEPT]
        return [key for key, at in newest.items() if at < oldest_shown]

    def _read(self, key: str, value: Any) -> None:
        """Take the deploys of another server; those that this version does not understand are left out."""
        if key == self._key:
            return
        found: list[Deploy] = []
        for each in value[-KEPT:] if isinstance(value, list) else ():
            with contextlib.suppress(msgspec.ValidationError, ChannelError, RecursionError):
                found.append(msgspec.convert(each, Deploy))
        if found:
            self._history.others[key] = found
        else:
            self._history.others.pop(key, None)
