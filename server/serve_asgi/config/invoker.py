"""Who runs this program: the user, and the program that started it, for the record of who has deployed what.

A user's name may come from a directory service, which may not respond: commands look it up for themselves, and so does
the listener at its start; never while it serves.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping
from pathlib import Path
from typing import Final

_PASSED_OVER: Final = frozenset(
    {"sudo", "doas", "su", "runuser", "setpriv", "env", "nohup", "timeout", "nice", "setsid"}
)
"""Programs that only start another one."""
_SHELLS: Final = frozenset({"sh", "bash", "dash", "ash", "zsh", "fish"})
_MOST_PARENTS: Final = 10
LONGEST: Final = 100
"""Most characters of each part."""


def invoker(environment: Mapping[str, str] = os.environ, pid: int = 0) -> str:
    """The user and the parent program of this process, or of the process `pid`: "alice, from make".

    Who used sudo(8) or doas(1) is named as well: "root (alice), from bash". What cannot be told is left out.
    """
    user = _user(os.geteuid())
    behind = environment.get("SUDO_USER") or environment.get("DOAS_USER") or ""
    if behind and behind != user:
        user += f" ({behind[:LONGEST]})"
    parent = _parent(pid or os.getpid())
    return user + (f", from {parent}" if parent else "")


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name[:LONGEST]
    except KeyError:
        return f"user {uid}"


def _parent(pid: int) -> str:
    """The nearest ancestor that does not merely start another program; "" if /proc does not tell (proc(5))."""
    for _ in range(_MOST_PARENTS):
        pid = _parent_pid(pid)
        if not pid:
            break
        name, arguments = _name(pid), _arguments(pid)
        if name in _PASSED_OVER or (name in _SHELLS and "-c" in arguments[1:2]):
            continue
        return name
    return ""


def _parent_pid(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return 0


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()[:LONGEST]
    except OSError:
        return ""


def _arguments(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")
    except OSError:
        return []
