"""What Python's development mode complains of (-X dev -W error): nothing, in any process of the server."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.applications import info
from tests.running import PATIENCE, ROOT, RunningServer, connect, request

STRICT = {"PYTHONDEVMODE": "1", "PYTHONWARNINGS": "error"}
AGENT = "\nasync def agent():\n    import asyncio\n    await asyncio.Event().wait()\n"
COMPLAINTS = ("ResourceWarning", "unclosed", "Exception ignored", "Traceback")


def clean(text: str) -> None:
    for complaint in COMPLAINTS:
        assert complaint not in text, text


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_a_whole_life(tmp_path: Path, loop: str) -> None:
    (tmp_path / "app.py").write_text(info("1") + AGENT)
    processes = ("--agent", "app:agent", "--admin", "127.0.0.1:0", "--state", str(tmp_path / "state"))
    server = RunningServer(
        "app:app", "--loop", loop, "--workers", "2", *processes, directory=tmp_path, environment=STRICT
    )
    try:
        server.ready()
        with connect(server) as client:
            assert request(client)[0] == 200
            server.reload()
            assert request(client)[0] == 200
        for command in (("status",), ("scale", "1"), ("reload", "--listener"), ("stop",)):
            done = subprocess.run(
                [sys.executable, "-m", "serve_asgi", *command, "--control", str(server.control)],
                env=os.environ | STRICT | {"PYTHONPATH": str(ROOT)},
                capture_output=True,
                text=True,
                timeout=PATIENCE * 2,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            clean(done.stderr)
        assert server.wait() == 0
        clean(server.log())
    finally:
        server.close()


@pytest.mark.parametrize(
    "asked",
    [
        ("app:nothing", "--bind", "127.0.0.1:0", "--pid-file", "pid", "--admin", "127.0.0.1:0"),
        ("app:app", "--bind", "127.0.0.1:0", "--state", "/nonexistent/state"),
        ("app:app", "--bind", "127.0.0.1:0", "--bind", "unix:/nonexistent/socket"),
        ("app:app", "--bind", "127.0.0.1:0", "--agent", "app:nothing"),
    ],
)
def test_a_start_that_is_refused(tmp_path: Path, asked: tuple[str, ...]) -> None:
    (tmp_path / "app.py").write_text(info("1"))
    done = subprocess.run(
        [sys.executable, "-m", "serve_asgi", *asked, "--no-control-socket"],
        cwd=tmp_path,
        env=os.environ | STRICT | {"PYTHONPATH": str(ROOT), "SERVE_LOG_FORMAT": "text"},
        capture_output=True,
        text=True,
        timeout=PATIENCE * 2,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    clean(done.stderr)
