"""`after_fork`: functions that a worker calls when it has been forked from its generation's template (`--preload`).

They reopen what the application had opened, or seed what it had seeded, while it was imported in the template. They are
called in no other case: a worker that is a fresh interpreter has nothing to reopen, nor has a process that runs under
another server or in a test.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

from serve_asgi.app.application_functions import is_asynchronous
from serve_asgi.errors import StartError
from serve_asgi.ipc import forked_children as forks
from serve_asgi.logs.tracebacks import application_traceback

F = TypeVar("F", bound=Callable[[], Any])
OutsideLoop = Callable[[Callable[[], Any]], Awaitable[Any]]


class AfterFork:
    """The functions that have been registered, in this order.

    Example:
        ```python
        @after_fork
        def reopen() -> None:
            catalogue.reopen()
        ```
    """

    def __init__(self) -> None:
        self._functions: list[Callable[[], Any]] = []

    def __call__(self, function: F) -> F:
        """Call a function in each worker that is forked from a template (`--preload`), before its lifespan startup.

        If it raises, the worker has failed to start. Functions are called in the order in which they were registered.

        Args:
            function: An async function, which runs in the worker's event loop and may use `messenger` and `shared`; or
                one that is not, which is called in the main thread while no event loop runs, as the import was. It
                takes no arguments.

        Returns:
            The function, unchanged.

        Raises:
            TypeError: It cannot be called.

        Example:
            ```python
            @after_fork
            async def connect() -> None:
                await pool.open()
            ```
        """
        if not callable(function):
            raise TypeError(f"after_fork takes a function, not {function!r}")
        self._functions.append(function)
        return function

    async def run(self, outside_loop: OutsideLoop) -> None:
        """For the worker: call them. `outside_loop` calls one while no event loop runs. Raises StartError."""
        for function in self._functions:
            try:
                found = function() if is_asynchronous(function) else await outside_loop(function)
                if inspect.isawaitable(found):
                    await found
            except Exception as error:
                raise self._failed(function, error) from None
            except (SystemExit, KeyboardInterrupt) as error:
                forks.leave(error)
                raise self._failed(function, error) from None

    def _failed(self, function: Callable[[], Any], error: BaseException) -> StartError:
        name = getattr(function, "__qualname__", None) or repr(function)
        return StartError(f"the after_fork function {name} failed", application_traceback(error))


after_fork: Final = AfterFork()
