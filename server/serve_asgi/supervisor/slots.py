"""The slots of the current generation: each is to have a serving worker, whatever happens to the previous ones.

Scaling, recycling and the replacement of dead workers are one operation, `fill`, which compares the slots with the
workers. A slot that loses one worker after another is refilled with growing delays
(`serve_asgi.supervisor.restart_backoff`); other slots are not affected.
"""

from __future__ import annotations

import logging
import math

from serve_asgi.supervisor import events as e
from serve_asgi.supervisor.actions import Decisions
from serve_asgi.supervisor.lifecycles import UP, Cause, Generation, Worker, WorkerState
from serve_asgi.supervisor.process_table import ProcessTable
from serve_asgi.supervisor.restart_backoff import RestartBackoff
from serve_asgi.supervisor.retiring import RetiringWorkers


class Slots:
    """Keeps each slot of the current generation filled."""

    def __init__(self, processes: ProcessTable, decisions: Decisions, retiring: RetiringWorkers) -> None:
        self._processes = processes
        self._decisions = decisions
        self._retiring = retiring
        self.all: dict[int, RestartBackoff] = {}
        """By slot number; slots that have had no failure may be missing."""
        self._scaled = 0
        """The event count at which the server was last scaled by hand."""

    def next_due(self) -> float:
        """When the next delayed worker is to be started; infinity if there is none."""
        empty = (self._of(number) for number in range(self._processes.size) if not self._processes.filling(number))
        return min((slot.not_before for slot in empty if slot.not_before > self._decisions.now), default=math.inf)

    def _of(self, number: int) -> RestartBackoff:
        return self.all.setdefault(number, RestartBackoff())

    # Number of slots

    def scale(self, event: e.ScaleAsked) -> None:
        """Handle a request for more workers, or fewer."""
        before = self._processes.size
        size = max(1, event.to if event.to is not None else before + event.by)
        if size != before:
            text = f"workers: {before} -> {size}"
            self._decisions.say(logging.INFO, "workers_scaled", text, workers=size, before=before)
            self._processes.size, self._scaled = size, self._decisions.count
        elif event.to is None:
            text = "there must be at least one worker"
            self._decisions.say(logging.WARNING, "workers_scaled", text, workers=size, before=size)

    def begin_anew(self, generation: Generation) -> None:
        """`generation` serves: no slot has had a failure, and their number is the configuration's, if that has changed.

        Scaling by hand while it started is kept.
        """
        self.all = {}
        if generation.policy.workers != self._processes.policy.workers and self._scaled <= generation.began:
            self._processes.size = generation.size

    # Filling them

    def fill(self, current: Generation) -> None:
        """Start workers of the current generation for empty slots; retire workers of surplus slots."""
        for number in range(self._processes.size):
            if not self._processes.filling(number) and self._of(number).not_before <= self._decisions.now:
                self._processes.add_worker(current, number, self._why_empty(number))
        for worker in self._processes.workers_of(current):
            if worker.slot >= self._processes.size and worker.state in UP:
                self._retiring.leave(worker, "scale")

    def _why_empty(self, number: int) -> Cause:
        replaced = [
            worker
            for worker in self._processes.workers_in(*UP)
            if worker.generation is self._processes.current and worker.slot == number
        ]
        if any(worker.blocked for worker in replaced):
            return Cause.BLOCKED
        if any(worker.recycling for worker in replaced):
            return Cause.RECYCLE
        return Cause.CRASH if self._of(number).failures else Cause.SCALE

    def wants_replacement(self, event: e.WorkerWantsReplacement) -> None:
        """A worker is to be recycled: it serves until its replacement does."""
        worker = event.worker
        if worker.state is WorkerState.SERVING and not worker.recycling:
            worker.recycling = event.reason
            when = ""
            if event.blocked is not None:
                worker.blocked = True
                when = self._back_off(worker, event.reason, event.blocked)
            text = f"{worker} will be replaced{when}: {event.reason}"
            self._decisions.say_of(worker, logging.INFO, "worker_recycled", text, reason=event.reason)

    def _back_off(self, worker: Worker, reason: str, blocked: float) -> str:
        """If replacements keep blocking at once, start them with growing delays."""
        if worker.generation is not self._processes.current:
            return ""
        now = self._decisions.now
        served = max(0.0, now - worker.serving_since - blocked)
        delay = self._of(worker.slot).failed(now, served, reason)
        return f" in {delay:g} s" if delay else ""

    def taken_over(self, worker: Worker) -> None:
        """A replacement serves: retire the worker that it replaces, and let retiring workers hand over to it."""
        self._of(worker.slot).trouble = ""
        text = f"{worker} serves (cause: {worker.cause.value})"
        self._decisions.say_of(worker, logging.INFO, "worker_activated", text, cause=worker.cause.value)
        for other in self._processes.workers_in(WorkerState.SERVING):
            if other is not worker and other.generation is self._processes.current and other.slot == worker.slot:
                self._retiring.retire(other, "recycle")
        self._retiring.connect_all()

    def failed(self, worker: Worker, trouble: str) -> None:
        """A worker of the current generation has died, or could not start."""
        now = self._decisions.now
        slot = self._of(worker.slot)
        served = now - worker.serving_since if worker.serving_since < math.inf else None
        delay = slot.failed(now, served, trouble.partition("\n")[0])
        when = f"in {delay:g} s" if delay else "now"
        text = f"slot {worker.slot} lost {worker}; a replacement starts {when}: {trouble}"
        self._decisions.say_of(worker, logging.ERROR, "slot_failed", text, reason=slot.trouble, delay=delay)
