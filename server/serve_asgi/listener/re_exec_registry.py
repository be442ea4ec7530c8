"""The registry of all state that a listener carries over to the program that replaces it in the same process.

The snapshot consists of plain values, each under the name of a `Piece`, and open descriptors. A descriptor keeps its
number over execve(2), so values refer to it by number; `descriptors` lists all that must stay open. Taking a snapshot
closes nothing. Processes that can be restarted (the admin process, the file watcher) are not carried over: they exit
when their channels close.

Each part is written and read by its own `to_state` and the reverse. This module lists the parts, and what is
deliberately left out of each (`MADE_ANEW`, `CARRIED`); a test compares both with the classes, so that an added
attribute cannot be forgotten here. The rules of the format, since two listeners may be two minor versions apart in
either direction (law 11): a member may be added if a program can work without it (its `Piece` then has a `default`); no
member is removed or changes its meaning while the other program may need it.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from serve_asgi import __version__
from serve_asgi.config.sources import Settings
from serve_asgi.errors import UsageError
from serve_asgi.hub.agent_lease import AgentLease
from serve_asgi.hub.core import Hub, HubComponent
from serve_asgi.hub.messages.broker import MessageBroker
from serve_asgi.hub.messages.dead_letters import LossReports
from serve_asgi.hub.messages.fleet_work import FleetWork
from serve_asgi.hub.presence import PresenceBroadcast
from serve_asgi.hub.schedules.commands import ScheduleCommands
from serve_asgi.hub.schedules.definitions import ScheduleRegistry
from serve_asgi.hub.schedules.schedule_state import ScheduleState
from serve_asgi.hub.schedules.scheduler import Scheduler
from serve_asgi.hub.state.entries import StoreChanges
from serve_asgi.hub.state.pending_requests import PendingRequests
from serve_asgi.hub.state.replication import MemberReplica, Replication
from serve_asgi.hub.state.shared_state import SharedState
from serve_asgi.ipc.channel import PROTOCOL, SendQueue, speaks
from serve_asgi.ipc.path_lock import PathLock
from serve_asgi.ipc.scoreboard import Scoreboard
from serve_asgi.listener.admin_process import AdminProcess
from serve_asgi.listener.certificate_watch import CertificateWatch
from serve_asgi.listener.child import Child
from serve_asgi.listener.children import Children
from serve_asgi.listener.control_server import ControlServer
from serve_asgi.listener.deploy_history import DeployHistory
from serve_asgi.listener.event_history import History
from serve_asgi.listener.fleet_member import FleetMember
from serve_asgi.listener.generation_config import GenerationConfig, GenerationConfigs
from serve_asgi.listener.hub_links import HubLinks
from serve_asgi.listener.listening_sockets import ListeningSocket
from serve_asgi.listener.metric_memories import MetricMemories
from serve_asgi.listener.pid_file import PidFile
from serve_asgi.listener.previous_releases import PreviousReleases
from serve_asgi.listener.stack_dumps import WatchdogChannel
from serve_asgi.listener.store_process import StoreProcess
from serve_asgi.listener.store_requests import StoreRequests
from serve_asgi.listener.template import Template
from serve_asgi.listener.templates import Templates
from serve_asgi.logs import stdio_guard
from serve_asgi.logs.child_output import ChildOutput
from serve_asgi.logs.stdio_guard import OutputGuard
from serve_asgi.supervisor import re_exec_snapshot
from serve_asgi.supervisor.actions import Decisions
from serve_asgi.supervisor.agents import Agents
from serve_asgi.supervisor.drain import DrainSwitch
from serve_asgi.supervisor.hand_over_pairs import HandOverPairs
from serve_asgi.supervisor.lifecycles import AppProcess
from serve_asgi.supervisor.process_table import ProcessTable
from serve_asgi.supervisor.reload_requests import ReloadRequests
from serve_asgi.supervisor.retiring import RetiringWorkers
from serve_asgi.supervisor.slots import Slots
from serve_asgi.supervisor.supervisor import Supervisor

VARIABLE: Final = "SERVE_RE_EXEC"
"""Names the descriptor of the snapshot, in the environment of the new program."""
CHECK_MODULE: Final = "serve_asgi.listener.re_exec_resume"
"""The module of the new program that checks beforehand whether it can take over."""
VERSION: Final = 4
"""The version of the snapshot that this program writes."""
OLDEST_VERSION: Final = 4
"""The oldest version that it understands; others are refused before anything is changed."""

State = dict[str, Any]
Descriptors = list[int]


class Carrier(Protocol):
    """What is carried over: the listener."""

    configs: GenerationConfigs
    supervisor: Supervisor
    children: Children
    links: HubLinks
    store: StoreProcess | None
    fleet: FleetMember | None
    listening: list[ListeningSocket]
    admin_listening: list[ListeningSocket]
    pid_file: PidFile | None
    control: ControlServer
    admin: AdminProcess
    certificates: CertificateWatch
    history: History
    deploys: DeployHistory
    started: float
    start_directory: str


@dataclasses.dataclass(slots=True)
class InheritedState:
    """What a new listener takes over instead of creating it: the pieces, each under its name."""

    settings: Settings
    configs: dict[int, GenerationConfig]
    """By generation number."""
    previous_releases: list[GenerationConfig]
    supervisor: Supervisor
    scoreboard: Scoreboard
    children: list[Child]
    metric_memories: list[State]
    templates: State
    links: State
    store: State | None
    """The state of the store process, if there was one."""
    fleet: State | None
    """The orders of the fleet, if the server belongs to one."""
    listening: list[ListeningSocket]
    admin_listening: list[ListeningSocket]
    pid_file: PidFile | None
    control: State | None
    history: History
    deploys: DeployHistory
    started: float
    admin_process: int
    """The PID of the admin process, which exits when its channel closes, or 0."""
    start_directory: str
    tls: State | None
    """Where the certificates and ticket keys are, if the server speaks TLS."""
    predecessor: str
    """The version of the earlier program."""


_REQUIRED: Final = object()


def _as_it_is(value: Any, _: Mapping[str, Any]) -> Any:
    return value


@dataclasses.dataclass(frozen=True, slots=True)
class Piece:
    """A member of the snapshot."""

    name: str
    attribute: str
    """The listener's attribute."""
    save: Callable[[Carrier, Descriptors], Any]
    """Returns the JSON-compatible value, and adds the descriptors that must stay open."""
    load: Callable[[Any, Mapping[str, Any]], Any] = _as_it_is
    """The reverse; also gets the pieces before it, by name. Raises LookupError, TypeError or ValueError."""
    default: Any = _REQUIRED
    """Its value for a snapshot of a version that had no such piece."""
    owns_descriptors: bool = False
    """Loading it takes over descriptors, which only the replacing program can do."""


