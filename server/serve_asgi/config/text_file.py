"""Reading a file that people write by hand: configuration, environment.

Whatever stands in the file's place, reading it neither waits nor takes all memory: a reload reads it in a process that
must not stop turning.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

LARGEST: Final = 1 << 20
"""Bytes; nobody writes more by hand."""


def read_small(path: str) -> str:
    """The text of a file, UTF-8 with or without a byte order mark. Raises OSError or UnicodeDecodeError."""
    # O_NONBLOCK for a named pipe, which would be waited for; O_NOCTTY for a terminal.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    mode = os.fstat(descriptor).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISCHR(mode)):  # what is read again at a reload must be there again
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file", path)
    with open(descriptor, "rb") as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise OSError(errno.EFBIG, f"it is larger than {LARGEST >> 20} MiB", path)
    return content.decode("utf-8-sig")
