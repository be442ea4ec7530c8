"""`python -m loadtest.messages`: messages between workers beside Redis pub/sub, on the same machine in the same run.

One process sends, others receive; both sides are Python on uvloop with the same payloads. A sender has `--tasks`
messages under way, each of which it waits for: here until the hub has accepted it, with Redis until the server has
answered. A message carries the time at which it was sent (CLOCK_MONOTONIC), so that the receiver knows how long it
took. The runs of both alternate. Needs `redis-server`; without it that side is left out.
"""

from __future__ import annotations

import argparse
import array
import json
import os
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

QUIET_PAUSE: Final = 0.002
"""Seconds between two messages of one task in the cases "steady" and "quiet"."""
ROOT: Final = Path(__file__).resolve().parent.parent
CASES: Final = {
    "to-one": "one worker to one other",
    "to-all": "one worker to all",
    "acked": "one worker to any, acknowledged",
    "call": "one worker to any, answered",
    "steady": "one worker to one other, 10 messages each 2 ms",
    "quiet": "one worker to one other, one message each 2 ms",
}
TASKS: Final = {"steady": 10, "quiet": 1}
"""Messages under way where that is part of the case."""
BOTH: Final = ("to-one", "to-all", "steady", "quiet")
"""What pub/sub can do as well."""
_STAMP: Final = struct.Struct("<d")


def payload(size: int) -> bytes:
    """A message of `size` bytes that says when it was sent."""
    return _STAMP.pack(time.monotonic()) + bytes(size - _STAMP.size)


class Sending:
    """For how long is sent."""

    def __init__(self, seconds: float, size: int) -> None:
        self.ends = time.monotonic() + seconds
        self.size = size
        self.count = 0

    def on(self) -> bool:
        """Whether to send another one."""
        return time.monotonic() < self.ends


class Received:
    """How many messages came, and how long they took."""

    def __init__(self) -> None:
        self._times = array.array("d")

    def take(self, data: bytes) -> None:
        """A message came."""
        self._times.append(time.monotonic() - _STAMP.unpack_from(data)[0])

    @property
    def count(self) -> int:
        """How many there have been."""
        return len(self._times)

    def results(self) -> dict[str, float]:
        """Count, and median and 99th percentile of the times (ms); forget them."""
        times, self._times = sorted(self._times), array.array("d")
        if not times:
            return {"count": 0, "p50": 0.0, "p99": 0.0}
        p50, p99 = (1000 * times[min(len(times) - 1, int(len(times) * share))] for share in (0.5, 0.99))
        return {"count": len(times), "p50": p50, "p99": p99}


@contextmanager
def own_server(workers: int, app: str = "loadtest.messages_app:app", more: Sequence[str] = ()) -> Iterator[str]:
    """This server, with the application of a benchmark and `more` arguments; yields its address."""
    with tempfile.TemporaryDirectory() as scratch:
        path = f"{scratch}/socket"
        ready, write = os.pipe()
        arguments = [app, "--workers", str(workers), "--bind", "127.0.0.1:0", *more]
        process = subprocess.Popen(
            [sys.executable, "-m", "serve_asgi", *arguments, "--control", path, "--no-access-log"],
            cwd=ROOT,
            env={**os.environ, "SERVE_LOG_FORMAT": "text"},
            stdout=write,
            stderr=subprocess.STDOUT,
        )
        os.close(write)
        try:
            with os.fdopen(ready) as log:
                for line in log:
                    if "serving on" in line:
                        yield line.rpartition("serving on ")[2].strip()
                        break
                else:
                    raise SystemExit("the server did not start")
        finally:
            process.terminate()
            process.wait()


@contextmanager
def own_redis() -> Iterator[int]:
    """A Redis without persistence; yields its port."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    quiet = ["--save", "", "--appendonly", "no", "--bind", "127.0.0.1"]
    process = subprocess.Popen(["redis-server", "--port", str(port), *quiet], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if "Ready to accept connections" in line:
                break
        yield port
    finally:
        process.terminate()
        process.wait()


def run_here(address: str, case: str, seconds: float, tasks: int, size: int) -> dict[str, Any]:
    """One run with this server."""
    url = f"{address}/run?case={case}&seconds={seconds}&tasks={tasks}&size={size}"
    with urllib.request.urlopen(url, timeout=seconds + 60) as answer:
        found: dict[str, Any] = json.load(answer)
    found["received"] = [each for each in found["received"] if each["count"]]
    found["copies"] = len(found["received"]) if case == "to-all" else 1
    return found


def run_redis(port: int, receivers: int, case: str, seconds: float, tasks: int, size: int) -> dict[str, Any]:
    """One run with Redis."""
    command = [sys.executable, "-m", "loadtest.messages_redis"]
    there = [
        subprocess.Popen([*command, "receive", str(port)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for _ in range(receivers)
    ]
    for process in there:
        assert process.stdout is not None
        assert process.stdout.readline() == "subscribed\n"
    sent = subprocess.run(
        [*command, "send", str(port), case, str(seconds), str(tasks), str(size)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(sent.stdout)
    found["received"] = [json.loads(process.communicate()[0]) for process in there]
    found["copies"] = receivers
    return found


def row(name: str, runs: list[dict[str, Any]]) -> str:
    """A line of the table: the median over the runs."""

    def median(values: list[float]) -> float:
        return statistics.median(values)

    sent = median([run["sent"] / run["seconds"] for run in runs])
    came = median([sum(each["count"] for each in run["received"]) / run["seconds"] for run in runs])
    p50 = median([max(each["p50"] for each in run["received"]) for run in runs])
    p99 = median([max(each["p99"] for each in run["received"]) for run in runs])
    lost = max(run["sent"] * run["copies"] - sum(each["count"] for each in run["received"]) for run in runs)
    return f"| {name} | {sent:,.0f} | {came:,.0f} | {p50:.2f} | {p99:.2f} | {lost} |"


def main() -> None:
    """Run all cases and print a table."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.messages", description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each run")
    parser.add_argument("--runs", type=int, default=3, help="of each case and side; the table has the median")
    parser.add_argument("--workers", type=int, default=3, help="processes: one sends, the others receive")
    parser.add_argument("--tasks", type=int, default=64, help="messages under way at a time")
    parser.add_argument("--size", type=int, default=100, help="bytes of a payload, 8 at least")
    options = parser.parse_args()
    print("| | sent/s | received/s | median ms | p99 ms | missing |\n| --- | ---: | ---: | ---: | ---: | ---: |")
    redis = own_redis() if shutil.which("redis-server") else None
    with own_server(options.workers) as address:
        if redis is None:
            cases(options, address, 0)
        else:
            with redis as port:
                cases(options, address, port)


def cases(options: argparse.Namespace, address: str, port: int) -> None:
    """All cases, on both sides in turn."""
    for case, name in CASES.items():
        tasks = TASKS.get(case, options.tasks)
        here: list[dict[str, Any]] = []
        there: list[dict[str, Any]] = []
        for _ in range(options.runs):
            here.append(run_here(address, case, options.seconds, tasks, options.size))
            if port and case in BOTH:
                receivers = options.workers if case == "to-all" else 1
                there.append(run_redis(port, receivers, case, options.seconds, tasks, options.size))
        print(row(f"{name}: serve", here), flush=True)
        if there:
            print(row(f"{name}: Redis", there), flush=True)


if __name__ == "__main__":
    main()
