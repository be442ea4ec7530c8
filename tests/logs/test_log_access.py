"""Whether a log file can be reopened, by the account that will."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from serve_asgi.config.accounts import own_name
from serve_asgi.logs.log_access import trouble

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")


def test_what_is_there_or_can_be_made_is_no_trouble(tmp_path: Path) -> None:
    (tmp_path / "log").touch()
    assert trouble(("", str(tmp_path / "log"), str(tmp_path / "access"))) == ""
    assert trouble((str(tmp_path),)).startswith(f"the log file {tmp_path} cannot be reopened: Is a directory; ")
    told = trouble(("", f"{tmp_path}/none/log"))
    assert told.startswith(f"the log file {tmp_path}/none/log cannot be reopened: No such file or directory; the old")
    assert f"Let user {own_name()} write it" in told


@needs_root
@pytest.mark.parametrize(
    ("owner", "group", "mode", "may"),
    [
        ("nobody", "root", 0o600, True),
        ("nobody", "root", 0o466, False),  # the owner's bits count, and no others
        ("root", "root", 0o640, False),
        ("root", "nogroup", 0o660, True),
        ("root", "nogroup", 0o646, False),
        ("root", "root", 0o666, True),
    ],
)
def test_the_file_is_for_the_user_of_the_workers(tmp_path: Path, owner: str, group: str, mode: int, may: bool) -> None:
    log = tmp_path / "log"
    log.touch()
    log.chmod(mode)
    numbers = {"root": 0, "nobody": 65534, "nogroup": 65534}
    os.chown(log, numbers[owner], numbers[group])
    assert trouble((str(log),), "65534", "65534") == "" if may else "Permission denied" in trouble((str(log),), "65534")
    assert trouble((str(log),), "root") == ""