PIECES: Final = (
    Piece(
        "settings",
        "configs",
        lambda one, _: one.configs.settings.to_state(),
        lambda value, _: Settings.from_state(value),
    ),
    Piece(
        "configs",
        "configs",
        lambda one, _: {str(generation.number): each.to_state() for generation, each in one.configs.all.items()},
        lambda value, _: {int(number): GenerationConfig.from_state(each) for number, each in value.items()},
    ),
    Piece(
        "previous_releases",
        "configs",
        lambda one, _: one.configs.previous.to_state(),
        lambda value, _: [GenerationConfig.from_state(each) for each in value],
        default=[],
    ),
    Piece(
        "supervisor",
        "supervisor",
        lambda one, _: re_exec_snapshot.to_state(one.supervisor),
        lambda value, _: re_exec_snapshot.from_state(value),
    ),
    Piece(
        "scoreboard",
        "children",
        lambda one, descriptors: _kept(one.children.scoreboard.fd, descriptors),
        lambda value, _: Scoreboard(value, writable=True),
        owns_descriptors=True,
    ),
    Piece(
        "children",
        "children",
        lambda one, descriptors: [child.to_state(descriptors) for child in one.children],
        lambda value, loaded: _load_children(value, loaded["supervisor"]),
        owns_descriptors=True,
    ),
    Piece(
        "metric_memories",
        "children",
        lambda one, descriptors: one.children.memories.to_state(descriptors),
        default=[],
        owns_descriptors=True,
    ),
    Piece(
        "templates",
        "children",
        lambda one, descriptors: one.children.templates.to_state(descriptors),
        default={"templates": [], "refused": []},
        owns_descriptors=True,
    ),
    Piece("links", "links", lambda one, descriptors: one.links.to_state(descriptors)),
    Piece("store", "store", lambda one, descriptors: _saved(one.store, descriptors)),
    Piece("fleet", "fleet", lambda one, _: one.fleet and one.fleet.to_state(), default=None),
    Piece(
        "listening",
        "listening",
        lambda one, descriptors: [each.to_state(descriptors) for each in one.listening],
        lambda value, _: [ListeningSocket.from_state(each) for each in value],
        owns_descriptors=True,
    ),
    Piece(
        "admin_listening",
        "admin_listening",
        lambda one, descriptors: [each.to_state(descriptors) for each in one.admin_listening],
        lambda value, _: [ListeningSocket.from_state(each) for each in value],
        owns_descriptors=True,
    ),
    Piece(
        "pid_file",
        "pid_file",
        lambda one, descriptors: _saved(one.pid_file, descriptors),
        lambda value, _: None if value is None else PidFile.from_state(value),
        owns_descriptors=True,
    ),
    Piece("control", "control", lambda one, descriptors: one.control.to_state(descriptors)),
    Piece("history", "history", lambda one, _: one.history.to_state(), lambda value, _: History.from_state(value)),
    Piece(
        "deploys",
        "deploys",
        lambda one, _: one.deploys.to_state(),
        lambda value, _: DeployHistory.from_state(value),
        default=None,
    ),
    Piece("started", "started", lambda one, _: one.started),
    Piece("admin_process", "admin", lambda one, _: one.admin.pid),
    Piece(
        "tls",
        "certificates",
        lambda one, descriptors: one.certificates.to_state(descriptors),
        default=None,
        owns_descriptors=True,
    ),
    Piece("start_directory", "start_directory", lambda one, _: one.start_directory),
)
"""In the order in which they are loaded."""

