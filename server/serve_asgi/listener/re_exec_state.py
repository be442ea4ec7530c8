"""What a listener leaves to the program that takes its place in the same process: plain values and open descriptors.

A descriptor keeps its number over execve(2), so that the plain values name it by that; `descriptors` lists all that
must stay open. Nothing is closed or given up here. What has a life of its own (the admin process, a watcher of files)
is not passed on: it ends with its channel and is started anew.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import socket
from typing import Any, Final, Protocol

from serve_asgi import __version__
from serve_asgi.config.release import Release
from serve_asgi.config.sources import Settings
from serve_asgi.errors import UsageError
from serve_asgi.ipc.channel import PROTOCOL, Channel, speaks
from serve_asgi.ipc.listening_socket import SocketKind
from serve_asgi.ipc.path_lock import PathLock
from serve_asgi.ipc.scoreboard import Row, Scoreboard
from serve_asgi.listener.admin_process import AdminProcess
from serve_asgi.listener.child import Child
from serve_asgi.listener.children import Children
from serve_asgi.listener.control_server import ControlServer
from serve_asgi.listener.generation_plans import GenerationConfigs
from serve_asgi.listener.history import History
from serve_asgi.listener.hub_links import HubLinks
from serve_asgi.listener.listening_sockets import Listening
from serve_asgi.listener.pid_file import PidFile
from serve_asgi.listener.stack_dumps import WatchdogChannel
from serve_asgi.listener.store_process import StoreProcess
from serve_asgi.logs import output
from serve_asgi.logs.child_output import ChildOutput
from serve_asgi.logs.output import OutputGuard
from serve_asgi.supervisor.lifecycles import AppProcess
from serve_asgi.supervisor.snapshot import from_state, to_state
from serve_asgi.supervisor.supervisor import Supervisor

VARIABLE: Final = "SERVE_ESTATE"
"""Names the descriptor of what is passed on, in the environment of the new program."""
VERSION: Final = 3
"""Of the values below; another one is refused before anything is given up."""

State = dict[str, Any]


@dataclasses.dataclass(slots=True)
class InheritedState:
    """What a new listener takes over instead of making it."""

    supervisor: Supervisor
    scoreboard: Scoreboard
    children: list[Child]
    configs: dict[int, tuple[Settings, Release]]
    """By the number of the generation: the settings and what it runs on."""
    history: History
    started: float
    admin_process: int
    """The PID of the admin process, which ends with its channel, or 0."""
    start_directory: str
    control: State | None
    links: State
    store: State | None
    """What there was of the store process, if there was one."""
    predecessor: str
    """The version of the server that it was."""


class Leaver(Protocol):
    """Who leaves an estate: the listener."""

    configs: GenerationConfigs
    supervisor: Supervisor
    children: Children
    links: HubLinks
    store: StoreProcess | None
    listening: list[Listening]
    admin_listening: list[Listening]
    pid_file: PidFile | None
    control: ControlServer
    admin: AdminProcess
    history: History
    started: float
    start_directory: str


def describe(listener: Leaver, guard: OutputGuard, askers: list[int]) -> tuple[State, list[int]]:
    """All that `listener` has, and the descriptors that must stay open; `askers` are those who wait for an answer."""
    descriptors = [listener.children.scoreboard.fd, *askers]
    state: State = {
        "version": VERSION,
        "server": __version__,
        "protocol": PROTOCOL,
        "settings": listener.configs.settings.to_state(),
        "plans": {str(g.number): _plan(plan.settings, plan.release) for g, plan in listener.configs.all.items()},
        "supervisor": to_state(listener.supervisor),
        "scoreboard": listener.children.scoreboard.fd,
        "children": [_child(child, descriptors) for child in listener.children],
        "links": listener.links.to_state(descriptors),
        "store": None if listener.store is None else listener.store.to_state(descriptors),
        "listening": [_listening(each, descriptors) for each in listener.listening],
        "admin": [_listening(each, descriptors) for each in listener.admin_listening],
        "pid_file": None if listener.pid_file is None else listener.pid_file.to_state(descriptors),
        "control": listener.control.to_state(descriptors),
        "askers": askers,
        "output": guard.argument(),
        "pending": {str(number): base64.b64encode(data).decode() for number, data in guard.pending().items()},
        "history": listener.history.to_state(),
        "started": listener.started,
        "admin_process": listener.admin.pid,
        "start_directory": listener.start_directory,
    }
    descriptors += guard.descriptors()
    return state, descriptors


def save(state: State) -> int:
    """Write it to a memfd that survives execve(2); the caller closes it."""
    data = json.dumps(state).encode()
    fd = os.memfd_create("serve-estate", os.MFD_CLOEXEC)
    with open(fd, "wb", closefd=False) as file:
        file.write(data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def load(fd: int) -> State:
    """Read what `save` wrote and close `fd`. Raises UsageError if it is of another version."""
    os.lseek(fd, 0, os.SEEK_SET)  # the position belongs to the open file, which others may have read
    with open(fd, "rb") as file:
        state: State = json.loads(file.read())
    if state.get("version") != VERSION:
        raise UsageError(
            f"the listener passes on version {state.get('version')} of its state, and serve {__version__} takes "
            f"{VERSION}: restart the server to change to it"
        )
    return state


def examine(state: State) -> None:
    """Make all that can be made without the descriptors.

    Raises UsageError, LookupError, TypeError or ValueError if another program had better not try.
    """
    if not speaks(state["protocol"]):
        raise UsageError(
            f"serve {__version__} speaks {PROTOCOL}, another version of the channel than the workers that there are, "
            f"{state['protocol']}: restart the server to change to it"
        )
    from_state(state["supervisor"])
    History.from_state(state["history"])
    for plan in state["plans"].values():
        _take_plan(plan)
    for each in [*state["listening"], *state["admin"]]:
        SocketKind(each["kind"])


def take(state: State) -> InheritedState:
    """Take over the workers and what is known of them. Raises LookupError, TypeError or ValueError for nonsense."""
    supervisor = from_state(state["supervisor"])
    processes: dict[int, AppProcess] = {**supervisor.workers, **supervisor.agents.all}
    return InheritedState(
        supervisor=supervisor,
        scoreboard=Scoreboard(state["scoreboard"], writable=True),
        children=[_take_child(each, processes[each["worker"]]) for each in state["children"]],
        configs={int(number): _take_plan(each) for number, each in state["plans"].items()},
        history=History.from_state(state["history"]),
        started=state["started"],
        admin_process=state.get("admin_process", 0),
        start_directory=state["start_directory"],
        control=state["control"],
        links=state["links"],
        store=state.get("store"),
        predecessor=state["server"],
    )


def take_listening(state: list[State]) -> list[Listening]:
    """The sockets, which belong to the caller from here on."""
    return [
        Listening(
            socket=socket.socket(fileno=each["fd"]),
            name=each["name"],
            kind=SocketKind(each["kind"]),
            owned=each["owned"],
            path=each["path"],
            identity=None if each["identity"] is None else (each["identity"][0], each["identity"][1]),
            lock=None if each["lock"] is None else PathLock.inherited(each["lock"]),
        )
        for each in state
    ]


def take_output(state: State) -> OutputGuard:
    """Empty the pipes that stand at descriptors 1 and 2, beginning with what had not been written."""
    guard = output.adopt(state["output"])
    guard.restore({int(number): base64.b64decode(data) for number, data in state["pending"].items()})
    return guard


def take_pid_file(state: State) -> PidFile | None:
    """The pid file, if there is one."""
    return None if state["pid_file"] is None else PidFile.inherited(state["pid_file"])


# ---- the parts


def _plan(settings: Settings, release: Release) -> State:
    return {"settings": settings.to_state(), "release": dataclasses.asdict(release)}


def _take_plan(state: State) -> tuple[Settings, Release]:
    settings = Settings.from_state(state["settings"])
    known = {field.name for field in dataclasses.fields(Release)}
    return settings, Release(**{name: value for name, value in state["release"].items() if name in known})


def _listening(listening: Listening, descriptors: list[int]) -> State:
    descriptors.append(listening.socket.fileno())
    return {
        "fd": listening.socket.fileno(),
        "name": listening.name,
        "kind": listening.kind.value,
        "owned": listening.owned,
        "path": listening.path,
        "identity": listening.identity,
        "lock": None if listening.lock is None else listening.lock.to_state(descriptors),
    }


def _child(child: Child, descriptors: list[int]) -> State:
    descriptors += [child.channel.fileno(), child.counts.fd]
    return {
        "worker": child.worker.id,
        "pid": child.pid,
        "row": child.row,
        "counts": child.counts.fd,
        "serves": child.serves,
        "channel": child.channel.fileno(),
        "outbox": child.send_queue.to_state(descriptors),
        "output": child.output.to_state(descriptors),
        "window": None if child.watchdog is None else child.watchdog.to_state(descriptors),
    }


def _take_child(state: State, worker: AppProcess) -> Child:
    channel = Channel(socket.socket(fileno=state["channel"]), descriptors=0)
    left, counts = ChildOutput.inherited(state["output"]), Row(state["counts"])
    child = Child(worker, state["pid"], channel, left, state["row"], counts)
    child.serves = state["serves"]
    for packet, lent, given in state["outbox"]:
        child.send_queue.put(packet, lent, given)
    if state["window"] is not None:
        child.watchdog = WatchdogChannel.inherited(state["window"])
    return child
