"""A Starlette application that sets up OpenTelemetry's SDK; its exporter appends the spans to a file, late."""

import asyncio
import os

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from serve_asgi import after_fork

NEVER = 3600_000

if os.path.exists("bad"):
    raise RuntimeError("this version is no good")


class ToFile(SpanExporter):
    def export(self, spans):
        with open("spans", "a") as file:
            file.write("".join(span.to_json(indent=None) + "\n" for span in spans))
        return SpanExportResult.SUCCESS


def begin():
    provider = TracerProvider(resource=Resource({"service.name": "shop"}), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(ToFile(), schedule_delay_millis=NEVER))
    trace.set_tracer_provider(provider)


if os.environ.get("FORKED"):
    after_fork(begin)
else:
    begin()


async def item(request: Request) -> Response:
    with trace.get_tracer(__name__).start_as_current_span("look up"):
        await asyncio.sleep(0)
    return PlainTextResponse("item")


async def fail(request: Request) -> Response:
    raise RuntimeError("on purpose")


async def socket(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_text("hello")
    await websocket.close()


app = Starlette(
    routes=[Route("/items/{number}", item), Route("/fail", fail), WebSocketRoute("/socket", socket)],
)
