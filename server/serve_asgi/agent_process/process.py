"""The agent: everything between its channel's first packet and its exit.

`run` is its whole life: import and prepare, report that, begin when told (with the lock,
`serve_asgi.agent_process.agent_lock`), finish when told or at the end of the channel, exit. It owns the application's
agent and its row of the scoreboard. It is not replaced before its process has been reaped, so all that matters about
the end is that it comes: the listener kills it at the deadline, and without a listener `orphan_exit` does.
"""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
import logging
import time
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

import anyio

from serve_asgi.agent_process.agent_lock import AgentLock
from serve_asgi.app import hub_link
from serve_asgi.app.agent import lease_taken
from serve_asgi.app.agent_task import AgentTarget, AgentTask, import_agent
from serve_asgi.app.background_work import work
from serve_asgi.app.hub_link import Identity
from serve_asgi.app.loading import needs_loop
from serve_asgi.app.metric_store import store as metrics
from serve_asgi.app.retiring import retiring
from serve_asgi.app.shared import shared
from serve_asgi.errors import ChannelError, StartError, UsageError
from serve_asgi.ipc import forked_children as forks
from serve_asgi.ipc.channel import Packet, SendQueue, TruncatedDescriptors, close_descriptors
from serve_asgi.ipc.leftovers import ListenerFiles
from serve_asgi.ipc.membership_frames import Role
from serve_asgi.logs import app_log
from serve_asgi.logs import server_log as logs
from serve_asgi.logs.server_log import about
from serve_asgi.logs.tracebacks import application_traceback, error_text
from serve_asgi.worker import orphan_exit
from serve_asgi.worker.bootstrap import Bootstrap, failure, leave_within
from serve_asgi.worker.event_loop import adopt_variables, hidden, hidden_task, outside_loop
from serve_asgi.worker.housekeeping import PERIOD
from serve_asgi.worker.hub_socket import HubSocket
from serve_asgi.worker.scoreboard_rows import RowWriter

T = TypeVar("T")

HANDLERS_SHARE: Final = 0.5
"""The part of its time to finish that message handlers and schedule runs have; then they are cancelled."""
CLOSE_TIME: Final = 1.0
"""Seconds to send the last packets and frames."""
EXIT_TIME: Final = 2.0
"""Seconds for threads that the application left behind and for its exit handlers; then the process exits anyway."""
UNREADY_TIME: Final = 1.0
"""Seconds to exit for an agent that never began, when its listener is dead."""

log = logging.getLogger("serve")


@dataclasses.dataclass(frozen=True, slots=True)
class LeaveRequest:
    """Why this process is to leave, and how much time it has (s)."""

    reason: str
    timeout: float


