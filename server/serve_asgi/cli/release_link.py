"""The link through which a server finds its release (`current -> releases/42`): what `serve deploy` does with it.

It owns the link, the lock against two deploys at once, and the list of releases that were deployed through the link,
beside it (`.current.releases`): only what stands there is ever removed. It does not know the server
(docs/guides/releases.md).
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from typing import Any, Final

from serve_asgi.errors import InUseError, UsageError
from serve_asgi.ipc.path_lock import PathLock

REMEMBERED: Final = 1_000
"""Releases in the list, the newest ones."""


class ReleaseLink:
    """A link to the current release."""

    def __init__(self, path: str) -> None:
        """Raises UsageError if `path` is not a link to a directory."""
        self.path = os.path.abspath(path)
        if not os.path.islink(self.path):
            raise UsageError(f"{path} is not a link: make it one to the current release (docs/guides/releases.md)")
        self._directory = os.path.realpath(os.path.dirname(self.path))

    @property
    def target(self) -> str:
        """What it says, as it is written."""
        return os.readlink(self.path)

    @property
    def release(self) -> str:
        """The directory that it leads to."""
        return os.path.realpath(self.path)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock of this link. Raises UsageError if another deploy does, or without permission."""
        try:
            lock = PathLock(self.path)
        except InUseError as busy:
            who = f", by PID {busy.holder}" if busy.holder else ""
            raise UsageError(f"another deploy through {self.path} is under way{who}: wait for its end") from None
        try:
            yield
        finally:
            lock.release()

    def text_for(self, release: str) -> str:
        """How the link names a release: relative, if it has been so far."""
        return release if os.path.isabs(self.target) else os.path.relpath(release, self._directory)

    def point_to(self, target: str) -> None:
        """Have it say `target` from one moment to the next (rename(2)). Raises UsageError if that is not allowed."""
        beside = f"{self.path}.{os.getpid()}.new"
        try:
            os.symlink(target, beside)
            try:
                os.rename(beside, self.path)
            except OSError:
                os.unlink(beside)
                raise
            directory = os.open(self._directory, os.O_RDONLY)
            try:
                os.fsync(directory)  # so that it survives a power failure
            finally:
                os.close(directory)
        except OSError as error:
            raise UsageError(f"the link {self.path} cannot be changed: {error.strerror}") from None

    # The releases that were deployed

    @property
    def _list(self) -> str:
        return os.path.join(os.path.dirname(self.path), f".{os.path.basename(self.path)}.releases")

    def deployed(self) -> list[str]:
        """The releases that were deployed through it, each once, the newest last."""
        try:
            with open(self._list, encoding="utf-8", errors="surrogateescape") as file:
                return list(dict.fromkeys(reversed(file.read().splitlines())))[::-1]
        except OSError:
            return []

    def remember(self, *releases: str) -> None:
        """Note that these were deployed, the newest last. Raises OSError."""
        known = [each for each in self.deployed() if each not in releases]
        beside = f"{self._list}.new"
        with open(beside, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.writelines(f"{each}\n" for each in [*known, *releases][-REMEMBERED:] if "\n" not in each)
        os.rename(beside, self._list)

    def prune(self, keep: int) -> tuple[list[str], list[str]]:
        """Remove releases that were deployed through it, but for the `keep` newest and the current one.

        Only directories that lie beside the current release. Returns those that are removed, and why others could not
        be.
        """
        current, removed, troubles = self.release, [], []
        there = [each for each in self.deployed() if os.path.isdir(each) and not os.path.islink(each)]
        for release in there[:-keep]:
            if release == current or os.path.dirname(release) != os.path.dirname(current):
                continue
            try:
                shutil.rmtree(release)
                removed.append(release)
            except OSError as error:
                troubles.append(f"{release} cannot be removed: {error.strerror}")
        return removed, troubles


def places_of(config: dict[str, Any]) -> list[str]:
    """The paths by which a server finds its code, links and all, from what `serve config` shows."""
    told = {option["name"]: option["value"] for option in config["options"]}
    directory = os.path.join(config["directory"], told["chdir"] or "")
    return list(dict.fromkeys([os.path.normpath(os.path.join(directory, told["app-dir"] or "")), directory]))


def find(named: str, release: str, config: dict[str, Any]) -> ReleaseLink:
    """The link to switch for a deploy of `release` (a real path): `named` ("": none), or the one in the server's paths
    that leads to a neighbour of the release.

    Raises UsageError if there is none, or if the server does not find its code through `named`.
    """
    places = places_of(config)
    if named:
        link = ReleaseLink(named)
        if not any(_lies_in(place, link.path) for place in places):
            raise UsageError(
                f"a reload does not follow {link.path}: the server finds its code in {places[0]}; start it with "
                "--chdir through the link (docs/guides/releases.md)"
            )
        return link
    for place in places:
        for path in upwards(place):
            if os.path.islink(path) and os.path.dirname(os.path.realpath(path)) == os.path.dirname(release):
                return ReleaseLink(path)
    raise UsageError(
        f"the server finds its code in {places[0]}, and not through a link beside whose target {release} lies: start "
        "it with --chdir through such a link, or name the link with --link (docs/guides/releases.md)"
    )


def upwards(path: str) -> Iterator[str]:
    """A path and all directories above it, but for the root."""
    while path not in ("/", ""):
        yield path
        path = os.path.dirname(path)


def _lies_in(path: str, link: str) -> bool:
    return os.path.commonpath([os.path.abspath(path), link]) == link
