"""What the import of an application leaves behind that a fork would break: threads and connections.

A forked process has none of its parent's threads, though locks that they held stay locked; and it shares its sockets,
pipes, epoll instances and the like with its parent and with its siblings, which then read each other's bytes. So what
is there after the import and was not there before is named, with the module that started it, as far as can be told:
threads and sockets of Python by their callers, threads of C libraries by the extension module whose import made them.

Not named are regular files and memory, which may be shared (but for SQLite's databases, "How To Corrupt", 2.6), threads
that end by themselves at once, and those that end at a fork (OpenBLAS: pthread_atfork(3)).
"""

from __future__ import annotations

import contextlib
import importlib.machinery
import os
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Final

GRACE: Final = 0.5
"""Seconds that threads have to end by themselves after the import."""
LOOK: Final = 0.01
"""Seconds between two checks whether they have."""
MOST: Final = 20
"""Findings that are reported."""
SQLITE: Final = b"SQLite format 3\0"
OURS: Final = "serve_asgi"

Identity = tuple[int, int]


class ImportGuard:
    """Watches an import: used as a context around it; then `findings` says what it has left behind."""

    def __init__(self, fork: Callable[[], int]) -> None:
        """`fork` is fork(2) of the C library, to find out which threads end at one."""
        self._fork = fork
        self._files = dict(_open_files())
        self._threads = set(_tasks())
        self._started: dict[threading.Thread, str] = {}
        self._opened: dict[Identity, str] = {}
        """Who has opened each socket."""
        self._loaded: dict[int, str] = {}
        """The extension module during whose import each thread was first seen, by thread id."""
        self._watching = False
        self._undo: list[Callable[[], None]] = []

    def __enter__(self) -> ImportGuard:
        self._watching = True
        self._wrap(threading.Thread, "start", lambda thread: self._started.setdefault(thread, _caller()))
        self._wrap(socket.socket, "__init__", None, self._socket_opened)
        for name in ("create_module", "exec_module"):
            self._wrap(importlib.machinery.ExtensionFileLoader, name, self._seen_before, self._extension_loaded)
        return self

    def __exit__(self, *_: object) -> None:
        self._watching = False
        for undo in self._undo:
            undo()

    def _wrap(
        self,
        kind: type,
        name: str,
        before: Callable[[Any], object] | None,
        after: Callable[[Any], object] | None = None,
    ) -> None:
        """Call `before` or `after` with the object of each call of a method."""
        method = getattr(kind, name)

        def watched(of: Any, *given: Any, **named: Any) -> Any:
            if before is not None and self._watching:
                before(of)
            found = method(of, *given, **named)
            if after is not None and self._watching:
                with contextlib.suppress(OSError):
                    after(of)
            return found

        def undo() -> None:
            if getattr(kind, name) is watched:  # or the application has put its own around it, which stays
                setattr(kind, name, method)

        setattr(kind, name, watched)
        self._undo.append(undo)

    def _socket_opened(self, made: Any) -> None:
        self._opened[_identity(made.fileno())] = _caller()

    def _seen_before(self, loader: Any) -> None:
        for task in set(_tasks()) - self._threads:
            self._loaded.setdefault(task, "")

    def _extension_loaded(self, loader: Any) -> None:
        for task in set(_tasks()) - self._threads - self._loaded.keys():
            self._loaded[task] = loader.name

    # What was found

    def findings(self) -> list[str]:
        """What must not be there at a fork; to be called when this process has ended its own threads."""
        return list(dict.fromkeys([*self._living_threads(), *self._shared_files()]))[:MOST]

    def _living_threads(self) -> list[str]:
        deadline = time.monotonic() + GRACE
        while (left := self._foreign_tasks()) and time.monotonic() < deadline:
            time.sleep(LOOK)
        if left and not any(each.native_id in left for each in threading.enumerate()):
            self._fork_once()
            left = self._foreign_tasks()
        found = []
        known = {each.native_id: each for each in threading.enumerate()}
        for task in sorted(left):
            thread = known.get(task)
            if thread is not None:
                by = self._started.get(thread, "")
                found.append(f"the thread {thread.name}{f', started by {by}' if by else ''}")
            else:
                by = self._loaded.get(task, "")
                origin = f"started by the import of {by}" if by else "started by a C library"
                found.append(f"a thread of no Python code ({_name(task)}), {origin}")
        return found

    def _foreign_tasks(self) -> set[int]:
        return set(_tasks()) - {threading.main_thread().native_id or 0}

    def _fork_once(self) -> None:
        """Fork a process that exits at once: some libraries end their threads before a fork."""
        pid = self._fork()
        if pid == 0:
            os._exit(0)
        if pid > 0:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)

    def _shared_files(self) -> Iterator[str]:
        for number, identity in _open_files():
            if self._files.get(number) != identity and (what := _what(number)):
                by = self._opened.get(identity, "")
                yield f"{what}{f', opened by {by}' if by else ''}"


