"""Which files count for `--reload`: the application's sources, and not what tools write.

Pure but for looking at the file system. It must not know how changes are noticed: `serve_asgi.listener.file_watcher`
and, without the package watchfiles, `serve_asgi.listener.file_polling` do that. It works on every platform.
"""

from __future__ import annotations

import dataclasses
import enum
import fnmatch
import os
from collections.abc import Sequence
from typing import Final

from serve_asgi.config.config_file import OWN, PROJECT
from serve_asgi.config.options import APP_LOG_WORDS
from serve_asgi.config.release import resolve
from serve_asgi.config.sources import Settings
from serve_asgi.errors import UsageError


class FileChange(enum.IntEnum):
    """What has happened to a file; the numbers are those of `watchfiles.Change`."""

    ADDED = 1
    MODIFIED = 2
    DELETED = 3


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

    def counts(self, change: int, path: str) -> bool:
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

    def _counts(self, directory: str, path: str, change: int) -> bool:
        """`path` is relative to `directory`."""
        parts = path.split(os.sep)
        if matches_any(parts[:-1], UNWATCHED) or matches_any([parts[-1]], SCRATCH):
            return False
        for end in range(1, len(parts) + 1):
            if matches_any([parts[end - 1], os.sep.join(parts[:end])], self.exclude):
                return False
        if matches_any([parts[-1], path], (*SOURCES, *self.include)):
            return not _in_environment(directory, parts)
        if change == FileChange.ADDED and not matches_any(parts, UNWATCHED):
            # The files in a directory that is added are not reported one by one.
            return any(self._counts(directory, inner, change) for inner in _files_below(directory, path))
        return False

    def ends(self, change: int, path: str) -> bool:
        """Whether a watched directory itself is gone, and its watch with it, even if another takes its name."""
        return change == FileChange.DELETED and path in self.directories

    def changed_between(self, since: int, until: int) -> list[str]:
        """Files that count and whose last change (st_ctime, Unix time, ns) lies between the two, inclusive."""
        here = (os.path.join(directory, name) for directory in self.directories for name in _files_below(directory, ""))
        found = {path for path in (*self.files, *here) if since <= _last_change(path) <= until}
        return sorted(path for path in found if self.counts(FileChange.MODIFIED, path))

    def apart(self) -> tuple[str, ...]:
        """Directories of `files` that are not below a watched one."""
        roots = tuple(os.path.join(directory, "") for directory in self.directories)
        found = {os.path.dirname(path) for path in self.files if not path.startswith(roots)}
        return tuple(sorted(directory for directory in found if os.path.isdir(directory)))


def matches_any(names: Sequence[str], patterns: Sequence[str]) -> bool:
    """Whether one of the names matches one of the patterns (fnmatch)."""
    return any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in patterns)


def _in_environment(directory: str, parts: Sequence[str]) -> bool:
    """Whether a path lies in a virtual environment, whatever its name (PEP 405): installing is not a change."""
    above = (os.path.join(directory, *parts[:end]) for end in range(1, len(parts)))
    return any(os.path.exists(os.path.join(each, "pyvenv.cfg")) for each in above)


def _files_below(directory: str, path: str) -> list[str]:
    """The files below a directory, relative to the watched one; none if it is a file itself."""
    found = []
    for inside, directories, names in os.walk(os.path.join(directory, path)):
        directories[:] = [name for name in directories if not matches_any([name], UNWATCHED)]
        found += [os.path.relpath(os.path.join(inside, name), directory) for name in names]
    return found


def _last_change(path: str) -> int:
    try:
        return os.lstat(path).st_ctime_ns
    except OSError:  # gone, or never existed
        return 0


def watched(settings: Settings) -> dict[str, list[str]]:
    """What to watch. Raises UsageError for a directory that does not exist, and for the root directory."""
    config, start = settings.config, settings.directory
    directories = [os.path.realpath(os.path.join(start, directory)) for directory in config.reload_dir]
    for directory in directories:
        if not os.path.isdir(directory):
            raise UsageError(f"--reload-dir: there is no directory {directory}")
    directories = directories or [resolve(config, start).app_dir]
    if any(os.path.dirname(directory) == directory for directory in directories):
        raise UsageError("--reload would watch the whole file system: name what to watch by --reload-dir")
    lines = "" if config.app_log in APP_LOG_WORDS else config.app_log
    own = (config.log_file, config.access_log_file, lines, config.pid_file, config.control)
    named = [name for name in (config.config, config.env_file, config.log_config) if name]
    files = [os.path.join(start, name) for name in (named if config.config else [*named, OWN, PROJECT])]
    return {
        "directories": directories,
        "files": sorted({path for file in files for path in (_in_directory(file), os.path.realpath(file))}),
        "include": list(config.reload_include),
        "exclude": list(config.reload_exclude),
        "own": sorted(_in_directory(os.path.join(start, name)) for name in own if name),
    }


def _in_directory(path: str) -> str:
    """The path with all links resolved except the last part: replacing a link counts, too."""
    return os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
