"""Schedules the garbage collector (gc) in the listener, since a full collection takes time that grows with the heap.

With the messages and the state that a server may hold, that is 140 ms without signal handling, whenever an allocation
happens to trigger it. So young objects are collected as usual, those from startup never, and all of them once a minute
while there are few. Cycles are rare here: tracebacks, ended tasks.
"""

from __future__ import annotations

import gc
from typing import Final

import anyio

YOUNG: Final = (2_000, 20)
"""Thresholds (gc.set_threshold) for the young generations."""
NEVER: Final = 1_000_000
PERIOD: Final = 60.0
"""Seconds between two full collections."""
FEW: Final = 50_000
"""Objects of which a full collection takes a few milliseconds; with more it is rarer."""
MOST_LEFT_OUT: Final = 30


def begin() -> None:
    """Exempt what exists now, mostly modules."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*YOUNG, NEVER)


async def run() -> None:
    """Run a full collection now and then."""
    left_out = 0
    while True:
        await anyio.sleep(PERIOD)
        if len(gc.get_objects(generation=2)) < FEW or left_out >= MOST_LEFT_OUT:
            gc.collect()
            left_out = 0
        else:
            left_out += 1
