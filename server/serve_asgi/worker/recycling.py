"""When a worker is due for recycling: by its requests, its lifetime or its memory.

It owns the limits of one worker, some of them varied a little so that not all workers are replaced at once. The
supervisor replaces it (`serve_asgi.supervisor.slots`): the replacement is ready before this worker retires.
"""

from __future__ import annotations

import random
import time
from typing import Final

from serve_asgi.config.options import Config
from serve_asgi.ipc.scoreboard import Cell

MIB: Final = 1024 * 1024


class Recycling:
    """The limits of one worker: `--max-requests`, `--max-lifetime`, `--max-rss`."""

    def __init__(self, config: Config, cells: memoryview) -> None:
        self._config = config
        self._cells = cells
        self._max_requests = config.max_requests and config.max_requests + random.randint(0, config.max_requests_jitter)
        self._end_of_life = time.monotonic() + config.max_lifetime * random.uniform(0.9, 1.0)

    def reason(self) -> str:
        """Why this worker should be replaced, or ""."""
        config, cells = self._config, self._cells
        if self._max_requests and cells[Cell.REQUESTS] >= self._max_requests:
            return f"it has served {cells[Cell.REQUESTS]} requests (--max-requests)"
        if config.max_lifetime and time.monotonic() >= self._end_of_life:
            return f"its lifetime is over (--max-lifetime {config.max_lifetime:g})"
        if self.too_large():
            return f"it uses {cells[Cell.RSS] // MIB} MiB of memory (--max-rss {config.max_rss})"
        return ""

    def too_large(self) -> bool:
        """Whether its memory has grown over --max-rss."""
        return bool(self._config.max_rss) and self._cells[Cell.RSS] > self._config.max_rss * MIB
