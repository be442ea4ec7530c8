"""Runs an installed server as its user does: `python -P installed_server.py [compiled | pure]`.

With the standard library alone, for an environment that has nothing but the wheel (-P: beside this file lies a folder
`http`). Starts `serve` with the demonstration,
asks one request and the status, stops it, and exits with 1 if something is not as it should be, or if it is the other
core that runs.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

PATIENCE = 60.0
"""Seconds until a server that has not started is a failure."""


def main(expected: str) -> None:
    serve = os.path.join(sysconfig.get_path("scripts"), "serve")
    version = subprocess.run([serve, "--version"], check=True, capture_output=True, text=True).stdout.strip()
    with tempfile.TemporaryDirectory() as place:
        control, log = os.path.join(place, "control"), Path(place, "log")
        command = [serve, "serve_asgi.demo:asgi", "--workers", "2", "--bind", "127.0.0.1:0", "--control", control]
        with log.open("wb") as output:
            server = subprocess.Popen(command, cwd=place, stdout=output, stderr=output)
        try:
            status = when_healthy([serve, "status", "--control", control, "--json"], server)
            with urllib.request.urlopen(status["listening"][0] + "/who", timeout=PATIENCE) as answer:
                who = json.load(answer)
            subprocess.run([serve, "reload", "--control", control], check=True, timeout=PATIENCE)
            status = when_healthy([serve, "status", "--control", control, "--json"], server)
        finally:
            server.send_signal(signal.SIGTERM)
            left = server.wait(PATIENCE)
            print(log.read_text())
    modules = [worker["compiled_modules"] for worker in status["workers"] if worker["state"] == "serving"]
    print(f"{version}\n{who}\ncompiled modules in the workers after a reload: {modules}")
    assert left == 0, left
    assert modules
    assert ("pure Python core" in version) == (not any(modules))
    if expected:
        assert [bool(number) for number in modules] == [expected == "compiled"] * 2, f"not the {expected} core"


def when_healthy(command: list[str], server: subprocess.Popen[bytes]) -> dict[str, Any]:
    """The server's status, as soon as both workers serve."""
    deadline = time.monotonic() + PATIENCE
    while True:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
        if done.returncode == 0:
            found: dict[str, Any] = json.loads(done.stdout)
            if [worker["state"] for worker in found["workers"]] == ["serving", "serving"]:
                return found
        assert server.poll() is None, "the server has ended"
        assert time.monotonic() < deadline, done.stdout + done.stderr
        time.sleep(0.1)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "")
