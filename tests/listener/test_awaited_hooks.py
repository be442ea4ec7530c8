"""Orders that wait for hooks keep their order, also those that were in the queue of events when the hooks ended."""

from __future__ import annotations

import collections
from typing import Any, cast

import anyio
import pytest

from serve_asgi.listener.awaited_hooks import AwaitedHooks
from serve_asgi.listener.hooks import Hooks
from serve_asgi.supervisor import events as e

ON, OFF, RELOAD = e.DrainAsked(on=True), e.DrainAsked(on=False), e.ReloadAsked()


class Asked:
    """Hooks that end when they are told to."""

    def __init__(self) -> None:
        self.done = anyio.Event()

    def any(self, event: str) -> bool:
        return True

    async def before(self, event: str, record: dict[str, Any]) -> tuple[str, str]:
        await self.done.wait()
        return "", ""


class Queue:
    """The listener's events, handled when `handle` is called."""

    def __init__(self, hooks: Asked) -> None:
        self.events: collections.deque[e.Event] = collections.deque()
        self.awaited_hooks = AwaitedHooks(cast(Hooks, hooks), self.events.append, lambda: True)
        self.handled: list[e.Event] = []

    def handle(self) -> None:
        while self.events:
            order = self.awaited_hooks.admit(self.events.popleft(), ON in self.handled)
            if order is not None:
                self.handled.append(order)


def test_what_was_asked_for_behind_a_drain_never_comes_before_it() -> None:
    async def main() -> None:
        hooks = Asked()
        queue = Queue(hooks)
        async with anyio.create_task_group() as queue.awaited_hooks.tasks:
            queue.events += [ON, OFF]
            queue.handle()
            await anyio.wait_all_tasks_blocked()
            queue.events.append(RELOAD)  # in the queue already when the hooks end
            hooks.done.set()
            await anyio.wait_all_tasks_blocked()
            assert queue.awaited_hooks.asking
            queue.handle()
        assert queue.handled == [ON, OFF, RELOAD]
        assert not queue.awaited_hooks.asking

    anyio.run(main)


@pytest.mark.parametrize("second", [e.StopAsked(), e.QuickStopAsked()])
def test_told_twice_a_stop_is_handled_once(second: e.Event) -> None:
    async def main() -> None:
        queue = Queue(Asked())
        async with anyio.create_task_group() as queue.awaited_hooks.tasks:
            queue.events += [e.StopAsked(), RELOAD]
            queue.handle()
            assert queue.handled == [RELOAD]
            assert queue.awaited_hooks.asking == "pre_stop"
            queue.events.append(second)
            queue.handle()
        assert queue.handled == [RELOAD, second]
        assert not queue.events

    anyio.run(main)
