"""Litestar: WebSockets and streams that go on in new code."""

import asyncio
import os

from litestar import Litestar, Request, WebSocket, get, websocket
from litestar.response import ServerSentEvent, Stream

from serve_asgi import survive


async def numbers(kept, text):
    while True:
        number = kept.state.get("number", 0) + 1
        yield text(f"{number} {os.getpid()}")
        kept.state["number"] = number
        await asyncio.sleep(0.01)


@get("/lines")
async def lines(request: Request) -> Stream:
    return Stream(numbers(survive(request.scope), "data: {}\n\n".format), media_type="text/event-stream")


@get("/events")
async def events(request: Request) -> ServerSentEvent:
    return ServerSentEvent(numbers(survive(request.scope), str))


@websocket("/echo")
async def echo(socket: WebSocket) -> None:
    kept = survive(socket.scope)
    await socket.accept()
    while True:  # until WebSocketDisconnect, which is let through
        text = await socket.receive_text()
        number = kept.state.get("number", 0) + 1
        await socket.send_text(f"{number} {os.getpid()} {text}")
        kept.state["number"] = number


app = Litestar([lines, events, echo])
