"""`serve deploy` and `serve rollback`, wherever the server finds its code: link and answers name one release."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from serve_asgi.cli import control_client
from tests.cli.releases import APPLICATION, Releases, version
from tests.cli.serving import serve
from tests.running import RunningServer, running, until

ENVIRONMENT = APPLICATION.replace("VERSION = {version!r}", "import os\nVERSION = os.environ['SERVE_ENVIRONMENT']")
"""An application that is the same in all releases: which one serves is said by its configuration file."""


class Node:
    """A directory with releases below `site`, and one elsewhere in which the server is started."""

    def __init__(self, directory: Path, kind: str) -> None:
        (directory / "site").mkdir()
        self.releases = Releases(directory / "site")
        self.elsewhere = directory / "elsewhere"
        self.elsewhere.mkdir()
        self.kind = kind
        link = self.releases.link
        self.environment: dict[str, str] = {}
        match kind:
            case "app-dir":
                self.arguments = ["--app-dir", str(link)]
            case "relative app-dir":
                self.arguments = ["--app-dir", "../site/current/src"]
            case "PYTHONPATH":
                self.arguments, self.environment = [], {"PYTHONPATH": f"/nothing:{link}/src"}
            case "config":
                (self.elsewhere / "app.py").write_text(ENVIRONMENT.format(status=200))
                self.arguments = ["--config", str(link / "serve.toml")]
        for name in ("1", "2", "3"):
            self.make(name)
        link.symlink_to("releases/1")

    def make(self, name: str, *, bad: bool = False) -> str:
        release = self.releases.make(name, "raise ValueError('not today')\n" if bad else None)
        if self.kind in ("relative app-dir", "PYTHONPATH"):
            (release / "src").mkdir()
            (release / "app.py").rename(release / "src" / "app.py")
        if self.kind == "config":
            (release / "serve.toml").write_text("workers = 0\n" if bad else f"environment = '{name}'\n")
        (release / "REVISION").write_text(f"revision-{name}\n")
        return str(release)


def release_of(deploy: dict[str, Any]) -> str:
    return os.path.basename(str(deploy["to"]["directory"]).removesuffix("/src"))


@pytest.mark.once
@pytest.mark.parametrize("kind", ["app-dir", "relative app-dir", "PYTHONPATH", "config"])
def test_link_and_answers_are_of_one_release(tmp_path: Path, kind: str) -> None:
    node = Node(tmp_path, kind)
    releases, link = node.releases, node.releases.link
    more: dict[str, Any] = {"environment": node.environment}
    keep = ["--keep-previous", "600"] if kind == "app-dir" else []

    def agree(server: RunningServer, expected: str) -> None:
        assert (version(server), releases.target) == (expected, f"releases/{expected}")

    with running("app:app", *node.arguments, *keep, directory=node.elsewhere, **more) as server:
        done = serve(server, "deploy", str(releases.directory / "2"))
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.splitlines()[0] == f"{link} -> releases/2"
        agree(server, "2")
        deploys = control_client.ask(server.control, "deploys")["deploys"]
        assert deploys[0]["by"] == "serve deploy"
        if kind != "config":
            assert [release_of(each) for each in deploys] == ["2", "1"]
            assert [each["to"]["commit"] for each in deploys] == ["revision-2", "revision-1"]
            assert "1/src → 2/src" in serve(server, "deploys").stdout or kind == "app-dir"

        done = serve(server, "deploy", node.make("4", bad=True))
        assert (done.returncode, done.stdout.splitlines()[-1]) == (1, f"{link} -> releases/2")
        agree(server, "2")

        if not keep:
            link.unlink()
            link.symlink_to("releases/3")  # which nobody has deployed: a replacement is of its generation's release
            until(lambda: len(server.worker_pids()) == 1)  # the refused one has been reaped
            os.kill(server.worker_pids()[0], signal.SIGKILL)
            server.wait_until(lambda status: status["starts"].get("crash") == 1)
            server.wait_for_workers(1)
            assert version(server) == "2"
            link.unlink()
            link.symlink_to("releases/2")

        if kind == "relative app-dir":
            assert serve(server, "reload", "--listener").returncode == 0
        done = serve(server, "rollback")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.splitlines()[-1] == f"{link} -> releases/1"
        agree(server, "1")
        assert serve(server, "reload").returncode == 0
        agree(server, "1")
        assert server.stop() == 0
    if kind == "PYTHONPATH":
        with running("app:app", *node.arguments, *keep, directory=node.elsewhere, **more) as server:
            agree(server, "1")
            shown = json.loads(serve(server, "status", "--json").stdout)
            assert shown["release"] == str(releases.directory / "1" / "src")
            assert server.stop() == 0
