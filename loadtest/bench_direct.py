"""`python -m loadtest.bench_direct APP CASE SECONDS`: the application called directly, without any server.

Prints the CPU time of one request in µs. `receive` and `send` return at once, so what is measured is the application
(and the framework) alone, on uvloop, in one task.
"""

from __future__ import annotations

import asyncio
import importlib
import sys
import time
from typing import Any

import uvloop

from loadtest.bench_cases import CASES, Case, fields

BATCH = 200


def scope(case: Case) -> dict[str, Any]:
    """What a server would have made of wrk's request."""
    headers = [(b"host", b"127.0.0.1:8000")]
    headers += [(name.lower().encode(), value.encode()) for name, value in fields(case).items()]
    if case.body:
        headers.append((b"content-length", b"%d" % case.body))
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "POST" if case.body else "GET",
        "scheme": "http",
        "path": case.path,
        "raw_path": case.path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": headers,
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 8000),
        "state": {},
        "extensions": {},
    }


async def http(app: Any, case: Case, count: int) -> None:
    """`count` requests."""
    message = {"type": "http.request", "body": b"x" * case.body, "more_body": False}

    async def receive() -> Any:
        return message

    async def send(message: Any) -> None:
        pass

    made = scope(case)
    for _ in range(count):
        await app(made.copy(), receive, send)


async def websocket(app: Any, count: int) -> None:
    """One WebSocket with `count` messages."""
    left = count + 1
    data = b"x" * 64

    async def receive() -> Any:
        nonlocal left
        left -= 1
        if left == count:
            return {"type": "websocket.connect"}
        if left < 0:
            return {"type": "websocket.disconnect", "code": 1000}
        return {"type": "websocket.receive", "bytes": data}

    async def send(message: Any) -> None:
        pass

    await app({"type": "websocket", "path": "/"}, receive, send)


async def main(app: Any, case: Case, seconds: float) -> float:
    """µs of CPU time for each request."""
    count = 0
    await (websocket(app, BATCH) if case.websocket else http(app, case, BATCH))
    begun = used = time.process_time()
    while used - begun < seconds:
        await (websocket(app, BATCH) if case.websocket else http(app, case, BATCH))
        count += BATCH
        used = time.process_time()
        await asyncio.sleep(0)
    return (used - begun) / count * 1e6


if __name__ == "__main__":
    print(uvloop.run(main(importlib.import_module(sys.argv[1]).app, CASES[sys.argv[2]], float(sys.argv[3]))))
