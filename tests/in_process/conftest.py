"""Runs coroutines in a fresh loop of either kind, and looks at what they have left behind."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

import pytest

from serve_asgi.app import hub_link
from serve_asgi.app.survive import survive
from tests.connection_server import LOOPS

T = TypeVar("T")
Run = Callable[[Coroutine[Any, Any, T]], T]


def descriptors() -> dict[str, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[name] = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue  # the directory's own
    return found


def traces() -> tuple[Any, ...]:
    """What a server must leave as it was."""
    gc.collect()
    return (
        descriptors(),
        {each.name for each in threading.enumerate()},
        len(survive.shared_connections()),
        logging.getLogger("serve").handlers,
        type(logging.getLogger("serve")),
    )


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Iterator[Run[Any]]:
    """Runs a coroutine; whatever it leaves behind fails the test."""
    errors: list[dict[str, Any]] = []

    async def watched(coroutine: Coroutine[Any, Any, T]) -> T:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: errors.append(context))
        try:
            return await coroutine
        finally:
            gc.collect()
            for _ in range(3):  # the ends of transports
                await asyncio.sleep(0)
            assert asyncio.all_tasks() == {asyncio.current_task()}

    def run_it(coroutine: Coroutine[Any, Any, T]) -> T:
        with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
            return runner.run(watched(coroutine))

    run_it(asyncio.sleep(0))  # what a loop keeps for good
    before = traces()
    yield run_it
    assert traces() == before
    assert errors == []
    link = hub_link.current_or_none()
    assert link is None or not link.loop.is_running()
