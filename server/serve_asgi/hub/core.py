"""The hub: the members of one server, and which component handles each frame.

It owns the members (a worker or agent process each, from the decision to start it until it has been reaped) and the
components (presence, messages, shared state, schedules; `serve_asgi.hub.create_hub` puts them together). It knows no
sockets and no processes: it sends through a `HubPort`, and its shell reports what happens, one event after another.
Nothing here waits. The listener runs one over the sockets of its children (`serve_asgi.listener.hub_links`), a process
on its own runs one for itself (`serve_asgi.app.local_mode`).
"""

from __future__ import annotations

import dataclasses
import enum
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Final, Protocol, TypeVar

from serve_asgi.ipc.frames import ValidatedFrame, encode, split_frame
from serve_asgi.ipc.membership_frames import MemberPhase, Role, UpFrame
from serve_asgi.ipc.store_frames import FROM_STORE
from serve_asgi.ipc.untrusted_input import Heads

log = logging.getLogger("serve")
State = dict[str, Any]
NO_STORE: Final = "there is no store"
METRICS: Final = {
    "messages_accepted_total": "Messages that processes of the application sent and the listener accepted.",
    "messages_delivered_total": "Copies of messages that were delivered to a process.",
    "messages_failed_total": "Copies whose handler raised.",
    "messages_redelivered_total": "Acknowledged messages delivered again: a process had died, or a handler raised.",
    "messages_dead_lettered_total": "Acknowledged messages that were given up after max_deliveries.",
    "messages_lost_total": "Copies that were lost with their process, or that no process handles.",
    "messages_waiting": "Copies that wait for a process.",
    "state_keys": "Keys in the shared state.",
    "state_size_bytes": "Size of the shared state: keys, values and 256 bytes for each, as --state-limit counts.",
    "state_changes_total": "Changes of the shared state.",
    "state_lagged_total": "Writes to the shared state that a process had not acknowledged in time.",
    "schedule_runs_total": "Runs of schedules that ended, whatever their outcome.",
    "schedule_failures_total": "Runs of schedules that raised, timed out, were cut or died with their process.",
    "schedule_missed_total": "Ticks of schedules that nothing ran for.",
    "schedules_running": "Runs of schedules in progress.",
}
"""What the components count: names and meanings, for the metrics and their page of the documentation. What ends in
`_total` only grows, also over reloads and a re-exec of the listener."""


class MemberOrder(enum.Enum):
    """The last order that the listener gave a process."""

    START = "start"
    SERVE = "serve"  # a worker of the current generation, or the active agent
    RETIRE = "retire"


@dataclasses.dataclass(slots=True, eq=False)
class Member:
    """A process that takes part."""

    id: int  # unique in the life of the server
    role: Role
    generation: int
    slot: int  # of a worker; -1 for an agent
    order: MemberOrder = MemberOrder.START
    up: bool = False  # it has sent its handlers and schedules
    killed: bool = False  # by the listener: it had not ended in time

    @property
    def phase(self) -> MemberPhase:
        if self.order is MemberOrder.RETIRE:
            return MemberPhase.RETIRING
        if not self.up:
            return MemberPhase.EXPECTED
        return MemberPhase.SERVING if self.order is MemberOrder.SERVE else MemberPhase.UP

    def __str__(self) -> str:
        if self.role is Role.AGENT:
            return f"the agent of generation {self.generation}"
        return f"worker {self.slot} of generation {self.generation}"


class HubPort(Protocol):
    """What the hub needs from its shell; each call returns at once."""

    def send(self, member: int, data: bytes) -> None:
        """Send a frame to a member, in order; if the member has no link, the frame is dropped."""

    def has_room(self, member: int) -> bool:
        """Whether the member's send queue has room; if not, `Hub.room_available` is called when it has."""

    def send_to_store(self, data: bytes) -> None:
        """Send a frame to the store process, if there is one."""

    def report(self, level: int, event: str, text: str, detail: str = "", **about: Any) -> None:
        """Log an event (docs/reference/events.md)."""

    def agent_lease(self, token: int) -> None:
        """This server has the lease of the fleet's agent from now on, with this fencing token; 0: it has it no more."""

    def publish(self, applied: int) -> None:
        """Let every process see at once that the shared state has had `applied` changes."""


