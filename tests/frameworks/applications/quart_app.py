"""Quart: the same in the manner of Flask."""

import asyncio
import os

from quart import Quart, jsonify, request, send_file, websocket

app = Quart(__name__)


def note(line):
    with open("notes", "a") as notes:
        notes.write(line + "\n")


@app.before_serving
async def started():
    note("started")


@app.after_serving
async def stopped():
    note("stopped")


@app.get("/")
async def home():
    return jsonify(pid=os.getpid())


@app.post("/upload")
async def upload():
    file = (await request.files)["file"]
    return jsonify(pid=os.getpid(), name=file.filename, size=len(file.read()))


@app.post("/pieces")
async def pieces():
    size = 0
    async for piece in request.body:
        size += len(piece)
    return jsonify(pid=os.getpid(), size=size)


@app.get("/threaded")
def threaded():
    return jsonify(pid=os.getpid())


@app.get("/stream")
async def stream():
    async def lines():
        yield "begun\n"
        while not os.path.exists("enough"):
            yield "on\n"
            await asyncio.sleep(0.02)
        yield "end\n"

    return lines(), {"content-type": "text/plain"}


@app.get("/file")
async def file():
    return await send_file(os.path.abspath("file.bin"), conditional=True)


@app.get("/background/<name>")
async def background(name):
    async def later():
        await asyncio.sleep(0.05)
        note(f"task {name}")

    app.add_background_task(later)
    return jsonify(pid=os.getpid())


@app.get("/slow")
async def slow():
    try:
        note("slow begun")
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        note("slow cancelled")
        raise


@app.get("/fail")
async def fail():
    raise RuntimeError("as it must")


@app.websocket("/echo")
async def echo():
    try:
        while True:
            await websocket.send(await websocket.receive())
    finally:
        note("left")
