"""Turns the packets of the children, which are not trusted, into events.

Packets are decoded by `serve_asgi.ipc.packets`, one in each turn of the loop; a child that sends an invalid one, or too
many, is ended.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final, Protocol

import anyio

from serve_asgi.errors import ChannelError
from serve_asgi.ipc import packets
from serve_asgi.ipc.channel import PROTOCOL, speaks
from serve_asgi.listener import protocol_violations
from serve_asgi.listener.child import Child
from serve_asgi.listener.hub_links import HubLinks
from serve_asgi.supervisor import events as e
from serve_asgi.supervisor.lifecycles import Agent, AppProcess, Worker

LAST_WORDS: Final = 1000
"""Packets that are read from a dead child; its socket holds fewer, but another process may hold it, too."""
LAST_TIME: Final = 0.03
"""Seconds of CPU time that reading them may take."""

log = logging.getLogger("serve")


class ReportFailure(Protocol):
    """Reports that a process has failed to start."""

    def __call__(self, worker: AppProcess, message: str, detail: str = "", usage: bool = False) -> None: ...


class WorkerTls(Protocol):
    """What workers need for TLS, and which of it they use (`serve_asgi.listener.certificate_watch`)."""

    def descriptor_for(self, worker: Worker) -> int | None:
        """What a worker that is started needs; the caller closes it. Raises OSError."""

    def taken(self, worker: Worker, version: int, trouble: str) -> None:
        """A worker uses this version, or cannot, for this reason."""

    def lost(self, worker: Worker) -> None:
        """A worker has not got what was sent."""


class ChildPackets:
    """Handles the packets of all children of one listener."""

    def __init__(
        self,
        links: HubLinks,
        post: Callable[[e.Event], None],
        tell_quit: Callable[[AppProcess], None],
        failed: ReportFailure,
        end: Callable[[Child, str], None],
        tls: WorkerTls | None = None,
        lend_memory: Callable[[Child], None] = lambda child: None,
    ) -> None:
        """`end(child, why)` ends a child that has broken the protocol; `lend_memory(child)` lends it one for the
        application's metrics."""
        self._links = links
        self._post = post
        self._tell_quit = tell_quit
        self._failed = failed
        self._end = end
        self._tls = tls
        self._lend_memory = lend_memory

    async def listen_to(self, child: Child) -> None:
        """Handle the child's packets until its end of the channel closes; SIGCHLD reports its death."""
        try:
            while not child.broken:
                data, _ = await child.channel.receive_data()
                if isinstance(packet := self._decoded(child, data), packets.Ready | packets.Prepared):
                    await self._links.heard_out(child.worker.id)
                self._take_packet(child, packet)
                await anyio.lowlevel.checkpoint()  # others get their turn, however much it sends
        except (EOFError, OSError, anyio.ClosedResourceError):
            pass
        except Exception as error:
            self._blame(child, error)

    def read_rest(self, child: Child) -> None:
        """Handle the child's last packets, before its death is handled."""
        ends = time.thread_time() + LAST_TIME
        try:
            for _ in range(0 if child.broken else LAST_WORDS):
                if time.thread_time() > ends or (received := child.channel.try_receive_data()) is None:
                    break
                self._take_packet(child, self._decoded(child, received[0]))
        except (EOFError, OSError):
            pass
        except Exception as error:
            self._blame(child, error)

    def _decoded(self, child: Child, data: bytes) -> packets.Packet | None:
        """Decode a packet. Raises ChannelError if it is invalid, or not allowed."""
        if not child.allowance.use():
            raise ChannelError("more of them than any child sends")
        allowed = packets.FROM_AGENT if isinstance(child.worker, Agent) else packets.FROM_WORKER
        packet = allowed.decode(data)
        if packet is not None and (kind := type(packet)) in packets.ONCE:
            if kind in child.said:
                raise ChannelError(f"a second packet {packets.tag(kind)!r}")
            child.said.add(kind)
        return packet

    def _blame(self, child: Child, error: Exception) -> None:
        """The child has sent something wrong, or more than we can handle: end it, and nothing else."""
        self._end(child, protocol_violations.reason(child.worker, "channel", error))

    def _take_packet(self, child: Child, packet: packets.Packet | None) -> None:
        worker = child.worker
        match packet:
            case None:
                log.debug("%s sent a packet of a type that this version does not know", worker)
            case packets.Hello(protocol, window):
                if not speaks(protocol):
                    text = f"it speaks version {protocol} of the channel, this listener {PROTOCOL}"
                    self._failed(worker, f"{text}; restart the server to change to that version")
                elif child.watchdog is not None and window is not None:
                    child.watchdog.agree(window.signal, window.loop_thread)
            case packets.Failed(message, detail, usage):
                self._failed(worker, message, detail, usage)
            case packets.CountsMetrics():
                self._lend_memory(child)
            case _ if isinstance(worker, Agent):
                self._take_from_agent(worker, packet)
            case _:
                if isinstance(packet, packets.Ready):
                    child.compiled_modules = packet.compiled_modules
                self._take_from_worker(worker, packet)

    def _admit(self, process: AppProcess, event: e.Event) -> None:
        """It reports that it is ready; refused if what it declared to the hub contradicts other processes."""
        if trouble := self._links.trouble_with(process.id):
            self._tell_quit(process)
            self._failed(process, trouble, usage=True)
        else:
            self._post(event)

    def _take_from_agent(self, agent: Agent, packet: packets.Packet) -> None:
        match packet:
            case packets.Prepared():
                self._admit(agent, e.AgentPrepared(agent))
            case packets.Waits(holder):
                self._post(e.AgentWaits(agent, holder))
            case packets.Entered():
                self._post(e.AgentEntered(agent))
            case packets.Returned():
                self._post(e.AgentReturned(agent))
            case packets.AgentEnded():
                self._post(e.AgentFinished(agent))

    def _take_from_worker(self, worker: Worker, packet: packets.Packet) -> None:
        match packet:
            case packets.Ready(stands_by):
                self._admit(worker, e.WorkerReady(worker, stands_by))
            case packets.Accepts():
                self._post(e.WorkerAccepts(worker))
            case packets.StandsBy():
                self._post(e.WorkerStandsBy(worker))
            case packets.Recycle(reason, too_large):
                self._post(e.WorkerWantsReplacement(worker, reason, too_large=too_large))
            case packets.CanaryVote(reason, detail):
                self._post(e.CanaryRefused(f"{worker}: {reason}", detail, worker))
            case packets.WorkerEnded():
                self._post(e.WorkerFinished(worker, packets.members(packet)))
            case packets.Withdrawn(pair):
                self._post(e.PairWithdrawn(worker, pair))
            case packets.Lost(pair):
                self._post(e.PairLost(worker, pair))
            case packets.Orphaned(pair):
                self._post(e.PairOrphaned(worker, pair))
            case packets.TlsTaken(version, trouble) if self._tls is not None:
                self._tls.taken(worker, version, trouble)
            case packets.TlsLost() if self._tls is not None:
                self._tls.lost(worker)
