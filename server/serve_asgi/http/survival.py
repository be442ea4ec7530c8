"""How a connection that is in use survives its worker: one call of the application on it ends, another one goes on.

Each such call is a life. It owns what the application of this life has said (`Survival`: that it wishes to survive, the
state and the version for the next one), and when a life ends while its worker retires (`LifeEnd`). Rules: nobody
survives who has not asked for it; a connection is handed over once a second at most; what of a state cannot travel is
found here, and never in another process. It must not know HTTP, WebSockets or how connections move: the connection is
`SurvivableConnection`, and its steps are its own (`serve_asgi.http.connection`, `serve_asgi.websocket.connection`).
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from typing import Any, Final, Protocol

from serve_asgi.http.dropped_messages import ClientDisconnected
from serve_asgi.http.worker_context import Message, WorkerContext
from serve_asgi.ipc.scoreboard import Cell
from serve_asgi.logs.exceptions import all_tell, carried_by

EXTENSION: Final = "serve.survive"
"""The key of `scope["extensions"]`, and the type of the message with which an application opts in."""
REFUSAL: Final = "serve.survive.refuse"
"""The type of the message with which a next life says that it cannot go on."""
MOST_STATE: Final = 64 * 1024
"""Bytes that the state may have as JSON."""
MOST_VERSION: Final = (1 << 63) - 1
"""The largest version that a state may have."""
LEAST_LIFE: Final = 1.0
"""Seconds from the beginning of a life to its end at the earliest: one hand-over of a connection in that time."""
MOST_ENDS: Final = 250
"""Lives that a worker lets end in a second: each costs the two workers about 0.4 ms of processor time. Where more of
them survive than come to an end within `--survive-window` at that rate, the window is longer."""
SENDING_SHARE: Final = 0.5
"""The part of `--survive-timeout` in which what a life that is ending sends still goes out."""
HANDED_OVER: Final = "handed over"
"""The reason that a WebSocket's application is given with code 1012."""
RESTART: Final = 1012
"""RFC 6455 7.4.1 and the registry: the service restarts."""


_WEBSOCKETS: Final = int(Cell.WEBSOCKETS)
_IN_FLIGHT: Final = int(Cell.IN_FLIGHT)


class UnfitState(Exception):
    """The state cannot travel; the text says why, and what to do."""


class SurvivableConnection(Protocol):
    """A connection, or a stream of one, as far as its application may wish it to survive."""

    def opt_in(self, extensions: object, version: int | None) -> Survival | None:
        """The call of the application whose scope has these `extensions` (the very object) wishes to survive.

        None if that call is over, or if the connection cannot be handed over at any time.
        """

    def refuse_life(self, reason: str) -> None:
        """The application of this life cannot go on: the client gets the ordinary end."""


class Survival:
    """What `survive(scope)` returns: one connection that is to survive its worker, and the state that goes with it."""

    __slots__ = ("_connection", "begun", "resumed", "state", "version", "wanted", "writes_version")

    def __init__(
        self,
        connection: SurvivableConnection,
        begun: float,
        resumed: bool = False,
        state: Any = None,
        version: int | None = None,
    ) -> None:
        """`begun`: when this life began (loop time, s)."""
        self._connection: SurvivableConnection | None = connection
        self.begun = begun
        self.resumed = resumed
        """Whether another worker, or an earlier call of the application, has had the connection before."""
        self.state: Any = state if resumed else {}
        """A JSON-like value of at most 64 KiB for the next life; in that life it is what this one has left.

        It is read when this life ends: change it in place or assign another one, after `send` has returned.
        """
        self.version = version
        """The version that the earlier life has given with its state; None if it gave none, or if there was none."""
        self.writes_version: int | None = None
        """The version of the state that this life leaves."""
        self.wanted = False
        """Whether the application of this life has opted in."""

    def opt_in(self, version: int | None) -> Survival:
        """For the connection: the application wishes it to survive.

        Raises TypeError or ValueError for a version that cannot travel.
        """
        if version is not None:
            if not isinstance(version, int):
                raise TypeError(f"{EXTENSION}: version is int or None, not {type(version).__name__}")
            if not 0 <= version <= MOST_VERSION:
                raise ValueError(f"{EXTENSION}: version is from 0 to {MOST_VERSION}, not {version}")
        self.wanted = True
        self.writes_version = version
        return self

    def end(self) -> None:
        """For the connection: this life is over, and what the application says of it has no effect any more."""
        self._connection = None

    def refuse(self, reason: str = "") -> None:
        """Say that this life cannot go on, because of the state's version for instance: the client gets the ordinary
        end (code 1012, or a response that is visibly cut).

        Args:
            reason: Why, for the operator: it ends in the log.

        Example:
            ```python
            if kept.resumed and kept.version != 2:
                kept.refuse("the state is of an earlier version")
                return
            ```
        """
        if self._connection is not None:
            self._connection.refuse_life(reason)

    def update(self, message: Message) -> None:
        """For the connection: the application has sent `EXTENSION`, which opts in and gives the state.

        Raises ValueError or TypeError, with a sentence, for what cannot travel.
        """
        if "state" in message:
            try:
                encode_state(message["state"])
            except UnfitState as error:
                raise ValueError(f"{EXTENSION}: {error}") from None
        self.opt_in(message.get("version"))
        if "state" in message:
            self.state = message["state"]

    def extension(self) -> dict[str, Any]:
        """`scope["extensions"]["serve.survive"]`: empty in a first life."""
        return {"resumed": True, "state": self.state, "version": self.version} if self.resumed else {}


