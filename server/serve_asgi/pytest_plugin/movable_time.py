"""Time that a test moves: schedules come due as if it had passed, one after another and each at its instant."""

from __future__ import annotations

import asyncio
import datetime
from typing import Final

from serve_asgi.app import hub_link, local_mode
from serve_asgi.app.background_work import work
from serve_asgi.app.local_mode import LocalLink

PATIENCE: Final = 30.0
"""Seconds, as they really pass, for what has come due to end."""
TURNS: Final = 8
"""Turns of the loop within which a frame has been delivered, and what it causes has begun."""


class MovableTime:
    """Moves the time of the hub in this process: of its schedules, and of the deadlines of messages."""

    @property
    def now(self) -> datetime.datetime:
        """The time, in UTC, as schedules see it."""
        return datetime.datetime.fromtimestamp(local_mode.TIME.wall(), datetime.UTC)

    async def advance(self, by: datetime.timedelta | None = None, **span: float) -> None:
        """Move on by this span, given as a timedelta or as its keywords: `advance(hours=2)`, `advance(seconds=30)`.

        What comes due on the way runs in order, and has ended when this returns.

        Raises:
            ValueError: The span is negative.
            RuntimeError: Schedules do not run in this process: there is no local hub.
            TimeoutError: Something that has come due did not end within 30 s; the message names it.
        """
        seconds = (by or datetime.timedelta(**span)).total_seconds()
        if seconds < 0:
            raise ValueError("time goes forward only: a schedule never runs twice")
        link = hub_link.current()
        if not isinstance(link, LocalLink):
            raise RuntimeError("schedules do not run in this process, so that a test cannot move their time")
        if link.loop is asyncio.get_running_loop():
            await self._advance(link, seconds)
        else:
            moved = asyncio.run_coroutine_threadsafe(self._advance(link, seconds), link.loop)
            await asyncio.wrap_future(moved)

    def advance_sync(self, by: datetime.timedelta | None = None, **span: float) -> None:
        """The same for a test that is no coroutine."""
        link = hub_link.link_for_thread()
        asyncio.run_coroutine_threadsafe(self.advance(by, **span), link.loop).result()

    async def _advance(self, link: LocalLink, seconds: float) -> None:
        time = local_mode.TIME
        end = time.wall() + seconds
        await self._settle()
        while (now := time.wall()) < end:
            time.ahead += max(0.0, min(end, link.next_instant()) - now)
            link.tick()
            await self._settle()

    async def _settle(self) -> None:
        """Wait until what has come due has ended, and what that causes."""
        while True:
            for _ in range(TURNS):
                await asyncio.sleep(0)
            if not (busy := work.busy()):
                return
            _, left = await asyncio.wait(busy, timeout=PATIENCE)
            if left:
                names = ", ".join(sorted(task.get_name() for task in left))
                raise TimeoutError(f"not ended within {PATIENCE:g} s: {names}")
