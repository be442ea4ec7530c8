"""The protocol of the control socket, and its path: shared by the listener and the commands.

One request per connection: a line of JSON `{"version": 1, "command": …}`; the reply is a line of JSON `{"version": 1,
"ok": …, "text": …}`, when the outcome is known. Before it, if the request has `"follow": true` (reload, rollback, stop,
follow), a line `{"version": 1, "record": {…}}` for each event (docs/reference/events.md). Both sides ignore unknown
members.

- reload: wait (true), follow, who (runs it), deploy (by `serve deploy`); the reply's detail is the traceback of refused
  code
- rollback: wait (true), follow, who
- reload-listener; drain: off; scale: to; logs-reopen; tls-reload
- stop: delay (s of draining; default --drain-delay), follow: then the reply comes when the server has ended, and its
  cut is the number of requests lost since the start
- status, config: the reply's member of that name; stacks: timeout (s), and the same
- deploys: last (how many; default all); the reply's deploys, the newest first
- schedules: name ("" for all); the reply's schedules
- schedule: do (pause, resume or run), name; the reply to run comes when the run has ended, and has its runs
- shared: do (list, get, set, delete or watch), name (the key; of list and watch: a prefix), value (JSON), if_version,
  timeout (s), most (keys); the reply's shared. watch sends a record for each change until the end of the server
- messages: name (a topic; "" for all), most (topics); the reply's messages
- follow: all events until the end of the server, then cut
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

VERSION: Final = 1
LINE_LIMIT: Final = 4 * 1024 * 1024
"""Bytes in one line; a traceback fits."""

DEPLOYING: Final = frozenset({"reload", "rollback"})
"""Commands that lead to a deploy: the request says who runs it."""


def runtime_directories() -> list[Path]:
    """The directories for control sockets, the best first: the service manager's, the user's, the system's."""
    places = [os.environ[name] for name in ("RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR") if os.environ.get(name)]
    if os.geteuid() == 0:
        places.append("/run")
    directories = [Path(place.partition(":")[0]) / "serve" for place in places]
    return [*directories, Path(f"/tmp/serve-{os.geteuid()}")]


def private(directory: Path, *, any_owner: bool = False) -> bool:
    """Whether only its owner can write to `directory`, and that is us, so that nobody else can have put a socket there.

    `any_owner`: it may be another user's, such as a service's, if only root or that user can create a directory there,
    unlike in /run/lock or /tmp.
    """
    try:
        found, above = directory.lstat(), directory.parent.stat()
    except OSError:
        return False
    if not stat.S_ISDIR(found.st_mode) or found.st_mode & 0o022:
        return False
    if found.st_uid == os.geteuid():
        return True
    return any_owner and above.st_uid in (0, found.st_uid) and not above.st_mode & 0o022


def default_socket(pid: int) -> Path:
    """The path of the listener `pid`'s control socket. Raises OSError if there is no directory for it."""
    return runtime_directory() / f"{pid}.sock"


def runtime_directory() -> Path:
    """The first usable directory, created if necessary. Raises OSError if there is none."""
    trouble: OSError | None = None
    for directory in runtime_directories():
        try:
            directory.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            trouble = error
            continue
        if private(directory) and os.access(directory, os.W_OK):
            return directory
    raise trouble or PermissionError("no runtime directory belongs to this user alone")
