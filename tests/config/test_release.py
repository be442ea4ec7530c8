"""What a generation runs on: links are followed when it begins, and what is missing is said in a sentence."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from serve_asgi.config import release
from serve_asgi.config.code_places import MovedLink, moved_link
from serve_asgi.config.options import Config
from serve_asgi.config.release import commit_of, interpreter_flags, logical_directory, resolve
from serve_asgi.errors import UsageError


@pytest.fixture
def current(tmp_path: Path) -> Path:
    """A link to a release directory with an interpreter in it."""
    for number in ("1", "2"):
        (tmp_path / number / "bin").mkdir(parents=True)
        (tmp_path / number / "bin" / "python").symlink_to(sys.executable)
    (tmp_path / "current").symlink_to("1")
    return tmp_path / "current"


def move(link: Path, target: str) -> None:
    link.unlink()
    link.symlink_to(target)


def test_directories_and_interpreter_follow_the_link(current: Path) -> None:
    config = Config(chdir="current", python="current/bin/python")
    first = resolve(config, str(current.parent))
    move(current, "2")
    second = resolve(config, str(current.parent))
    for number, found in (("1", first), ("2", second)):
        assert found.directory == str(current.parent / number)
        assert found.app_dir == str(current.parent / number)
        assert found.python == str(current.parent / number / "bin" / "python")  # not what that file links to
        assert found.environment["PWD"] == found.directory


def test_the_application_directory_is_relative_to_the_working_directory(current: Path) -> None:
    release = resolve(Config(chdir="current", app_dir="bin"), str(current.parent))
    assert release.app_dir == str(current.parent / "1" / "bin")


def test_the_code_is_where_the_application_is(current: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the working directory or below it, in another one, on PYTHONPATH, or installed somewhere."""
    elsewhere = current.with_name("elsewhere")
    elsewhere.mkdir()
    start, first = str(elsewhere), str(current.with_name("1"))
    (current / "src").mkdir()
    (current / "src" / "app.py").touch()
    for config in (Config(app="app:app", chdir=str(current)), Config(app="app:app", chdir=str(current), app_dir="src")):
        assert resolve(config, start).code == first
    assert resolve(Config(app="app:app", app_dir="../current/src"), start).code == f"{first}/src"
    monkeypatch.setenv("PYTHONPATH", f"/nothing:../current/src:{start}")
    (current / "env").write_text("A=1")
    found = resolve(Config(app="app:app", env_file="../current/env"), start)
    assert found.code == f"{first}/src"
    assert found.environment["PYTHONPATH"] == f"/nothing:{first}/src:{start}"
    assert resolve(Config(app="installed:app"), start).code == start
    named = [name for name, leads_to in found.places.items() if name != leads_to]
    assert named == [f"{current}/src", f"{current}/env"]
    assert list(found.places)[:2] == [start, "/nothing"]