def encode_state(state: Any) -> bytes:
    """The state as JSON. Raises UnfitState."""
    try:
        encoded = json.dumps(state, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise UnfitState(
            f"the state cannot be written as JSON ({error}); make it of dict, list, str, int, float, bool and None"
        ) from None
    if len(encoded) > MOST_STATE:
        raise UnfitState(f"the state has {len(encoded)} bytes as JSON; keep it below {MOST_STATE}")
    return encoded


class LifeEnd:
    """When one life ends: the moment in the window, then the time that the application has.

    One timer at a time. For a connection that has opted in, while its worker retires.
    """

    __slots__ = ("_began", "_timer", "_worker", "overdue")

    def __init__(self, worker: WorkerContext) -> None:
        self._worker = worker
        self._timer: asyncio.TimerHandle | None = None
        self._began = 0.0
        self.overdue = False
        """The moment has passed: one that could not end then does so as soon as it can."""

    def plan(self, begun: float, end: Callable[[], None]) -> None:
        """Let `end` be called at a random moment of the window; once, however often this is called before.

        `begun`: when the life began (loop time, s).
        """
        if self._timer is None and not self.overdue:
            loop = self._worker.loop
            moment = loop.time() + random.random() * self._window()
            self._timer = loop.call_at(max(moment, begun + LEAST_LIFE), self._due, end)

    def _window(self) -> float:
        """Seconds over which the lives of this worker end: `--survive-window`, more for many lives.

        Never beyond half-way to the graceful timeout, which would cut a life instead of ending it.
        """
        worker = self._worker
        window, half = worker.config.survive_window, (worker.retire_deadline - worker.loop.time()) / 2
        lives = worker.cells[_WEBSOCKETS] + worker.cells[_IN_FLIGHT]
        if window:
            window = max(window, lives / MOST_ENDS)
        return max(0.0, min(window, half))

    def _due(self, end: Callable[[], None]) -> None:
        self._timer = None
        self.overdue = True
        end()

    def begin(self, too_late: Callable[[], None]) -> None:
        """The application is told: from now on it has `--survive-timeout`, then `too_late` is called."""
        self.cancel()
        loop = self._worker.loop
        self._began = loop.time()
        self._timer = loop.call_at(self._began + self._worker.config.survive_timeout, too_late)

    def check_sending(self, full: bool) -> None:
        """Raises ClientDisconnected if what a life that is ending sends no longer goes out, because the client takes
        nothing (`full`), or because it does not end.
        """
        if full or self._worker.loop.time() > self._began + self._worker.config.survive_timeout * SENDING_SHARE:
            raise gone_on()

    def cancel(self) -> None:
        """It ends now, or does not end after all."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.overdue = False


def is_running(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether this is called in the thread of the loop, which runs."""
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False


def gone_on() -> ClientDisconnected:
    """What `send` raises after the end of a life."""
    return ClientDisconnected("The connection goes on in another worker: nothing can be sent here any more.")


def tells_of_end(error: BaseException) -> bool:
    """Whether an application has ended with what `receive` or `send` said at the end of its life.

    Frameworks make an exception of their own of `websocket.disconnect`: known by the code that it carries.
    """
    return all_tell(error, ClientDisconnected, _repeats_disconnect)


def _repeats_disconnect(error: BaseException) -> bool:
    code, reason = carried_by(error, "code"), carried_by(error, "reason")
    return type(code) is int and code == RESTART and (type(reason) is not str or reason in ("", HANDED_OVER))
