"""What the page shows: a sample per second for the last ten minutes, and the current workers.

A sample is what happened in one second, from two readings of the scoreboard; it includes the counts of all processes,
even of those that ended within the second. Values are rounded to what a chart can show. It must not know HTTP.
"""

from __future__ import annotations

import collections
import logging
import time
from collections.abc import Sequence
from typing import Any, Final

import anyio

from serve_asgi.admin.metrics import CLASSES, NANO, connections_by_state, oldest, silence
from serve_asgi.admin.scoreboard_totals import (
    DURATIONS,
    STREAM_DURATIONS,
    STREAM_FIRST,
    WEBSOCKET_ACCEPTS,
    WEBSOCKET_DURATIONS,
    ScoreboardReading,
    Words,
)
from serve_asgi.admin.server_view import ServerView
from serve_asgi.ipc.latency_histogram import quantile
from serve_asgi.ipc.scoreboard import DURATION_BOUNDS, STREAM_BOUNDS, WEBSOCKET_BOUNDS, Cell

PERIOD: Final = 1.0
KEPT: Final = 600
"""Samples: ten minutes."""
SMOOTH: Final = 5
"""Periods over which CPU time and bytes are averaged: workers write them once per second, as we read them."""
SHARES: Final = (0.5, 0.9, 0.99)

log = logging.getLogger("serve")

Sample = dict[str, Any]


