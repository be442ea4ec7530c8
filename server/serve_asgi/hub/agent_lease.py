"""The lease of the fleet's agent: of the servers that share a store, the one that holds it may have its agent active.

It decides when to ask the store for the lease, when to renew it, and when it is lost; what follows for the agents the
supervisor decides (`serve_asgi.supervisor.agents`). A server asks while it has an agent that could begin, and gives the
lease up when it has none left. The lease is given up for lost `GRACE` before the store's deadline if it could not be
renewed, so that the agent has ended when another server gets it. Each lease has a fencing token, larger than that of
every earlier one (`serve_asgi.ipc.store_frames`).
"""

from __future__ import annotations

import enum
import logging
import math
import uuid
from typing import ClassVar, Final

from serve_asgi.hub.core import Hub, HubComponent, State
from serve_asgi.ipc.frames import ValidatedFrame
from serve_asgi.ipc.state_frames import RESERVED

LEASE_TIME: Final = 20.0
"""Seconds for which the store grants it."""
RENEW: Final = 5.0
"""Seconds between two renewals."""
ASK: Final = 3.0
"""Seconds between two requests of a server that would take it."""
GRACE: Final = 3.0
"""Seconds before the end of a lease that could not be renewed: the time that the agent has to end."""
FIRST_REQUEST: Final = 1 << 40
"""The ids of requests from here on are this component's; below, those of the schedules."""
MAX_AHEAD: Final = 40.0
"""Seconds that are added to this server's clock, at most, if another one's is ahead of it."""
NAME: Final = f"{RESERVED}agent"


class LeaseState(enum.Enum):
    """IDLE -> ASKING -> IDLE (refused) or HELD; HELD -> IDLE (given up or lost)."""

    IDLE = "idle"
    ASKING = "asking"
    HELD = "held"


class AgentLease(HubComponent):
    """The lease, as one server sees it."""

    name = "agent-lease"
    store_kinds: ClassVar[frozenset[str]] = frozenset({"store.granted", "store.taken", "store.renewed", "store.lost"})

    def __init__(self, hub: Hub) -> None:
        super().__init__(hub)
        self.state = LeaseState.IDLE
        self.token = 0
        """The fencing token of the lease that is held; 0 if none is."""
        self._wanted = False
        self._holder = uuid.uuid4().hex
        self._request = FIRST_REQUEST
        self._ahead = 0.0
        self._until = -math.inf  # of the lease that is held
        self._due = 0.0  # when to ask, or to renew

    def want(self, wanted: bool) -> None:
        """Whether this server has an agent that is active, or could be."""
        if not self.hub.settings.agent_in_fleet or wanted is self._wanted:
            return
        self._wanted = wanted
        if not wanted and self.state is LeaseState.HELD:
            self._give_up("this server's agent has ended")
        self.tick()

    def takes_from_store(self, frame: ValidatedFrame) -> bool:
        if frame.kind in ("store.granted", "store.taken"):
            return bool(frame.head.id >= FIRST_REQUEST)
        return self.token != 0 and bool(frame.head.token == self.token)

    def take_from_store(self, frame: ValidatedFrame) -> None:
        match frame.kind:
            case "store.granted" | "store.taken" if frame.head.id != self._request:
                pass  # a request of an earlier program of the listener
            case "store.granted":
                self._taken(frame.head.token, frame.head.renewed_until)
            case "store.taken":
                self._refused(frame.head.why)
            case "store.renewed":
                self._until = frame.head.renewed_until
            case "store.lost":
                self._lost("the store has let it pass, since it was not renewed in time")

    def store_changed(self) -> None:
        if not self.hub.store_problem and self.state is not LeaseState.ASKING:
            self._due = self.hub.clock()
            self.tick()

    def deadline(self) -> float:
        if self.state is LeaseState.HELD:
            return min(self._due, self._until - GRACE)
        return self._due if self.state is LeaseState.IDLE and self._wanted else math.inf

    def tick(self) -> None:
        now = self.hub.clock()
        if self.state is LeaseState.HELD and now >= self._until - GRACE:
            self._lost("it could not be renewed in time")
        if now < self._due:
            return
        if self.state is LeaseState.HELD:
            self._due = now + RENEW
            self.hub.send_to_store("store.renew", {"name": NAME, "token": self.token, "lease": LEASE_TIME})
        elif self.state is LeaseState.IDLE and self._wanted:
            self._ask()

    def _ask(self) -> None:
        self.state = LeaseState.ASKING
        self._request += 1
        head = {"id": self._request, "name": NAME, "tick": self.hub.wall() + self._ahead, "holder": self._holder}
        self.hub.send_to_store("store.grant", head | {"lease": LEASE_TIME, "exclusive": True})

    def _taken(self, token: int, until: float) -> None:
        self.state, self.token, self._until = LeaseState.HELD, token, until
        self._due = self.hub.clock() + RENEW
        if not self._wanted:
            self._give_up("this server has no agent any more")
            return
        text = "this server has the lease of the fleet's agent"
        self.hub.port.report(logging.INFO, "agent_lease_granted", text, token=token)
        self.hub.port.agent_lease(token)

    def _refused(self, why: str) -> None:
        """Ask again later; the store wants the instants of requests to increase, and clocks differ."""
        self.state = LeaseState.IDLE
        behind = why == "granted" and self._ahead < MAX_AHEAD
        self._ahead = min(MAX_AHEAD, 2 * self._ahead or 1.0) if behind else self._ahead if why == "running" else 0.0
        self._due = self.hub.clock() + (0.0 if behind else ASK)
        if behind:
            self.tick()

    def _give_up(self, why: str) -> None:
        """Let another server have it at once."""
        self.hub.send_to_store("store.release", {"name": NAME, "token": self.token})
        self._end(logging.INFO, "agent_lease_released", f"the lease of the fleet's agent is given up: {why}")

    def _lost(self, why: str) -> None:
        text = (
            f"the lease of the fleet's agent is lost: {why}; this server's agent ends, and another server may have one"
        )
        self._end(logging.WARNING, "agent_lease_lost", text)

    def _end(self, level: int, event: str, text: str) -> None:
        self.hub.port.report(level, event, text, token=self.token)
        self.state, self.token, self._until = LeaseState.IDLE, 0, -math.inf
        self._due = self.hub.clock() + ASK
        self.hub.port.agent_lease(0)

    # A new program of the listener

    def to_state(self) -> State:
        return {
            "state": self.state.value,
            "token": self.token,
            "until": self._until if self.token else 0.0,
            "request": self._request,
            "holder": self._holder,
        }

    def load(self, state: State) -> None:
        self.state, self.token, self._request = LeaseState(state["state"]), state["token"], state["request"]
        self._holder = state["holder"]
        self._until = state["until"] if self.token else -math.inf
        self._wanted = self.state is not LeaseState.IDLE