class HubComponent:
    """One component of the hub: it handles the frames of its kinds, and hears of every change of a member."""

    name: ClassVar[str]
    """Names its state in a snapshot."""
    kinds: ClassVar[Mapping[str, type]] = {}
    """Kinds of frames from members, each with the struct that validates its head: members are not trusted."""
    store_kinds: ClassVar[frozenset[str]] = frozenset()
    """Kinds of frames from the store process."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub

    def take(self, member: Member, frame: ValidatedFrame) -> None:
        """Handle a frame of one of `kinds`. Raises ChannelError if no member may send it."""

    def takes_from_store(self, frame: ValidatedFrame) -> bool:
        """Whether a frame of one of `store_kinds` is this component's; another one may have the same kinds."""
        return True

    def take_from_store(self, frame: ValidatedFrame) -> None:
        """Handle a frame of one of `store_kinds`. Raises ChannelError if no store may send it."""

    def joined(self, member: Member) -> None:
        """There is a new member, whose process is about to be started."""

    def linked(self, member: Member) -> None:
        """The member's process has been started. It reads frames before it imports anything."""

    def changed(self, member: Member, before: MemberPhase) -> None:
        """The member's phase has changed."""

    def left(self, member: Member) -> None:
        """The member's process has been reaped (or was never started), and all that it sent has been handled."""

    def reason_not_ready(self, member: Member) -> str:
        """Why a member that reports itself ready may not serve; "" if it may."""
        return ""

    def room_available(self, member: Member) -> None:
        """The member's send queue has room again."""

    def store_changed(self) -> None:
        """The store has become available or unavailable (`Hub.store_problem`)."""

    def metrics(self) -> dict[str, float]:
        """Counts and sizes, by the names of `METRICS`; what ends in `_total` only grows."""
        return {}

    def deadline(self) -> float:
        """When `tick` must be called (the hub's clock), or infinity."""
        return math.inf

    def tick(self) -> None:
        """A deadline may have passed."""

    def to_state(self) -> State:
        """What a new program of the listener has to know, in types that MessagePack has."""
        return {}

    def load(self, state: State) -> None:
        """The reverse, called before anything else; the hub has its members by then, linked and in their phases."""


P = TypeVar("P", bound=HubComponent)


@dataclasses.dataclass(frozen=True, slots=True)
class HubSettings:
    """The part of the configuration that the hub needs."""

    agent: bool = False  # the server has one that is active, or will have one soon
    stored: bool = False  # there is a store process
    value_limit: int = 64 * 1024  # bytes of one value of the shared state, encoded
    state_limit: int = 16 * 1024 * 1024  # bytes of all of it (`serve_asgi.hub.state.write_evaluation.entry_size`)
    agent_in_fleet: bool = False  # one server of those that share the store has an agent
    shared: bool = False  # several servers share the store, so that broadcasts reach other servers too
    alone: bool = False  # there is no server, nor will there be others: this process is the fleet


