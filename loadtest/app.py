"""The application under load: plain ASGI, runs on every server, and writes down each id that it executes.

It is copied alone into a directory of the run, so it imports nothing but the standard library. Each executed id is one
`os.write` to a file opened with O_APPEND, so that lines of several processes do not mix: `S <id> <pid> <ns>` when the
execution starts, `E <id> <pid> <ns>` when the whole response has been handed to the server (CLOCK_MONOTONIC).

What survives a reload (/surviving/…) keeps its numbers in its state and nowhere else: half of these connections by
`serve_asgi.survive`, half by plain ASGI messages. A number changes after `send` has returned, never before.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
import zlib
from collections.abc import Awaitable, Callable, MutableMapping
from random import Random
from typing import Any
from urllib.parse import parse_qs

try:
    import serve_asgi
except ImportError:  # under another server
    serve_asgi = None  # type: ignore[assignment]

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

EXECUTIONS = "LOADTEST_EXECUTIONS"
"""The environment variable that names the file."""

LARGE = b"l" * (1 << 20)
TRAILER = b"x-checksum"
PID = os.getpid()
CANNOT = 4501
"""The code by which a WebSocket is closed that cannot survive; a stream is answered with 501."""
_file = -1


def echo_answer(number: int, body: bytes | bytearray) -> bytes:
    """What POST /echo answers: proof that the whole body arrived."""
    return b"%d %d %08x\n" % (number, len(body), zlib.crc32(body))


def stream_chunk(number: int, index: int) -> bytes:
    """Chunk `index` of the stream `number`."""
    return b"%d.%d;" % (number, index) * (1 + (number * 7 + index * 13) % 60)


def pattern(number: int, size: int) -> bytes:
    """The body of this size of the response `number`."""
    unit = b"%d:" % number
    return (unit * (size // len(unit) + 1))[:size]


def filler(seed: int, size: int) -> str:
    """Text of this length that both sides know, and that deflate only halves."""
    return Random(seed).randbytes(size // 2 + 1).hex()[:size]


def tick_size(opened: int, tick: int) -> int:
    """How long the filler is of a tick on the WebSocket `opened`: mostly short, sometimes more than buffers hold."""
    random = Random(opened * 1_000_003 + tick)
    return random.randrange(100_000, 300_000) if random.random() < 0.03 else random.randrange(300)


def event_size(number: int, index: int) -> int:
    """The same for an event of the stream `number`."""
    return tick_size(-number, index)


def event(number: int, index: int, pid: int, generation: int, life: int) -> bytes:
    """Event `index` of the stream `number`. Its length does not depend on who sends it."""
    text = filler(number + index, event_size(number, index))
    return b"%010d %010d %010d %010d %06d %s\n" % (number, index, pid, generation, life, text.encode())


def note(phase: bytes, number: int) -> None:
    """Write down that the execution of `number` has started (`S`) or ended (`E`)."""
    global _file
    if _file < 0:
        _file = os.open(os.environ[EXECUTIONS], os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    os.write(_file, b"%s %d %d %d\n" % (phase, number, PID, time.monotonic_ns()))


def generation(scope: Scope) -> int:
    """The generation that answers: the server's word where it has one, else the pid stands for it."""
    told = (scope.get("extensions") or {}).get("serve") or {}
    return int(told.get("generation") or PID)


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """The ASGI entry point."""
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
    elif scope["type"] == "websocket" and scope["path"].startswith("/surviving"):
        await surviving_websocket(scope, receive, send)
    elif scope["type"] == "websocket":
        await websocket(scope, receive, send)
    elif scope["path"] == "/echo":
        await echo(scope, receive, send)
    elif scope["path"] == "/stream":
        await stream(scope, send)
    elif scope["path"] == "/body":
        await large(scope, send)
    elif scope["path"] == "/surviving":
        await surviving_stream(scope, receive, send)
    elif scope["path"] == "/large":
        await answer(scope, send, 0, LARGE)
    elif scope["path"] == "/modules":
        await answer(scope, send, 0, json.dumps(list(sys.modules)).encode())
    elif scope["path"] == "/":
        await answer(scope, send, 0, b"%d\n" % PID)
    else:
        await answer(scope, send, 0, b"not found\n", status=404)


