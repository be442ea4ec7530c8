"""One agent's work, from being entered to its end, in a task of its own: whoever enters a context manager leaves it.

What the application's code raises is a value here, whatever it is: SystemExit and KeyboardInterrupt would end the loop
if a task raised them.
"""

from __future__ import annotations

import asyncio
import contextlib

from serve_asgi.app.agent_target import AgentTarget, Manager
from serve_asgi.app.retiring import retiring
from serve_asgi.app.sending import NoReceiver
from serve_asgi.ipc import forked_children as forks
from serve_asgi.logs.exceptions import is_from_outside


class AgentTask:
    """Entered once, finished once."""

    def __init__(self, subject: AgentTarget) -> None:
        self._subject = subject
        self._begun = asyncio.Event()
        self._leave = asyncio.Event()
        self._inside = False  # of a context manager, which is left rather than cancelled
        self._task: asyncio.Task[BaseException | None] | None = None

    async def enter(self) -> BaseException | None:
        """Begin; return once it is active: a context manager is entered, a function has come to its first wait.

        Returns what the application's code raised, or a UsageError if what it made is no agent. Cancelled, it is ended
        before this returns.
        """
        task = self._task = asyncio.get_running_loop().create_task(self._run(), name="agent")
        begun = asyncio.ensure_future(self._begun.wait())
        try:
            await asyncio.wait({task, begun}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            await self.finish()
            raise
        finally:
            begun.cancel()
        return self._raised() if task.done() else None

    async def over(self) -> BaseException | None:
        """Wait until it ends by itself; return why, or None if its function has returned."""
        assert self._task is not None
        return await asyncio.shield(self._task)

    async def finish(self) -> BaseException | None:
        """Have it leave its context manager, or cancel its function, and wait until it has; return what it raised."""
        assert self._task is not None
        self._leave.set()
        if not self._inside:
            self._task.cancel()
        await asyncio.wait({self._task})
        return self._raised()

    def _raised(self) -> BaseException | None:
        assert self._task is not None
        return None if self._task.cancelled() else self._task.result()  # cancelled: before its first step

    async def _run(self) -> BaseException | None:
        try:
            made = self._subject.make()
            if isinstance(made, contextlib.AbstractAsyncContextManager):
                await self._inside_of(made)
            else:
                asyncio.get_running_loop().call_soon(self._begun.set)  # in the turn after its first step
                await made
        except asyncio.CancelledError as error:
            cancelled = self._task is not None and self._task.cancelling() > 0  # by `finish`, not by its own code
            return None if self._leave.is_set() and cancelled else error
        except NoReceiver as error:
            # at a stop no worker takes what it hands out: it ends a little before it is cancelled
            return None if retiring() and not self._inside and not self._leave.is_set() else error
        except BaseException as error:
            forks.leave(error)
            if is_from_outside(error, self._task):  # the loop is closed, and this coroutine with it
                raise
            return error
        return None

    async def _inside_of(self, manager: Manager) -> None:
        async with manager:
            self._inside = True
            self._begun.set()
            await self._leave.wait()
