"""The admin page as an ordinary ASGI application, which ends its streams when its worker retires.

    /             the page
    /metrics all metrics for Prometheus (text, or OpenMetrics if requested)
    /events server-sent events: the past, once; then a sample each second, and events
    /status.json the current state
    /samples.json the samples of the last ten minutes, for `serve top`
    /healthz whether the server should be given traffic: 200 or 503; with ?live whether it is there at all
    /-/healthy handled by the server itself (--health-path)

The page loads nothing from any other host.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from importlib.resources import files
from typing import Any, Final

from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import CollectorRegistry

from serve_asgi import retiring
from serve_asgi.admin.metrics import registry, silence
from serve_asgi.admin.samples import MetricSamples
from serve_asgi.admin.server_view import ServerView
from serve_asgi.ipc.health_verdict import HEALTHY, judge

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

RETRY: Final = 1000
"""Milliseconds after which a page reconnects when its stream has ended."""
HERE: Final = files("serve_asgi.admin") / "page"
PAGES: Final = {
    path: (HERE.joinpath(name).read_bytes(), kind)
    for path, name, kind in (
        ("/", "index.html", "text/html; charset=utf-8"),
        ("/page.css", "page.css", "text/css; charset=utf-8"),
        ("/charts.js", "charts.js", "text/javascript; charset=utf-8"),
        ("/hub.js", "hub.js", "text/javascript; charset=utf-8"),
        ("/events.js", "events.js", "text/javascript; charset=utf-8"),
        ("/format.js", "format.js", "text/javascript; charset=utf-8"),
        ("/page.js", "page.js", "text/javascript; charset=utf-8"),
    )
}
ONLY_OURSELVES: Final = (
    (
        b"content-security-policy",
        b"default-src 'self'; img-src data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    ),
    (b"x-frame-options", b"DENY"),
    (b"x-content-type-options", b"nosniff"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
)
"""Headers of every response: no other site may embed, read or sniff it."""
JSON: Final = "application/json"


class Application:
    """The application; the admin process sets `samples` before the first request."""

    samples: MetricSamples
    only_local = False
    """Whether it is bound to loopback addresses, so that only this machine's own names are accepted as Host."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request (ASGI 3)."""
        path = str(scope["path"])
        samples = self.samples
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close"})
        elif self.only_local and not local_name(host := header(scope, b"host")):
            text = f"{host!r} is not a name of this machine: use 127.0.0.1 or localhost, also behind a proxy\n"
            await answer(scope, send, text.encode(), "text/plain; charset=utf-8", 421)
        elif path not in PAGES and path not in ("/metrics", "/status.json", "/samples.json", "/events", "/healthz"):
            await answer(scope, send, b"There is nothing here; the page is at /\n", "text/plain; charset=utf-8", 404)
        elif scope["method"] not in ("GET", "HEAD"):
            await answer(
                scope, send, b"Only GET and HEAD\n", "text/plain; charset=utf-8", 405, (b"allow", b"GET, HEAD")
            )
        elif path in PAGES:
            await answer(scope, send, *PAGES[path])
        elif path == "/metrics":
            write, kind = encoder(header(scope, b"accept"))
            await answer(scope, send, write(registry(samples.view)), kind)
        elif path == "/samples.json":
            await answer(scope, send, encoded(list(samples.kept)), JSON)
        elif path == "/healthz":
            found = health(samples.view)
            live = b"live" in scope["query_string"].split(b"&")
            await answer(scope, send, encoded(found), JSON, 200 if live or found["status"] == HEALTHY else 503)
        elif path == "/status.json":
            view = samples.view
            present = {
                **about(view),
                **samples.now(),
                "reloads": list(view.reloads),
                "deploys": view.deploys,
                "hub": view.hub,
            }
            await answer(scope, send, encoded(present), JSON)
        else:
            await events(scope, receive, send, samples)


application: Final = Application()


def header(scope: Scope, name: bytes) -> str:
    """The value of a request header, or ""."""
    return b",".join(value for each, value in scope["headers"] if each == name).decode("latin-1")


def local_name(host: str) -> bool:
    """Whether the host is a name of this machine.

    Another site whose name resolves to 127.0.0.1 (DNS rebinding) is requested by that site's name.
    """
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    name = name.strip("[]").lower().removesuffix(".")
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(name)
        return True
    return name in ("", "localhost", socket.gethostname().lower()) or name.endswith(".localhost")


