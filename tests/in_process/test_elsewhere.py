"""macOS and Windows, as far as they can be had on Linux: everything that they have not is taken away."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.certificates import Authority
from tests.in_process.portable_modules import PLATFORMS, portable

HERE = Path(__file__).parent
APPLICATION = """
import os
VERSION = {version!r}

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        return
    await send({{"type": "http.response.start", "status": 200, "headers": []}})
    await send({{"type": "http.response.body", "body": VERSION.encode()}})
"""
CHILD = """
import os, sys
if "SERVE_ASGI_IN_PROCESS" in os.environ:
    sys.path.insert(0, {here!r})
    import elsewhere
    elsewhere.become({platform!r})
if {polls}:
    sys.modules["watchfiles"] = None
"""


def command(platform: str, *arguments: str) -> list[str]:
    return [sys.executable, str(HERE / "elsewhere.py"), platform, *arguments]


@pytest.mark.parametrize("platform", PLATFORMS)
def test_everything_is_served_in_process(platform: str, tmp_path: Path) -> None:
    certificate, key = Authority().server("localhost").write(tmp_path)
    told = subprocess.run(
        command(platform, "tests.in_process.everything", str(certificate), str(key)),
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(HERE.parents[1])},
    )
    assert told.returncode == 0, told.stderr
    assert set(json.loads(told.stdout)) <= {*portable(), "serve_asgi"}


class Development:
    """`serve main:app --reload` on another platform."""

    def __init__(self, platform: str, directory: Path, *arguments: str, polls: bool = False) -> None:
        self.log = ""
        self.main = directory / "main.py"
        self.write("1")
        customized = directory / "customized"
        customized.mkdir()
        (customized / "sitecustomize.py").write_text(CHILD.format(here=str(HERE), platform=platform, polls=polls))
        environment = {**os.environ, "PYTHONPATH": f"{customized}:{HERE.parents[1] / 'server'}", "PWD": str(directory)}
        self.process = subprocess.Popen(
            command(platform, "serve_asgi", *arguments),
            cwd=directory,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def write(self, version: str) -> None:
        fresh = self.main.with_suffix(".new")
        fresh.write_text(APPLICATION.format(version=version))
        fresh.replace(self.main)

    def wait_for(self, pattern: str) -> re.Match[str]:
        """The next line with this in it."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.log += line
            if found := re.search(pattern, line):
                return found
        pytest.fail(f"{pattern} was not said:\n{self.log}")

    def served(self) -> str:
        return httpx.get(self.wait_for(r"serving on (http://[\d.:]+)")[1]).text


@contextlib.contextmanager
def developing(platform: str, directory: Path, *arguments: str, polls: bool = False) -> Iterator[Development]:
    started = Development(platform, directory, *arguments, polls=polls)
    try:
        yield started
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.process.pid, signal.SIGKILL)
        started.process.communicate()


@pytest.mark.parametrize(("platform", "polls"), [("darwin", False), ("win32", True)])
def test_a_change_starts_the_server_anew(platform: str, polls: bool, tmp_path: Path) -> None:
    arguments = ("main:app", "--reload", "--port", "0", "--workers", "2")
    with developing(platform, tmp_path, *arguments, polls=polls) as development:
        said = development.wait_for("^serve: this is")
        assert "deploys, workers and `serve reload` need Linux (without effect here: --workers)" in said.string
        development.wait_for("^serve: watching for changes")
        assert development.served() == "1"
        development.write("2")
        assert "main.py has changed" in development.wait_for("has changed").string
        assert development.served() == "2"
        development.main.write_text("def (")
        development.wait_for("SyntaxError")
        development.wait_for("waiting for a change")
        development.write("3")
        assert development.served() == "3"
        development.process.send_signal(signal.SIGTERM)
        assert development.process.wait(20) == 0


def test_without_reload_it_serves_as_well(tmp_path: Path) -> None:
    with developing("darwin", tmp_path, "main:app", "--port", "0") as development:
        assert development.served() == "1"
        development.process.send_signal(signal.SIGINT)
        assert development.process.wait(20) == 0


@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_command_for_a_server_says_what_it_needs(platform: str) -> None:
    told = subprocess.run(command(platform, "serve_asgi", "reload"), capture_output=True, text=True, timeout=60)
    assert (told.returncode, told.stdout) == (2, "")
    assert told.stderr.startswith("serve: `serve reload` controls a server with workers, which needs Linux")
    assert "Traceback" not in told.stderr
