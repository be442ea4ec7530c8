"""A hub with all its parts."""

from __future__ import annotations

import time
from collections.abc import Callable

from serve_asgi.hub.hub import Hub, HubSettings, Port
from serve_asgi.hub.messages import Messages
from serve_asgi.hub.presence import Presence
from serve_asgi.hub.state import SharedState
from serve_asgi.hub.ticks import Ticks


def assembled(
    port: Port,
    settings: HubSettings,
    clock: Callable[[], float] = time.monotonic,
    wall: Callable[[], float] = time.time,
) -> Hub:
    """A hub as every server has it."""
    hub = Hub(port, settings, clock, wall)
    state = SharedState(hub)
    # the state before the messages, which would take all the room that there is for a process
    for part in (Presence(hub), state, Messages(hub), Ticks(hub, state)):
        hub.add(part)
    return hub
