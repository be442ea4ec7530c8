"""What hatchling adds to the wheel (hatch.pypa.io, "Custom build hook"): the manual pages and the compiled core.

The manual pages are made at the build, so that they fit its options. SERVE_ASGI_COMPILE says whether the core is
compiled (`compile_core.py`):

- `auto`, the default: if this machine can; otherwise the wheel is one of pure Python, and one line on stderr says why;
- `always`: the build fails if it cannot (wheels that are published, CI);
- `never`: it is not tried, which saves some minutes.

An editable install is never compiled: a module that is edited would go on running as it was compiled.
"""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import textwrap
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ASKED = ("auto", "always", "never")


class CannotCompile(Exception):
    """Why there is no compiled core, in one line."""


class WheelContents(BuildHookInterface):  # type: ignore[type-arg]
    """Adds to what `[tool.hatch.build.targets.wheel]` names."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        self.made = tempfile.TemporaryDirectory()
        self._add_manual_pages(Path(self.made.name, "man"), build_data)
        if version == "standard":
            self._add_compiled_core(Path(self.made.name, "core"), build_data)

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        self.made.cleanup()

    def _add_manual_pages(self, place: Path, build_data: dict[str, Any]) -> None:
        """Below share/man/man1, where man(1) finds what is installed in a PATH's ../share/man (manpath(1))."""
        place.mkdir()
        sys.path.insert(0, str(Path(self.root) / "server"))
        try:
            pages = importlib.import_module("serve_asgi.cli.man_pages").pages()
        finally:
            sys.path.pop(0)
        for name, text in pages.items():
            path = place / name
            path.write_text(text)
            build_data["shared_data"][str(path)] = f"share/man/man1/{name}"

    def _add_compiled_core(self, place: Path, build_data: dict[str, Any]) -> None:
        asked = os.environ.get("SERVE_ASGI_COMPILE") or ASKED[0]
        if asked not in ASKED:
            raise ValueError(f"SERVE_ASGI_COMPILE={asked} is none of {', '.join(ASKED)}")
        if asked == "never":
            return
        try:
            compiled = compiled_core(Path(self.root), place)
        except CannotCompile as reason:
            if asked == "always":
                raise
            print(f"serve-asgi: built as pure Python, without the compiled core: {reason}", file=sys.stderr)
            return
        build_data |= {"pure_python": False, "infer_tag": True}
        build_data["force_include"] |= {str(path): str(path.relative_to(place)) for path in compiled}


def compiled_core(root: Path, place: Path) -> list[Path]:
    """Compile the core into `place`; return its files. Raises CannotCompile."""
    if (sys.platform, sys.implementation.name) != ("linux", "cpython") or sysconfig.get_config_var("Py_GIL_DISABLED"):
        raise CannotCompile("it is for CPython on Linux, with the global interpreter lock")
    command = [sys.executable, str(root / "compile_core.py"), str(place)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        if os.environ.get("SERVE_ASGI_COMPILE") == "always":
            print(done.stdout, file=sys.stderr)
        said = done.stdout.strip().splitlines() or [f"exit status {done.returncode}"]
        reason = re.sub(r"Command '\['(.+?)'.*\]'", r"\1", said[-1].rpartition("Error: ")[2])  # without its arguments
        raise CannotCompile(textwrap.shorten(reason, 160, placeholder=" …"))
    if not (compiled := sorted(place.rglob(f"*{sysconfig.get_config_var('EXT_SUFFIX')}"))):
        raise CannotCompile("no module has a .pxd file beside it")
    return compiled
