"""A queue (Redis Streams) that is read by one process, the agent, and worked on by all workers: see README.md.

    serve consumer:app --agent consumer:consume --workers 4

The agent hands each message to one worker, and acknowledges it to Redis when that worker has handled it. `app` shows
how many have been handled, and takes new messages:

    GET  /   JSON: how many have been handled, by all workers together
    POST /   put the content (a JSON object) into the queue
"""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import os
from pathlib import Path
from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from serve_asgi import Message, messenger, shared

log = logging.getLogger("consumer")

REDIS_URL: Final = os.environ.get("CONSUMER_REDIS_URL", "redis://127.0.0.1:6379/0")
STREAM: Final = os.environ.get("CONSUMER_STREAM", "orders")
DEAD: Final = f"{STREAM}:dead"
"""Where messages go that no worker survives."""
GROUP: Final = "serve"
NAME: Final = os.environ.get("CONSUMER_NAME", "agent")
"""This server's in the group, before and after a reload; servers that share a stream need different names."""
FILE: Final = Path(os.environ.get("CONSUMER_FILE", "handled.jsonl"))
AT_A_TIME: Final = 64
"""Most messages that are with the workers and not acknowledged yet."""
PATIENCE: Final = 600.0
"""Seconds until a message has been handled; if it has not, it stays in the queue and comes again."""
LOOK_BACK: Final = 30.0
"""Seconds after which the agent looks for such ones, however many new ones there are."""
BLOCK: Final = 2000
"""Milliseconds that Redis waits for new messages until it answers that there are none."""
SILENCE: Final = 10.0
"""Seconds without any answer after which Redis counts as gone: more than BLOCK, or quiet times would look like it."""

# Any: its answers have too many types to tell them apart
redis: Any = Redis.from_url(REDIS_URL, decode_responses=True, encoding_errors="replace", socket_timeout=SILENCE)


# In every worker


@messenger.on("order", concurrency=4)
async def handle(message: Message) -> None:
    """What there is to do for one message: here, a line in a file and one more in the count.

    If `attempt` is more than 1, or it was `redelivered`, this may have been done before, in a process that was killed.
    """
    by = {"attempt": message.attempt, "generation": messenger.me.generation, "pid": os.getpid()}
    await asyncio.to_thread(append, json.dumps({**message.payload, **by}) + "\n")
    await shared.incr("handled")


def append(line: str) -> None:
    """One write, so that the lines of several workers do not mix (open(2), O_APPEND)."""
    file = os.open(FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, line.encode())
    finally:
        os.close(file)


# In the agent

NEW: Final = ">"
GIVEN_OUT: Final = "0"
"""What XREADGROUP is asked for: what nobody was given yet, or what this consumer was and has not acknowledged."""
handing_on: dict[str, asyncio.Task[None]] = {}
"""By the message's id in the stream."""


async def prepare() -> None:
    """While the old code's agent still reads: with a wrong address the reload is refused here, and no harm is done."""
    try:
        await redis.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
    except ResponseError as error:
        if not str(error).startswith("BUSYGROUP"):  # it is there already
            raise


async def consume() -> None:
    """Read until cancelled, which is how the agent is asked to finish; then wait for what the workers have."""
    clock = asyncio.get_running_loop().time
    try:
        while True:
            await read(GIVEN_OUT)  # to an agent that was killed before it could acknowledge it, say
            until = clock() + LOOK_BACK
            while clock() < until and await read(NEW):
                pass
    finally:
        if handing_on:
            await asyncio.wait(handing_on.values())  # not for ever: there is --agent-timeout
        await redis.aclose()


async def workers_serve() -> None:
    """Until there is one that takes messages: the agent comes before them, and goes after them."""
    async for peers in messenger.presence():
        if any(peer.role == "worker" and peer.phase == "serving" for peer in peers):
            return


async def read(which: str) -> bool:
    """Hand on what there is; False if there has been nothing for a while."""
    while len(handing_on) >= AT_A_TIME:
        await asyncio.wait(handing_on.values(), return_when=asyncio.FIRST_COMPLETED)
    known = set(handing_on)  # one of these may be acknowledged after Redis has looked, and be in its answer
    room = AT_A_TIME - len(known) if which == NEW else None
    found = await redis.xreadgroup(GROUP, NAME, {STREAM: which}, count=room, block=BLOCK)
    entries = found[0][1] if found else []
    await workers_serve()  # if that is never again, what Redis has given out is for the next start
    for id, fields in entries:
        if id not in known and fields is not None:  # None: somebody has deleted it
            task = handing_on[id] = asyncio.create_task(hand_on(id, fields, which == GIVEN_OUT))
            task.add_done_callback(functools.partial(handing_on.pop, id))
    return bool(entries)


async def hand_on(id: str, order: dict[str, str], redelivered: bool) -> None:
    """To one worker, to another one if that dies; when it has been handled, it leaves the queue."""
    message = {"id": id, "order": order, "redelivered": redelivered}
    ending = redis.pipeline(transaction=True)
    try:
        try:
            await messenger.send_to_any("order", message, ack=True, timeout=PATIENCE)
        except (messenger.DeadLettered, messenger.TooLarge) as error:
            ending.xadd(DEAD, {"id": id, "order": json.dumps(order), "error": str(error)})
        # one that is only acknowledged stays in the stream; whoever has several groups trims it by time instead
        await ending.xack(STREAM, GROUP, id).xdel(STREAM, id).execute()
    except (messenger.NotHandled, messenger.NotDelivered, messenger.NoReceiver, RedisError) as error:
        log.error("message %s stays in the queue, and comes again: %s", id, error)


# What HTTP clients see


async def show(request: Request) -> JSONResponse:
    return JSONResponse({"handled": shared.get("handled", 0)})


async def put(request: Request) -> JSONResponse:
    try:
        fields = {str(name): str(value) for name, value in (await request.json()).items()}
    except (ValueError, AttributeError):
        fields = {}
    if not fields:
        return JSONResponse({"error": 'an order is a JSON object, such as {"item": "tea"}'}, 400)
    return JSONResponse({"id": await redis.xadd(STREAM, fields)})


app = Starlette(routes=[Route("/", show), Route("/", put, methods=["POST"])])
