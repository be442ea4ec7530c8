"""Whatever an application raises, wherever it does: the peer gets its end, the log one event, and nobody else notices.

In real processes; thousands of shapes of exceptions are tried in memory (tests/http/test_request_cycle.py).
"""

from __future__ import annotations

import contextlib
import json
import socket
from collections import Counter
from pathlib import Path
from typing import Any, Final

import pytest

from tests.running import PATIENCE, RunningServer, connect, request, running, until

RAISED: Final = {
    "cycle": "error = RuntimeError('own'); error.__context__ = ExceptionGroup('g', [error]); raise error",
    "deep": "error = ValueError('own')\nfor _ in range(2000): error = ExceptionGroup('own', [error])\nraise error",
    "wide": "raise ExceptionGroup('own', [ValueError(n) for n in range(100_000)])",
    "long": "raise ValueError('own' + 'x' * 30_000_000)",
    "hostile": "raise Hostile('own')",
    "cancelled": "raise asyncio.CancelledError('own')",
    "group": "raise BaseExceptionGroup('own', [asyncio.CancelledError(), ValueError()])",
    "exit": "sys.exit('own')",
    "interrupt": "raise KeyboardInterrupt('own')",
    "generator": "raise GeneratorExit('own')",
    "base": "raise Base('own')",
    "recursion": "def own(): own()\nown()",
    "awaited": "await asyncio.create_task(exits())",
    "grouped": "async with asyncio.TaskGroup() as tasks: tasks.create_task(exits())",
}
"""Statements of an async function, by name."""

BEGINNING: Final = """
import asyncio, gc, json, sys, threading

class Base(BaseException): pass

class Hostile(Exception):
    def refuse(self, *given): raise SystemExit('a special method')
    __str__ = __repr__ = __bool__ = __eq__ = __len__ = refuse
    __hash__ = None

async def exits(): sys.exit('own')
"""


def written(indentation: str, statements: str) -> str:
    return "".join(f"{indentation}{line}\n" for line in statements.split("\n"))


def functions(prefix: str, keyword: str = "async def") -> str:
    """A function for each of RAISED, and a dict of them that is called as the prefix."""
    source = "".join(f"{keyword} {prefix}_{name}():\n{written('    ', text)}" for name, text in RAISED.items())
    return source + f"{prefix} = {{{', '.join(f'{name!r}: {prefix}_{name}' for name in RAISED)}}}\n"


def events(server: RunningServer) -> list[dict[str, Any]]:
    """The log, all of which is JSON."""
    return [json.loads(line) for line in server.log().splitlines()]


def named(server: RunningServer, *names: str) -> list[dict[str, Any]]:
    return [line for line in events(server) if line.get("event") in names]


JSON: Final = {"environment": {"SERVE_LOG_FORMAT": "json"}}
LONGEST: Final = 800_000
"""Characters of a line of JSON: an escaped one takes six at most."""

REQUESTS = (
    BEGINNING
    + functions("raised")
    + """
held = asyncio.Event()

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        raise RuntimeError
    if scope["type"] == "websocket":
        await receive()
        _, when, what = scope["path"].split("/")
        if when == "open":
            await send({"type": "websocket.accept"})
        await raised[what]()
    start = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]}
    _, when, what = scope["path"].split("/")
    if when == "held":
        await held.wait()
    if when == "release":
        held.set()
    if when == "later":
        await asyncio.sleep(0.001)
    if when == "begun":
        await send(start)
        await send({"type": "http.response.body", "body": b"o", "more_body": True})
    if when in ("at once", "later", "begun"):
        await raised[what]()
    loop = asyncio.get_running_loop()
    if when == "task":
        asyncio.create_task(raised[what]())
    if when == "callback":
        loop.call_soon(sys.exit, "own")
    if when == "stop":
        loop.stop()
    if when == "thread":
        threading.Thread(target=lambda: 1 / 0).start()
    if when == "del":
        class Thrown:
            def __del__(self): raise ValueError("own")
        Thrown()
    await send(start)
    await send({"type": "http.response.body", "body": b"ok"})
    if when == "after":
        await raised[what]()
"""
)


def whole(connection: socket.socket, target: str, fields: str = "") -> bytes:
    """What a request brings until the connection ends or the answer is whole."""
    connection.sendall(f"GET {target} HTTP/1.1\r\nhost: a\r\n{fields}\r\n".replace("at once", "at%20once").encode())
    data = b""
    while piece := connection.recv(65536):
        data += piece
        if data.endswith((b"\r\n\r\nInternal Server Error", b"\r\n\r\nok", b"\x88\x02\x03\xf3")):
            break
    return data


