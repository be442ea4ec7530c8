"""A lock on a path: PATH.lock, locked by flock(2), so that the lock ends with its process however that dies.

A separate file is locked rather than the path itself, because a socket cannot be locked, and a pid file is only created
later.
"""

from __future__ import annotations

import errno
import fcntl
import os
from typing import Any

from serve_asgi.errors import InUseError, UsageError
from serve_asgi.ipc.shut_out_clients import unlink_own


class PathLock:
    """The lock of one path; held until `release` or the end of the process."""

    __slots__ = ("_fd", "_path")

    def __init__(self, path: str, holder: int = 0) -> None:
        """Take PATH.lock; the file names this process, or `holder`.

        Raises InUseError if another process holds it, and UsageError if it cannot be created.
        """
        self._path = os.path.abspath(path) + ".lock"
        while True:
            try:
                self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            except OSError as error:
                raise unusable(path, error) from None
            if self._lock_and_check():
                break
        try:
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, f"{holder or os.getpid()}\n".encode(), 0)
        except OSError as error:  # a full disk
            self.release()
            raise unusable(path, error) from None

    def _lock_and_check(self) -> bool:
        """Lock the open file; return False if its holder removed it before, so that it has to be created again."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours = os.fstat(self._fd)
            there = os.stat(self._path, follow_symlinks=False)
            if (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino):
                return True
        except BlockingIOError:
            holder = os.pread(self._fd, 32, 0).strip()
            os.close(self._fd)
            raise InUseError(int(holder) if holder.isdigit() else None) from None
        except FileNotFoundError:
            pass
        os.close(self._fd)
        return False

    def to_state(self, descriptors: list[int]) -> dict[str, Any]:
        """What `from_state` needs in a program that replaces this one; adds to `descriptors` those that must stay
        open."""
        descriptors.append(self._fd)
        return {"fd": self._fd, "path": self._path}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> PathLock:
        """The lock that this process already holds: flock(2) locks survive execve(2)."""
        lock = cls.__new__(cls)
        lock._fd, lock._path = state["fd"], state["path"]
        os.set_inheritable(lock._fd, False)
        return lock

    def release(self) -> None:
        """Remove the lock file and release the lock; may be called again."""
        if self._fd < 0:
            return
        ours = os.fstat(self._fd)
        unlink_own(self._path, (ours.st_dev, ours.st_ino))
        os.close(self._fd)
        self._fd = -1


def unusable(path: str, error: OSError) -> UsageError:
    """The error for `path`, which could not be created."""
    directory = os.path.dirname(path) or "."
    match error.errno:
        case errno.ENOENT | errno.ENOTDIR:
            return UsageError(f"there is no directory {directory} for {path}: create it, or choose another path")
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return UsageError(f"this user may not create {path}: choose a directory that it may write to")
    return UsageError(f"{path} cannot be created: {error.strerror}; make room there, or choose another path")
