"""The agent: what `--agent` may name, and the task in which it lives (docs/guides/agent.md).

It is one of three: an async function (it is called, and runs until it returns or is cancelled), an async context
manager (entered, and left at the end), or a function or class that makes one of these without arguments. Errors are
distinguished as for the application (`serve_asgi.app.loading`): if what the command line names is missing or cannot be
an agent, that is a UsageError; exceptions of the application's own code are passed on. It has a task of its own from
entering to the end, because a context manager must be left by the task that entered it. There an exception of its code
is returned as a value: SystemExit and KeyboardInterrupt would end the loop if a task raised them.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from types import ModuleType
from typing import Any, Final, cast

from serve_asgi.app.loading import find, kind, parse
from serve_asgi.app.message_sender import NoReceiver
from serve_asgi.app.retiring import retiring
from serve_asgi.errors import UsageError
from serve_asgi.ipc import forked_children as forks
from serve_asgi.logs.exceptions import is_from_outside

WHAT: Final = "an async function without arguments, or an async context manager"
Manager = AbstractAsyncContextManager[Any]


class AgentTask:
    """Entered once, finished once."""

    def __init__(self, subject: AgentTarget) -> None:
        self._subject = subject
        self._started = asyncio.Event()
        self._leave = asyncio.Event()
        self._inside = False  # a context manager has been entered: it is left rather than cancelled
        self._task: asyncio.Task[BaseException | None] | None = None

    async def enter(self) -> BaseException | None:
        """Begin; return once it is active: a context manager is entered, a function has reached its first wait.

        Returns what the application's code raised, or a UsageError if what it made is not an agent. If this is
        cancelled, the agent is ended first.
        """
        task = self._task = asyncio.get_running_loop().create_task(self._run(), name="agent")
        started = asyncio.ensure_future(self._started.wait())
        try:
            await asyncio.wait({task, started}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            await self.finish()
            raise
        finally:
            started.cancel()
        return self._raised() if task.done() else None

    async def wait_ended(self) -> BaseException | None:
        """Wait until it ends by itself; return why, or None if its function has returned."""
        assert self._task is not None
        return await asyncio.shield(self._task)

    async def finish(self) -> BaseException | None:
        """Leave its context manager, or cancel its function, and wait for that; return what it raised."""
        assert self._task is not None
        self._leave.set()
        if not self._inside:
            self._task.cancel()
        await asyncio.wait({self._task})
        return self._raised()

    def _raised(self) -> BaseException | None:
        assert self._task is not None
        return None if self._task.cancelled() else self._task.result()  # it was cancelled before its first step

    async def _run(self) -> BaseException | None:
        try:
            made = self._subject.make()
            if isinstance(made, contextlib.AbstractAsyncContextManager):
                await self._run_manager(made)
            else:
                asyncio.get_running_loop().call_soon(self._started.set)  # in the turn after its first step
                await made
        except asyncio.CancelledError as error:
            cancelled = self._task is not None and self._task.cancelling() > 0  # by `finish`, not by its own code
            return None if self._leave.is_set() and cancelled else error
        except NoReceiver as error:
            # at a stop no worker takes its work any more: it ends a little before it is cancelled
            return None if retiring() and not self._inside and not self._leave.is_set() else error
        except BaseException as error:
            forks.leave(error)
            if is_from_outside(error, self._task):  # the loop is closed, and this coroutine with it
                raise
            return error
        return None

    async def _run_manager(self, manager: Manager) -> None:
        async with manager:
            self._inside = True
            self._started.set()
            await self._leave.wait()


class AgentTarget:
    """The agent of an application, imported."""

    def __init__(self, found: Any, name: str, module: ModuleType | None) -> None:
        """`name` is for messages; a `prepare` of `module` is used if `found` has none itself.

        Raises UsageError if it cannot be an agent. If `found` is a class, its instance is made here.
        """
        self.name = name
        _check_callable(found, name)
        if inspect.isclass(found):
            found = found()
            if not is_manager(found):
                _check_callable(found, f"the object that {name} makes")
        self._found = found
        self._prepare = _prepare_of(found, name, module)

    async def prepare(self) -> None:
        """Do all that can be done before the agent becomes active."""
        if self._prepare is not None:
            await self._prepare()

    def make(self) -> Manager | Awaitable[object]:
        """What is entered or awaited, made anew each time by a function. Raises UsageError for anything else."""
        made = self._found if is_manager(self._found) else self._found()
        if not is_manager(made) and not inspect.isawaitable(made):
            raise UsageError(f"what {self.name} returned is {kind(made)}, not an agent: make it {WHAT}")
        return cast("Manager | Awaitable[object]", made)


def import_agent(specification: str) -> tuple[Any, str, ModuleType]:
    """Import the agent that `specification` names; return what `AgentTarget` takes.

    Raises UsageError, and what the application's own code raises.
    """
    name, path = parse(specification, "an agent", "app:agent")
    found, module = find(name, path, _looks_like_agent, "an agent")
    return found, specification, module


def is_manager(value: Any) -> bool:
    """Whether it is an async context manager. Special methods are looked up on the type (data model, 3.3.12)."""
    return hasattr(type(value), "__aenter__") and hasattr(type(value), "__aexit__")


def _check_callable(found: Any, name: str) -> None:
    """Refuse what certainly cannot be an agent; in case of doubt, accept it."""
    if is_manager(found):
        return
    if inspect.isasyncgenfunction(found):
        raise UsageError(f"{name} is an async generator, which is not an agent: put @asynccontextmanager above it")
    if hasattr(type(found), "__enter__"):
        raise UsageError(f"{name} is a context manager that is not async: make it {WHAT}")
    if not callable(found):
        raise UsageError(f"{name} is {kind(found)}, which is not an agent: name {WHAT}")
    try:
        inspect.signature(found).bind()
    except TypeError:
        raise UsageError(f"{name} needs arguments, and an agent gets none: name {WHAT}") from None
    except ValueError:
        pass  # a builtin without a signature


def _prepare_of(found: Any, name: str, module: ModuleType | None) -> Callable[[], Awaitable[object]] | None:
    """Its own `prepare`, or that of its module, if it is an async function defined there."""
    own = getattr(found, "prepare", None)
    if callable(own):
        if not inspect.iscoroutinefunction(own):
            raise UsageError(f"the prepare() of {name} is not async: write it with async def")
        return cast("Callable[[], Awaitable[object]]", own)
    of_module = getattr(module, "prepare", None)
    if inspect.iscoroutinefunction(of_module) and of_module.__module__ == getattr(module, "__name__", None):
        return of_module
    return None


def _looks_like_agent(value: Any, module: str) -> bool:
    """Whether it is an async function defined in the module that needs no arguments, or an async context manager."""
    if is_manager(value):
        return True
    if getattr(value, "__module__", None) != module or not callable(value):
        return False
    if inspect.isclass(value):
        return hasattr(value, "__aenter__")
    of_generator = inspect.isasyncgenfunction(getattr(value, "__wrapped__", None))  # @asynccontextmanager
    if not (inspect.iscoroutinefunction(value) or of_generator):
        return False
    try:
        inspect.signature(value).bind()
    except (TypeError, ValueError):
        return False
    return True