UPGRADE: Final = (
    "upgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-version: 13\r\n"
    "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_requests(tmp_path: Path, loop: str) -> None:
    """Each kind at each moment; a request that is held meanwhile has its answer, and a reload waits for nothing."""
    (tmp_path / "app.py").write_text(REQUESTS)
    with running("app:app", "--loop", loop, "--graceful-timeout", "300", directory=tmp_path, **JSON) as server:
        pids = server.worker_pids()
        holding = connect(server)
        holding.sendall(b"GET /held/x HTTP/1.1\r\nhost: a\r\n\r\n")
        expected = 0
        for what in RAISED:
            for when, begins in {
                "at once": b"HTTP/1.1 500 ",
                "later": b"HTTP/1.1 500 ",
                "begun": b"HTTP/1.1 200 ",
                "after": b"HTTP/1.1 200 ",
            }.items():
                with connect(server) as connection:
                    data = whole(connection, f"/{when}/{what}")
                assert data.startswith(begins), (what, when)
                assert when != "begun" or data.endswith(b"\r\n\r\no"), (what, when)
                expected += 1
            for when, begins in {"early": b"HTTP/1.1 500 ", "open": b"HTTP/1.1 101 "}.items():
                with connect(server) as connection:
                    data = whole(connection, f"/{when}/{what}", UPGRADE)
                assert data.startswith(begins), (what, when)
                assert when != "open" or data.endswith(b"\x88\x02\x03\xf3"), (what, when)
                expected += 1
        until(
            lambda: len(named(server, "application_failed")) >= expected,
            lambda: Counter(line["path"] for line in named(server, "application_failed")),
        )
        failed = named(server, "application_failed")
        assert len(failed) == expected
        told = {line["path"].rpartition("/")[2] for line in failed if "exception" not in line}
        assert told <= {"awaited", "grouped"}  # whose SystemExit is in the log already
        assert all(
            "own" in line["exception"] for line in failed if "exception" in line and "hostile" not in line["path"]
        )
        assert all(len(line) < LONGEST for line in server.log().splitlines())
        assert [worker["in_flight"] for worker in server.status()["workers"]] == [1]
        assert server.worker_pids() == pids
        with connect(server) as connection:
            assert request(connection, "/release/x")[0] == 200
        holding.settimeout(PATIENCE)
        assert holding.recv(1000).endswith(b"ok")
        holding.close()
        server.reload()
        server.wait_for_workers(1)
        assert server.stop() == 0
        assert named(server, "worker_died", "internal_error", "requests_cut") == []


BACKGROUND: Final = {
    "/callback/x": "SystemExit",
    "/stop/x": "stopped the event loop",
    "/thread/x": "ZeroDivisionError",
    "/del/x": "ValueError",
}


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_the_background(tmp_path: Path, loop: str) -> None:
    """Tasks, callbacks and threads of the application's: one event each, and the worker serves on."""
    (tmp_path / "app.py").write_text(REQUESTS)
    with running("app:app", "--loop", loop, directory=tmp_path, **JSON) as server, contextlib.ExitStack() as closing:
        pids = server.worker_pids()
        connection = closing.enter_context(connect(server))
        for path, said in BACKGROUND.items():
            before = len(named(server, "background_failed"))
            assert request(connection, path)[0] == 200
            until(lambda: len(named(server, "background_failed")) > before, path)  # noqa: B023
            told = named(server, "background_failed")[before:]
            assert len(told) == 1, told
            assert said in told[0]["text"] + told[0].get("exception", "")
        for what in RAISED:
            if what == "cancelled":  # a task that is cancelled has not failed
                continue
            before = len(named(server, "background_failed"))
            assert request(connection, f"/task/{what}")[0] == 200
            until(lambda: len(named(server, "background_failed")) > before, what)  # noqa: B023
        assert request(connection, "/none/x")[0] == 200
        assert server.worker_pids() == pids
        assert server.stop() == 0
        told = named(server, "background_failed")
        assert all(len(line) < LONGEST for line in server.log().splitlines())
        own = [line for line in told if line.get("exception", "").count("sys.exit('own')") > 1]
        assert own == []
        assert named(server, "worker_died", "internal_error", "application_failed") == []


def test_wsgi(tmp_path: Path) -> None:
    """In threads; what only coroutines can do is left out."""
    pytest.importorskip("a2wsgi")
    names = [name for name, text in RAISED.items() if "await" not in text and "async with" not in text]
    source = BEGINNING + "".join(f"def raised_{name}():\n{written('    ', RAISED[name])}" for name in names)
    source += """
def raised_stop(): raise StopIteration('own')

def app(environ, start_response):
    _, when, what = environ["PATH_INFO"].split("/")
    raised = globals()["raised_" + what]
    if when == "first":
        raised()
    start_response("200 OK", [("content-length", "3")])
    if when == "second":
        raised()
    return content(when, raised)

def content(when, raised):
    if when == "third":
        raised()
    yield b"a"
    if when == "fourth":
        raised()
    yield b"ok"
"""
    (tmp_path / "app.py").write_text(source)
    with running("app:app", "--interface", "wsgi", directory=tmp_path, **JSON) as server:
        expected = 0
        for what in [*names, "stop"]:
            for when in ("first", "second", "third", "fourth"):
                if what == "generator" and when in ("third", "fourth"):
                    continue  # that is how a generator is told to end
                with connect(server) as connection:
                    connection.settimeout(PATIENCE)
                    data = whole(connection, f"/{when}/{what}")
                expected += 1
                assert data.startswith(b"HTTP/1.1 200 " if when == "fourth" else b"HTTP/1.1 500 "), (what, when, data)
                assert when != "fourth" or not data.endswith(b"ok")
        until(lambda: len(named(server, "application_failed")) >= expected)
        assert [worker["in_flight"] for worker in server.status()["workers"]] == [0]
        assert server.stop() == 0
        assert len(named(server, "application_failed")) == expected
        assert named(server, "worker_died", "internal_error", "background_failed") == []
