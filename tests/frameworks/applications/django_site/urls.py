"""Views of each kind: async, in threads, streaming, with files."""

import asyncio
import os
from pathlib import Path

from django.http import FileResponse, HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt


def note(line):
    with open("notes", "a") as notes:
        notes.write(line + "\n")


def stamp(get_response):
    async def middleware(request):
        response = await get_response(request)
        response["X-Stamp"] = "yes"
        return response

    from asgiref.sync import markcoroutinefunction

    markcoroutinefunction(middleware)
    return middleware


stamp.async_capable = True
stamp.sync_capable = False


async def home(request):
    return JsonResponse({"pid": os.getpid()})


def threaded(request):
    """A view of the old kind, with a session."""
    request.session["seen"] = request.session.get("seen", 0) + 1
    return JsonResponse({"pid": os.getpid(), "seen": request.session["seen"], "client": request.META["REMOTE_ADDR"]})


@csrf_exempt
def upload(request):
    file = request.FILES["file"]
    return JsonResponse({"pid": os.getpid(), "name": file.name, "size": sum(len(piece) for piece in file.chunks())})


@csrf_exempt
async def echo(request):
    return HttpResponse(request.body, content_type="application/octet-stream")


async def lines():
    try:
        yield "begun\n"
        while not os.path.exists("enough"):
            yield "on\n"
            await asyncio.sleep(0.02)
        yield "end\n"
    except asyncio.CancelledError:
        note("stream cancelled")
        raise


async def stream(request):
    return StreamingHttpResponse(lines(), content_type="text/plain")


def file(request):
    return FileResponse(Path("file.bin").open("rb"), as_attachment=True, filename="file.bin")


async def slow(request):
    try:
        note("slow begun")
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        note("slow cancelled")
        raise


def fail(request):
    raise ValueError("as it must")


urlpatterns = [
    path("", home),
    path("threaded", threaded),
    path("upload", upload),
    path("echo", echo),
    path("stream", stream),
    path("file", file),
    path("slow", slow),
    path("fail", fail),
]
