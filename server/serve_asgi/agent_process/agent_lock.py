"""The agent's lock (flock(2)): a file that the agent process keeps locked until it is dead.

Within one server the supervisor alone decides which agent is active (`serve_asgi.supervisor.agents`). The lock is for
what it cannot see: an agent whose listener was killed, and which is still alive when the next server's is to begin. Two
servers cannot listen on one address at the same time, so the lock belongs to the addresses: its path is the same for
the next server on them. (Port 0 is not an address: the port that it became is.)

Only the end of the process releases the lock. No agent removes the file, since a lock on a removed file excludes
nobody: a listener may, once it has no agent (`clear_away`).
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
import threading
from collections.abc import Callable, Iterable

from serve_asgi.errors import UsageError
from serve_asgi.ipc import control_protocol
from serve_asgi.ipc import forked_children as forks


class AgentLock:
    """The lock of one agent process, to be taken once."""

    def __init__(self, path: str) -> None:
        """Open, or create, the file `path`. Raises OSError."""
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
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
    """Remove the lock file, unless an agent holds the lock: an earlier server's, since ours have been reaped.

    To be called while the addresses are still ours, so that no agent of the next server waits for this file, and while
    we have no agent, not even a starting one: it opens the file long before it locks it.
    """
    with contextlib.suppress(OSError, UsageError):
        path = lock_path(addresses)
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(path)
        finally:
            os.close(descriptor)
