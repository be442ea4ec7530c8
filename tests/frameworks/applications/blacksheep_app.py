"""BlackSheep, whose core is compiled and takes ASGI's messages its own way."""

import asyncio
import os

from blacksheep import (
    Application,
    Content,
    Request,
    Response,
    StreamedContent,
    WebSocket,
    WebSocketDisconnectError,
    json,
)

app = Application()


def note(line):
    with open("notes", "a") as notes:
        notes.write(line + "\n")


@app.on_start
async def started(application):
    note("started")


@app.on_stop
async def stopped(application):
    note("stopped")


@app.router.get("/")
async def home():
    return json({"pid": os.getpid()})


@app.router.post("/")
async def upload(request: Request):
    size = 0
    async for piece in request.stream():
        size += len(piece)
    return json({"pid": os.getpid(), "size": size})


@app.router.get("/stream")
async def stream():
    async def lines():
        yield b"begun\n"
        while not os.path.exists("enough"):
            yield b"on\n"
            await asyncio.sleep(0.02)
        yield b"end\n"

    return Response(200, content=StreamedContent(b"text/plain", lines))


@app.router.get("/fail")
async def fail():
    raise RuntimeError("as it must")


@app.router.get("/large")
async def large():
    return Response(200, content=Content(b"text/plain", b"x" * 1_000_000))


@app.router.ws("/echo")
async def echo(websocket: WebSocket):
    await websocket.accept()
    try:
        while True:
            await websocket.send_text(await websocket.receive_text())
    except WebSocketDisconnectError as left:
        note(f"left with {left.code}")
