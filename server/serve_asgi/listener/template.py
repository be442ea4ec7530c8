"""The listener's side of one template process: PID, channel, send queue, and the workers that depend on it.

It owns the listener's end of the channel, and the process's output. What is done with templates is decided in
`serve_asgi.listener.templates`.
"""

from __future__ import annotations

import dataclasses
import enum
import resource
import socket
import time
from pathlib import Path
from typing import Any, Final

from serve_asgi.config.options import Config
from serve_asgi.config.release import Release
from serve_asgi.ipc.channel import Channel, SendQueue
from serve_asgi.listener.child import Child
from serve_asgi.listener.protocol_violations import RateLimit
from serve_asgi.logs.child_output import ChildOutput
from serve_asgi.supervisor.lifecycles import Worker

AT_ONCE: Final = 2000
PER_SECOND: Final = 500.0
"""Most packets that a template may send: one for each fork."""


class TemplateState(enum.Enum):
    """IMPORTING -> READY -> ENDING, or IMPORTING -> ENDING."""

    IMPORTING = "importing"
    READY = "ready"
    ENDING = "ending"  # it has failed, or is killed; it forks no more


@dataclasses.dataclass(frozen=True, slots=True)
class StartRequest:
    """A worker that is to be started, and what with."""

    worker: Worker
    release: Release
    config: Config


class Template:
    """One template process."""

    def __init__(self, generation: int, pid: int, channel: Channel, output: ChildOutput) -> None:
        self.generation = generation
        """Its generation's number."""
        self.pid = pid
        self.channel = channel
        self.send_queue = SendQueue(channel)
        self.output = output
        self.state = TemplateState.IMPORTING
        self.began = time.monotonic()
        self.allowance = RateLimit(AT_ONCE, PER_SECOND)
        self.waiting: list[StartRequest] = []
        """Workers that it is to fork once it has imported the application."""
        self.asked: dict[int, Child] = {}
        """Workers that it has been asked to fork, by their numbers, until it has reported their PIDs."""
        self.withdrawn: set[int] = set()
        """The numbers of those that are no longer wanted."""

    def __str__(self) -> str:
        return f"the template of generation {self.generation}"

    def to_state(self, descriptors: list[int]) -> dict[str, Any]:
        """What `from_state` needs in a program that replaces this one, when it forks nothing."""
        descriptors.append(self.channel.fileno())
        return {
            "generation": self.generation,
            "pid": self.pid,
            "channel": self.channel.fileno(),
            "send_queue": self.send_queue.to_state(descriptors),
            "output": self.output.to_state(descriptors),
            "state": self.state.value,
            "withdrawn": sorted(self.withdrawn),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Template:
        """A template that an earlier program of this listener has started."""
        channel = Channel(socket.socket(fileno=state["channel"]), descriptors=0)
        template = cls(state["generation"], state["pid"], channel, ChildOutput.from_state(state["output"]))
        template.state = TemplateState(state["state"])
        template.withdrawn.update(state["withdrawn"])
        for packet, lent, given in state["send_queue"]:
            template.send_queue.put(packet, lent, given)
        return template

    def fork(self, child: Child, theirs: socket.socket) -> None:
        """Ask it to fork a worker, whose end of the channel is `theirs`, which is taken over. Raises OSError."""
        try:
            targets, descriptors = child.output.give()
        except BaseException:
            theirs.close()
            raise
        number = child.worker.id
        self.asked[number] = child
        packet = {"type": "fork", "number": number, "output": targets}
        self.send_queue.put(packet, given=[theirs.detach(), *descriptors])

    def resident(self) -> int:
        """Its resident memory (bytes), also what its workers share; 0 if that cannot be read."""
        try:
            pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        except (OSError, ValueError, IndexError):
            return 0
        return pages * resource.getpagesize()

    def close(self) -> None:
        """It has been reaped: copy the rest of its output to the log, and close what is held for it."""
        self.output.read_rest()
        self.channel.close()
        self.send_queue.close()
