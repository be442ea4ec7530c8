"""Starlette: WebSockets and streams that go on in new code."""

import asyncio
import os

from sse_starlette.sse import EventSourceResponse
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import HTMLResponse, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute

from serve_asgi import survive


class Stamp(BaseHTTPMiddleware):
    async def dispatch(self, request, call_next):
        response = await call_next(request)
        response.headers["x-stamp"] = "yes"
        return response


async def echo(websocket):
    kept = survive(websocket.scope)
    await websocket.accept()
    async for text in websocket.iter_text():
        number = kept.state.get("number", 0) + 1
        await websocket.send_text(f"{number} {os.getpid()} {text}")
        kept.state["number"] = number


async def raising(websocket):
    """Its WebSocketDisconnect is let through."""
    kept = survive(websocket.scope)
    await websocket.accept()
    while True:
        text = await websocket.receive_text()
        number = kept.state.get("number", 0) + 1
        await websocket.send_text(f"{number} {os.getpid()} {text}")
        kept.state["number"] = number


async def lines(request):
    kept = survive(request.scope)

    async def generate():
        while True:
            number = kept.state.get("number", 0) + 1
            yield f"data: {number} {os.getpid()}\n\n"
            kept.state["number"] = number
            await asyncio.sleep(0.01)

    return StreamingResponse(generate(), media_type="text/event-stream")


async def asking(request):
    """A stream that asks whether its client is there."""
    kept = survive(request.scope)

    async def generate():
        while not await request.is_disconnected():
            number = kept.state.get("number", 0) + 1
            yield f"data: {number} {os.getpid()}\n\n"
            kept.state["number"] = number
            await asyncio.sleep(0.01)

    return StreamingResponse(generate(), media_type="text/event-stream")


async def events(request):
    kept = survive(request.scope)

    async def generate():
        while True:
            number = kept.state.get("number", 0) + 1
            yield {"data": f"{number} {os.getpid()}", "id": str(number)}
            kept.state["number"] = number
            await asyncio.sleep(0.01)

    return EventSourceResponse(generate(), ping=0.05)


async def page(request):
    return HTMLResponse("<title>a page</title>")


routes = [
    Route("/", page),
    Route("/lines", lines),
    Route("/asking", asking),
    Route("/events", events),
    WebSocketRoute("/echo", echo),
    WebSocketRoute("/raising", raising),
]
app = Starlette(
    routes=[
        *routes,
        Mount("/stamped", routes=routes, middleware=[Middleware(Stamp)]),
    ]
)
