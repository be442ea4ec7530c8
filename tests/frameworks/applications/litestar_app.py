"""Litestar: handlers, dependencies, streams, files, background tasks and a WebSocket listener."""

import asyncio
import os
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

from litestar import Litestar, Request, Response, WebSocket, get, post, websocket
from litestar.background_tasks import BackgroundTask
from litestar.datastructures import UploadFile
from litestar.di import NamedDependency
from litestar.enums import RequestEncodingType
from litestar.exceptions import WebSocketDisconnect
from litestar.params import Body
from litestar.response import File, ServerSentEvent, Stream


def note(line):
    with open("notes", "a") as notes:
        notes.write(line + "\n")


@asynccontextmanager
async def lifespan(app):
    note("started")
    app.state.pool = "open"
    yield
    note("stopped")


async def session():
    yield "session"
    note("session closed")


@get("/", dependencies={"opened": session})
async def home(request: Request, opened: NamedDependency[str]) -> dict:
    return {"pid": os.getpid(), "pool": request.app.state.pool, "session": opened}


@post("/upload")
async def upload(data: Annotated[UploadFile, Body(media_type=RequestEncodingType.MULTI_PART)]) -> dict:
    content = await data.read()
    return {"pid": os.getpid(), "name": data.filename, "size": len(content)}


@get("/threaded", sync_to_thread=True)
def threaded() -> dict:
    return {"pid": os.getpid()}


async def lines():
    yield "begun\n"
    while not os.path.exists("enough"):
        yield "on\n"
        await asyncio.sleep(0.02)
    yield "end\n"


@get("/stream")
async def stream() -> Stream:
    return Stream(lines(), media_type="text/plain")


@get("/events")
async def events() -> ServerSentEvent:
    async def generate():
        yield "first"
        yield "second"

    return ServerSentEvent(generate())


@get("/file")
async def file() -> File:
    return File(Path("file.bin"), filename="file.bin")


@get("/background/{name:str}")
async def background(name: str) -> Response[dict]:
    async def later():
        await asyncio.sleep(0.05)
        note(f"task {name}")

    return Response({"pid": os.getpid()}, background=BackgroundTask(later))


@get("/fail")
async def fail() -> None:
    raise RuntimeError("as it must")


@websocket("/echo")
async def echo(socket: WebSocket) -> None:
    await socket.accept()
    try:
        while True:
            message = await socket.receive()
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(detail="left", code=message["code"])
            if message.get("text") is not None:
                await socket.send_text(message["text"])
            else:
                await socket.send_bytes(message["bytes"])
    except WebSocketDisconnect as left:
        note(f"left with {left.code}")


app = Litestar([home, upload, threaded, stream, events, file, background, fail, echo], lifespan=[lifespan])
