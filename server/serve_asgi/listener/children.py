"""The listener's worker and agent processes: it starts them, sends to them and reaps them.

It owns the children, their channels and their rows of the scoreboard. Nothing waits for a child: packets to one go into
its send queue, and one that does not read them is ended. Packets from children are handled by
`serve_asgi.listener.child_packets`. The supervisor decides what is done, and when.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from anyio.abc import TaskGroup

from serve_asgi.agent_process.agent_lock import lock_path
from serve_asgi.config.options import Config
from serve_asgi.config.release import BEGAN, Release
from serve_asgi.errors import UsageError
from serve_asgi.ipc import packets
from serve_asgi.ipc.channel import PROTOCOL, Packet, close_descriptors
from serve_asgi.ipc.scoreboard import NO_SLOT, Cell, Row, Scoreboard
from serve_asgi.listener.canary_samples import GenerationSamples
from serve_asgi.listener.child import Child, Welcome, handover_pair
from serve_asgi.listener.child_packets import ChildPackets, WorkerTls
from serve_asgi.listener.exit_status import describe
from serve_asgi.listener.hub_links import HubLinks
from serve_asgi.listener.listening_sockets import ListeningSocket
from serve_asgi.listener.metric_memories import MetricMemories, MetricMemory
from serve_asgi.listener.spawning import spawn, unborn
from serve_asgi.listener.stack_dumps import WatchdogChannel
from serve_asgi.listener.template import StartRequest, Template
from serve_asgi.listener.templates import Templates
from serve_asgi.logs.server_log import about
from serve_asgi.supervisor import events as e
from serve_asgi.supervisor.actions import LogEvent
from serve_asgi.supervisor.canary_verdict import TrafficSample
from serve_asgi.supervisor.lifecycles import ON_TRIAL, Agent, AppProcess, Cause, Generation, Worker

ROWS = 1024
"""Processes that may be alive at once."""
SLOTS = 256
"""Slots that have totals of their own; further ones share the last."""
MOST_UNREAD: Final = 1000
"""Packets that may be queued for a child that does not read, besides those in the socket."""

MEMORIES_AT_ONCE: Final = 50
"""Memories of metrics in one packet: each takes a descriptor in flight."""
NEIGHBOURS = 64
"""Most workers that a worker is told of when it begins to serve: each takes a descriptor in flight."""

log = logging.getLogger("serve")


def row_slot(worker: AppProcess) -> int:
    """The slot in the row of a process, to whose totals its counts are added in the end."""
    return NO_SLOT if isinstance(worker, Agent) else worker.slot


def row_serial(worker: AppProcess) -> int:
    """The serial of a process in the scoreboard."""
    return worker.id + 1


class Children:
    """The children of one listener."""

    def __init__(
        self,
        listening: Sequence[ListeningSocket],
        post: Callable[[e.Event], None],
        links: HubLinks,
        scoreboard: Scoreboard,
        broken: Callable[[AppProcess, str], None],
        children: Iterable[Child] = (),
        tls: WorkerTls | None = None,
        record: Callable[[LogEvent], object] = lambda said: None,
    ) -> None:
        """`children` are those of an earlier program of this process, if there was one.

        `broken(process, why)` is called for a process that has broken the protocol and is to be killed. `tls` knows
        what workers need for TLS.
        """
        self.listening = listening
        self.post = post
        self.links = links
        self._broken = broken
        self._packets = ChildPackets(
            links, post, self._tell_quit, self._failed, self._end, tls, lend_memory=self.lend_memory
        )
        self._tls = tls
        self.listening_for: Callable[[Generation], Sequence[ListeningSocket]] = lambda _: ()
        """The sockets that workers of this generation have besides `listening`."""
        self.files: Callable[[], Packet] = dict
        """The part of the welcome packet that names the listener's files (`ListenerFiles.described`)."""
        self.tasks: TaskGroup
        """Serves the channels; set before the first start."""
        self.scoreboard = scoreboard
        self._board = scoreboard.read_only()
        """What children get of the scoreboard."""
        self.templates = Templates(self, record)
        self._samples = GenerationSamples()
        self.memories = MetricMemories()
        """What the application's metrics are counted in."""
        self.memories_changed: Callable[[], None] = lambda: None
        """Called when there is a new one."""
        self.by_pid: dict[int, Child] = {child.pid: child for child in children}
        self.is_helper: Callable[[int], bool] = lambda pid: False
        """Whether this is the PID of a helper process."""
        self._unborn: dict[int, Child] = {}
        """Those that a template has been asked to fork, by their workers' numbers, until their PIDs are known."""
        self._reaped: dict[int, int] = {}
        """PIDs of the last processes that were reaped, by their workers' numbers: their deaths have yet to be told."""
        taken = {child.row for child in self.by_pid.values()}
        self._free_rows = [row for row in range(self.scoreboard.rows - 1, -1, -1) if row not in taken]

    def __iter__(self) -> Iterator[Child]:
        return iter(list(self.by_pid.values()))

    def of(self, worker: AppProcess) -> Child | None:
        """The process of `worker`, if it has one."""
        return next((child for child in self.by_pid.values() if child.worker is worker), None)

    def pid_of(self, number: int) -> int | None:
        """The PID of the process of the worker with this number, also of one that was reaped lately."""
        living = (child.pid for child in self.by_pid.values() if child.worker.id == number)
        return next(living, self._reaped.get(number))

    def sample(self, generation: Generation) -> TrafficSample:
        """What all workers of a generation, also those that have ended, have done since it was started."""
        return self._samples.of(generation.number, self)

    def silent_for(self, child: Child) -> float:
        """Seconds since the last heartbeat of the child's event loop, 0.0 if there was none."""
        beat = child.counts.word(Cell.HEARTBEAT)
        return max(0.0, (time.monotonic_ns() - beat) / 1e9) if beat else 0.0

    # Start and end

    def start(self, worker: AppProcess, release: Release, config: Config) -> None:
        """Start `worker`'s process; whatever prevents it is reported as its failure and death.

        With `--preload` it is forked from its generation's template, now or when there is one.
        """
        if not isinstance(worker, Worker) or not self.templates.wanted(worker.generation, config):
            self._start(worker, release, config)
            return
        try:
            self.templates.start(StartRequest(worker, release, config))
        except OSError as error:
            self.not_started(worker, f"its template cannot be started: {error}")

    def knows(self, pid: int) -> bool:
        """Whether this is one of these children, or of the listener's others."""
        return pid in self.by_pid or self.is_helper(pid)

    def start_fresh(self, request: StartRequest) -> None:
        """As `start`, as a fresh interpreter."""
        self._start(request.worker, request.release, request.config)

    def start_forked(self, request: StartRequest, template: Template) -> None:
        """As `start`, forked from this template."""
        self._start(request.worker, request.release, request.config, template)

    def not_started(self, worker: AppProcess, message: str, detail: str = "", usage: bool = False) -> None:
        """Report that a process was not started."""
        self._failed(worker, message, detail, usage)
        self._died(worker, "it was never started")

    def _start(self, worker: AppProcess, release: Release, config: Config, template: Template | None = None) -> None:
        try:
            what = self._what(worker)
            child, given = self._spawn_linked(worker, release, template)
        except Exception as error:
            if not isinstance(error, (UsageError, OSError)):
                log.exception("%s could not be started", worker)
            self.not_started(worker, str(error), usage=isinstance(error, UsageError))
            return
        child.metrics_series = config.metrics_series
        child.welcome = Welcome(release, config, what, given)
        if template is None:
            self._begin(child)

    def _packet(
        self, child: Child, welcome: Welcome, given: Iterable[str], listening: Sequence[ListeningSocket]
    ) -> Packet:
        """The first packet to a process; `given` are the names of the descriptors that it is given."""
        worker, config = child.worker, welcome.release.resolved(welcome.config)
        return {
            "type": "welcome",
            "given": list(given),
            "member": worker.id,
            "protocol": PROTOCOL,
            "generation": worker.generation.number,
            **welcome.what,
            **self.files(),
            "row": child.row,
            "config": config.to_json(),
            "directory": welcome.release.directory,
            "app_dir": welcome.release.app_dir,
            "since": BEGAN,
            "sockets": [each.describe() for each in listening],
            "secure": [each.secure for each in listening],
            "redirects": [config.https_redirect and each.redirects for each in listening],
        }

    def _listening(self, worker: AppProcess) -> Sequence[ListeningSocket]:
        """The listening sockets that a process gets: an agent serves no clients."""
        return [*self.listening, *self.listening_for(worker.generation)] if isinstance(worker, Worker) else ()

    def _begin(self, child: Child) -> None:
        """The process has its PID: send it what it needs, and serve its channel."""
        assert child.welcome is not None
        worker, welcome, child.welcome = child.worker, child.welcome, None
        self.by_pid[child.pid] = child
        self.scoreboard.enter(child.row, child.pid, worker.generation.number, row_slot(worker), child.serial)
        log.debug("%s has PID %d", worker, child.pid)
        self.attend(child)
        given = {**welcome.given, **self._open_watchdog_channel(child)}
        if self._tls is not None and isinstance(worker, Worker):
            with contextlib.suppress(OSError):  # the worker reports that it lacks it
                if (tls := self._tls.descriptor_for(worker)) is not None:
                    given["tls"] = tls
        listening = self._listening(worker)
        child.send_queue.put(
            self._packet(child, welcome, given, listening),
            lent=[self._board, *(each.socket.fileno() for each in listening)],
            given=tuple(given.values()),
        )
        self.links.linked(worker.id)

    def born(self, child: Child, pid: int, ended: int | None) -> None:
        """A template has forked this process. `ended` is its wait status, if it has been reaped already."""
        del self._unborn[child.worker.id]
        child.pid = pid
        self._begin(child)
        if ended is not None:
            self.reaped(pid, ended)

    def not_born(self, child: Child, message: str) -> None:
        """A template has not forked this process."""
        self._discard(child)
        self.not_started(child.worker, message)

    def _discard(self, child: Child) -> None:
        """Release what is held for a process that has no PID; if it lives, it exits at the end of its channel."""
        self._unborn.pop(child.worker.id, None)
        self.memories.take_back(child.serial)
        if child.welcome is not None:
            close_descriptors(child.welcome.given.values())
        self.links.read_rest(child.worker.id)
        self._free_rows.append(child.row)
        child.close()

    def quit(self, worker: AppProcess) -> None:
        """Tell a process to leave at once."""
        if not self._withdraw(worker):
            self.tell(worker, {"type": "quit"})

    def _withdraw(self, worker: AppProcess, kill: bool = False) -> bool:
        """Do not start a worker that waits for its template; return False if it does not. `kill`: its time is over."""
        found = self.templates.withdraw(worker, kill) if isinstance(worker, Worker) else None
        if found is None:
            return False
        for child in found:
            self._discard(child)
        self._died(worker, "it was never started")
        return True

    def _what(self, worker: AppProcess) -> Packet:
        """The part of the welcome packet that says what the process is to do. Raises UsageError."""
        if isinstance(worker, Worker):
            what: Packet = {"slot": worker.slot, "canary": worker.generation.state in ON_TRIAL}
            if worker.cause is Cause.GENERATION and worker.slot == 0 and worker.generation.number > 1:
                what["reload_began"] = worker.generation.began_at  # one worker traces the reload
            return what
        return {"role": "agent", "lock": lock_path(each.name for each in self.listening)}

    def _open_watchdog_channel(self, child: Child) -> dict[str, int]:
        """Open a watchdog channel; return the process's ends, by their names in the welcome packet.

        Returns none if there is no descriptor to spare.
        """
        try:
            child.watchdog = WatchdogChannel()
            asked_over, dump = child.watchdog.hand_out()
        except OSError as error:
            log.warning("%s will not be able to report its stacks: %s", child.worker, error)
            return {}
        return {"asked over": asked_over, "dump": dump}

    def attend(self, child: Child) -> None:
        """Serve the child's channel from here on."""
        self.tasks.start_soon(self._send_to, child)
        self.tasks.start_soon(self._packets.listen_to, child)

    def _spawn_linked(
        self, worker: AppProcess, release: Release, template: Template | None
    ) -> tuple[Child, dict[str, int]]:
        """Return the process, and the descriptors that it is given: its row, and its end of a link to the hub, without
        which it would run in local mode."""
        link = self.links.open(worker.id)
        try:
            child, row = self._spawn(worker, release, template)
        except BaseException:
            link.close()
            raise
        return child, {"link": link.detach(), "row": row}

    def lend_memory(self, child: Child) -> None:
        """The application has metrics in this process: lend it a memory, and send it those of all others.

        Those that have one already are told of a new one.
        """
        if child.counts_metrics or not child.metrics_series or child.closed:
            return
        try:
            memory, new = self.memories.lend(child.metrics_series, child.serial)
            lent = memory.lent()
        except OSError as error:
            text = "what %s counts is not in the application's metrics: %s; raise the open-files limit (ulimit -Hn)"
            log.warning(text, child.worker, error.strerror, extra=about("descriptors_lost"))
            self.memories.take_back(child.serial)
            return
        if new:
            for other in self:
                if other.counts_metrics:
                    self._send_memories(other, [memory])
            self.memories_changed()
        child.counts_metrics = True
        self._say(child, {"type": "own memory"}, [lent])
        self._send_memories(child, [each for each in self.memories.all.values() if each is not memory])

    def _send_memories(self, to: Child, memories: Sequence[MetricMemory]) -> None:
        for first in range(0, len(memories), MEMORIES_AT_ONCE):
            given: list[int] = []
            some = memories[first : first + MEMORIES_AT_ONCE]
            try:
                for each in some:
                    given.append(each.for_readers())  # noqa: PERF401 (those made before a failure are closed)
            except OSError as error:
                close_descriptors(given)
                log.warning("%s cannot show what all processes have counted: %s", to.worker, error)
                return
            self._say(to, {"type": "memories", "memories": [each.number for each in some]}, given)

    def _spawn(self, worker: AppProcess, release: Release, template: Template | None) -> tuple[Child, int]:
        if not self._free_rows:
            raise UsageError(f"{ROWS} processes are alive, which is the limit: use fewer workers")
        counts, row = Row.create()
        try:
            if template is None:
                child = spawn(worker, release, self._free_rows[-1], counts)
            else:
                child, theirs = unborn(worker, self._free_rows[-1], counts)
                template.fork(child, theirs)
                self._unborn[worker.id] = child
        except BaseException:
            counts.close()
            os.close(row)
            raise
        self._free_rows.pop()
        return child, row

    def reaped(self, pid: int, wait_status: int) -> bool:
        """Handle the end of a process; return False if it was not one of these children."""
        child = self.by_pid.pop(pid, None)
        if child is None:
            return self.templates.reaped(pid, wait_status)
        self._reaped[child.worker.id] = pid
        if len(self._reaped) > ROWS:
            del self._reaped[next(iter(self._reaped))]
        in_flight = child.in_progress
        try:
            self._packets.read_rest(child)
            self.links.read_rest(child.worker.id)
            words = child.counts.words()
            self._samples.reaped(child.worker, words)
            self.scoreboard.fold(child.row, row_slot(child.worker), words)
            self._free_rows.append(child.row)
            self.memories.take_back(child.serial)
            child.close()
        except Exception:
            log.exception("some resources of %s could not be released", child.worker)
        self._died(child.worker, describe(wait_status), in_flight)
        return True

    def _failed(self, worker: AppProcess, message: str, detail: str = "", usage: bool = False) -> None:
        """Report that a process has failed to start."""
        if isinstance(worker, Agent):
            self.post(e.AgentFailed(worker, message, detail, usage))
        else:
            self.post(e.WorkerFailed(worker, message, detail, usage))

    def _died(self, worker: AppProcess, how: str, in_flight: int = 0) -> None:
        """Report a child's death."""
        if isinstance(worker, Agent):
            self.post(e.AgentDied(worker, how))
        else:
            self.post(e.WorkerDied(worker, how, in_flight))

    def kill(self, worker: AppProcess) -> int:
        """SIGKILL; return how many requests and WebSockets were in flight in it."""
        if self._withdraw(worker, kill=True):
            return 0
        if (child := self.of(worker)) is None:
            return 0
        cut = child.in_progress
        child.kill()
        return cut

    # Packets to them

    def tell(self, worker: AppProcess, packet: Packet, given: tuple[int, ...] = ()) -> None:
        """Send a packet to a process, with descriptors that are closed here once it has them."""
        child = self.of(worker)
        if child is None:
            for descriptor in given:
                os.close(descriptor)
        else:
            self._say(child, packet, given)

    def _tell_quit(self, worker: AppProcess) -> None:
        self.quit(worker)

    def _say(self, child: Child, packet: Packet, given: Sequence[int] = ()) -> None:
        child.send_queue.put(packet, given=given)
        if len(child.send_queue) > MOST_UNREAD:
            self._end(child, f"it has not read {MOST_UNREAD} packets from its channel")

    def connect_pair(self, sender: Worker, receiver: Worker, pair: int) -> None:
        """Connect two workers for hand-overs."""
        there = self.of(receiver)
        if there is None or self.of(sender) is None:
            return
        try:
            row = there.counts.again()
            try:
                sends, receives = handover_pair()
            except OSError:
                os.close(row)
                raise
        except OSError as error:
            log.warning(
                "cannot connect %s to %s for the hand-over yet: %s; raise the open-files limit (ulimit -Hn)",
                sender,
                receiver,
                error.strerror,
                extra=about("descriptors_lost"),
            )
            self.tell(sender, {"type": "receiver", "pair": pair})  # it requests another one
            return
        self._say(there, {"type": "receive", "pair": pair}, (receives,))
        self.tell(sender, {"type": "receiver", "pair": pair}, given=(row, sends))

    def serve(self, worker: Worker) -> None:
        """Tell a worker to serve; introduce it and the serving workers of its generation to each other.

        A canary and the current generation take turns at accepting clients, so they have to know each other, too.
        """
        if (child := self.of(worker)) is None:
            return
        child.said.discard(packets.Accepts)  # it may be told so once more, after it has stood by
        others = [each for each in self.by_pid.values() if each.serves and each is not child][-NEIGHBOURS:]
        child.serves = True
        try:
            self._make_known(child, others)
            for each in others:
                generations = {each.worker.generation, worker.generation}
                if len(generations) == 1 or any(generation.state in ON_TRIAL for generation in generations):
                    self._make_known(each, [child])
        except OSError as error:  # without descriptors to spare only balance suffers
            log.debug("%s cannot be told which other workers serve: %s", worker, error)
        self._say(child, {"type": "serve"})

    def stand_by(self, worker: Worker, reason: str) -> None:
        """Tell a worker to stand by."""
        if (child := self.of(worker)) is not None:
            child.said.discard(packets.StandsBy)
            self._say(child, {"type": "stand by", "reason": reason})

    def _make_known(self, to: Child, others: Sequence[Child]) -> None:
        if not others:
            return
        given: list[int] = []
        try:
            for each in others:
                given.append(each.counts.again())  # noqa: PERF401 (those made before a failure are closed)
        except OSError:
            close_descriptors(given)
            raise
        self._say(to, {"type": "neighbours", "rows": [[each.row, each.serial] for each in others]}, given)

    async def _send_to(self, child: Child) -> None:
        """Send what is in the child's send queue, until it is closed."""
        try:
            await child.send_queue.run()
        except Exception:
            log.exception("%s cannot be reached over its channel and is killed", child.worker)
            if child.pid in self.by_pid:
                child.kill()

    def _end(self, child: Child, why: str) -> None:
        if not child.broken:
            child.broken = True
            if child.pid in self.by_pid:
                self._broken(child.worker, why)