def test_the_environment_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/notify")
    monkeypatch.setenv("KEPT", "yes")
    (tmp_path / "env").write_text("# comment\nexport A='1 2'\nB=${A}3\nKEPT=no\n\n")
    environment = resolve(Config(env_file="env"), str(tmp_path)).environment
    assert (environment["A"], environment["B"], environment["KEPT"]) == ("1 2", "1 23", "no")
    assert "NOTIFY_SOCKET" not in environment
    assert os.environ["KEPT"] == "yes"


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (Config(chdir="missing"), "--chdir"),
        (Config(app_dir="missing"), "--app-dir"),
        (Config(env_file="missing"), "--env-file"),
        (Config(python="missing/python"), "--python"),
        (Config(python="no-such-interpreter"), "--python"),
    ],
)
def test_what_is_missing_is_said(tmp_path: Path, config: Config, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        resolve(config, str(tmp_path))


def test_the_working_directory_by_the_name_it_was_entered_by(current: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(current)
    monkeypatch.setenv("PWD", str(current))
    assert logical_directory() == str(current)
    monkeypatch.setenv("PWD", "/")  # another's
    assert logical_directory() == str(current.parent / "1")


def test_a_working_directory_that_is_gone_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(UsageError, match="does not exist any more"):
        logical_directory()


@pytest.mark.parametrize(
    ("before", "program", "flags"),
    [
        ([], ["-m", "serve_asgi"], []),
        (["-P"], ["-m", "serve_asgi"], []),
        (["-O", "-X", "dev", "-P", "-W", "error"], ["-m", "serve_asgi"], ["-O", "-X", "dev", "-W", "error"]),
        (["-X", "dev"], ["-mserve_asgi"], ["-X", "dev"]),
        ([], ["/srv/env/bin/serve"], []),
        (["-sP"], ["/srv/env/bin/serve"], ["-s"]),
        ([], ["-um", "serve_asgi"], ["-u"]),
        (["-Xdev", "-OP"], ["-c", "from serve_asgi.__main__ import main; main()"], ["-Xdev", "-O"]),
        (["-BW", "error"], ["-uc", "from serve_asgi.__main__ import main; main()"], ["-BW", "error", "-u"]),
        (["-O"], ["-m", "coverage", "run", "-m", "serve_asgi"], ["-O"]),
        (["-O"], ["launch.py", "-W", "its own"], ["-O"]),
        (["--check-hash-based-pycs", "always"], ["-m", "serve_asgi"], ["--check-hash-based-pycs", "always"]),
        ([], ["-"], []),
        ([], [], []),
    ],
)
@pytest.mark.parametrize("arguments", [[], ["app:app", "--workers", "2"]])
def test_what_the_interpreter_was_told(
    before: list[str], program: list[str], flags: list[str], arguments: list[str]
) -> None:
    assert interpreter_flags(["python", *before, *program, *(arguments if program else [])]) == flags


def test_the_listener_was_started_when_its_process_was_whatever_programs_it_has_run_since() -> None:
    code = "import os, sys, time; from serve_asgi.config.release import BEGAN; print(BEGAN, time.time(), flush=True); "
    again = "time.sleep(0.5); sys.argv[1:] and os.execv(sys.executable, [sys.executable, '-c', sys.argv[1]])"
    told = subprocess.run([sys.executable, "-c", code + again, code], capture_output=True, text=True, check=True)
    (first, first_now), (second, second_now) = (map(float, line.split()) for line in told.stdout.splitlines())
    assert abs(second - first) < 0.1  # the kernel counts in hundredths of a second
    assert first < first_now
    assert second + 0.5 < second_now


def test_the_name_of_the_environment_is_told_to_the_application(tmp_path: Path) -> None:
    assert resolve(Config(environment="staging"), str(tmp_path)).environment["SERVE_ENVIRONMENT"] == "staging"


def test_what_the_listener_alone_is_told_is_not_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/notify")
    monkeypatch.setenv("KEPT", "1")
    environment = resolve(Config(), str(tmp_path)).environment
    assert environment["KEPT"] == "1"
    assert environment["PWD"] == str(tmp_path)
    assert not {*release.PRIVATE_VARIABLES} & environment.keys()


def test_an_interpreter_that_a_deploy_has_deleted_gives_way_to_the_current_releases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert release.own_program() == sys.executable
    monkeypatch.setattr(sys, "executable", str(tmp_path / "gone"))
    assert release.own_program() == release.STARTED_THROUGH
    assert release.program() == release.STARTED_THROUGH
    monkeypatch.setattr(release, "STARTED_THROUGH", str(tmp_path / "gone"))
    with pytest.raises(UsageError, match="cannot be run; give --python one that exists"):
        release.program()


def test_without_proc_the_listener_was_started_now(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: Path) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    assert release._began() > release.BEGAN


def git(directory: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main")
    done = subprocess.run(["git", *identity, *arguments], cwd=directory, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_commit_is_that_which_is_checked_out(tmp_path: Path) -> None:
    """Read from git's files: on a branch, packed, detached, in a worktree, and in a directory below."""
    repository = tmp_path / "repository"
    (repository / "server").mkdir(parents=True)
    assert commit_of(str(repository)) == ""
    git(repository, "init", "-q")
    assert commit_of(str(repository)) == ""  # there is none yet
    git(repository, "commit", "-q", "--allow-empty", "-m", "one")
    first = git(repository, "rev-parse", "HEAD")
    assert commit_of(str(repository)) == commit_of(str(repository / "server")) == first
    git(repository, "pack-refs", "--all")
    assert commit_of(str(repository)) == first
    git(repository, "worktree", "add", "-q", "-b", "other/branch", "../worktree")
    git(tmp_path / "worktree", "commit", "-q", "--allow-empty", "-m", "two")
    second = git(tmp_path / "worktree", "rev-parse", "HEAD")
    assert second != first
    assert commit_of(str(tmp_path / "worktree")) == second
    git(repository, "checkout", "-q", "--detach", second)
    assert commit_of(str(repository)) == second
    (repository / ".git" / "HEAD").write_bytes(b"ref: refs/heads/\xff\n")
    assert commit_of(str(repository)) == ""


def test_a_deploy_tool_may_say_which_revision_it_is(tmp_path: Path) -> None:
    (tmp_path / "REVISION").write_text("v1.4.2\n")
    assert commit_of(str(tmp_path)) == "v1.4.2"
    (tmp_path / "src" / "site").mkdir(parents=True)
    assert commit_of(str(tmp_path / "src" / "site")) == "v1.4.2"
    (tmp_path / "REVISION").write_text("\x1b[31m and more\n")
    assert commit_of(str(tmp_path)) == ""


def test_a_link_that_leads_elsewhere_by_now_is_found(tmp_path: Path) -> None:
    link, first, second = tmp_path / "current", tmp_path / "1", tmp_path / "2"
    for each in (first, second):
        (each / "site").mkdir(parents=True)
    link.symlink_to("1")
    places = {str(tmp_path): str(tmp_path), str(link / "site"): str(first / "site"), str(link): str(first)}
    assert moved_link(places) is None
    link.unlink()
    link.symlink_to("2")
    moved = moved_link(places)
    assert moved == MovedLink(str(link), str(second), str(first))
    assert str(moved) == f"{link} leads to {second}, but {first} serves: a restart would start {second}"
    assert moved_link({str(link / "site"): "/srv/elsewhere"}) is None  # by a link within the release: nothing is known
