"""Starlette: a middleware of the class that buffers nothing, background tasks, streams, and who asks for the client."""

import asyncio
import contextlib
import os
from pathlib import Path

from sse_starlette.sse import EventSourceResponse
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocketDisconnect


def note(line):
    with open("notes", "a") as notes:
        notes.write(line + "\n")


@contextlib.asynccontextmanager
async def lifespan(app):
    note("started")
    yield {"answer": [42]}
    note("stopped")


class Stamp(BaseHTTPMiddleware):
    async def dispatch(self, request, call_next):
        response = await call_next(request)
        response.headers["x-stamp"] = "yes"
        return response


async def home(request):
    return JSONResponse({"pid": os.getpid(), "state": request.state.answer, "path": request.url.path})


async def echo(request):
    return PlainTextResponse(await request.body())


async def upload(request):
    async with request.form() as form:
        content = await form["file"].read()
        return JSONResponse({"pid": os.getpid(), "name": form["file"].filename, "size": len(content)})


async def lines():
    yield "begun\n"
    while not os.path.exists("enough"):
        yield "on\n"
        await asyncio.sleep(0.02)
    yield "end\n"


async def stream(request):
    return StreamingResponse(lines(), media_type="text/plain")


async def events(request):
    async def generate():
        number = 0
        while not os.path.exists("enough"):
            yield {"event": "tick", "id": str(number), "data": str(os.getpid())}
            number += 1
            await asyncio.sleep(0.02)
        yield {"event": "end", "data": str(os.getpid())}

    return EventSourceResponse(generate())


async def silent(request):
    """A stream that has nothing to say: only the client's leaving ends it."""

    async def generate():
        try:
            yield "begun\n"
            await asyncio.Event().wait()
        finally:
            note("silent stream ended")

    return StreamingResponse(generate())


async def poll(request):
    note("polls")
    while not await request.is_disconnected():
        await asyncio.sleep(0.01)
    note("saw the disconnect")
    return PlainTextResponse("nobody reads this")


async def background(request):
    body = await request.body()
    if "slow" in request.query_params:
        note("slow request begun")
        while not os.path.exists("enough"):
            await asyncio.sleep(0.01)

    async def later():
        await asyncio.sleep(0.05)
        note("task " + body.decode())

    return JSONResponse({"pid": os.getpid()}, background=BackgroundTask(later))


async def file(request):
    return FileResponse(Path("file.bin"))


async def fail(request):
    raise RuntimeError("as it must")


async def socket(websocket):
    await websocket.accept()
    with contextlib.suppress(WebSocketDisconnect):
        while True:
            message = await websocket.receive()
            if message["type"] == "websocket.disconnect":
                break
            if message.get("text") is not None:
                await websocket.send_text(message["text"])
            else:
                await websocket.send_bytes(message["bytes"])


async def denied(websocket):
    await websocket.send_denial_response(PlainTextResponse("not you", status_code=418))


routes = [
    Route("/", home),
    Route("/echo", echo, methods=["POST"]),
    Route("/upload", upload, methods=["POST"]),
    Route("/stream", stream),
    Route("/events", events),
    Route("/silent", silent),
    Route("/poll", poll),
    Route("/background", background, methods=["POST"]),
    Route("/file", file),
    Route("/fail", fail),
    WebSocketRoute("/echo", socket),
    WebSocketRoute("/denied", denied),
]
app = Starlette(
    routes=[
        *routes,
        Mount("/stamped", routes=routes, middleware=[Middleware(Stamp)]),
        Mount("/zipped", routes=routes, middleware=[Middleware(GZipMiddleware, minimum_size=10_000)]),
    ],
    lifespan=lifespan,
)
