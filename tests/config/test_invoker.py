"""Who runs a program is told by its user and by the program that started it."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from serve_asgi.config.invoker import _arguments, _name, invoker

TELL = "from serve_asgi.config.invoker import invoker; print(invoker())"
PYTHON = Path(sys.executable)


def told(*before: str, **environment: str) -> str:
    kept = {name: text for name, text in os.environ.items() if name not in ("SUDO_USER", "DOAS_USER")}
    command = [*before, sys.executable, "-c", TELL]
    done = subprocess.run(command, env=kept | environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_user_and_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Path("/proc/self/comm").read_text().strip()
    user, _, program = told().partition(", from ")
    assert user
    assert program == own
    assert told(SUDO_USER="alice") == f"{user} (alice), from {own}"
    assert told(SUDO_USER=user) == f"{user}, from {own}"
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)
    assert invoker({}).startswith(f"user {os.geteuid()}")


def test_those_of_this_process() -> None:
    program = invoker({}).partition(", from ")[2]
    assert program  # that of an ancestor, whichever has started the tests
    assert " (alice)" in invoker({"SUDO_USER": "alice"})


def test_programs_that_only_start_others_are_passed_over() -> None:
    own = Path("/proc/self/comm").read_text().strip()
    assert told("timeout", "60").endswith(f", from {own}")
    assert told("sh", "-c", '"$@"; exit', "sh").endswith(f", from {own}")  # two processes: the shell waits


def test_a_process_that_is_gone_has_no_parent() -> None:
    assert ", from" not in invoker({}, pid=2**22 + 1)
    assert (_name(2**22 + 1), _arguments(2**22 + 1)) == ("", [])
