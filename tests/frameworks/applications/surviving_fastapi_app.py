"""FastAPI: WebSockets and streams that go on in new code."""

import asyncio
import os
from typing import Annotated

from fastapi import Depends, FastAPI, Request, WebSocket
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from serve_asgi import survive

app = FastAPI()


async def session():
    opened = {"open": True}
    yield opened
    opened["open"] = False


@app.websocket("/echo")
async def echo(websocket: WebSocket):
    kept = survive(websocket.scope)
    await websocket.accept()
    while True:  # until WebSocketDisconnect, which is let through
        text = await websocket.receive_text()
        number = kept.state.get("number", 0) + 1
        await websocket.send_text(f"{number} {os.getpid()} {text}")
        kept.state["number"] = number


@app.get("/lines")
async def lines(request: Request, opened: Annotated[dict, Depends(session)]):
    kept = survive(request.scope)
    return StreamingResponse(numbers(kept, opened), media_type="text/event-stream")


class Question(BaseModel):
    text: str


@app.post("/answer")
async def answer(request: Request, question: Question, opened: Annotated[dict, Depends(session)]):
    """The next life needs the body again, which this one has received: `WithBody` gives it."""
    kept = survive(request.scope)
    kept.state["body"] = (await request.body()).decode()
    assert question.text == "the question"
    return StreamingResponse(numbers(kept, opened), media_type="text/event-stream")


async def numbers(kept, opened):
    while opened["open"]:
        number = kept.state.get("number", 0) + 1
        yield f"data: {number} {os.getpid()}\n\n"
        kept.state["number"] = number
        await asyncio.sleep(0.01)


class WithBody:
    """In a next life, gives the body that the first life has put into its state."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        kept = scope.get("extensions", {}).get("serve.survive", {})
        if kept.get("resumed") and "body" in kept["state"]:
            first = {"type": "http.request", "body": kept["state"]["body"].encode(), "more_body": False}
            messages = iter([await receive() and first])

            async def receive_again():
                return next(messages, None) or await receive()

            await self.app(scope, receive_again, send)
        else:
            await self.app(scope, receive, send)


app.add_middleware(WithBody)
