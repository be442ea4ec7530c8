"""A queue (Redis Streams) that is read by one process, the agent, and worked on by all workers: see README.md.

    serve consumer:app --agent consumer:consumer --workers 4

The agent hands each message to one worker, and acknowledges it to Redis when that worker has handled it. `app` shows
how many have been handled, and takes new messages:

    GET  /   JSON: how many have been handled, by all workers together
    POST /   put the content (a JSON object) into the queue
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from pathlib import Path
from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import ResponseError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from server import Message, messenger, shared

log = logging.getLogger("consumer")

REDIS_URL: Final = os.environ.get("CONSUMER_REDIS_URL", "redis://127.0.0.1:6379/0")
STREAM: Final = os.environ.get("CONSUMER_STREAM", "orders")
GROUP: Final = "serve"
NAME: Final = os.environ.get("CONSUMER_NAME", "agent")
"""This server's in the group, before and after a reload; servers that share a stream need different names."""
FILE: Final = Path(os.environ.get("CONSUMER_FILE", "handled.jsonl"))
AT_A_TIME: Final = 64
"""Most messages that are with the workers and not acknowledged yet."""
PATIENCE: Final = 600.0
"""Seconds until a message has been handled; then it is left for the next agent to hand on."""
BLOCK: Final = 5000
"""Milliseconds that Redis waits for new messages until it answers that there are none."""

redis: Any = Redis.from_url(REDIS_URL, decode_responses=True)  # its answers have too many types to tell them apart


# In every worker


@messenger.on("order", concurrency=4)
async def handle(message: Message) -> None:
    """What there is to do for one message: here, a line in a file and one more in the count."""
    extra = {"attempt": message.attempt, "pid": os.getpid()}
    await asyncio.to_thread(append, json.dumps({**message.payload, **extra}) + "\n")
    await shared.incr("handled")


def append(line: str) -> None:
    """One write, so that the lines of several workers do not mix (open(2), O_APPEND)."""
    file = os.open(FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, line.encode())
    finally:
        os.close(file)


# In the agent


class Consumer:
    """Reads the stream for as long as it is the agent of this server."""

    def __init__(self) -> None:
        self._handing_on: set[asyncio.Task[None]] = set()
        self._places = asyncio.Semaphore(AT_A_TIME)

    async def prepare(self) -> None:
        """While the agent before this one still reads: a wrong REDIS_URL refuses the reload here, and harms nothing."""
        try:
            await redis.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
        except ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):  # it is there already
                raise

    async def __call__(self) -> None:
        """Read until cancelled, which is how the agent is asked to finish; then wait for what the workers have."""
        after = "0"  # first what the agent before this one was given and did not acknowledge, if it was killed
        try:
            while True:
                found = await redis.xreadgroup(GROUP, NAME, {STREAM: after}, count=AT_A_TIME, block=BLOCK)
                entries = found[0][1] if found else []
                for id, fields in entries:
                    await self._places.acquire()
                    task = asyncio.create_task(self._hand_on(id, fields))
                    self._handing_on.add(task)
                    task.add_done_callback(self._handed_on)
                if after != ">":
                    after = entries[-1][0] if entries else ">"
        finally:
            if self._handing_on:
                await asyncio.wait(self._handing_on)  # the server's --agent-timeout is the deadline
            await redis.aclose()

    async def _hand_on(self, id: str, fields: dict[str, str]) -> None:
        """To one worker, another one if that dies; Redis may forget the message when it has been handled."""
        try:
            await messenger.send_random("order", {"id": id, **fields}, ack=True, timeout=PATIENCE)
        except messenger.DeadLettered as error:
            log.error("message %s is put aside: %s", id, error)
            await redis.xadd(f"{STREAM}:dead", {"id": id, **fields})
        await redis.xack(STREAM, GROUP, id)

    def _handed_on(self, task: asyncio.Task[None]) -> None:
        self._handing_on.discard(task)
        self._places.release()
        if not task.cancelled() and (error := task.exception()) is not None:
            # Not acknowledged, so that it comes again when the next agent begins.
            log.error("a message stays in the queue: %s", error)


consumer = Consumer()


# What HTTP clients see


async def show(request: Request) -> JSONResponse:
    return JSONResponse({"handled": shared.get("handled", 0)})


async def put(request: Request) -> JSONResponse:
    fields = {str(name): str(value) for name, value in (await request.json()).items()}
    return JSONResponse({"id": await redis.xadd(STREAM, fields)})


app = Starlette(routes=[Route("/", show), Route("/", put, methods=["POST"])])
