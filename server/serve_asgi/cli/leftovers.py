"""What a server that was killed leaves behind: the pid file and the sockets, removed by the command that killed it.

The next start does without this (`serve_asgi.listener.pid_file`, `serve_asgi.listener.unix_socket`); scripts and people
who look for the files do not. Only what is provably the dead server's goes: nobody holds its lock, it names that PID,
it refuses connections.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable

from serve_asgi.errors import ServeError
from serve_asgi.ipc.path_lock import PathLock
from serve_asgi.listener.unix_socket import remove_dead


def remove_leftovers(pid: int, pid_file: str, control: str, sockets: Iterable[str]) -> list[str]:
    """Remove those of these files ("": none) that the dead server `pid` has left; return their paths."""
    removed = [pid_file] if pid_file and _removed(pid_file, pid, _remove_pid_file) else []
    removed += [path for path in sockets if _removed(path, pid, lambda path, _: remove_dead(path))]
    with contextlib.suppress(OSError, ServeError):  # which has no lock
        if remove_dead(control):
            removed.append(control)
    return removed


def _removed(path: str, pid: int, remove: Callable[[str, int], bool]) -> bool:
    """Whether `remove` has removed it, under its lock; not if another server has that, or this user may not."""
    try:
        lock = PathLock(path, pid)
    except (OSError, ServeError):
        return False
    try:
        return remove(path, pid)
    except (OSError, ServeError):
        return False
    finally:
        lock.release()


def _remove_pid_file(path: str, pid: int) -> bool:
    with open(path, encoding="ascii", errors="replace") as file:
        if file.read(32).strip() != str(pid):
            return False
    os.unlink(path)
    return True
