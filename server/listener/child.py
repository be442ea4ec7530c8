"""One child process as the listener holds it: PID, channel, scoreboard row, and what is still to be said to it.

It owns the listener's end of the channel and the row. The listener never waits for a child: what cannot be sent now lies
in the outbox, so that a stopped child delays nobody else.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence

from server.channel import Channel, Outbox, pair
from server.listener.lifecycle import Worker
from server.listener.release import Release
from server.signals import LISTENER_SIGNALS


def describe(status: int) -> str:
    """How a process ended, from its wait status (waitpid(2))."""
    code = os.waitstatus_to_exitcode(status)
    return f"exit status {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"


class Child:
    """A started worker process."""

    def __init__(self, worker: Worker, pid: int, channel: Channel, row: int) -> None:
        self.worker = worker
        self.pid = pid
        self.channel = channel
        self.outbox = Outbox(channel)
        self.row = row

    def kill(self) -> None:
        """SIGKILL. The PID is ours until we reap it, and we forget it when we do."""
        os.kill(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """Close what is held for the child."""
        self.channel.close()
        self.outbox.close()


def spawn(worker: Worker, release: Release, output: Sequence[tuple[int, int]]) -> tuple[int, Channel]:
    """Start a worker as a fresh interpreter; return its PID and the listener's end of its channel.

    `output` are pairs (descriptor here, descriptor there) that the child gets besides its channel. The child leads its
    own process group, so that a signal for the foreground group (Ctrl-C) does not reach it.

    Raises OSError if the interpreter cannot be started.
    """
    ours, theirs = pair()
    fd = theirs.fileno()
    arguments = [
        release.python,
        *safe_path_flag(),
        *("-m", "server.worker", "--channel", str(fd)),
        *("--generation", str(worker.generation.number), "--slot", str(worker.slot)),
    ]
    os.set_inheritable(fd, True)
    try:
        pid = os.posix_spawn(
            release.python,
            arguments,
            release.environment,
            file_actions=[(os.POSIX_SPAWN_DUP2, here, there) for here, there in output],
            setpgroup=0,
            setsigmask=LISTENER_SIGNALS,
        )
    except OSError:
        ours.close()
        raise
    finally:
        theirs.close()
    return pid, Channel(ours)


def safe_path_flag() -> list[str]:
    """`-P` keeps the working directory off the import path, where an application's own `server` would shadow ours.

    It is left out when this package itself is being run from the working directory, not from an installation.
    """
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    return [] if root == os.getcwd() else ["-P"]


def handover_pair() -> tuple[int, int]:
    """The two ends of a pair between workers, as descriptors that the caller owns."""
    a, b = pair()
    return a.detach(), b.detach()
