"""Changed files are noticed by looking at them, and what that costs is bounded."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve_asgi.listener import file_polling
from serve_asgi.listener.file_polling import MOST_LOOKS, ROUND, FilePoller
from serve_asgi.listener.watched_files import WatchedFiles


class Polling:
    """One poller, without its waits: `round` is the next round."""

    def __init__(self, directory: Path, *, include: tuple[str, ...] = ()) -> None:
        self.poller = FilePoller(WatchedFiles((str(directory),), (str(directory / "serve.toml"),), include, ()))
        self._steps: Iterator[tuple[float, list[str]]] = self.poller.look()
        self.waited = 0.0
        self.round()

    def round(self) -> list[str]:
        """The names of the files that have changed."""
        before, self.waited = self.poller.rounds, 0.0
        while True:
            pause, changed = next(self._steps)
            self.waited += pause
            if self.poller.rounds > before:
                return [os.path.basename(path) for path in changed]


def test_what_is_written_made_and_removed_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("1")
    (tmp_path / "page.html").write_text("1")
    polling = Polling(tmp_path)
    assert polling.round() == []
    (tmp_path / "app.py").write_text("22")
    (tmp_path / "page.html").write_text("22")
    assert polling.round() == ["app.py"]
    assert polling.round() == []
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "models.py").write_text("")
    (tmp_path / "serve.toml").write_text("")
    assert polling.round() == ["models.py", "serve.toml"]
    replacement = tmp_path / "x"
    replacement.write_text("22")
    replacement.replace(tmp_path / "app.py")
    (tmp_path / "deep" / "er" / "models.py").unlink()
    assert polling.round() == ["app.py", "models.py"]


def test_further_patterns_count(tmp_path: Path) -> None:
    polling = Polling(tmp_path, include=("*.html",))
    (tmp_path / "page.html").write_text("")
    assert polling.round() == ["page.html"]


def test_a_directory_that_is_gone_may_come_back(tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "app.py").write_text("")
    polling = Polling(project)
    project.rename(tmp_path / "aside")
    assert polling.round() == ["app.py"]
    (tmp_path / "aside").rename(project)
    assert polling.round() == ["app.py"]


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files and directories that are looked at."""
    looked: list[str] = []

    def stat(path: str) -> os.stat_result:
        looked.append(os.path.basename(path))
        return os.stat(path)

    class Os:
        def __getattr__(self, name: str) -> object:
            return stat if name == "stat" else getattr(os, name)

    monkeypatch.setattr(file_polling, "os", Os())
    return looked


def test_what_tools_write_is_not_looked_at(tmp_path: Path, looked_at: list[str]) -> None:
    for directory in (".git", ".venv", "node_modules", "__pycache__", "environment", "package"):
        (tmp_path / directory).mkdir()
        (tmp_path / directory / f"{directory}.py").write_text("")
    (tmp_path / "environment" / "pyvenv.cfg").write_text("")
    (tmp_path / "notes.txt").write_text("")
    Polling(tmp_path).round()
    assert set(looked_at) == {"serve.toml", "package.py"}


def test_a_large_project_takes_longer_instead_of_more(tmp_path: Path, looked_at: list[str]) -> None:
    for number in range(40):
        package = tmp_path / f"package{number}"
        package.mkdir()
        for file in range(50):
            (package / f"m{file}.py").write_text("")
    polling = Polling(tmp_path)
    looked_at.clear()
    assert polling.round() == []
    assert len(looked_at) == 2001
    assert polling.waited >= 2 * 2000 / MOST_LOOKS * 0.95  # each file is an entry of its directory as well
    small = Polling(tmp_path / "package0")
    small.round()
    assert small.waited == pytest.approx(ROUND)
