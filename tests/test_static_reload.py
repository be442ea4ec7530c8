"""Static files of a real server over a deploy, over plain HTTP, TLS and HTTP/2: each answer is of one release."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve_asgi.config import release
from serve_asgi.config.options import Config
from serve_asgi.config.release import Release
from tests.h2_client import H2Client
from tests.plain_and_tls import AUTHORITY, addresses, plain, secure, serving_both
from tests.running import PATIENCE, RunningServer

APPLICATION = """
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            event = await receive()
            await send({"type": event["type"] + ".complete"})
            if event["type"] == "lifespan.shutdown":
                return
    await send({"type": "http.response.start", "status": 404, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body"})
"""
SIZE = 16 << 20
"""Bytes of the large file: more than all buffers between server and client hold."""


@pytest.fixture
def current(tmp_path: Path) -> Path:
    """A link to the first of two releases, whose files have the same names and sizes."""
    for name in ("1", "2"):
        public = tmp_path / "releases" / name / "public"
        public.mkdir(parents=True)
        (public / "large.bin").write_bytes(name.encode() * SIZE)
        (public / "small.txt").write_text(name)
        (public.parent / "app.py").write_text(APPLICATION)
    (tmp_path / "current").symlink_to("releases/1")
    return tmp_path / "current"


def switch(current: Path, to: str) -> None:
    beside = current.with_name("new")
    beside.symlink_to(f"releases/{to}")
    beside.rename(current)


def ask(client: socket.socket, path: str, **headers: str) -> None:
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    client.sendall(f"GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n{lines}\r\n".encode())


def head_of(client: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Status, headers, and what has come with them of the content."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = client.recv(4096)
        assert piece, data
        data += piece
    head, _, rest = data.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    return int(first.split()[1]), dict(line.lower().split(": ", 1) for line in lines), rest


def whole(client: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """The same with all of the content."""
    status, found, content = head_of(client)
    parts = [content]
    while piece := client.recv(1 << 18):
        parts.append(piece)
    content = b"".join(parts)
    assert len(content) == int(found["content-length"])
    return status, found, content


def get(server: RunningServer, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    with contextlib.closing(plain(server)) as client:
        ask(client, path, **headers)
        return whole(client)


def replace_workers(server: RunningServer) -> None:
    """Kill each worker, and wait for others in their places."""
    before = server.worker_pids()
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    server.wait_until(lambda _: not set(before) & set(server.worker_pids()))
    server.wait_for_workers(len(before))


@contextlib.contextmanager
def h2(server: RunningServer) -> Iterator[H2Client]:
    client = H2Client.to(addresses(server)["https"], AUTHORITY.client_context())
    with contextlib.closing(client.socket):
        yield client


def test_a_download_outlives_the_reload_and_each_release_has_its_own_files(current: Path) -> None:
    static = ("--static", "/s=public", "--static", f"/link={current}/public")
    options = ("--chdir", str(current), "--graceful-timeout", "60", *static)
    with serving_both(current.parent, *options) as server:
        switch(current, "2")
        replace_workers(server)  # which belong to the first release all the same
        assert [get(server, path)[2] for path in ("/s/small.txt", "/link/small.txt")] == [b"1", b"1"]

        with (
            contextlib.closing(plain(server)) as first,
            contextlib.closing(secure(server)) as second,
            h2(server) as third,
        ):
            for client in (first, second):
                ask(client, "/s/large.bin")
            _, headers, begun = head_of(first)
            stream = third.begin("/link/large.bin")
            third.receive()
            server.signal(signal.SIGHUP)
            server.logged("generation 2 serves")
            assert [get(server, path)[2] for path in ("/s/small.txt", "/link/small.txt")] == [b"2", b"2"]

            rest = [begun]
            while piece := first.recv(1 << 18):
                rest.append(piece)
            assert b"".join(rest) == b"1" * SIZE
            assert whole(second)[::2] == (200, b"1" * SIZE)
            assert third.response(stream) == (200, b"1" * SIZE)

        part = {"range": "bytes=1000-1009", "if_range": headers["etag"]}
        assert get(server, "/s/large.bin", **part)[::2] == (200, b"2" * SIZE)  # no part of another release's
        status, after, content = get(server, "/s/large.bin", if_none_match=headers["etag"])
        assert (status, content) == (200, b"2" * SIZE)
        part["if_range"] = after["etag"]
        assert get(server, "/s/large.bin", **part)[::2] == (206, b"2" * 10)
        with h2(server) as multiplexed:
            assert multiplexed.ask("/s/large.bin", more=[("range", "bytes=-5")]) == (206, b"22222")
            assert multiplexed.ask("/s/small.txt", more=[("if-none-match", "*")]) == (304, b"")
            assert multiplexed.ask("/s/large.bin", "HEAD") == (200, b"")
        with contextlib.closing(secure(server)) as again:
            again.settimeout(PATIENCE)
            ask(again, "/s/large.bin", range="bytes=0-99999")
            assert whole(again)[::2] == (206, b"2" * 100_000)
        assert server.stop() == 0


def test_a_generation_keeps_the_directories_that_its_links_led_to(current: Path) -> None:
    config = Config(app="app:app", chdir=str(current), static=("/s=public", f"/link/={current}/public", "/=/nowhere"))
    found = release.resolve(config, "/")
    switch(current, "2")
    public = f"{current.parent}/releases/1/public"
    assert list(found.resolved(config).static) == [f"/s/={public}", f"/link/={public}", "/=/nowhere"]
    earlier = Release(found.python, found.directory, found.app_dir, {})  # as a program of an earlier version says it
    assert earlier.resolved(config) is config
