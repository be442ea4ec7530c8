"""An application whose workers send each other messages; tests ask for it over HTTP and read what was handled.

Each handled message is a line of the file RECORD: when the handler began, and when it ended. `POST /send` sends
numbered messages of topic "work" with acknowledgement, and says which were confirmed.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from typing import Any
from urllib.parse import parse_qs

from serve_asgi import messenger
from serve_asgi.app.messenger import Message

RECORD = os.open(os.environ["RECORD"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
RELEASED = asyncio.Event()
"""Handlers of topic "hold" wait for this."""


def record(*words: object) -> None:
    os.write(RECORD, (" ".join(map(str, words)) + "\n").encode())


@messenger.on("work", concurrency=4)
async def work(message: Message) -> None:
    record("begin", message.payload, message.attempt, os.getpid())
    await asyncio.sleep(random.random() * 0.004)
    record("end", message.payload, message.attempt, os.getpid())


@messenger.on("who")
async def who(message: Message) -> list[Any]:
    return [os.getpid(), message.payload]


@messenger.on("news")
def news(message: Message) -> None:
    record("news", message.payload, os.getpid())


@messenger.on("order")
async def order(message: Message) -> None:
    await asyncio.sleep(random.random() * 0.002)
    record("order", message.payload, message.sender.slot, os.getpid())


@messenger.on("poison")
def poison(message: Message) -> None:
    record("poison", message.payload, message.attempt, os.getpid())
    os._exit(3)


@messenger.on("wrong")
def wrong(message: Message) -> None:
    record("wrong", message.payload, message.attempt)
    raise ValueError("as it must be")


@messenger.on("hold")
async def hold(message: Message) -> None:
    record("hold", message.payload, os.getpid(), message.attempt)
    await RELEASED.wait()


@messenger.on("release")
def release(message: Message) -> None:
    record("release", os.getpid())
    RELEASED.set()


@messenger.on("flood", concurrency=16)
def flooded(message: Message) -> None:
    pass


FLOOD: list[asyncio.Task[None]] = []
FLOODED = 0


async def flood(payload: str) -> None:
    """Send as fast as the server takes it, in every manner."""
    global FLOODED
    while True:
        await messenger.send_to_any("flood", payload, ack=True)
        FLOODED += 1
        await messenger.broadcast("flood", payload)
        FLOODED += 1
        await messenger.call("flood", payload)
        FLOODED += 1


async def compute() -> None:
    """Use the processor as a flood does, without a message."""
    while True:
        end = time.perf_counter() + 0.0002
        while time.perf_counter() < end:
            pass
        await asyncio.sleep(0)


@messenger.on("start-computing")
def start_computing(message: Message) -> None:
    FLOOD.append(asyncio.create_task(compute()))


@messenger.on("start-flood")
def start_flood(message: Message) -> None:
    size, tasks = message.payload
    FLOOD.extend(asyncio.create_task(flood("x" * size)) for _ in range(tasks))


@messenger.on("stop-flood")
async def stop_flood(message: Message) -> None:
    for task in FLOOD:
        task.cancel()
    await asyncio.gather(*FLOOD, return_exceptions=True)
    FLOOD.clear()
    record("flooded", FLOODED, os.getpid())


@messenger.on_dead_letter
def dead(message: Message) -> None:
    record("dead", message.topic, message.payload, message.attempt)


@messenger.on("for-the-agent")
async def for_the_agent(message: Message) -> None:
    await asyncio.sleep(0.002)
    record("agent", message.payload, os.getpid(), messenger.me.role)


async def agent() -> None:
    """Nothing but its handlers."""
    await asyncio.Event().wait()


async def outcome(sending: Any) -> Any:
    """What a send returned, or the name and text of what it raised."""
    try:
        returned = await sending
    except Exception as error:
        return {"error": type(error).__name__, "text": str(error)}
    return {"attempts": returned.attempts} if hasattr(returned, "attempts") else returned


async def answer(path: str, asked: dict[str, str]) -> Any:
    topic, payload, timeout = asked.get("topic", ""), asked.get("payload"), float(asked.get("timeout", 10))
    match path:
        case "/send":
            numbers = range(int(asked["first"]), int(asked["first"]) + int(asked["count"]))
            sent = [outcome(messenger.send_to_any("work", n, ack=True, max_deliveries=99, timeout=60)) for n in numbers]
            return [found for found in await asyncio.gather(*sent) if "error" in found]
        case "/agents":
            first, count = int(asked["first"]), int(asked["count"])
            sends = [outcome(messenger.send_to_agent("for-the-agent", first + n, timeout=60)) for n in range(count)]
            return [found for found in await asyncio.gather(*sends) if found is not None]
        case "/order":
            return [await outcome(messenger.send_to_workers("order", n)) for n in range(int(asked["count"]))]
        case "/acked":
            return await outcome(messenger.send_to_any(topic, payload, ack=True, timeout=timeout))
        case "/success":
            return await outcome(messenger.send_to_any(topic, payload, ack="success", timeout=timeout))
        case "/call":
            to = int(asked["to"]) if "to" in asked else None
            return await outcome(messenger.call(topic, payload, to=to, timeout=timeout))
        case "/to":
            return await outcome(messenger.send_to(int(asked["to"]), topic, payload, timeout=timeout))
        case "/agent":
            return await outcome(messenger.send_to_agent(topic, payload, timeout=timeout))
        case "/broadcast":
            count = int(asked.get("count", 1))
            sends = [outcome(messenger.broadcast(topic, payload, timeout=timeout)) for _ in range(count)]
            return await asyncio.gather(*sends)
        case "/flood":
            size, tasks = int(asked.get("size", 100)), int(asked.get("tasks", 100))
            return await outcome(messenger.broadcast("start-flood", [size, tasks]))
        case "/computing":
            return await outcome(messenger.broadcast("start-computing"))
        case "/calm":
            return await outcome(messenger.broadcast("stop-flood"))
        case "/filled":
            body = "x" * 1000
            count = int(asked["count"])
            sends = [outcome(messenger.send_to_workers(topic, body, timeout=timeout)) for _ in range(count)]
            return await asyncio.gather(*sends)
    return os.getpid()


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        while True:
            event = await receive()
            if event["type"] == "lifespan.startup":
                # while the others are on their way as well
                await messenger.broadcast("news", f"from-{os.getpid()}")
            await send({"type": event["type"] + ".complete"})
            if event["type"] == "lifespan.shutdown":
                return
    while (await receive()).get("more_body"):
        pass
    asked = {name: found[-1] for name, found in parse_qs(scope["query_string"].decode()).items()}
    data = json.dumps(await answer(scope["path"], asked)).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(data))]})
    await send({"type": "http.response.body", "body": data})
