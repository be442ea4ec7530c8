"""Which compiled code a process of the application believes: real files, and an interpreter for each case."""

from __future__ import annotations

import importlib.util
import marshal
import os
import py_compile
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.running import ROOT

LONG_AGO = 1_600_000_000
OLD, NEW = "TEXT = 'old'\n", "TEXT = 'new'\n"
WAYS = {
    "import": "import sub; print(sub.TEXT)",
    "run as a module": "import runpy; print(runpy.run_module('sub')['TEXT'])",
    "by its file": (
        "import importlib.util as u, os; s = u.spec_from_file_location('other', os.path.join(os.getcwd(), 'sub.py')); "
        "m = u.module_from_spec(s); s.loader.exec_module(m); print(m.TEXT)"
    ),
}


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A directory of an application; writable again at the end."""
    yield tmp_path
    for each in tmp_path.rglob("__pycache__"):
        each.chmod(0o700)


OBEDIENT = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search") if os.geteuid() == 0 else ()
"""Has root obey the modes of files (capabilities(7)), as everybody else does."""


def imported(
    place: Path,
    code: str = WAYS["import"],
    *,
    since: float | None = None,
    flags: tuple[str, ...] = (),
    keep: bool = True,
    wrapper: Sequence[str] = (),
    **environ: str,
) -> str:
    """What a fresh interpreter prints, in a server that was started at `since` (now); `keep` what it compiles."""
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "" if keep else "1"}
    begin = f"from serve_asgi.worker.bytecode import keep_fresh; keep_fresh({since or time.time()}); "
    command = [*wrapper, sys.executable, "-P", *flags, "-c", begin + "import sys; sys.path.insert(0, ''); " + code]
    done = subprocess.run(
        command,
        cwd=place,
        env={**environment, "PYTHONPATH": str(ROOT), **environ},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def write(path: Path, text: str) -> None:
    """Deploy a file in place whose time is that of every other build."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, (LONG_AGO, LONG_AGO))


def compiled(path: Path, mode: py_compile.PycInvalidationMode = py_compile.PycInvalidationMode.TIMESTAMP) -> Path:
    """Have another program compile it; return the bytecode's path."""
    made = py_compile.compile(str(path), doraise=True, invalidation_mode=mode)
    assert made is not None
    return Path(made)


def until_later() -> None:
    """Let the clock of the file system go on, which is coarser than ours."""
    time.sleep(0.02)


def flags_of(pyc: Path) -> int:
    return int.from_bytes(pyc.read_bytes()[4:8], "little")


@pytest.mark.parametrize("way", WAYS)
def test_a_file_that_was_changed_in_place_is_compiled_anew_whoever_compiled_it_before(place: Path, way: str) -> None:
    source = place / "sub.py"
    write(source, OLD)
    compiled(source)
    until_later()
    write(source, NEW)
    assert imported(place, WAYS[way]) == "new"
    write(source, OLD)  # and what was written by that cannot be stale
    assert imported(place, WAYS[way]) == "old"


def test_what_is_written_has_the_hash_of_what_was_compiled_and_is_used_again(place: Path) -> None:
    source = place / "sub.py"
    write(source, OLD)
    assert imported(place) == "old"
    (pyc,) = (place / "__pycache__").glob("sub.*")
    written = pyc.read_bytes()
    assert flags_of(pyc) == 0b11
    assert written[8:16] == importlib.util.source_hash(OLD.encode())
    other = compile("TEXT = 'compiled'", str(source), "exec")  # shows who is read
    pyc.write_bytes(written[:16] + marshal.dumps(other))
    assert imported(place) == "compiled"
    source.touch()
    assert imported(place) == "compiled"
    write(source, NEW)
    assert imported(place) == "new"


def test_packages_and_namespaces_are_no_exception(place: Path) -> None:
    for name in ("package/__init__.py", "package/sub.py", "space/sub.py"):
        write(place / name, OLD)
        compiled(place / name)
    until_later()
    for name in ("package/__init__.py", "package/sub.py", "space/sub.py"):
        write(place / name, NEW)
    code = "import package.sub, space.sub; print(package.TEXT, package.sub.TEXT, space.sub.TEXT)"
    assert imported(place, code) == "new new new"


