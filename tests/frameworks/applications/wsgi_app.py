"""A plain WSGI application, one path for each sentence of PEP 3333 that is asked about."""

import json
import os
import sys
import threading
import time


def note(line):
    with open("notes", "a") as notes:
        notes.write(line + "\n")


def plain(start_response, body, status="200 OK"):
    start_response(status, [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


def as_json(start_response, value):
    return plain(start_response, json.dumps(value).encode())


class Lines:
    """An iterable with a `close`, as the PEP has it."""

    def __iter__(self):
        yield b"begun\n"
        while not os.path.exists("enough"):
            yield b"on\n"
            time.sleep(0.02)
        yield b"end\n"

    def close(self):
        note("closed")


class Endless(Lines):
    def close(self):
        note("the endless one is closed")


def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/":
        return as_json(start_response, {"pid": os.getpid()})
    if path.startswith("/environ"):
        return as_json(
            start_response, {name: value for name, value in environ.items() if isinstance(value, (str, bool, tuple))}
        )
    if path == "/read":
        content = environ["wsgi.input"]
        sizes = []
        while piece := content.read(50_000):
            sizes.append(len(piece))
        return as_json(start_response, {"pid": os.getpid(), "sizes": sizes})
    if path == "/lines":
        content = environ["wsgi.input"]
        read = [content.readline().decode(), content.readline(3).decode(), content.readline().decode()]
        return as_json(start_response, [*read, [line.decode() for line in content]])
    if path == "/half":
        try:
            environ["wsgi.input"].read()
        except OSError as error:
            note(f"half: {type(error).__name__}")
            raise
        note("half: taken for the whole")
        return plain(start_response, b"whole")
    if path == "/write":
        write = start_response("200 OK", [("Content-Type", "text/plain")])
        write(b"one ")
        write(b"two ")
        return [b"three"]
    if path == "/large":
        start_response("200 OK", [("Content-Type", "application/octet-stream")])
        return (b"x" * 65536 for _ in range(100))
    if path == "/stream":
        start_response("200 OK", [("Content-Type", "text/plain")])
        return Lines()
    if path.startswith("/pieces/"):  # as many as the path says, and no length
        start_response(environ["QUERY_STRING"] or "200 OK", [("Content-Type", "text/plain")])
        pieces = [b"piece"] * int(path.removeprefix("/pieces/"))
        return {"list": pieces, "tuple": tuple(pieces)}.get(
            environ.get("HTTP_X_KIND", "list"), (each for each in pieces)
        )
    if path == "/endless":
        start_response("200 OK", [("Content-Type", "text/plain")])
        return Endless()
    if path == "/empty":
        start_response("204 No Content", [])
        return []
    if path == "/replaced":
        start_response("200 OK", [("X-First", "yes")])
        try:
            raise ValueError("on purpose")
        except ValueError:
            start_response("503", [("Content-Type", "text/plain")], sys.exc_info())
        return [b"replaced"]
    if path == "/too-late":

        def content():
            yield b"some"
            try:
                raise ValueError("too late")
            except ValueError:
                start_response("500 No", [], sys.exc_info())
            yield b"never sent"

        start_response("200 OK", [("Content-Length", "100")])
        return content()
    if path == "/fail":
        raise ValueError("before")
    if path == "/silent":
        return []
    if path == "/wait":
        note("waiting in " + threading.current_thread().name)
        while not os.path.exists("enough"):
            time.sleep(0.01)
        return plain(start_response, b"waited")
    if path == "/errors":
        print("a line for wsgi.errors", file=environ["wsgi.errors"])
    return plain(start_response, b"nothing", "404 Not Found")


async def asgi_app(scope, receive, send):
    raise AssertionError("never called")


def asgi2_app(scope):
    async def instance(receive, send):
        assert scope["type"] == "http"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"two calls"})

    return instance
