"""Compiles the hot modules of the server with Cython: `python compile_core.py DIRECTORY [SOURCES]` fills DIRECTORY.

A module `x.py` with an `x.pxd` beside it is one of them. The .py files are complete and are what runs uncompiled; the
.pxd files add the C types (Cython, "Augmenting .pxd"). The result is extension modules in the layout of the package,
which the import system prefers to the .py files beside them. Nothing is written below SOURCES (by default `server`).

CC, CFLAGS and LDFLAGS are respected as setuptools does; what they say wins. Needs Cython, setuptools and a C compiler.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Final

PACKAGE: Final = "serve_asgi"
DIRECTIVES: Final = {
    "language_level": 3,
    "annotation_typing": False,  # annotations are for readers and mypy: only the .pxd files make C types
    "binding": True,  # functions as Python's: inspect.signature(), methods of classes
    "initializedcheck": False,
    "nonecheck": True,  # what is None raises AttributeError, as it does uncompiled
}
OPTIMIZED: Final = ("-O2", "-g0", "-DNDEBUG", "-fvisibility=hidden", "-fno-semantic-interposition")
STRIPPED: Final = "-Wl,--strip-all"


def modules(sources: Path) -> list[Path]:
    """The modules that are compiled, relative to `sources`."""
    found = (path.with_suffix(".py") for path in sources.joinpath(PACKAGE).rglob("*.pxd"))
    return sorted(path.relative_to(sources) for path in found if path.exists())


def compile_modules(target: Path, sources: Path) -> None:
    """Compile all of them, on every core; an empty file first, since what is missing is told sooner by it."""
    from Cython.Build import cythonize
    from setuptools import Distribution, Extension

    def build(extensions: list[Extension], place: Path) -> None:
        command = Distribution({"name": PACKAGE, "ext_modules": extensions}).get_command_obj("build_ext")
        command.build_lib, command.build_temp, command.parallel = str(place), f"{scratch}/o", cores
        command.ensure_finalized()
        command.run()

    target, cores = target.resolve(), os.cpu_count() or 1
    os.chdir(sources)  # so that tracebacks name serve_asgi/x.py, and no directory of the build
    with tempfile.TemporaryDirectory() as scratch:
        flags = [*OPTIMIZED, f"-ffile-prefix-map={scratch}=.", *os.environ.get("CFLAGS", "").split()]
        stripped = [] if "CFLAGS" in os.environ else [STRIPPED]  # who sets CFLAGS may want symbols
        probe = Path(scratch, "probe.c")
        probe.write_text("#include <Python.h>\n")
        build([Extension("probe", [str(probe)], extra_compile_args=flags, extra_link_args=stripped)], Path(scratch))
        extensions = [
            Extension(
                ".".join(path.with_suffix("").parts), [str(path)], extra_compile_args=flags, extra_link_args=stripped
            )
            for path in modules(Path())
        ]
        made = cythonize(  # type: ignore[no-untyped-call]
            extensions, compiler_directives=DIRECTIVES, build_dir=f"{scratch}/c", force=True, nthreads=cores, quiet=True
        )
        build(made, target)


if __name__ == "__main__":
    compile_modules(Path(sys.argv[1]), Path(sys.argv[2] if len(sys.argv) > 2 else Path(__file__).with_name("server")))
