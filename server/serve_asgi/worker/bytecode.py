"""Compiled code (`.pyc`) that is surely of the source that lies there, for a process that runs the application.

Python takes a `.pyc` for that of a source file if whole seconds of the file's time and its size agree (`importlib`,
"Cached bytecode invalidation"). They do for two saves within one second, and for a deploy that keeps times (rsync -t,
a reproducible build): the old code would run on. So here:

- What is written has the hash of the very bytes that were compiled (PEP 552, "checked"), and cannot be stale.
- One that has only time and size is believed if the kernel's own record of changes, which nothing can set back
  (st_ctime, inode(7)), says that it was written after the source's last change.
- Where that cannot be known, since unpacking an image or an archive makes both at once, it is believed as well for
  installed packages and where it could not be written anew (a read-only file system, another user's directory), unless
  the source has changed since the server was started: compiling all of it at each start would take seconds.
- An unchecked one (PEP 552) is a promise of whoever made it, and is believed.

Nothing of `importlib` is written anew: it reads bytecode through `SourceFileLoader.get_data`, which all ways of
importing share (path hooks, editable installs, `runpy`), and is given a stand-in that is of no source in place of what
is not believed. It then compiles, and writes what replaces it.
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
"""Bytecode of no source, with a hash to be checked: `importlib` compiles the source, and writes one of that kind."""
LATER: Final = 1_000_000_000
"""Nanoseconds: whoever compiled a source may have read it so much earlier than they wrote the result."""
SEEN: Final = "_serve_seen"
"""Where a loader keeps the status of its source between two questions of `importlib`."""
INSTALLED: Final = frozenset({"site-packages", "dist-packages"})
STANDARD: Final = os.path.join(sysconfig.get_path("stdlib"), "")


def keep_fresh(since: float) -> None:
    """Have this process import what lies on the disk. The server was started at `since` (Unix time)."""
    loader = importlib.machinery.SourceFileLoader
    read = loader.get_data
    without = _without_checks()

    def path_stats(self: importlib.machinery.SourceFileLoader, path: str) -> dict[str, float]:
        self.__dict__[SEEN] = status = os.stat(path)  # `importlib` asks for the bytecode next
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
    """A file's content, and its status, of the same file also if another takes its place meanwhile."""
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
    """Whether the interpreter was told to check no hash (`--check-hash-based-pycs never`), so that none is written."""
    import _imp

    return getattr(_imp, "check_hash_based_pycs", "") == "never"


def _is_bytecode(path: str, source: str) -> bool:
    """Whether `path` is the bytecode of `source` (PEP 3147), also that of another optimization."""
    stem = os.path.splitext(os.path.basename(source))[0]
    return path.endswith(".pyc") and os.path.basename(path).startswith(f"{stem}.{sys.implementation.cache_tag}")


def _is_fresh(
    data: bytes, path: str, source: os.stat_result, cache: str, compiled: os.stat_result, since: float
) -> bool:
    """Whether bytecode may be believed; that which has a hash is left to `importlib`."""
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
