"""The listener's shell around the supervisor: it feeds events in and performs the actions that come out.

It owns the sockets, the children and the one loop through which every event passes, one after another. Nothing in the
loop waits for a child, a disk or a client: packets are queued, deaths come as SIGCHLD, and what takes time (keeping new
connections out, running hooks) is a task that posts an event. It never imports the application.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
from anyio.abc import TaskGroup

from serve_asgi import __version__
from serve_asgi.agent_process import agent_lock
from serve_asgi.config import release
from serve_asgi.config.invoker import invoker
from serve_asgi.config.release import Release
from serve_asgi.config.sources import Settings
from serve_asgi.config.tls_files import TlsFiles
from serve_asgi.hub.state.shared_state import SharedState
from serve_asgi.ipc.leftovers import ListenerFiles
from serve_asgi.ipc.scoreboard import Scoreboard
from serve_asgi.listener import fleet_orders, garbage_collection, reload_on_change, sd_watchdog, statsd_gauges
from serve_asgi.listener import listening_sockets as sockets
from serve_asgi.listener import stack_dumps as stacks
from serve_asgi.listener.action_performer import ActionPerformer
from serve_asgi.listener.admin_process import AdminProcess
from serve_asgi.listener.announcements import Announcements
from serve_asgi.listener.awaited_hooks import AwaitedHooks
from serve_asgi.listener.blocked_workers import BlockedWorkers
from serve_asgi.listener.canary_watch import CanaryWatch
from serve_asgi.listener.certificate_watch import CertificateWatch
from serve_asgi.listener.children import ROWS, SLOTS, Children
from serve_asgi.listener.control_server import ControlServer
from serve_asgi.listener.deploy_history import DeployHistory, DeployKind
from serve_asgi.listener.event_history import EventRecorder, History
from serve_asgi.listener.generation_config import GenerationConfig, GenerationConfigs, policy_of
from serve_asgi.listener.helper_processes import HelperProcesses
from serve_asgi.listener.hooks import Hooks
from serve_asgi.listener.hub_commands import HubCommands
from serve_asgi.listener.hub_links import HubLinks, hub_settings
from serve_asgi.listener.pid_file import PidFile
from serve_asgi.listener.re_exec import ReExec
from serve_asgi.listener.re_exec_registry import InheritedState
from serve_asgi.listener.reload_spans import ReloadSpans
from serve_asgi.listener.signal_handlers import SignalHandlers
from serve_asgi.listener.status import admin_state, briefly, effective_config, past, shown_deploys, status
from serve_asgi.listener.store_process import StoreProcess
from serve_asgi.listener.stored_deploys import StoredDeploys
from serve_asgi.logs import log_access
from serve_asgi.supervisor import actions
from serve_asgi.supervisor import events as e
from serve_asgi.supervisor.lifecycles import ServerState, Worker
from serve_asgi.supervisor.supervisor import Supervisor

if TYPE_CHECKING:
    from serve_asgi.listener.certificate_loading import LoadedTls

FIGURES_PERIOD = 1.0
"""Seconds between two checks for new figures of the hub for the admin process."""

log = logging.getLogger("serve")


class Listener:
    """One server. `run` returns when it has ended."""

    def __init__(
        self,
        first: GenerationConfig,
        listening: list[sockets.ListeningSocket],
        pid_file: PidFile | None,
        admin: list[sockets.ListeningSocket],
        inherited: InheritedState | None = None,
        tls: tuple[TlsFiles, LoadedTls] | None = None,
    ) -> None:
        """`first` is for the generation that begins, or already serves.

        `listening` are the application's sockets, `admin` those of --admin. `inherited` is the state of an earlier
        program of this process, if there was one; else `tls` is what was read from the files of certificates, if there
        are any.
        """
        config = first.settings.config
        self.listening = listening
        self.pid_file = pid_file
        self.admin_listening = admin
        self.performer = ActionPerformer(self)
        self.processes = HelperProcesses()
        self.recorder = EventRecorder(lambda number: self.children.pid_of(number))
        board = Scoreboard.create(ROWS, SLOTS) if inherited is None else inherited.scoreboard
        self.links = HubLinks(hub_settings(config), board, self.recorder.record, self._member_broken)
        self.links.leased = lambda token: self.post(e.AgentLeaseChanged(token))
        self.certificates = CertificateWatch(
            tls,
            lambda: [child.worker for child in self.children if isinstance(child.worker, Worker)],
            lambda worker: self.configs.tls_files(worker.generation),
            lambda worker, packet, given: self.children.tell(worker, packet, given),
            self._certificates_changed,
            None if inherited is None else inherited.tls,
        )
        if inherited is None:
            self.started = time.monotonic()
            self.start_directory = release.logical_directory()
            self.supervisor = Supervisor(policy_of(config))
            self.children = Children(
                listening,
                self.post,
                self.links,
                board,
                self.performer.end_broken,
                tls=self.certificates,
                record=self.recorder.record,
            )
            self.history, self.deploys = History(), DeployHistory()
        else:
            self.started, self.start_directory = inherited.started, inherited.start_directory
            self.supervisor = inherited.supervisor
            self.children = Children(
                listening,
                self.post,
                self.links,
                board,
                self.performer.end_broken,
                inherited.children,
                self.certificates,
                self.recorder.record,
            )
            self.history, self.deploys = inherited.history, inherited.deploys
            self.children.templates.take(inherited.templates)
            self.children.memories.take(inherited.metric_memories)
            self.links.load(inherited.links)
        self.children.is_helper = self.processes.knows
        self._inherited = inherited
        begun = {} if inherited is None else inherited.configs
        generations = self.supervisor.generations
        self.configs = GenerationConfigs(
            first,
            self.start_directory,
            {generations[number]: each for number, each in begun.items()},
            () if inherited is None else inherited.previous_releases,
        )
        self.when_running: list[Callable[[], object]] = []
        """Called once signals and the control socket are served."""
        self.re_exec = ReExec(self)
        self.exit: actions.Exit | None = None
        self.changes: reload_on_change.FileChanges | None = None
        self._post, self._events = anyio.create_memory_object_stream[e.Event](math.inf)
        self.tasks: TaskGroup
        self.admin = AdminProcess(
            config,
            admin,
            listening,
            board,
            self.processes,
            lambda: self.children,
            lambda: self.children.memories.all.values(),
            self._admin_state,
            self.history,
            self.started,
            earlier=0 if inherited is None else inherited.admin_process,
        )
        self.children.memories_changed = self.admin.changed
        self.stored_deploys = StoredDeploys(self.links.hub, self.deploys) if config.state else None
        self.store = self._make_store() if config.state else None
        self.fleet = fleet_orders.member(self, self.store, None if inherited is None else inherited.fleet)
        path = Path(self.start_directory, config.control) if config.control else None
        self.hub = HubCommands(self.links.hub, self.links.keep_deadline)
        self.control = ControlServer(path, self)
        self.hooks = Hooks(config, self.processes, self.recorder.record, self._release, lambda: self.control.path)
        self.canaries = CanaryWatch(
            self.children.sample,
            self.post,
            self.hooks,
            lambda generation: self.configs.all[generation],
            lambda: self.control.path,
        )
        self.children.listening_for = self.canaries.listening_for
        self.children.files = self._files
        self.recorder.recipients += [
            self.history.add,
            self.deploys.take,
            lambda _: self._keep_deploys(),
            self.control.commands.happened,
            self.admin.happened,
            self.hooks.happened,
            ReloadSpans(self.children, lambda: self.supervisor.processes.current, self.children.tell).happened,
        ]
        if self.fleet is not None:
            member = self.fleet
            self.recorder.recipients.append(lambda _: member.changed())
        addresses = [each.name for each in listening]
        self.announcements = Announcements(
            *(pid_file, addresses, self.admin.names, config.health_path if config.health else ""),
            told=inherited is not None,
        )
        self._signals = SignalHandlers(self.post, self._reap, config.reload)
        self.awaited_hooks = AwaitedHooks(self.hooks, self.post, lambda: self.supervisor.state is ServerState.RUNNING)
        self.blocked_workers = BlockedWorkers(
            self.children, lambda: self.settings.config.worker_timeout, self.post, self.recorder.record
        )

    async def run(self) -> actions.Exit:
        """Serve until a signal or a failed first start ends the server; return how it ended."""
        async with anyio.create_task_group() as self.tasks:
            self.children.tasks = self.hooks.tasks = self.awaited_hooks.tasks = self.tasks
            self.canaries.tasks = self.tasks
            await self._listen_to_orders()
            if self.store is not None:
                await self._have_state(self.store)
            self._start_services()
            if self.exit is None:
                self._begin()
            while self.exit is None:
                await self._handle_next_event()
            await self._end_services()
            self.tasks.cancel_scope.cancel()
        self.links.close()
        self._events.close()
        self._post.close()
        assert self.exit is not None
        return self.exit

    # The steps of its life

    async def _listen_to_orders(self) -> None:
        """Serve the control socket, the hub's links and signals from here on."""
        if self.settings.config.control_socket:
            # Before the signals: threads started here inherit that they are blocked.
            await self.tasks.start(self.control.serve, None if self._inherited is None else self._inherited.control)
        self.links.start()
        await self.tasks.start(self._signals.watch)

    def _start_services(self) -> None:
        """Start the tasks that run besides the event loop."""
        start = self.tasks.start_soon
        start(self.admin.run)
        if self.fleet is not None:
            self.fleet.tasks = self.tasks
            start(self.fleet.run)
        if self.admin.names:
            start(self._tell_figures)
        start(self.admin.end_earlier)
        if self.settings.config.statsd:
            start(statsd_gauges.send_gauges, self.settings.config, self.children)
        start(self.blocked_workers.run)
        start(self.certificates.run)
        garbage_collection.begin()
        start(garbage_collection.run)
        start(sockets.keep_open, self.listening, self._backlog, self._is_open, self.recorder.record)
        if self.settings.config.reload:
            missed = self._inherited is not None
            self.changes = reload_on_change.FileChanges(
                self.settings, self.processes, self.post, self.recorder.record, missed=missed
            )
            start(self.changes.run)
        start(sd_watchdog.keep_informed, self.supervisor, self.children, lambda: self.awaited_hooks.asking)

    async def _handle_next_event(self) -> None:
        """Wait for an event or the supervisor's next deadline; perform what the supervisor decides."""
        event: e.Event = e.Wakeup()
        with anyio.move_on_after(self.supervisor.next_deadline() - time.monotonic()):
            event = await self._events.receive()
        if (order := self.awaited_hooks.admit(event, self.supervisor.drain.on is not None)) is not None:
            self._do(self._decide(order))
        self.admin.changed()
        if self.re_exec.due():
            await self.re_exec.attempt()

    async def _end_services(self) -> None:
        """The server has ended: end the hooks, the control socket, the admin process and the store, in this order."""
        await self.children.templates.end()
        if self.changes is not None:
            self.changes.stop()
        await self._finish_hooks()
        await self.control.finish()
        await self.admin.finish()
        self.deploys.server_ends(self.exit.message if self.exit is not None else "")
        self._keep_deploys()
        if self.fleet is not None:
            self.fleet.leave()
        if self.store is not None:
            await self.store.finish()
        await self.processes.kill()

    def _make_store(self) -> StoreProcess:
        """Create the store process for --state, and connect it to the hub."""
        config, left = self.settings.config, None if self._inherited is None else self._inherited.store

        def take(data: bytes) -> None:
            self.links.hub.take_from_store(data)
            self.links.keep_deadline()

        def changed(trouble: str) -> None:
            self.links.hub.store_changed(trouble)
            self.links.keep_deadline()
            self._keep_deploys(again=True)

        known = self.links.hub.component(SharedState).all_entries
        store = StoreProcess(
            config, self.start_directory, self.processes, take, changed, self.recorder.record, left, known
        )
        self.links.store = store.send
        return store

    async def _have_state(self, store: StoreProcess) -> None:
        """Start the store and, at a first start, wait for the state; a stop of the server ends the wait."""
        self.tasks.start_soon(store.run)
        if self._inherited is not None:
            return
        async with anyio.create_task_group() as wait:
            wait.start_soon(self._end_at_stop, wait.cancel_scope)
            await store.first()
            if store.failure is not None:
                self.exit = actions.Exit(store.failure[1], store.failure[0])
            wait.cancel_scope.cancel()

    async def _end_at_stop(self, scope: anyio.CancelScope) -> None:
        """End the wait at a stop; other events that arrive meanwhile are handled later."""
        later: list[e.Event] = []
        try:
            while not isinstance(event := await self._events.receive(), (e.StopAsked, e.QuickStopAsked)):
                later.append(event)
            self.exit = actions.Exit(0)
            scope.cancel()
        finally:
            for each in later:
                self.post(each)

    def _begin(self) -> None:
        """Start the first generation, or continue with the workers of an earlier program of this process."""
        self.deploys.place = self._directory()
        if self._inherited is None:
            agent_lock.remove_unused()
            self.deploys.begin("start", DeployKind.START, invoker())
            self._do(self.supervisor.start(time.monotonic()))
            return
        for child in self.children:
            self.children.attend(child)
        self.children.templates.attend_all()
        self._do([])  # tells the hub of those that the earlier program killed, before they are reaped
        self._reap()
        text = f"the listener runs serve {__version__} from {sys.executable}, in place of {self._inherited.predecessor}"
        self.recorder.record(actions.LogEvent(logging.INFO, "listener_replaced", text))
        for do in self.when_running:
            do()

    @property
    def settings(self) -> Settings:
        """The current generation's settings."""
        return self.configs.settings

    def busy(self) -> str:
        """What is under way that only this program can finish; "" if nothing is."""
        if self.hooks.busy or self.awaited_hooks.asking:
            return "hooks were running"
        if self.children.templates.busy:
            return "workers were being forked"
        if self.fleet is not None and self.fleet.busy:
            return "an order of the fleet was being carried out"
        return "control commands were in progress" if self.control.answering > 1 else ""

    def has_events(self) -> bool:
        """Whether there are events that have not been handled."""
        return self._events.statistics().current_buffer_used > 0

    async def replace(self, asker: int) -> None:
        """Replace this program by the current release's (`ReExec.ask`)."""
        await self.re_exec.ask(asker)

    def _decide(self, event: e.Event) -> list[actions.Action]:
        """Ask the supervisor; a bug in it must not take down anything but the process that triggered it."""
        try:
            return self.supervisor.handle(event, time.monotonic())
        except Exception as error:
            log.exception("the listener could not handle %s; please report this", type(event).__name__)
            process = getattr(event, "worker", None) or getattr(event, "agent", None)
            if process is not None:
                self.performer.end_broken(
                    process, f"the listener could not handle {type(event).__name__}: {error!r:.100}"
                )
            return []

    def post(self, event: e.Event) -> None:
        """Queue an event; events are handled in order."""
        self._post.send_nowait(event)

    # From the kernel

    def _reap(self) -> None:
        """Reap everything that has ended: our children, and as PID 1 also orphans."""
        while True:
            try:
                pid, wait_status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if not self.children.reaped(pid, wait_status) and not self.processes.reaped(pid, wait_status):
                log.debug("reaped an adopted process, PID %d", pid)

    # Actions

    def _do(self, decided: list[actions.Action]) -> None:
        """Perform actions; the hub learns of them before the processes concerned do."""
        try:
            self.links.follow(self.supervisor)
        except Exception:
            log.exception("the hub could not follow; please report this")
        self.performer.perform(decided)

    def _member_broken(self, member: int, why: str) -> None:
        """End a process that has broken the protocol of its link."""
        process = self.supervisor.workers.get(member) or self.supervisor.agents.all.get(member)
        if process is not None:
            self.performer.end_broken(process, why)

    async def _finish_hooks(self) -> None:
        """Let hooks use their time; a further stop kills them."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._hurry_hooks)
            await self.hooks.finish()
            tasks.cancel_scope.cancel()

    async def _hurry_hooks(self) -> None:
        while True:
            if isinstance(await self._events.receive(), (e.StopAsked, e.QuickStopAsked)):
                self.hooks.hurry()

    def _backlog(self) -> int:
        return self.settings.config.backlog

    def _is_open(self) -> bool:
        return self.supervisor.state in (ServerState.RUNNING, ServerState.DRAINING)

    def _release(self) -> Release | None:
        """The release that hooks run in: that of the current generation, or the first one."""
        return self.configs.release_of(self.supervisor.current)

    def _admin_state(self) -> dict[str, Any]:
        """The present state, for the admin process."""
        state = admin_state(self.supervisor, self.children, self.history, self.links.hub.metrics())
        return {
            **state,
            "certificates": self.certificates.ends(),
            "store_connected": self.store and self.store.connected,
            "templates": self.children.templates.status(),
            "hub_report": self.hub.shown(values=self.admin.is_local),
            "deploys": shown_deploys(self.deploys),
            "deploy_outcomes": dict(self.deploys.outcomes),
            "canary": self.supervisor.trials.status(time.monotonic()),
        }

    def _certificates_changed(self, said: actions.LogEvent) -> None:
        """Record what has happened to certificates, which is not an event of the supervisor."""
        self.recorder.record(said)
        self.admin.changed()

    async def _tell_figures(self) -> None:
        """Report changes of the hub's figures and of the store, which are not events of the supervisor."""
        told: object = None
        while True:
            await anyio.sleep(FIGURES_PERIOD)
            connected = self.store and self.store.connected
            figures = (self.links.hub.metrics(), self.hub.shown(values=self.admin.is_local), connected)
            if figures != told:
                told = figures
                self.admin.changed()

    def status(self) -> dict[str, Any]:
        """What `serve status --json` shows."""
        names = [listening.name for listening in self.listening]
        shown = status(
            self.supervisor,
            self.children.scoreboard,
            self.children.by_pid,
            names,
            self.started,
            self.settings.config.app,
        )
        return {
            **shown,
            **past(self.history),
            **self._places(),
            "last_deploy": self.deploys.newest(),
            "deploys": briefly(self.deploys),
            "admin": self.admin.names,
            "state_store": self.store and self.store.status(),
            "tls": self.certificates.status(),
            "templates": self.children.templates.status(),
        }

    def _places(self) -> dict[str, Any]:
        """Where it finds its code, links and all, and the directories of the release that serves."""
        found = self._release()  # known before it serves
        places: dict[str, Any] = {"directory": self._directory(), "places": {} if found is None else found.places}
        if found is not None and self.supervisor.current is not None:
            places |= {"release": found.code or found.directory, "app_dir": found.app_dir}
        return places

    def log_files_trouble(self) -> str:
        """Which log file cannot be reopened, why, and what to do about it; "" if all can."""
        config = self.settings.config
        return log_access.trouble((config.log_file, config.access_log_file), config.user, config.group)

    def _directory(self) -> str:
        return os.path.normpath(os.path.join(self.start_directory, self.settings.config.chdir))

    def _files(self) -> dict[str, Any]:
        control = "" if self.control.path is None else os.path.join(self.start_directory, self.control.path)
        return ListenerFiles.described("" if self.pid_file is None else self.pid_file.path, control)

    def config_shown(self) -> dict[str, Any]:
        """What `serve config --json` shows."""
        current = self.configs.of(self.supervisor.current)
        found = None if current is None else current.release
        names = [listening.name for listening in self.listening]
        size = self.supervisor.size
        return effective_config(self.settings, found, names, self.admin.names, self.control.path, size)

    def _keep_deploys(self, *, again: bool = False) -> None:
        """Write the deploys where they survive a restart, if one has ended; `again`: also what was not taken before."""
        if self.stored_deploys is not None:
            self.stored_deploys.write(again)

    async def reload_certificates(self) -> tuple[bool, str]:
        """Look at the files of certificates now; whether all is well, and a sentence."""
        return await self.certificates.reload()

    async def stacks(self, timeout: float) -> dict[str, Any]:
        """What `serve stacks --json` shows."""
        return await stacks.survey(self.children, timeout, self.children.silent_for)
