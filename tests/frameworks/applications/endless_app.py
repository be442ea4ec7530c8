"""Event streams without an end of their own, which end when their worker retires, as in docs/guides/frameworks.md."""

import asyncio
import os

from sse_starlette.sse import EventSourceResponse
from starlette.applications import Starlette
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from serve_asgi import retiring


async def home(request):
    return JSONResponse({"pid": os.getpid()})


async def events(request):
    async def generate():
        while not retiring():
            yield {"data": "tick"}
            await asyncio.sleep(0.02)
        yield {"event": "leaving", "data": retiring.reason}

    return EventSourceResponse(generate())


async def stream(request):
    async def generate():
        yield "begun\n"
        while not retiring():
            yield "on\n"
            await asyncio.sleep(0.02)
        yield f"end: {retiring.reason}\n"

    return StreamingResponse(generate())


app = Starlette(routes=[Route("/", home), Route("/events", events), Route("/stream", stream)])