MADE_ANEW: Final = frozenset(
    {
        "processes",  # hooks have ended by then; others are adopted by their owners, or exit
        "hooks",
        "hub",  # commands for what `links` carries over
        "awaited_hooks",
        "blocked_workers",
        "recorder",
        "when_running",
        "re_exec",
        "exit",
        "announcements",
        "performer",
        "tasks",
        "changes",  # the new one looks for files that have changed meanwhile
        "stored_deploys",
        "canaries",  # none is on trial
        "_events",  # empty, or the program would not be replaced
        "_post",
        "_inherited",
        "_signals",
    }
)
"""Attributes of the listener that are not carried over."""


@dataclasses.dataclass(frozen=True, slots=True)
class Carried:
    """A class whose instances are carried over, in a piece or within one."""

    kind: type
    save: Callable[..., Any]
    anew: frozenset[str] | None = frozenset()
    """Attributes that `save` leaves out: they are created anew, or meaningless later. None: the hub's tests compare."""


HUB: Final = (
    *(AgentLease, Hub, HubComponent, PresenceBroadcast, LossReports, MessageBroker, ScheduleCommands, ScheduleRegistry),
    *(ScheduleState, Scheduler, MemberReplica, PendingRequests, Replication, SharedState, StoreChanges, FleetWork),
)
"""What the hub carries over (`links`): the hub itself writes and reads it."""
CARRIED: Final = (
    Carried(Settings, Settings.to_state),
    Carried(GenerationConfig, GenerationConfig.to_state),
    Carried(PreviousReleases, PreviousReleases.to_state),
    Carried(
        ProcessTable, re_exec_snapshot.to_state, frozenset({"state", "candidate", "outcome"})
    ),  # at rest: running, none
    Carried(Decisions, re_exec_snapshot.to_state, frozenset({"now", "actions"})),  # of one event
    Carried(DrainSwitch, re_exec_snapshot.to_state, frozenset({"_decisions"})),
    Carried(RetiringWorkers, re_exec_snapshot.to_state, frozenset({"_processes", "_decisions"})),
    Carried(HandOverPairs, re_exec_snapshot.to_state),
    Carried(Slots, re_exec_snapshot.to_state, frozenset({"_processes", "_decisions", "_retiring", "_scaled"})),
    Carried(Agents, re_exec_snapshot.to_state, frozenset({"_do", "_number", "_hurried"})),  # no stop is under way
    Carried(
        ReloadRequests,  # none waits, and none is being prepared
        re_exec_snapshot.to_state,
        frozenset(
            {
                *("_processes", "_decisions", "_previous", "wanted", "by"),
                *("canary", "previous_wanted", "preparation", "_waiting_said"),
            }
        ),
    ),
    Carried(
        Child, Child.to_state, frozenset({"said", "allowance", "broken", "closed", "welcome"})
    ),  # broken ones are being killed
    Carried(MetricMemories, MetricMemories.to_state, frozenset({"_made"})),  # the highest number is known from them
    Carried(
        Templates, Templates.to_state, frozenset({"_user", "_record", "_ended", "_strangers"})
    ),  # none is being forked
    Carried(Template, Template.to_state, frozenset({"began", "allowance", "waiting", "asked"})),
    Carried(WatchdogChannel, WatchdogChannel.to_state, frozenset({"_theirs", "_asking"})),  # the child has its ends
    Carried(ChildOutput, ChildOutput.to_state, frozenset({"_write_ends", "_given"})),  # the child has them
    Carried(SendQueue, SendQueue.to_state, frozenset({"_channel", "_news", "_empty", "_closed"})),
    Carried(
        HubLinks,
        HubLinks.to_state,
        frozenset(
            {
                *("store", "leased", "_scoreboard", "_happened", "_broken", "_loop", "_timer", "_due"),
                *("_rest", "_turn_ends", "_passed", "_starving", "_deferred"),  # for a few turns of the loop
            }
        ),
    ),
    Carried(
        StoreProcess,
        StoreProcess.to_state,
        frozenset(
            {
                *("_config", "_location", "_processes", "_take", "_changed", "_happened", "_known"),
                *("_first", "_end", "_ended", "_adopted", "_failed", "failure", "for_fleet"),
            }
        ),
    ),
    Carried(
        FleetMember,  # no order is being carried out
        FleetMember.to_state,
        frozenset(
            {
                *("_describe", "_send", "_allowed", "_carry_out", "_happened", "_look_around"),
                *("_news", "_under_way", "tasks"),
            }
        ),
    ),
    Carried(StoreRequests, StoreRequests.to_state, frozenset({"_give", "_bytes"})),
    Carried(ListeningSocket, ListeningSocket.to_state),
    Carried(PathLock, PathLock.to_state),
    Carried(PidFile, PidFile.to_state),
    Carried(
        ControlServer,  # no reload is under way, so nobody waits for one; followers are disconnected, and reconnect
        ControlServer.to_state,
        frozenset({"_wanted_path", "commands", "_busy", "_idle"}),
    ),
    Carried(History, History.to_state),
    Carried(
        DeployHistory,  # those of others are in the shared state; nothing is requested that has not begun
        DeployHistory.to_state,
        frozenset({"others", "changes", "_requests", "_host", "_clock"}),
    ),
    Carried(
        CertificateWatch,  # workers say again what they use when they get something new
        CertificateWatch.to_state,
        frozenset(
            {
                *("_workers", "_files_of", "_tell", "_record", "_begins"),
                *("_sent", "_taken", "_taken_news", "_looking", "_read_all"),
            }
        ),
    ),
    *(Carried(kind, kind.to_state, None) for kind in HUB),
)