class Hub:
    """The hub of one server. Its components are added right after it has been made (`serve_asgi.hub.create_hub`)."""

    def __init__(
        self,
        port: HubPort,
        settings: HubSettings,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`clock` (s, monotonic) is used for deadlines, `wall` (unix time, s) for schedules."""
        self.port = port
        self.settings = settings
        self.clock = clock
        self.wall = wall
        self.members: dict[int, Member] = {}
        self.ready = False
        """The first generation serves."""
        self.store_problem = NO_STORE if settings.stored else ""
        """Why the store cannot be used at present; "" if it can, or if there is none."""
        self._components: list[HubComponent] = []
        self._by_kind: dict[str, HubComponent] = {}
        self._by_store_kind: dict[str, list[HubComponent]] = {}
        self._heads = Heads({"up": UpFrame})
        self._store_heads = Heads(FROM_STORE)

    def add(self, component: HubComponent) -> None:
        """Add a component."""
        self._components.append(component)
        self._by_kind |= dict.fromkeys(component.kinds, component)
        self._heads.add(component.kinds)
        for kind in component.store_kinds:
            self._by_store_kind.setdefault(kind, []).append(component)

    def component(self, kind: type[P]) -> P:
        """The component of this class. Raises LookupError if there is none."""
        for component in self._components:
            if isinstance(component, kind):
                return component
        raise LookupError(kind.__name__)

    # For the components

    def send(self, member: Member, kind: str, head: dict[str, Any] | None = None, body: bytes = b"") -> None:
        """Send a frame to a member."""
        self.port.send(member.id, encode(kind, head, body))

    def send_to_store(self, kind: str, head: dict[str, Any] | None = None, body: bytes = b"") -> None:
        """Send a frame to the store process."""
        self.port.send_to_store(encode(kind, head, body))

    def in_phase(self, *phases: MemberPhase, role: Role | None = None) -> Iterator[Member]:
        """The members in one of these phases, oldest first; of one role, if it is named."""
        return (m for m in list(self.members.values()) if m.phase in phases and role in (None, m.role))

    # Events

    def join(self, id: int, role: Role, generation: int, slot: int) -> Member:
        """A process is about to be started."""
        member = self.members[id] = Member(id, role, generation, slot)
        for component in self._components:
            component.joined(member)
        return member

    def linked(self, id: int) -> None:
        """The member's process has been started, with a link."""
        for component in self._components:
            component.linked(self.members[id])

    def order(self, id: int, order: MemberOrder) -> None:
        """The listener has ordered the member to serve or to retire."""
        member = self.members[id]
        if order is not member.order:
            self._change(member, order=order)

    def leave(self, id: int) -> None:
        """The member's process has been reaped, or was never started."""
        member = self.members.pop(id)
        for component in self._components:
            component.left(member)

    def server_ready(self) -> None:
        """The first generation serves."""
        if not self.ready:
            self.ready = True
            for component in self._components:
                component.tick()

    def take(self, id: int, data: bytes) -> bool:
        """Handle a frame from a member; return False if this version does not know its kind.

        Raises ChannelError if no member may send it.
        """
        member = self.members[id]
        kind, raw, body = split_frame(data)
        head = self._heads.decode(kind, raw)
        if (component := self._by_kind.get(kind)) is not None:
            component.take(member, ValidatedFrame(kind, head, body))
        elif head is None:
            log.debug("%s sent a frame of kind %.100r, which this version does not know", member, kind)
            return False
        elif not member.up:
            self._change(member, up=True)
        return True

    def take_from_store(self, data: bytes) -> None:
        """Handle a frame from the store process. Raises as `take`."""
        kind, raw, body = split_frame(data)
        if components := self._by_store_kind.get(kind):
            frame = ValidatedFrame(kind, self._store_heads.decode(kind, raw), body)
            for component in components:
                if component.takes_from_store(frame):
                    component.take_from_store(frame)
                    break

    def store_changed(self, trouble: str) -> None:
        """The store is available (""), or `trouble` says why not."""
        if trouble != self.store_problem:
            self.store_problem = trouble
            for component in self._components:
                component.store_changed()

    def reason_not_ready(self, id: int) -> str:
        """Why a member that reports itself ready may not serve: a sentence; "" if it may."""
        return next(filter(None, (component.reason_not_ready(self.members[id]) for component in self._components)), "")

    def room_available(self, id: int) -> None:
        """A member's send queue has room again."""
        for component in self._components:
            component.room_available(self.members[id])

    def metrics(self) -> dict[str, float]:
        """The metrics of all components."""
        return {name: value for component in self._components for name, value in component.metrics().items()}

    def deadline(self) -> float:
        """When `tick` must be called, unless something happens before (the hub's clock); may be infinity."""
        return min((component.deadline() for component in self._components), default=math.inf)

    def tick(self) -> None:
        """Handle the deadlines that have passed."""
        for component in self._components:
            component.tick()

    def _change(self, member: Member, *, order: MemberOrder | None = None, up: bool = False) -> None:
        before = member.phase
        member.order, member.up = order or member.order, member.up or up
        if member.phase is not before:
            for component in self._components:
                component.changed(member, before)

    # A new program of the listener

    def to_state(self) -> State:
        """The members and all components; sockets and processes are the shell's."""
        return {
            "members": [[m.id, m.role.value, m.generation, m.slot, m.order.value, m.up] for m in self.members.values()],
            "ready": self.ready,
            "parts": {component.name: component.to_state() for component in self._components},
        }

    def load(self, state: State) -> None:
        """Restore what `to_state` returned. Raises LookupError, TypeError or ValueError if it is invalid."""
        for id, role, generation, slot, order, up in state["members"]:
            self.members[id] = Member(id, Role(role), generation, slot, MemberOrder(order), up)
        self.ready = state["ready"]
        for component in self._components:
            if (left := state["parts"].get(component.name)) is not None:
                component.load(left)
