"""What each generation's workers have done, from the scoreboard: the numbers for the verdict on a canary.

It owns which counts are an application's requests, and which of them it failed. When a worker has been reaped, its row
is folded into the totals of its slot, which say nothing of generations: so the counts are noted here before that. Rule:
what the server itself answered is not the application's. It must not know what follows from the numbers.

What is counted, and what is not, is listed in docs/how-it-works/canary-verdict.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Final

from serve_asgi.ipc.latency_histogram import BUCKETS, LatencyHistogram
from serve_asgi.ipc.scoreboard import Cell, Words
from serve_asgi.listener.child import Child
from serve_asgi.supervisor.canary_verdict import NOTHING_DONE, TrafficSample
from serve_asgi.supervisor.lifecycles import AppProcess, Worker

GENERATIONS: Final = 16
"""Generations of which the ended workers are known; the latest ones. More do not run at once."""


class GenerationSamples:
    """Adds up the rows of each generation's workers."""

    def __init__(self) -> None:
        self._ended: dict[int, TrafficSample] = {}
        """What the workers that have been reaped have done, by generation."""

    def reaped(self, process: AppProcess, words: Words) -> None:
        """Note the row of a process that is no more. Agents serve no requests."""
        if not isinstance(process, Worker):
            return
        generation, done = process.generation.number, dataclasses.replace(sample(words), in_flight=0)
        self._ended[generation] = self._ended.get(generation, NOTHING_DONE) + done
        if len(self._ended) > GENERATIONS:
            del self._ended[min(self._ended)]

    def of(self, generation: int, children: Iterable[Child]) -> TrafficSample:
        """What a generation has done since it was started; `children` are the living processes."""
        done = self._ended.get(generation, NOTHING_DONE)
        for child in children:
            if isinstance(child.worker, Worker) and child.worker.generation.number == generation:
                done += sample(child.counts.words())
        return done


def sample(words: Words) -> TrafficSample:
    """What the process of a row has done. Nothing that is written there is trusted."""
    requests = max(0, words[Cell.REQUESTS] - words[Cell.REFUSED])
    errors = max(0, words[Cell.STATUS_5XX] - words[Cell.EXCUSED_5XX]) + words[Cell.FAILED_WITHOUT_5XX]
    counts = tuple(words[Cell.DURATION_0 : Cell.DURATION_0 + BUCKETS])
    latency = LatencyHistogram(counts, words[Cell.DURATION_TOTAL] / 1e9)
    return TrafficSample(requests, min(errors, requests), latency, words[Cell.IN_FLIGHT])
