"""The agent's lock (flock(2)): a file that the agent process keeps locked until it is dead.

Within one server the supervisor alone decides which agent is active (`serve_asgi.supervisor.agents`). The lock is for
what it cannot see: an agent whose listener was killed, and which is still alive when the next server's is to begin. Two
servers cannot listen on one address at the same time, so the lock belongs to the addresses: its path is the same for
the next server on them. (Port 0 is not an address: the port that it became is.)

Only the end of the process releases the lock. No agent removes the file, since a lock on a removed file excludes
nobody: a listener does, its own once it has no agent (`clear_away`), and at its start those that killed servers have
left (`remove_unused`). An agent opens the file long before it takes the lock, while it may still do so as root. So
that it is not removed meanwhile, whoever has it open says so by a read lock of fcntl(2), F_OFD_SETLK, which is
independent of flock(2) and ends with the process as well; who removes it takes the write lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
import struct
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from serve_asgi.errors import UsageError
from serve_asgi.ipc import control_protocol
from serve_asgi.ipc import forked_children as forks


class AgentLock:
    """The lock of one agent process, to be taken once."""

    def __init__(self, path: str) -> None:
        """Open, or create, the file `path`. Raises OSError."""
        self._fd = _opened_to_stay(path)
        forks.own(lambda: (self._fd,))  # a copy in a child would hold the lock after the agent has ended

    async def take(self, waits: Callable[[int], None]) -> None:
        """Take the lock; the caller sets the deadline.

        `waits(PID)` is called if another process has it (0: unknown). Even if cancelled it may still take the lock: a
        process that gives up waiting must exit. Raises OSError.
        """
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waits(self._holder())
            await self._wait()
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    async def _wait(self) -> None:
        """Wait in a thread, since the kernel has no event for it; the process's exit does not wait for the thread."""
        loop = asyncio.get_running_loop()
        taken: asyncio.Future[None] = loop.create_future()

        def told(error: OSError | None) -> None:
            if taken.done():
                return
            if error is None:
                taken.set_result(None)
            else:
                taken.set_exception(error)

        def wait() -> None:
            error: OSError | None = None
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX)
            except OSError as raised:
                error = raised
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is waiting any more
                loop.call_soon_threadsafe(told, error)

        threading.Thread(target=wait, name="serve-agent-lock", daemon=True).start()
        await taken

    def _holder(self) -> int:
        text = os.pread(self._fd, 32, 0).strip()
        return int(text) if text.isdigit() else 0


def lock_path(addresses: Iterable[str]) -> str:
    """The path of the lock file, in the runtime directory, which is created if necessary. Raises UsageError."""
    try:
        directory = control_protocol.runtime_directory()
    except OSError as error:
        raise UsageError(
            f"there is no directory for the agent's lock ({error.strerror or error}): set XDG_RUNTIME_DIR to one that "
            "belongs to this user alone"
        ) from None
    names = "\n".join([str(os.geteuid()), *sorted(addresses)])
    return str(directory / f"agent-{hashlib.sha256(names.encode()).hexdigest()[:16]}.lock")


def clear_away(addresses: Iterable[str]) -> None:
    """Remove the lock file, unless an agent has it open: an earlier server's, since ours have been reaped.

    To be called while the addresses are still ours, so that no agent of the next server waits for this file.
    """
    with contextlib.suppress(OSError, UsageError):
        _remove(lock_path(addresses))


def remove_unused() -> list[Path]:
    """Remove the lock files that no agent has open from this user's runtime directories; return their paths."""
    removed = []
    for directory in filter(control_protocol.private, control_protocol.runtime_directories()):
        for path in directory.glob("agent-*.lock"):
            with contextlib.suppress(OSError):
                _remove(str(path))
                removed.append(path)
    return removed


def _opened_to_stay(path: str) -> int:
    """A descriptor of the file, which nobody removes as long as it is open. Raises OSError."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            _lock_file(descriptor, fcntl.F_RDLCK, fcntl.F_OFD_SETLKW)  # until somebody has removed it
            if os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False)):
                return descriptor
        except FileNotFoundError:
            pass
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _remove(path: str) -> None:
    """Remove a lock file. Raises OSError, among others BlockingIOError if an agent has it open."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        _lock_file(descriptor, fcntl.F_WRLCK, fcntl.F_OFD_SETLK)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False)):
            os.unlink(path)
    finally:
        os.close(descriptor)


def _lock_file(descriptor: int, kind: int, command: int) -> None:
    """Lock the whole open file (fcntl(2), open file description locks). Raises OSError."""
    fcntl.fcntl(descriptor, command, struct.pack("@hhqqi4x", kind, os.SEEK_SET, 0, 0, 0))
