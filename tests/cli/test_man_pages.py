"""The manual pages: all options and commands are there, man(1) reads them, and the wheel has them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from serve_asgi.cli import MODULES
from serve_asgi.cli.man_pages import pages
from serve_asgi.config.options import flag, options

ROOT = Path(__file__).parent.parent.parent

pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("man1")
    for name, text in pages().items():
        (made / name).write_text(text)
    return made


def test_there_is_a_page_for_each_command_and_one_for_all_options() -> None:
    made = pages()
    assert set(made) == {"serve.1", *(f"serve-{name}.1" for name in MODULES)}
    plain = made["serve.1"].replace("\\-", "-")
    for name in options():
        assert f"\\fB{flag(name)}\\fP" in plain
    for name in MODULES:
        assert f"serve-{name}" in plain
        assert ".SH DESCRIPTION" in made[f"serve-{name}.1"]
    assert "--retired" in made["serve-reload.1"].replace("\\-", "-")


@pytest.mark.needs("mandoc")
def test_they_are_clean_for_mandoc_and_can_be_read(directory: Path) -> None:
    lint = ["mandoc", "-T", "lint", "-W", "warning", *map(str, sorted(directory.iterdir()))]
    said = subprocess.run(lint, capture_output=True, text=True, check=False).stdout
    assert [line for line in said.splitlines() if "missing date" not in line] == []  # a build is the same on any day
    shown = subprocess.run(
        ["mandoc", "-T", "utf8", str(directory / "serve.1")], capture_output=True, text=True, check=True
    ).stdout
    text = " ".join(re.sub(r".\x08", "", shown).split())
    assert "serve - run an ASGI application so that nobody notices a deploy" in text
    assert "--graceful-timeout SECONDS" in text
    assert "'%(h)s \"%(r)s\" %(s)s'" in text


def test_the_wheel_has_them(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    environment = {**os.environ, "SERVE_ASGI_COMPILE": "never"}  # takes minutes, and has nothing to do with them
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.rpartition("/")[2] for name in names if ".data/data/share/man/man1/" in name} == set(pages())
    assert not [name for name in names if name.endswith("hatch_build.py")]
