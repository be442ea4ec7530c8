"""The accidents of docs/guides/multi-process.md and their fixes, side by side in one application: each is seen.

(The first one, a setting that lands in one worker, is the alarm's.)
"""

from __future__ import annotations

import contextlib
from collections import Counter
from pathlib import Path

from websockets.sync.client import ClientConnection
from websockets.sync.client import connect as open_websocket

from tests.examples.serving import ask, until
from tests.running import PATIENCE, RunningServer, running

WORKERS = 3
APPLICATION = """
import asyncio
import contextlib
import os

from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocketDisconnect

from serve_asgi import messenger, schedule

sockets = set()


def write(line):
    with open("lines", "a") as file:
        file.write(line + "\\n")


async def consume(where):
    write(f"a consumer in {where}")
    await asyncio.Event().wait()


async def agent():
    await consume("the agent")


@schedule(every="1h", immediate=True)
def report():
    write("a report by the schedule")


@contextlib.asynccontextmanager
async def lifespan(app):
    consumer = asyncio.create_task(consume("a worker"))
    asyncio.get_running_loop().call_later(0.1, write, "a report by a timer")
    yield
    consumer.cancel()


async def socket(socket):
    await socket.accept()
    sockets.add(socket)
    await socket.send_text(str(socket.scope["extensions"]["serve"]["slot"]))
    with contextlib.suppress(WebSocketDisconnect):
        await socket.receive()
    sockets.discard(socket)


async def tell(text):
    for socket in list(sockets):
        await socket.send_text(text)


@messenger.on("said")
async def said(message):
    await tell(message.payload)


async def say(request):
    await tell("to those here")
    await messenger.broadcast("said", "to all")
    return JSONResponse({"slot": request.scope["extensions"]["serve"]["slot"]})


app = Starlette(routes=[WebSocketRoute("/socket", socket), Route("/say", say)], lifespan=lifespan)
"""


def come(server: RunningServer, room: contextlib.ExitStack) -> dict[int, ClientConnection]:
    """A client on each worker, by its slot; they leave with the room."""
    host, port = server.address()
    clients: dict[int, ClientConnection] = {}
    while len(clients) < WORKERS:
        client = room.enter_context(open_websocket(f"ws://{host}:{port}/socket", proxy=None))
        clients.setdefault(int(client.recv(timeout=PATIENCE)), client)
    return clients


def heard(client: ClientConnection) -> list[str]:
    """What a client hears up to what is said to all."""
    found = [str(client.recv(timeout=PATIENCE))]
    while found[-1] != "to all":
        found.append(str(client.recv(timeout=PATIENCE)))
    return found


def test_once_for_each_worker_and_once(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APPLICATION)
    lines = tmp_path / "lines"
    expected = {
        "a consumer in a worker": WORKERS,
        "a consumer in the agent": 1,
        "a report by a timer": WORKERS,
        "a report by the schedule": 1,
    }
    with running("app:app", "--agent", "app:agent", "--workers", str(WORKERS), directory=tmp_path) as server:
        with contextlib.ExitStack() as room:
            clients = come(server, room)
            said_in = ask(server, "/say")["slot"]
            for slot, client in clients.items():
                assert heard(client) == (["to those here", "to all"] if slot == said_in else ["to all"])
        until(lambda: len(lines.read_text().splitlines()) >= sum(expected.values()))
        assert server.stop() == 0
        assert Counter(lines.read_text().splitlines()) == expected
