"""What served before: the releases that a roll-back deploys again when no generation stands by.

It owns a bounded list of what earlier generations ran with, each with another release than its neighbour, since a
reload of the same directory leaves nothing to go back to. Several roll-backs go further back. The list is carried over
to a program that replaces the listener's, and begins anew with the server.
"""

from __future__ import annotations

import collections
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from serve_asgi.errors import UsageError

if TYPE_CHECKING:
    from serve_asgi.listener.generation_config import GenerationConfig

KEPT: Final = 10
"""Releases that are remembered."""


class PreviousReleases:
    """The releases of one server before the current one, the newest last."""

    def __init__(self, known: Iterable[GenerationConfig] = ()) -> None:
        """`known` are those of an earlier program of this process."""
        self.all: collections.deque[GenerationConfig] = collections.deque(known, maxlen=KEPT)

    def to_state(self) -> list[dict[str, Any]]:
        """All of them, JSON-compatible."""
        return [each.to_state() for each in self.all]

    def succeeded(self, before: GenerationConfig, now: GenerationConfig) -> None:
        """A reload has replaced `before`."""
        if _place(before) != _place(now):
            self.all.append(before)

    def returned(self, now: GenerationConfig) -> None:
        """A roll-back has led to `now`: the next one goes further back."""
        while self.all and _place(self.all[-1]) == _place(now):
            self.all.pop()

    def newest(self) -> GenerationConfig:
        """What a roll-back deploys again. Reads the disk; raises UsageError if there is nothing, or it is gone."""
        if not self.all:
            raise UsageError(
                "no previous generation stands by, and no other release has served before: put the previous code back "
                "and reload; with --keep-previous SECONDS the generation before the last reload stays for a roll-back"
            )
        found = self.all[-1]
        for directory in filter(None, (found.release.code, found.release.directory, found.release.app_dir)):
            if not os.path.isdir(directory):
                raise UsageError(f"the previous release is gone: {directory} does not exist; deploy another one")
        if not os.access(found.release.python, os.X_OK, effective_ids=True):
            raise UsageError(
                f"the previous release is gone: {found.release.python}, its interpreter, cannot be run; deploy another"
            )
        return found


def _place(config: GenerationConfig) -> tuple[str, ...]:
    """Where its code and its configuration lie."""
    release = config.release
    return release.directory, release.app_dir, release.python, *release.places.values()
