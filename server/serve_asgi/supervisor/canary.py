"""The trial of a candidate: its first workers, the canary, serve a share of the traffic beside the current generation.

What both do in the same time is compared (`serve_asgi.supervisor.canary_verdict`). A bad canary goes back: its workers
retire as others do, and hand their connections over to the current generation. A good one is promoted: the rest of the
generation starts, and the switch follows (`serve_asgi.supervisor.reload`). A trial without a verdict ends as the policy
says: it is promoted, or held until an operator decides.

Until then the current generation has the agent and the schedules, and lends the canary its share of idle connections.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

from serve_asgi.supervisor import actions
from serve_asgi.supervisor import events as e
from serve_asgi.supervisor.actions import Decisions
from serve_asgi.supervisor.canary_verdict import CanaryTrial, TrafficSample, TrialPolicy, Verdict, VerdictKind
from serve_asgi.supervisor.lifecycles import (
    ON_TRIAL,
    Cause,
    Generation,
    GenerationState,
    Policy,
    WorkerState,
    counted,
)
from serve_asgi.supervisor.process_table import ProcessTable
from serve_asgi.supervisor.retiring import RetiringWorkers

MOST_SHARE = 0.5
"""The largest share of a canary: beyond it, it would be the current generation that is on trial."""


def canary_size(policy: Policy, size: int) -> int:
    """How many workers serve the share beside a current generation of `size`: one, or as many as take it evenly."""
    share = min(policy.canary_share, MOST_SHARE)
    return max(1, min(size, math.ceil(share * size / (1 - share) - 1e-9)))


def canary_share(policy: Policy, size: int) -> float:
    """The share of the traffic that the canary gets."""
    return min(policy.canary_share, MOST_SHARE) or 1 / (size + 1)


def limited_share(share: float, size: int, canaries: int) -> float | None:
    """The share of the new clients that each canary may accept; None if that is what one worker gets anyway."""
    each = share / canaries
    return each if each < 1 / (size + canaries) - 1e-9 else None


def with_wish(policy: Policy, wish: e.CanaryWish | None) -> dict[str, Any]:
    """The members of the policy that a request for a reload changes."""
    if wish is None:
        return {}
    wishes = {"canary_share": wish.share, "canary_time": wish.time, "canary_hold": wish.hold}
    return {"canary": wish.on, **{name: value for name, value in wishes.items() if value is not None}}


class CanaryTrials:
    """The trials of one server, one after another."""

    def __init__(
        self,
        processes: ProcessTable,
        decisions: Decisions,
        retiring: RetiringWorkers,
        take_back: Callable[[str, str], None],
    ) -> None:
        """`take_back(reason, detail)` ends the candidate."""
        self._processes = processes
        self._decisions = decisions
        self._retiring = retiring
        self._take_back = take_back
        self.trial: CanaryTrial | None = None
        """The trial under way, or held."""
        self.deadline = math.inf
        """When its time is over."""
        self.seen: tuple[TrafficSample, TrafficSample] | None = None
        """What the canary and the current generation have done in it, as last observed."""
        self._share = 0.0
        self._slow = False

    # Beginning and end

    def begin(self, generation: Generation) -> None:
        """All workers of the canary serve: compare what they do from here on with what the others do."""
        policy = generation.policy
        self._share = canary_share(policy, self._processes.size)
        self.trial = self._new_trial(policy)
        self.deadline = self._decisions.now + policy.canary_time
        self._slow, self.seen = False, None
        number = len(self._processes.workers_of(generation))
        if (each := limited_share(self._share, self._processes.size, number)) is not None:
            for worker in self._processes.workers_of(generation):
                self._decisions.do(actions.LimitAccepting(worker, each))
        self._decisions.do(actions.WatchCanary(generation))
        text = (
            f"canary: {counted(number, 'worker')} of generation {generation.number} "
            f"{'serves' if number == 1 else 'serve'} {self._share:.0%} of the traffic on trial, for "
            f"{policy.canary_time:g} s"
        )
        about: dict[str, Any] = {"share": round(self._share, 4), "seconds": policy.canary_time, "workers": number}
        self._decisions.say(logging.INFO, "canary_started", text, generation=generation.number, **about)
        self._decisions.do(actions.Announce("status", text))

    def end(self) -> None:
        """The trial is over, or was never begun: nothing more is lent or observed."""
        if self.trial is None:
            return
        self.trial, self.deadline = None, math.inf
        self._decisions.do(actions.WatchCanary(None))
        for worker in self._processes.workers_in(WorkerState.SERVING):
            self._retiring.stop_lending(worker)

    def tend(self) -> None:
        """Have every serving worker of the current generation lend connections, also one that has come since."""
        current, candidate = self._processes.current, self._processes.candidate
        if self.trial is None or current is None or candidate is None:
            return
        canaries = [each for each in self._processes.workers_of(candidate) if each.state is WorkerState.SERVING]
        for worker in self._processes.workers_of(current):
            if worker.state is WorkerState.SERVING and canaries:
                self._retiring.connect_to(worker, canaries)  # again, if it has withdrawn from one that was slow
                if not worker.lends:
                    worker.lends = True
                    self._decisions.do(actions.TellLend(worker, self._share))

    def _new_trial(self, policy: Policy) -> CanaryTrial:
        return CanaryTrial(TrialPolicy(latency_factor=policy.canary_latency or None))

    # What is heard of it

    def observed(self, event: e.CanaryObserved) -> None:
        """Both sides' counts: enough to see that the canary is bad?"""
        if self.trial is None:
            return
        self.seen = event.canary, event.current
        self._judge(self.trial.observe(event.canary, event.current, self._decisions.now))

    def refused(self, event: e.CanaryRefused) -> None:
        """A check, or the application itself, has said no."""
        candidate = self._processes.candidate
        if candidate is None or candidate.state not in ON_TRIAL:
            return
        if event.worker is None or event.worker.generation is candidate:
            self.give_back(event.reason, event.detail)

    def promotion_asked(self, event: e.PromotionAsked) -> None:
        """An operator has seen enough."""
        candidate = self._processes.candidate
        if candidate is None or candidate.state not in ON_TRIAL:
            event.answer(False, "no canary is on trial")
            return
        if self.trial is None:
            text = f"the canary, generation {candidate.number}, still starts: promote it once its trial has begun"
            event.answer(False, f"{text} (`serve status`)")
            return
        self._promote(candidate, f"promoted by {event.by}")
        event.answer(True, f"the canary is promoted: the rest of generation {candidate.number} starts")

    def check_deadline(self) -> None:
        """Judge the canary if its time is over."""
        if self.trial is not None and self._decisions.now >= self.deadline:
            self.deadline = math.inf
            self._judge(self.trial.finish())

    def _judge(self, verdict: Verdict) -> None:
        candidate = self._processes.candidate
        assert candidate is not None
        if verdict.latency_warning and not self._slow:
            self._slow = True
            text = f"canary: {verdict.latency_warning}"
            self._decisions.say(logging.WARNING, "canary_slowed", text, generation=candidate.number)
        match verdict.kind:
            case VerdictKind.BAD | VerdictKind.SLOW:
                self.give_back(verdict.reason)
            case VerdictKind.GOOD:
                self._promote(candidate, verdict.reason)
            case VerdictKind.INCONCLUSIVE:
                self._without_verdict(candidate, verdict.reason)

    def _without_verdict(self, candidate: Generation, reason: str) -> None:
        hold = candidate.policy.canary_hold
        if hold:
            candidate.become(GenerationState.HELD)
            self.trial = self._new_trial(candidate.policy)  # it can still turn out to be bad
        then = "it is held: `serve promote`, or `serve rollback`" if hold else "it is promoted"
        text = f"canary: inconclusive, {then}: {reason}"
        about: dict[str, Any] = {"generation": candidate.number, "reason": reason, "held": hold, **self._numbers()}
        self._decisions.say(logging.WARNING, "canary_undecided", text, **about)
        if hold:
            self._decisions.do(actions.Announce("status", text))
        else:
            self._promote(candidate, f"inconclusive: {reason}")

    def _promote(self, candidate: Generation, reason: str) -> None:
        """The rest of the generation starts."""
        text = f"canary: generation {candidate.number} is promoted: {reason}"
        about: dict[str, Any] = {"generation": candidate.number, "reason": reason, **self._numbers()}
        self._decisions.say(logging.INFO, "canary_promoted", text, **about)
        self.end()
        candidate.become(GenerationState.STARTING)
        present = {worker.slot for worker in self._processes.workers_of(candidate)}
        for worker in self._processes.workers_of(candidate):
            self._decisions.do(actions.TellPromoted(worker))
        for slot in set(range(candidate.size)) - present:
            self._processes.add_worker(candidate, slot, Cause.GENERATION)

    def give_back(self, reason: str, detail: str = "") -> None:
        """The canary is bad: its connections go back, and it retires."""
        candidate = self._processes.candidate
        assert candidate is not None
        text = f"canary: generation {candidate.number} is taken back: {reason}"
        about: dict[str, Any] = {"generation": candidate.number, "reason": reason, **self._numbers()}
        self._decisions.say(logging.ERROR, "canary_withdrawn", text, detail, **about)
        self._take_back(f"the canary was taken back: {reason}", detail)

    # What is shown of it

    def _numbers(self) -> dict[str, Any]:
        if self.seen is None:
            return {}
        return {
            side: {"requests": sample.requests, "errors": sample.errors}
            for side, sample in zip(("canary", "current"), self.seen, strict=True)
        }

    def status(self, now: float) -> dict[str, Any] | None:
        """The trial under way, JSON-compatible; None if there is none."""
        candidate = self._processes.candidate
        if candidate is None or candidate.state not in ON_TRIAL:
            return None
        return {
            "generation": candidate.number,
            "state": candidate.state.value,
            "share": round(self._share, 4) if self.trial is not None else 0.0,
            "seconds_left": round(max(0.0, self.deadline - now), 1) if self.deadline < math.inf else None,
            **(self._numbers() if self.trial is not None else {}),
        }
