"""What deploy/ says, carried out in a directory of the test: its files with the paths and ports that the test has."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from serve_asgi.cli import control_client
from tests.running import ROOT

DEPLOY = ROOT / "deploy"

SERVE = """\
#!/bin/sh
export PYTHONPATH={root}
exec {python} -m serve_asgi "$@"
"""


def put_serve(directory: Path) -> Path:
    """The `serve` command of an environment, for this checkout and interpreter; the PID stays that of the script."""
    command = directory / "serve"
    directory.mkdir(parents=True, exist_ok=True)
    command.write_text(SERVE.format(root=ROOT, python=sys.executable))
    command.chmod(0o755)
    return command


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
