"""Opens files below a directory and nowhere else, whatever a path says and wherever links lead.

The kernel holds the bound (openat2(2), RESOLVE_BENEATH); where it does not know the call, or a filter refuses it
(seccomp), and on macOS, each part of the path is opened by itself, and no link is followed at all. Windows has neither:
there, where the server is for development, the path is resolved and then opened. It must not know HTTP.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from typing import Final

SYS_OPENAT2: Final = 437
"""The same number on every architecture (linux/include/uapi/asm-generic/unistd.h)."""
RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_BENEATH: Final = 0x08  # linux/openat2.h
TRIES: Final = 8
"""EAGAIN: something was renamed meanwhile."""
if sys.platform == "win32":
    FLAGS: Final = os.O_RDONLY | os.O_BINARY
else:
    FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
FORBIDDEN: Final = frozenset('\\:*?"<>|')
"""What no name has on Windows (Naming Files, Paths, and Namespaces); some would lead elsewhere."""


class _OpenHow(ctypes.Structure):
    """struct open_how."""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


class DirectoryTree:
    """A directory, by a descriptor: it stays the same when a link that led to it points elsewhere."""

    __slots__ = ("_fd", "_how", "_path", "_syscall")

    def __init__(self, path: str) -> None:
        """Raises OSError."""
        self._path = os.path.realpath(path)
        """For Windows."""
        self._how = _OpenHow(FLAGS, 0, RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS)
        self._syscall: ctypes._NamedFuncPointer | None = None
        if sys.platform == "win32":
            os.listdir(self._path)
            return
        self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        if sys.platform == "linux":
            library = ctypes.CDLL(None, use_errno=True)
            self._syscall = library.syscall
            self._syscall.restype = ctypes.c_long
            self._syscall.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t]

    def open(self, path: bytes) -> int:
        """A descriptor of what is at the relative `path`, for reading; the caller's. Raises OSError.

        EXDEV: a link, or `..`, leads out.
        """
        if sys.platform == "win32":
            return self._open_resolved(path)
        for _ in range(TRIES):
            if self._syscall is None:
                return self._open_step_by_step(path)
            how = ctypes.addressof(self._how)
            fd = int(self._syscall(SYS_OPENAT2, self._fd, path, how, ctypes.sizeof(self._how)))
            if fd >= 0:
                return fd
            number = ctypes.get_errno()
            if number in (errno.ENOSYS, errno.EPERM):
                self._syscall = None
            elif number != errno.EAGAIN:
                raise OSError(number, os.strerror(number))
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    def _open_resolved(self, path: bytes) -> int:
        name = path.decode("utf-8", "replace")
        if FORBIDDEN.intersection(name) or any(part != part.rstrip(". ") for part in name.split("/")):
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        there = os.path.realpath(os.path.join(self._path, name))
        try:
            is_beneath = os.path.commonpath([there, self._path]) == self._path
        except ValueError:  # on another drive, or a device
            is_beneath = False
        if not is_beneath:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        if os.path.isdir(there):
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        return os.open(there, FLAGS)

    def _open_step_by_step(self, path: bytes) -> int:
        if sys.platform == "win32":
            raise NotImplementedError
        *directories, last = path.split(b"/")
        if b".." in directories or last == b"..":
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        here = self._fd
        try:
            for name in directories:
                there = os.open(name, FLAGS | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=here)
                if here != self._fd:
                    os.close(here)
                here = there
            return os.open(last, FLAGS | os.O_NOFOLLOW, dir_fd=here)
        finally:
            if here != self._fd:
                os.close(here)

    def close(self) -> None:
        """Close the descriptor."""
        if sys.platform != "win32":
            os.close(self._fd)