class AgentProcess:
    """One agent."""

    def __init__(self, bootstrap: Bootstrap, lock: AgentLock) -> None:
        self.config = bootstrap.config
        self.welcome = bootstrap.packet
        self.channel = bootstrap.channel
        self.send_queue = SendQueue(bootstrap.channel)
        self.watchdog = bootstrap.watchdog
        self.lock = lock
        self.cells = bootstrap.cells
        self._link_end = bootstrap.link
        self.hub: HubSocket
        self._leaving: LeaveRequest | None = None
        self._told = asyncio.Event()
        """Set by an order to leave."""
        self._may_begin = asyncio.Event()
        self._has_begun = False

    async def run(self) -> int:
        """Run the agent; return the exit status."""
        orphan_exit.watch(self.channel.fileno(), self._time_to_leave, meanwhile=ListenerFiles(self.welcome).remove)
        self.watchdog.know(asyncio.get_running_loop())
        self._join_hub()
        forks.claim(loop := asyncio.get_running_loop())
        metrics.ask_in(loop, lambda: self.send_queue.put({"type": "counts metrics"}))
        status = 0
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(hidden, self._obey)
            tasks.start_soon(hidden, self.send_queue.run)
            tasks.start_soon(hidden, self._beat)
            try:
                await self._live()
            except (StartError, UsageError) as error:
                status = 1
                self.send_queue.put(failure(error))
                self._cut_work()  # out of time, as if it had died: others may redo the work
            with anyio.move_on_after(CLOSE_TIME):
                shared.leave()
                await self.hub.flushed()
                await self.send_queue.flushed()
            tasks.cancel_scope.cancel()
        leave_within(EXIT_TIME, status)
        return status

    # From import to end

    async def _live(self) -> None:
        """Raises StartError or UsageError if the application's agent fails."""
        subject = await self._unless_told(self._prepare())
        if subject is None:
            return
        assert work.context is not None
        adopt_variables(work.context)
        await self._unless_told(self.hub.flushed())  # so that the hub knows all of it before the listener hears of this
        self.send_queue.put({"type": "prepared"})
        await self._unless_told(self._may_begin.wait())
        if not self._may_begin.is_set():
            return
        self._has_begun = True
        if await self._unless_told(self._take_lock()) and self._leaving is None:
            self.watchdog.watch(self.cells, self.config.block_warning)
            await self._enter_and_finish(subject)
            self.watchdog.unwatch()
        self.send_queue.put({"type": "finished"})

    async def _prepare(self) -> AgentTarget:
        """Import it and run its `prepare()`."""
        await shared.ready()  # so that the application can read it while it is imported
        name = self.config.agent
        try:
            subject = AgentTarget(*await outside_loop(lambda: import_agent(name)))
        except UsageError:
            raise
        except BaseException as error:
            forks.leave(error)
            if _is_cancelled(error):
                raise
            raise _failed(f"the agent {name} cannot be imported{needs_loop(error)}", error) from None
        app_log.replace_console_handlers(self.config)
        try:
            await subject.prepare()
        except BaseException as error:
            forks.leave(error)
            if _is_cancelled(error):
                raise
            raise _failed(f"the prepare() of the agent {name} failed", error) from None
        work.context = contextvars.copy_context()
        return subject

    async def _take_lock(self) -> bool:
        try:
            await self.lock.take(lambda holder: self.send_queue.put({"type": "waits", "holder": holder}))
        except OSError as error:
            raise UsageError(f"the lock of the agent, {self.welcome['lock']}, cannot be taken: {error}") from None
        return True

    async def _enter_and_finish(self, subject: AgentTarget) -> None:
        life = AgentTask(subject)
        match await self._unless_told(life.enter()):
            case None:
                pass
            case UsageError() as error:
                raise error
            case error:
                raise _failed(f"the agent {subject.name} could not be entered", error)
        if self._leaving is None:
            await self._be_active(life, subject.name)
        if (raised := await life.finish()) is not None:
            text = "the agent %s did not finish cleanly: %s"
            detail = about("agent_finish_failed", detail=application_traceback(raised))
            log.error(text, subject.name, error_text(raised), extra=detail)

    async def _be_active(self, life: AgentTask, name: str) -> None:
        """Run from when it has been entered until it is to finish. Raises StartError if it fails before."""
        self.hub.link.send("up")  # starts its message handlers and schedules
        self.send_queue.put({"type": "entered"})
        over = hidden_task(life.wait_ended())  # the agent may cancel all tasks, and means its own
        await self._unless_told(asyncio.wait({over}))
        if over.done():
            if (raised := over.result()) is not None:
                raise _failed(f"the agent {name} failed", raised)
            self.send_queue.put({"type": "returned"})
            await self._told.wait()
        await self._finish_handlers()

    async def _finish_handlers(self) -> None:
        """Take no new work from here on; let running work end in time."""
        assert self._leaving is not None
        retiring.begin(self._leaving.reason)
        with anyio.move_on_after(self._leaving.timeout * HANDLERS_SHARE):
            await work.wait_retired()  # the hub knew that before this agent was told to finish
            while work.tasks:
                await asyncio.wait(work.tasks)
        self._cut_work()

    def _cut_work(self) -> None:
        """Cut message handlers and schedule runs that have not ended."""
        if left := work.cancel():
            text = "cut %d message handlers and schedule runs that had not ended"
            log.warning(text, left, extra=about("work_cut", tasks=left))

    async def _unless_told(self, do: Coroutine[Any, Any, T]) -> T | None:
        """Await it; if this process is told to leave meanwhile, cancel it and return None."""
        doing = hidden_task(do)
        told = hidden_task(self._told.wait())
        try:
            await asyncio.wait({doing, told}, return_when=asyncio.FIRST_COMPLETED)
            if doing.done():
                return doing.result()
            doing.cancel()
            await asyncio.wait({doing})
            if not doing.cancelled():
                doing.exception()  # retrieved, so that it is not reported: it no longer matters
            return None
        finally:
            told.cancel()

    # Besides

    def _join_hub(self) -> None:
        """Connect to the hub, before the application is imported."""
        assert self._link_end is not None, "the listener gives every agent a link"
        identity = Identity(Role.AGENT, -1, self.welcome["generation"], self.welcome["member"])
        self.hub = HubSocket(self._link_end, identity, asyncio.get_running_loop())
        self.hub.link.on_frame("retire", lambda _: work.retire())
        self.hub.link.on_close(work.retire)
        hub_link.set_current(self.hub.link)
        forks.in_child(self.hub.link.let_go)

    async def _beat(self) -> None:
        """Write the heartbeat, CPU time and memory once per second."""
        row = RowWriter(self.cells)
        while True:
            row.write()
            self.watchdog.tick()
            due = time.monotonic() + PERIOD
            await anyio.sleep(PERIOD)
            row.write_lag(time.monotonic() - due)

    def _time_to_leave(self) -> float:
        """Seconds that this agent has to exit once the listener is dead; then it is ended, whatever it does."""
        return self.config.agent_timeout if self._has_begun else UNREADY_TIME

    async def _obey(self) -> None:
        """Follow the listener's orders, until its end of the channel closes."""
        try:
            while True:
                try:
                    packet, received = await self.channel.receive()
                except TruncatedDescriptors as error:  # EMFILE
                    log.warning("%s", error, extra=about("descriptors_lost"))
                    packet, received = error.packet, []
                self._take(packet, received)
        except (EOFError, ChannelError, OSError) as error:
            if not isinstance(error, EOFError):
                log.error("the channel to the listener broke: %s", error, extra=about("channel_broken"))
            log.warning("the listener is gone; this agent finishes", extra=about("listener_died"))
            self._leave(LeaveRequest("the listener died", self.config.agent_timeout))

    def _take(self, packet: Packet, received: list[int]) -> None:
        match packet["type"]:
            case "enter":
                lease_taken(packet.get("token", 0))
                self._may_begin.set()
            case "finish":
                self._leave(LeaveRequest(packet["reason"], packet["timeout"]))
            case "quit":
                self._leave(LeaveRequest("quit", 0.0))
            case "own memory":
                metrics.take(received.pop() if received else None)
            case "memories":
                for number, memory in zip(packet["memories"], received, strict=False):
                    metrics.add_memory(number, memory)
                received = []
            case "reopen":
                logs.reopen()
                app_log.reopen()
        close_descriptors(received)

    def _leave(self, leaving: LeaveRequest) -> None:
        """Begin to leave; the first order counts."""
        if self._leaving is None:
            self._leaving = leaving
            self._told.set()


def _failed(text: str, error: BaseException) -> StartError:
    return StartError(text, application_traceback(error))


def _is_cancelled(error: BaseException) -> bool:
    """Whether this task is being cancelled, rather than the application's code raising that by itself."""
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0
