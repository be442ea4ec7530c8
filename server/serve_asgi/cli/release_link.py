"""The link through which a server finds its release (`current -> releases/42`): what `serve deploy` does with it.

It owns the link, the lock against two deploys at once, and the list of releases that were deployed through the link,
beside it (`.current.releases`): only what stands there is ever removed. It does not know the server
(docs/guides/releases.md).
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from typing import Final

from serve_asgi.config.code_places import upwards
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

    def serving(self, places: Mapping[str, str]) -> str:
        """The release that was found through this link, when the server resolved `places`; "" if none was.

        It is one that was deployed, or else lies beside the one that the link leads to now.
        """
        beside = os.path.dirname(self.release)
        found = [resolved for name, resolved in places.items() if is_within(name, self.path)]
        for resolved in found:
            known = [each for each in self.deployed() if is_within(resolved, each)]
            if known:
                return known[-1]
            if is_within(resolved, beside) and resolved != beside:
                return os.path.join(beside, os.path.relpath(resolved, beside).split(os.sep)[0])
        return ""

    # The releases that were deployed

    def is_kept(self) -> bool:
        """Whether something was deployed through it."""
        return os.path.exists(self._list)

    @property
    def _list(self) -> str:
        return os.path.join(os.path.dirname(self.path), f".{os.path.basename(self.path)}.releases")

    def deployed(self) -> list[str]:
        """The releases that were deployed through it, also those that were refused; each once, the newest last."""
        try:
            with open(self._list, encoding="utf-8", errors="surrogateescape") as file:
                return list(dict.fromkeys(reversed(file.read().splitlines())))[::-1]
        except OSError:
            return []

    def deployed_last(self, before: str, release: str) -> None:
        """Note that `release` serves instead of `before`, which is the newest of the others, if it is one of them.

        Raises OSError.
        """
        known = self.deployed()
        last = [before] if before in known else []
        self._write([*(each for each in known if each not in (before, release)), *last, release])

    def refused(self, before: str, release: str) -> None:
        """Note that `release` does not serve, and `before` still does, which counts as newer. Raises OSError."""
        known = [each for each in self.deployed() if each != release]
        place = known.index(before) if before in known else len(known)
        self._write([*known[:place], release, *known[place:]])

    def _write(self, releases: list[str]) -> None:
        beside = f"{self._list}.new"
        with open(beside, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.writelines(f"{each}\n" for each in releases[-REMEMBERED:] if "\n" not in each)
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


def find(named: str, release: str, places: Mapping[str, str]) -> ReleaseLink:
    """The link to switch for a deploy of `release` (a real path): `named` ("": none), or the one in the server's paths
    that leads to a neighbour of the release.

    `places` are the paths by which the server finds its code, and where each leads (`places` in its status). Raises
    UsageError if there is none, or if the server does not find its code through `named`.
    """
    first = next(iter(places))
    links = list(dict.fromkeys(path for place in places for path in upwards(place) if os.path.islink(path)))
    if named:
        link = ReleaseLink(named)
        for path in links:
            if os.path.samestat(os.lstat(path), os.lstat(link.path)):
                return ReleaseLink(path)
        raise UsageError(
            f"a reload does not follow {link.path}: the server finds its code in {first}; start it with --chdir "
            "through the link (docs/guides/releases.md)"
        )
    for path in links:
        if os.path.dirname(os.path.realpath(path)) == os.path.dirname(release):
            return ReleaseLink(path)
    raise UsageError(
        f"the server finds its code in {first}, and not through a link beside whose target {release} lies: start it "
        "with --chdir through such a link, or name the link with --link (docs/guides/releases.md)"
    )


def kept(places: Mapping[str, str]) -> Iterator[ReleaseLink]:
    """The links in the server's paths through which `serve deploy` has deployed."""
    for path in dict.fromkeys(path for place in places for path in upwards(place) if os.path.islink(path)):
        if (link := ReleaseLink(path)).is_kept():
            yield link


def is_within(path: str, directory: str) -> bool:
    """Whether `path` is `directory` or lies in it; both are absolute."""
    return os.path.commonpath([path, directory]) == directory
