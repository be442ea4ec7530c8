"""The server's state, its generations and its workers, which every part of the supervisor reads.

It decides nothing. Which generation is current or a candidate, and the states of workers, are changed by the parts
responsible, through the tables of `serve_asgi.supervisor.lifecycles`.
"""

from __future__ import annotations

from serve_asgi.supervisor import actions
from serve_asgi.supervisor.lifecycles import (
    SERVER_TRANSITIONS,
    UP,
    Cause,
    Generation,
    Policy,
    ServerState,
    Worker,
    WorkerState,
    advance,
)


class ProcessTable:
    """All of one server's generations and workers that are not gone."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        """The policy of the current generation; before there is one, of the first."""
        self.state = ServerState.STARTING
        self.outcome = actions.Exit(0)
        """How the server ends."""
        self.size = policy.workers
        """The number of slots to fill."""
        self.generations: dict[int, Generation] = {}
        self.workers: dict[int, Worker] = {}
        self.current: Generation | None = None
        self.candidate: Generation | None = None
        """The generation that is to become current."""
        self.lost = 0
        """Requests that were cut, or in flight in a worker that died."""
        self.next_generation = 1
        self.next_process = 1

    def become(self, state: ServerState) -> None:
        """Change the server's state, if the table allows it."""
        self.state = advance(SERVER_TRANSITIONS, self.state, state)

    def process_number(self) -> int:
        """A new number for a process, worker or agent."""
        number, self.next_process = self.next_process, self.next_process + 1
        return number

    def generation_number(self) -> int:
        """A new number for a generation."""
        number, self.next_generation = self.next_generation, self.next_generation + 1
        return number

    def add_worker(self, generation: Generation, slot: int, cause: Cause) -> None:
        """Add a worker that is to be started."""
        worker = Worker(self.process_number(), generation, slot, cause)
        self.workers[worker.id] = worker

    def remove(self, worker: Worker) -> None:
        """Remove a worker that has been reaped, or was never started."""
        worker.become(WorkerState.GONE)
        del self.workers[worker.id]

    def workers_in(self, *states: WorkerState) -> list[Worker]:
        """The workers in one of these states."""
        return [worker for worker in self.workers.values() if worker.state in states]

    def workers_of(self, generation: Generation) -> list[Worker]:
        """The workers of this generation."""
        return [worker for worker in self.workers.values() if worker.generation is generation]

    def filling(self, slot: int) -> list[Worker]:
        """The workers of the current generation that fill `slot` and are not to be replaced."""
        return [
            worker
            for worker in self.workers.values()
            if worker.generation is self.current and worker.slot == slot and worker.state in UP and not worker.recycling
        ]
