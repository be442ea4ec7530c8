"""FastAPI: what its documentation shows, in one application."""

import asyncio
import contextlib
import os
from typing import Annotated

from fastapi import (
    BackgroundTasks,
    Depends,
    FastAPI,
    HTTPException,
    Request,
    UploadFile,
    WebSocket,
    WebSocketDisconnect,
)
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel


def note(line):
    with open("notes", "a") as notes:
        notes.write(line + "\n")


@contextlib.asynccontextmanager
async def lifespan(app):
    note("started")
    yield {"pool": "open"}
    note("stopped")


app = FastAPI(lifespan=lifespan)


class Item(BaseModel):
    name: str
    price: float


class Teapot(Exception):
    pass


@app.exception_handler(Teapot)
async def teapot(request, error):
    return JSONResponse({"error": "short and stout"}, status_code=418)


async def session(request: Request):
    """A dependency that yields: it is closed after the response."""
    opened = {"pool": request.state.pool, "open": True}
    try:
        yield opened
    except ValueError:
        note("session rolled back")
        raise
    finally:
        opened["open"] = False
        note("session closed")


def blocking_session():
    """One that runs in a thread."""
    yield "blocking"
    note("blocking session closed")


Session = Annotated[dict, Depends(session)]


@app.get("/")
async def home():
    return {"pid": os.getpid()}


@app.post("/items/{number}")
async def items(number: int, item: Item, opened: Session, blocking: Annotated[str, Depends(blocking_session)]):
    return {"pid": os.getpid(), "number": number, "item": item, "session": opened, "blocking": blocking}


@app.get("/threaded")
def threaded():
    return {"pid": os.getpid()}


@app.post("/mail/{to}")
async def mail(to: str, tasks: BackgroundTasks, opened: Session):
    async def later():
        await asyncio.sleep(0.05)
        note(f"mail to {to}")

    tasks.add_task(later)
    tasks.add_task(note, f"log of {to}")
    return {"pid": os.getpid()}


@app.get("/fail/{how}")
async def fail(how: str, opened: Session):
    if how == "teapot":
        raise Teapot
    if how == "http":
        raise HTTPException(409, "a conflict", {"x-why": "so"})
    raise ValueError("as it must")


@app.post("/upload")
async def upload(file: UploadFile):
    size = 0
    while piece := await file.read(65536):
        size += len(piece)
    return {"pid": os.getpid(), "name": file.filename, "size": size}


@app.get("/stream")
async def stream(opened: Session):
    async def lines():
        yield f"begun {opened['open']}\n"
        while not os.path.exists("enough"):
            yield "on\n"
            await asyncio.sleep(0.02)
        yield f"end {opened['open']}\n"

    return StreamingResponse(lines(), media_type="text/plain")


@app.websocket("/echo")
async def echo(websocket: WebSocket):
    await websocket.accept()
    try:
        while True:
            message = await websocket.receive()
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(message["code"])
            if message.get("text") is not None:
                await websocket.send_text(message["text"])
            else:
                await websocket.send_bytes(message["bytes"])
    except WebSocketDisconnect as left:
        note(f"left with {left.code}")
