"""Finding out which process holds a port, for an error message.

A best effort: /proc shows a user the descriptors of its own processes only.
"""

from __future__ import annotations

import contextlib
import os


def holder_of_port(port: int) -> tuple[int, str] | None:
    """PID and name of a process with a socket that listens on TCP `port`, or None if that cannot be seen (proc(5))."""
    sockets = {f"socket:[{inode}]" for inode in _listening_inodes(port)}
    if not sockets:
        return None
    for entry in sorted(int(name) for name in os.listdir("/proc") if name.isdigit()):
        with contextlib.suppress(OSError), os.scandir(f"/proc/{entry}/fd") as descriptors:
            for descriptor in descriptors:
                with contextlib.suppress(OSError):
                    if os.readlink(descriptor.path) in sockets:
                        return entry, _name(entry)
    return None


def _listening_inodes(port: int) -> set[str]:
    wanted, inodes = f":{port:04X}", set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError), open(table) as lines:
            for line in lines:
                fields = line.split()
                if fields[3] == "0A" and fields[1].endswith(wanted):  # TCP_LISTEN
                    inodes.add(fields[9])
    return inodes


def _name(pid: int) -> str:
    with open(f"/proc/{pid}/comm") as file:
        return file.read().strip()
