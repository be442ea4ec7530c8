"""The driver whose instructions are counted: every case is answered rightly, by the server and by the floors."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from loadtest.instructions import CALLING, FLOORS, KNOWN, SERVE
from loadtest.servers import PROJECT, search_path


@pytest.mark.parametrize("transport", ["memory", "socket"])
def test_each_case_is_answered(transport: str) -> None:
    servers = (SERVE, *FLOORS)
    jobs = [
        f"{what}:{case.name}:3"
        for case in KNOWN.values()
        for what in servers
        if not (what == CALLING and case.websocket)
    ]
    command = [sys.executable, "-m", "loadtest.instructions_driver", transport, "uvloop", *jobs]
    environment = {**os.environ, "PYTHONPATH": search_path(None)}
    ended = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    *lines, compiled = ended.stdout.splitlines()
    assert [line.split()[1:] for line in lines] == [job.split(":") for job in jobs]
    assert int(compiled) >= 0
