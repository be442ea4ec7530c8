"""Quart: WebSockets and streams that go on in new code."""

import asyncio
import contextlib
import os

from quart import Quart, make_response, request, websocket

from serve_asgi import survive

app = Quart(__name__)


@app.websocket("/echo")
async def echo():
    """Quart reads ahead, and cancels the handler at the end: what is not answered by then is left to the next life."""
    kept = survive(websocket.scope)
    unanswered = kept.state.setdefault("unanswered", [])
    await websocket.accept()
    try:
        while True:
            if not unanswered:
                unanswered.append(await websocket.receive())
            number = kept.state.get("number", 0) + 1
            await websocket.send(f"{number} {os.getpid()} {unanswered[0]}")
            kept.state["number"] = number
            del unanswered[0]
    finally:
        with contextlib.suppress(Exception):
            async with asyncio.timeout(0.1):
                while True:
                    unanswered.append(await websocket.receive())


@app.get("/lines")
async def lines():
    kept = survive(request.scope)

    async def numbers():
        while True:
            number = kept.state.get("number", 0) + 1
            yield f"data: {number} {os.getpid()}\n\n"
            kept.state["number"] = number
            await asyncio.sleep(0.01)

    response = await make_response(numbers(), {"content-type": "text/event-stream"})
    response.timeout = None
    return response
