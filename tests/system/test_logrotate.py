"""Under the real logrotate, with the file that people are given: each request has its line in exactly one file."""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from tests.applications import info
from tests.logs.test_access_log import Askers, logged
from tests.running import ROOT, running, until

SLOW_START = "import time\ntime.sleep(0.4)\n"


@pytest.mark.once
@pytest.mark.needs("logrotate")
def test_no_line_is_lost_over_rotations_and_in_a_reload(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(SLOW_START + info())
    logs = tmp_path / "log"
    logs.mkdir(mode=0o755)
    pid = tmp_path / "serve.pid"
    given = (ROOT / "deploy/logrotate/serve").read_text()
    ours = given.replace("/var/log/serve", str(logs)).replace("/run/serve/serve.pid", str(pid))
    file = tmp_path / "serve.logrotate"
    file.write_text(ours.replace("su app app", "su root root" if os.geteuid() == 0 else ""))
    file.chmod(0o644)
    program = shutil.which("logrotate")
    assert program is not None
    command = [program, "--force", "--verbose", "--state", str(tmp_path / "state"), str(file)]

    def rotate() -> None:
        until(lambda: (logs / "access.log").stat().st_size, "a line: they are written once per second")
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
        assert "error:" not in done.stderr

    files = ("--access-log-file", str(logs / "access.log"), "--log-file", str(logs / "serve.log"))
    options = ("--workers", "2", "--pid-file", str(pid), "--access-log-format", "common", *files)
    with running("app:app", *options, directory=tmp_path) as server:
        askers = Askers(server, 3)
        try:
            askers.until(100)
            for _ in range(2):
                rotate()
                askers.until(100)
            reload = threading.Thread(target=server.reload)
            reload.start()
            server.wait_until(lambda status: any(worker["state"] == "starting" for worker in status["workers"]))
            rotate()  # while the new workers import
            reload.join()
            askers.until(100)
            rotate()
            askers.until(100)
        finally:
            askers.stop()
        assert server.stop() == 0
    found = [logged(read(path)) for path in sorted(logs.glob("access.log*"))]
    assert len(found) == 5
    assert all(found), [len(part) for part in found]
    lines = [line for part in found for line in part]
    assert len(lines) == len(set(lines)), "a request has two lines"
    assert set(lines) == askers.answered
    own = "".join(read(path) for path in logs.glob("serve.log*"))
    assert own.count("generation 2 serves") == 1
    assert own.count("] stopped") == 1


def read(path: Path) -> str:
    return gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
