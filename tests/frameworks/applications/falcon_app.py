"""Falcon's ASGI side: media, streams, server-sent events, a WebSocket."""

import asyncio
import os

import falcon.asgi
from falcon import WebSocketDisconnected


def note(line):
    with open("notes", "a") as notes:
        notes.write(line + "\n")


class Home:
    async def on_get(self, request, response):
        response.media = {"pid": os.getpid()}

    async def on_post(self, request, response):
        size = 0
        async for piece in request.stream:
            size += len(piece)
        response.media = {"pid": os.getpid(), "size": size}


class Stream:
    async def on_get(self, request, response):
        async def lines():
            yield b"begun\n"
            while not os.path.exists("enough"):
                yield b"on\n"
                await asyncio.sleep(0.02)
            yield b"end\n"

        response.content_type = falcon.MEDIA_TEXT
        response.stream = lines()


class Events:
    async def on_get(self, request, response):
        async def emitter():
            for number in range(3):
                yield falcon.asgi.SSEvent(text=str(number))

        response.sse = emitter()


class Echo:
    async def on_websocket(self, request, socket):
        await socket.accept()
        try:
            while True:
                await socket.send_text(await socket.receive_text())
        except WebSocketDisconnected as left:
            note(f"left with {left.code}")


class Lifespan:
    async def process_startup(self, scope, event):
        note("started")

    async def process_shutdown(self, scope, event):
        note("stopped")


app = falcon.asgi.App(middleware=[Lifespan()])
app.add_route("/", Home())
app.add_route("/stream", Stream())
app.add_route("/events", Events())
app.add_route("/echo", Echo())
