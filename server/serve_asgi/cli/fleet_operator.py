"""Carrying out an operation over a fleet: one server at a time gets its order, and is waited for.

It owns the operator's turn: each step is written to the store before it is taken, with the order for the server, in one
write that fails if another operator has gone on. So the operation can be gone on with after anything that ends this
command: an order that was given is followed, not repeated. A reload stops at the first server that does not do what it
was told; a roll-back goes on to the others and names those at the end.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Final

import anyio

from serve_asgi.cli import fleet_view
from serve_asgi.cli.command import counted, span
from serve_asgi.cli.fleet_operation import (
    NOT_RELOADED,
    STALE,
    TO_TAKE_BACK,
    TURN,
    FleetOperation,
    FleetPhase,
    FleetStep,
    FleetStepState,
    named,
    operation_from,
)
from serve_asgi.cli.fleet_view import FleetServer
from serve_asgi.errors import StartError
from serve_asgi.ipc.fleet_records import BEAT, FleetOrder, OrderKind, OrderOutcome, OrderState, encoded
from serve_asgi.store.fleet_access import FleetAccess, FleetUnreachable, FleetView

LOOK: Final = 0.2
"""Seconds between two looks at a server that has an order."""
RENEW: Final = TURN / 4
"""Seconds after which the operator's turn is renewed."""
TAKE: Final = 2 * BEAT
"""Seconds that a server has to take its order: it asks for one each `BEAT`, if nothing wakes it before."""
PATIENCE: Final = 10.0
"""Seconds for which a store that does not answer is asked again, since an operation outlasts a short fault; less than
the operator's turn."""
GO_ON: Final = (
    "`serve fleet reload` goes on with it, `serve fleet reload --restart` begins anew with all servers, and "
    "`serve fleet rollback` takes back what it has reloaded"
)

Say = Callable[[str, str, str], None]
"""Reports a step: an event, a sentence, and the server that it is about."""


class FleetStopped(StartError):
    """The operation has stopped: the message says where, why, what was done, and how to go on."""


class _NotDone(Exception):
    """A server has not done what it was told; the message says why, and begins after its name."""


@dataclasses.dataclass(frozen=True, slots=True)
class OperatorOptions:
    """What the command line says of the operation."""

    who: str
    operator: str
    """Who runs this command, for another operator."""
    node_timeout: float
    """Seconds that one server may take for its order."""
    skip_silent: bool = False
    resume: bool | None = None
    """Go on with an unfinished operation (True), begin a new one (False), or what is usual."""


