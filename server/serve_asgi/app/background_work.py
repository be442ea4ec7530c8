"""Background work of this process: handlers of messages and runs of schedules, each a task.

A retiring worker waits for them as for requests; at the graceful timeout those that have not ended are cancelled. One
that has stood by gets work again when it serves again.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from typing import Any, Final


class BackgroundWork:
    """The tasks of one process."""

    def __init__(self) -> None:
        self.tasks: set[asyncio.Task[Any]] = set()
        self._uncounted: set[asyncio.Task[Any]] = set()
        self.retiring = False
        """No new work comes; what was delivered and not started has been returned."""
        self.cut = False
        """The graceful timeout has passed: tasks are cancelled, and nothing is reported of them."""
        self.context: contextvars.Context | None = None
        """Each task has a copy of it, with what the import of the application has set; None: of the present one."""
        self._retire_event = asyncio.Event()
        self._on_retire: list[Callable[[], None]] = []
        self._on_resume: list[Callable[[], None]] = []

    def start(self, coroutine: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Run `coroutine`, which must handle its own errors, as a task that is waited for."""
        context = None if self.context is None else self.context.copy()
        task = asyncio.get_running_loop().create_task(coroutine, name=name, context=context)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    def start_uncounted(self, coroutine: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """As `start`, for a task that only waits for more work: it is not counted if it is cut."""
        task = self.start(coroutine, name)
        self._uncounted.add(task)
        task.add_done_callback(self._uncounted.discard)
        return task

    def on_retire(self, do: Callable[[], None]) -> None:
        """Call `do` when this process gets no more work."""
        self._on_retire.append(do)

    def on_resume(self, do: Callable[[], None]) -> None:
        """Call `do` when this process, which got no more work, gets some again."""
        self._on_resume.append(do)

    def resume(self) -> None:
        """The hub has sent `resume`: this process serves again."""
        if self.retiring:
            self.retiring = self.cut = False
            self._retire_event = asyncio.Event()
            for do in self._on_resume:
                do()

    def retire(self) -> None:
        """The hub has sent `retire`, after which no more work comes."""
        if not self.retiring:
            self.retiring = True
            for do in self._on_retire:
                do()
            self._retire_event.set()

    def begin_anew(self) -> None:
        """The link is gone, and another one may come: whatever was retired is over."""
        self.retiring = self.cut = False
        self._retire_event = asyncio.Event()

    async def wait_retired(self) -> None:
        """Wait until `retire`; the caller sets the deadline."""
        await self._retire_event.wait()

    def busy(self) -> set[asyncio.Task[Any]]:
        """The tasks that do something, and do not only wait for more work."""
        return self.tasks - self._uncounted

    def cancel(self) -> int:
        """At the graceful timeout, cancel all that has not ended; return how many handlers and runs that are."""
        self.cut = True
        for task in list(self.tasks):
            task.cancel()
        return len(self.busy())


work: Final = BackgroundWork()
