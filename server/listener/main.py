"""The listener's shell: it performs what the supervisor decides and feeds back what comes of it.

It owns the sockets, the scoreboard, the children and the one loop through which every event passes, one after another.
Nothing in the loop waits for a child, a disk or a client: sends lie in outboxes, deaths come as SIGCHLD, and what takes
time (keeping new connections out) is a task that posts an event. It never imports the application.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import anyio
from anyio.abc import TaskGroup

from server import logs, output
from server.channel import PROTOCOL, Packet, speaks
from server.config import Config
from server.errors import ChannelError, ServeError, StartError, UsageError
from server.listener import events as e
from server.listener import notify, release, sockets
from server.listener.child import Child, describe, handover_pair, spawn
from server.listener.control import ControlServer
from server.listener.lifecycle import Generation, Worker, counted
from server.listener.pidfile import PidFile
from server.listener.status import status
from server.listener.supervisor import Policy, Supervisor
from server.scoreboard import Cell, Scoreboard
from server.signals import LISTENER_SIGNALS

ROWS = 1024
"""Processes that may be alive at once."""
SLOTS = 256
"""Slots with totals of their own; further ones share the last."""
HANDSHAKE_TIME = 1.0
"""Seconds that a TCP handshake under way has to complete once new ones are kept out (the first retransmission)."""

log = logging.getLogger("serve")

_MEANINGS: Final[dict[signal.Signals, e.Event]] = {
    signal.SIGHUP: e.ReloadAsked(),
    signal.SIGUSR1: e.ReopenAsked(),
    signal.SIGUSR2: e.LameDuckAsked(on=True),
    signal.SIGTERM: e.StopAsked(),
    signal.SIGINT: e.QuickStopAsked(),
    signal.SIGQUIT: e.QuickStopAsked(),
    signal.SIGTTIN: e.ScaleAsked(by=1),
    signal.SIGTTOU: e.ScaleAsked(by=-1),
}
"""What each signal says; SIGCHLD is the kernel's, and SIGWINCH says nothing."""