async def lifespan(receive: Receive, send: Send) -> None:
    """Start-up and shutdown, both at once."""
    while True:
        message = await receive()
        await send({"type": message["type"] + ".complete"})
        if message["type"] == "lifespan.shutdown":
            return


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Read the body, wait as long as asked, answer its length and checksum."""
    number, query = question(scope)
    note(b"S", number)
    body = bytearray()
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body += message.get("body", b"")
        more = message.get("more_body", False)
    wait = float(query.get("wait", "0"))
    if wait:
        await asyncio.sleep(wait)
    await answer(scope, send, number, echo_answer(number, body))
    note(b"E", number)


async def stream(scope: Scope, send: Send) -> None:
    """Answer `chunks` chunks over `over` seconds."""
    number, query = question(scope)
    note(b"S", number)
    chunks, pause = int(query["chunks"]), float(query["over"]) / int(query["chunks"])
    await send({"type": "http.response.start", "status": 200, "headers": headers(scope, number)})
    for index in range(chunks):
        await asyncio.sleep(pause)
        await send({"type": "http.response.body", "body": stream_chunk(number, index), "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})
    note(b"E", number)


async def large(scope: Scope, send: Send) -> None:
    """Answer `size` bytes, followed by their checksum as a trailer field, if that is asked for and can be sent."""
    number, query = question(scope)
    note(b"S", number)
    body = pattern(number, int(query["size"]))
    fields = [*headers(scope, number), (b"content-length", b"%d" % len(body))]
    trailers = "trailers" in query and "http.response.trailers" in (scope.get("extensions") or {})
    if trailers:
        fields.append((b"trailer", TRAILER))
    await send({"type": "http.response.start", "status": 200, "headers": fields, "trailers": trailers})
    await send({"type": "http.response.body", "body": body})
    if trailers:
        await send({"type": "http.response.trailers", "headers": [(TRAILER, b"%08x" % zlib.crc32(body))]})
    note(b"E", number)


async def websocket(scope: Scope, receive: Receive, send: Send) -> None:
    """Echo text messages; each begins with its id, and the response is `id pid generation rest`.

    The handshake has an id as well; it is answered by a first message of the same form.
    """
    opened, _ = question(scope)
    await receive()
    note(b"S", opened)
    await send({"type": "websocket.accept"})
    await send({"type": "websocket.send", "text": f"{opened} {PID} {generation(scope)} hello"})
    note(b"E", opened)
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            return
        number, _, rest = message["text"].partition(" ")
        note(b"S", int(number))
        await send({"type": "websocket.send", "text": f"{number} {PID} {generation(scope)} {rest}"})
        note(b"E", int(number))


class Kept:
    """What one life of a connection leaves to the next: by the helper, or by plain ASGI messages."""

    def __init__(self, scope: Scope, send: Send, *, plain: bool) -> None:
        told = (scope.get("extensions") or {}).get("serve.survive")
        survive = getattr(serve_asgi, "survive", None)
        kept = survive(scope, version=1) if survive is not None and not plain else None
        self.possible = (told if plain else kept) is not None
        self.state: dict[str, Any] = dict((told or {}).get("state") or {}) if kept is None else kept.state
        self._send = send if kept is None else None

    async def save(self) -> None:
        """The state is right, as it is now."""
        if self._send is not None and self.possible:
            await self._send({"type": "serve.survive", "state": self.state, "version": 1})


class HandedOver(Exception):
    """What a framework raises when its WebSocket has ended, such as Starlette's WebSocketDisconnect."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason


