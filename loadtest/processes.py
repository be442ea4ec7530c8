"""What /proc(5) tells about the processes of the server under test. It only looks; it changes nothing.

A process belongs to a run if it descends from the listener, is in its session, or carries the run's mark in its
environment: each of these alone can be lost (an orphan has another parent, setsid(2) makes another session,
setproctitle overwrites the environment, a zombie has none).
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

MARK = "LOADTEST_RUN"
"""The environment variable that marks the processes of a run."""


@dataclasses.dataclass(frozen=True, slots=True)
class Process:
    """One line of the process table."""

    pid: int
    parent: int
    session: int
    state: str  # R, S, D, Z … of proc_pid_stat(5)
    name: str


def of_run(mark: str, listener: int) -> list[Process]:
    """All living or dead processes of the run, the listener among them."""
    table = {process.pid: process for process in _table()}
    found = {
        pid for pid, process in table.items() if pid == listener or process.session == listener or _marked(pid, mark)
    }
    children = found
    while children:
        children = {pid for pid, process in table.items() if process.parent in found} - found
        found |= children
    return [table[pid] for pid in sorted(found)]


def zombies(processes: list[Process], listener: int) -> list[Process]:
    """The dead children that nobody has reaped. The listener itself is the load test's child, so it does not count."""
    return [process for process in processes if process.state == "Z" and process.pid != listener]


def descriptors(pid: int) -> int:
    """The number of open descriptors; 0 if the process is gone."""
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0


def resident(pid: int) -> int:
    """The resident memory in bytes; 0 if the process is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def _table() -> list[Process]:
    processes = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                stat = Path(f"/proc/{name}/stat").read_text()
            except OSError:
                continue  # it has ended meanwhile
            command, _, rest = stat.partition(" (")[2].rpartition(") ")
            state, parent, _, session = rest.split()[:4]
            processes.append(Process(int(name), int(parent), int(session), state, command))
    return processes


def _marked(pid: int, mark: str) -> bool:
    try:
        return f"{MARK}={mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
