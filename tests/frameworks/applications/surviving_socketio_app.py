"""Socket.IO over a WebSocket that goes on in new code, with clients that do not know it.

Engine.IO and Socket.IO begin with handshakes of their own: called for a connection that it has not seen, the server
says hello, and takes no events before the client has joined its namespaces. `Surviving` does so in place of the client:
it repeats what the client sent to join, and keeps the answers from it.
"""

import os

import socketio

from serve_asgi import survive

OPEN, CONNECT, DISCONNECT = "0{", "40", "41"
"""How packets begin: an Engine.IO handshake; a message (4) of Socket.IO that joins (0) or leaves (1) a namespace."""


class Surviving:
    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        kept = survive(scope) if scope["type"] == "websocket" else None
        if kept is None:
            await self.app(scope, receive, send)
            return
        joined = kept.state.setdefault("joined", [])
        again = list(joined) if kept.resumed else []
        answers = [OPEN, *(CONNECT for _ in again)] if kept.resumed else []
        begun = False

        async def receive_packet():
            nonlocal begun
            if begun and again:
                return {"type": "websocket.receive", "text": again.pop(0)}
            begun = True
            message = await receive()
            text = message.get("text") or ""
            if text.startswith(CONNECT):
                joined.append(text)
            elif text.startswith(DISCONNECT):
                namespace = text.removeprefix(DISCONNECT).rstrip(",")
                joined[:] = [one for one in joined if one[2:].partition(",")[0] != namespace]
            return message

        async def send_packet(message):
            text = message.get("text") or ""
            for answer in answers:
                if text.startswith(answer):
                    answers.remove(answer)
                    return
            await send(message)

        await self.app(scope, receive_packet, send_packet)


server = socketio.AsyncServer(async_mode="asgi", transports=["websocket"], async_handlers=False)
lives = {}


@server.event
async def connect(sid, environ):
    """In each life: what belongs to the session is in `lives[sid].state`."""
    lives[sid] = survive(environ["asgi.scope"])
    await server.enter_room(sid, "all")


@server.event
async def disconnect(sid, reason):
    del lives[sid]


@server.event
async def say(sid, text):
    state = lives[sid].state
    number = state["number"] = state.get("number", 0) + 1
    await server.emit("said", f"{number} {os.getpid()} {text}", room="all")
    return number


app = Surviving(socketio.ASGIApp(server))
