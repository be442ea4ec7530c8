"""The same messages through Redis: `python -m loadtest.messages_redis receive|send PORT …`, started by `messages`."""

from __future__ import annotations

import asyncio
import json
import sys
import time

import redis.asyncio as redis
import uvloop

from loadtest.messages import QUIET_PAUSE, Received, Sending, payload

TOPIC = "messages"


async def receive(port: int) -> None:
    """Receive until the message "end" comes, then print what was measured."""
    received = Received()
    client = redis.Redis(port=port)
    async with client.pubsub(ignore_subscribe_messages=True) as subscription:
        await subscription.subscribe(TOPIC)
        print("subscribed", flush=True)
        async for message in subscription.listen():
            if message["data"] == b"end":
                break
            received.take(message["data"])
    await client.aclose()
    print(json.dumps(received.results()), flush=True)


async def send(port: int, case: str, seconds: float, tasks: int, size: int) -> None:
    """Publish for a while, then "end"; print how much that was."""
    client = redis.Redis(port=port, max_connections=tasks + 1)
    sending = Sending(seconds, size)

    async def publish() -> None:
        while sending.on():
            await client.publish(TOPIC, payload(size))
            sending.count += 1
            if case in ("steady", "quiet"):
                await asyncio.sleep(QUIET_PAUSE)

    began = time.monotonic()
    await asyncio.gather(*(publish() for _ in range(tasks)))
    elapsed = time.monotonic() - began
    await asyncio.sleep(0.2)
    await client.publish(TOPIC, "end")
    await client.aclose()
    print(json.dumps({"sent": sending.count, "seconds": elapsed}), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "receive":
        uvloop.run(receive(int(sys.argv[2])))
    else:
        uvloop.run(send(int(sys.argv[2]), sys.argv[3], float(sys.argv[4]), int(sys.argv[5]), int(sys.argv[6])))
