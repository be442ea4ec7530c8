"""The watch after a switch (`--auto-rollback`): a new generation that fails is rolled back without an operator.

It lasts for the time of a trial (`--canary-time`) and needs a previous generation that stands by, which serves again
within moments. What the new one does is compared, as a canary's is (`serve_asgi.supervisor.canary_verdict`), with what
the previous one had done before the switch, since there is nothing left to compare it with in the same time.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

from serve_asgi.supervisor import actions
from serve_asgi.supervisor import events as e
from serve_asgi.supervisor.actions import Decisions
from serve_asgi.supervisor.canary_verdict import CanaryTrial, TrialPolicy, VerdictKind
from serve_asgi.supervisor.lifecycles import Generation, Worker
from serve_asgi.supervisor.previous_generation import PreviousGeneration
from serve_asgi.supervisor.process_table import ProcessTable


class SwitchWatch:
    """Watches one generation after another, each once."""

    def __init__(
        self,
        processes: ProcessTable,
        decisions: Decisions,
        previous: PreviousGeneration,
        roll_back: Callable[[e.RollbackAsked], None],
    ) -> None:
        self._processes = processes
        self._decisions = decisions
        self._previous = previous
        self._roll_back = roll_back
        self._watched: Generation | None = None
        self._trial: CanaryTrial | None = None
        self.deadline = math.inf
        """When the watch is over."""

    def tend(self) -> None:
        """Watch the current generation from its switch on, as long as the one before it stands by."""
        current, previous = self._processes.current, self._previous.standing_by()
        if self._trial is not None and (current is not self._watched or previous is None):
            self._end()
        if current is None or previous is None or current is self._watched or not current.policy.auto_rollback:
            return
        self._watched = current
        self._trial = CanaryTrial(
            TrialPolicy(latency_factor=current.policy.canary_latency or None, when="before the switch")
        )
        self.deadline = self._decisions.now + current.policy.canary_time
        self._decisions.do(actions.WatchSwitch(current, previous))

    def observed(self, event: e.SwitchObserved) -> None:
        """What the new generation has done since the switch, and the previous one before it."""
        if self._trial is None or event.generation is not self._watched:
            return
        verdict = self._trial.observe(event.since, event.before, self._decisions.now)
        if verdict.kind in (VerdictKind.BAD, VerdictKind.SLOW):
            self._is_bad(verdict.reason)

    def faulty(self, worker: Worker, why: str) -> bool:
        """A worker has died, is blocked or has grown too large: roll back if its generation is watched."""
        if self._trial is None or worker.generation is not self._watched:
            return False
        self._is_bad(f"{worker}: {why}")
        return True

    def check_deadline(self) -> None:
        """The watch is over: say how it went."""
        if self._trial is None or self._decisions.now < self.deadline:
            return
        assert self._watched is not None
        reason, number = self._trial.finish().reason, self._watched.number
        self._end()
        text = f"generation {number} stays: {reason}"
        self._decisions.say(logging.INFO, "deploy_confirmed", text, generation=number, reason=reason)

    def _is_bad(self, reason: str) -> None:
        assert self._watched is not None
        self._end()
        self._roll_back(e.RollbackAsked(by="--auto-rollback", reason=reason, of=self._watched.number))

    def _end(self) -> None:
        self._trial, self.deadline = None, math.inf
        self._decisions.do(actions.WatchSwitch(None, None))
