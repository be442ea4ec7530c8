"""Adds the manual pages to the wheel: they are made at the build, so that they fit its options."""

from __future__ import annotations

import importlib
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ManPages(BuildHookInterface):  # type: ignore[type-arg]
    """Below share/man/man1, where man(1) finds what is installed in a PATH's ../share/man (manpath(1))."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        self.pages = tempfile.TemporaryDirectory()
        sys.path.insert(0, str(Path(self.root) / "server"))
        try:
            pages = importlib.import_module("serve_asgi.cli.man_pages").pages()
        finally:
            sys.path.pop(0)
        for name, text in pages.items():
            path = Path(self.pages.name) / name
            path.write_text(text)
            build_data["shared_data"][str(path)] = f"share/man/man1/{name}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        self.pages.cleanup()
