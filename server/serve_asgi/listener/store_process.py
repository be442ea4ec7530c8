"""The listener's side of the store process: starts it before everything else, feeds it, restarts it when it dies.

It owns the process. What passes between the two is `serve_asgi.listener.store_link`'s; the hub's requests are queued in
`serve_asgi.listener.store_requests`. The listener waits for the process only once: nothing else starts before the
state has been loaded. After a re-exec the new program takes over the process, lets it finish its requests, and replaces
it by one of its own release: meanwhile requests wait, none is refused. The process is trusted with nothing but the
state: one that breaks the protocol is killed, as if it had died.
"""

from __future__ import annotations

import enum
import logging
import os
import signal
import socket
import time
import uuid
from collections.abc import Callable
from typing import Any, Final

import anyio

from serve_asgi.config.options import Config
from serve_asgi.config.release import PRIVATE_VARIABLES, own_program
from serve_asgi.config.state_location import START_TIME, is_url, shown, store_address
from serve_asgi.hub.state.write_evaluation import StateEntry
from serve_asgi.ipc.channel import PROTOCOL, pair
from serve_asgi.ipc.frames import ValidatedFrame, decode, encode, pack_value
from serve_asgi.ipc.store_frames import StoreFailure
from serve_asgi.listener.exit_status import describe_code
from serve_asgi.listener.helper_processes import HelperProcess, HelperProcesses
from serve_asgi.listener.spawning import SAFE_PATH
from serve_asgi.listener.store_link import StoreLink
from serve_asgi.listener.store_requests import StoreRequests
from serve_asgi.store import replies
from serve_asgi.supervisor import actions

FIRST_DELAY: Final = 0.1
LONGEST_DELAY: Final = 5.0
"""Most seconds until a dead process is replaced; the delay doubles with each death."""
SAID_AFTER: Final = 2.0
"""Seconds after which the first start says that it waits for the store."""
STEADY: Final = 30.0
"""Seconds of life after which the delay starts over."""
END_TIME: Final = 5.0
"""Seconds that it has to finish its requests and exit when the server ends; then it is killed."""

log = logging.getLogger("serve")

State = dict[str, Any]


class StoreStage(enum.Enum):
    """STARTING -> UP <-> AWAY; UP -> TURNING -> UP (another process); any -> ENDED."""

    STARTING = "starting"  # no process of this server has been up yet
    UP = "up"  # it handles requests
    AWAY = "away"  # it is dead, or cannot reach its backend
    TURNING = "turning"  # another process is replacing it; requests wait
    ENDED = "ended"


