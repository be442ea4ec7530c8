"""Binds a unix socket's path, so that two servers never take the same one and a dead server's is never in the way.

A lock on PATH.lock (flock(2)) says that a server holds the path, even while nobody listens on it yet; it ends with the
process, however that dies. Under the lock, a path where connects are refused belonged to a dead server and is replaced.
The file's mode comes from the umask at bind, so that it is never more open than configured, not even for a moment.
(Binding to another name and renaming was rejected: `getsockname` would return the other name for ever, and the path may
be too long.)
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket

from serve_asgi.config.accounts import find_group, find_user
from serve_asgi.config.listen_addresses import UnixAddress
from serve_asgi.config.options import Config
from serve_asgi.errors import InUseError, ServeError, UsageError
from serve_asgi.ipc.leftovers import remove_dead
from serve_asgi.ipc.path_lock import PathLock, unusable
from serve_asgi.ipc.shut_out_clients import Identity


def bind_unix(address: UnixAddress, config: Config) -> tuple[socket.socket, Identity | None, PathLock | None]:
    """A socket bound to `address`, with `config.unix_mode`, owned by `config.user` and `config.unix_group`, if set.

    An abstract one is not a file: it has neither mode nor owner, and the kernel alone reserves its name. Raises
    InUseError while a living server has the path, and UsageError, which says what to do, for all else.
    """
    if address.is_abstract:
        return _bind_abstract(address), None, None
    path = address.path
    lock = PathLock(path)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        remove_dead(path)
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
        if isinstance(error, UsageError):  # it was bound, and cannot have the owners that it should have
            with contextlib.suppress(OSError, ServeError):
                remove_dead(path)
        lock.release()
        if isinstance(error, OSError):
            raise InUseError() if error.errno == errno.EADDRINUSE else unusable(path, error) from None
        raise
    return made, (status.st_dev, status.st_ino), lock


def _bind_abstract(address: UnixAddress) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        made.bind(address.where())
        made.setblocking(False)
    except OSError as error:
        made.close()
        if error.errno == errno.EADDRINUSE:
            raise InUseError() from None
        raise UsageError(f"cannot listen on {address}: {error.strerror}") from None
    return made


def _give_away(path: str, config: Config) -> None:
    """Make --user and --unix-group, or else --group, the owners of the socket.

    Who is not root may give it to a group of their own (chown(2)). Raises UsageError for another, and OSError.
    """
    root = os.geteuid() == 0
    group_name = config.unix_group or (config.group if root else "")
    user = find_user(config.user).pw_uid if root and config.user else -1
    group = find_group(group_name) if group_name else -1
    if user == group == -1:
        return
    try:
        os.chown(path, user, group)
    except PermissionError:
        raise UsageError(
            f"--unix-group: this user is not in the group {config.unix_group}, and may not give {path} to it: put it "
            f"into that group (usermod -aG {config.unix_group} USER)"
        ) from None
