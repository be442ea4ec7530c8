"""Tells the application that this worker retires, so that a long response (an event stream, a WebSocket) can end well.

`retiring` is one object per process: `retiring()` says whether it does, `await retiring.wait()` waits for it. The
worker sets it when it begins to retire. A worker that stands by for a roll-back (`--keep-previous`) has retired as far
as the application is concerned, and resets it if it is to serve again: `await retiring.over()` waits for that. Under
another server, or in a test, it is never set, so that code that uses it runs unchanged.
"""

from __future__ import annotations

import asyncio
import contextvars
from typing import Final

flag_of_server: Final[contextvars.ContextVar[RetiringFlag]] = contextvars.ContextVar("flag_of_server")
"""Of the server in this process that runs the present code, if that is not a worker, which has the process for itself
(`serve_asgi.in_process`)."""


class RetiringFlag:
    """Whether the worker of this process has begun to retire.

    Example:
        ```python
        while not retiring():
            await send(chunk)
        ```
    """

    __slots__ = ("_over", "_reason", "_waiters")

    def __init__(self) -> None:
        self._reason: str | None = None
        self._waiters: set[asyncio.Future[str]] = set()
        self._over: set[asyncio.Future[str]] = set()

    def __call__(self) -> bool:
        """Whether the worker has begun to retire.

        Returns:
            True from then on, unless a roll-back has the worker serve again.

        Example:
            ```python
            if retiring():
                break
            ```
        """
        return flag_of_server.get(self)._reason is not None

    is_set = __call__

    @property
    def reason(self) -> str | None:
        """Why the worker retires ("reload", "rollback", "stop", "recycle", "scale"), or None while it serves."""
        return flag_of_server.get(self)._reason

    async def wait(self) -> str:
        """Wait until the worker begins to retire.

        Returns:
            The reason: "reload", "rollback" (its code is taken back), "stop", "recycle" or "scale".

        Example:
            ```python
            reason = await retiring.wait()
            await socket.close(code=1012, reason=reason)
            ```
        """
        flag = flag_of_server.get(self)
        if flag._reason is not None:
            return flag._reason
        return await _result(flag._waiters)

    async def over(self) -> None:
        """Wait until the worker does not retire: at once while it serves, else until a roll-back has it serve again.

        For background work that ends when the worker retires and has to begin anew. In a worker that leaves it is
        cancelled with the task that awaits it.

        Example:
            ```python
            while True:
                await retiring.over()
                while not retiring():
                    await poll()
            ```
        """
        flag = flag_of_server.get(self)
        if flag._reason is not None:
            await _result(flag._over)

    def begin(self, reason: str) -> None:
        """For the worker: set it. Only the first call counts."""
        if self._reason is None:
            self._reason = reason
            _wake(self._waiters, reason)

    def end(self) -> None:
        """For the worker: it serves again."""
        self._reason = None
        _wake(self._over, "")


async def _result(waiters: set[asyncio.Future[str]]) -> str:
    waiter: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    waiters.add(waiter)
    try:
        return await waiter
    finally:
        waiters.discard(waiter)


def _wake(waiters: set[asyncio.Future[str]], result: str) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(result)


retiring: Final = RetiringFlag()
