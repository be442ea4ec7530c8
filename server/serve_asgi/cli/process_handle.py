"""The processes of a server, held by pidfds (pidfd_open(2)), so that no reused PID is mistaken for one of them."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Iterator
from pathlib import Path


class ProcessHandle:
    """One process that is not our child; to be closed by its owner."""

    __slots__ = ("fd", "pid")

    def __init__(self, pid: int) -> None:
        """Raises ProcessLookupError if there is no such process."""
        self.pid = pid
        self.fd = os.pidfd_open(pid)

    def fileno(self) -> int:
        return self.fd

    def close(self) -> None:
        os.close(self.fd)

    def ended(self, timeout: float = 0.0) -> bool:
        """Whether it has ended, after waiting at most `timeout` seconds."""
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        return bool(poll.poll(max(0.0, timeout) * 1000))

    def kill(self) -> None:
        """SIGKILL, if it is still alive. Raises PermissionError if we may not kill it."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.fd, signal.SIGKILL)


def children(parent: ProcessHandle) -> list[ProcessHandle]:
    """The living children of `parent`, each to be closed by the caller; safe against reused PIDs."""
    found = []
    for pid in _children_of(parent.pid):
        with contextlib.suppress(ProcessLookupError):
            child = ProcessHandle(pid)
            if _parent_of(pid) == parent.pid and not parent.ended():
                found.append(child)
            else:
                child.close()
    return found


def kill_all(processes: list[ProcessHandle], timeout: float) -> int:
    """Kill all and wait until they have ended; return how many have not after `timeout` seconds."""
    for process in processes:
        process.kill()
    deadline = time.monotonic() + timeout
    return sum(not process.ended(deadline - time.monotonic()) for process in processes)


def _children_of(parent: int) -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and _parent_of(int(entry.name)) == parent:
            yield int(entry.name)


def _parent_of(pid: int) -> int:
    """The PID of a process's parent (proc(5), stat); 0 if it is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[1])
    except (OSError, IndexError, ValueError):
        return 0
