"""Ensures that compiled code (`.pyc`) matches its source, for a process that runs the application.

Python considers a `.pyc` valid if the source's modification time in whole seconds and its size match (`importlib`,
"Cached bytecode invalidation"). They also match after two saves within one second, and after a deploy that preserves
times (rsync -t, a reproducible build): the old code would keep running. So here:

- What is written has the hash of the bytes that were compiled (PEP 552, "checked"), and cannot be stale.
- One that has only time and size is trusted if the kernel's own change time, which cannot be set back (st_ctime,
  inode(7)), says that it was written after the source's last change.
- Where that cannot be known, since unpacking an image or an archive creates both at once, it is also trusted for
  installed packages and where it could not be rewritten (a read-only file system, another user's directory), unless the
  source has changed since the server was started: compiling all of it at each start would take seconds.
- An unchecked one (PEP 552) is a promise of its creator, and is trusted.

`importlib` is not reimplemented: it reads bytecode through `SourceFileLoader.get_data`, which all ways of importing
share (path hooks, editable installs, `runpy`), and gets a placeholder that matches no source instead of what is not
trusted. It then compiles, and writes the replacement.
"""

from __future__ import annotations

import errno
import importlib.machinery
import importlib.util
import os
import sys
import sysconfig
from typing import Final

HEADER: Final = 16
"""Bytes: the magic number, flags, then either time and size of the source, or its hash (PEP 552)."""
STAND_IN: Final = importlib.util.MAGIC_NUMBER + (0b11).to_bytes(4, "little") + bytes(8)
"""Bytecode with a hash that matches no source: `importlib` compiles the source, and writes one of that kind."""
LATER: Final = 1_000_000_000
"""Nanoseconds that may lie between reading a source and writing its bytecode."""
SEEN: Final = "_serve_seen"
"""Where a loader keeps the status of its source between two calls of `importlib`."""
INSTALLED: Final = frozenset({"site-packages", "dist-packages"})
STANDARD: Final = os.path.join(sysconfig.get_path("stdlib"), "")


def keep_fresh(since: float) -> None:
    """Make this process import what is on the disk. The server was started at `since` (Unix time)."""
    loader = importlib.machinery.SourceFileLoader
    read = loader.get_data
    without = _without_checks()

    def path_stats(self: importlib.machinery.SourceFileLoader, path: str) -> dict[str, float]:
        self.__dict__[SEEN] = status = os.stat(path)  # `importlib` reads the bytecode next
        return {"mtime": status.st_mtime, "size": status.st_size}

    def get_data(self: importlib.machinery.SourceFileLoader, path: str) -> bytes:
        source = self.__dict__.pop(SEEN, None)
        if not _is_bytecode(path, self.path):
            return read(self, path)
        try:
            data, compiled = _read(path)
            if _is_fresh(data, self.path, source or os.stat(self.path), path, compiled, since):
                return data
        except OSError:
            pass
        if without:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), path)
        return STAND_IN

    loader.path_stats = path_stats  # type: ignore[method-assign]
    loader.get_data = get_data  # type: ignore[method-assign, assignment]


def _read(path: str) -> tuple[bytes, os.stat_result]:
    """A file's content and status, of the same file even if it is replaced meanwhile."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        data = os.read(descriptor, status.st_size)
    finally:
        os.close(descriptor)
    if len(data) != status.st_size:
        raise OSError(errno.EIO, os.strerror(errno.EIO), path)
    return data, status


def _without_checks() -> bool:
    """Whether the interpreter checks no hashes (`--check-hash-based-pycs never`), so that none is written."""
    import _imp

    return getattr(_imp, "check_hash_based_pycs", "") == "never"


def _is_bytecode(path: str, source: str) -> bool:
    """Whether `path` is bytecode of `source` (PEP 3147), at any optimization level."""
    stem = os.path.splitext(os.path.basename(source))[0]
    return path.endswith(".pyc") and os.path.basename(path).startswith(f"{stem}.{sys.implementation.cache_tag}")


def _is_fresh(
    data: bytes, path: str, source: os.stat_result, cache: str, compiled: os.stat_result, since: float
) -> bool:
    """Whether bytecode may be trusted; bytecode with a hash is left to `importlib`."""
    if len(data) < HEADER or data[:4] != importlib.util.MAGIC_NUMBER:
        return False
    if any(data[4:8]):
        return True
    if data[8:HEADER] != _low(int(source.st_mtime)) + _low(source.st_size):
        return False
    if compiled.st_ctime_ns > source.st_ctime_ns + LATER:
        return True
    if _is_installed(path) or sys.dont_write_bytecode or not os.access(os.path.dirname(cache), os.W_OK):
        return compiled.st_ctime_ns > source.st_ctime_ns or source.st_ctime < since
    return False


def _low(number: int) -> bytes:
    return (number & 0xFFFFFFFF).to_bytes(4, "little")


def _is_installed(path: str) -> bool:
    return path.startswith(STANDARD) or not INSTALLED.isdisjoint(path.split(os.sep))
