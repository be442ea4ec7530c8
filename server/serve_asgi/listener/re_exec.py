"""Replacing the listener's own program: same process, same PID, same children, same sockets, new code.

`serve reload --listener` asks for it. The program of the release that is current now is found through the link that the
server was started through, and asked beforehand, in a process of its own, whether it can take over what there is
(`serve_asgi.listener.re_exec_resume`); any trouble until then, and one of execve(2) itself, leaves everything as it
was. Then, once no reload is under way, signals are held back, what they have said so far is handled, and between two
events execve(2) puts the new program in this one's place. It finds all that there was in a memfd and in descriptors
that stay open (`serve_asgi.listener.re_exec_registry`), and goes on. Meanwhile workers serve; a signal or the death of
a child waits in the kernel.
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
"""Seconds that the new program has to say whether it can take over."""
REST_TIME: Final = 60.0
"""Seconds until a server that is never at rest (a reload is under way) is left as it is."""
LOOK: Final = 0.05
"""Seconds between two looks at whether it is at rest: a hook may end, or an answer be sent, without any event."""
TURNS: Final = 10
"""Turns of the loop in which a signal that has been recorded becomes an event."""
STOPPING: Final = frozenset(ServerState) - {ServerState.STARTING, ServerState.OPENING, ServerState.RUNNING}
"""States from which a server never comes to rest."""
SAID: Final = 2_000
"""Characters of what the new program has said that are passed on."""

log = logging.getLogger("serve")


class ReExecStage(enum.Enum):
    """CHECKING -> WAITING -> GIVEN_UP, or the program is replaced."""

    CHECKING = "checking"  # the new program is asked whether it can take over
    WAITING = "waiting"  # it can; until the server is at rest
    GIVEN_UP = "given up"  # execve(2) failed


@dataclasses.dataclass(slots=True)
class PendingReExec:
    """A replacement that somebody has asked for."""

    program: list[str]
    place: str
    """The program's directory when it was checked, links resolved."""
    waiting: list[int]
    """The sockets of those who wait for an answer."""
    stage: ReExecStage = ReExecStage.CHECKING
    given_up: anyio.Event = dataclasses.field(default_factory=anyio.Event)
    trouble: str = ""


class ReExecutable(registry.Carrier, Protocol):
    """The listener, as far as its replacing needs it."""

    processes: HelperProcesses

    def post(self, event: e.Event) -> None:
        """Add an event to those that are handled, in order."""

    def busy(self) -> str:
        """What is under way that only this program can bring to its end; "" if nothing is."""

    def has_events(self) -> bool:
        """Whether something has happened that has not been handled."""


class ReExec:
    """The replacing of one listener."""

    def __init__(self, listener: ReExecutable) -> None:
        self._listener = listener
        self._pending: PendingReExec | None = None

    async def ask(self, asker: int) -> None:
        """Replace the program; whoever has the socket `asker` is told by the new one.

        Raises ServeError, a sentence, if it cannot be, and does not return otherwise.
        """
        if self._pending is not None:
            raise ServeError("the listener is being replaced already; wait for that")
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
            raise ServeError(f"the listener goes on as it is: {trouble}")
        finally:
            self._pending = None

    def _in_the_way(self) -> str:
        return self._listener.busy() or "a reload was under way"

    async def _check(self, program: list[str]) -> None:
        """Let the new program look at what it would take over. Raises ServeError with what it said."""
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
                raise ServeError(f"the listener goes on as it is; the new program says: {text or status}")
        except OSError as error:
            raise ServeError(f"the listener goes on as it is: {program[0]} cannot be run: {error.strerror}") from None
        finally:
            for file in files:
                os.close(file)

    async def _checked(self, process: HelperProcess) -> int:
        """The exit status of the new program that looks. Raises ServeError if it takes too long or the server stops."""
        try:
            with anyio.move_on_after(CHECK_TIME):
                while not process.ended:
                    self._refuse_at_stop()
                    with anyio.move_on_after(LOOK):
                        await process.wait()
                return await process.wait()
        finally:
            process.signal(signal.SIGKILL)  # nothing, if it has ended
        raise ServeError(f"the listener goes on as it is: the new program said nothing for {CHECK_TIME:g} s")

    def _refuse_at_stop(self) -> None:
        if self._listener.supervisor.state in STOPPING:
            raise ServeError("the listener goes on as it is: the server is stopping")

    def due(self) -> bool:
        """Whether it is to be done now, between two events."""
        waits = self._pending is not None and self._pending.stage is ReExecStage.WAITING
        return waits and at_rest(self._listener.supervisor) and not self._listener.busy()

    async def attempt(self) -> None:
        """Do it, if nothing has come up once no signal can. Returns only if it was not done."""
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
        """Never returns, unless it fails: then everything is as it was."""
        guard = stdio_guard.current()
        guard.stand_still()
        descriptors: list[int] = []
        fd = -1
        try:
            if _place(pending.program[0]) != pending.place:
                raise UsageError("another release is current by now; try again")
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
    """Where the program really is: a link on the way may point elsewhere later."""
    return os.path.realpath(os.path.dirname(program))
