"""Requests for reloads: those that wait, the one that is being prepared, and their outcomes.

Requests that arrive while a reload is under way lead to one further reload, and all of them get its outcome. What
follows once its configuration has been read is in `serve_asgi.supervisor.reload`.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

from serve_asgi.supervisor import actions
from serve_asgi.supervisor import events as e
from serve_asgi.supervisor.actions import Decisions
from serve_asgi.supervisor.lifecycles import Generation, GenerationState
from serve_asgi.supervisor.previous_generation import PreviousGeneration
from serve_asgi.supervisor.process_table import ProcessTable


@dataclasses.dataclass(slots=True)
class Preparation:
    """A reload whose configuration is being read and whose hooks are being run."""

    tickets: list[int]
    began: int  # the event count, for the resulting generation
    began_at: float  # CLOCK_MONOTONIC, s
    canary: e.CanaryWish | None = None  # what was requested of a trial
    dropped: bool = False  # a roll-back has given it up: what comes of it is ignored
    is_rollback: bool = False  # what is prepared is the previous release


class ReloadRequests:
    """The requests of one server, and how many reloads have succeeded and failed."""

    def __init__(self, processes: ProcessTable, decisions: Decisions, previous: PreviousGeneration) -> None:
        self._processes = processes
        self._decisions = decisions
        self._previous = previous
        self.wanted: list[int] | None = None
        """The tickets of a reload that has not begun; None if none is wanted."""
        self.by = ""
        """Who requested it first."""
        self.canary: e.CanaryWish | None = None
        """What was requested of a trial, by whoever said something of it last."""
        self.previous_wanted = False
        """The wanted reload is to deploy the previous release again."""
        self.preparation: Preparation | None = None
        self.done = 0
        self.refusals = 0
        self.last_failure = ""
        """Why the last reload was refused; "" after a successful one."""
        self._waiting_said = False

    # Requests

    def add(self, event: e.ReloadAsked) -> None:
        """Handle a request for a reload."""
        if self.wanted is None:
            self.wanted, self.by, self.canary = [], event.by, None
            if (candidate := self._processes.candidate) is not None:
                text = f"reload requested while generation {candidate.number} starts; another one will follow"
                self._decisions.say(logging.INFO, "reload_requested", text, by=event.by)
            else:
                text = f"reload requested ({event.by})"
                self._decisions.say(logging.DEBUG, "reload_requested", text, by=event.by)
        self.wanted += _tickets(event)
        if event.canary is not None:
            self.canary = event.canary

    def add_rollback(self, tickets: list[int], by: str) -> None:
        """Handle a request to deploy the previous release again, while no reload is wanted."""
        self.wanted, self.by, self.previous_wanted = tickets, by, True
        self.canary = e.CanaryWish(on=False)  # it has served all the traffic before

    def wait_on(self, tickets: list[int]) -> None:
        """The reload of these tickets is given up for the wanted one: they get that one's outcome."""
        self.wanted = [*(self.wanted or []), *tickets]

    def refuse_new(self, event: e.ReloadAsked) -> None:
        """Refuse a request that comes too late."""
        for ticket in _tickets(event):
            self._decisions.do(
                actions.AnswerReload(ticket, False, "the server is stopping; there is nothing to reload")
            )
        text = "reload ignored: the server is stopping"
        self._decisions.say(logging.WARNING, "reload_refused", text, by=event.by)

    def under_way(self) -> bool:
        """Whether a reload is wanted, or its configuration is being read."""
        return self.wanted is not None or (self.preparation is not None and not self.preparation.dropped)

    def drop(self, why: str, draining: bool) -> None:
        """A roll-back gives up what is wanted and what is being prepared."""
        tickets, self.wanted = list(self.wanted or []), None
        self.previous_wanted = self._waiting_said = False
        if (preparation := self.preparation) is not None and not preparation.dropped:
            self.refused(why, "", preparation, draining)
            preparation.dropped = True
        for ticket in tickets:
            self._decisions.do(actions.AnswerReload(ticket, False, f"reload refused: {why}"))

    def begin_wanted(self) -> None:
        """Prepare the wanted reload, once no other is under way and there is room for another generation."""
        processes = self._processes
        if self.wanted is None or processes.current is None:
            return
        if processes.candidate is not None or self.preparation is not None:
            return
        most = processes.policy.max_generations
        if len(processes.generations) >= most:
            standing_by = self._previous.standing_by()
            if len(processes.generations) - (standing_by is not None) >= most:
                self._say_waiting()
                return
            self._previous.retire("a reload needs the room (--max-generations)")  # and does not wait for it
        self._waiting_said = False
        back, self.previous_wanted = self.previous_wanted, False
        self.preparation = Preparation(
            self.wanted, self._decisions.count, self._decisions.now, self.canary, is_rollback=back
        )
        self.wanted = None
        self._decisions.do(actions.Announce("reloading", "reloading"), actions.PrepareReload(self.by, back))

    def _say_waiting(self) -> None:
        if self._waiting_said:
            return
        self._waiting_said = True
        alive = self._processes.generations.values()
        stay = (self._processes.current, self._previous.standing_by())
        oldest = min((each for each in alive if each not in stay), key=lambda each: each.number)
        failed = oldest.state is GenerationState.FAILED
        text = (
            f"reload waits: {len(alive)} generations are alive (--max-generations); generation {oldest.number}"
            f"{', which failed, has not ended' if failed else ' still finishes its requests'}"
        )
        self._decisions.say(logging.WARNING, "reload_delayed", text, oldest=oldest.number)
        self._decisions.do(actions.Announce("status", text))

    def taken(self) -> Preparation | None:
        """Take what has been prepared; None if the server is stopping, or a roll-back has given it up."""
        preparation, self.preparation = self.preparation, None
        return None if preparation is None or preparation.dropped else preparation

    # Outcomes

    def refused(self, message: str, detail: str, since: Preparation | Generation, draining: bool) -> None:
        """The reload was refused; reply to the tickets of `since`. Nothing else changes."""
        assert self._processes.current is not None
        event, what = "reload_refused", "reload"
        if since.is_rollback:
            event, what = "rollback_refused", "roll-back"
        else:
            self.refusals += 1
            self.last_failure = message
        stays = f"generation {self._processes.current.number} serves on"
        if draining:
            stays += ", still draining"
        text = f"{what} refused, {stays}: {message}"
        about: dict[str, Any] = {"reason": message, "seconds": round(self._decisions.now - since.began_at, 3)}
        if isinstance(since, Generation):
            about["generation"] = since.number
        self._decisions.say(logging.ERROR, event, text, detail, **about)
        self._decisions.do(actions.Announce("ready", f"{what} refused; {stays}"))
        for ticket in since.tickets:
            self._decisions.do(actions.AnswerReload(ticket, False, text, detail))

    def succeeded(self) -> None:
        """A reload has succeeded."""
        self.done += 1
        self.last_failure = ""

    def give_up(self) -> None:
        """The server is stopping: no further reload begins, and the one being prepared is dropped."""
        tickets = list(self.wanted or [])
        self.wanted = None
        if (preparation := self.taken()) is not None:
            tickets += preparation.tickets
        self.answer_given_up(tickets)

    def answer_given_up(self, tickets: list[int]) -> None:
        """Reply that the server is stopping."""
        for ticket in tickets:
            self._decisions.do(actions.AnswerReload(ticket, False, "reload given up: the server is stopping"))


def _tickets(event: e.ReloadAsked) -> list[int]:
    return [] if event.ticket is None else [event.ticket]
