"""Replacing the listener's own program: same process, same PID, same children, same sockets, new code.

`serve reload --listener` requests it. The current release's program is found through the link that the server was
started through, and first checks, in a process of its own, whether it can take over the present state
(`serve_asgi.listener.re_exec_resume`); any failure up to then, or of execve(2) itself, leaves everything as it was.
Then, once no reload is under way, signals are blocked, those that have arrived are handled, and between two events
execve(2) replaces this program. The new one finds the state in a memfd and in descriptors that stay open
(`serve_asgi.listener.re_exec_registry`), and continues. Meanwhile workers serve; signals and deaths of children wait in
the kernel.
"""

from __future__ import annotations

import dataclasses
import enum
import logging
import os
import signal
import sys
from typing import Final, Protocol

import anyio

from serve_asgi.config import release
from serve_asgi.errors import ServeError, UsageError
from serve_asgi.ipc.signals import LISTENER_SIGNALS
from serve_asgi.listener import re_exec_registry as registry
from serve_asgi.listener.helper_processes import HelperProcess, HelperProcesses
from serve_asgi.listener.spawning import SAFE_PATH
from serve_asgi.logs import stdio_guard
from serve_asgi.supervisor import events as e
from serve_asgi.supervisor.lifecycles import ServerState
from serve_asgi.supervisor.re_exec_snapshot import at_rest

CHECK_TIME: Final = 30.0
"""Seconds that the new program has to check whether it can take over."""
REST_TIME: Final = 60.0
"""Seconds to wait for a server that is not at rest (a reload is under way) before giving up."""
LOOK: Final = 0.05
"""Seconds between two checks whether it is at rest: a hook may end, or a reply be sent, without any event."""
TURNS: Final = 10
"""Turns of the loop until a signal that has been recorded is an event."""
STOPPING: Final = frozenset(ServerState) - {ServerState.STARTING, ServerState.OPENING, ServerState.RUNNING}
"""States from which a server never comes to rest."""
SAID: Final = 2_000
"""Characters of the new program's output that are passed on."""

log = logging.getLogger("serve")


class ReExecStage(enum.Enum):
    """CHECKING -> WAITING -> GIVEN_UP, or the program is replaced."""

    CHECKING = "checking"  # the new program checks whether it can take over
    WAITING = "waiting"  # it can; waiting until the server is at rest
    GIVEN_UP = "given up"  # execve(2) failed


@dataclasses.dataclass(slots=True)
class PendingReExec:
    """A requested replacement."""

    program: list[str]
    place: str
    """The program's directory when it was checked, links resolved."""
    waiting: list[int]
    """The sockets of clients that wait for a reply."""
    stage: ReExecStage = ReExecStage.CHECKING
    given_up: anyio.Event = dataclasses.field(default_factory=anyio.Event)
    trouble: str = ""


class ReExecutable(registry.Carrier, Protocol):
    """What this module needs of the listener."""

    processes: HelperProcesses

    def post(self, event: e.Event) -> None:
        """Queue an event; events are handled in order."""

    def busy(self) -> str:
        """What is under way that only this program can bring to its end; "" if nothing is."""

    def has_events(self) -> bool:
        """Whether there are events that have not been handled."""


