"""Performs the supervisor's actions (`serve_asgi.supervisor.actions`), at once and without waiting.

What takes time (reading a configuration, keeping new connections out) is a task that posts an event. An action that
fails, for example for lack of a descriptor, does not stop the others.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from serve_asgi.agent_process import agent_lock
from serve_asgi.errors import UsageError
from serve_asgi.listener import listening_sockets as sockets
from serve_asgi.listener.deploy_history import DeployKind
from serve_asgi.logs import server_log as logs
from serve_asgi.supervisor import actions
from serve_asgi.supervisor.lifecycles import ON_TRIAL, Agent, AppProcess, Generation, WorkerState, counted

if TYPE_CHECKING:
    from serve_asgi.listener.listener import Listener

log = logging.getLogger("serve")


class ActionPerformer:
    """Performs the actions of one listener's supervisor."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener

    def perform(self, decided: Sequence[actions.Action]) -> None:
        """Perform all of them, in order; a failure is logged, and the rest are performed."""
        for action in decided:
            try:
                self._perform(action)
            except Exception:  # such as EMFILE: the server continues without this action
                log.exception("the listener could not do %s", type(action).__name__)

    def _perform(self, action: actions.Action) -> None:
        listener, children = self._listener, self._listener.children
        match action:
            case actions.PrepareReload(by, previous):
                listener.deploys.begin(by, DeployKind.ROLLBACK if previous else DeployKind.RELOAD)
                listener.tasks.start_soon(self._prepare_reload, by, previous)
            case actions.PrepareGeneration(generation):
                self._begin_generation(generation)
            case actions.BeginRollback(generation, by, reason):
                listener.deploys.begin(by, DeployKind.ROLLBACK, reason=reason)
                self._deploys(generation)
            case actions.AdoptGeneration(generation):
                self._adopt(generation)
            case actions.ForgetGeneration(generation):
                if (
                    listener.configs.forget(generation)
                    and not listener.supervisor.has_agent
                    and not listener.supervisor.agents.all
                ):
                    self._clear_lock_away()  # the reload removed the agent, or failed to add one
                children.templates.forget(generation)
                listener.certificates.keep(listener.configs.all_tls_files())
            case actions.StartWorker(worker) | actions.StartAgent(worker):
                made_with = listener.configs.all[worker.generation]
                children.start(worker, made_with.release, made_with.settings.config)
            case actions.OpenPorts():
                listener.post(sockets.open_all(listener.listening, listener.settings.config.backlog))
            case actions.ShutOut():
                listener.tasks.start_soon(self._shut_out)
            case actions.ClosePorts():
                if listener.settings.config.agent:
                    self._clear_lock_away()
                for each in listener.listening:
                    each.close()
            case actions.TellServe(worker):
                children.serve(worker)
            case actions.WatchCanary(canary):
                listener.canaries.watch(canary, listener.supervisor.current)
            case actions.WatchSwitch(current, previous):
                listener.canaries.watch_switch(current, previous)
            case actions.LimitAccepting(worker, share):
                children.tell(worker, {"type": "limit accepting", "share": share})
            case actions.TellLend(worker, share):
                children.tell(worker, {"type": "lend", "share": share})
            case actions.TellPromoted(worker):
                children.tell(worker, {"type": "promoted"})
            case actions.TellRetire(worker, reason, accept_queued):
                children.tell(worker, {"type": "retire", "reason": reason, "accept_queued": accept_queued})
            case actions.TellStandBy(worker, reason):
                children.stand_by(worker, reason)
            case actions.TellEnter(agent, token):
                children.tell(agent, {"type": "enter", "token": token})
            case actions.TellFinish(agent, reason, timeout):
                children.tell(agent, {"type": "finish", "reason": reason, "timeout": timeout})
            case actions.TellQuit(worker):
                children.quit(worker)
            case actions.TellReopen(worker):
                children.tell(worker, {"type": "reopen"})
            case actions.TellVerdict(worker, pair, keep):
                children.tell(worker, {"type": "verdict", "pair": pair, "keep": keep})
            case actions.ConnectPair(sender, receiver, pair):
                children.connect_pair(sender, receiver, pair)
            case actions.Kill(worker, why):
                self._kill(worker, why)
            case actions.SetAgentMissing(missing):
                children.scoreboard.agent_missing = missing
            case actions.SetDrain(on):
                children.scoreboard.draining_since = time.monotonic_ns() if on else 0
            case actions.ReopenLogs():
                logs.reopen()
                listener.tasks.start_soon(listener.certificates.look)
                listener.admin.reopen()
                children.templates.reopen()
                if listener.store is not None:
                    listener.store.reopen()
            case actions.LogEvent():
                listener.recorder.record(action)
            case actions.AnswerReload(ticket, ok, text, detail):
                listener.control.commands.answer(ticket, ok, text, detail)
            case actions.Announce(what, text):
                listener.announcements.announce(what, text)
            case actions.Exit():
                listener.exit = action

    def _begin_generation(self, generation: Generation) -> None:
        self._listener.configs.begin(generation)
        self._deploys(generation)

    def _deploys(self, generation: Generation) -> None:
        """Note what the deploy that has begun deploys."""
        listener = self._listener
        begun = listener.configs.all[generation]
        listener.deploys.generation_begins(
            begun.version(generation.number), listener.settings.changes_to(begun.settings)
        )
        if generation.state in ON_TRIAL:
            listener.canaries.prepare(generation, begun.settings.config)

    def _clear_lock_away(self) -> None:
        agent_lock.clear_away(listening.name for listening in self._listener.listening)

    def _kill(self, worker: AppProcess, why: str, level: int = logging.WARNING) -> None:
        in_flight = self._listener.children.kill(worker)
        if worker.generation.superseded:  # a newer process runs the same code
            level = logging.DEBUG
        if isinstance(worker, Agent):
            about: dict[str, Any] = {"worker": worker.id, "generation": worker.generation.number, "reason": why}
            self._listener.recorder.record(
                actions.LogEvent(level, "agent_killed", f"{worker} is killed: {why}", "", about)
            )
            return
        lost = f"; lost: {counted(in_flight, 'request')}"
        if worker.serving_since == math.inf and worker.state is WorkerState.ENDING and level == logging.WARNING:
            # Told to quit while it started, as the replacement of one that a switch has retired: nothing is amiss.
            level, lost = logging.INFO, ", before it had served"
        text = f"{worker} is killed: {why}{lost}"
        who = {"worker": worker.id, "generation": worker.generation.number, "slot": worker.slot}
        about = {**who, "reason": why, "in_flight": in_flight}
        self._listener.recorder.record(actions.LogEvent(level, "worker_killed", text, "", about))

    def end_broken(self, process: AppProcess, why: str) -> None:
        """End a process that has broken the protocol; it counts as any other death."""
        if not process.stuck and self._listener.children.of(process) is not None:
            process.stuck = why
            self._kill(process, why, logging.ERROR)

    async def _prepare_reload(self, by: str, previous: bool) -> None:
        self._listener.post(
            await self._listener.configs.prepare(
                by,
                self._listener.supervisor.current,
                self._listener.hooks,
                self._listener.processes,
                self._listener.certificates,
                previous=previous,
            )
        )

    async def _shut_out(self) -> None:
        self._listener.post(await sockets.shut_out_all(self._listener.listening))

    def _adopt(self, generation: Generation) -> None:
        """The generation serves: its configuration is the server's from here on."""
        before = self._listener.configs.adopt(generation)
        settings = self._listener.settings
        if self._listener.changes is not None:
            self._listener.changes.use(settings)
        if changed := before.changed(settings):
            told = f"configuration: {', '.join(before.changes_to(settings))}"
            level = logging.INFO
            if generation.is_rollback:
                level = logging.WARNING
                told += ", as before the deploy that was rolled back; the next reload follows the file again"
            self._listener.recorder.record(actions.LogEvent(level, "config_changed", told, "", {"options": changed}))
            self._listener.hooks.use(settings.config)
            try:
                logs.configure(settings.config, "listener")
            except UsageError as error:
                log.error("the log stays as it was: %s", error)
