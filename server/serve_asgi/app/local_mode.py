"""Local mode: under another server, or in a test, this process runs the hub for itself.

It uses the same cores as the listener, with one member that is worker 0 and the agent as well. Everything is encoded
here too, so that what cannot be sent between processes fails in a test. Frames are delivered in a later turn of the
event loop, as they are between processes.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from typing import Any, Final

from serve_asgi.app import hub_link
from serve_asgi.app.hub_link import Identity, Link
from serve_asgi.hub.core import Hub, HubSettings, MemberOrder
from serve_asgi.hub.create_hub import create_hub
from serve_asgi.hub.schedules.scheduler import Scheduler
from serve_asgi.hub.state.shared_state import SharedState
from serve_asgi.ipc.membership_frames import Role
from serve_asgi.logs.server_log import about as particulars

log = logging.getLogger("serve")

MEMBER = 1


class LocalTime:
    """The time of local hubs, which a test may move ahead (`serve_asgi.pytest_plugin.movable_time`)."""

    def __init__(self) -> None:
        self.ahead = 0.0
        """Seconds, of the real time."""

    def monotonic(self) -> float:
        """Seconds, for deadlines."""
        return time.monotonic() + self.ahead

    def wall(self) -> float:
        """Unix time, for schedules."""
        return time.time() + self.ahead


TIME: Final = LocalTime()


class LocalLink(Link):
    """The link of a process to the hub in itself."""

    def __init__(self, loop: asyncio.AbstractEventLoop, port: LocalHubPort) -> None:
        super().__init__(Identity(Role.WORKER, 0, 0, MEMBER, local=True), loop, port.transmit)
        self.hub = port.hub
        self.servers = 0
        """How many servers of this process use it (`serve_asgi.in_process.local_hub`)."""
        self._port = port

    def begin(self) -> None:
        """Handle the first frames of the hub: with them the shared state can be read."""
        self._port.begin()

    def tick(self) -> None:
        """Have the hub look at the time, which has been moved."""
        self._port.tick()

    def next_instant(self) -> float:
        """When a schedule is due next (unix time), or infinity."""
        return self.hub.component(Scheduler).next_instant()

    def retire(self) -> None:
        """No more work comes to this process; a frame `retire` says when all of it has."""
        self.hub.order(MEMBER, MemberOrder.RETIRE)
        self._port.keep_deadline()

    def end(self) -> None:
        """Nothing is sent or received any more, and nothing remains in the loop."""
        self.close()
        self._port.end()
        hub_link.forget(self)


class LocalHubPort:
    """Sends to the one member through its event loop, and keeps the hub's deadlines."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.hub: Hub
        self.link: LocalLink
        self._timer: asyncio.TimerHandle | None = None
        self._ended = False
        self._first: list[bytes] | None = []  # frames that are sent before `begin`

    def begin(self) -> None:
        first, self._first = self._first or [], None
        for data in first:
            self.link.receive(data)

    def end(self) -> None:
        """Stop the timer; frames under way are dropped."""
        self._ended = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def send(self, member: int, data: bytes) -> None:
        if self._first is not None:
            self._first.append(data)
        else:
            self.loop.call_soon(self._deliver, data)

    def _deliver(self, data: bytes) -> None:
        if not self._ended:
            self.link.receive(data)

    def has_room(self, member: int) -> bool:
        return True

    def send_to_store(self, data: bytes) -> None:
        pass  # there is no store

    def report(self, level: int, event: str, text: str, detail: str = "", **about: Any) -> None:
        log.log(level, "%s", text, extra=particulars(event, detail=detail, **about))

    def agent_lease(self, token: int) -> None:
        pass  # there is no other server

    def publish(self, applied: int) -> None:
        pass  # changes are applied before anything else runs

    def transmit(self, data: bytes) -> None:
        """Send a frame of the member to the hub."""
        self.loop.call_soon(self._take, data)

    def _take(self, data: bytes) -> None:
        if not self._ended:
            self.hub.take(MEMBER, data)
            self.keep_deadline()

    def keep_deadline(self) -> None:
        """Set the timer for the hub's next deadline."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        deadline = self.hub.deadline()
        if deadline < math.inf:
            self._timer = self.loop.call_later(max(0.0, deadline - self.hub.clock()), self.tick)

    def tick(self) -> None:
        """Handle what is due, and set the timer again."""
        self.hub.tick()
        self.keep_deadline()


def create_local_link(loop: asyncio.AbstractEventLoop, before: Link | None = None) -> LocalLink:
    """Make a link to a new hub in this process and loop, with the shared state of the hub of `before`."""
    port = LocalHubPort(loop)
    port.hub = hub = create_hub(port, HubSettings(agent=True, alone=True), TIME.monotonic, TIME.wall)
    if isinstance(before, LocalLink):
        hub.component(SharedState).start_with(*before.hub.component(SharedState).all_entries())
    port.link = made = LocalLink(loop, port)
    hub.join(MEMBER, Role.WORKER, 0, 0)
    hub.order(MEMBER, MemberOrder.SERVE)
    hub.linked(MEMBER)
    hub.server_ready()
    # after what is registered when the link is bound
    loop.call_soon(lambda: made.send("up"))
    port.keep_deadline()
    return made
