"""The built-in application: `serve serve_asgi.demo:asgi --workers 4`, a page on which a reload can be watched.

It is written as any application would be, against ASGI 3 and `from serve_asgi import retiring, shared, survive` alone;
it knows nothing else of the server that runs it, and works under any other one, where generation and slot are 0.

    /         the page (page.html)
    /who      JSON: which worker serves the request, and on which TCP connection
    /events   server-sent events
    /socket   the same events over a WebSocket
    /reload   POST: what the page's button does (reload_button.py)

An event is a tick of the machine's clock: its id is CLOCK_MONOTONIC in quarter seconds. So every worker of every
generation knows all past events. When a worker retires, its event streams and WebSockets go on in the next generation
on the same connection (`survive`): the state that goes with each is the id of its last event. Where a connection cannot
survive its stream ends cleanly and at once, and a client that reconnects with the id it saw last gets what it missed.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable, MutableMapping
from importlib.resources import files
from typing import Any, Final
from urllib.parse import parse_qs

from serve_asgi import retiring, survive
from serve_asgi.demo import reload_button

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Deliver = Callable[[int, bool], Awaitable[None]]
"""Send the event with this id; True if it is late: the client missed it while it was disconnected."""

TICK: Final = 0.25
"""Seconds between two events."""
MEMORY: Final = 2400
"""Events that are kept for a client that reconnects: ten minutes."""
RETRY_RELOAD: Final = 100
RETRY_OTHERWISE: Final = 2000
"""Milliseconds after which a client should reconnect when its stream has ended: almost at once to the next generation,
later if the server stops or the worker has died (HTML, "Server-sent events", field `retry`)."""
GOING_AWAY: Final = 1001
SERVICE_RESTART: Final = 1012
"""Close codes (RFC 6455 7.4.1 and IANA's registry): the server stops, and reconnect at once."""

PAGE: Final = files("serve_asgi.demo").joinpath("page.html").read_bytes()


async def asgi(scope: Scope, receive: Receive, send: Send) -> None:
    """The application (ASGI 3)."""
    match scope["type"]:
        case "lifespan":
            await _lifespan(scope, receive, send)
        case "http":
            await _http(scope, receive, send)
        case "websocket":
            await _socket(scope, receive, send)
        case other:
            raise ValueError(f"the demo does not know the ASGI protocol {other!r}")


async def _lifespan(scope: Scope, receive: Receive, send: Send) -> None:
    """Startup and shutdown; what is put into the state here comes with every request."""
    while True:
        match (await receive())["type"]:
            case "lifespan.startup":
                # Not at import, which a template may do for all workers (--preload); and the parent, which is to get
                # the HUP, is read once, since it changes if that process dies.
                started = {"started": time.monotonic(), "pid": os.getpid(), "listener": os.getppid()}
                scope.get("state", {}).update(started)
                await send({"type": "lifespan.startup.complete"})
            case "lifespan.shutdown":
                await send({"type": "lifespan.shutdown.complete"})
                return


async def _http(scope: Scope, receive: Receive, send: Send) -> None:
    path = _path(scope)
    if path == "/reload" and scope["method"] == "POST":
        await _reload(scope, send)
    elif path not in ("/", "/who", "/events"):
        await _respond(scope, send, 404, "text/plain; charset=utf-8", b"There is nothing here; the page is at /\n")
    elif scope["method"] not in ("GET", "HEAD"):
        await _respond(scope, send, 405, "text/plain; charset=utf-8", b"Only GET and HEAD\n", (b"allow", b"GET, HEAD"))
    elif path == "/":
        page = PAGE.replace(b"RELOAD-TOKEN", (await reload_button.token(scope)).encode())
        await _respond(scope, send, 200, "text/html; charset=utf-8", page)
    elif path == "/who":
        await _respond(scope, send, 200, "application/json", _encode(_who(scope)))
    else:
        await _events(scope, receive, send)


async def _reload(scope: Scope, send: Send) -> None:
    if (refusal := reload_button.refusal(scope)) is not None:
        await _respond(scope, send, 403, "text/plain; charset=utf-8", f"{refusal}\n".encode())
    else:
        await _respond(scope, send, 202, "text/plain; charset=utf-8", b"The new generation is starting\n")
        reload_button.press(scope["state"]["listener"])


async def _respond(scope: Scope, send: Send, status: int, kind: str, body: bytes, *more: tuple[bytes, bytes]) -> None:
    headers = [
        (b"content-type", kind.encode()),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-store"),
        *more,
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


async def _events(scope: Scope, receive: Receive, send: Send) -> None:
    """Server-sent events."""
    kept = survive(scope) if scope["method"] == "GET" else None
    headers = [
        (b"content-type", b"text/event-stream"),
        (b"cache-control", b"no-store"),
        (b"x-accel-buffering", b"no"),  # nginx passes each event on at once
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    if scope["method"] == "HEAD":
        await send({"type": "http.response.body"})
        return
    # A browser sends the header when it reconnects; the query is for clients that cannot set headers.
    seen = dict(scope["headers"]).get(b"last-event-id", b"").decode("latin-1") or _query(scope, "after")
    state = {} if kept is None else kept.state
    if not state:  # the first call for this connection
        state["seen"] = _known(seen)
        await send({"type": "http.response.body", "body": b"retry: %d\n\n" % RETRY_OTHERWISE, "more_body": True})
    who = _who(scope)

    async def deliver(event: int, late: bool) -> None:
        text = b"id: %d\ndata: %b\n\n" % (event, _encode({**who, "event": event, "late": late}))
        await send({"type": "http.response.body", "body": text, "more_body": True})

    if await _tick(state, receive, deliver, survives=kept is not None):
        pause = RETRY_OTHERWISE if retiring.reason == "stop" else RETRY_RELOAD
        await send({"type": "http.response.body", "body": b"retry: %d\n\n" % pause})


async def _socket(scope: Scope, receive: Receive, send: Send) -> None:
    """The same over a WebSocket; a client that reconnects adds `?after=ID`."""
    await receive()  # websocket.connect
    if _path(scope) != "/socket":
        await send({"type": "websocket.close"})
        return
    kept = survive(scope)
    await send({"type": "websocket.accept"})
    state = {} if kept is None else kept.state
    if not state:
        state["seen"] = _known(_query(scope, "after"))
    who = _who(scope)

    async def deliver(event: int, late: bool) -> None:
        text = _encode({**who, "event": event, "late": late}).decode()
        await send({"type": "websocket.send", "text": text})

    if await _tick(state, receive, deliver, survives=kept is not None):
        # With very many clients one would spread this over a few seconds, as the server's own closing does.
        code = GOING_AWAY if retiring.reason == "stop" else SERVICE_RESTART
        await send({"type": "websocket.close", "code": code, "reason": f"this worker retires: {retiring.reason}"})


def _known(seen: str) -> int:
    """The event that a client says it saw last, or the newest one if there is nothing to go on from."""
    now = _current()
    after = int(seen) if seen.isdecimal() else now
    return after if now - MEMORY <= after <= now else now  # too old, or from before the machine was restarted


async def _tick(state: dict[str, int], receive: Receive, deliver: Deliver, survives: bool) -> bool:
    """Deliver what was missed since the event `state["seen"]`, then each event as it comes, and keep count of it there.

    Returns True when the stream is to end, as the worker retires and the connection does not survive that; False when
    the client has gone, or another worker has it. No `deliver` is cancelled half-way.
    """
    now = _current()
    gone = asyncio.create_task(_disconnected(receive))
    ends = asyncio.create_task(_stream_ends(survives))
    try:
        while not (gone.done() or ends.done()):
            if (event := state["seen"] + 1) <= _current():
                await deliver(event, event <= now)
                state["seen"] = event  # not before it has been sent: the next worker goes on behind it
            else:
                pause = event * TICK - time.monotonic()
                await asyncio.wait((gone, ends), timeout=pause, return_when=asyncio.FIRST_COMPLETED)
        return not gone.done()
    finally:
        gone.cancel()
        ends.cancel()


async def _stream_ends(survives: bool) -> None:
    """Wait until this worker retires, unless the connection survives that: as it does all but a stop."""
    while await retiring.wait() != "stop" and survives:
        await retiring.over()


def _current() -> int:
    """The id of the newest event."""
    return int(time.monotonic() / TICK)


async def _disconnected(receive: Receive) -> None:
    """Wait until the client has gone; what it sends until then is ignored."""
    while (await receive())["type"] not in ("http.disconnect", "websocket.disconnect"):
        pass


def _who(scope: Scope) -> dict[str, Any]:
    """Which worker of which generation this is, and which TCP connection: the client's port tells them apart."""
    here, state, now = scope.get("extensions", {}).get("serve", {}), scope.get("state", {}), time.monotonic()
    return {
        "generation": here.get("generation", 0),
        "slot": here.get("slot", 0),
        "pid": state.get("pid", os.getpid()),
        "listener": state.get("listener", os.getppid()),
        "connection": scope["client"][1] if scope.get("client") else None,
        "up": round(now - state.get("started", now), 1),
    }


def _path(scope: Scope) -> str:
    """The path within the application, never empty."""
    return str(scope["path"]).removeprefix(scope.get("root_path", "")) or "/"


def _query(scope: Scope, name: str) -> str:
    values: list[str] = parse_qs(scope["query_string"].decode("latin-1")).get(name, [])
    return values[-1] if values else ""


def _encode(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
