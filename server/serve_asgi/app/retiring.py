"""Tells the application that this worker retires, so that a long response (an event stream, a WebSocket) can end well.

`retiring` is one object per process: `retiring()` says whether it does, `await retiring.wait()` waits for it. The
worker sets it once, when it begins to retire. Under another server, or in a test, it is never set, so that code that
uses it runs unchanged.
"""

from __future__ import annotations

import asyncio
from typing import Final


class RetiringFlag:
    """Whether the worker of this process has begun to retire.

    Example:
        ```python
        while not retiring():
            await send(chunk)
        ```
    """

    __slots__ = ("_reason", "_waiters")

    def __init__(self) -> None:
        self._reason: str | None = None
        self._waiters: set[asyncio.Future[str]] = set()

    def __call__(self) -> bool:
        """Whether the worker has begun to retire.

        Returns:
            True from then on.

        Example:
            ```python
            if retiring():
                break
            ```
        """
        return self._reason is not None

    is_set = __call__

    @property
    def reason(self) -> str | None:
        """Why the worker retires ("reload", "stop", "recycle", "scale"), or None while it serves."""
        return self._reason

    async def wait(self) -> str:
        """Wait until the worker begins to retire.

        Returns:
            The reason: "reload", "stop", "recycle" or "scale".

        Example:
            ```python
            reason = await retiring.wait()
            await socket.close(code=1012, reason=reason)
            ```
        """
        if self._reason is not None:
            return self._reason
        waiter: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            return await waiter
        finally:
            self._waiters.discard(waiter)

    def begin(self, reason: str) -> None:
        """For the worker: set it. Only the first call counts."""
        if self._reason is not None:
            return
        self._reason = reason
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(reason)


retiring: Final = RetiringFlag()
