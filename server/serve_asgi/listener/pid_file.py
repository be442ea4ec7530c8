"""The pid file: it names the server's process for as long as that lives.

The path is locked from the start (`PathLock`), so that a second server learns of the first at once. The file itself
appears when the server is ready for signals: written under another name and renamed into place, so that no reader ever
sees half a file; it is locked as well, for scripts that check that. A file without a lock was left by a dead server and
is replaced.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from typing import Any, Final

from serve_asgi.errors import InUseError, UsageError
from serve_asgi.ipc.path_lock import PathLock, unusable
from serve_asgi.ipc.shut_out_clients import Identity, unlink_own

SHORT: Final = 0.25
"""Seconds that the lock may be held just to remove a dead server's file (`serve stop`)."""


def _lock(path: str) -> PathLock:
    """Lock the path. Raises InUseError if another process holds the lock for longer than `SHORT`, and UsageError."""
    end = time.monotonic() + SHORT
    while True:
        try:
            return PathLock(path)
        except InUseError:
            if time.monotonic() >= end:
                raise
            time.sleep(SHORT / 10)


class PidFile:
    """The pid file of this process. Owns the lock and, once written, the file."""

    __slots__ = ("_fd", "_identity", "_lock", "_path")

    def __init__(self, path: str) -> None:
        """Claim `path`. Raises UsageError if a living server has it, or if it cannot be written."""
        self._path = os.path.abspath(path)
        self._identity: Identity | None = None
        self._fd = -1  # open on the written file, so that no other file can get its inode number
        if os.path.isdir(path):
            raise UsageError(f"the pid file {path} is a directory: give a path in it")
        try:
            self._lock = _lock(path)
        except InUseError as busy:
            who = f"the server with PID {busy.holder}" if busy.holder else "another server"
            raise UsageError(
                f"the pid file {path} belongs to {who}, which is alive: stop it, or choose another path"
            ) from None

    @property
    def path(self) -> str:
        """The absolute path."""
        return self._path

    def write(self) -> None:
        """Write the file, unless that has been done. Raises UsageError if it cannot be written."""
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

    def to_state(self, descriptors: list[int]) -> dict[str, Any]:
        """What `from_state` needs in a program that replaces this one; adds to `descriptors` those that must stay
        open."""
        if self._fd >= 0:
            descriptors.append(self._fd)
        lock = self._lock.to_state(descriptors)
        return {"fd": self._fd, "path": self._path, "identity": self._identity, "lock": lock}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> PidFile:
        """The pid file of an earlier program of this process."""
        file = cls.__new__(cls)
        file._fd, file._path, file._lock = state["fd"], state["path"], PathLock.from_state(state["lock"])
        file._identity = None if state["identity"] is None else (state["identity"][0], state["identity"][1])
        if file._fd >= 0:
            os.set_inheritable(file._fd, False)
        return file

    def remove(self) -> None:
        """Remove the file if it is still ours, and release the lock."""
        if self._identity is not None:
            unlink_own(self._path, self._identity)
        self._close()
        self._lock.release()

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
