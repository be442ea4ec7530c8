"""The process that watches files for `--reload`, and reports changes over its channel.

It is a process of its own since the listener may never wait: setting up the watches visits every directory below the
watched ones, and the library is native code with threads. It decides which files count;
`serve_asgi.listener.reload_on_change` decides what a change leads to. It exits when the listener's end of the channel
closes.

Packets: {"type": "watching", "directories": [...]} once the watches are set up, {"type": "changed", "paths": [...]}
after each change, and at once if something changed before that but after --since, {"type": "trouble", "text": "a
sentence"} when it cannot continue.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fnmatch
import json
import os
import socket
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

import anyio
import watchfiles

from serve_asgi.ipc.channel import Channel

QUIET: Final = 100
"""Milliseconds without a further change after which the changes so far are reported."""
STORM: Final = 1600
"""Milliseconds after which they are reported in any case."""
GRANULARITY: Final = 10_000_000
"""Nanoseconds by which the kernel's time of a change may be early: it is the time of the last tick."""
MOST_PATHS: Final = 20
"""Most paths that are reported by name."""
SOURCES: Final = ("*.py",)
UNWATCHED: Final = ("__pycache__", "node_modules", "site-packages", ".?*")
"""Directories in which nothing counts: tools' output, installed packages, and hidden ones."""
SCRATCH: Final = (".#*", "flycheck_*")
"""Temporary files of editors."""


@dataclasses.dataclass(frozen=True, slots=True)
class WatchedFiles:
    """Which files count. Paths are absolute, with links resolved."""

    directories: tuple[str, ...]
    """Watched recursively."""
    files: tuple[str, ...]
    """Files that count wherever they are: the configuration and environment files."""
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    own: tuple[str, ...] = ()
    """Files that the server itself writes, which never count, nor do their rotated copies: logs, the pid file."""

    def counts(self, change: watchfiles.Change, path: str) -> bool:
        """Whether a change of `path` is a change of the application; also of a directory that was added with files in
        it."""
        if any(path == own or path.startswith(own + ".") for own in self.own):
            return False
        if path in self.files or self.ends(change, path):
            return True
        return any(
            self._counts(directory, os.path.relpath(path, directory), change)
            for directory in self.directories
            if path.startswith(os.path.join(directory, ""))
        )

    def _counts(self, directory: str, path: str, change: watchfiles.Change) -> bool:
        """`path` is relative to `directory`."""
        parts = path.split(os.sep)
        if _any(parts[:-1], UNWATCHED) or _any([parts[-1]], SCRATCH):
            return False
        for end in range(1, len(parts) + 1):
            if _any([parts[end - 1], os.sep.join(parts[:end])], self.exclude):
                return False
        if _any([parts[-1], path], (*SOURCES, *self.include)):
            return not _in_environment(directory, parts)
        if change is watchfiles.Change.added and not _any(parts, UNWATCHED):
            # The files in a directory that is added are not reported one by one.
            return any(self._counts(directory, inner, change) for inner in _files_below(directory, path))
        return False

    def ends(self, change: watchfiles.Change, path: str) -> bool:
        """Whether a watched directory itself is gone, and its watch with it, even if another takes its name."""
        return change is watchfiles.Change.deleted and path in self.directories

    def changed_between(self, since: int, until: int) -> list[str]:
        """Files that count and whose last change (st_ctime, Unix time, ns) lies between the two, inclusive."""
        here = (os.path.join(directory, name) for directory in self.directories for name in _files_below(directory, ""))
        found = {path for path in (*self.files, *here) if since <= _last_change(path) <= until}
        return sorted(path for path in found if self.counts(watchfiles.Change.modified, path))

    def apart(self) -> tuple[str, ...]:
        """Directories of `files` that are not below a watched one."""
        roots = tuple(os.path.join(directory, "") for directory in self.directories)
        found = {os.path.dirname(path) for path in self.files if not path.startswith(roots)}
        return tuple(sorted(directory for directory in found if os.path.isdir(directory)))


def _any(names: Sequence[str], patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in patterns)


def _in_environment(directory: str, parts: Sequence[str]) -> bool:
    """Whether a path lies in a virtual environment, whatever its name (PEP 405): installing is not a change."""
    above = (os.path.join(directory, *parts[:end]) for end in range(1, len(parts)))
    return any(os.path.exists(os.path.join(each, "pyvenv.cfg")) for each in above)


