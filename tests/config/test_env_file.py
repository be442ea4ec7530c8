"""What --env-file may hold, and that nothing in it is passed over in silence."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from serve_asgi.config.env_file import variables
from serve_asgi.errors import UsageError
from tests.running import ROOT


def read(directory: Path, content: str | bytes) -> dict[str, str]:
    path = directory / "env"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return variables(str(path))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", {}),
        ("# a comment\n\n", {}),
        ("A=1\nB = 2 # said\r\nexport C=3", {"A": "1", "B": "2", "C": "3"}),
        ("A=\nB=''\n", {"A": "", "B": ""}),
        ("A=1\nA=2\n", {"A": "2"}),
        ("A='x # y'\nB=\"it's\"\nC='it\\'s'\n", {"A": "x # y", "B": "it's", "C": "it's"}),
        ('A="two\nlines\\n"\n', {"A": "two\nlines\n"}),
        ("A=x=y==\nB=#z\n", {"A": "x=y==", "B": "#z"}),
        ("a.b-c=1\n", {"a.b-c": "1"}),
        ("A=1\nB=${A}2\nC=${D:-3}\nE=${D:-}\n", {"A": "1", "B": "12", "C": "3", "E": ""}),
        ("\ufeffA=1\n", {"A": "1"}),
    ],
)
def test_what_is_read(tmp_path: Path, content: str, expected: dict[str, str]) -> None:
    assert read(tmp_path, content) == expected


def test_the_servers_environment_can_be_taken_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FROM_OUTSIDE", "x")
    assert read(tmp_path, "A=${FROM_OUTSIDE}y\nFROM_OUTSIDE=z\nB=${FROM_OUTSIDE}") == {
        "A": "xy",
        "FROM_OUTSIDE": "z",
        "B": "z",
    }


@pytest.mark.parametrize(
    ("content", "line", "sentence"),
    [
        ('DB="hunter2\nX=1\n', 1, 'the value of DB begins with a quote " that is not closed'),
        ("A=1\n\n\nexport DB='hunter2\n", 4, "the value of DB begins with a quote ' that is not closed"),
        ('DB="hunter2" hunter2\n', 1, "or has something behind the closing one: close it at the end"),
        ("DB: hunter2\n", 1, "this is not a variable: write NAME=value"),
        ("DB: x=hunter2\n", 1, "no name before the equals sign, or more than one"),
        ("\n=hunter2\n", 2, "no name before the equals sign"),
        ("A B=hunter2\n", 1, "no name before the equals sign, or more than one"),
        ("''=hunter2\n", 1, "no name before the equals sign"),
        (
            ";A=hunter2\n",
            1,
            "what stands before the equals sign is not a name: write NAME=value, and # in front of a comment",
        ),
        ("1A=hunter2\n", 1, "is not a name"),
        ("'A B'=hunter2\n", 1, "is not a name"),
        ("A=1\nhunter2\n", 2, "there is no equals sign: write NAME=value, or NAME= for an empty value"),
        ("export A\n", 1, "there is no equals sign"),
        ("[section]\n", 1, "there is no equals sign"),
        ("set -a\n", 1, "this is not a variable"),
        ('{"A": "hunter2"}\n', 1, "this is not a variable"),
        ("A=1\nB=hunter2${hunter2}\n", 2, "the value of B takes in a variable, by ${…}, that is set neither above nor"),
        ("A=hunter2\0\n", 1, "there is a NUL character"),
        ("A=" + "hunter2" * 20_000, 1, "A is longer than 128 KiB"),
    ],
)
def test_what_cannot_be_read_is_told_with_its_line_and_without_a_value(
    tmp_path: Path, content: str, line: int, sentence: str
) -> None:
    with pytest.raises(UsageError) as caught:
        read(tmp_path, content)
    told = str(caught.value)
    assert told.startswith(f"the environment file {tmp_path}/env:{line}: ")
    assert sentence in told
    assert "hunter2" not in told


@pytest.mark.parametrize("kind", ["missing", "directory", "pipe", "endless", "huge", "latin-1"])
def test_what_is_no_such_file_is_told_at_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "env"
    if kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "endless":
        path = Path("/dev/zero")
    elif kind == "huge":
        path.write_bytes(b"A=1\n" * 300_000)
    elif kind == "latin-1":
        path.write_bytes(b"A=\xe9\n")
    with pytest.raises(UsageError, match=f"the environment file {path} cannot be read: "):
        variables(str(path))


@pytest.mark.parametrize("content", ["A='hunter2\n", "A=hunter2\0", "hunter2"])
def test_the_start_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / ".env").write_text(content)
    done = subprocess.run(
        [sys.executable, "-m", "serve_asgi", "app:app", "--env-file", ".env", "--bind", "127.0.0.1:0"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PWD": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"serve: the environment file {tmp_path}/.env:1: ")
    assert done.stderr.count("\n") == 1
    assert "hunter2" not in done.stderr
