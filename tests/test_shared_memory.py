"""A worker that writes what it likes into the memory that it shares with others. Real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

from tests.running import PATIENCE, ROOT, connect, request, running, until

APPLICATION = """
import gc, os
from serve_asgi.worker.worker import WorkerProcess

def memfds():
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}").startswith(("/memfd:serve-scoreboard", "/memfd:serve-row")):
                yield int(name)
        except OSError:
            pass

def spoil():
    worker = next(each for each in gc.get_objects() if isinstance(each, WorkerProcess))
    refused = []
    for memory in [worker.scoreboard.words, *(row for _, row in worker.others._rows.values())]:
        try:
            memory[0] = 2**64 - 1
        except TypeError as error:
            refused.append(str(error))
    for fd in memfds():
        for size in (0, 1 << 30):
            try:
                os.ftruncate(fd, size)
            except OSError as error:
                refused.append(str(error))
            else:
                refused.append("")
    for cell in range(len(worker.cells)):
        worker.cells[cell] = 2**64 - 2**50
    return refused

async def app(scope, receive, send):
    text = ""
    if scope["path"] == "/spoil":
        text = repr((os.getpid(), spoil()))
    if scope["path"] == "/die":
        os._exit(1)
    start = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(text))]}
    await send(start)
    await send({"type": "http.response.body", "body": text.encode()})
"""


def shown(server_control: Path, command: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "serve_asgi", command, "--control", str(server_control)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_worker_that_spoils_what_it_can_spoils_its_own_counts(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APPLICATION)
    arguments = ("--workers", "2", "--lifespan", "off", "--admin", "127.0.0.1:0", "--worker-timeout", "5")
    with running("app:app", *arguments, directory=tmp_path) as server:
        with connect(server) as client:
            status, body = request(client, "/spoil")
            pid, refused = eval(body)
            assert status == 200
            assert refused, "the neighbour's row at least"
            assert all(refused)
            (admin,) = server.status()["admin"]
            for _ in range(2):
                seen = server.status()
                assert len(seen["workers"]) == 2
                assert all(max(0, each["in_flight"], each["connections"]) < 100 for each in seen["workers"])
                assert seen["totals"]["requests"] < 100
                assert "serving" in shown(server.control, "status")
                page = urllib.request.urlopen(f"{admin}/metrics", timeout=PATIENCE).read().decode()
                assert "serve_requests_total" in page
            client.sendall(b"GET /die HTTP/1.1\r\nhost: test\r\n\r\n")
            assert client.recv(100) == b""
        until(lambda: pid not in server.worker_pids())
        server.wait_for_workers(2)
        assert server.status()["lost"] <= 1
        for _ in range(10):
            with connect(server) as client:
                assert request(client)[0] == 200
        assert until(lambda: 10 <= server.status()["totals"]["requests"] < 100)
        json.dumps(server.status(), allow_nan=False)
        server.reload()
        assert server.stop() == 0
