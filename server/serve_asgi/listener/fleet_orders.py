"""How a listener takes its place in a fleet: what it says of itself, and how it carries out an order.

When orders come and what is announced when is `serve_asgi.listener.fleet_member`'s. An order is done when the new
generation serves, and, with --auto-rollback, when it is not watched any more.
"""

from __future__ import annotations

import os
import socket
import time
from typing import TYPE_CHECKING, Final

import anyio

from serve_asgi import __version__
from serve_asgi.config.code_places import moved_link
from serve_asgi.config.state_location import is_url
from serve_asgi.ipc.fleet_records import OrderKind, ServerRecord
from serve_asgi.ipc.untrusted_input import sayable
from serve_asgi.listener.fleet_member import FleetMember, State
from serve_asgi.listener.store_process import StoreProcess
from serve_asgi.supervisor import events as e
from serve_asgi.supervisor.lifecycles import AT_WORK, Generation, WorkerState

if TYPE_CHECKING:
    from serve_asgi.listener.listener import Listener

LONGEST: Final = 2_000
"""Most characters of a sentence."""
LINKS_TIME: Final = 1.0
"""Seconds that the outcome of an order waits for what the links lead to."""
LOOK: Final = 0.25
"""Seconds between two looks at whether the switch is still watched."""


def member(listener: Listener, store: StoreProcess | None, left: State | None) -> FleetMember | None:
    """The server's place in its fleet; None if its state is shared with no other server."""
    if store is None or not is_url(listener.settings.config.state):
        return None
    orders = FleetOrders(listener)
    found = FleetMember(
        orders.describe,
        store.tell,
        lambda: listener.settings.config.fleet_orders,
        orders.carry_out,
        listener.recorder.record,
        left,
        orders.look_at_links,
    )
    store.for_fleet = found.took
    return found


class FleetOrders:
    """One listener's."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._host = socket.gethostname()[:200]
        self._moved_link = ""
        self._looking = False

    def describe(self) -> ServerRecord:
        """The record of the server, without orders."""
        listener, supervisor = self._listener, self._listener.supervisor
        config, current = listener.settings.config, supervisor.current
        serving = [w for w in supervisor.workers.values() if w.state is WorkerState.SERVING and w.generation is current]
        return ServerRecord(
            host=sayable(self._host),
            pid=os.getpid(),
            directory=self._directory(),
            app=sayable(config.app[:200]),
            version=__version__,
            state=supervisor.state.value,
            health=self._health(),
            generation=0 if current is None else current.number,
            size=supervisor.size,
            serving=len(serving),
            up=round(time.monotonic() - listener.started, 3),
            starting=None if supervisor.candidate is None else supervisor.candidate.number,
            agent=self._agent(),
            release=self._release(current),
            moved_link=self._moved_link,
            canary=config.canary,
            takes_orders=config.fleet_orders,
        )

    def _directory(self) -> str:
        return sayable(
            os.path.normpath(os.path.join(self._listener.start_directory, self._listener.settings.config.chdir))
        )

    def _release(self, current: Generation | None) -> str:
        """The directory of the release, if a link leads to it."""
        found = self._listener.configs.of(current)
        release = "" if found is None else sayable(found.release.directory)
        return release if release != self._directory() else ""

    async def look_at_links(self) -> None:
        """Find out whether a restart would start another release than the one that serves, for the next record.

        A thread does that, since the disk may be slow: no second one while it lasts.
        """
        found = self._listener.configs.of(self._listener.supervisor.current)
        if found is None or self._looking:
            return
        self._looking = True
        try:
            moved = await anyio.to_thread.run_sync(moved_link, found.release.places, abandon_on_cancel=True)
        except RuntimeError:  # no thread can be started (RLIMIT_NPROC, pids.max): looked at again with the next record
            return
        finally:
            self._looking = False
        before, self._moved_link = self._moved_link, "" if moved is None else sayable(str(moved))[:LONGEST]
        if self._moved_link != before and self._listener.fleet is not None:
            self._listener.fleet.changed()

    def _health(self) -> str:
        supervisor = self._listener.supervisor
        if supervisor.drain.on is not None:
            return "draining"
        sick = supervisor.processes.policy.agent_required and supervisor.agents.missing
        return "agent missing" if sick else "healthy"

    def _agent(self) -> str:
        supervisor = self._listener.supervisor
        if not supervisor.wants_agent:
            return ""
        at_work = [agent.state.value for agent in supervisor.agents.all.values() if agent.state in AT_WORK]
        if at_work:
            return at_work[0]
        return "missing" if supervisor.agents.leased else "elsewhere"

    async def carry_out(self, kind: OrderKind, who: str, of: int | None) -> tuple[bool, str, int]:
        """Reload or roll back for `who`; whether it was done, a sentence, and the generation that serves then.

        `of` is the generation that a roll-back takes back, if there is none under way.
        """
        by = f"serve fleet {kind.value}"
        event = e.ReloadAsked(by=by) if kind is OrderKind.RELOAD else e.RollbackAsked(by=by, of=of)
        done, text = await self._listener.control.commands.order(event, who)
        generation = self._generation()
        with anyio.move_on_after(LINKS_TIME):
            while self._looking:
                await anyio.sleep(0.01)
            await self.look_at_links()
        if done and kind is OrderKind.RELOAD:
            while self._listener.supervisor.watches_switch and self._generation() == generation:
                await anyio.sleep(LOOK)
            if self._generation() != generation:
                return False, "it was rolled back after the switch; `serve deploys` says why", self._generation()
        return done, text, generation

    def _generation(self) -> int:
        current = self._listener.supervisor.current
        return 0 if current is None else current.number
