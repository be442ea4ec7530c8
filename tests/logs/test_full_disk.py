"""A disk that is full over a reload: what a worker could not write is counted, and no line is glued to another."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

import pytest

from serve_asgi.logs.log_file import LogFile
from tests.running import RunningServer, connect, request, running

SMALL = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=256k none "$0" && exec "$@"']
FAILING = """
async def app(scope, receive, send):
    assert scope["type"] != "lifespan"
    raise ValueError("x" * 3000)
"""


def fail(server: RunningServer, times: int) -> None:
    for _ in range(times):
        with contextlib.closing(connect(server)) as client:
            assert request(client, "/")[0] == 500


@pytest.mark.once
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk")
def test_lines_that_end_with_their_worker_are_counted(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(FAILING)
    disk = tmp_path / "disk"
    disk.mkdir()
    options = ("--log-file", str(disk / "server.log"), "--log-format", "json", "--no-access-log")
    with running("app:app", *options, directory=tmp_path, wrapper=[*SMALL, str(disk)]) as server:
        seen = Path(f"/proc/{server.pid}/root{disk}")
        fail(server, 1)
        with contextlib.suppress(OSError), (seen / "filler").open("wb", buffering=0) as filler:
            while True:
                filler.write(b"x" * 4096)
        fail(server, 8)
        server.reload()
        server.wait_until(lambda status: len(status["generations"]) == 1)
        lost = server.status()["totals"]["dropped_output"]
        assert lost > 3000
        (seen / "filler").unlink()
        fail(server, 2)
        records = [json.loads(line) for line in (seen / "server.log").read_text().splitlines()]
        failures = sum("x" * 3000 in json.dumps(each) for each in records)
        assert failures >= 3
        assert (11 - failures) * 3000 < lost
        assert server.stop() == 0


def test_half_a_line_is_ended_by_whoever_opens_the_file(tmp_path: Path) -> None:
    path = tmp_path / "log"
    for before, after in ((b"", b"new\n"), (b"half", b"half\nnew\n"), (b"whole\n", b"whole\nnew\n")):
        path.write_bytes(before)
        log = LogFile(str(path))
        log.write(b"new\n")
        assert path.read_bytes() == after
        log.sink.close()