class MetricSamples:
    """Takes a sample each second, for as long as `run` runs."""

    def __init__(self, view: ServerView) -> None:
        self.view = view
        self.kept: collections.deque[Sample] = collections.deque(maxlen=KEPT)
        self.taken = 0
        """How many have been taken: the number of the newest."""
        self._readings: collections.deque[ScoreboardReading] = collections.deque(maxlen=SMOOTH + 1)
        self._news = anyio.Event()

    async def run(self) -> None:
        """Take samples until cancelled."""
        due = time.monotonic()
        while True:
            try:
                self.take()
            except Exception:
                log.exception("the page's figures could not be computed")
            due = max(due + PERIOD, time.monotonic())
            await anyio.sleep(max(0.0, due - time.monotonic()))

    async def next(self) -> None:
        """Wait for the next sample."""
        await self._news.wait()

    def since(self, number: int) -> list[Sample]:
        """The samples after the one with this number, as far as they are kept."""
        return list(self.kept)[max(0, len(self.kept) - (self.taken - number)) :] if number < self.taken else []

    def take(self) -> None:
        """Take a sample now."""
        reading = self.view.reading()
        if self._readings and reading.at > self._readings[-1].at:
            sample = self._sample(self._readings[-1], reading)
            while self.kept and self.kept[-1]["t"] > sample["t"]:  # the clock was set back
                self.kept.pop()
            self.kept.append(sample)
            self.taken += 1
        self._readings.append(reading)
        news, self._news = self._news, anyio.Event()
        news.set()

    def _sample(self, before: ScoreboardReading, now: ScoreboardReading) -> Sample:
        seconds = now.at - before.at
        made = [after - earlier for after, earlier in zip(now.total, before.total, strict=True)]
        earlier = self._readings[-min(2, len(self._readings))]  # durations are written once per second, too
        slow = [after - then for after, then in zip(now.total[DURATIONS], earlier.total[DURATIONS], strict=True)]
        queues = self.view.queues()
        long_ago = self._readings[0]

        def smooth(cell: Cell) -> float:
            return float((now.total[cell] - long_ago.total[cell]) / (now.at - long_ago.at))

        return {
            "t": round(now.time, 2),
            "g": self.view.state["generation"],
            "r": {number: round(count / seconds, 2) for number, count in by_generation(before, now).items()},
            "s": [round(made[cell] / seconds, 2) for cell in CLASSES],
            "z": self._long(now, STREAM_FIRST, STREAM_DURATIONS, STREAM_BOUNDS),
            "w": self._long(now, WEBSOCKET_ACCEPTS, WEBSOCKET_DURATIONS, WEBSOCKET_BOUNDS),
            "d": [None if (found := quantile(share, slow)) is None else round(found * 1e3, 3) for share in SHARES],
            "c": list(connections_by_state(now).values()),
            "f": now.gauge(Cell.IN_FLIGHT),
            "i": round(smooth(Cell.BYTES_RECEIVED)),
            "o": round(smooth(Cell.BYTES_SENT)),
            "h": made[Cell.HANDED_OVER],
            "l": round(max((words[Cell.LAG] for words in now.rows.values()), default=0) / 1e6, 2),
            "p": round(max(0.0, smooth(Cell.CPU) / NANO), 3),
            "m": now.gauge(Cell.RSS),
            "q": sum(waiting for waiting, _ in queues.values()) if queues else None,
        }

    def _long(
        self, now: ScoreboardReading, begins: slice, lasts: slice, bounds_of_all: Sequence[float]
    ) -> list[float | None]:
        """Of the streams or WebSockets of the last periods: median and 99 % of how long they took to begin, and the
        median of how long those that ended had lasted (ms)."""
        before, found = self._readings[0].total, []
        for share, words, bounds in (
            (0.5, begins, DURATION_BOUNDS),
            (0.99, begins, DURATION_BOUNDS),
            (0.5, lasts, bounds_of_all),
        ):
            counts = [after - then for after, then in zip(now.total[words], before[words], strict=True)]
            seconds = quantile(share, counts, bounds)
            found.append(None if seconds is None else round(seconds * 1e3, 3))
        return found

    def now(self) -> dict[str, Any]:
        """The current state: the server, its workers, and the totals, as in /metrics."""
        view, reading = self.view, self._readings[-1]
        state, total = view.state, reading.total
        listener = view.listener()
        return {
            "state": state["state"],
            "generation": state["generation"],
            "starting": state["starting"],
            "canary": state.get("canary"),
            "reload_waiting": state["reload_waiting"],
            "size": state["size"],
            "generations": state["generations"],
            "degraded": state["degraded"],
            "agent_missing": bool(state.get("agent_missing")) and not view.agent_returned(),
            "agent_returned": view.agent_returned(),
            "draining": bool(reading.draining_since),
            "up": round(max(0.0, reading.at - view.about["since"]), 1),
            "oldest": round(oldest(reading), 2),
            "totals": {
                "requests": total[Cell.REQUESTS],
                "classes": [total[cell] for cell in CLASSES],
                "handed_over": total[Cell.HANDED_OVER],
                "accepted": total[Cell.ACCEPTED],
                "websockets": total[Cell.WEBSOCKETS_OPENED],
                "lost": state["lost"],
                "reloads": state["reloads"].get("done", 0),
                "refused": state["reloads"].get("refused", 0),
                "restarts": sum(state["restarts"].values()),
            },
            "listener_memory": None if listener is None else listener[1],
            "workers": self._workers(reading),
        }

    def _workers(self, reading: ScoreboardReading) -> list[dict[str, Any]]:
        before = self._readings[0]
        return [
            {
                "slot": worker["slot"],
                "generation": worker["generation"],
                "state": "recycling" if worker.get("recycling") and worker["state"] == "serving" else worker["state"],
                "requests": words[Cell.REQUESTS],
                **self._rates(before.rows.get(worker["row"]), words, reading.at - before.at),
                "in_flight": words[Cell.IN_FLIGHT],
                "connections": words[Cell.CONNECTIONS],
                "websockets": words[Cell.WEBSOCKETS],
                "memory": words[Cell.RSS],
                "lag": round(words[Cell.LAG_WORST] / 1e6, 1),
                "silent": round(silence(words, reading.at), 1),
                "oldest": round(max(0.0, reading.at - words[Cell.OLDEST] / NANO), 1) if words[Cell.OLDEST] else None,
            }
            for worker, words in self.view.workers(reading)
        ]

    def _rates(self, before: Words | None, now: Words, seconds: float) -> dict[str, float]:
        """Requests per second and CPU share of one process over the last periods."""
        if before is None or before[Cell.PID] != now[Cell.PID] or seconds <= 0:
            return {"rate": 0.0, "cpu": 0.0}
        return {
            "rate": round((now[Cell.REQUESTS] - before[Cell.REQUESTS]) / seconds, 1),
            "cpu": round((now[Cell.CPU] - before[Cell.CPU]) / NANO / seconds, 3),
        }


def by_generation(before: ScoreboardReading, now: ScoreboardReading) -> dict[int, int]:
    """Requests between two readings by the generation that served them.

    Those of processes that ended in between are only known in total: they count for the newest generation that lost
    one.
    """
    made: dict[int, int] = {}
    for index, words in now.rows.items():
        earlier = before.rows.get(index)
        counted = earlier[Cell.REQUESTS] if earlier is not None and earlier[Cell.PID] == words[Cell.PID] else 0
        made[words[Cell.GENERATION]] = made.get(words[Cell.GENERATION], 0) + words[Cell.REQUESTS] - counted
    rest = now.total[Cell.REQUESTS] - before.total[Cell.REQUESTS] - sum(made.values())
    if rest > 0:
        gone = [words[Cell.GENERATION] for index, words in before.rows.items() if index not in now.rows]
        gone = gone or [words[Cell.GENERATION] for words in before.rows.values()] or [0]
        made[max(gone)] = made.get(max(gone), 0) + rest
    return {number: count for number, count in sorted(made.items()) if count}