def policy_of(config: Config) -> Policy:
    """The supervisor's numbers out of the configuration."""
    return Policy(
        workers=config.workers,
        start_concurrency=config.start_concurrency or max(1, len(os.sched_getaffinity(0)) // 2),
        max_generations=config.max_generations,
        startup_timeout=config.startup_timeout,
        graceful_timeout=config.graceful_timeout,
        shutdown_timeout=config.shutdown_timeout,
        drain_delay=config.drain_delay,
    )


class Listener:
    """One server. `run` returns when it has ended."""

    def __init__(self, config: Config, listening: list[sockets.Listening], pid_file: PidFile | None) -> None:
        self.config = config
        self.listening = listening
        self.pid_file = pid_file
        self.started = time.monotonic()
        self.start_directory = release.logical_directory()
        self.supervisor = Supervisor(policy_of(config))
        self.scoreboard = Scoreboard.create(ROWS, SLOTS)
        self.children: dict[int, Child] = {}  # by PID
        self.releases: dict[Generation, release.Release | UsageError] = {}
        self.exit: e.Exit | None = None
        self._free_rows = list(range(ROWS - 1, -1, -1))
        self._post, self._events = anyio.create_memory_object_stream[e.Event](math.inf)
        self._tasks: TaskGroup
        path = Path(self.start_directory, config.control) if config.control else None
        self.control = ControlServer(path, self)

    async def run(self) -> e.Exit:
        """Serve until a signal or a failed first start ends the server; return how it ended."""
        async with anyio.create_task_group() as self._tasks:
            if self.config.control_socket:  # before the signals: threads made on the way inherit that they are blocked
                await self._tasks.start(self.control.serve)
            await self._tasks.start(self._watch_signals)
            self._perform_all(self.supervisor.start(time.monotonic()))
            while self.exit is None:
                event: e.Event = e.Tick()
                with anyio.move_on_after(self.supervisor.next_deadline() - time.monotonic()):
                    event = await self._events.receive()
                self._perform_all(self._decide(event))
            await self.control.finish()
            self._tasks.cancel_scope.cancel()
        self._events.close()
        self._post.close()
        assert self.exit is not None
        return self.exit

    def _decide(self, event: e.Event) -> list[e.Action]:
        """What the supervisor wants done; a bug in it must not take down what serves."""
        try:
            return self.supervisor.handle(event, time.monotonic())
        except Exception:
            log.exception("the listener could not deal with %s; please report this", type(event).__name__)
            return []

    def post(self, event: e.Event) -> None:
        """Add an event to those that the loop handles, in order."""
        self._post.send_nowait(event)

    # Signals

    async def _watch_signals(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        with anyio.open_signal_receiver(*(LISTENER_SIGNALS - {signal.SIGWINCH})) as signals:
            signal.signal(signal.SIGWINCH, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, LISTENER_SIGNALS)
            task_status.started()
            try:
                await self._record_signals(signals)
            finally:  # once the handlers are gone, a late HUP would kill what has only its pid file left to remove
                signal.pthread_sigmask(signal.SIG_BLOCK, LISTENER_SIGNALS)

    async def _record_signals(self, signals: AsyncIterator[signal.Signals]) -> None:
        async for received in signals:
            if received == signal.SIGCHLD:
                self._reap()
            else:
                self.post(_MEANINGS[received])

    def _reap(self) -> None:
        """Reap everything that has ended: our children, and as PID 1 whatever was left to us."""
        while True:
            try:
                pid, wait_status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            child = self.children.pop(pid, None)
            if child is None:
                log.debug("reaped an adopted process, PID %d", pid)
                continue
            in_flight = self.scoreboard.row(child.row)[Cell.IN_FLIGHT]
            try:
                self._read_rest(child)
                self._free_row(child)
                child.close()
            except Exception:
                log.exception("not all that belonged to %s could be given back", child.worker)
            self.post(e.WorkerDied(child.worker, describe(wait_status), in_flight))

    def _read_rest(self, child: Child) -> None:
        """What the child said last is handled before its death is."""
        try:
            while (received := child.channel.try_receive()) is not None:
                self._take_packet(child, received[0])
        except (EOFError, ChannelError, LookupError, ValueError, TypeError):
            pass

    # Workers

    def _start(self, worker: Worker) -> None:
        prepared = self.releases.get(worker.generation, UsageError("what its generation runs on is not known"))
        try:
            if isinstance(prepared, UsageError):
                raise prepared
            child = self._spawn(worker, prepared)
        except Exception as error:
            if not isinstance(error, (UsageError, OSError)):
                log.exception("%s could not be started", worker)
            self.post(e.WorkerFailed(worker, str(error), usage=isinstance(error, UsageError)))
            self.post(e.WorkerDied(worker, "it was never started"))
            return
        self.children[child.pid] = child
        self._tasks.start_soon(self._send_to, child)
        self._tasks.start_soon(self._listen_to, child)
        child.outbox.tell(
            {
                "type": "welcome",
                "protocol": PROTOCOL,
                "generation": worker.generation.number,
                "slot": worker.slot,
                "row": child.row,
                "config": self.config.to_json(),
                "directory": prepared.directory,
                "app_dir": prepared.app_dir,
                "sockets": [listening.describe() for listening in self.listening],
            },
            lent=[self.scoreboard.fd, *(listening.socket.fileno() for listening in self.listening)],
        )

    def _spawn(self, worker: Worker, prepared: release.Release) -> Child:
        if not self._free_rows:
            raise UsageError(f"{ROWS} processes are alive, the most that there can be: use fewer workers")
        child = spawn(worker, prepared, self._free_rows[-1])
        self._free_rows.pop()
        cells = self.scoreboard.row(child.row)
        cells[Cell.PID], cells[Cell.GENERATION], cells[Cell.SLOT] = child.pid, worker.generation.number, worker.slot
        log.debug("%s has PID %d", worker, child.pid)
        return child

    def _free_row(self, child: Child) -> None:
        self.scoreboard.fold(child.row, child.worker.slot)
        self._free_rows.append(child.row)

    async def _send_to(self, child: Child) -> None:
        """Send what lies in the child's outbox until it is closed."""
        try:
            await child.outbox.run()
        except Exception:
            log.exception("%s cannot be spoken to and is killed", child.worker)
            if child.pid in self.children:
                child.kill()

    async def _listen_to(self, child: Child) -> None:
        """Take the child's packets until its end of the channel closes; its death is told by SIGCHLD."""
        try:
            while True:
                packet, descriptors = await child.channel.receive()
                for descriptor in descriptors:
                    os.close(descriptor)
                self._take_packet(child, packet)
        except (EOFError, anyio.ClosedResourceError):
            pass
        except (ChannelError, OSError, LookupError, ValueError, TypeError) as error:
            if child.pid in self.children:
                log.error("%s broke the protocol and is killed: %r", child.worker, error)
                child.kill()

    def _take_packet(self, child: Child, packet: Packet) -> None:
        worker = child.worker
        match packet["type"]:
            case "hello":
                if not speaks(packet.get("protocol")):
                    text = f"it speaks version {packet.get('protocol')} of the channel, this listener {PROTOCOL}"
                    self.post(e.WorkerFailed(worker, f"{text}; restart the server to change to that version"))
            case "ready":
                self.post(e.WorkerReady(worker))
            case "failed":
                detail = str(packet.get("detail", ""))
                self.post(e.WorkerFailed(worker, packet["message"], detail, bool(packet.get("usage"))))
            case "accepts":
                self.post(e.WorkerAccepts(worker))
            case "recycle":
                self.post(e.WorkerWantsReplacement(worker, str(packet["reason"])))
            case "finished":
                self.post(e.WorkerFinished(worker, packet))
            case "withdrawn":
                self.post(e.PairWithdrawn(worker, int(packet["pair"])))
            case "orphaned":
                self.post(e.PairOrphaned(worker, int(packet["pair"])))
            case other:
                log.debug("%s sent a packet of type %r, which this version does not know", worker, other)

    def child_of(self, worker: Worker) -> Child | None:
        """The process of `worker`, if it has one."""
        return next((child for child in self.children.values() if child.worker is worker), None)

    def _tell(self, worker: Worker, packet: Packet, given: tuple[int, ...] = ()) -> None:
        child = self.child_of(worker)
        if child is None:
            for descriptor in given:
                os.close(descriptor)
        else:
            child.outbox.tell(packet, given=given)

    # Actions

    def _perform_all(self, actions: list[e.Action]) -> None:
        for action in actions:
            try:
                self._perform(action)
            except Exception:  # such as EMFILE: one thing is not done, the server goes on
                log.exception("the listener could not do %s", type(action).__name__)

    def _perform(self, action: e.Action) -> None:
        match action:
            case e.PrepareGeneration(generation):
                self.releases[generation] = self._prepare()
            case e.ForgetGeneration(generation):
                self.releases.pop(generation, None)
            case e.Start(worker):
                self._start(worker)
            case e.OpenPorts():
                self._open_ports()
            case e.ShutOut():
                self._tasks.start_soon(self._shut_out)
            case e.ClosePorts():
                for listening in self.listening:
                    listening.close()
            case e.TellServe(worker):
                self._tell(worker, {"type": "serve"})
            case e.TellRetire(worker, reason, drain_queue):
                self._tell(worker, {"type": "retire", "reason": reason, "drain_queue": drain_queue})
            case e.TellQuit(worker):
                self._tell(worker, {"type": "quit"})
            case e.TellReopen(worker):
                self._tell(worker, {"type": "reopen"})
            case e.TellVerdict(worker, pair, keep):
                self._tell(worker, {"type": "verdict", "pair": pair, "keep": keep})
            case e.Introduce(sender, receiver, pair):
                self._introduce(sender, receiver, pair)
            case e.Kill(worker, why):
                self._kill(worker, why)
            case e.SetLameDuck(on):
                self.scoreboard.lame_duck = time.monotonic_ns() if on else 0
            case e.ReopenLogs():
                logs.reopen()
            case e.Say(level, text, detail):
                log.log(level, "%s", f"{text}\n{detail.rstrip()}" if detail else text)
            case e.Answer(ticket, ok, text, detail):
                self.control.answer(ticket, ok, text, detail)
            case e.Announce(what, text):
                self._announce(what, text)
            case e.Exit():
                self.exit = action

    def _prepare(self) -> release.Release | UsageError:
        try:
            return release.resolve(self.config, self.start_directory)
        except UsageError as error:
            return error

    def _open_ports(self) -> None:
        try:
            for listening in self.listening:
                listening.listen(self.config.backlog)
        except (OSError, ServeError) as error:
            self.post(e.PortsOpened(str(error)))
        else:
            self.post(e.PortsOpened())

    async def _shut_out(self) -> None:
        """Keep new connections out, give handshakes under way the time to complete, then say so."""
        for listening in self.listening:
            try:
                listening.shut_out()
            except OSError as error:
                log.error("new connections to %s cannot be kept out before the stop: %s", listening.name, error)
        with anyio.move_on_after(HANDSHAKE_TIME):
            while any(each.owned and each.handshakes_under_way() for each in self.listening):
                await anyio.sleep(0.01)  # the kernel has no event for this
        self.post(e.ShutOutDone())

    def _introduce(self, sender: Worker, receiver: Worker, pair: int) -> None:
        there = self.child_of(receiver)
        if there is None or self.child_of(sender) is None:
            return
        sends, receives = handover_pair()
        there.outbox.tell({"type": "receive", "pair": pair}, given=[receives])
        self._tell(sender, {"type": "receiver", "pair": pair, "row": there.row}, given=(sends,))

    def _kill(self, worker: Worker, why: str) -> None:
        if (child := self.child_of(worker)) is None:
            return
        cells = self.scoreboard.row(child.row)
        cut = cells[Cell.IN_FLIGHT] + cells[Cell.WEBSOCKETS]
        log.warning("%s is killed: %s; in its hands: %s", worker, why, counted(cut, "request"))
        child.kill()

    def _announce(self, what: str, text: str) -> None:
        match what:
            case "ready":
                self._write_pid_file()
                if self.supervisor.reloads == 0 and self.supervisor.failed_reloads == 0:
                    where = ", ".join(listening.name for listening in self.listening)
                    log.info("serving on %s", where)
                notify.ready(text)
            case "reloading":
                notify.reloading(text)
            case "stopping":
                notify.stopping(text)
            case _:
                notify.status(text)

    def _write_pid_file(self) -> None:
        try:
            if self.pid_file is not None:
                self.pid_file.write()
        except UsageError as error:  # such as a full disk: the next reload tries again
            log.error("the pid file is not written: %s", error)

    def status(self) -> dict[str, Any]:
        """What `serve status --json` shows."""
        names = [listening.name for listening in self.listening]
        return status(self.supervisor, self.scoreboard, self.children, names, self.started, self.config.app)

    def config_shown(self) -> dict[str, Any]:
        """What `serve config --json` shows."""
        return {name: {"value": value} for name, value in dataclasses.asdict(self.config).items()}

    async def stacks(self, timeout: float) -> dict[str, Any]:
        """What `serve stacks --json` shows."""
        raise ServeError("the workers of this version cannot tell their stacks")


def run(config: Config) -> int:
    """Run a server until it ends; return its exit status.

    Raises UsageError if what was asked for cannot be (status 2), StartError if the application did not start (1).
    """
    release.resolve(config, release.logical_directory())
    with output.guarded():
        logs.configure(config, "listener")
        pid_file = PidFile(config.pid) if config.pid else None
        listening: list[sockets.Listening] = []
        try:
            listening = sockets.bind(config)
            end = anyio.run(Listener(config, listening, pid_file).run)
        finally:
            for each in listening:
                each.close()
            if pid_file is not None:
                pid_file.remove()
        if end.status == 2:
            raise UsageError(end.message)
        if end.status:
            raise StartError(end.message, end.detail)
        log.info("stopped")
    return 0
