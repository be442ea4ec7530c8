"""Socket.IO: long polling first, then an upgrade to a WebSocket."""

import os

import socketio

server = socketio.AsyncServer(async_mode="asgi")


@server.event
async def add(sid, a, b):
    await server.emit("added", {"sum": a + b, "pid": os.getpid()}, to=sid)
    return a + b


app = socketio.ASGIApp(server)
