"""Spans of OpenTelemetry for requests, WebSockets and reloads (--opentelemetry on; docs/guides/tracing.md).

An ASGI application in front of the real one, so that those who do not use it pay nothing. Only opentelemetry-api is
used: which spans are kept, and where they go, is the application's, which sets up the SDK. Names and attributes are
those of the semantic conventions for HTTP spans (https://opentelemetry.io/docs/specs/semconv/http/http-spans/, stable
since 1.23), and the context comes with the request in whatever form the application's propagators read.
"""

from __future__ import annotations

import importlib
import logging
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

import anyio
import anyio.to_thread

from serve_asgi import __version__
from serve_asgi.errors import UsageError
from serve_asgi.http.worker_context import ASGIApplication, Message, Receive, Scope, Send
from serve_asgi.logs.server_log import about

if TYPE_CHECKING:
    from opentelemetry.trace import Span

METHODS: Final = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"})
"""Other methods are `_OTHER`, so that a client cannot make up names of spans."""
PROVIDERS: Final = (
    ("opentelemetry.trace", "get_tracer_provider"),
    ("opentelemetry.metrics", "get_meter_provider"),
    ("opentelemetry._logs", "get_logger_provider"),
)
"""What collects in the background, and is to send all of it before the process ends."""

log = logging.getLogger("serve")


class TracedApplication:
    """The application in front of `app`."""

    def __init__(self, app: ASGIApplication, generation: int, slot: int) -> None:
        """Raises UsageError if opentelemetry-api is not installed."""
        try:
            from opentelemetry import propagate, trace
        except ImportError:
            raise UsageError(
                "--opentelemetry needs the package opentelemetry-api: pip install opentelemetry-api (and, for the "
                "application to send its spans somewhere, opentelemetry-sdk with an exporter)"
            ) from None
        self._app = app
        self._trace = trace
        self._extract: Callable[[dict[str, str]], Any] = propagate.extract
        self._tracer = trace.get_tracer("serve_asgi", __version__)
        self._server = {"serve.generation": generation, "serve.slot": slot}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Called as ASGI has it."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers: dict[str, str] = {}
        for name, value in scope["headers"]:
            key = name.decode("latin-1")
            headers[key] = f"{headers[key]},{value.decode('latin-1')}" if key in headers else value.decode("latin-1")
        method = scope.get("method", "GET")
        known = method if method in METHODS else "_OTHER"
        with self._tracer.start_as_current_span(
            "HTTP" if known == "_OTHER" else known,
            context=self._extract(headers),
            kind=self._trace.SpanKind.SERVER,
            attributes={**_attributes(scope, headers, method, known), **self._server},
            record_exception=True,
            set_status_on_exception=False,
        ) as span:
            response = _TracedResponse(send, span.set_attribute)
            failure = ""
            try:
                await self._app(scope, receive, response.send)
            except BaseException as error:
                failure = type(error).__qualname__
                raise
            finally:
                if span.is_recording():
                    self._finish(span, scope, known, response.status, failure)

    def _finish(self, span: Span, scope: Scope, method: str, status: int, failure: str) -> None:
        """Say what is known at the end: the route that a framework has noted in the scope, and whether it failed."""
        route = getattr(scope.get("route"), "path", None)
        if isinstance(route, str) and route:
            route = scope.get("root_path", "") + route if scope.get("root_path") else route
            span.update_name(f"{'HTTP' if method == '_OTHER' else method} {route}")
            span.set_attribute("http.route", route)
        if failure and not status:
            status = 500
            span.set_attribute("http.response.status_code", status)
        if failure or status >= 500:
            span.set_attribute("error.type", failure or str(status))
            span.set_status(self._trace.StatusCode.ERROR)

    def reload_ended(self, outcome: str, seconds: float, reason: str = "") -> None:
        """A reload has ended just now that was asked for so many seconds ago; an error unless its outcome is done."""
        now = time.time_ns()
        attributes: dict[str, Any] = {**self._server, "serve.reload.outcome": outcome}
        span = self._tracer.start_span("serve.reload", start_time=now - int(seconds * 1e9), attributes=attributes)
        if outcome != "done":
            span.set_status(self._trace.StatusCode.ERROR, reason)
        span.end(now)

    async def flush(self, timeout: float) -> None:
        """Have the application's providers send what they have collected, within `timeout` seconds."""
        with anyio.move_on_after(timeout) as deadline:
            async with anyio.create_task_group() as tasks:
                for force_flush in _flushes():
                    tasks.start_soon(_call, force_flush, int(timeout * 1000))
        if deadline.cancelled_caught:
            text = "what OpenTelemetry has collected had not been sent after %g s (--shutdown-timeout)"
            log.warning(text, timeout, extra=about("traces_lost", seconds=timeout))


class _TracedResponse:
    """`send` of one request, which notes the status."""

    __slots__ = ("_note", "_send", "status")

    def __init__(self, send: Send, note: Callable[[str, Any], None]) -> None:
        self._send = send
        self._note = note
        self.status = 0

    async def send(self, message: Message) -> None:
        kind = message["type"]
        if not self.status and kind in STATUS_OF:
            self.status = STATUS_OF[kind] or message["status"]
            self._note("http.response.status_code", self.status)
        await self._send(message)


STATUS_OF: Final = {
    "http.response.start": 0,
    "websocket.http.response.start": 0,
    "websocket.accept": 101,
    "websocket.close": 403,
}
"""Messages that begin a response, and its status; 0: the message's own."""


def _attributes(scope: Scope, headers: dict[str, str], method: str, known: str) -> dict[str, Any]:
    client, server = scope.get("client"), scope.get("server")
    made: dict[str, Any] = {
        "http.request.method": known,
        "url.scheme": scope["scheme"],
        "url.path": scope["path"],
        "network.protocol.version": scope["http_version"],
    }
    if known != method:
        made["http.request.method_original"] = method
    if query := scope["query_string"]:
        made["url.query"] = query.decode("latin-1")
    if agent := headers.get("user-agent"):
        made["user_agent.original"] = agent
    host, _, port = headers.get("host", "").rpartition(":")
    if host and port.isascii() and port.isdigit() and len(port) < 6:
        made |= {"server.address": host, "server.port": int(port)}
    elif headers.get("host"):
        made["server.address"] = headers["host"]
    elif server is not None:
        made["server.address"] = server[0]
    if client is not None:
        made |= {"client.address": client[0], "client.port": client[1]}
    return made


def _flushes() -> Iterator[Callable[[int], Any]]:
    """The `force_flush` of each provider of the application's that has one."""
    for module, name in PROVIDERS:
        try:
            provider = getattr(importlib.import_module(module), name)()
        except (ImportError, AttributeError):
            continue
        if (force_flush := getattr(provider, "force_flush", None)) is not None:
            yield force_flush


async def _call(force_flush: Callable[[int], Any], milliseconds: int) -> None:
    """Call it in a thread, which is left behind at the deadline."""
    try:
        await anyio.to_thread.run_sync(force_flush, milliseconds, abandon_on_cancel=True)
    except Exception:
        log.exception("what OpenTelemetry has collected could not be sent", extra=about("traces_lost"))
