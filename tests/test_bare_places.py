"""Starts where something is missing that nearly every machine has: room on the disk, /proc, standard descriptors."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.applications import info
from tests.running import PATIENCE, ROOT, RunningServer, connect, request, running

ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "SERVE_LOG_FORMAT": "text"}
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts something")


def within(mounts: str, *arguments: str) -> list[str]:
    """A command line that runs another one in a mount namespace of its own."""
    return ["unshare", "-m", "sh", "-c", f'{mounts} && exec "$@"', "sh", *arguments]


@as_root
@pytest.mark.parametrize(
    "options", [("--pid-file", "small/pid"), ("--bind", "unix:small/socket"), ("--state", "small/state")]
)
def test_a_full_disk_at_the_start_is_a_sentence_and_nothing_is_left_there(
    tmp_path: Path, options: tuple[str, str]
) -> None:
    (tmp_path / "app.py").write_text(info("1"))
    (tmp_path / "small").mkdir()
    full = "mount -t tmpfs -o size=8k none small; head -c 99999 /dev/zero 2>&- > small/ballast; test -s small/ballast"
    bind = () if options[0] == "--bind" else ("--bind", "127.0.0.1:0")
    command = [sys.executable, "-m", "serve_asgi", "app:app", *bind, *options]
    script = [*within(full, "sh", "-c", '"$@"; echo status $?; ls -A small', "sh"), *command]
    done = subprocess.run(
        script, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE * 2, check=False
    )
    assert done.stdout == "status 2\nballast\n"
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


@as_root
def test_without_proc_a_server_serves_reloads_and_stops(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(info("1"))
    server = RunningServer("app:app", "--workers", "2", directory=tmp_path, wrapper=within("mount -t tmpfs none /proc"))
    try:
        server.ready()
        with connect(server) as client:
            assert request(client)[0] == 200
            server.reload()
            assert request(client)[0] == 200
        assert all(each["rss"] > 0 for each in server.status()["workers"])
        assert server.stop() == 0
        assert "/proc is not mounted" in server.log()
        assert "Traceback" not in server.log()
    finally:
        server.close()


def test_closed_standard_descriptors(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(info("1"))
    closing = ("sh", "-c", 'exec "$@" 0<&- 1>&- 2>&-', "sh")
    with running("app:app", directory=tmp_path, wrapper=closing) as server:
        with connect(server) as client:
            assert request(client)[0] == 200
        server.reload()
        assert server.stop() == 0
