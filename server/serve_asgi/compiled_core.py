"""Whether the hot modules run compiled, or as the pure Python that lies beside them.

A wheel for one version of CPython has, beside a module `x.py`, the extension module that Cython has made of it
(`compile_core.py`), which the import system prefers. Both do the same; where there is none, `x.py` runs. With
SERVE_ASGI_PURE_PYTHON=1 in the environment, which all processes of a server inherit, it runs in any case.
"""

from __future__ import annotations

import importlib.machinery
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Final

PACKAGE: Final = "serve_asgi"
SUFFIXES: Final = tuple(importlib.machinery.EXTENSION_SUFFIXES)


class PurePythonFinder:
    """Finds the package's modules without looking for extension modules (`importlib.abc.MetaPathFinder`)."""

    def __init__(self) -> None:
        self._directories: dict[str, importlib.machinery.FileFinder] = {}

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if path is None or not name.startswith(PACKAGE + "."):
            return None
        for directory in path:
            if (finder := self._directories.get(directory)) is None:
                finder = self._directories[directory] = importlib.machinery.FileFinder(
                    directory,
                    (importlib.machinery.SourceFileLoader, importlib.machinery.SOURCE_SUFFIXES),
                    (importlib.machinery.SourcelessFileLoader, importlib.machinery.BYTECODE_SUFFIXES),
                )
            if (spec := finder.find_spec(name)) is not None:
                return spec
        return None

    def invalidate_caches(self) -> None:
        """New files may be there (`importlib.invalidate_caches`)."""
        self._directories.clear()


def leave_out() -> None:
    """Have this process import the pure Python modules; called before any of the compiled ones is imported."""
    sys.meta_path.insert(0, PurePythonFinder())


def is_left_out() -> bool:
    """Whether that has been called."""
    return any(isinstance(finder, PurePythonFinder) for finder in sys.meta_path)


def installed_modules() -> int:
    """How many compiled modules a process that starts in this environment may import."""
    if is_left_out():
        return 0
    found = os.walk(os.path.dirname(os.path.abspath(__file__)))
    return sum(name.endswith(SUFFIXES) for _, _, names in found for name in names)


def loaded_modules() -> int:
    """How many compiled modules this process has imported."""
    modules = [module for name, module in list(sys.modules.items()) if name.startswith(PACKAGE + ".")]
    return sum((getattr(module, "__file__", None) or "").endswith(SUFFIXES) for module in modules)


def core(modules: int) -> str:
    """What it is called, with so many compiled modules."""
    return "compiled" if modules else "pure Python"
