"""What `serve config` shows: the settings that are in force, and what they have come to mean on this machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from serve_asgi.config.release import Release
from serve_asgi.config.sources import Settings
from serve_asgi.config.state_location import is_url


def in_force(
    settings: Settings,
    release: Release | None,
    listening: Sequence[str],
    admin: Sequence[str],
    control: Path | None,
    size: int,
) -> dict[str, Any]:
    """The table of `Settings.told`, with what was resolved for the current generation: it names releases, not links.

    `size` is how many workers there are to be by now.
    """
    resolved: dict[str, str] = {"bind": ", ".join(listening)} if listening else {}
    if size != settings.config.workers:
        resolved["workers"] = f"{size}, scaled by hand"
    if admin:
        resolved["admin"] = ", ".join(admin)
    if control is not None:
        resolved["control"] = str(control)
    if release is not None:
        resolved |= {"python": release.python, "chdir": release.directory, "app_dir": release.app_dir}
    for name in ("pid_file", "env_file", "log_file", "access_log_file"):
        if path := getattr(settings.config, name):
            resolved[name] = os.path.join(settings.directory, path)
    if settings.config.state and not is_url(settings.config.state):
        resolved["state"] = os.path.join(settings.directory, settings.config.state)
    return settings.told(resolved)
