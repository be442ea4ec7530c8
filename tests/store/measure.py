"""What a write costs: `python -m tests.store.measure` prints for this machine what docs/guides/state-store.md has.

Of the store process alone, spoken to as the listener does: milliseconds until one write after another is confirmed,
writes per second with fifty under way, and how long after that another server hears of a change.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path

from serve_asgi.ipc.frames import pack_value
from tests.store.postgres import own_place, own_postgres
from tests.store.stores import StoreProcess, own_redis, store

WRITES = 2_000
UNDER_WAY = 50


def main() -> None:
    """Measure a file in the current directory, a PostgreSQL, and a Redis with and without waiting for its disk."""
    with tempfile.TemporaryDirectory(dir=".") as name:
        directory = Path(name)
        with store(directory / "state.db") as process:
            _show("file", process)
        if shutil.which("postgres") is not None:
            with own_postgres(durable=True) as postgres:
                url = own_place(postgres)
                with store(url) as process:
                    _show("PostgreSQL", process)
                with store(url) as process, store(url) as other:
                    process.up(), other.up()
                    print(f"PostgreSQL, until another server has heard: {_figures(_behind(process, other))}")
        if shutil.which("redis-server") is None:
            return
        for label, persistent in (("Redis, no persistence", False), ("Redis, appendfsync always", True)):
            with own_redis(directory / f"redis{persistent:d}", persistent=persistent) as server:
                with store(server.url) as process:
                    _show(label, process)
                with store(server.url) as process, store(server.url) as other:
                    process.up(), other.up()
                    print(f"{label}, until another server has heard: {_figures(_behind(process, other))}")


def _show(label: str, process: StoreProcess) -> None:
    process.up()
    took = []
    for number in range(WRITES):
        began = time.perf_counter()
        process.set("key", number)
        took.append(time.perf_counter() - began)
        process.said.clear()
    print(f"{label}, one after another: {_figures(took)}")
    began = time.perf_counter()
    for _ in range(WRITES // UNDER_WAY):
        for _ in range(UNDER_WAY):
            process.ask("store.write", {"op": "incr", "key": "n", "by": 1})
        for _ in range(UNDER_WAY):
            process.wait("store.written")
        process.said.clear()
    print(f"{label}, {UNDER_WAY} under way: {WRITES / (time.perf_counter() - began):,.0f} writes per second")


def _behind(process: StoreProcess, other: StoreProcess) -> list[float]:
    took = []
    for number in range(WRITES):
        id = process.ask("store.write", {"op": "set", "key": "key"}, pack_value(number, "a value"))
        process.wait("store.written", id=id)
        confirmed = time.perf_counter()
        other.wait("store.change")
        took.append(time.perf_counter() - confirmed)
    return took


def _figures(took: list[float]) -> str:
    took = sorted(took)
    median, p99, worst = (took[int(len(took) * part)] * 1000 for part in (0.5, 0.99, 0.9999))
    return f"median {median:.2f} ms, p99 {p99:.2f} ms, worst of {len(took)} {worst:.2f} ms"


if __name__ == "__main__":
    main()
