"""This server's place in its fleet, the servers that share a Redis or PostgreSQL: what it announces, and its orders.

It announces the server every `BEAT`, and soon after something has happened to it, so that `serve fleet` can tell from
the record, and from when it was last heard, how the server is. An order comes as the reply to an announcement. It is
carried out only with --fleet-orders, since whoever may write to the store may place one, and only once: by its id. A
roll-back names the order whose reload it takes back: whatever the operator knows of that, nothing else is taken back.
How the server is reloaded, and what it says of itself, is not known here.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

import anyio
import msgspec
from anyio.abc import TaskGroup

from serve_asgi.errors import ChannelError
from serve_asgi.ipc.fleet_records import (
    BEAT,
    FleetOrder,
    OrderKind,
    OrderOutcome,
    OrderState,
    ServerRecord,
    encoded,
    order_from,
)
from serve_asgi.ipc.frames import ValidatedFrame, encode
from serve_asgi.supervisor import actions

SOON: Final = 0.1
"""Seconds between what happens and the announcement of it, so that a burst of events makes one."""
LONGEST: Final = 2_000
"""Most characters of an outcome."""

log = logging.getLogger("serve")

State = dict[str, Any]
CarryOut = Callable[[OrderKind, str, int | None], Awaitable[tuple[bool, str, int]]]


class FleetMember:
    """One server of a fleet."""

    def __init__(
        self,
        describe: Callable[[], ServerRecord],
        send: Callable[[bytes], None],
        allowed: Callable[[], bool],
        carry_out: CarryOut,
        happened: Callable[[actions.LogEvent], None],
        left: State | None = None,
        look_around: Callable[[], Coroutine[Any, Any, None]] | None = None,
    ) -> None:
        """`describe` makes the record, without the order; `send` queues a frame for the store, or drops it.

        `carry_out` reloads or rolls back on behalf of somebody, and says whether, in a sentence, and which generation
        serves then; a roll-back may be of one generation. `left` is the state of an earlier program of this process.
        `look_around` finds out what `describe` cannot know without waiting; nothing is announced later because of it.
        """
        self._describe = describe
        self._send = send
        self._allowed = allowed
        self._carry_out = carry_out
        self._happened = happened
        self._look_around = look_around
        self._news = anyio.Event()
        self._latest: OrderOutcome | None = None
        self._reload: OrderOutcome | None = None  # the latest order to reload
        self._under_way = 0
        self.tasks: TaskGroup
        if left is not None:
            self._latest, self._reload = msgspec.convert(left["latest"], type=tuple[OrderOutcome | None, ...])

    @property
    def busy(self) -> bool:
        """Whether an order is being carried out."""
        return self._under_way > 0

    async def run(self) -> None:
        """Announce the server until cancelled."""
        while True:
            self._news = anyio.Event()
            try:
                self._announce()
            except Exception:  # the server serves on, and is silent to its fleet
                log.exception("the server could not be announced to its fleet; please report this")
            if self._look_around is not None:
                self.tasks.start_soon(self._look_around)
            with anyio.move_on_after(BEAT):
                await self._news.wait()
                await anyio.sleep(SOON)

    def _announce(self) -> None:
        record = self._describe()
        record.order = self._latest
        self._send(encode("store.announce", {}, encoded(record)))

    def changed(self) -> None:
        """Something has happened to the server: announce it soon."""
        self._news.set()

    def leave(self) -> None:
        """The server ends."""
        self._send(encode("store.leave"))

    def took(self, frame: ValidatedFrame) -> None:
        """Take a frame of the store that is for this server. Raises ChannelError."""
        if frame.kind == "store.order":
            try:
                self._ordered(order_from(frame.body))
            except ChannelError as error:
                self._say(logging.WARNING, "fleet_order_refused", f"{error}: it was not carried out")
        self.changed()

    # Orders

    def _ordered(self, order: FleetOrder) -> None:
        if self._latest is not None and order.id == self._latest.id:
            return
        if not self._allowed():
            text = "this server takes no orders from the store (--fleet-orders)"
            self._refused(order, text)
            return
        of, why = self._generation_of(order)
        if why:
            self._latest = OrderOutcome(order.id, order.kind, OrderState.DONE, why)
            return
        outcome = self._latest = OrderOutcome(order.id, order.kind, OrderState.RUNNING)
        if order.kind is OrderKind.RELOAD:
            self._reload = outcome
        about = {"order": order.id, "kind": order.kind.value, "by": order.who}
        text = f"an order of the fleet: {order.kind.value}" + (f", by {order.who}" if order.who else "")
        self._say(logging.INFO, "fleet_order_received", text, **about)
        self._under_way += 1
        self.tasks.start_soon(self._perform, order, outcome, of)

    def _generation_of(self, order: FleetOrder) -> tuple[int | None, str]:
        """Which generation an order takes back, or why there is nothing to do; None: the reload that is under way."""
        if order.kind is OrderKind.RELOAD:
            return None, ""
        reload = self._reload
        if reload is None or reload.id != order.of:
            return None, "it has not been reloaded by that operation: there was nothing to take back"
        match reload.state:
            case OrderState.RUNNING:
                return None, ""
            case OrderState.REFUSED:
                return None, f"its reload had been refused: there was nothing to take back ({reload.text})"
            case OrderState.DONE:
                return reload.generation, ""

    async def _perform(self, order: FleetOrder, outcome: OrderOutcome, of: int | None) -> None:
        try:
            done, text, generation = await self._carry_out(order.kind, order.who, of)
            outcome.text, outcome.generation = text[:LONGEST], generation
            outcome.state = OrderState.DONE if done else OrderState.REFUSED
            if done and order.kind is OrderKind.ROLLBACK and self._reload is not None:
                self._reload.state, self._reload.text = OrderState.REFUSED, "it was rolled back"
        except Exception as error:
            log.exception("an order of the fleet could not be carried out; please report this")
            outcome.state, outcome.text = OrderState.REFUSED, f"it failed: {error!r:.200}"
        finally:
            self._under_way -= 1
        self.changed()

    def _refused(self, order: FleetOrder, text: str) -> None:
        self._latest = OrderOutcome(order.id, order.kind, OrderState.REFUSED, text)
        self._say(logging.WARNING, "fleet_order_refused", f"an order of the fleet was refused: {text}", order=order.id)

    def _say(self, level: int, event: str, text: str, **about: Any) -> None:
        self._happened(actions.LogEvent(level, event, text, "", about))

    # A new program of the listener

    def to_state(self) -> State:
        """What is carried over, JSON-compatible: no order is being carried out."""
        return {"latest": msgspec.to_builtins([self._latest, self._reload])}