def describe(listener: Carrier, waiting: list[int]) -> State:
    """The snapshot of `listener`; `waiting` are the sockets of clients that wait for the new program's reply."""
    descriptors = list(waiting)
    pieces = {piece.name: piece.save(listener, descriptors) for piece in PIECES}
    guard = stdio_guard.current()
    descriptors += guard.descriptors()
    return {
        "version": VERSION,
        "server": __version__,
        "protocol": PROTOCOL,
        "waiting": waiting,
        "output": guard.argument(),
        "pending": {str(number): base64.b64encode(data).decode() for number, data in guard.pending().items()},
        **pieces,
        "descriptors": descriptors,
    }


def save(state: State) -> int:
    """Write it to a memfd that survives execve(2); the caller closes it."""
    data = json.dumps(state).encode()
    fd = os.memfd_create("serve-re-exec", os.MFD_CLOEXEC)
    with open(fd, "wb", closefd=False) as file:
        file.write(data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def read(fd: int) -> State:
    """Read what `save` wrote and close `fd`. Raises UsageError if this program does not understand it."""
    os.lseek(fd, 0, os.SEEK_SET)  # the position belongs to the open file, which another process may have read
    with open(fd, "rb") as file:
        state: State = json.loads(file.read())
    version = state.get("version")
    if not isinstance(version, int) or not OLDEST_VERSION <= version <= VERSION:
        understood = f"{VERSION}" if OLDEST_VERSION == VERSION else f"{OLDEST_VERSION} to {VERSION}"
        raise UsageError(
            f"the listener writes version {version} of its state, and serve {__version__} reads {understood}: "
            "restart the server to change to it"
        )
    return state


def examine(state: State) -> None:
    """Load all that can be loaded without the descriptors.

    Raises UsageError, LookupError, TypeError or ValueError if this program cannot take over.
    """
    if not speaks(state["protocol"]):
        raise UsageError(
            f"serve {__version__} speaks version {PROTOCOL} of the channel, unlike the running workers, "
            f"{state['protocol']}: restart the server to change to it"
        )
    loaded: State = {}
    for piece in PIECES:
        value = _value(piece, state)
        if not piece.owns_descriptors:
            loaded[piece.name] = piece.load(value, loaded)
    for each in [*state["listening"], *state["admin_listening"]]:
        ListeningSocket.examine(each)


def take_output(state: State) -> OutputGuard:
    """Drain the pipes at descriptors 1 and 2 from here on, beginning with what had not been written.

    Comes first, so that any later error can be read.
    """
    guard = stdio_guard.adopt(state["output"])
    guard.restore({int(number): base64.b64decode(data) for number, data in state["pending"].items()})
    return guard


def take(state: State) -> InheritedState:
    """Take over all pieces. Raises LookupError, TypeError or ValueError if the snapshot is invalid."""
    loaded: State = {}
    for piece in PIECES:
        loaded[piece.name] = piece.load(_value(piece, state), loaded)
    return InheritedState(**loaded, predecessor=state["server"])


def _value(piece: Piece, state: State) -> Any:
    return state[piece.name] if piece.default is _REQUIRED else state.get(piece.name, piece.default)


def _kept(fd: int, descriptors: Descriptors) -> int:
    descriptors.append(fd)
    return fd


def _saved(part: StoreProcess | PidFile | None, descriptors: Descriptors) -> State | None:
    return None if part is None else part.to_state(descriptors)


def _load_children(state: list[State], supervisor: Supervisor) -> list[Child]:
    processes: dict[int, AppProcess] = {**supervisor.workers, **supervisor.agents.all}
    return [Child.from_state(each, processes[each["worker"]]) for each in state]
