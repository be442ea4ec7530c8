"""The worker and agent processes as the listener holds them: started, spoken to, reaped.

It owns the children, their channels and their rows of the scoreboard. What a child says is turned into events, and
nothing waits for a child: what is said to one lies in its outbox. What is to be done, and when, the supervisor decides.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import anyio
from anyio.abc import TaskGroup

from server.channel import PROTOCOL, Packet, speaks
from server.config import Config
from server.errors import ChannelError, UsageError
from server.listener import events as e
from server.listener.agent_lock import agent_lock
from server.listener.child import Child, describe, handover_pair, spawn
from server.listener.lifecycle import Agent, Process, Worker
from server.listener.links import Links
from server.listener.release import BEGAN, Release
from server.listener.sockets import Listening
from server.listener.stacks import Window
from server.logs import about
from server.scoreboard import NO_SLOT, Cell, Row, Scoreboard

ROWS = 1024
"""Processes that may be alive at once."""
SLOTS = 256
"""Slots with totals of their own; further ones share the last."""

NEIGHBOURS = 64
"""Workers that one of them knows when it begins to serve, at most: each costs a descriptor on the way there."""

log = logging.getLogger("serve")


def row_slot(worker: Process) -> int:
    """What the row of a process says of its slot, and where its counts go in the end."""
    return NO_SLOT if isinstance(worker, Agent) else worker.slot


class Crew:
    """The children of one listener."""

    def __init__(
        self,
        listening: Sequence[Listening],
        post: Callable[[e.Event], None],
        links: Links,
        scoreboard: Scoreboard,
        children: Iterable[Child] = (),
    ) -> None:
        """`children` are those of an earlier program of this process, if there was one."""
        self.listening = listening
        self.post = post
        self.links = links
        self.tasks: TaskGroup
        """Where the channels are served; set before the first start."""
        self.scoreboard = scoreboard
        self._board = scoreboard.read_only()
        """What children get of it."""
        self.children: dict[int, Child] = {child.pid: child for child in children}
        taken = {child.row for child in self.children.values()}
        self._free_rows = [row for row in range(self.scoreboard.rows - 1, -1, -1) if row not in taken]

    def __iter__(self) -> Iterator[Child]:
        return iter(list(self.children.values()))

    def of(self, worker: Process) -> Child | None:
        """The process of `worker`, if it has one."""
        return next((child for child in self.children.values() if child.worker is worker), None)

    def silent_for(self, child: Child) -> float:
        """Seconds since the child's event loop was last heard of, 0.0 if it never was."""
        beat = child.counts.word(Cell.HEARTBEAT)
        return max(0.0, (time.monotonic_ns() - beat) / 1e9) if beat else 0.0

    # Beginning and end

    def start(self, worker: Process, release: Release, config: Config) -> None:
        """Start `worker`'s process; what prevents it is told as its failure and death."""
        try:
            what = self._what(worker)
            child, link, row = self._spawn_linked(worker, release)
        except Exception as error:
            if not isinstance(error, (UsageError, OSError)):
                log.exception("%s could not be started", worker)
            self._failed(worker, str(error), usage=isinstance(error, UsageError))
            self._died(worker, "it was never started")
            return
        self.children[child.pid] = child
        self.attend(child)
        given = {"link": link.detach(), "row": row, **self._open_window(child)}
        listening = self.listening if isinstance(worker, Worker) else ()  # an agent serves nobody
        child.outbox.tell(
            {
                "type": "welcome",
                "given": list(given),
                "member": worker.id,
                "protocol": PROTOCOL,
                "generation": worker.generation.number,
                **what,
                "row": child.row,
                "config": config.to_json(),
                "directory": release.directory,
                "app_dir": release.app_dir,
                "since": BEGAN,
                "sockets": [each.describe() for each in listening],
            },
            lent=[self._board, *(each.socket.fileno() for each in listening)],
            given=tuple(given.values()),
        )
        self.links.linked(worker.id)

    def _what(self, worker: Process) -> Packet:
        """What a process is told of its part. Raises UsageError."""
        if isinstance(worker, Worker):
            return {"slot": worker.slot}
        return {"role": "agent", "lock": agent_lock(each.name for each in self.listening)}

    def _open_window(self, child: Child) -> dict[str, int]:
        """The process's ends of a window, by the names that its welcome has for them.

        Without a descriptor to spare it does without.
        """
        try:
            child.window = Window()
            asked_over, dump = child.window.hand_out()
        except OSError as error:
            log.warning("%s will not be able to tell its stacks: %s", child.worker, error)
            return {}
        return {"asked over": asked_over, "dump": dump}

    def attend(self, child: Child) -> None:
        """Serve the child's channel from here on."""
        self.tasks.start_soon(self._send_to, child)
        self.tasks.start_soon(self._listen_to, child)

    def _spawn_linked(self, worker: Process, release: Release) -> tuple[Child, socket.socket, int]:
        """The process, its end of a link to the hub (alone it would take itself for the whole server), and its row."""
        link = self.links.open(worker.id)
        try:
            child, row = self._spawn(worker, release)
            return child, link, row
        except BaseException:
            link.close()
            raise

    def _spawn(self, worker: Process, release: Release) -> tuple[Child, int]:
        if not self._free_rows:
            raise UsageError(f"{ROWS} processes are alive, the most that there can be: use fewer workers")
        counts, row = Row.create()
        try:
            child = spawn(worker, release, self._free_rows[-1], counts)
        except BaseException:
            counts.close()
            os.close(row)
            raise
        self._free_rows.pop()
        self.scoreboard.enter(child.row, child.pid, worker.generation.number, row_slot(worker), child.serial)
        log.debug("%s has PID %d", worker, child.pid)
        return child, row

    def reaped(self, pid: int, wait_status: int) -> bool:
        """A process has ended; False if it was no child of ours."""
        child = self.children.pop(pid, None)
        if child is None:
            return False
        in_flight = child.in_hands
        try:
            self._read_rest(child)
            self.links.read_rest(child.worker.id)
            self.scoreboard.fold(child.row, row_slot(child.worker), child.counts.words())
            self._free_rows.append(child.row)
            child.close()
        except Exception:
            log.exception("not all that belonged to %s could be given back", child.worker)
        self._died(child.worker, describe(wait_status), in_flight)
        return True

    def _failed(self, worker: Process, message: str, detail: str = "", usage: bool = False) -> None:
        """It could not become what it was started for."""
        if isinstance(worker, Agent):
            self.post(e.AgentFailed(worker, message, detail, usage))
        else:
            self.post(e.WorkerFailed(worker, message, detail, usage))

    def _died(self, worker: Process, how: str, in_flight: int = 0) -> None:
        """It is no more."""
        if isinstance(worker, Agent):
            self.post(e.AgentDied(worker, how))
        else:
            self.post(e.WorkerDied(worker, how, in_flight))

    def kill(self, worker: Process) -> int:
        """SIGKILL; return how many requests and WebSockets are in its hands."""
        if (child := self.of(worker)) is None:
            return 0
        cut = child.in_hands
        child.kill()
        return cut

    # What is said to them

    def tell(self, worker: Process, packet: Packet, given: tuple[int, ...] = ()) -> None:
        """Say something to a process, with descriptors that are closed here once it has them."""
        child = self.of(worker)
        if child is None:
            for descriptor in given:
                os.close(descriptor)
        else:
            child.outbox.tell(packet, given=given)

    def introduce(self, sender: Worker, receiver: Worker, pair: int) -> None:
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
                "cannot introduce %s to %s yet: %s; raise the open-files limit (ulimit -Hn)",
                sender,
                receiver,
                error.strerror,
                extra=about("descriptors_lost"),
            )
            self.tell(sender, {"type": "receiver", "pair": pair})  # which asks for another one
            return
        there.outbox.tell({"type": "receive", "pair": pair}, given=[receives])
        self.tell(sender, {"type": "receiver", "pair": pair}, given=(row, sends))

    def serve(self, worker: Worker) -> None:
        """Tell a worker to serve, make those that do known to it, and it to those of its generation."""
        if (child := self.of(worker)) is None:
            return
        others = [each for each in self.children.values() if each.serves and each is not child][-NEIGHBOURS:]
        child.serves = True
        try:
            self._make_known(child, others)
            for each in others:
                if each.worker.generation is worker.generation:
                    self._make_known(each, [child])
        except OSError as error:  # without descriptors to spare only evenness is lost
            log.debug("%s cannot be told who serves beside it: %s", worker, error)
        child.outbox.tell({"type": "serve"})

    def _make_known(self, to: Child, others: Sequence[Child]) -> None:
        rows = [[each.row, each.serial] for each in others]
        if rows:
            to.outbox.tell({"type": "neighbours", "rows": rows}, given=[each.counts.again() for each in others])

    async def _send_to(self, child: Child) -> None:
        """Send what lies in the child's outbox until it is closed."""
        try:
            await child.outbox.run()
        except Exception:
            log.exception("%s cannot be spoken to and is killed", child.worker)
            if child.pid in self.children:
                child.kill()

    # What they say

    async def _listen_to(self, child: Child) -> None:
        """Take the child's packets until its end of the channel closes; its death is told by SIGCHLD."""
        try:
            while True:
                packet, received = await child.channel.receive()
                for descriptor in received:
                    os.close(descriptor)
                self._take_packet(child, packet)
        except (EOFError, anyio.ClosedResourceError):
            pass
        except (ChannelError, OSError, LookupError, ValueError, TypeError) as error:
            if child.pid in self.children:
                log.error(
                    "%s broke the protocol and is killed: %r",
                    child.worker,
                    error,
                    extra=about("worker_killed", reason=repr(error)),
                )
                child.kill()

    def _read_rest(self, child: Child) -> None:
        """What the child said last is handled before its death is."""
        try:
            while (received := child.channel.try_receive()) is not None:
                self._take_packet(child, received[0])
        except (EOFError, ChannelError, LookupError, ValueError, TypeError):
            pass

    def _take_packet(self, child: Child, packet: Packet) -> None:
        worker = child.worker
        match packet["type"]:
            case "hello":
                if not speaks(packet.get("protocol")):
                    text = f"it speaks version {packet.get('protocol')} of the channel, this listener {PROTOCOL}"
                    self._failed(worker, f"{text}; restart the server to change to that version")
                elif child.window is not None:
                    child.window.agree(packet.get("window"))
            case "failed":
                self._failed(worker, packet["message"], str(packet.get("detail", "")), bool(packet.get("usage")))
            case _ if isinstance(worker, Agent):
                self._take_from_agent(worker, packet)
            case _:
                self._take_from_worker(worker, packet)

    def _admit(self, process: Process, event: e.Event) -> None:
        """It says that it is ready; it is not, if what it has told the hub contradicts what others have."""
        if trouble := self.links.trouble_with(process.id):
            self.tell(process, {"type": "quit"})
            self._failed(process, trouble, usage=True)
        else:
            self.post(event)

    def _take_from_agent(self, agent: Agent, packet: Packet) -> None:
        match packet["type"]:
            case "prepared":
                self._admit(agent, e.AgentPrepared(agent))
            case "waits":
                self.post(e.AgentWaits(agent, int(packet["holder"])))
            case "entered":
                self.post(e.AgentEntered(agent))
            case "returned":
                self.post(e.AgentReturned(agent))
            case "finished":
                self.post(e.AgentFinished(agent))
            case other:
                log.debug("%s sent a packet of type %r, which this version does not know", agent, other)

    def _take_from_worker(self, worker: Worker, packet: Packet) -> None:
        match packet["type"]:
            case "ready":
                self._admit(worker, e.WorkerReady(worker))
            case "accepts":
                self.post(e.WorkerAccepts(worker))
            case "recycle":
                self.post(e.WorkerWantsReplacement(worker, str(packet["reason"])))
            case "finished":
                self.post(e.WorkerFinished(worker, packet))
            case "withdrawn":
                self.post(e.PairWithdrawn(worker, int(packet["pair"])))
            case "lost":
                self.post(e.PairLost(worker, int(packet["pair"])))
            case "orphaned":
                self.post(e.PairOrphaned(worker, int(packet["pair"])))
            case other:
                log.debug("%s sent a packet of type %r, which this version does not know", worker, other)
