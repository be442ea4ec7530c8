"""The roll-back: the previous generation serves again, by the same switch as in a reload.

It takes back the latest deploy. A reload that is under way is given up, and that is all, unless the current generation
itself has been found bad: the previous one is the only one known to be good. Otherwise the generation that
stands by is told to serve (RETURNING); once its workers accept it is CURRENT, and the one before retires. A worker that
died meanwhile, or takes long, delays nothing: its slot is refilled afterwards. Only if none accepts the current
generation serves on. The agent follows after the switch. If nothing stands by, the release that served before is
deployed again by an ordinary reload (`serve_asgi.listener.previous_releases`).
"""

from __future__ import annotations

import logging
import math
from typing import Any, Final

from serve_asgi.supervisor import actions
from serve_asgi.supervisor import events as e
from serve_asgi.supervisor.actions import Decisions
from serve_asgi.supervisor.drain import DrainSwitch
from serve_asgi.supervisor.lifecycles import ON_TRIAL, Generation, GenerationState, ServerState, WorkerState
from serve_asgi.supervisor.previous_generation import PreviousGeneration
from serve_asgi.supervisor.process_table import ProcessTable
from serve_asgi.supervisor.reload import ReloadTransaction
from serve_asgi.supervisor.reload_requests import ReloadRequests
from serve_asgi.supervisor.retiring import RetiringWorkers
from serve_asgi.supervisor.starting import StartingWorkers

PATIENCE: Final = 1.0
"""Seconds after which the switch does not wait any longer for the workers that have not accepted, if any has."""


class RollbackTransaction:
    """The roll-backs of one server, one after another."""

    def __init__(
        self,
        processes: ProcessTable,
        decisions: Decisions,
        requests: ReloadRequests,
        starting: StartingWorkers,
        retiring: RetiringWorkers,
        previous: PreviousGeneration,
        reload: ReloadTransaction,
        drain: DrainSwitch,
    ) -> None:
        self._processes = processes
        self._decisions = decisions
        self._requests = requests
        self._starting = starting
        self._retiring = retiring
        self._previous = previous
        self._reload = reload
        self._drain_switch = drain

    # Requests

    def asked(self, event: e.RollbackAsked) -> None:
        """Take back the latest deploy, or refuse to."""
        tickets = [] if event.ticket is None else [event.ticket]
        current, generation = self._processes.current, self._previous.standing_by()
        if self._processes.state is not ServerState.RUNNING or current is None:
            self._refuse(tickets, f"the server is {self._processes.state.value}")
            return
        if event.of not in (None, current.number):
            self._refuse(tickets, f"generation {event.of} is not the current one")
            return
        if (under_way := self._under_way()) is not None:
            under_way += tickets
            return
        if self._processes.candidate is not None or self._requests.under_way():
            if event.of is None or generation is None:
                self._give_up_reload(event, tickets)
                return
            self._give_up_reload(event, [])
        if generation is not None:
            self._begin(generation, event, tickets)
        else:
            self._requests.add_rollback(tickets, event.by)

    def _under_way(self) -> list[int] | None:
        """The tickets of the roll-back that is under way."""
        candidate, preparation = self._processes.candidate, self._requests.preparation
        if candidate is not None:
            return candidate.tickets if candidate.is_rollback else None
        if preparation is not None and not preparation.dropped:
            return preparation.tickets if preparation.is_rollback else None
        return self._requests.wanted if self._requests.previous_wanted else None

    def _returning(self) -> Generation | None:
        candidate = self._processes.candidate
        return candidate if candidate is not None and candidate.state is GenerationState.RETURNING else None

    def _begin(self, generation: Generation, event: e.RollbackAsked, tickets: list[int]) -> None:
        now, current = self._decisions.now, self._processes.current
        assert current is not None
        generation.become(GenerationState.RETURNING)
        generation.is_rollback, generation.standby_until = True, math.inf
        if generation.policy.workers == self._processes.policy.workers:
            generation.size = self._processes.size  # scaling by hand is kept
        generation.tickets, generation.began, generation.began_at = tickets, self._decisions.count, now
        self._processes.candidate = generation
        why = f": {event.reason}" if event.reason else ""
        text = f"roll-back from generation {current.number} to generation {generation.number} ({event.by}){why}"
        about: dict[str, Any] = {"generation": generation.number, "before": current.number}
        about |= {"by": event.by, "reason": event.reason}
        self._decisions.say(logging.INFO, "rollback_started", text, **about)
        begin = actions.BeginRollback(generation, event.by, event.reason)
        self._decisions.do(begin, actions.Announce("reloading", text))
        self._starting.serve_again(generation)

    def _give_up_reload(self, event: e.RollbackAsked, tickets: list[int]) -> None:
        """A reload is under way: the deploy that is taken back is that one."""
        current, candidate = self._processes.current, self._processes.candidate
        assert current is not None
        why = f"it was given up by {event.by}" + (f": {event.reason}" if event.reason else "")
        self._requests.drop(why, self._drain_switch.on is not None)
        if candidate is not None and candidate.state in ON_TRIAL:
            self._reload.trials.give_back(why)
        elif candidate is not None:
            self._reload.fail(why)
        what = "the reload" if candidate is None else f"generation {candidate.number}"
        text = f"{what} is given up; generation {current.number} serves on"
        self._answer(tickets, True, text)

    # Steps

    def advance(self) -> bool:
        """Switch if all that can be awaited has happened; return whether to reconcile all again."""
        if (generation := self._returning()) is None:
            return False
        workers = self._processes.workers_of(generation)
        accepting = [worker for worker in workers if worker.state is WorkerState.SERVING]
        coming = [worker for worker in workers if worker.state is WorkerState.SWITCHING]
        if not accepting and not coming:
            self._fail(generation)
        elif accepting and (not coming or self._decisions.now >= generation.began_at + PATIENCE):
            self._reload.switch(generation)
            return True
        return False

    def next_deadline(self) -> float:
        """When the switch no longer waits for all workers."""
        generation = self._returning()
        if generation is None or self._decisions.now >= generation.began_at + PATIENCE:
            return math.inf
        return generation.began_at + PATIENCE

    def _fail(self, generation: Generation) -> None:
        """None of its workers serves again: the current generation serves on."""
        assert self._processes.current is not None
        self._processes.candidate = None
        generation.become(GenerationState.RETIRING)
        self._retiring.leave_all(generation, "rollback")
        text = f"no worker of generation {generation.number} could serve again"
        self._refuse(generation.tickets, text)
        stays = f"generation {self._processes.current.number} serves on"
        self._decisions.do(actions.Announce("ready", f"roll-back refused; {stays}"))

    def give_up(self) -> None:
        """The server is stopping."""
        if (generation := self._returning()) is not None:
            self._processes.candidate = None
            generation.become(GenerationState.RETIRING)
            self._retiring.leave_all(generation, "rollback")
            self._answer(generation.tickets, False, "roll-back given up: the server is stopping")

    # Outcomes

    def _refuse(self, tickets: list[int], why: str) -> None:
        current = self._processes.current
        stays = f", generation {current.number} serves on" if current is not None else ""
        text = f"roll-back refused{stays}: {why}"
        self._decisions.say(logging.ERROR, "rollback_refused", text, reason=why)
        self._answer(tickets, False, text)

    def _answer(self, tickets: list[int], ok: bool, text: str) -> None:
        for ticket in tickets:
            self._decisions.do(actions.AnswerReload(ticket, ok, text))
