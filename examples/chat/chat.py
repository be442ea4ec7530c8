"""A chat whose people are on different workers and see each other's messages, over every reload: see README.md.

    /         the page (chat.html)
    /socket   WebSocket; ?after=ID brings what was said after that message

A message is written into the shared state, under the next id, before anybody is told of it; a broadcast says only that
there is something new. So it does not matter which worker a person is on, or in which order broadcasts come: every
worker sends its people what is next in the state. Who is typing has no id: that is broadcast and forgotten.

A person's WebSocket survives a reload: the next worker is told up to which id everything has been sent, and goes on
from there. Where it cannot survive it is closed, and the person comes back and says where to go on.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import logging
import time
from pathlib import Path
from typing import Any, Final

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from serve_asgi import Message, messenger, retiring, shared, survive

log = logging.getLogger("chat")

KEPT: Final = 500
"""Messages that are kept for those who come back."""
SHOWN: Final = 30
"""Of these, what somebody sees who comes for the first time."""
LONGEST_NAME: Final = 40
LONGEST_TEXT: Final = 2000
"""Characters."""
LOOK: Final = 1.0
"""Seconds after which a worker looks without having been told: who was to tell it was killed before."""
PATIENCE: Final = 1.0
"""Seconds that a worker which stands still may hold up who says something."""
UNREADABLE: Final = 1007
GOING_AWAY: Final = 1001
SERVICE_RESTART: Final = 1012
TRY_AGAIN_LATER: Final = 1013
"""Close codes (RFC 6455 7.4.1 and IANA's registry): no text; the server stops; come back; come back later."""
PAGE: Final = Path(__file__).with_name("chat.html").read_text()

people: set[Person] = set()
"""Those on this worker."""


async def say(message: dict[str, Any]) -> None:
    """Say something to everybody: give it its id, keep it, and have all workers look."""
    while True:
        id = newest() + 1
        try:
            # Refused if somebody, in another worker perhaps, was quicker: so no id is given twice, and none left out.
            version = shared.version(place(id))
            await shared.set(place(id), {**message, "id": id}, version=version, timeout=PATIENCE)
        except shared.Conflict:
            continue
        except shared.Lagging:
            pass  # it is said; a worker that stands still tells its people when it goes on
        break
    await hint("said", id)  # every worker has it by now: they may look


async def hint(topic: str, payload: int | str) -> None:
    """Tell all workers something that they can do without: one that does not take it holds up nobody."""
    with contextlib.suppress(messenger.NotDelivered):
        await messenger.broadcast(topic, payload, timeout=PATIENCE)


def place(id: int) -> str:
    """Where a message is kept, until one with the same place is said."""
    return f"chat/{id % KEPT}"


_newest = 0


def newest() -> int:
    """The last message's id, as far as this worker knows: it looks on from where it ended the last time."""
    global _newest
    while (message := shared.get(place(_newest + 1))) is not None and message["id"] > _newest:
        _newest = message["id"]
    return _newest


@messenger.on("said")
def said(message: Message) -> None:
    for person in people:
        person.news.set()


@messenger.on("typing")
def typing(message: Message) -> None:
    for person in people:
        person.notes.append({"typing": message.payload})
        person.news.set()


class Leave(Exception):
    """Why the server closes a connection: code and reason."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class Person:
    """Somebody on a WebSocket of this worker."""

    def __init__(self, socket: WebSocket, told: dict[str, Any], survives: bool) -> None:
        self.told = told
        """`after`: the id up to which this person has been sent everything; `ready`: that this was all, once."""
        self.news = asyncio.Event()
        self.notes: collections.deque[dict[str, Any]] = collections.deque(maxlen=8)
        self._socket = socket
        self._survives = survives
        self._gone = False
        here = socket.scope.get("extensions", {}).get("serve", {})
        self._here = {"worker": here.get("slot", 0), "generation": here.get("generation", 0)}
        self._saying = asyncio.Lock()

    async def stay(self) -> None:
        """Until the person leaves, or another worker has the WebSocket: what was begun to be said or sent is done."""
        people.add(self)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._tell())
                leaving = tasks.create_task(self._leave())
                await self._listen()
                self._gone = True
                self.news.set()
                leaving.cancel()
        except* Leave as why:
            leave = why.exceptions[0]
            assert isinstance(leave, Leave)
            with contextlib.suppress(WebSocketDisconnect):  # who has left in the same moment
                await self._socket.close(leave.code, str(leave))
        finally:
            people.discard(self)

    async def _leave(self) -> None:
        """Close the WebSocket when this worker retires, unless it survives that: as it does all but a stop."""
        while (reason := await retiring.wait()) != "stop" and self._survives:
            await retiring.over()
        await self._saying.acquire()  # for good: who waits for it would begin to say something before it is cancelled
        raise Leave(GOING_AWAY if reason == "stop" else SERVICE_RESTART, f"this worker retires: {reason}")

    async def _listen(self) -> None:
        while (message := await self._socket.receive())["type"] == "websocket.receive":
            try:
                heard = json.loads(message["text"])
                json.dumps(heard, ensure_ascii=False).encode()  # it may have halves of surrogate pairs
            except (ValueError, KeyError):  # KeyError: it is binary
                raise Leave(UNREADABLE, "this is no JSON") from None
            async with self._saying:
                match heard:
                    case {"say": str(text), "name": str(name), "key": str(key)}:
                        said = {"name": name[:LONGEST_NAME], "text": text[:LONGEST_TEXT], "key": key[:LONGEST_NAME]}
                        try:
                            await say({**said, **self._here, "at": time.time()})
                        except (shared.NotWritten, shared.Unknown, shared.TooLarge) as error:
                            log.error("what was said cannot be kept: %s", error)
                            raise Leave(TRY_AGAIN_LATER, "it could not be kept: say it again") from None
                    case {"typing": str(name)}:
                        await hint("typing", name[:LONGEST_NAME])

    async def _tell(self) -> None:
        """Where the person is, all that was said, that this was all, and whatever comes, in the order of the ids."""
        with contextlib.suppress(WebSocketDisconnect):  # nothing goes out any more: `_listen` hears why
            await self._socket.send_json(self._here)
            await self._tell_messages()
            if not (self._gone or self.told["ready"]):
                await self._socket.send_json({"ready": True})
                self.told["ready"] = True
            while not self._gone:
                await self._tell_messages()
                while self.notes:
                    await self._socket.send_json(self.notes.popleft())
                await self._news()

    async def _tell_messages(self) -> None:
        while not self._gone and self.told["after"] < newest():
            id = max(self.told["after"], newest() - KEPT) + 1  # what is older is not kept
            await self._socket.send_json(shared.get(place(id)))
            self.told["after"] = id  # not before it has been sent: the next worker goes on behind it

    async def _news(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOK):
                await self.news.wait()
        self.news.clear()


async def page(request: Request) -> HTMLResponse:
    return HTMLResponse(PAGE)


async def socket(socket: WebSocket) -> None:
    kept = survive(socket.scope)
    await socket.accept()
    told = kept.state if kept else {}
    if not told:  # a person who has just come
        asked = socket.query_params.get("after", "")
        after = int(asked) if asked.isdecimal() and int(asked) <= newest() else max(newest() - SHOWN, 0)
        told.update(after=after, ready=False)
    await Person(socket, told, survives=kept is not None).stay()


app = Starlette(routes=[Route("/", page), WebSocketRoute("/socket", socket)])