def test_bytecode_that_was_surely_written_later_is_believed(place: Path) -> None:
    source = place / "sub.py"
    write(source, OLD)
    time.sleep(1.1)
    pyc = compiled(source)
    before = pyc.stat()
    assert imported(place) == "old"
    assert pyc.stat().st_mtime_ns == before.st_mtime_ns
    assert flags_of(pyc) == 0


@pytest.mark.parametrize("where", ["site-packages/", "dist-packages/deep/", ""])
def test_what_is_installed_or_cannot_be_written_is_believed_unless_it_changed_since_the_start(
    place: Path, where: str
) -> None:
    """As an image's layers are unpacked: bytecode first, then the sources."""
    source = place / where / "sub.py"
    write(source, OLD)
    pyc = compiled(source)
    until_later()
    write(source, OLD)
    before = pyc.read_bytes()
    code = f"sys.path.insert(0, {str(source.parent)!r}); " + WAYS["import"]
    until_later()
    start = time.time()
    assert imported(place, code, since=start, keep=bool(where)) == "old"
    assert pyc.read_bytes() == before
    until_later()
    write(source, NEW)
    assert imported(place, code, since=start, keep=bool(where)) == "new"
    assert (pyc.read_bytes() == before) is (not where)


def test_where_nothing_can_be_written_nothing_is_lost(place: Path) -> None:
    source = place / "sub.py"
    write(source, OLD)
    compiled(source)
    (place / "__pycache__").chmod(0o500)
    until_later()
    start = time.time()
    assert imported(place, since=start, wrapper=OBEDIENT) == "old"
    until_later()
    write(source, NEW)
    assert imported(place, since=start, wrapper=OBEDIENT) == "new"


def test_an_unchecked_hash_is_a_promise(place: Path) -> None:
    source = place / "sub.py"
    write(source, OLD)
    compiled(source, py_compile.PycInvalidationMode.UNCHECKED_HASH)
    until_later()
    write(source, NEW)
    assert imported(place) == "old"


@pytest.mark.parametrize("content", [b"", b"short", b"x" * 100])
def test_what_is_no_bytecode_is_replaced(place: Path, content: bytes) -> None:
    write(place / "sub.py", NEW)
    pyc = Path(importlib.util.cache_from_source(str(place / "sub.py")))
    pyc.parent.mkdir()
    pyc.write_bytes(content)
    assert imported(place) == "new"
    assert flags_of(pyc) == 0b11


def test_bytecode_without_a_source_and_other_files_of_a_package_are_read_as_ever(place: Path) -> None:
    write(place / "sub.py", OLD)
    py_compile.compile(str(place / "sub.py"), cfile=str(place / "alone.pyc"))
    write(place / "package" / "__init__.py", "")
    (place / "package" / "data.pyc").write_bytes(b"data")
    code = "import alone, pkgutil; print(alone.TEXT, pkgutil.get_data('package', 'data.pyc'))"
    assert imported(place, code) == "old b'data'"


def test_the_interpreters_own_options_hold(place: Path) -> None:
    source = place / "sub.py"
    write(source, OLD)
    elsewhere = place / "elsewhere"
    assert imported(place, PYTHONPYCACHEPREFIX=str(elsewhere)) == "old"
    assert not (place / "__pycache__").exists()
    (pyc,) = elsewhere.rglob("sub.*")
    assert flags_of(pyc) == 0b11
    write(source, NEW)
    assert imported(place, PYTHONPYCACHEPREFIX=str(elsewhere)) == "new"
    assert imported(place, flags=("-O",)) == "new"
    (optimized,) = (place / "__pycache__").iterdir()
    assert ".opt-1." in optimized.name


def test_an_interpreter_that_checks_no_hashes_is_given_none(place: Path) -> None:
    source = place / "sub.py"
    never = ("--check-hash-based-pycs", "never")
    write(source, OLD)
    assert imported(place, flags=never) == "old"
    (pyc,) = (place / "__pycache__").iterdir()
    assert flags_of(pyc) == 0
    until_later()
    write(source, NEW)
    assert imported(place, flags=never) == "new"


def test_several_that_write_at_once_leave_what_is_whole(place: Path) -> None:
    write(place / "sub.py", OLD)
    with ThreadPoolExecutor() as pool:
        assert set(pool.map(imported, [place] * 4)) == {"old"}
    (pyc,) = (place / "__pycache__").iterdir()
    assert imported(place) == "old"
    assert flags_of(pyc) == 0b11
