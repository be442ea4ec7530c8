"""How many files the processes have open, and may have (proc(5)): a worker without a free one accepts nothing.

It is looked up when somebody asks, so that it costs the workers nothing. It must not know metrics.
"""

from __future__ import annotations

import os
import re
from typing import Final

_LIMIT: Final = re.compile(rb"^Max open files\s+(\d+)", re.MULTILINE)


def open_files(pid: int) -> tuple[int, int] | None:
    """The number of open descriptors of a process, and its limit (RLIMIT_NOFILE); None if /proc does not tell."""
    directory = f"/proc/{pid}/fd"
    try:
        # Its size is the number of entries since Linux 6.2, and 0 before.
        number = os.stat(directory).st_size or len(os.listdir(directory))
        with open(f"/proc/{pid}/limits", "rb") as limits:
            found = _LIMIT.search(limits.read())
    except OSError:
        return None
    return None if found is None else (number, int(found[1]))
