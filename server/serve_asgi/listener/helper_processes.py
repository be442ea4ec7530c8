"""Processes besides the workers: hooks, the file watcher, the admin and the store process.

It owns their PIDs until they have been reaped. `HelperProcess.wait` is the only way to wait for one: the listener reaps
all children in one place (as PID 1 it also gets orphans) and reports them here. Each leads a process group, so that
whatever it starts can be ended with it, in a session of its own, as workers do (`serve_asgi.listener.spawning`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Mapping, Sequence
from typing import Final

import anyio

from serve_asgi.ipc.signals import LISTENER_SIGNALS

REAP_TIME: Final = 2.0
"""Seconds that the kernel has to end what was killed."""


class HelperProcess:
    """A started process."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._ended = anyio.Event()
        self._status = 0

    async def wait(self) -> int:
        """Wait for its end; return the exit status, or the negative number of the signal that ended it."""
        await self._ended.wait()
        return self._status

    @property
    def ended(self) -> bool:
        """Whether it has been reaped."""
        return self._ended.is_set()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to its process group; does nothing if it has ended."""
        if not self.ended:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # it may run as another user by now (sudo)
                os.killpg(self.pid, number)

    def _reaped(self, wait_status: int) -> None:
        self._status = os.waitstatus_to_exitcode(wait_status)
        self._ended.set()


class HelperProcesses:
    """Starts helper processes and keeps track of those that have not been reaped."""

    def __init__(self) -> None:
        self._living: dict[int, HelperProcess] = {}

    def start(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        descriptors: Sequence[tuple[int, int]] = (),
        directory: str = "",
    ) -> HelperProcess:
        """Start a program, named by its path, in a session of its own, with all signals at their defaults.

        `descriptors` are pairs (here, there), which stay the caller's; 0, 1 and 2 are the listener's own if they are
        not named. env(1) changes to `directory`, since posix_spawn(3) cannot.

        Raises OSError if it cannot be started.
        """
        if directory:
            if "=" in arguments[0]:  # env(1) would take it for a variable
                arguments = ["/bin/sh", "-c", 'exec "$0" "$@"', *arguments]
            arguments = ["/usr/bin/env", "-C", directory, *arguments]
        pid = os.posix_spawn(
            arguments[0],
            list(arguments),
            dict(environment),
            file_actions=[(os.POSIX_SPAWN_DUP2, here, there) for here, there in descriptors],
            setsid=True,
            setsigmask=[],
            setsigdef=LISTENER_SIGNALS | {signal.SIGPIPE},
        )
        process = self._living[pid] = HelperProcess(pid)
        return process

    def adopt(self, pid: int) -> HelperProcess:
        """Keep track of a process that an earlier program of this listener has started and not reaped."""
        process = self._living[pid] = HelperProcess(pid)
        return process

    def reaped(self, pid: int, wait_status: int) -> bool:
        """Record the end of a process; return False if it is not one of these."""
        process = self._living.pop(pid, None)
        if process is None:
            return False
        process._reaped(wait_status)
        return True

    def knows(self, pid: int) -> bool:
        """Whether it is one of these."""
        return pid in self._living

    def living(self) -> list[HelperProcess]:
        """Those that have not been reaped."""
        return list(self._living.values())

    async def kill(self) -> None:
        """Kill all of them, and wait until they have been reaped, `REAP_TIME` at most: the server has ended."""
        for process in self.living():
            process.signal(signal.SIGKILL)
        with anyio.move_on_after(REAP_TIME):
            for process in self.living():
                await process.wait()

    def kill_and_reap(self, process: HelperProcess) -> None:
        """The same for one process, outside an event loop. SIGCHLD has to be blocked."""
        process.signal(signal.SIGKILL)
        deadline = time.monotonic() + REAP_TIME
        while not process.ended and (left := deadline - time.monotonic()) > 0:
            pid, wait_status = os.waitpid(process.pid, os.WNOHANG)
            if pid:
                self.reaped(pid, wait_status)
            else:
                signal.sigtimedwait({signal.SIGCHLD}, left)