class StoreProcess:
    """The store of one server."""

    def __init__(
        self,
        config: Config,
        directory: str,
        processes: HelperProcesses,
        take: Callable[[bytes], None],
        changed: Callable[[str], None],
        happened: Callable[[actions.LogEvent], None],
        left: State | None = None,
        known: Callable[[], tuple[list[tuple[str, StateEntry]], int]] = lambda: ([], 0),
    ) -> None:
        """`take` gets the process's frames, `changed` why it is unavailable ("" if it is available).

        Relative paths begin in `directory`. `left` is the state of an earlier program of this process. `known` returns
        all that the hub has of the state, and the version of the last change, for a Redis that comes back empty.
        """
        self._config = config
        self._location = config.state if is_url(config.state) else os.path.join(directory, config.state)
        self._processes = processes
        self._take = take
        self._changed = changed
        self._happened = happened
        self._known = known
        self._name: str = uuid.uuid4().hex if left is None else left["name"]
        self._stage = StoreStage.STARTING if left is None else StoreStage(left["stage"])
        self._requests = StoreRequests(self._pass_on)
        self._first = anyio.Event()
        self._end = anyio.Event()
        self._ended = anyio.Event()
        self._process: HelperProcess | None = None
        self._link: StoreLink | None = None
        self._adopted = left is not None and left["pid"] != 0
        self._failed = ""  # why the last process could not start
        self._at = ["", 0] if left is None else left.get("at", ["", 0])  # the last message that a process has reported
        self.for_fleet: Callable[[ValidatedFrame], None] = lambda _: None
        """Gets the frames that are about this server's place in the fleet."""
        self.trouble = ""
        """Why the store is unavailable at present."""
        self._refuses = ""  # why writes are refused at present, although it is available
        self.failure: tuple[str, int] | None = None
        """Why the server cannot start, and the exit status."""
        if left is not None:
            self._load(left)
            if self._stage is not StoreStage.STARTING:
                changed(self.trouble)  # the hub is new, and gets frames from its members before `run` begins

    @property
    def shown(self) -> str:
        """Where the state is kept, without passwords."""
        return shown(self._location)

    @property
    def connected(self) -> bool:
        """Whether it can be read and written at present, as far as known."""
        return self._stage is StoreStage.UP and not self._refuses

    def status(self) -> State:
        """For `serve status`, JSON-compatible."""
        return {"place": self.shown, "trouble": self.trouble or self._refuses}

    # Requests from the hub

    def send(self, data: bytes) -> None:
        """Queue a frame for the process, or a refusal for the requester in a later turn of the loop; returns at
        once."""
        if self._stage in (StoreStage.STARTING, StoreStage.ENDED) or (
            self._stage is StoreStage.AWAY and self._process is None
        ):
            self._requests.refuse(
                decode(data), StoreFailure.UNAVAILABLE, self.trouble or "the store process has not started"
            )
        else:
            self._requests.put(data)
        self._wake_link()

    def reopen(self) -> None:
        """Have it reopen its log files."""
        self.tell(encode("store.reopen"))

    def tell(self, data: bytes) -> None:
        """Queue a frame of the listener's own, which gets no reply; it is dropped while the store is unavailable."""
        if self._stage is StoreStage.UP:
            self._requests.put_order(data)
            self._wake_link()

    # Its life cycle

    async def run(self) -> None:
        """Keep a process alive until `finish`."""
        delay = FIRST_DELAY
        self._requests.give_refusals()
        while not self._end.is_set() and self.failure is None:
            began, turned = time.monotonic(), self._adopted
            try:
                how = await self._live()
            except Exception as error:  # such as EMFILE: the server continues
                log.debug("the store process", exc_info=True)
                how = f"it could not be started: {error}"
            self._adopted = False
            self._gone(how, turned)
            if self._end.is_set() or self.failure is not None or turned:
                continue
            delay = FIRST_DELAY if time.monotonic() - began >= STEADY else delay
            with anyio.move_on_after(delay):
                await self._end.wait()
            delay = min(LONGEST_DELAY, delay * 2)
        self._stage = StoreStage.ENDED
        self._first.set()
        self._ended.set()

    async def first(self) -> None:
        """Wait until the state has been loaded, or `failure` says why the server cannot start."""
        limit = store_address(self._location).start if is_url(self._location) else START_TIME
        with anyio.move_on_after(min(limit, SAID_AFTER)) as patience:
            await self._first.wait()
        if patience.cancelled_caught and limit > SAID_AFTER:
            text = f"waiting for the shared state in {self.shown}, for {limit:g} s at most"
            self._happened(actions.LogEvent(logging.INFO, "store_awaited", text, "", {"state": self.shown}))
            with anyio.move_on_after(limit - SAID_AFTER):
                await self._first.wait()
        if self._stage is not StoreStage.UP and self.failure is None:
            why = self.trouble or f"the store process did not respond for {limit:g} s"
            self.failure = f"the shared state cannot be read from {self.shown}: {why}", 1

    async def finish(self) -> None:
        """The server has ended: let the process finish its requests and exit; kill it if necessary."""
        self._end.set()
        self._wake_link()
        with anyio.move_on_after(END_TIME):
            await self._ended.wait()
        if self._process is not None:
            self._kill()
            with anyio.move_on_after(1.0):
                await self._process.wait()

    async def _live(self) -> str:
        """Start a process (or take over an earlier program's), serve it, and return how it ended."""
        knows = self._stage is not StoreStage.STARTING and is_url(self._location)  # the hub has what a Redis may lose
        try:
            if not self._adopted:
                ours, theirs = pair()
                self._link = self._linked(ours)
                with theirs:
                    self._process = self._start(theirs)
                await self._link.send(self._order(knows))
            link, process = self._link, self._process
            assert link is not None
            assert process is not None
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(link.read)
                tasks.start_soon(self._feed, link, process, knows)
                status = await process.wait()
                tasks.cancel_scope.cancel()
            link.read_rest()
        finally:
            if self._link is not None:
                self._link.close()
            self._process = self._link = None
        return link.broken or describe_code(status)

    def _linked(self, end: socket.socket) -> StoreLink:
        return StoreLink(end, self._requests, self._took, self._kill)

    def _kill(self) -> None:
        if self._process is not None:
            self._process.signal(signal.SIGKILL)

    def _start(self, theirs: socket.socket) -> HelperProcess:
        environment = {name: text for name, text in os.environ.items() if name not in PRIVATE_VARIABLES}
        arguments = [own_program(), *SAFE_PATH, "-m", "serve_asgi.store", "--channel", str(theirs.fileno())]
        return self._processes.start(arguments, environment, [(theirs.fileno(), theirs.fileno())])

    def _order(self, knows: bool) -> bytes:
        """The first frame to the process."""
        head = {
            "protocol": list(PROTOCOL),
            "location": self._location,
            "again": self._stage is not StoreStage.STARTING,
            "knows": knows,
            "value_limit": self._config.state_value_limit,
            "total_limit": self._config.state_limit,
            "name": self._name,
            "at": self._at,
        }
        return encode("store.open", head, pack_value(self._config.to_json(), "the configuration"))

    def _gone(self, how: str, turned: bool) -> None:
        """The process has ended: refuse the requests that it has not completed."""
        if self._stage is StoreStage.STARTING and self.failure is None and not self._end.is_set():
            self.failure = f"the store process ended unexpectedly ({how}): see the lines above", 1
        self._requests.forsaken(f"the store process ended ({how}) before it had responded", another_comes=turned)
        if self._end.is_set() or turned or self.failure is not None:
            return
        self._away(self._failed or f"the store process ended ({how})", "store_died")
        self._failed = ""

    def _away(self, text: str, event: str) -> None:
        said, self.trouble, self._refuses = self.trouble, text, ""
        if self._stage is not StoreStage.STARTING:
            self._stage = StoreStage.AWAY
            self._changed(text)
        if not said or (event == "store_died" and text != said):  # one line per outage, unless there is more to say
            about = f"the shared state cannot be written at present: {text}"
            self._happened(actions.LogEvent(logging.ERROR, event, about, "", {"state": self.shown, "reason": text}))

    # To the process

    async def _feed(self, link: StoreLink, process: HelperProcess, knows: bool) -> None:
        """Send the process what is queued; at the end, or for a successor, let it finish what it has."""
        try:
            if self._adopted:
                if self._stage is StoreStage.UP:
                    self._stage = StoreStage.TURNING
                with anyio.move_on_after(END_TIME):
                    await link.wait_answered()
            else:
                if knows:
                    await self._send_known_entries(link)
                await link.feed(self._end)
            link.end_sending()
            await anyio.sleep(END_TIME)
            process.signal(signal.SIGKILL)
        except (OSError, anyio.ClosedResourceError):
            pass  # it has exited, which SIGCHLD reports

    async def _send_known_entries(self, link: StoreLink) -> None:
        entries, version = self._known()
        for piece in replies.snapshot(entries):
            await link.send(encode(*piece))
            await anyio.lowlevel.checkpoint()
        await link.send(encode("store.known", {"version": version}))

    def _wake_link(self) -> None:
        if self._link is not None:
            self._link.wake()

    # From the process

    def _took(self, frame: ValidatedFrame, data: bytes) -> None:
        head = frame.head
        if (at := getattr(head, "at", None)) is not None:
            self._at = list(at)
        match frame.kind:
            case "store.say":
                self._happened(actions.LogEvent(head.level, head.event, head.text, "", head.about))
            case "store.failed":
                self._failed = head.text
                if self._stage is StoreStage.STARTING:
                    self.failure = head.text, head.status
            case "store.down":
                self._take(data)
                self._away(head.text, "store_disconnected")
            case "store.up":
                self._take(data)
                self._up()
            case "store.at":
                pass
            case "store.bell" | "store.order":
                self.for_fleet(frame)
            case "store.refuses":
                self._told_of_refusals(head.text)
            case _:
                self._requests.answered(frame)
                if self._stage is StoreStage.TURNING:
                    self._wake_link()
                self._take(data)

    def _up(self) -> None:
        before, self._stage = self._stage, StoreStage.UP
        trouble, self.trouble, self._refuses = self.trouble or self._refuses, "", ""
        self._first.set()
        self._wake_link()
        self._changed("")
        if trouble or before is StoreStage.STARTING:
            self._tell_up(" again" if trouble else "")

    def _tell_up(self, again: str) -> None:
        text = f"the shared state is kept in {self.shown}{again}"
        self._happened(actions.LogEvent(logging.INFO, "store_connected", text, "", {"state": self.shown}))

    def _told_of_refusals(self, why: str) -> None:
        before, self._refuses = self._refuses, why
        if why and not before:
            text = f"writes to the shared state are refused: {why}"
            self._happened(
                actions.LogEvent(logging.ERROR, "store_write_refused", text, "", {"state": self.shown, "reason": why})
            )
        elif before and not why:
            self._tell_up(" again")

    def _pass_on(self, data: bytes) -> None:
        try:
            self._take(data)
        except Exception:
            log.exception("the hub could not handle a frame from the store process; please report this")

    # Re-exec

    def to_state(self, descriptors: list[int]) -> State:
        """All of it, JSON-compatible; adds to `descriptors` those that must stay open."""
        fd = -1 if self._link is None else self._link.socket.fileno()
        if fd >= 0:
            descriptors.append(fd)
        return {
            "name": self._name,
            "at": self._at,
            "stage": self._stage.value,
            "trouble": self.trouble,
            "refuses": self._refuses,
            "pid": 0 if self._process is None or self._process.ended else self._process.pid,
            "fd": fd,
            **self._requests.to_state(),
        }

    def _load(self, left: State) -> None:
        self.trouble, self._refuses = left["trouble"], left.get("refuses", "")
        self._requests.load(left)
        if left["fd"] >= 0:
            self._link = self._linked(socket.socket(fileno=left["fd"]))
        if left["pid"]:
            self._process = self._processes.adopt(left["pid"])
