"""CPU time and memory of a server's process tree, from /proc. It only looks.

CPU time is utime + stime of every living process plus cutime + cstime, what their reaped children have used: each
moment counts once. The kernel tells it in ticks (10 ms as a rule), so a round must be long enough to have many.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from loadtest.processes import Process

TICK = 1.0 / os.sysconf("SC_CLK_TCK")
"""Seconds."""

ENOUGH_TICKS = 50
"""A round with fewer is not exact to 2 %; the report says so."""


def ticks(stat: str) -> int:
    """Of one line of /proc/PID/stat (proc_pid_stat(5)): utime, stime, cutime and cstime together."""
    fields = stat.rpartition(") ")[2].split()
    return sum(map(int, fields[11:15]))


def cpu(processes: Iterable[Process]) -> float:
    """Seconds that all these processes, and the children that they have reaped, have used."""
    total = 0
    for process in processes:
        try:
            total += ticks(Path(f"/proc/{process.pid}/stat").read_text())
        except OSError:
            continue  # it has ended; its parent counts it
    return total * TICK


def proportional(rollup: str) -> int:
    """The PSS in bytes of one /proc/PID/smaps_rollup (proc_pid_smaps(5)); 0 if it says none."""
    for line in rollup.splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def pss(pid: int) -> int:
    """The proportional set size in bytes: memory that is shared counts as this process's share. 0 if it is gone."""
    try:
        return proportional(Path(f"/proc/{pid}/smaps_rollup").read_text())
    except OSError:
        return 0
