"""The hub's shell in the listener: each child's link, a socket besides the channel, so that the application's messages
never delay the listener's own packets.

It owns the listener's ends of the links and their send queues, and mirrors the supervisor's processes as the hub's
members. Frames are forwarded in callbacks of the loop, not tasks. They take at most `TURN_BUDGET` of a turn of the
loop, and none in the `REST` turns after it, so that a flood of messages delays no signal. A member that has had no
share of `PATIENCE` turns goes first in the next. Reading never waits for sending: the hub bounds what it queues, as
long as members respect their windows. Members are not trusted: one that breaks the protocol, or does not read what it
has requested, is reported to `broken`.
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import logging
import math
import socket
import time
from collections.abc import Callable
from typing import Any, Final

from serve_asgi.config.options import Config
from serve_asgi.config.state_location import is_url
from serve_asgi.errors import ChannelError
from serve_asgi.hub.agent_lease import AgentLease
from serve_asgi.hub.core import HubSettings, MemberOrder
from serve_asgi.hub.create_hub import create_hub
from serve_asgi.ipc.channel import pair, refuse_descriptors
from serve_asgi.ipc.frame_socket import FrameSocket
from serve_asgi.ipc.frames import pack_value, unpack_value
from serve_asgi.ipc.membership_frames import Role
from serve_asgi.ipc.scoreboard import Header, Scoreboard
from serve_asgi.listener import protocol_violations
from serve_asgi.listener.protocol_violations import RateLimit
from serve_asgi.supervisor import actions
from serve_asgi.supervisor.lifecycles import (
    AT_WORK,
    WARM,
    AgentState,
    AppProcess,
    GenerationState,
    ServerState,
    Worker,
    WorkerState,
)
from serve_asgi.supervisor.supervisor import Supervisor

TURN_BUDGET: Final = 0.00005
"""Seconds of one turn of the loop that may be spent on frames; a frame that has been started is finished."""
REST: Final = 5
"""Turns of the loop without frames after each turn with frames: a signal takes that many turns from its arrival until
it has been handled, and would otherwise be delayed by frames in each of them."""
PATIENCE: Final = 8
"""Turns in which a member with waiting frames may get nothing before it goes first; batches are cheaper."""
MOST_HELD: Final = 1000
"""More frames than the socket of a link can hold."""
MOST_BYTES: Final = 32 * 1024 * 1024
MOST_WAITING: Final = 20_000
"""Bytes and frames that wait for a member which does not read; beyond that it is ended. Unsolicited frames are at most
`ROOM`."""
LAST_TIME: Final = 0.03
"""Seconds of CPU time that the last frames of a process may take: enough for a socket full of ordinary ones."""
UNKNOWN_AT_ONCE: Final = 1000
UNKNOWN_PER_SECOND: Final = 100.0
"""Frames of unknown kinds that one member may send: a later version may send some."""
ROOM: Final = 64
"""Frames queued for a member at which it has no room."""

log = logging.getLogger("serve")

State = dict[str, Any]


class MemberLink(FrameSocket):
    """The listener's end of one link."""

    __slots__ = ("broken", "full", "reading", "unknown")

    def __init__(self, end: socket.socket) -> None:
        super().__init__(end)
        refuse_descriptors(end)
        self.broken = False
        """It has broken the protocol; nothing more is read from it."""
        self.unknown = RateLimit(UNKNOWN_AT_ONCE, UNKNOWN_PER_SECOND)
        self.full = False
        """It has had no room since the last call of `Hub.room`."""
        self.reading = False


