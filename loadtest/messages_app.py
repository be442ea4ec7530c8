"""What `loadtest.messages` serves: a worker that sends, others that receive, and how long the messages took.

Worker 0 is told what to do by `POST /run?case=…`, and collects what the others have measured.
"""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any, Final
from urllib.parse import parse_qs

from loadtest.messages import QUIET_PAUSE, Received, Sending, payload
from serve_asgi import messenger
from serve_asgi.app.messenger import Message

received: Final = Received()
"""What this worker has received."""


def take(message: Message) -> None:
    """A message of the benchmark came."""
    received.take(message.payload)


if messenger.me.slot:
    messenger.on("to-one", take)
    messenger.on("work", take, concurrency=16)
messenger.on("to-all", take)


@messenger.on("results")
def results(message: Message) -> dict[str, Any]:
    """What this worker has measured; it begins anew."""
    return received.results()


@messenger.on("count")
def count(message: Message) -> int:
    """How many messages this worker has received."""
    return received.count


@messenger.on("run", concurrency=2)
async def run(message: Message) -> dict[str, Any]:
    """Send for a while; return how many were sent and what each worker received."""
    case, seconds, tasks, size = message.payload
    workers = [peer.slot for peer in messenger.peers]
    sending = Sending(seconds, size)

    async def send() -> None:
        while sending.on():
            data = payload(size)
            match case:
                case "to-one":
                    await messenger.send_to(1, "to-one", data)
                case "to-all":
                    await messenger.send_to_workers("to-all", data)
                case "acked":
                    await messenger.send_to_any("work", data, ack=True)
                case "call":
                    await messenger.call("work", data)
                case "steady" | "quiet":
                    await messenger.send_to(1, "to-one", data)
                    await asyncio.sleep(QUIET_PAUSE)
            sending.count += 1

    for slot in workers:
        await messenger.call("results", to=slot)
    began = time.monotonic()
    await asyncio.gather(*(send() for _ in range(tasks)))
    elapsed = time.monotonic() - began
    before = -1
    while before != (now := sum([await messenger.call("count", to=slot) for slot in workers])):  # the last ones arrive
        before = now
        await asyncio.sleep(0.1)
    found = [await messenger.call("results", to=slot) for slot in sorted(workers)]
    return {"sent": sending.count, "seconds": elapsed, "received": found}


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Pass on what the benchmark asks for to worker 0."""
    if scope["type"] == "lifespan":
        while True:
            event = await receive()
            await send({"type": event["type"] + ".complete"})
            if event["type"] == "lifespan.shutdown":
                return
    asked = {name: found[-1] for name, found in parse_qs(scope["query_string"].decode()).items()}
    wanted = [asked["case"], float(asked["seconds"]), int(asked["tasks"]), int(asked["size"])]
    answer = await messenger.call("run", wanted, to=0, timeout=wanted[1] + 30)
    data = json.dumps(answer).encode()
    headers = [(b"content-length", b"%d" % len(data))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": data})
