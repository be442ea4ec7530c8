"""The previous generation, while it stands by for a roll-back (`--keep-previous`): from the switch to its deadline.

It owns the decision which generation stands by: at most one, the one before the current one. Its workers have no
connections, its agent has finished, and its slots are not refilled. It retires when its time is over, when another
generation takes its place, when a reload needs the room, and when the server stops. What a roll-back does with it is in
`serve_asgi.supervisor.rollback`.
"""

from __future__ import annotations

import logging
import math

from serve_asgi.supervisor.actions import Decisions
from serve_asgi.supervisor.lifecycles import Generation, GenerationState, Worker, WorkerState
from serve_asgi.supervisor.process_table import ProcessTable
from serve_asgi.supervisor.retiring import RetiringWorkers


class PreviousGeneration:
    """The generation of one server that stands by, if there is one."""

    def __init__(self, processes: ProcessTable, decisions: Decisions, retiring: RetiringWorkers) -> None:
        self._processes = processes
        self._decisions = decisions
        self._retiring = retiring

    def standing_by(self) -> Generation | None:
        """The generation that a roll-back would make current at once."""
        alive = self._processes.generations.values()
        return next((each for each in alive if each.state is GenerationState.STANDBY), None)

    def succeeded(self, old: Generation, new: Generation) -> None:
        """`new` is current instead of `old`, which stands by, or retires: without --keep-previous, or rolled back."""
        seconds = new.policy.keep_previous
        if seconds <= 0 or new.is_rollback or not any(map(self._can_stand_by, self._processes.workers_of(old))):
            old.become(GenerationState.RETIRING)
            self._retiring.leave_all(old, "rollback" if new.is_rollback else "reload")
            return
        self.retire(f"generation {old.number} stands by")
        old.become(GenerationState.STANDBY)
        old.standby_until = self._decisions.now + seconds
        for worker in self._processes.workers_of(old):
            if self._can_stand_by(worker):
                self._retiring.stand_by(worker)
            else:
                self._retiring.leave(worker, "reload")
        text = f"generation {old.number} stands by for {seconds:g} s: `serve rollback` has it serve again"
        self._decisions.say(logging.INFO, "standby_started", text, generation=old.number, seconds=seconds)

    def _can_stand_by(self, worker: Worker) -> bool:
        """Whether it serves its slot, and nobody is to replace it."""
        in_order = worker.can_stand_by and not worker.recycling and worker.slot < self._processes.size
        return worker.state is WorkerState.SERVING and in_order

    def worker_stands_by(self, worker: Worker) -> None:
        """It reports that it has no connection left."""
        if worker.state is WorkerState.STANDING_DOWN:
            worker.become(WorkerState.STANDBY)
            self._retiring.took_back(worker)
            self._retiring.pairs.closed(worker)
            self._decisions.say_of(worker, logging.DEBUG, "worker_standby_reached", f"{worker} stands by")

    def retire(self, why: str) -> None:
        """Have the generation that stands by retire, if there is one."""
        if (generation := self.standing_by()) is not None:
            generation.become(GenerationState.RETIRING)
            generation.standby_until = math.inf
            text = f"generation {generation.number} retires after its standby: {why}"
            level = logging.INFO
            self._decisions.say(level, "standby_ended", text, generation=generation.number, reason=why)
            self._retiring.leave_all(generation, "reload")

    def next_deadline(self) -> float:
        """When the generation that stands by retires; infinity if there is none."""
        generation = self.standing_by()
        return math.inf if generation is None else generation.standby_until

    def check(self) -> None:
        """Have it retire if its time is over, or if none of its workers is left."""
        if (generation := self.standing_by()) is None:
            return
        if self._decisions.now >= generation.standby_until:
            self.retire("its time is over (--keep-previous)")
        elif not self._processes.workers_of(generation):
            self.retire("all its workers have died")