def encoder(accepted: str) -> tuple[Callable[[CollectorRegistry], bytes], str]:
    """The metrics encoder and content type for an Accept header; text if it is invalid."""
    try:
        return choose_encoder(accepted)
    except (TypeError, ValueError):  # an invalid version
        return choose_encoder("")


def about(view: ServerView) -> dict[str, Any]:
    """What does not change during the server's life."""
    told = view.about
    return {
        **{name: told[name] for name in ("version", "pid", "app", "started")},
        "host": socket.gethostname(),
        "listening": [each["name"] for each in told["listening"]],
    }


def health(view: ServerView) -> dict[str, Any]:
    """What /healthz says; its `status` is "ok" if the server as a whole should be given traffic, else the reason.

    As the health path of the workers (`serve_asgi.http.health`), and also where no worker could answer.
    """
    reading, state = view.reading(), view.state
    verdict = judge(
        state["state"],
        draining=bool(reading.draining_since),
        agent_missing=bool(state.get("agent_required") and state.get("agent_missing")),
        workers=[
            (worker["state"], None if words is None else silence(words, reading.at))
            for worker in state["workers"]
            for words in [reading.rows.get(worker["row"])]
        ],
    )
    return {
        "status": verdict.status,
        "generation": state["generation"],
        "workers": verdict.serving,
        "blocked": verdict.blocked,
        "size": state["size"],
    }


async def answer(
    scope: Scope, send: Send, body: bytes, kind: str, status: int = 200, *more: tuple[bytes, bytes]
) -> None:
    """Send a whole response; never cached, since a new release may have a new page."""
    headers = [
        (b"content-type", kind.encode()),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-store"),
        *ONLY_OURSELVES,
        *more,
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


async def events(scope: Scope, receive: Receive, send: Send, samples: MetricSamples) -> None:
    """Server-sent events until the client has gone or the process exits; a slow client misses no sample."""
    headers = [
        (b"content-type", b"text/event-stream"),
        (b"cache-control", b"no-store"),
        (b"x-accel-buffering", b"no"),
        *ONLY_OURSELVES,
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    if scope["method"] == "HEAD":
        await send({"type": "http.response.body"})
        return
    gone = asyncio.create_task(disconnected(receive))
    retires = asyncio.create_task(retiring.wait())
    try:
        await stream(send, samples, {gone, retires})
    finally:
        gone.cancel()
        retires.cancel()
    if not gone.done():
        await send({"type": "http.response.body"})


async def stream(send: Send, samples: MetricSamples, ends: set[asyncio.Task[Any]]) -> None:
    """Send the past, then samples and events, until one of `ends` is done."""
    view = samples.view
    number, recorded = samples.taken, view.recorded
    first = {
        "about": about(view),
        "samples": list(samples.kept),
        "records": list(view.records),
        "reloads": list(view.reloads),
        "deploys": (deploys := view.deploys),
        "hub": (hub := view.hub),
        "now": samples.now(),
    }
    await send(event("hello", first, b"retry: %d\n" % RETRY))
    while not any(each.done() for each in ends):
        news = asyncio.create_task(samples.next())
        await asyncio.wait({news, *ends}, return_when=asyncio.FIRST_COMPLETED)
        news.cancel()
        if (missed := min(view.recorded - recorded, len(view.records))) > 0:
            await send(event("happened", {"records": list(view.records)[-missed:], "reloads": list(view.reloads)}))
        recorded = view.recorded
        if samples.taken > number:
            sample = {"samples": samples.since(number), "now": samples.now()}
            if view.deploys != deploys:  # unlike the rest, seldom
                sample["deploys"] = deploys = view.deploys
            if view.hub != hub:
                sample["hub"] = hub = view.hub
            await send(event("sample", sample))
            number = samples.taken


def event(name: str, data: Any, more: bytes = b"") -> Message:
    """One server-sent event."""
    text = b"%bevent: %b\ndata: %b\n\n" % (more, name.encode(), encoded(data))
    return {"type": "http.response.body", "body": text, "more_body": True}


async def disconnected(receive: Receive) -> None:
    """Wait until the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


def encoded(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
