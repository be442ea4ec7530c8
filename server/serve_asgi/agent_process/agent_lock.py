"""The agent's lock (flock(2)): a file that the agent process itself holds locked until it is no more.

Within one server the supervisor alone decides which agent is at work (`serve_asgi.supervisor.agents`). The lock is for
what it cannot see: an agent whose listener was killed, and which has not ended when the next server's is to begin. Two
servers cannot listen at one address at the same time, so that the lock belongs to the addresses: its path is the same
for the next server of the same ones. (Port 0 is no address: the ports that it became are.)

Nothing gives the lock up but the end of the process. No agent removes the file, since who locks a removed one is alone
with it: a listener may, when it has no agent any more (`clear_away`).
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
    """The lock in the agent process, to be taken once."""

    def __init__(self, path: str) -> None:
        """Open the file `path`, and make it if need be. Raises OSError."""
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        forks.own(lambda: (self._fd,))  # a copy in a child would hold the lock after the agent has ended

    async def take(self, waits: Callable[[int], None]) -> None:
        """Take the lock; the caller sets the deadline. `waits(PID)` is called if another has it (0: not known whose).

        Cancelled, it may still take the lock: whoever gives up waiting must end. Raises OSError.
        """
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waits(self._holder())
            await self._wait()
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    async def _wait(self) -> None:
        """The kernel has no event for it: a thread waits, which no exit of the process waits for."""
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
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(told, error)

        threading.Thread(target=wait, name="serve-agent-lock", daemon=True).start()
        await taken

    def _holder(self) -> int:
        text = os.pread(self._fd, 32, 0).strip()
        return int(text) if text.isdigit() else 0


def lock_path(addresses: Iterable[str]) -> str:
    """The path of the lock's file, in the runtime directory, which is made if need be. Raises UsageError."""
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
    """Remove the lock's file, unless an agent has the lock: one of an earlier server, since ours have been reaped.

    To be called while the addresses are still ours, so that no agent of the next server waits for this very file, and
    while no process of ours is or begins to be an agent: it opens the file long before it locks it.
    """
    with contextlib.suppress(OSError, UsageError):
        path = lock_path(addresses)
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(path)
        finally:
            os.close(descriptor)
