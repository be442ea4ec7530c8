"""What only some need is missed by nobody else, and a sentence says so where it is needed: rich, prometheus-client.

They are hidden from every process by a module that Python imports at its start (sitecustomize, see `site`).
"""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from tests.applications import info
from tests.running import PATIENCE, ROOT, connect, request, running

HIDING = """
import sys
from importlib.machinery import PathFinder


class Hiding(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] in ("rich", "prometheus_client"):
            return None
        return super().find_spec(name, path, target)


sys.meta_path[:] = [Hiding if finder is PathFinder else finder for finder in sys.meta_path]
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "hiding").mkdir()
    (tmp_path / "app.py").write_text(info())
    (tmp_path / "hiding" / "sitecustomize.py").write_text(HIDING)
    return {"PYTHONPATH": f"{tmp_path / 'hiding'}:{ROOT}"}


def test_a_server_is_run_reloaded_and_stopped_without_them(environment: dict[str, str], tmp_path: Path) -> None:
    with running("app:app", directory=tmp_path, environment=environment) as server:
        with connect(server) as connection:
            assert request(connection)[0] == 200
        command = [sys.executable, "-m", "serve_asgi"]
        told = {"cwd": tmp_path, "env": os.environ | environment | {"TERM": "xterm"}, "timeout": PATIENCE}
        terminal, other = pty.openpty()
        reload = subprocess.run([*command, "reload", "--control", server.control], stdout=other, check=False, **told)  # type: ignore[call-overload]
        os.close(other)
        with os.fdopen(terminal, "rb", buffering=0) as shown:
            text = shown.read(65536).decode()
        assert reload.returncode == 0
        assert "\x1b" not in text
        assert "reload: generation 2 starts" in text
        top = subprocess.run(
            [*command, "top", "--control", server.control], capture_output=True, text=True, check=False, **told
        )  # type: ignore[call-overload]
        assert (top.returncode, top.stderr) == (2, "serve: `serve top` needs the package rich: pip install rich\n")
        stop = subprocess.run([*command, "stop", "--control", server.control], capture_output=True, check=False, **told)  # type: ignore[call-overload]
        assert stop.returncode == 0


def test_the_page_for_operators_says_what_it_needs(environment: dict[str, str], tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "serve_asgi",
            "app:app",
            "--admin",
            "127.0.0.1:0",
            "--bind",
            "127.0.0.1:0",
        ],
        cwd=tmp_path,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 2
    assert "--admin needs the package prometheus-client: pip install prometheus-client" in done.stderr