def _files_below(directory: str, path: str) -> list[str]:
    """The files below a directory, relative to the watched one; none if it is a file itself."""
    found = []
    for inside, directories, names in os.walk(os.path.join(directory, path)):
        directories[:] = [name for name in directories if not _any([name], UNWATCHED)]
        found += [os.path.relpath(os.path.join(inside, name), directory) for name in names]
    return found


def _last_change(path: str) -> int:
    try:
        return os.lstat(path).st_ctime_ns
    except OSError:  # gone, or never existed
        return 0


async def watch(channel: Channel, watched: WatchedFiles, since: int, once: bool = False) -> int:
    """Report changes until the other end of the channel is closed, or only the first; return the exit status.

    Changes after `since` (Unix time, ns) count, although nothing watched then: the application was being imported.
    """
    status = 0
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_tell, channel, watched, watched.directories, True, once)
            if apart := watched.apart():
                tasks.start_soon(_tell, channel, watched, apart, False, once)
            # The tasks start in this order, and each has set up its watches when it first waits.
            tasks.start_soon(_tell_earlier, channel, watched, since, once)
            while True:
                await channel.receive()
    except* (EOFError, _ReportedChange):
        pass
    except* _WatcherGone as group:
        await channel.send({"type": "trouble", "text": f"{group.exceptions[0]} is gone, or has been replaced"})
    except* OSError as group:
        status = 1
        error = group.exceptions[0]
        advice = "; raise fs.inotify.max_user_watches, or name what to watch by --reload-dir" if _watches(error) else ""
        with contextlib.suppress(OSError):  # that may be the cause: the listener is gone, or has been replaced
            await channel.send({"type": "trouble", "text": f"{error}{advice}"})
    return status


class _ReportedChange(Exception):
    """A change has been reported, and `once` is set."""


class _WatcherGone(Exception):
    """A watched directory is gone; the argument is its path."""


async def _tell_earlier(channel: Channel, watched: WatchedFiles, since: int, once: bool) -> None:
    """Report that the watches are set up, and what changed before they were."""
    until = time.time_ns()
    await channel.send({"type": "watching", "directories": list(watched.directories)})
    if paths := await anyio.to_thread.run_sync(watched.changed_between, since - GRANULARITY, until):
        await _tell_paths(channel, paths, once)


async def _tell_paths(channel: Channel, paths: list[str], once: bool) -> None:
    await channel.send({"type": "changed", "paths": paths[:MOST_PATHS], "count": len(paths)})
    if once:
        raise _ReportedChange


async def _tell(
    channel: Channel, watched: WatchedFiles, directories: Sequence[str], recursive: bool, once: bool
) -> None:
    async for paths in _changes(watched, directories, recursive):
        await _tell_paths(channel, paths, once)


async def _changes(watched: WatchedFiles, directories: Sequence[str], recursive: bool) -> AsyncIterator[list[str]]:
    changes = watchfiles.awatch(
        *directories,
        watch_filter=watched.counts,
        debounce=STORM,
        step=QUIET,
        recursive=recursive,
        ignore_permission_denied=True,
    )
    async for found in changes:
        yield sorted({path for _, path in found})
        for change, path in found:
            if watched.ends(change, path):
                raise _WatcherGone(path)


def _watches(error: BaseException) -> bool:
    return "limit" in str(error).lower()


def main() -> None:
    """Watch as the arguments say, until the listener ends."""
    parser = argparse.ArgumentParser(prog="serve_asgi.listener.file_watcher")
    parser.add_argument("--channel", type=int, required=True)
    parser.add_argument("--watched", type=json.loads, required=True)
    parser.add_argument("--since", type=int, required=True)
    parser.add_argument("--once", action="store_true")
    arguments = parser.parse_args()
    told: dict[str, Any] = arguments.watched
    watched = WatchedFiles(**{name: tuple(values) for name, values in told.items()})
    status = anyio.run(
        watch, Channel(socket.socket(fileno=arguments.channel)), watched, arguments.since, arguments.once
    )
    os._exit(status)  # a thread of the library may still wait for changes


if __name__ == "__main__":
    main()
