"""Which core runs, compiled or pure Python: that it is said truly, and that the pure one can be asked for."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

import serve_asgi
from serve_asgi import compiled_core
from serve_asgi.cli import control_client, status
from tests.running import RunningServer, running

PACKAGE = Path(serve_asgi.__file__).parent
APPLICATION = "async def asgi(scope, receive, send): ...\n"
EXPECTED = os.environ.get("TEST_CORE")
"""What tests/run.py has installed: "compiled" or "pure"."""


def test_these_tests_run_the_core_that_they_are_meant_to_run() -> None:
    importlib.import_module("serve_asgi.worker.worker")
    found = [compiled_core.installed_modules() > 0, compiled_core.loaded_modules() > 0]
    assert found == ([EXPECTED == "compiled"] * 2 if EXPECTED else [found[0]] * 2)


def cores(server: RunningServer) -> list[str]:
    return [compiled_core.core(worker["compiled_modules"]) for worker in server.workers("serving")]


@pytest.mark.parametrize("options", [(), ("--preload",)], ids=["exec", "preload"])
@pytest.mark.parametrize("pure", ["0", "1"])
def test_workers_say_which_core_they_run_and_keep_it(
    tmp_path: Path, options: tuple[str, ...], pure: str, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = compiled_core.core(0 if pure == "1" else compiled_core.installed_modules())
    (tmp_path / "app.py").write_text(APPLICATION)
    with running("app:asgi", *options, directory=tmp_path, environment={"SERVE_ASGI_PURE_PYTHON": pure}) as server:
        assert cores(server) == [expected]
        server.reload()
        assert cores(server) == [expected]
        control_client.ask(server.control, "reload", listener=True)
        assert cores(server) == [expected]
        assert status.status(str(server.control), "", as_json=False) == 0
        assert f"serve {serve_asgi.__version__} ({expected} core), PID {server.pid}" in capsys.readouterr().out


def test_the_pure_modules_are_imported_although_compiled_ones_lie_beside_them(tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "serve_asgi", ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    (tmp_path / "serve_asgi" / f"errors{EXTENSION_SUFFIXES[0]}").write_bytes(b"no library")

    def imported(pure: str) -> str:
        program = (
            "from serve_asgi import compiled_core; print(compiled_core.installed_modules()); import serve_asgi.errors"
        )
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path), "SERVE_ASGI_PURE_PYTHON": pure}
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=tmp_path)
        return done.stdout.strip() + " " + done.stderr.strip().rpartition("\n")[2].partition(":")[0]

    assert imported("1") == "0 "
    assert imported("0") == imported("") == "1 ImportError"
