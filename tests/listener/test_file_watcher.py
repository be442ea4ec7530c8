"""Which files count for `--reload`."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from watchfiles import Change

from serve_asgi.listener.watched_files import WatchedFiles

ADDED, MODIFIED, DELETED = Change.added, Change.modified, Change.deleted


def watched(directory: Path, *, include: tuple[str, ...] = (), exclude: tuple[str, ...] = ()) -> WatchedFiles:
    files = (str(directory / "serve.toml"), "/elsewhere/.env")
    return WatchedFiles((str(directory),), files, include, exclude)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("app.py", True),
        ("deep/er/models.py", True),
        ("notes.txt", False),
        ("serve.toml", True),
        ("pyproject.toml", False),
        ("__pycache__/app.py", False),
        (".venv/lib/x.py", False),
        ("env/lib/python3.13/site-packages/x.py", False),
        ("node_modules/tool/build.py", False),
        (".#app.py", False),
        ("app.py~", False),
        ("app.pyc", False),
        ("..data/app.py", False),
    ],
)
def test_sources_count_and_what_tools_write_does_not(tmp_path: Path, path: str, expected: bool) -> None:
    assert watched(tmp_path).counts(MODIFIED, str(tmp_path / path)) is expected
    assert watched(tmp_path).counts(DELETED, str(tmp_path / path)) is expected


def test_what_stands_above_the_directory_does_not_matter(tmp_path: Path) -> None:
    hidden = tmp_path / ".worktrees" / "site-packages"
    assert watched(hidden).counts(MODIFIED, str(hidden / "app.py"))
    assert not watched(hidden).counts(MODIFIED, str(tmp_path / "app.py"))


def test_files_that_are_named_count_anywhere(tmp_path: Path) -> None:
    assert watched(tmp_path).counts(MODIFIED, "/elsewhere/.env")
    assert not watched(tmp_path).counts(MODIFIED, "/elsewhere/app.py")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("app.py", True),
        ("templates/a/page.html", True),
        ("page.html", False),
        ("x.css", True),
        ("tests/test_app.py", False),
        ("deep/tests/test_app.py", False),
        ("src/gen/a.py", False),
        ("gen/a.py", True),
        ("a_pb2.py", False),
    ],
)
def test_patterns_add_and_take_away(tmp_path: Path, path: str, expected: bool) -> None:
    some = watched(tmp_path, include=("*.css", "templates/*.html"), exclude=("tests", "src/gen", "*_pb2.py"))
    assert some.counts(MODIFIED, str(tmp_path / path)) is expected


def test_a_directory_that_came_counts_by_what_is_in_it(tmp_path: Path) -> None:
    for name in ("package/inner/x.py", "data/x.txt", ".hidden/x.py", "package.new/.cache/x.py"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    some = watched(tmp_path)
    assert some.counts(ADDED, str(tmp_path / "package"))
    assert not some.counts(MODIFIED, str(tmp_path / "package"))
    assert not some.counts(ADDED, str(tmp_path / "data"))
    assert not some.counts(ADDED, str(tmp_path / ".hidden"))
    assert not some.counts(ADDED, str(tmp_path / "package.new"))
    assert not watched(tmp_path, exclude=("package",)).counts(ADDED, str(tmp_path / "package"))


def test_a_virtual_environment_does_not_count_whatever_it_is_called(tmp_path: Path) -> None:
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    assert watched(tmp_path).counts(MODIFIED, str(tmp_path / "venv" / "bin" / "tool.py"))
    (tmp_path / "venv" / "pyvenv.cfg").touch()
    assert not watched(tmp_path).counts(MODIFIED, str(tmp_path / "venv" / "bin" / "tool.py"))


def test_a_watched_directory_that_goes_ends_the_watching(tmp_path: Path) -> None:
    some = watched(tmp_path)
    assert some.ends(DELETED, str(tmp_path))
    assert some.counts(DELETED, str(tmp_path))
    assert not some.ends(MODIFIED, str(tmp_path))
    assert not some.ends(DELETED, str(tmp_path / "app.py"))


def test_only_what_lies_apart_is_watched_apart(tmp_path: Path) -> None:
    (tmp_path / "project").mkdir()
    some = WatchedFiles(
        (str(tmp_path / "project"),),
        (str(tmp_path / "project" / "serve.toml"), str(tmp_path / "env"), str(tmp_path / "gone" / "env")),
        (),
        (),
    )
    assert some.apart() == (str(tmp_path),)


def test_what_changed_before_anybody_watched_is_found_by_the_kernels_own_time(tmp_path: Path) -> None:
    for name in ("early.py", "late.py", "venv/late.py", "late.txt", "env"):
        (tmp_path / "project" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "project" / name).touch()
    (tmp_path / "project" / "venv" / "pyvenv.cfg").touch()
    since = (tmp_path / "project" / "env").stat().st_ctime_ns + 1
    some = WatchedFiles(
        (str(tmp_path / "project"),), (str(tmp_path / "project" / "env"), str(tmp_path / "gone")), (), ()
    )
    names = ("late.py", "venv/late.py", "late.txt")
    while time.time_ns() < since + 20_000_000:
        time.sleep(0.005)
    for name in names:
        os.utime(tmp_path / "project" / name, (1, 1))
    assert some.changed_between(since, time.time_ns()) == [str(tmp_path / "project" / "late.py")]