async def surviving_websocket(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer each numbered message once and in order, and send numbered ticks; all numbers are in the state.

    A message is `sequence id back size filler`, its answer `e sequence id pid generation life count ticks right back
    filler`, whose pid is that of the process that received the message. A tick is `t tick pid generation life filler`.
    The handshake is message 0; the message whose `back` is -1 is the last one and stops the ticks.
    """
    opened, query = question(scope)
    kept = Kept(scope, send, plain="plain" in query)
    await receive()
    if not kept.possible:
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.close", "code": CANNOT, "reason": "a connection cannot survive here"})
        return
    state = kept.state
    if not state:
        note(b"S", opened)
        state |= {"life": 0, "count": -1, "tick": 0, "last": False, "pending": [0, opened, PID, True, 0, True]}
    state["life"] += 1
    await kept.save()
    await send({"type": "websocket.accept"})
    socket = SurvivingWebSocket(scope, receive, send, kept, opened, float(query["every"]))
    await socket.run(query["manner"])


class SurvivingWebSocket:
    """One life of it."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, kept: Kept, opened: int, every: float) -> None:
        self._who = f"{PID} {generation(scope)} {kept.state['life']}"
        self._receive = receive
        self._send = send
        self._kept = kept
        self._state = kept.state
        self._opened = opened
        self._every = every
        self._over = asyncio.Event()

    async def run(self, manner: str) -> None:
        """Until it ends; `manner` is how its handler takes it that it is handed over."""
        ticks = asyncio.create_task(self._tick_on())
        try:
            message = await self._answer_on(ticks, leaves="retiring" in manner)
        finally:
            self._over.set()
            await ticks  # never cancelled: nobody would know whether the tick has gone out
        if message is None or message["code"] != 1012:
            return
        if "last words" in manner and not self._state["last"]:
            await self._tick()
        if "slowly" in manner:
            await asyncio.sleep(Random().uniform(0.0, 0.5))
        if "closing" in manner:
            await self._send({"type": "websocket.close", "code": 1000})
        if "raising" in manner:
            raise HandedOver(message["code"], message.get("reason", ""))

    async def _answer_on(self, ticks: asyncio.Task[None], *, leaves: bool) -> Message | None:
        """Answer messages until the disconnect; None if it `leaves` by itself when the worker retires."""
        while True:
            if self._state["pending"]:
                if self._state["last"]:
                    self._over.set()
                    await ticks
                await self._answer(*self._state["pending"])
            message = await (self._receive_or_retire() if leaves else self._receive())
            if message is None or message["type"] == "websocket.disconnect":
                return message
            is_text = message.get("text") is not None
            sequence, number, back, size, text = (message["text"] if is_text else message["bytes"].decode()).split(
                " ", 4
            )
            right = text == filler(int(number), int(size))
            note(b"S", int(number))
            self._state["pending"] = [int(sequence), int(number), PID, right, int(back), is_text]
            self._state["last"] = back == "-1"
            await self._kept.save()

    async def _receive_or_retire(self) -> Message | None:
        receiving, leaving = asyncio.ensure_future(self._receive()), asyncio.ensure_future(serve_asgi.retiring.wait())
        await asyncio.wait([receiving, leaving], return_when=asyncio.FIRST_COMPLETED)
        leaving.cancel()
        if not receiving.done():
            receiving.cancel()
        await asyncio.wait([receiving, leaving])
        return None if receiving.cancelled() else receiving.result()

    async def _answer(self, sequence: int, number: int, pid: int, right: bool, back: int, is_text: bool) -> None:
        state = self._state
        _, generation, life = self._who.split()
        head = f"e {sequence} {number} {pid} {generation} {life} {state['count'] + 1} {state['tick']} {right:d} {back}"
        text = f"{head} {filler(number, back)}"
        await self._send({"type": "websocket.send"} | ({"text": text} if is_text else {"bytes": text.encode()}))
        state["count"] += 1
        state["pending"] = None
        await self._kept.save()
        note(b"E", number)

    async def _tick_on(self) -> None:
        while self._every and not (self._over.is_set() or self._state["last"]):
            try:
                async with asyncio.timeout(self._every * Random().uniform(0.2, 1.8)):
                    await self._over.wait()
            except TimeoutError:
                await self._tick()

    async def _tick(self) -> None:
        tick = self._state["tick"] + 1
        text = f"t {tick} {self._who} {filler(tick, tick_size(self._opened, tick))}"
        await self._send({"type": "websocket.send", "text": text})
        self._state["tick"] = tick
        await self._kept.save()


async def surviving_stream(scope: Scope, receive: Receive, send: Send) -> None:
    """Send `count` numbered events, one `every` so many seconds; the number of the next is in the state."""
    number, query = question(scope)
    count, every, manner = int(query["count"]), float(query["every"]), query["manner"]
    kept = Kept(scope, send, plain="plain" in query)
    if not kept.possible:
        await answer(scope, send, number, b"a connection cannot survive here\n", status=501)
        return
    state = kept.state
    if not state:
        note(b"S", number)
        state |= {"life": 0, "next": 0}
    state["life"] += 1
    if "late" not in query:
        await kept.save()
    fields = headers(scope, number)
    if "length" in query:
        fields.append((b"content-length", b"%d" % sum(len(event(number, i, 0, 0, 0)) for i in range(count))))
    await send({"type": "http.response.start", "status": 200, "headers": fields})
    await kept.save()
    over = asyncio.Event()
    watching = asyncio.create_task(watch(receive, over))

    async def send_next() -> None:
        body = event(number, state["next"], PID, generation(scope), state["life"])
        await send({"type": "http.response.body", "body": body, "more_body": True})
        state["next"] += 1
        await kept.save()

    try:
        while state["next"] < count and not over.is_set():
            try:
                async with asyncio.timeout(every * Random().uniform(0.2, 1.8)):
                    await over.wait()
            except TimeoutError:
                await send_next()
        if over.is_set():
            if "last words" in manner and state["next"] < count:
                await send_next()
            if "slowly" in manner:
                await asyncio.sleep(Random().uniform(0.0, 0.5))
            return
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        note(b"E", number)
    finally:
        watching.cancel()


async def watch(receive: Receive, over: asyncio.Event) -> None:
    """Read the request to its end, and tell when the response is over."""
    while (await receive())["type"] != "http.disconnect":
        pass
    over.set()


async def answer(scope: Scope, send: Send, number: int, body: bytes, status: int = 200) -> None:
    """One answer with a content-length, and with a body if that was not asked for by HEAD."""
    head = [*headers(scope, number), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


def headers(scope: Scope, number: int) -> list[tuple[bytes, bytes]]:
    """Who answers what."""
    return [
        (b"content-type", b"text/plain"),
        (b"x-id", b"%d" % number),
        (b"x-pid", b"%d" % PID),
        (b"x-generation", b"%d" % generation(scope)),
    ]


def question(scope: Scope) -> tuple[int, dict[str, str]]:
    """The id and the other parameters of the query string."""
    query = {name: values[0] for name, values in parse_qs(scope["query_string"].decode()).items()}
    return int(query["id"]), query
