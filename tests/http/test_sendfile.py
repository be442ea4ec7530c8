"""http.response.pathsend and http.response.zerocopysend: the file's bytes, in order, framed as announced."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serve_asgi.http.worker_context import Message, Receive, Scope, Send
from serve_asgi.ipc.scoreboard import Cell
from tests.http.http_server import CLOSED, GET, HttpServer, answering, body, start

Serve = Callable[..., HttpServer]
LAST = GET[:-2] + b"Connection: close\r\n\r\n"
SIZES = [0, 1, 1000, 65536, 65537, 5_000_000]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "file"


def content_of(answer: bytes) -> bytes:
    """Whatever the framing."""
    head, _, rest = answer.partition(b"\r\n\r\n")
    if b"transfer-encoding: chunked" not in head:
        return rest
    content = b""
    while True:
        size, _, rest = rest.partition(b"\r\n")
        if size == b"0":
            assert rest == b"\r\n"
            return content
        content += rest[: int(size, 16)]
        assert rest[int(size, 16) :][:2] == b"\r\n"
        rest = rest[int(size, 16) + 2 :]


def pathsend(path: Path | str) -> Message:
    return {"type": "http.response.pathsend", "path": str(path)}


def descriptors() -> int:
    """Open sockets and files of the test; loops open other things when they first need them."""
    count = 0
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            count += os.readlink(f"/proc/self/fd/{fd}").startswith(("socket:", tempfile.gettempdir()))
    return count


@pytest.mark.parametrize("announced", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_path(serve: Serve, file: Path, size: int, announced: bool) -> None:
    file.write_bytes(os.urandom(size))
    headers = [(b"content-length", b"%d" % size)] if announced else []
    server = serve(answering(start(200, *headers), pathsend(file)))
    before = descriptors()
    client = server.connect()
    for _ in range(3):
        client.send(GET)
        status, head, content = client.answer()
        assert (status, content == file.read_bytes(), head.count(b"content-length")) == (200, True, 1)
    client.close()
    server.until(lambda: server.cell(Cell.CONNECTIONS) == 0)
    server.until(lambda: descriptors() == before)


def test_head_request_reads_no_file(serve: Serve, file: Path) -> None:
    file.write_bytes(b"x" * 100_000)
    answer = serve(answering(start(), pathsend(file))).ask(LAST.replace(b"GET", b"HEAD"))
    assert b"content-length: 100000\r\n" in answer
    assert answer.endswith(b"\r\n\r\n")


def test_file_that_has_grown_is_sent_as_announced(serve: Serve, file: Path) -> None:
    file.write_bytes(b"x" * 100_000)
    answer = serve(answering(start(200, (b"content-length", b"99000")), pathsend(file))).ask(LAST)
    assert len(content_of(answer)) == 99_000


@pytest.mark.parametrize("wrong", ["relative", "missing", "directory", "fifo", "shorter", "bytes"])
def test_path_that_cannot_be_sent_is_an_error_of_the_application(serve: Serve, tmp_path: Path, wrong: str) -> None:
    path: Any = {"relative": "file", "directory": str(tmp_path), "bytes": b"/etc/hosts"}.get(wrong, tmp_path / wrong)
    headers = []
    if wrong == "fifo":
        os.mkfifo(path)
    elif wrong == "shorter":
        path.write_bytes(b"x")
        headers = [(b"content-length", b"2")]
    message = {"type": "http.response.pathsend", "path": str(path) if isinstance(path, Path) else path}
    before = descriptors()
    server = serve(answering(start(200, *headers), message))
    assert server.ask(LAST).startswith(b"HTTP/1.1 500 ")
    server.until(lambda: server.cell(Cell.CONNECTIONS) == 0)
    assert descriptors() <= before + 20  # the server's own; counted exactly by test_path


def test_path_after_content_is_an_error(serve: Serve, file: Path) -> None:
    file.write_bytes(b"x")
    answer = serve(answering(start(), body(b"a", more=True), pathsend(file))).ask(LAST)
    assert not answer.endswith(b"0\r\n\r\n")  # visibly cut


@pytest.mark.parametrize("framing", ["length", "chunked", "1.0"])
def test_files_and_content_in_turn(serve: Serve, file: Path, framing: str) -> None:
    """Large files, small ones, parts and bytes: everything in the order in which it was sent."""
    data = os.urandom(3_000_000)
    file.write_bytes(data)
    expected = b"begin" + data + data[10:20] + b"middle" + data[100_000:400_000] + data[:5] + data[5:200_005] + b"end"

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-length", b"%d" % len(expected))] if framing == "length" else []
        await send(start(200, *headers))
        await send(body(b"begin", more=True))
        with file.open("rb") as opened, file.open("rb") as moving:
            zero = {"type": "http.response.zerocopysend", "file": opened, "more_body": True}
            await send({**zero})
            await send({**zero, "offset": 10, "count": 10})
            await send(body(b"middle", more=True))
            await send({**zero, "offset": 100_000, "count": 300_000})
            await send({**zero, "file": moving, "count": 5})
            await send({**zero, "file": moving, "count": 200_000})  # goes on where the file stands
            await send(body(b"end"))

    request = LAST if framing != "1.0" else b"GET / HTTP/1.0\r\n\r\n"
    assert content_of(serve(app).ask(request)) == expected


def test_file_as_the_whole_answer(serve: Serve, file: Path) -> None:
    file.write_bytes(b"y" * 200_000)
    with file.open("rb") as opened:
        app = answering(start(), {"type": "http.response.zerocopysend", "file": opened, "offset": 0})
        answer = serve(app).ask(LAST)
        assert (b"content-length: 200000\r\n" in answer, content_of(answer)) == (True, b"y" * 200_000)
        assert not opened.closed


def test_file_that_shrinks_amid_sending_cuts_the_answer(serve: Serve, file: Path) -> None:
    file.write_bytes(b"x" * 20_000_000)
    server = serve(answering(start(), pathsend(file)))
    client = server.connect(SO_RCVBUF=65536)
    client.send(GET)
    client.read_until(b"\r\n\r\n")
    os.truncate(file, 1000)
    assert len(client.read_to_end()) < 20_000_000


def test_client_that_stops_reading_or_goes_ends_the_sending(serve: Serve, file: Path) -> None:
    file.write_bytes(b"x" * 20_000_000)
    server = serve(answering(start(), pathsend(file)), write_timeout=0.3)
    before = descriptors()
    for leaves in (True, False):
        client = server.connect(SO_RCVBUF=4096)
        client.send(GET)
        client.read_until(b"\r\n\r\n")
        server.until(lambda: server.cell(Cell.IN_FLIGHT) == 1)
        if leaves:
            client.close()
        server.until(lambda: server.cell(Cell.CONNECTIONS) == 0)
        server.until(lambda: server.cell(Cell.IN_FLIGHT) == 0)
        client.close()
    server.until(lambda: descriptors() == before)


def test_slow_reader_gets_the_whole_file_and_others_are_served(serve: Serve, file: Path) -> None:
    file.write_bytes(os.urandom(6_000_000))

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        await send(pathsend(file) if scope["path"] == "/file" else body(b"quick"))

    server = serve(app, write_timeout=1)
    slow, quick = server.connect(SO_RCVBUF=65536), server.connect()
    slow.send(GET.replace(b"/ ", b"/file ") + GET)  # and a pipelined request behind it
    slow.read_until(b"\r\n\r\n")
    got = b""
    while len(got) < 6_000_000:
        got += slow.read(600_000)
        quick.send(GET)
        assert quick.answer()[2] == b"quick"
        server.wait_for(asyncio.sleep(0.05))
    assert got == file.read_bytes()
    assert slow.answer()[2] == b"quick"


@pytest.mark.parametrize("hints", [True, False])
def test_early_hints(serve: Serve, hints: bool) -> None:
    seen: list[bool] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append("http.response.early_hint" in scope["extensions"])
        await send({"type": "http.response.early_hint", "links": [b"</a.css>; rel=preload", b"</b.js>; rel=preload"]})
        await asyncio.sleep(0)
        await send(start())
        await send(body(b"x"))

    answer = serve(app, early_hints=hints).ask(LAST)
    assert seen == [hints]
    if hints:
        assert answer.startswith(
            b"HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\nlink: </b.js>; rel=preload\r\n\r\nHTTP/1.1 200"
        )
        assert b"103" not in serve(app, early_hints=True).ask(b"GET / HTTP/1.0\r\n\r\n")
    else:
        assert answer.startswith(b"HTTP/1.1 500")


def test_hint_that_would_end_a_line_is_refused(serve: Serve) -> None:
    app = answering({"type": "http.response.early_hint", "links": [b"a\r\nb: c"]}, start(), body())
    answer = serve(app, early_hints=True).ask(LAST)
    assert answer.startswith(b"HTTP/1.1 500")
    assert CLOSED in answer


@pytest.mark.parametrize("size", [60_000, 5_000_000])
def test_error_of_a_short_file_ends_the_answer_whatever_follows(serve: Serve, file: Path, size: int) -> None:
    """An application that goes on after the error cannot have the next answer taken for the rest of the file."""
    file.write_bytes(b"x" * size)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start(200, (b"content-length", b"%d" % (size + 1))))
        with file.open("r+b") as opened:
            opened.truncate(size + 1)

            class Shrinking:
                def fileno(self) -> int:
                    return opened.fileno()

                def tell(self) -> int:
                    return 0

                def seek(self, position: int) -> None:  # when its size is known
                    opened.truncate(size)

            with contextlib.suppress(RuntimeError):
                await send({"type": "http.response.zerocopysend", "file": Shrinking(), "more_body": True})
        await send(body())

    client = serve(app).connect()
    client.send(GET)
    client.read_until(b"\r\n\r\n")
    with contextlib.suppress(ConnectionResetError):
        assert client.read_to_end() == b"x" * size


def test_cancelled_file_ends_the_answer_whatever_follows(serve: Serve, file: Path) -> None:
    size = 20_000_000
    file.write_bytes(b"x" * size)
    cancelled = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start(200, (b"content-length", b"%d" % size)))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(send(pathsend(file)), 0.05)
        await send(body())
        cancelled.set()

    server = serve(app)
    client = server.connect(SO_RCVBUF=4096)
    client.send(GET)
    server.wait_for(asyncio.wait_for(cancelled.wait(), 5))
    client.read_until(b"\r\n\r\n")
    assert len(client.read_to_end()) < size


@pytest.mark.parametrize("half_closed", [True, False])
def test_client_that_goes_is_no_error_of_the_application(
    serve: Serve, file: Path, half_closed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    file.write_bytes(b"x" * 20_000_000)
    server = serve(answering(start(), pathsend(file)))
    client = server.connect(SO_RCVBUF=4096)
    client.send(GET)
    if half_closed:
        client.end()
    client.read_until(b"\r\n\r\n")
    server.until(lambda: server.connection().output.file_left > 0 and server.connection().eof is half_closed)
    client.close()
    server.until(lambda: server.cell(Cell.IN_FLIGHT) == 0)
    assert caplog.text == ""


def test_nothing_is_held_behind_the_head_of_a_file(serve: Serve, file: Path) -> None:
    """What is held when the answer is over would keep the connection from leaving."""
    file.write_bytes(b"x")
    server = serve(answering(start(), pathsend(file)))
    client = server.connect()
    client.send(GET.replace(b"GET", b"HEAD"))
    client.read_until(b"\r\n\r\n")
    server.until(lambda: server.connection().output._held_size == 0)


def test_file_is_sent_without_a_descriptor_to_spare(serve: Serve, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_bytes(os.urandom(3_000_000))

    def dup(fd: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    client = serve(answering(start(), pathsend(file))).connect()
    monkeypatch.setattr(os, "dup", dup)
    client.send(GET)
    assert client.answer()[2] == file.read_bytes()
