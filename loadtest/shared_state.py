"""`python -m loadtest.shared_state`: what a write to the shared state takes until every worker has it.

In memory, with SQLite (durable before the write returns) and with Redis, if there is one; on Redis also how long after
its beginning a write is seen by another server on the same machine. A run is asked for over HTTP, and the worker that
got the request writes, all others apply.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, Final

from loadtest.messages import own_redis, own_server

APP: Final = "loadtest.shared_state_app:app"
CASES: Final = {
    "one": "set, one at a time",
    "large": "set of 60 KB, one at a time",
    "many": "set, 64 at once in one worker",
    "incr": "incr of one key, 64 at once in one worker",
    "update": "update of one key, 64 at once in each of two requests",
}


def ask(address: str, case: str, seconds: float) -> dict[str, Any]:
    """One run."""
    with urllib.request.urlopen(f"{address}/run?case={case}&seconds={seconds}", timeout=seconds + 120) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def together(*asked: tuple[str, str, float]) -> list[dict[str, Any]]:
    """Several at once."""
    with ThreadPoolExecutor(len(asked)) as threads:
        return [each.result() for each in [threads.submit(ask, *one) for one in asked]]


def row(name: str, runs: Sequence[dict[str, Any]]) -> str:
    """A line of the table: medians over the runs, times in ms."""

    def share(run: dict[str, Any], of: float) -> float:
        times = sorted(run["times"])
        return float(1000 * times[min(len(times) - 1, int(len(times) * of))])

    rate = statistics.median(len(run["times"]) / run["seconds"] for run in runs)
    p50, p99 = (statistics.median(share(run, of) for run in runs) for of in (0.5, 0.99))
    return f"| {name} | {rate:,.0f} | {p50:.2f} | {p99:.2f} |"


def measure(kind: str, addresses: Sequence[str], options: argparse.Namespace) -> None:
    """All cases of one kind of state; with a second address, how it follows the first."""
    for case, name in CASES.items():
        runs = []
        for _ in range(options.runs):
            asked = [(addresses[0], case, options.seconds)] * (2 if case == "update" else 1)
            found = together(*asked)
            runs.append(
                {
                    "times": [time for each in found for time in each["times"]],
                    "seconds": max(each["seconds"] for each in found),
                }
            )
        print(row(f"{kind}: {name}", runs), flush=True)
    if len(addresses) > 1:
        runs = []
        for _ in range(options.runs):
            seconds = options.seconds
            runs.append(together((addresses[1], "follow", seconds + 1), (addresses[0], "stamp", seconds))[0])
        print(row(f"{kind}: seen by another server", runs), flush=True)


def main() -> None:
    """Run everything and print a table."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.shared_state", description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each run")
    parser.add_argument("--runs", type=int, default=3, help="of each case; the table has the median")
    parser.add_argument("--workers", type=int, default=4)
    options = parser.parse_args()
    print("| | writes/s | p50 ms | p99 ms |\n| --- | ---: | ---: | ---: |")
    with own_server(options.workers, APP) as address:
        measure("memory", [address], options)
    with ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory())
        state = ["--state", f"{scratch}/state.db"]
        measure("SQLite", [stack.enter_context(own_server(options.workers, APP, state))], options)
    if shutil.which("redis-server"):
        with ExitStack() as stack:
            state = ["--state", f"redis://127.0.0.1:{stack.enter_context(own_redis())}/0"]
            addresses = [stack.enter_context(own_server(options.workers, APP, state)) for _ in range(2)]
            measure("Redis", addresses, options)


if __name__ == "__main__":
    main()
