"""What is spoken on the control socket, and where the socket is: shared by the listener and the control command.

One request per connection: a line of JSON `{"version": 1, "command": …}`; the answer is a line of JSON `{"version": 1,
"ok": …, "text": …}`, when the outcome is known. Unknown members are passed over on both sides.
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


def private(directory: Path) -> bool:
    """Whether `directory` is ours alone to write to: nobody else may have put a socket there."""
    try:
        found = directory.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o022


def default_socket(pid: int) -> Path:
    """The path of the control socket of the listener `pid`, in the first directory that can be used.

    Raises OSError if there is none.
    """
    trouble: OSError | None = None
    for directory in runtime_directories():
        try:
            directory.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            trouble = error
            continue
        if private(directory) and os.access(directory, os.W_OK):
            return directory / f"{pid}.sock"
    raise trouble or PermissionError("no runtime directory belongs to this user alone")
