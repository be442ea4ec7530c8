"""`serve deploy`: the link leads to what serves, whatever comes in between; in copied virtual environments as well."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve_asgi.cli import control_client, load, release_link
from serve_asgi.cli.release_link import ReleaseLink
from serve_asgi.errors import UsageError
from serve_asgi.ipc.path_lock import PathLock
from tests.cli.releases import Releases, version
from tests.cli.serving import serve, start
from tests.running import PATIENCE, ROOT, RunningServer, running


@pytest.fixture
def releases(tmp_path: Path) -> Releases:
    made = Releases(tmp_path)
    made.make("1")
    made.link.symlink_to("releases/1")
    return made


@contextlib.contextmanager
def served(releases: Releases, *arguments: str) -> Iterator[RunningServer]:
    with running("app:app", "--chdir", str(releases.link), *arguments, directory=releases.link.parent) as server:
        yield server
        assert server.stop() == 0


def test_a_release_is_deployed_refused_taken_back_and_old_ones_are_removed(releases: Releases) -> None:
    """The life of a node, with one server: starts are what takes time."""
    (releases.directory / "shared").mkdir()  # which no deploy has made
    with served(releases) as server:
        releases.make("2")
        done = serve(server, "deploy", str(releases.directory / "2"))
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.splitlines()[0] == f"{releases.link} -> releases/2"
        assert (version(server), releases.target) == ("2", "releases/2")

        bad = releases.make("3", "raise ValueError('not today')\n")
        done = serve(server, "deploy", str(bad))
        assert done.returncode == 1
        assert "ValueError: not today" in done.stderr
        assert done.stdout.splitlines()[-1] == f"{releases.link} -> releases/2"
        assert (version(server), releases.target) == ("2", "releases/2")

        done = serve(server, "deploy", str(bad), "--json")
        records = [json.loads(line) for line in done.stdout.splitlines()]
        assert [each["event"] for each in records if each["event"].startswith("link_")] == [
            "link_switched",
            "link_restored",
        ]
        assert (done.returncode, records[-1]["event"], records[-1]["ok"]) == (1, "outcome", False)

        releases.make("4")
        done = serve(server, "deploy", str(releases.directory / "4"), "--keep", "2", "--json", cwd=releases.link.parent)
        records = [json.loads(line) for line in done.stdout.splitlines()]
        assert (done.returncode, records[-1]["event"], records[-1]["ok"]) == (0, "outcome", True)
        assert [each["paths"] for each in records if each["event"] == "releases_removed"] == [[str(bad)]]
        assert sorted(path.name for path in releases.directory.iterdir()) == ["1", "2", "4", "shared"]

        done = serve(server, "rollback")
        assert (done.returncode, done.stdout.splitlines()[-1]) == (0, f"{releases.link} -> releases/2")
        assert (version(server), releases.target) == ("2", "releases/2")

        with contextlib.closing(PathLockOf(releases.link)):
            done = serve(server, "deploy", str(releases.directory / "4"))
        assert (done.returncode, done.stdout) == (2, "")
        assert f"another deploy through {releases.link} is under way, by PID {os.getpid()}" in done.stderr

        done = serve(server, "deploy", str(releases.directory / "5"))
        assert (done.returncode, done.stdout) == (2, "")
        assert "is not a directory" in done.stderr
        elsewhere = releases.link.parent / "elsewhere"
        elsewhere.mkdir()
        done = serve(server, "deploy", str(elsewhere))
        assert done.returncode == 2
        assert f"the server finds its code in {releases.link}, and not through a link beside" in done.stderr
    assert not list(releases.link.parent.glob("*.lock"))
    with served(releases) as server:  # a restart of the node starts what has served
        assert version(server) == "2"


class PathLockOf:
    """Another deploy."""

    def __init__(self, link: Path) -> None:
        self._lock = PathLock(str(link))

    def close(self) -> None:
        self._lock.release()


def test_a_canary_is_taken_back_and_an_interrupted_deploy_is_given_up(releases: Releases) -> None:
    with served(releases, "--workers", "2") as server:
        failing = releases.make("2", status=500)
        deploying = start(server, "deploy", str(failing), "--canary", "50%", "--for", "60", "--hold")
        server.wait_until(lambda status: (status.get("canary") or {}).get("state") == "canary" or _on_trial(status))
        assert releases.target == "releases/2"
        deploying.send_signal(signal.SIGTERM)
        said, complaint = deploying.communicate(timeout=PATIENCE)
        assert deploying.returncode == 128 + signal.SIGTERM, complaint
        assert said.splitlines()[-1] == f"{releases.link} -> releases/1"
        assert releases.target == "releases/1"
        server.wait_until(lambda status: status["starting"] is None)
        assert version(server) == "1"
        told = control_client.ask(server.control, "deploys")["deploys"][0]["text"]
        assert told == "it was given up by serve deploy: the command was interrupted"

        deploying = start(server, "deploy", str(failing), "--canary", "50%", "--for", "60")
        server.wait_until(_on_trial)
        while deploying.poll() is None:
            version(server)  # which half of the time is answered by the canary
        assert deploying.returncode == 1
        assert releases.target == "releases/1"
        assert version(server) == "1"
        deploying.communicate()


def test_a_release_that_is_rolled_back_while_its_switch_is_watched_is_taken_back(releases: Releases) -> None:
    configuration = releases.link.parent / "serve.toml"
    configuration.write_text("")
    older = [str(releases.make(name)) for name in ("01", "02")]
    for each in (*older, str(releases.directory / "1")):
        ReleaseLink(str(releases.link)).deployed_last("", each)
    with served(releases, "--no-access-log") as server:
        for _ in range(100):
            assert version(server) == "1"  # so that it is known what is usual
        failing = releases.make("2", status=500)
        configuration.write_text("auto-rollback = true\ncanary-time = 60\n")  # which this very deploy turns on
        deploying = start(server, "deploy", str(failing), "--keep", "2")
        try:
            server.wait_until(lambda status: status["generation"] == 2 and status["starting"] is None)
            assert releases.target == "releases/2"
            while deploying.poll() is None:
                version(server)
            said, complaint = deploying.communicate(timeout=PATIENCE)
        finally:
            deploying.kill()
        assert deploying.returncode == 1
        assert said.splitlines()[-1] == f"{releases.link} -> releases/1"
        assert re.search(rf"rolled back, {releases.directory}/1 serves again: .*requests failed", complaint), complaint
        assert (version(server), releases.target) == ("1", "releases/1")
        assert sorted(path.name for path in releases.directory.iterdir()) == ["01", "02", "1", "2"]
        server.logged(
            "warning: configuration: --auto-rollback false, as before the deploy that was rolled back; the next"
        )

        configuration.write_text("auto-rollback = true\ncanary-time = 1\n")
        done = serve(server, "deploy", str(releases.make("3")), "--keep", "2")
        assert (done.returncode, done.stderr) == (0, "")
        assert "the server watches the switch for 1 s" in done.stdout
        assert done.stdout.splitlines()[-1] == "removed older releases: 01, 02, 2"  # after the outcome
        assert (version(server), releases.target) == ("3", "releases/3")
        assert len(server.logged("generation 3 stays")) == 1


def _on_trial(status: dict[str, object]) -> bool:
    generations = status["generations"]
    assert isinstance(generations, list)
    return any(each["state"] == "canary" for each in generations)


def test_a_virtual_environment_that_was_built_elsewhere_is_deployed(tmp_path: Path) -> None:
    """Copied, not made where it runs: its scripts name the Python of the place where it was built, which is gone."""
    built, releases = tmp_path / "built", Releases(tmp_path)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(built)], check=True)
    packages = sysconfig.get_path("purelib", vars={"base": str(built)})
    Path(packages, "packages.pth").write_text(
        "".join(f"{path}\n" for path in [str(ROOT / "server"), *sys.path] if path.startswith("/"))
    )
    for name in ("1", "2"):
        shutil.copytree(built, releases.make(name) / ".venv", symlinks=True)
    shutil.rmtree(built)
    releases.link.symlink_to("releases/1")
    python = str(releases.link / ".venv" / "bin" / "python")
    with running("app:app", "--chdir", str(releases.link), directory=tmp_path, python=python) as server:
        assert f"{releases.directory}/1/.venv" in _python_of(server)
        done = serve(server, "deploy", str(releases.directory / "2"))
        assert (done.returncode, done.stderr) == (0, "")
        assert version(server) == "2"
        assert f"{releases.directory}/2/.venv" in _python_of(server)
        assert server.stop() == 0


def _python_of(server: RunningServer) -> str:
    options = control_client.ask(server.control, "config")["config"]["options"]
    return str(next(option["resolved"] for option in options if option["name"] == "python"))


def test_a_link_that_was_switched_by_hand_is_told_of_and_goes_back_to_what_serves(releases: Releases) -> None:
    bad = releases.make("2", "raise ValueError('not today')\n")
    first, told = releases.directory / "1", f"{releases.link} leads to {bad}, but {releases.directory / '1'} serves"
    with served(releases) as server:
        assert " leads to " not in serve(server, "status").stdout
        link = ReleaseLink(str(releases.link))
        link.point_to("releases/2")
        assert f"{told}: a restart would start {bad}" in serve(server, "status").stdout
        done = serve(server, "reload")
        assert done.returncode == 1
        assert told in done.stderr
        assert releases.target == "releases/2"  # which `serve reload` leaves alone
        done = serve(server, "deploy", str(bad))
        assert done.returncode == 1
        assert done.stdout.splitlines()[-1] == f"{releases.link} -> releases/1"
        assert (releases.target, link.release) == ("releases/1", str(first))

        link.point_to("releases/2")
        done = serve(server, "deploy", str(releases.make("3", "raise ValueError('nor tomorrow')\n")))
        assert (done.returncode, releases.target) == (1, "releases/1")

        link.point_to("releases/2")
        assert serve(server, "deploy", str(releases.make("4"))).returncode == 0
        assert (version(server), releases.target) == ("4", "releases/4")
        assert link.deployed()[-1] == str(releases.directory / "4")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
def test_who_may_not_read_the_release_is_told_so(releases: Releases) -> None:
    command = load("deploy")
    arguments = [str(releases.directory / "1"), "--control", "/nowhere"]
    os.seteuid(65534)  # whom pytest's own directory keeps out
    try:
        with pytest.raises(UsageError, match=r"user nobody may not read .*/1: run this as the server's user or"):
            command.main(arguments, standalone_mode=False)
    finally:
        os.seteuid(0)


# The link alone


def test_the_link_is_found_in_the_paths_of_the_server_or_named(releases: Releases) -> None:
    first, second = releases.directory / "1", str(releases.make("2"))
    places = {f"{releases.link}/site": f"{first}/site", str(releases.link): str(first)}
    assert release_link.find("", second, places).path == str(releases.link)
    assert release_link.find(str(releases.link), "/elsewhere", places).path == str(releases.link)
    above = releases.link.parent.with_name("by-another-name")
    above.symlink_to(releases.link.parent)
    assert release_link.find(str(above / "current"), second, places).path == str(releases.link)
    with pytest.raises(UsageError, match="not through a link beside whose target /elsewhere lies"):
        release_link.find("", "/elsewhere", places)
    with pytest.raises(UsageError, match="is not a link"):
        release_link.find(second, second, places)
    other = releases.link.with_name("other")
    other.symlink_to("releases/1")
    with pytest.raises(UsageError, match=f"a reload does not follow {other}: the server finds its code in"):
        release_link.find(str(other), second, places)


def test_the_release_is_what_was_found_through_the_link(releases: Releases) -> None:
    link, first = ReleaseLink(str(releases.link)), str(releases.directory / "1")
    assert link.serving({f"{link.path}/a/b": f"{first}/a/b"}) == first
    assert link.serving({"/elsewhere": first, link.path: str(releases.directory)}) == ""
    far = str(releases.link.parent / "far")
    assert link.serving({link.path: far}) == ""
    link.deployed_last("", far)
    assert link.serving({link.path: f"{far}/src"}) == far


def test_the_link_is_written_as_it_was(releases: Releases) -> None:
    second = releases.make("2")
    link = ReleaseLink(str(releases.link))
    assert link.text_for(str(second)) == "releases/2"
    link.point_to(link.text_for(str(second)))
    assert (link.target, link.release) == ("releases/2", str(second))
    link.point_to(str(second))
    assert link.text_for(str(releases.directory / "1")) == str(releases.directory / "1")
    assert sorted(path.name for path in releases.link.parent.iterdir()) == ["current", "releases"]


def test_only_what_was_deployed_through_the_link_is_removed(releases: Releases) -> None:
    link = ReleaseLink(str(releases.link))
    assert link.deployed() == []
    assert link.prune(2) == ([], [])
    others = [str(releases.make(name)) for name in ("2", "3", "4", "5")]
    far = releases.link.parent / "far"
    far.mkdir()
    (releases.directory / "alias").symlink_to("4")
    first = str(releases.directory / "1")
    for each in (str(far), str(releases.directory / "alias"), first, *others[:3]):
        link.deployed_last("", each)
    link.deployed_last(others[2], others[0])  # again: it is the newest now
    assert link.deployed()[-3:] == [others[1], others[2], others[0]]
    assert link.prune(1) == ([others[1], others[2]], [])  # not the current one, though it is the oldest
    assert sorted(path.name for path in releases.directory.iterdir()) == ["1", "2", "5", "alias"]
    assert far.is_dir()


def test_a_refused_release_counts_and_one_that_was_linked_by_hand_does_not(releases: Releases) -> None:
    link = ReleaseLink(str(releases.link))
    first, *others = (str(releases.directory / "1"), *(str(releases.make(name)) for name in ("2", "3", "4", "5")))
    assert not link.is_kept()
    link.refused(first, others[0])
    link.deployed_last(first, others[1])
    assert (link.deployed(), link.is_kept()) == ([others[0], others[1]], True)
    link.refused(others[1], others[2])
    assert link.deployed() == [others[0], others[2], others[1]]
    link.deployed_last(others[1], others[3])
    link.point_to("releases/5")
    assert link.prune(2) == ([others[0], others[2]], [])
    assert sorted(path.name for path in releases.directory.iterdir()) == ["1", "3", "5"]
