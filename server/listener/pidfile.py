"""The pid file: it says which process is the server, for as long as that lives, and nothing else ever.

The path is locked from the start (`PathLock`), so that a second server learns of the first at once. The file itself
comes when the server is ready for signals, whole: written beside the path and renamed into place, so that no reader
ever sees it half or empty; it is locked as well, for scripts that look at that. A file that is there without a lock
is a dead server's and is replaced.
"""

from __future__ import annotations

import contextlib
import fcntl
import os

from server.errors import UsageError
from server.listener.path_lock import InUseError, PathLock, unusable
from server.shut_out import Identity, unlink_own


class PidFile:
    """The pid file of this process. Owns the lock and, once written, the file."""

    __slots__ = ("_fd", "_identity", "_lock", "_path")

    def __init__(self, path: str) -> None:
        """Claim `path`. Raises UsageError if a living server has it, or if it cannot be written."""
        self._path = os.path.abspath(path)
        self._identity: Identity | None = None
        self._fd = -1  # stays open on the written file, so that no other can get its inode number meanwhile
        if os.path.isdir(path):
            raise UsageError(f"the pid file {path} is a directory: give a path in it")
        try:
            self._lock = PathLock(path)
        except InUseError as busy:
            who = f"the server with PID {busy.holder}" if busy.holder else "another server"
            raise UsageError(
                f"the pid file {path} belongs to {who}, which is alive: stop it, or choose another path"
            ) from None

    def write(self) -> None:
        """Let the file appear, or do nothing if it has. Raises UsageError if it cannot be written."""
        if self._identity is not None:
            return
        beside = f"{self._path}.{os.getpid()}.new"
        try:
            self._fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.write(self._fd, f"{os.getpid()}\n".encode())
            os.fsync(self._fd)
            status = os.fstat(self._fd)
            os.rename(beside, self._path)
        except OSError as error:
            self._close()
            with contextlib.suppress(OSError):
                os.unlink(beside)
            raise unusable(self._path, error) from None
        self._identity = (status.st_dev, status.st_ino)

    def remove(self) -> None:
        """Remove the file if it is still ours, and give the path up."""
        if self._identity is not None:
            unlink_own(self._path, self._identity)
        self._close()
        self._lock.release()

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
