"""The control command's side of the control socket: find the server, ask it, tell the person the truth.

It runs in its own process, waits as long as the server does, and turns every failure into a sentence.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from json import dumps, loads
from pathlib import Path
from typing import Any

from server import control_protocol
from server.errors import StartError, UsageError


class Refused(StartError):
    """The server did not do what was asked; `detail` is the new code's traceback, if that was why."""


def find(control: str = "", pid_file: str = "") -> Path:
    """The control socket: the one named, that of the pid file's server, or that of the only server there is.

    Raises UsageError if there is none, or more than one.
    """
    if control:
        return Path(control)
    directories = [d for d in control_protocol.runtime_directories() if control_protocol.private(d)]
    if pid_file:
        try:
            pid = int(Path(pid_file).read_text())
        except (OSError, ValueError):
            raise UsageError(f"the pid file {pid_file} cannot be read; is the server running?") from None
        found = [path for d in directories if (path := d / f"{pid}.sock").exists()]
        if not found:
            raise UsageError(f"the server with PID {pid} has no control socket here; name it with --control PATH")
        return found[0]
    living = [path for d in directories for path in sorted(d.glob("*.sock")) if _answers(path)]
    if not living:
        raise UsageError("no server was found; name its socket with --control PATH or its pid file with --pid PATH")
    if len(living) > 1:
        names = ", ".join(path.stem for path in living)
        raise UsageError(f"several servers run (PIDs {names}); name one with --control PATH or --pid PATH")
    return living[0]


def ask(path: Path, command: str, **parameters: Any) -> dict[str, Any]:
    """Send one command and wait for its outcome.

    Raises UsageError if the server cannot be reached, Refused if it did not do it or went away meanwhile.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(str(path))
        except OSError as error:
            raise UsageError(f"the server at {path} cannot be reached: {error.strerror or error}") from None
        request = {"version": control_protocol.VERSION, "command": command, **parameters}
        try:
            connection.sendall(dumps(request).encode() + b"\n")
            with connection.makefile("rb") as answers:
                line = answers.readline(control_protocol.LINE_LIMIT)
                if line.endswith(b"\n"):
                    with contextlib.suppress(OSError):
                        answers.read(1)  # its end: nothing of this conversation is left in the listener then
        except OSError:
            line = b""
    if not line.endswith(b"\n"):
        raise Refused("the server went away before it answered; look at its log")
    answer: dict[str, Any] = loads(line)
    if not answer["ok"]:
        raise Refused(answer["text"], answer.get("detail", ""))
    return answer


def reload(control: str = "", pid: str = "") -> int:
    """Reload, wait for the outcome and print it. Raises Refused if the old generation serves on."""
    print(ask(find(control, pid), "reload")["text"])
    return 0


def drain(control: str = "", pid: str = "", off: bool = False) -> int:
    """Put the server in lame duck until told off, or tell it off."""
    print(ask(find(control, pid), "drain", off=off)["text"])
    return 0


def status(control: str = "", pid: str = "", json: bool = False) -> int:
    """Print the server's status (`server.listener.status`), as JSON or for a person."""
    found: dict[str, Any] = ask(find(control, pid), "status")["status"]
    print(dumps(found, indent=2) if json else "\n".join(_lines(found)))
    return 0


def _lines(found: dict[str, Any]) -> Iterator[str]:
    health = "in lame duck until " + found["lame_duck"]["until"] if found["lame_duck"] else "healthy"
    yield f"serve {found['server']}, PID {found['pid']}: {found['state']}, {health}"
    yield f"listening on {', '.join(found['listening'])}"
    reloads = f"{found['reloads']} reloads, {found['failed_reloads']} refused"
    yield f"generation {found['generation']}, {reloads}, {found['totals']['requests']} requests answered"
    if found["last_failure"]:
        yield f"the last reload was refused: {found['last_failure']}"
    for slot, trouble in found["degraded"].items():
        yield f"slot {slot} is empty: {trouble}"
    for worker in found["workers"]:
        yield (
            f"  slot {worker['slot']:<3} generation {worker['generation']:<4} {worker['state']:<9}"
            f" {worker['connections']:>6} connections {worker['in_flight']:>5} in flight"
            f" {worker['requests']:>9} requests {worker['rss'] >> 20:>5} MiB"
        )


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(str(path))
        except OSError:
            return False
        return True