def _tasks() -> list[int]:
    """The threads of this process, also those that Python knows nothing of (proc(5))."""
    try:
        return [int(each) for each in os.listdir("/proc/self/task")]
    except OSError:
        return [each.native_id for each in threading.enumerate() if each.native_id is not None]


def _name(task: int) -> str:
    try:
        with open(f"/proc/self/task/{task}/comm", encoding="ascii", errors="replace") as comm:
            return comm.read().strip()
    except OSError:
        return str(task)


def _open_files() -> list[tuple[int, Identity]]:
    """The open descriptors, each with its file's st_dev and st_ino."""
    found = []
    try:
        numbers = [int(each) for each in os.listdir("/proc/self/fd")]
    except OSError:
        numbers = list(range(1024))
    for number in numbers:
        with contextlib.suppress(OSError):  # the directory's own
            found.append((number, _identity(number)))
    return found


def _identity(number: int) -> Identity:
    """Which file a descriptor is of. Raises OSError."""
    status = os.fstat(number)
    return status.st_dev, status.st_ino


def _what(number: int) -> str:
    """What a descriptor is that must not be shared; "" if it may be."""
    try:
        mode = os.fstat(number).st_mode
        link = os.readlink(f"/proc/self/fd/{number}")
    except OSError:
        return ""
    if stat.S_ISSOCK(mode):
        return _socket(number)
    if stat.S_ISFIFO(mode):
        return "a pipe"
    if link.startswith("anon_inode:"):
        return f"a descriptor of {link.removeprefix('anon_inode:').strip('[]')}"
    with contextlib.suppress(OSError):
        if stat.S_ISREG(mode) and os.pread(number, len(SQLITE), 0) == SQLITE:
            return f"the SQLite database {link}"
    return ""


def _socket(number: int) -> str:
    with socket.socket(fileno=os.dup(number)) as end:
        family = getattr(end.family, "name", str(end.family)).removeprefix("AF_")
        with contextlib.suppress(OSError):
            peer = end.getpeername()
            return f"a connection ({family}) to {_address(peer)}" if peer else f"a connected socket ({family})"
        with contextlib.suppress(OSError):
            return f"a socket ({family}) on {_address(end.getsockname())}"
    return f"a socket ({family})"


def _address(address: Any) -> str:
    if isinstance(address, tuple):
        return ":".join(map(str, address[:2]))
    return address.decode(errors="replace") if isinstance(address, bytes) else str(address)


def _caller() -> str:
    """The module that has called what is watched, and the line of the application from which that came."""
    frame: FrameType | None = sys._getframe(1)
    module = line = ""
    while frame is not None and not line:
        name = frame.f_globals.get("__name__", "")
        if not _is_standard(name):
            module = module or name
            if not _is_installed(frame.f_code.co_filename):
                line = f"{os.path.relpath(frame.f_code.co_filename)}, line {frame.f_lineno}"
        frame = frame.f_back
    return f"{module} ({line})" if line else module


def _is_standard(module: str) -> bool:
    top = module.partition(".")[0]
    return top in sys.stdlib_module_names or top in (OURS, "__main__") or not top


def _is_installed(path: str) -> bool:
    return "site-packages" in path or "dist-packages" in path or path.startswith("<")
