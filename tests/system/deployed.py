"""What deploy/ says, carried out in a directory of the test: its files with the paths and ports that the test has."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from serve_asgi.cli import control_client
from tests.running import ROOT

DEPLOY = ROOT / "deploy"

PROGRAM = """\
#!/bin/sh
export PYTHONPATH={root}
exec {program} "$@"
"""


def put_programs(directory: Path) -> None:
    """The `python` and `serve` of an environment, for this checkout and interpreter; the script keeps its PID."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, program in (("python", sys.executable), ("serve", f"{sys.executable} -m serve_asgi")):
        script = directory / name
        script.write_text(PROGRAM.format(root=ROOT, program=program))
        script.chmod(0o755)


def example(name: str, **changes: str) -> str:
    """A file of deploy/ with texts replaced; every one of them must be there."""
    text = (DEPLOY / name).read_text()
    return changed(text, changes)


def changed(text: str, changes: dict[str, str]) -> str:
    """The text with each key replaced by its value. Raises AssertionError if one is not there."""
    for old, new in changes.items():
        assert old in text, f"{old!r} is not in the example any more"
        text = text.replace(old, new)
    return text


def generation(control: Path) -> int:
    """The generation that serves; 0 while there is no server."""
    try:
        return int(control_client.ask(control, "status")["status"]["generation"] or 0)
    except Exception:
        return 0


def exists(pid: int) -> bool:
    """Whether a process has this PID."""
    return os.path.exists(f"/proc/{pid}")