class HubLinks:
    """All links of one listener, and its hub (a `serve_asgi.hub.core.HubPort`)."""

    def __init__(
        self,
        settings: HubSettings,
        scoreboard: Scoreboard,
        happened: Callable[[actions.LogEvent], None],
        broken: Callable[[int, str], None],
    ) -> None:
        """`broken(member, why)` is called for a member that breaks the protocol: its process is to be killed."""
        self.hub = create_hub(self, settings)
        self.store: Callable[[bytes], None] | None = None
        """Takes frames for the store process, where there is one."""
        self.leased: Callable[[int], None] | None = None
        """Is told of the lease of the fleet's agent (`HubPort.agent_lease`)."""
        self._scoreboard = scoreboard
        self._happened = happened
        self._broken = broken
        self._links: dict[int, MemberLink] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._due = math.inf
        self._rest = 0  # turns of the loop left without frames
        self._turn_ends: float | None = None  # when frames of the loop's present turn must end
        self._passed: dict[int, int] = {}  # members without a share, and for how many turns in a row
        self._starving: set[int] = set()  # of these, those that go first in the next turn
        self._deferred: list[int] = []  # members that wait for those in this turn

    def start(self) -> None:
        """Serve the links, from within the running loop."""
        self._loop = asyncio.get_running_loop()
        for member in self._links:
            self._read_from(member)
        self.keep_deadline()

    def close(self) -> None:
        """The server has ended."""
        if self._timer is not None:
            self._timer.cancel()
        for member in list(self._links):
            self._forget(member)

    # Members

    def follow(self, supervisor: Supervisor) -> None:
        """Make the supervisor's processes the hub's members. New ones serve before old ones retire."""
        hub = self.hub
        processes: list[AppProcess] = [*supervisor.workers.values(), *supervisor.agents.all.values()]
        for each in sorted(processes, key=lambda process: process.id):
            if each.id not in hub.members:
                role = Role.WORKER if isinstance(each, Worker) else Role.AGENT
                hub.join(each.id, role, each.generation.number, each.slot)
            hub.members[each.id].killed = bool(each.stuck)
        orders = {each.id: _order(each, supervisor) for each in processes}
        if hub.settings.agent != (agent := supervisor.has_agent and supervisor.agents.leased):
            hub.settings = dataclasses.replace(hub.settings, agent=agent)
        for order in (MemberOrder.SERVE, MemberOrder.RETIRE):
            for id, wanted in orders.items():
                if wanted is order:
                    hub.order(id, order)
        for id in [id for id in hub.members if id not in orders]:
            hub.leave(id)
            self._forget(id)
        if supervisor.state is ServerState.RUNNING:
            hub.server_ready()
        hub.component(AgentLease).want(supervisor.agents.could_be_active())
        self.keep_deadline()

    def open(self, member: int) -> socket.socket:
        """Create a member's link; return the end for its process. Raises OSError (EMFILE)."""
        ours, theirs = pair()
        self._links[member] = MemberLink(ours)
        if self._loop is not None:
            self._read_from(member)
        return theirs

    def linked(self, member: int) -> None:
        """The member's process has been started and has its end."""
        self.hub.linked(member)
        self.keep_deadline()

    def read_rest(self, member: int) -> None:
        """The process has been reaped: handle its last frames before its death."""
        link = self._links.get(member)
        ends = time.thread_time() + LAST_TIME
        for _ in range(MOST_HELD):  # and no more: another process may hold its end
            if link is None or time.thread_time() > ends or not self._take_one(member, link):
                break

    async def heard_out(self, member: int) -> None:
        """Handle all frames that a member sent before it reported over its channel that it is ready.

        Others get their turns meanwhile. Of what it sends from then on, no more than its socket holds is handled.
        """
        for _ in range(MOST_HELD):
            if (link := self._links.get(member)) is None or not self._take_one(member, link):
                break
            await asyncio.sleep(0)
        self.keep_deadline()

    def trouble_with(self, member: int) -> str:
        """Why such a member cannot take part; "" if it can."""
        return self.hub.reason_not_ready(member) if member in self._links else ""

    # The hub's port

    def send(self, member: int, data: bytes) -> None:
        link = self._links.get(member)
        if link is None or link.closed or link.broken:
            return
        if not link.send(data) and self._loop is not None:
            self._loop.add_writer(link.socket, self._write, member)
        if len(link.waiting) >= ROOM:
            link.full = True
            if link.bytes > MOST_BYTES or len(link.waiting) > MOST_WAITING:
                self._break(member, link, f"it has not read {len(link.waiting)} frames from its link")
                link.waiting.clear()
                link.bytes = 0

    def has_room(self, member: int) -> bool:
        link = self._links.get(member)
        return link is None or not link.full

    def send_to_store(self, data: bytes) -> None:
        if self.store is not None:
            self.store(data)

    def report(self, level: int, event: str, text: str, detail: str = "", **about: Any) -> None:
        self._happened(actions.LogEvent(level, event, text, detail, about))

    def agent_lease(self, token: int) -> None:
        if self.leased is not None:
            self.leased(token)

    def publish(self, applied: int) -> None:
        self._scoreboard.words[Header.STATE] = applied

    # Reading

    def _read_from(self, member: int) -> None:
        assert self._loop is not None
        link = self._links[member]
        link.reading = True
        self._loop.add_reader(link.socket, self._read, member)
        if link.waiting:
            self._loop.add_writer(link.socket, self._write, member)

    def _read(self, member: int) -> None:
        """Handle a member's frames; those that this turn has no time for stay in the socket."""
        if self._rest:
            return
        assert self._loop is not None
        if self._turn_ends is None:
            self._turn_ends = time.perf_counter() + TURN_BUDGET
            self._loop.call_soon(self._turn_over)
        if self._starving and member not in self._starving:
            self._deferred.append(member)
        else:
            self._take_some(member)

    def _take_some(self, member: int) -> None:
        """Handle a member's frames until there are none left, or no time left in this turn."""
        link = self._links.get(member)
        assert self._turn_ends is not None
        if time.perf_counter() >= self._turn_ends:
            self._passed[member] = passed = self._passed.get(member, 0) + 1
            if passed >= PATIENCE:
                self._starving.add(member)
            return
        if self._passed:
            self._passed.pop(member, None)
            self._starving.discard(member)
        while link is not None and self._take_one(member, link):
            if time.perf_counter() >= self._turn_ends:
                return

    def _turn_over(self) -> None:
        assert self._turn_ends is not None
        if self._deferred:
            if not self._starving or time.perf_counter() < self._turn_ends:  # those that went first are done
                self._starving.clear()
                self._turn_ends = time.perf_counter() + TURN_BUDGET
            for member in self._deferred:
                self._take_some(member)
            self._deferred.clear()
        if time.perf_counter() >= self._turn_ends:  # a single frame now and then needs no rest
            self._rest = REST
            self._let_others()
        self._turn_ends = None
        self.keep_deadline()

    def _let_others(self) -> None:
        """Leave the frames in the sockets for a few turns of the loop, which cost almost nothing."""
        assert self._loop is not None
        self._rest -= 1
        if self._rest:
            self._loop.call_soon(self._let_others)

    def _take_one(self, member: int, link: MemberLink) -> bool:
        """Handle one frame; return False if there is none, or never will be."""
        if link.broken or link.closed:
            return False
        data = link.receive()
        if data is None:
            return False
        try:
            if not data:
                self._stop_reading(link)
                if not link.hung_up:
                    raise ChannelError("a frame is empty")
                return False
            if not self.hub.take(member, data) and not link.unknown.use():
                raise ChannelError("more frames of unknown kinds than any version sends")
        except Exception as error:
            who = self.hub.members.get(member, f"member {member} of the hub")
            self._break(member, link, protocol_violations.reason(who, "link", error))
            return False
        return True

    def _break(self, member: int, link: MemberLink, why: str) -> None:
        """Read nothing more from a member, and have it ended."""
        if not link.broken:
            link.broken = True
            self._stop_reading(link)
            self._broken(member, why)

    def _stop_reading(self, link: MemberLink) -> None:
        if link.reading and self._loop is not None:
            link.reading = False
            self._loop.remove_reader(link.socket)

    # Writing

    def _write(self, member: int) -> None:
        link = self._links[member]
        if link.send_waiting():
            assert self._loop is not None
            self._loop.remove_writer(link.socket)
            if link.full:
                link.full = False
                if member in self.hub.members:
                    self.hub.room_available(member)
                    self.keep_deadline()

    def _forget(self, member: int) -> None:
        self._passed.pop(member, None)
        self._starving.discard(member)
        link = self._links.pop(member, None)
        if link is not None:
            if self._loop is not None:
                self._loop.remove_reader(link.socket)
                self._loop.remove_writer(link.socket)
            link.close()

    # Deadlines

    def keep_deadline(self) -> None:
        """Schedule the hub's next deadline."""
        if self._loop is None:
            return
        due = self.hub.deadline()
        if due != self._due:
            if self._timer is not None:
                self._timer.cancel()
            self._due = due
            delay = max(0.0, due - self.hub.clock())
            self._timer = self._loop.call_later(delay, self._tick) if due < math.inf else None

    def _tick(self) -> None:
        self._due, self._timer = math.inf, None
        try:
            self.hub.tick()
        except Exception:
            log.exception("the hub could not handle a deadline; please report this")
        self.keep_deadline()

    # Re-exec

    def to_state(self, descriptors: list[int]) -> State:
        """All of it, JSON-compatible; adds the links' sockets to `descriptors`."""
        descriptors += [link.socket.fileno() for link in self._links.values()]
        return {
            "hub": _as_text(self.hub.to_state()),
            "links": {
                str(member): {
                    "fd": link.socket.fileno(),
                    "queue": [base64.b64encode(data).decode() for data in link.waiting],
                    "full": link.full,
                }
                for member, link in self._links.items()
            },
        }

    def load(self, state: State) -> None:
        """Take over another program's links. Raises LookupError, TypeError or ValueError if `state` is invalid."""
        for member, each in state["links"].items():
            link = self._links[int(member)] = MemberLink(socket.socket(fileno=each["fd"]))
            for data in each["queue"]:
                link.put(base64.b64decode(data))
            link.full = each["full"]
        self.hub.load(_from_text(state["hub"]))


