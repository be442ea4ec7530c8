"""The listener's side of one child process: PID, channel, scoreboard row and send queue.

It owns the listener's end of the channel, of the watchdog channel (`serve_asgi.listener.stack_dumps`), and the row. The
listener never waits for a child: what cannot be sent now stays in the send queue, so that a stopped child delays nobody
else.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
from typing import Any, Final

from serve_asgi.config.options import Config
from serve_asgi.config.release import Release
from serve_asgi.ipc.channel import Channel, Packet, SendQueue, pair
from serve_asgi.ipc.scoreboard import Cell, Row
from serve_asgi.listener.protocol_violations import RateLimit
from serve_asgi.listener.stack_dumps import WatchdogChannel
from serve_asgi.logs.child_output import ChildOutput
from serve_asgi.supervisor.lifecycles import AppProcess

PACKETS_AT_ONCE: Final = 500
PACKETS_PER_SECOND: Final = 50.0
"""Most packets that a child may send: a worker sends ten in its life, and a few for each hand-over."""


@dataclasses.dataclass(frozen=True, slots=True)
class Welcome:
    """What is in the first packet to a process, which is sent once it has its PID."""

    release: Release
    config: Config
    what: Packet
    """What the process is to do."""
    given: dict[str, int]
    """Descriptors that are closed once it has them, by their names in the packet."""


class Child:
    """A started worker or agent process."""

    def __init__(
        self, worker: AppProcess, pid: int, channel: Channel, output: ChildOutput, row: int, counts: Row
    ) -> None:
        self.worker = worker
        self.pid = pid
        """0 until the template that forks it has reported its PID."""
        self.channel = channel
        self.send_queue = SendQueue(channel)
        self.output = output
        self.row = row
        """The number of its row in the scoreboard."""
        self.counts = counts
        self.serves = False
        """It has been told to serve."""
        self.metrics_series = 0
        """How many time series its memory of metrics has room for, if it asks for one; 0: it gets none."""
        self.counts_metrics = False
        """It has asked for a memory of metrics, and is sent those of all other processes."""
        self.welcome: Welcome | None = None
        """Sent once it has its PID."""
        self.compiled_modules: int | None = None
        """How many a worker runs (`serve_asgi.compiled_core`); None until it is ready, and for an agent."""
        self.said: set[type] = set()
        """Types of the packets it has sent that may be sent only once."""
        self.allowance = RateLimit(PACKETS_AT_ONCE, PACKETS_PER_SECOND)
        self.broken = False
        """It has broken the protocol, and its packets are ignored."""
        self.watchdog: WatchdogChannel | None = None
        """A way to reach the worker without its event loop; None if there was no descriptor to spare."""
        self.closed = False

    def to_state(self, descriptors: list[int]) -> dict[str, Any]:
        """What `from_state` needs in a program that replaces this one; adds to `descriptors` those that must stay
        open."""
        descriptors += [self.channel.fileno(), self.counts.fd]
        return {
            "worker": self.worker.id,
            "pid": self.pid,
            "row": self.row,
            "counts": self.counts.fd,
            "serves": self.serves,
            "metrics_series": self.metrics_series,
            "counts_metrics": self.counts_metrics,
            "compiled_modules": self.compiled_modules,
            "channel": self.channel.fileno(),
            "send_queue": self.send_queue.to_state(descriptors),
            "output": self.output.to_state(descriptors),
            "watchdog": None if self.watchdog is None else self.watchdog.to_state(descriptors),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any], worker: AppProcess) -> Child:
        """The process of `worker`, started by an earlier program of this listener."""
        channel = Channel(socket.socket(fileno=state["channel"]), descriptors=0)
        output, counts = ChildOutput.from_state(state["output"]), Row(state["counts"])
        child = cls(worker, state["pid"], channel, output, state["row"], counts)
        child.serves = state["serves"]
        child.metrics_series = state.get("metrics_series", 0)
        child.counts_metrics = state.get("counts_metrics", False)
        child.compiled_modules = state.get("compiled_modules")
        for packet, lent, given in state["send_queue"]:
            child.send_queue.put(packet, lent, given)
        if state["watchdog"] is not None:
            child.watchdog = WatchdogChannel.from_state(state["watchdog"])
        return child

    @property
    def serial(self) -> int:
        """The serial number of the process in the scoreboard."""
        return self.worker.id + 1

    @property
    def in_progress(self) -> int:
        """Requests and WebSockets in flight, which its death would cut."""
        words = self.counts.words()
        return words[Cell.IN_FLIGHT] + words[Cell.WEBSOCKETS]

    def kill(self) -> None:
        """SIGKILL. The PID cannot be another process's until we reap it, and then we forget it."""
        assert self.pid > 0, "it has not been forked yet"
        os.kill(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """The child has been reaped: copy the rest of its output to the log, and close what is held for it."""
        self.output.read_rest()
        self.counts.close()
        self.channel.close()
        self.send_queue.close()
        if self.watchdog is not None:
            self.watchdog.close()
        self.closed = True


def handover_pair() -> tuple[int, int]:
    """A socket pair for hand-overs between two workers, as descriptors that the caller owns."""
    a, b = pair()
    return a.detach(), b.detach()
