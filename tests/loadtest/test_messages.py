"""The comparison of messages with Redis pub/sub runs, and no message is missing."""

from __future__ import annotations

import subprocess
import sys

import pytest

from loadtest.messages import BOTH, CASES
from tests.running import PATIENCE, ROOT


@pytest.mark.needs("redis-server")
def test_each_case_is_measured_on_both_sides() -> None:
    arguments = ["--seconds", "0.2", "--runs", "1", "--workers", "2", "--tasks", "4"]
    ran = subprocess.run(
        [sys.executable, "-m", "loadtest.messages", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=3 * PATIENCE,
        check=True,
    )
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in ran.stdout.splitlines()[2:]]
    assert len(rows) == len(CASES) + len(BOTH)
    for name, sent, received, *_, missing in rows:
        assert int(sent.replace(",", "")) > 0, name
        assert int(received.replace(",", "")) > 0, name
        assert missing == "0", name
