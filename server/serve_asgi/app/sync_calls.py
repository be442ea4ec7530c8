"""Blocking calls for threads: `shared.sync`, `messenger.sync`, `schedule.sync`, `agent.sync`.

Each has the arguments, the result and the errors of the asynchronous call, which runs on the event loop of the server
while the calling thread waits. On a thread that runs an event loop it raises RuntimeError, because that loop could not
turn. Every wait has an end: the timeout of the call, or a little later if the loop is blocked.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import inspect
import math
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from typing import Any, Final, Generic, ParamSpec, TypeVar

from serve_asgi.app.hub_link import Link, LinkClosed, link_for_thread

P = ParamSpec("P")
T = TypeVar("T")

Late = Callable[[str, bool], Exception]
"""Makes the error of a call that has timed out, from a sentence and whether the call had started."""

PATIENCE: Final = 10.0
"""Seconds that a call without a timeout has to start."""
GRACE: Final = 8.0
"""Seconds beyond its timeout that a call may take once it has started; its own error comes long before that."""
TURN: Final = 1.0
"""Seconds that the loop has for one turn, however short the timeout."""
_BLOCKED: Final = "{} has not been begun: the event loop of this process is blocked (docs/guides/watchdog.md)"
_UNKNOWN: Final = (
    "it is not known what became of {}: the event loop of this process is blocked (docs/guides/watchdog.md)"
)
_OVER: Final = "the event loop of this process has ended, and the process ends: it is not known what became of {}"


class SyncCalls:
    """Makes the blocking calls of a `sync` object from asynchronous ones."""

    def __init__(self, part: str, late: Late) -> None:
        """`part` is the name of the object whose calls these are."""
        self._part = part
        self._late = late

    def __call__(self, function: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, T]:
        """The blocking version of `function`."""
        return self._wrap(function)

    def with_callback(self, function: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, T]:
        """The same, for a call whose argument `function` is to be called in the waiting thread."""
        return self._wrap(function, "function")

    def iterator(self, make: Callable[P, AsyncIterator[T]]) -> Callable[P, Generator[T, None, None]]:
        """A generator for threads over the asynchronous iterator that `make` returns; it ends when the process does."""
        name = f"{self._part}.{make.__name__}"

        @functools.wraps(make)
        def call(*args: P.args, **kwargs: P.kwargs) -> Generator[T, None, None]:
            link = _link_of_a_thread(name)

            async def made() -> AsyncIterator[T]:
                return make(*args, **kwargs)

            return _steps(
                link, name, self._late, ThreadCall[AsyncIterator[T]](link, name, PATIENCE, self._late).wait(made)
            )

        return call

    def _wrap(self, function: Callable[P, Coroutine[Any, Any, T]], here: str = "") -> Callable[P, T]:
        name = f"{self._part}.{function.__name__}"
        signature = inspect.signature(function)
        timeout = signature.parameters.get("timeout")
        limit = PATIENCE if timeout is None else timeout.default

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            call_in_progress: ThreadCall[T] = ThreadCall(
                _link_of_a_thread(name), name, kwargs.get("timeout", limit), self._late
            )
            if not here:
                return call_in_progress.wait(lambda: function(*args, **kwargs))
            given = signature.bind(*args, **kwargs)
            given.arguments[here] = functools.partial(call_in_progress.in_thread, given.arguments[here])
            return call_in_progress.wait(lambda: function(*given.args, **given.kwargs))

        return call


class ThreadCall(Generic[T]):
    """One call by a thread."""

    def __init__(self, link: Link, name: str, timeout: Any, late: Late) -> None:
        self._link = link
        self._name = name
        self._timeout = _seconds(timeout)
        self._late = late
        # Each side sets its own flag before it reads the other's: a call that is given up never starts.
        self._started = False
        self._given_up = False
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()

    def wait(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run the coroutine that `make` makes on the loop, and return its result."""
        call_in_progress = self._submit(make)
        call_in_progress.add_done_callback(lambda _: self._jobs.put(None))
        now = time.monotonic()
        end = now + self._timeout + GRACE
        look = now + min(max(self._timeout, TURN), PATIENCE)
        try:
            while not call_in_progress.done():
                try:
                    job = self._jobs.get(timeout=max(0.0, look - time.monotonic()))
                except queue.Empty:
                    look = self._check_progress(end)
                else:
                    if job is not None:
                        job()
                        end = max(end, time.monotonic() + GRACE)
            return call_in_progress.result()
        except _NotStarted:
            raise self._late(_BLOCKED.format(self._name), False) from None
        except concurrent.futures.CancelledError:
            raise LinkClosed(_OVER.format(self._name)) from None
        except BaseException:
            self._given_up = True
            call_in_progress.cancel()
            raise

    def _check_progress(self, end: float) -> float:
        """Nothing has happened for a while: return until when to wait. Raises what `late` makes, or LinkClosed."""
        if not self._started:
            self._given_up = True
            if not self._started:
                raise _NotStarted
        now = time.monotonic()
        if now >= end:
            raise self._late(_UNKNOWN.format(self._name), True)
        if not self._link.loop.is_running():
            raise LinkClosed(_OVER.format(self._name))
        return min(end, now + PATIENCE)

    async def in_thread(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function in the waiting thread; what it raises ends the wait."""
        loop = asyncio.get_running_loop()
        found: asyncio.Future[Any] = loop.create_future()

        def job() -> None:
            result = function(*args)
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(lambda: None if found.done() else found.set_result(result))

        self._jobs.put(job)
        result = await found
        return await result if inspect.isawaitable(result) else result

    def _submit(self, make: Callable[[], Coroutine[Any, Any, T]]) -> concurrent.futures.Future[T]:
        beginning = self._start(make)
        try:
            return asyncio.run_coroutine_threadsafe(beginning, self._link.loop)
        except RuntimeError:  # it is closed
            beginning.close()
            raise LinkClosed(_OVER.format(self._name)) from None

    async def _start(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        self._started = True
        if self._given_up:
            raise _NotStarted
        return await make()


class _NotStarted(Exception):
    """The loop did not turn in time: the call is given up."""


def _link_of_a_thread(name: str) -> Link:
    """The link, for a thread that may block. Raises LinkClosed, and RuntimeError if the thread runs an event loop."""
    part, _, method = name.partition(".")
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        link = link_for_thread()
        if link.thread == threading.get_ident() and not link.loop.is_running() and not link.identity.local:
            raise RuntimeError(
                f"{part}.sync.{method} waits for the event loop, which does not run while the application is imported: "
                f"write `await {name}(…)` in the lifespan or in an async function with @after_fork, or call it in a "
                "thread of your own"
            ) from None
        return link
    raise RuntimeError(
        f"{part}.sync.{method} waits, and this is the thread of an event loop, which would stand still: write "
        f"`await {name}(…)` in an async function there, or call it in a thread"
    )


def _seconds(timeout: Any) -> float:
    """A timeout in seconds; an invalid one is refused by the call itself."""
    if timeout is None:
        return math.inf
    return max(0.0, float(timeout)) if isinstance(timeout, int | float) and timeout == timeout else PATIENCE


def _steps(link: Link, name: str, late: Late, source: AsyncIterator[T]) -> Generator[T, None, None]:
    async def step() -> list[T]:
        try:
            return [await anext(source)]
        except StopAsyncIteration:
            return []

    try:
        while found := ThreadCall[list[T]](link, name, None, late).wait(step):
            yield found[0]
    except LinkClosed:
        return
    finally:
        _end(link, source)


def _end(link: Link, source: AsyncIterator[Any]) -> None:
    """End an iterator without waiting, from any thread."""

    async def end() -> None:
        if (close := getattr(source, "aclose", None)) is not None:
            await close()

    ending = end()
    try:
        asyncio.run_coroutine_threadsafe(ending, link.loop)
    except RuntimeError:  # the loop is closed
        ending.close()
