"""Runs the ASGI lifespan of one worker (ASGI specification, "Lifespan Protocol").

An application that raises before it receives the first event does not support the protocol; with `auto` it is served
without. So is one that takes the event for a request: it reads its `body`, or responds as to HTTP. Any other that
raises after it has received `lifespan.startup` has failed to start: a reload must not put it in service, so we are
stricter than the specification, which has the server continue. Whatever it raises counts: CancelledError and SystemExit
out of a lifespan are errors like any other. One that returns without sending anything is served, and the log says so.
"""

from __future__ import annotations

import asyncio
import enum
import logging
from typing import Any

import anyio

from serve_asgi.errors import StartError
from serve_asgi.http.worker_context import ASGIApplication, Message
from serve_asgi.ipc import forked_children as forks
from serve_asgi.logs.exceptions import is_a, is_from_outside
from serve_asgi.logs.server_log import about
from serve_asgi.logs.tracebacks import application_traceback

log = logging.getLogger("serve")


class LifespanState(enum.Enum):
    """The state of the application's lifespan."""

    CALLED = "called"  # it has not received an event yet
    STARTING = "starting"  # lifespan.startup delivered
    STARTED = "started"
    ENDING = "ending"  # lifespan.shutdown delivered
    ENDED = "ended"
    UNSUPPORTED = "unsupported"
    FAILED = "failed"


class _Startup(dict[str, Any]):
    """The event `lifespan.startup`, which notices when it is taken for a request."""

    mistaken = False

    def __missing__(self, key: str) -> Any:
        self.mistaken = True
        raise KeyError(key)


class Lifespan:
    """Runs the application's lifespan in one task, from `startup` to `shutdown`."""

    def __init__(self, app: ASGIApplication, mode: str, state: dict[str, Any]) -> None:
        """`mode` is auto, on or off; `state` is the namespace that the application fills."""
        self._app = app
        self._mode = mode
        self._namespace = state
        self._state = LifespanState.CALLED
        self._failure = ""
        self._detail = ""
        self._startup = _Startup(type="lifespan.startup")
        self._task: asyncio.Task[None] | None = None
        self._given_up = False
        """Nobody waits for its end any more, so an error from its cancellation is ignored."""
        self._told = False
        """The application itself has reported why its shutdown failed."""
        self._changed = anyio.Event()
        self._shutdown_asked = anyio.Event()

    async def startup(self) -> None:
        """Run the application until it has started; the caller sets the deadline.

        Raises StartError with the application's message or traceback.
        """
        if self._mode == "off":
            self._state = LifespanState.UNSUPPORTED
            return
        self._task = asyncio.get_running_loop().create_task(self._run())
        while self._state in (LifespanState.CALLED, LifespanState.STARTING):
            await self._changed.wait()
        if self._state is LifespanState.FAILED:
            raise StartError(self._failure, self._detail)
        if self._state is LifespanState.UNSUPPORTED and self._mode == "on":
            raise StartError(
                "the application does not support the lifespan protocol; use --lifespan auto", self._detail
            )

    async def shutdown(self) -> None:
        """Let the application shut down; the caller sets the deadline."""
        if self._state is not LifespanState.STARTED or self._task is None:
            return
        self._shutdown_asked.set()
        try:
            await asyncio.wait({self._task})  # does not raise the task's exception
        finally:
            self._given_up = True
            self._task.cancel()

    async def end(self) -> None:
        """Wait until nothing of it runs any more; the caller has done with it and sets the deadline."""
        if self._task is not None and not self._task.done():
            self._given_up = True
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _run(self) -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self._namespace}
        try:
            await self._app(scope, self._receive, self._send)
        except BaseException as error:
            forks.leave(error)
            if is_from_outside(error, self._task):  # the loop is being closed, and this coroutine with it
                raise
            self._raised(error)
        else:
            self._returned()

    def _raised(self, error: BaseException) -> None:
        state = self._state
        if self._given_up or (state is LifespanState.STARTED and self._task is not None and self._task.cancelling()):
            self._become(LifespanState.ENDED)  # the process ends
            return
        if state is not LifespanState.FAILED:  # otherwise the application's own message says why
            self._detail = application_traceback(error)
        starting = state is LifespanState.CALLED or state is LifespanState.STARTING
        ignorant = state is LifespanState.CALLED or self._startup.mistaken
        # Only an ordinary error means that the protocol is not supported; a cancellation or an exit does not.
        if starting and ignorant and is_a(error, Exception):
            self._become(LifespanState.UNSUPPORTED)
        elif starting:
            self._fail("the application raised an exception in its lifespan startup")
        elif state is not LifespanState.FAILED:
            if not self._told:
                log.error(
                    "the application's lifespan ended with an exception",
                    extra=about("lifespan_failed", detail=self._detail),
                )
            self._become(LifespanState.ENDED)

    def _returned(self) -> None:
        state = self._state
        if state is LifespanState.CALLED:
            self._become(LifespanState.UNSUPPORTED)
        elif state is LifespanState.STARTING:
            if not self._startup.mistaken and self._mode != "on":  # otherwise it is refused
                self._tell_unanswered("lifespan.startup", "it is served without a lifespan")
            self._become(LifespanState.UNSUPPORTED)
        elif state is not LifespanState.FAILED:
            if state is LifespanState.ENDING:
                self._tell_unanswered("lifespan.shutdown", "it is considered ended")
            self._become(LifespanState.ENDED)

    @staticmethod
    def _tell_unanswered(event: str, what: str) -> None:
        log.warning(
            "the application received %s and returned without sending %s.complete: %s",
            *(event, event, what),
            extra=about("lifespan_unanswered", received=event),
        )

    async def _receive(self) -> Message:
        if self._state is LifespanState.CALLED:
            self._become(LifespanState.STARTING)
            return self._startup
        await self._shutdown_asked.wait()
        if self._state is LifespanState.STARTED:
            self._become(LifespanState.ENDING)
            return {"type": "lifespan.shutdown"}
        await anyio.sleep_forever()
        raise AssertionError("unreachable")

    async def _send(self, message: Message) -> None:
        match message["type"], self._state:
            case "lifespan.startup.complete", LifespanState.STARTING:
                self._become(LifespanState.STARTED)
            case "lifespan.startup.failed", LifespanState.STARTING:
                self._detail = str(message.get("message", ""))
                self._fail("the application's lifespan startup failed")
            case "lifespan.shutdown.complete", LifespanState.ENDING:
                self._become(LifespanState.ENDED)
            case "lifespan.shutdown.failed", LifespanState.ENDING:
                log.error(
                    "the application's lifespan shutdown failed",
                    extra=about("lifespan_failed", detail=str(message.get("message", ""))),
                )
                self._told = True
                self._become(LifespanState.ENDED)
            case kind, state:
                self._startup.mistaken |= not str(kind).startswith("lifespan.")
                raise RuntimeError(f"the application sent {kind!r} while its lifespan was {state.value}")

    def _fail(self, message: str) -> None:
        self._failure = message
        self._become(LifespanState.FAILED)

    def _become(self, state: LifespanState) -> None:
        self._state = state
        self._changed.set()
        self._changed = anyio.Event()
