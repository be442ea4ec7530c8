"""The versions that a canary deploys: the load test's application, and the same with one of six faults.

A bad version does what it is asked all the same, so that the accounts hold for it as for a good one: it executes the
request once, answers it with the right id and content, and only its status, its time or its end is wrong. Responses
with a wrong status carry `loadtest.client.FAILED`.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import loadtest.app
from loadtest.client import FAILED

CRASHES = "crashes"
"""The file, beside the executions, to which a version that crashes adds its pid and the time."""
LATER = 2.5
"""Seconds after its first request from which `500s later` fails."""
SLOW = 0.05
"""Seconds that `slow` takes longer."""
CRASH_AFTER = 40
"""Requests that `crash` serves."""
LEAK = 1 << 20
"""Bytes that `leak` keeps of each request."""
MAX_RSS = 160
"""MiB that a worker may have."""

_BAD = f"""

import random as _random
_right, _seen, _began, _kept = app, 0, 0.0, []


async def app(scope, receive, send):
    if scope["type"] != "http" or scope["path"] == "/":
        await _right(scope, receive, send)
        return

    async def fail(message):
        if message["type"] == "http.response.start":
            message = message | {{"status": 500, "headers": [*message["headers"], ({FAILED!r}, b"1")]}}
        await send(message)

    global _seen, _began
    _seen += 1
    _began = _began or time.monotonic()
    fails = False
    FAULT
    await _right(scope, receive, fail if fails else send)
"""
_CRASH = f"""if _seen > {CRASH_AFTER}:
        with open(os.path.join(os.path.dirname(os.environ[EXECUTIONS]), {CRASHES!r}), "a") as crashes:
            crashes.write("%d %d\\n" % (PID, time.monotonic_ns()))
        os._exit(3)"""


@dataclasses.dataclass(frozen=True, slots=True)
class Fault:
    """A way of being bad."""

    name: str
    source: str
    seconds: float = 6.0
    """How long the trial may last: enough for the fault to come and to show."""
    promised: int | None = None
    """Failed requests after which the statistics see it, in the median (docs/how-it-works/canary-verdict.md)."""


FAULTS = (
    Fault("500s", "fails = True", promised=7),
    Fault("500s later", f"fails = time.monotonic() > _began + {LATER}", seconds=12.0),
    Fault("20 % 500s", "fails = _random.random() < 0.2", promised=5),
    Fault("slow", f"await asyncio.sleep({SLOW})", seconds=30.0),
    Fault("crash", _CRASH),
    Fault("leak", f"_kept.append(bytearray({LEAK}))", seconds=20.0),
)
LATER_FAULT = FAULTS[1]
GOOD_SECONDS = 5.0
"""How long the trial of a good version lasts."""


def deploy(directory: Path, number: int, fault: Fault | None = None) -> None:
    """Put version `number` where the server finds it; as a whole, since a worker may be importing it at any time."""
    source = Path(loadtest.app.__file__).read_text() + f"\nVERSION = {number}\n"
    if fault is not None:
        source += _BAD.replace("FAULT", fault.source)
    temporary = directory / "loadtest_app.new"
    temporary.write_text(source)
    os.replace(temporary, directory / "loadtest_app.py")
