"""One view that is not async, in three frameworks: it asks other processes by each of the `sync` objects.

Each is a factory: `sync_app:flask --factory --interface wsgi`, `sync_app:starlette --factory`, `sync_app:django …`.
"""

from __future__ import annotations

import asyncio
import os
import threading
from typing import Any

from serve_asgi import messenger, schedule, shared
from serve_asgi.app.messenger import Message

HEARD: list[Any] = []


@messenger.on("news")
def news(message: Message) -> None:
    HEARD.append(message.payload)


@messenger.on("double", thread=True)
def double(message: Message) -> list[Any]:
    shared.sync.incr("doubled")
    return [2 * message.payload, threading.current_thread() is threading.main_thread()]


@messenger.on("wrong")
def wrong(message: Message) -> None:
    shared.sync.incr("never")


@schedule(every="1h", overlap="allow")
def hourly() -> int:
    return shared.sync.incr("hours")


def attempt(do: Any) -> str:
    """What goes wrong with it, as people see it."""
    try:
        return f"no error, but {do()!r}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def calls() -> dict[str, Any]:
    """For a thread of a worker."""
    number = shared.sync.incr("n")
    return {
        "pid": os.getpid(),
        "n": number,
        "read": shared["n"] >= number,
        "updated": shared.sync.update("threads", lambda _: threading.get_ident()) == threading.get_ident(),
        "heard by": messenger.sync.broadcast("news", number),
        "doubled": messenger.sync.call("double", 21),
        "handled": messenger.sync.send_to_any("news", number, ack=True).attempts,
        "schedules": [each["name"] for each in schedule.sync.list()],
        "run": [ran.outcome for ran in schedule.sync.run("hourly")],
        "by loops": [
            asyncio.run(messenger.broadcast("news", 0)),
            asyncio.run(shared.get_authoritative("n")) >= number,
            len(asyncio.run(schedule.list())),
        ],
        "nobody": attempt(lambda: messenger.sync.broadcast("news", object())),
        "on the loop": attempt(lambda: messenger.sync.call("wrong")),
    }


def forked() -> list[str]:
    """What a child of a worker is told."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            told = [attempt(lambda: shared.sync.incr("n")), attempt(lambda: asyncio.run(messenger.broadcast("news")))]
            os.write(writing, "\n".join(told).encode())
        finally:
            os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with open(reading) as pipe:
        return pipe.read().splitlines()


def hold() -> None:
    """Wait for what takes longer than the worker has, and write down how that ended."""
    with open("held", "w") as file:
        file.write(attempt(lambda: messenger.sync.call("hold", timeout=60)))


@messenger.on("hold")
async def held(message: Message) -> None:
    os.mkdir("holds")
    await asyncio.sleep(60)


def flask() -> Any:
    from flask import Flask

    app = Flask(__name__)
    app.get("/calls")(calls)
    app.get("/forked")(forked)
    app.get("/hold")(hold)
    return app


def starlette() -> Any:
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    def view(request: Any) -> JSONResponse:
        return JSONResponse(calls())

    return Starlette(routes=[Route("/calls", view)])


def django() -> Any:
    from django.conf import settings
    from django.core.asgi import get_asgi_application
    from django.http import HttpRequest, JsonResponse
    from django.urls import path

    def view(request: HttpRequest) -> JsonResponse:
        return JsonResponse(calls())

    class Urls:
        urlpatterns = (path("calls", view),)

    settings.configure(ALLOWED_HOSTS=["*"], ROOT_URLCONF=Urls, SECRET_KEY="none", USE_TZ=True)
    return get_asgi_application()
