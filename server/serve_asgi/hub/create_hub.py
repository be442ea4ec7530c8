"""A hub with all its components: the one module that knows them all, each of which imports `serve_asgi.hub.core`."""

from __future__ import annotations

import time
from collections.abc import Callable

from serve_asgi.hub.agent_lease import AgentLease
from serve_asgi.hub.core import Hub, HubPort, HubSettings
from serve_asgi.hub.messages.broker import MessageBroker
from serve_asgi.hub.presence import PresenceBroadcast
from serve_asgi.hub.schedules.scheduler import Scheduler
from serve_asgi.hub.state.shared_state import SharedState


def create_hub(
    port: HubPort,
    settings: HubSettings,
    clock: Callable[[], float] = time.monotonic,
    wall: Callable[[], float] = time.time,
) -> Hub:
    """A hub as every server has it."""
    hub = Hub(port, settings, clock, wall)
    state = SharedState(hub)
    # the state before the messages, which would take all the room that there is for a process
    for part in (PresenceBroadcast(hub), state, MessageBroker(hub), AgentLease(hub), Scheduler(hub, state)):
        hub.add(part)
    return hub
