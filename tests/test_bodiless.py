"""A response without content whose application goes on: what a reload and a stop make of it, with real workers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.running import connect, request, running

APPLICATION = """
import asyncio
import os


async def app(scope, receive, send):
    if scope["type"] != "http":
        raise RuntimeError
    if scope["path"] == "/":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1")]})
        await send({"type": "http.response.body", "body": b"%d" % scope["extensions"]["serve"]["generation"]})
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    while True:
        await send({"type": "http.response.body", "body": b"data: x\\n\\n", "more_body": True})
        if scope["path"] == "/deaf":  # it neither listens nor sends
            await asyncio.Event().wait()
        await asyncio.sleep(0.01)
"""


@pytest.mark.parametrize("path", ["/stream", "/deaf"])
def test_the_connection_travels_and_the_call_has_its_end(tmp_path: Path, path: str) -> None:
    (tmp_path / "app.py").write_text(APPLICATION)
    with running("app:app", "--graceful-timeout", "3", directory=tmp_path) as server, connect(server) as connection:
        connection.sendall(f"HEAD {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 200 ")
        assert request(connection, "/") == (200, b"1")
        assert server.status()["workers"][0]["in_flight"] == 1
        server.reload()
        server.wait_until(lambda _: request(connection, "/") == (200, b"2"))  # in the moment before it travels: b"1"
        if path == "/deaf":  # the old call is not over
            assert [worker["in_flight"] for worker in server.status()["workers"] if worker["generation"] == 1] == [1]
        server.wait_until(lambda status: len(status["generations"]) == 1)
        assert server.logged("worker 0 of generation 1 has ended: 1 connection handed over, 0 requests cut")
        assert ("cut 1 application calls" in server.log()) is (path == "/deaf")
        assert "raised" not in server.log()
        assert request(connection, "/") == (200, b"2")
        assert server.stop() == 0