def hub_settings(config: Config) -> HubSettings:
    """The hub's part of the configuration."""
    shared = is_url(config.state)
    return HubSettings(
        agent=bool(config.agent),
        stored=bool(config.state),
        value_limit=config.state_value_limit,
        state_limit=config.state_limit,
        agent_in_fleet=config.agent_scope == "cluster",
        shared=shared,
    )


def _order(worker: AppProcess, supervisor: Supervisor) -> MemberOrder:
    if not isinstance(worker, Worker):
        if worker.state in AT_WORK:
            return MemberOrder.SERVE
        return MemberOrder.RETIRE if worker.state in _AGENT_LEAVES else MemberOrder.START
    if worker.state in _WORKER_LEAVES or worker.generation.state is GenerationState.RETURNING:
        return MemberOrder.RETIRE
    serves = worker.state is WorkerState.SERVING and worker.generation is supervisor.current
    return MemberOrder.SERVE if serves else MemberOrder.START


_WORKER_LEAVES: Final = WARM | {WorkerState.RETIRING, WorkerState.ENDING}
_AGENT_LEAVES: Final = frozenset({AgentState.FINISHING, AgentState.KILLED, AgentState.ENDING})


def _as_text(state: State) -> str:
    return base64.b64encode(pack_value(state, "the state of the hub")).decode()


def _from_text(text: str) -> State:
    state: State = unpack_value(base64.b64decode(text))
    return state