class ReExec:
    """The replacement of one listener's program."""

    def __init__(self, listener: ReExecutable) -> None:
        self._listener = listener
        self._pending: PendingReExec | None = None

    async def ask(self, asker: int) -> None:
        """Replace the program, which will reply on the socket `asker`.

        Raises ServeError, a sentence, if that is not possible, and does not return otherwise.
        """
        if self._pending is not None:
            raise ServeError("the listener is already being replaced; wait for that")
        flags = release.interpreter_flags(sys.orig_argv)
        program = [release.program(), *flags, *SAFE_PATH, "-m", "serve_asgi"]
        pending = self._pending = PendingReExec([*program, *sys.argv[1:]], _place(program[0]), [asker])
        try:
            await self._check([*program[:-1], registry.CHECK_MODULE])
            pending.stage = ReExecStage.WAITING
            with anyio.move_on_after(REST_TIME):
                while pending.stage is ReExecStage.WAITING:
                    self._refuse_at_stop()
                    self._listener.post(e.Wakeup())
                    with anyio.move_on_after(LOOK):
                        await pending.given_up.wait()
            trouble = pending.trouble or f"{self._in_the_way()} for {REST_TIME:g} s; try again"
            raise ServeError(f"the listener was not replaced: {trouble}")
        finally:
            self._pending = None

    def _in_the_way(self) -> str:
        return self._listener.busy() or "a reload was under way"

    async def _check(self, program: list[str]) -> None:
        """Have the new program check what it would take over. Raises ServeError with its output."""
        files: list[int] = []
        try:
            files.append(fd := registry.save(registry.describe(self._listener, [])))
            files.append(said := os.memfd_create("serve-said", os.MFD_CLOEXEC))
            files.append(board := self._listener.children.scoreboard.read_only())
            environment = {name: text for name, text in os.environ.items() if name not in release.PRIVATE_VARIABLES}
            descriptors = [(fd, fd), (board, board), (said, 1), (said, 2)]
            arguments = [*program, "--check", str(fd), "--scoreboard", str(board)]
            status = await self._checked(self._listener.processes.start(arguments, environment, descriptors))
            text = os.pread(said, 1 << 20, 0).decode(errors="replace").strip()[-SAID:]
            if status != 0:
                raise ServeError(f"the listener was not replaced; the new program says: {text or status}")
        except OSError as error:
            raise ServeError(f"the listener was not replaced: {program[0]} cannot be run: {error.strerror}") from None
        finally:
            for file in files:
                os.close(file)

    async def _checked(self, process: HelperProcess) -> int:
        """The exit status of that check. Raises ServeError if it takes too long or the server stops."""
        try:
            with anyio.move_on_after(CHECK_TIME):
                while not process.ended:
                    self._refuse_at_stop()
                    with anyio.move_on_after(LOOK):
                        await process.wait()
                return await process.wait()
        finally:
            process.signal(signal.SIGKILL)  # nothing, if it has ended
        raise ServeError(f"the listener was not replaced: the new program did not respond for {CHECK_TIME:g} s")

    def _refuse_at_stop(self) -> None:
        if self._listener.supervisor.state in STOPPING:
            raise ServeError("the listener was not replaced: the server is stopping")

    def due(self) -> bool:
        """Whether to replace the program now, between two events."""
        waits = self._pending is not None and self._pending.stage is ReExecStage.WAITING
        return waits and at_rest(self._listener.supervisor) and not self._listener.busy()

    async def attempt(self) -> None:
        """Replace the program, unless events have arrived once signals are blocked. Returns only if it was not
        replaced."""
        signal.pthread_sigmask(signal.SIG_BLOCK, LISTENER_SIGNALS)
        try:
            for _ in range(TURNS):
                await anyio.lowlevel.checkpoint()
            if self.due() and not self._listener.has_events():
                assert self._pending is not None
                self._exec(self._pending)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, LISTENER_SIGNALS)

    def _exec(self, pending: PendingReExec) -> None:
        """Does not return, unless it fails: then everything is as it was."""
        guard = stdio_guard.current()
        guard.stand_still()
        descriptors: list[int] = []
        fd = -1
        try:
            if _place(pending.program[0]) != pending.place:
                raise UsageError("another release has become current; try again")
            state = registry.describe(self._listener, pending.waiting)
            descriptors = state["descriptors"]
            fd = registry.save(state)
            for descriptor in [*descriptors, fd]:
                os.set_inheritable(descriptor, True)
            os.execve(pending.program[0], pending.program, {**os.environ, registry.VARIABLE: str(fd)})
        except Exception as error:
            log.debug("the listener could not be replaced", exc_info=True)
            pending.trouble = f"{pending.program[0]} could not be started in its place: {error}"
            pending.stage = ReExecStage.GIVEN_UP
            pending.given_up.set()
            for descriptor in descriptors:
                os.set_inheritable(descriptor, False)
            if fd >= 0:
                os.close(fd)
        finally:
            guard.go_on()


def _place(program: str) -> str:
    """Where the program really is: a link in its path may point elsewhere later."""
    return os.path.realpath(os.path.dirname(program))