class FleetOperator:
    """One command that reloads or rolls back."""

    def __init__(self, access: FleetAccess, options: OperatorOptions, say: Say) -> None:
        self._access = access
        self._options = options
        self._say = say
        self._version = 0
        self._now = 0.0  # by the store's clock, when it was last asked
        self._operation: FleetOperation

    # Reload

    async def reload(self) -> str:
        """Begin a reload or go on with one; return what was done. Raises FleetStopped, StartError."""
        view, last = await self._begin(unreadable=self._options.resume is False)
        if last is not None and self._goes_on(last):
            self._operation, last.phase, last.text = last, FleetPhase.RUNNING, ""
            await self._write()
            self._say("fleet_resumed", f"going on with the reload that {last.who} began: {last.progress()}", "")
        else:
            servers = self._checked(fleet_view.servers(view))
            self._operation = FleetOperation.begun(self._options.who, self._now, servers)
            await self._write()
        operation = self._operation
        async with _Turn(self):
            for step in operation.steps:
                if step.state in NOT_RELOADED:
                    await self._reload(step)
            operation.phase, operation.text = FleetPhase.DONE, ""
        left, skipped = operation.in_state(FleetStepState.LEFT), operation.in_state(FleetStepState.SKIPPED)
        return (
            f"{counted(len(operation.in_state(FleetStepState.RELOADED)), 'server')} reloaded"
            + (f"; {named(left)} left the fleet meanwhile" if left else "")
            + (f"; not reloaded, since silent: {named(skipped)}" if skipped else "")
        )

    def _goes_on(self, last: FleetOperation) -> bool:
        """Whether the latest operation is gone on with. Raises StartError if that has to be said."""
        resume = self._options.resume
        if not last.unfinished:
            if resume:
                raise StartError("there is nothing to go on with: the latest operation over this fleet has ended")
            return False
        if resume is False:
            return False
        if last.phase is FleetPhase.TAKING_BACK:
            raise StartError(
                f"the roll-back of the reload by {last.who} is unfinished ({last.progress()}): `serve fleet rollback` "
                "goes on with it, `serve fleet reload --restart` begins a new reload"
            )
        if resume is None and self._now - last.touched > STALE:
            raise StartError(
                f"a reload by {last.who} has been unfinished for {span(self._now - last.touched)} ({last.progress()}): "
                "--resume goes on with it, --restart begins anew with all servers"
            )
        return True

    def _checked(self, servers: list[FleetServer]) -> list[FleetServer]:
        """The servers to reload, if nothing is against it. Raises StartError: nothing has been done then."""
        if not servers:
            raise StartError("no server has announced itself there: is it the --state of the servers, prefix and all?")
        if disobedient := [each.label for each in servers if each.answers and not each.record.takes_orders]:
            raise StartError(
                f"nothing was done, since {', '.join(disobedient)} would take no order: run those servers with "
                "--fleet-orders (fleet-orders = true), which docs/guides/fleet.md explains"
            )
        mute = [each for each in servers if not each.answers]
        if mute and not self._options.skip_silent:
            raise StartError(
                "nothing was done, since "
                + "; ".join(f"{each.label} has not been heard for {span(each.since)}" for each in mute)
                + ": have it answer again, wait until it is forgotten, or leave it out with --skip-silent"
            )
        for each in mute:
            self._say(
                "fleet_server_skipped",
                f"{each.label}: left out, it has not been heard for {span(each.since)}",
                each.label,
            )
        if len(mute) == len(servers):
            raise StartError("nothing was done: no server of the fleet answers")
        return [each for each in servers if each.answers]

    async def _reload(self, step: FleetStep) -> None:
        """Reload one server, or find out that its turn does not come. Raises FleetStopped."""
        operation = self._operation
        place = f"{step.label} ({operation.steps.index(step) + 1} of {len(operation.steps)})"
        try:
            if step.state is not FleetStepState.ORDERED:
                server = await self._server(step)
                if server is None:
                    step.state = FleetStepState.LEFT
                    self._say("fleet_server_departed", f"{place}: it has left the fleet", step.label)
                    await self._write()
                    return
                if not server.answers:
                    if not self._options.skip_silent:
                        raise _NotDone(f"does not answer: it was last heard {span(server.since)} ago")
                    step.state = FleetStepState.SKIPPED
                    self._say("fleet_server_skipped", f"{place}: left out, it does not answer", step.label)
                    await self._write()
                    return
                step.state, step.reload, step.text = FleetStepState.ORDERED, operation.next_order(), ""
                self._say("fleet_server_ordered", f"{place}: reload", step.label)
                await self._write(step, FleetOrder(step.reload, OrderKind.RELOAD, self._options.who))
            began = time.monotonic()
            outcome, moved = await self._outcome(step, step.reload)
        except _NotDone as error:
            raise self._stopped(f"{step.label} {error}") from None
        if outcome.state is not OrderState.DONE:
            step.state, step.text = FleetStepState.REFUSED, outcome.text
            raise self._stopped(f"{step.label}: {outcome.text}{moved}")
        step.state = FleetStepState.RELOADED
        took = span(time.monotonic() - began)
        self._say("fleet_server_reloaded", f"{place}: generation {outcome.generation} serves, after {took}", step.label)
        await self._write()

    def _stopped(self, why: str) -> FleetStopped:
        operation = self._operation
        operation.phase, operation.text = FleetPhase.STOPPED, why
        return FleetStopped(f"stopped: {why.rstrip('.')}. {operation.progress()}; {GO_ON}")

    # Roll-back

    async def rollback(self) -> str:
        """Take back what the latest reload has reloaded; return what was done. Raises FleetStopped, StartError."""
        _, last = await self._begin()
        if last is None or not last.in_state(*TO_TAKE_BACK):
            raise StartError("there is nothing to take back: no reload over this fleet has reloaded a server since")
        self._operation, last.phase, last.text = last, FleetPhase.TAKING_BACK, ""
        await self._write()
        async with _Turn(self):
            for step in reversed(last.in_state(*TO_TAKE_BACK)):
                await self._roll_back(step)
            if kept := last.in_state(FleetStepState.KEPT):
                last.text = f"not taken back: {named(kept)}"
                raise FleetStopped(f"{last.progress()}; {last.text}. `serve fleet rollback` tries again")
            last.phase = FleetPhase.TAKEN_BACK
        return last.progress()

    async def _roll_back(self, step: FleetStep) -> None:
        operation = self._operation
        try:
            server = await self._server(step)
            if server is None:
                step.state = FleetStepState.LEFT
                self._say("fleet_server_departed", f"{step.label}: it has left the fleet", step.label)
                await self._write()
                return
            if not server.answers:
                raise _NotDone(f"does not answer: it was last heard {span(server.since)} ago")
            if step.state is not FleetStepState.TAKING_BACK:
                step.state, step.rollback, step.text = FleetStepState.TAKING_BACK, operation.next_order(), ""
                self._say("fleet_server_ordered", f"{step.label}: roll back", step.label)
                await self._write(
                    step, FleetOrder(step.rollback, OrderKind.ROLLBACK, self._options.who, of=step.reload)
                )
            outcome, moved = await self._outcome(step, step.rollback)
            if outcome.state is not OrderState.DONE:
                raise _NotDone(f"refused: {outcome.text}")
        except _NotDone as error:
            step.state, step.text = FleetStepState.KEPT, str(error)
            self._say("fleet_server_failed", f"{step.label} {error}", step.label)
            await self._write(step)
        else:
            step.state = FleetStepState.TAKEN_BACK
            said = f"generation {outcome.generation} serves again" if outcome.generation else outcome.text
            self._say("fleet_server_restored", f"{step.label}: {said}{moved}", step.label)
            await self._write()

    # One server

    async def _server(self, step: FleetStep) -> FleetServer | None:
        """The server as it is now; None if it has left, or was started again and is another one."""
        found = fleet_view.servers(await self._look())
        return next((each for each in found if each.name == step.name), None)

    async def _outcome(self, step: FleetStep, order: str) -> tuple[OrderOutcome, str]:
        """Wait until the server has carried out the order; return how, and what is to be said of its links.

        Raises _NotDone.
        """
        began = time.monotonic()
        while True:
            view = await self._look(step.name)
            found = fleet_view.servers(view)
            if not found:
                raise _NotDone("has left the fleet before it had carried out its order")
            server, outcome = found[0], found[0].record.order
            if outcome is not None and outcome.id == order and outcome.state is not OrderState.RUNNING:
                return outcome, f". {server.record.moved_link}" if server.record.moved_link else ""
            if not server.answers:
                raise _NotDone(f"does not answer any more: it was last heard {span(server.since)} ago")
            elapsed = time.monotonic() - began
            if (outcome is None or outcome.id != order) and elapsed > TAKE:
                if step.state is FleetStepState.ORDERED:
                    step.state = FleetStepState.WAITING
                await self._write(step)
                raise _NotDone(f"has not taken its order within {TAKE:g} s")
            if elapsed > self._options.node_timeout:
                raise _NotDone(
                    f"has not ended its {outcome.kind.value if outcome else 'order'} within "
                    f"{self._options.node_timeout:g} s (--node-timeout); it goes on with it"
                )
            if self._operation.until - self._now < TURN - RENEW:
                await self._write()
            await anyio.sleep(LOOK)

    # The store

    async def _begin(self, *, unreadable: bool = False) -> tuple[FleetView, FleetOperation | None]:
        """Look at the fleet and its latest operation. Raises StartError if somebody else carries that out."""
        view = await self._look()
        self._version = view.version
        try:
            last = operation_from(view.document)
        except StartError:
            if not unreadable:
                raise
            last = None
        if last is not None and last.has_turn(view.now):
            raise StartError(
                f"{last.operator} carries out an operation over this fleet ({last.progress()}): wait for its end, or "
                f"end that command; a dead one loses its turn in {span(last.until - view.now)}"
            )
        return view, last

    async def _look(self, name: str = "") -> FleetView:
        patience = time.monotonic() + PATIENCE
        while True:
            try:
                view = await self._access.look(name)
            except FleetUnreachable:
                if time.monotonic() > patience:
                    raise
                await anyio.sleep(LOOK)
            else:
                self._now = view.now
                return view

    async def end_turn(self) -> None:
        """Write the operation as it is; anybody may go on with it."""
        if self._operation.phase is FleetPhase.RUNNING:
            self._operation.phase, self._operation.text = FleetPhase.STOPPED, "its command was interrupted"
        await self._write(keep=False)

    async def _write(
        self, step: FleetStep | None = None, order: FleetOrder | None = None, *, keep: bool = True
    ) -> None:
        """Write the operation; for a server with it an order, or none, which withdraws what it has not taken.

        Raises StartError if another operator has gone on.
        """
        operation = self._operation
        operation.operator, operation.touched = self._options.operator, self._now
        operation.until = self._now + TURN if keep else 0.0
        name, data = "" if step is None else step.name, b"" if order is None else encoded(order)
        if not await self._advance(operation.encoded(), name, data):
            raise StartError(
                "another operator has gone on with this operation, so that this command has given no further order; "
                "`serve fleet status` shows how far it has come"
            )
        self._version += 1

    async def _advance(self, document: bytes, name: str, order: bytes) -> bool:
        """Write, once: if the store has not answered it says by its version whether it had written. Whether it has."""
        try:
            return await self._access.advance(self._version, document, name, order)
        except FleetUnreachable:
            view = await self._look()
            if view.version == self._version:
                return await self._access.advance(self._version, document, name, order)
            return view.version == self._version + 1 and view.document == document


class _Turn:
    """The operator's turn: when it ends, however it does, the operation says how far it has come."""

    def __init__(self, operator: FleetOperator) -> None:
        self._operator = operator

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, StartError) and not isinstance(error, FleetStopped):
            return  # another operator has the turn, or the store is away
        with anyio.CancelScope(shield=True):
            await self._operator.end_turn()
