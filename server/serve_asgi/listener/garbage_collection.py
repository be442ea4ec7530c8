"""The collector of cycles (gc) in the listener: where it looks at all objects it takes as long as there are many.

With the messages and the state that a server may hold, that is 140 ms in which no signal is handled, at the moment at
which some frame has happened to make one object too many. So the young ones are looked at as usual, what was there at
the start never, and all of them once a minute while there are few. Cycles are rare here: tracebacks, ended tasks.
"""

from __future__ import annotations

import gc
from typing import Final

import anyio

YOUNG: Final = (2_000, 20)
"""Objects more than before, and collections of the youngest, after which younger ones are looked at."""
NEVER: Final = 1_000_000
PERIOD: Final = 60.0
"""Seconds between two looks at all."""
FEW: Final = 50_000
"""Objects, of which a look takes some milliseconds; with more all are looked at only now and then."""
MOST_LEFT_OUT: Final = 30


def begin() -> None:
    """What is there now, stays: modules, mostly."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*YOUNG, NEVER)


async def run() -> None:
    """Look at all objects now and then."""
    left_out = 0
    while True:
        await anyio.sleep(PERIOD)
        if len(gc.get_objects(generation=2)) < FEW or left_out >= MOST_LEFT_OUT:
            gc.collect()
            left_out = 0
        else:
            left_out += 1
