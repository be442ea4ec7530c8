"""What is spoken on the control socket, and where the socket is: shared by the listener and the control command.

One request per connection: a line of JSON `{"version": 1, "command": …}`; the answer is a line of JSON `{"version": 1,
"ok": …, "text": …}`, when the outcome is known. Before it, to who asks with `"follow": true` (reload, stop, follow), a
line `{"version": 1, "record": {…}}` for each thing that happens (docs/reference/events.md). Unknown members are
passed over on both sides.

- reload: wait (true), follow; the answer's detail is the traceback of what was refused
- reload-listener; drain: off; scale: to; logs-reopen; tls-reload
- stop: delay (s of draining; --drain-delay if not said), follow: then the answer comes when the server has ended, and
  its cut is the number of requests lost since the start
- status, config: the answer's member of that name; stacks: timeout (s), and the same
- schedules: name ("" for all); the answer's schedules
- schedule: do (pause, resume or run), name; the answer to run comes when that has ended, and has its runs
- follow: everything that happens until the end of the server, then cut
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

VERSION: Final = 1
LINE_LIMIT: Final = 4 * 1024 * 1024
"""Bytes in one line; a traceback fits."""


def runtime_directories() -> list[Path]:
    """Where control sockets lie, the best place first: the service manager's, the user's, the system's."""
    places = [os.environ[name] for name in ("RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR") if os.environ.get(name)]
    if os.geteuid() == 0:
        places.append("/run")
    directories = [Path(place.partition(":")[0]) / "serve" for place in places]
    return [*directories, Path(f"/tmp/serve-{os.geteuid()}")]


def private(directory: Path, *, any_owner: bool = False) -> bool:
    """Whether `directory` is its owner's alone to write to, and that is us: nobody else may have put a socket there.

    `any_owner`: it may be another's, as that of a service with a user of its own, if it lies where only root or that
    user can make one; in /run/lock or /tmp it may be anybody's.
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
    """The path of the control socket of the listener `pid`. Raises OSError if there is no directory for it."""
    return runtime_directory() / f"{pid}.sock"


def runtime_directory() -> Path:
    """The first directory that can be used, made if need be. Raises OSError if there is none."""
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
