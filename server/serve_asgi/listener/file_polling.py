"""Notices changed files without the package watchfiles: it looks at them, in rounds, at a bounded cost.

Each round lists the watched directories and asks for the state of every file that counts (stat(2)). A small project is
looked at twice a second; a large one in as many seconds as `MOST_LOOKS` a second allow, however many files it has.
Directories in which nothing counts (.git, .venv, node_modules, __pycache__, …) are not entered. It works on every
platform, and must not know who is told.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import Final

from serve_asgi.listener.watched_files import UNWATCHED, FileChange, WatchedFiles, matches_any

MOST_LOOKS: Final = 2000
"""Entries of directories and files that are looked at in a second."""
AT_ONCE: Final = 100
"""That many without a pause in between."""
ROUND: Final = 0.5
"""Least seconds from one round to the next."""

FileState = tuple[int, int, int]
"""The time of the last change (ns), the size and the inode."""


class FilePoller:
    """Looks at the files of one project."""

    def __init__(self, watched: WatchedFiles) -> None:
        self._watched = watched
        self._seen: dict[str, FileState] = {}
        self._counts: dict[str, bool] = {}
        """Of each file that was ever met: whether it counts."""
        self._looks = 0
        self.rounds = 0
        """How many are complete. Changes are noticed from the end of the first one on."""

    def look(self) -> Iterator[tuple[float, list[str]]]:
        """For ever: the seconds to wait before the next step, and what has changed (at the end of a round).

        The caller waits. Files that are removed count as changed.
        """
        while True:
            found: dict[str, FileState] = {}
            rested = 0.0
            for path in self._candidates():
                state = self._state(path)
                if state is not None:
                    found[path] = state
                if self._looks >= AT_ONCE:
                    pause = self._looks / MOST_LOOKS
                    self._looks = 0
                    rested += pause
                    yield pause, []
            changed = [path for path in found.keys() | self._seen.keys() if found.get(path) != self._seen.get(path)]
            self._seen, self.rounds = found, self.rounds + 1
            yield max(ROUND - rested, self._looks / MOST_LOOKS), sorted(changed) if self.rounds > 1 else []
            self._looks = 0

    def _candidates(self) -> Iterator[str]:
        """The files that count, as far as their names tell."""
        yield from self._watched.files
        for directory in self._watched.directories:
            yield from self._below(directory)

    def _below(self, top: str) -> Iterator[str]:
        left = [top]
        while left:
            here = left.pop()
            try:
                with os.scandir(here) as entries:
                    inside = list(entries)
            except OSError:  # it is gone, or not ours to read
                continue
            self._looks += 1 + len(inside)
            if here != top and any(entry.name == "pyvenv.cfg" for entry in inside):
                continue  # a virtual environment (PEP 405)
            for entry in inside:
                try:
                    is_directory = entry.is_dir(follow_symlinks=False)
                except OSError:
                    continue
                if is_directory:
                    if not matches_any([entry.name], UNWATCHED):
                        left.append(entry.path)
                elif self._may_count(entry.path):
                    yield entry.path
                else:
                    yield ""  # so that a directory of nothing but data files is looked at in steps as well

    def _may_count(self, path: str) -> bool:
        known = self._counts.get(path)
        if known is None:
            known = self._counts[path] = self._watched.counts(FileChange.MODIFIED, path)
        return known

    def _state(self, path: str) -> FileState | None:
        """None if there is no such file."""
        if not path:
            return None
        self._looks += 1
        try:
            status = os.stat(path)
        except OSError:
            return None
        return None if stat.S_ISDIR(status.st_mode) else (status.st_mtime_ns, status.st_size, status.st_ino)
