"""Binding a unix socket's path, so that two servers never take the same one and a dead one's never stands in the way.

A lock on PATH.lock (flock(2)) says that a server holds the path, also while nobody listens on it yet; it ends with
the process, however that dies. Under the lock, a path where connects are refused is a dead server's and is replaced.
The file's mode comes from the umask at bind, so that it is never open to more people than asked, not even for a
moment. (Binding to another name and renaming was rejected: `getsockname` would tell the other name for ever, and the
path may be too long.)
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import grp
import os
import pwd
import socket
import stat

from server.config import Config
from server.errors import ServeError, UsageError
from server.listener.addresses import parse_address
from server.shut_out import Identity, unlink_own


class InUseError(ServeError):
    """Somebody holds the address now; it may be free later. Its text, if any, says who."""


class PathLock:
    """The lock of one path; held until `release` or the end of the process."""

    __slots__ = ("_fd", "_path")

    def __init__(self, path: str) -> None:
        """Take PATH.lock. Raises InUseError if another process holds it, and UsageError if it cannot be made."""
        self._path = path + ".lock"
        while True:
            try:
                self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            except OSError as error:
                raise _unusable(path, error) from None
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                holder = os.pread(self._fd, 32, 0).decode(errors="replace").strip()
                os.close(self._fd)
                raise InUseError(f" (PID {holder})" if holder.isdigit() else "") from None
            if self._is_in_place():
                break
            os.close(self._fd)  # its holder removed it between our open and our lock: take the new one
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def _is_in_place(self) -> bool:
        ours = os.fstat(self._fd)
        try:
            there = os.stat(self._path, follow_symlinks=False)
        except OSError:
            return False
        return (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino)

    def release(self) -> None:
        """Remove the lock's file and give the lock up."""
        ours = os.fstat(self._fd)
        unlink_own(self._path, (ours.st_dev, ours.st_ino))
        os.close(self._fd)


def bind_unix(path: str, config: Config) -> tuple[socket.socket, Identity, PathLock]:
    """A socket bound to `path`, with `config.unix_mode`, and owned by `config.user` and `config.group` if set.

    Raises InUseError while a living server has the path, and UsageError, which says what to do, for all else.
    """
    parse_address(f"unix:{path}")  # its length: the kernel's message for that says nothing
    lock = PathLock(path)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_dead(path)
        before = os.umask(0o777 & ~int(config.unix_mode, 8))
        try:
            made.bind(path)
        finally:
            os.umask(before)
        _give_away(path, config)
        status = os.stat(path)
        made.setblocking(False)
    except BaseException as error:
        made.close()
        lock.release()
        if isinstance(error, OSError):
            raise _unusable(path, error) from None
        raise
    return made, (status.st_dev, status.st_ino), lock


def _remove_dead(path: str) -> None:
    """Remove the socket of a server that has died. Raises InUseError if one answers, UsageError if it is no socket."""
    try:
        mode = os.stat(path, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise UsageError(f"{path} exists and is not a socket: remove it, or choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            return
        except BlockingIOError:
            pass  # its queue is full: it lives
    raise InUseError()


def _give_away(path: str, config: Config) -> None:
    """With --user or --group, let the socket belong to them, as the workers do."""
    if os.geteuid() != 0 or not (config.user or config.group):
        return
    user = int(config.user) if config.user.isdigit() else pwd.getpwnam(config.user).pw_uid if config.user else -1
    group = int(config.group) if config.group.isdigit() else grp.getgrnam(config.group).gr_gid if config.group else -1
    os.chown(path, user, group)


def _unusable(path: str, error: OSError) -> ServeError:
    directory = os.path.dirname(path) or "."
    match error.errno:
        case errno.EADDRINUSE:
            return InUseError()
        case errno.ENOENT | errno.ENOTDIR:
            return UsageError(
                f"there is no directory {directory} for the unix socket {path}: make it, or choose another path"
            )
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return UsageError(f"this user may not make the unix socket {path}: choose a directory that it may write to")
    return UsageError(f"the unix socket {path} cannot be made: {error.strerror}")
