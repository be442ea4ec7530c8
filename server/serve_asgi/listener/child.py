"""One child process as the listener holds it: PID, channel, scoreboard row, and what is still to be said to it.

It owns the listener's end of the channel, its window (`serve_asgi.listener.stack_dumps`) and the row. The listener
never waits for a child: what cannot be sent now lies in the send queue, so that a stopped child delays nobody else.
"""

from __future__ import annotations

import os
import signal
import socket
from typing import Any, Final

from serve_asgi.ipc.channel import Channel, SendQueue, pair
from serve_asgi.ipc.scoreboard import Cell, Row
from serve_asgi.listener.protocol_violations import RateLimit
from serve_asgi.listener.stack_dumps import WatchdogChannel
from serve_asgi.logs.child_output import ChildOutput
from serve_asgi.supervisor.lifecycles import AppProcess

PACKETS_AT_ONCE: Final = 500
PACKETS_PER_SECOND: Final = 50.0
"""What a child may say over its channel: a worker says ten things in its life, and a few for each hand-over."""


class Child:
    """A started worker or agent process."""

    def __init__(
        self, worker: AppProcess, pid: int, channel: Channel, output: ChildOutput, row: int, counts: Row
    ) -> None:
        self.worker = worker
        self.pid = pid
        self.channel = channel
        self.send_queue = SendQueue(channel)
        self.output = output
        self.row = row
        """The number of its place in the scoreboard."""
        self.counts = counts
        self.serves = False
        """It has been told to serve, and with whom."""
        self.said: set[type] = set()
        """What it has said of that which is said once."""
        self.allowance = RateLimit(PACKETS_AT_ONCE, PACKETS_PER_SECOND)
        self.broken = False
        """It has broken the protocol, and is heard no more."""
        self.watchdog: WatchdogChannel | None = None
        """The way into the worker that needs no event loop; None if there was no descriptor to spare."""
        self.closed = False

    def to_state(self, descriptors: list[int]) -> dict[str, Any]:
        """What `from_state` needs in a program that takes this one's place; `descriptors` gets what must stay open."""
        descriptors += [self.channel.fileno(), self.counts.fd]
        return {
            "worker": self.worker.id,
            "pid": self.pid,
            "row": self.row,
            "counts": self.counts.fd,
            "serves": self.serves,
            "channel": self.channel.fileno(),
            "send_queue": self.send_queue.to_state(descriptors),
            "output": self.output.to_state(descriptors),
            "watchdog": None if self.watchdog is None else self.watchdog.to_state(descriptors),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any], worker: AppProcess) -> Child:
        """The process of `worker`, which an earlier program of this process has started."""
        channel = Channel(socket.socket(fileno=state["channel"]), descriptors=0)
        output, counts = ChildOutput.from_state(state["output"]), Row(state["counts"])
        child = cls(worker, state["pid"], channel, output, state["row"], counts)
        child.serves = state["serves"]
        for packet, lent, given in state["send_queue"]:
            child.send_queue.put(packet, lent, given)
        if state["watchdog"] is not None:
            child.watchdog = WatchdogChannel.from_state(state["watchdog"])
        return child

    @property
    def serial(self) -> int:
        """Of the process in the scoreboard."""
        return self.worker.id + 1

    @property
    def in_progress(self) -> int:
        """Requests and WebSockets that its end would cut."""
        words = self.counts.words()
        return words[Cell.IN_FLIGHT] + words[Cell.WEBSOCKETS]

    def kill(self) -> None:
        """SIGKILL. The PID is ours until we reap it, and we forget it when we do."""
        os.kill(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """The child has been reaped: pass on its last words and close what is held for it."""
        self.output.read_rest()
        self.counts.close()
        self.channel.close()
        self.send_queue.close()
        if self.watchdog is not None:
            self.watchdog.close()
        self.closed = True


def handover_pair() -> tuple[int, int]:
    """The two ends of a pair between workers, as descriptors that the caller owns."""
    a, b = pair()
    return a.detach(), b.detach()
