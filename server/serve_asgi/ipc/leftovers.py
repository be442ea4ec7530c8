"""What a server that was killed leaves behind, its pid file and its sockets, and who removes it.

`serve stop` does after it has killed the server. If somebody else has killed the listener, its orphaned workers and
agent do (`serve_asgi.worker.orphan_exit`), as far as their user may. What is left then, since all have died at once, is
removed by the next server that starts with the same paths, or in the same runtime directory.

Only files that are provably a dead server's are removed: nobody holds the lock, they name its PID, or they refuse
connections.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from serve_asgi.errors import InUseError, ServeError, UsageError
from serve_asgi.ipc.path_lock import PathLock

ATTEMPTS: Final = 50
"""How often an orphan looks: the kernel closes a dead listener's descriptors one after the other, its channel perhaps
before its lock."""


def remove_dead(path: str) -> bool:
    """Remove the socket of a server that has died; return whether there was one.

    Raises InUseError if a server listens on it, UsageError if it is not a socket.
    """
    try:
        found = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    if not stat.S_ISSOCK(found.st_mode):
        raise UsageError(f"{path} exists and is not a socket: remove it, or choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.stat(path, follow_symlinks=False), found):
                    os.unlink(path)
            return True
        except FileNotFoundError:
            return False
        except BlockingIOError:
            pass  # its queue is full: it is alive
    raise InUseError()


def remove_leftovers(pid: int, pid_file: str, control: str, sockets: Iterable[str]) -> list[str]:
    """Remove those of these files ("": none) that the dead server `pid` has left; return their paths."""
    removed = [pid_file] if pid_file and _removed(pid_file, pid, _remove_pid_file) else []
    removed += [path for path in sockets if _removed(path, pid, lambda path, _: remove_dead(path))]
    with contextlib.suppress(OSError, ServeError):  # it has no lock
        if control and remove_dead(control):
            removed.append(control)
    return removed


def remove_dead_servers(directory: Path) -> list[Path]:
    """Remove the control sockets of dead servers in a runtime directory, PID.sock each; return their paths.

    A server that is about to listen refuses connections for a moment as well: its PID is alive.
    """
    removed = []
    for path in directory.glob("*.sock"):
        with contextlib.suppress(OSError, ServeError):
            if path.stem.isdigit() and not _is_alive(int(path.stem)) and remove_dead(str(path)):
                removed.append(path)
    return removed


class ListenerFiles:
    """The files of a listener, in one of its children, which removes them if the listener is killed."""

    def __init__(self, packet: Mapping[str, Any]) -> None:
        """`packet` is the child's first, from `described`; a listener of an earlier version does not say."""
        self._pid, self._pid_file, self._control = packet.get("files", (0, "", ""))
        self._left = ATTEMPTS

    @staticmethod
    def described(pid_file: str, control: str) -> dict[str, Any]:
        """For the first packet to a child: the absolute paths of this process's files ("": none)."""
        return {"files": [os.getpid(), pid_file, control]}

    def remove(self) -> None:
        """Called again and again once the listener is dead: remove what can be removed."""
        if not self._left or not self._pid:
            return
        self._left -= 1
        remove_leftovers(self._pid, self._pid_file, self._control, ())
        if not any(path and os.path.lexists(path) for path in (self._pid_file, self._control)):
            self._left = 0


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError as error:
        return error.errno == errno.EPERM
    return True


def _removed(path: str, pid: int, remove: Callable[[str, int], bool]) -> bool:
    """Remove it under its lock; return whether it was removed: not if another server holds the lock, or without
    permission."""
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
