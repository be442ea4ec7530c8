"""deploy/ansible: the role makes a file that the server reads and a unit with its paths, and deploys by a reload.

They run where ansible-core is installed, beside the interpreter or on the path; CI has none, and leaves them out.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.applications import info
from tests.running import running
from tests.system.balancing import DEPLOY

pytestmark = pytest.mark.once

ANSIBLE = DEPLOY / "ansible"
PLAYBOOK = shutil.which("ansible-playbook", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
NEEDED = pytest.mark.skipif(PLAYBOOK is None, reason="ansible-playbook is not there: pip install ansible-core")
TASKS = """
- hosts: localhost
  connection: local
  gather_facts: false
  roles: [serve]
"""


def play(directory: Path, *arguments: str, **variables: Any) -> subprocess.CompletedProcess[str]:
    """Run the role against this machine, below `directory`."""
    (directory / "play.yml").write_text(TASKS)
    given = {
        "serve_install": False,
        "serve_manage_service": False,
        "serve_venv": str(Path(sys.executable).parent.parent),
        "serve_app": "app:app",
        "serve_root": str(directory),
        "serve_config": str(directory / "etc" / "serve.toml"),
        "serve_unit_directory": str(directory),
        "serve_control": str(directory / "control.sock"),
        "ansible_python_interpreter": sys.executable,
        **variables,
    }
    environment = os.environ | {
        "ANSIBLE_ROLES_PATH": str(ANSIBLE / "roles"),
        "ANSIBLE_HOME": str(directory / ".ansible"),
        "ANSIBLE_LOCALHOST_WARNING": "False",
        "ANSIBLE_INVENTORY_UNPARSED_WARNING": "False",
        "LC_ALL": "C.UTF-8",
    }
    assert PLAYBOOK is not None
    command = [PLAYBOOK, "play.yml", "-e", json.dumps(given), *arguments]
    return subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=False)


@NEEDED
def test_the_playbook_is_well_formed(tmp_path: Path) -> None:
    assert PLAYBOOK is not None
    checked = subprocess.run(
        [PLAYBOOK, "--syntax-check", "-i", "web,", str(ANSIBLE / "site.yml")],
        cwd=tmp_path,
        env=os.environ | {"LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


@NEEDED
@pytest.mark.timeout(600)
def test_a_change_is_deployed_by_a_reload_and_broken_code_fails_the_play(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(info())
    options = {"bind": ["127.0.0.1:0"], "workers": 1, "access-log": False}
    (tmp_path / "etc").mkdir()
    config = tmp_path / "etc" / "serve.toml"

    checked = play(tmp_path, "--check", serve_options=options)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert not config.exists()

    # Without a server the handler fails, as there is nothing to reload; the files are there by then.
    assert play(tmp_path, serve_options=options).returncode != 0
    assert tomllib.loads(config.read_text()) == {"app": "app:app", "chdir": str(tmp_path), **options}
    paths = (tmp_path / "serve.service.d" / "paths.conf").read_text()
    assert f"ExecStart={Path(sys.executable).parent}/serve --config {config} " in paths
    assert (tmp_path / "serve.service").read_text() == (DEPLOY / "systemd" / "serve.service").read_text()

    with running("app:app", "--config", str(config), directory=tmp_path, bind="") as server:
        control = {"serve_control": str(server.control)}
        same = play(tmp_path, serve_options=options, **control)
        assert same.returncode == 0, same.stdout + same.stderr
        assert server.status()["generation"] == 1, "nothing has changed but the unit's paths"

        more = play(tmp_path, serve_options={**options, "workers": 2}, **control)
        assert more.returncode == 0, more.stdout + more.stderr
        assert (server.status()["generation"], server.status()["size"]) == (2, 2)

        (tmp_path / "app.py").write_text("import no_such_module\n")
        broken = play(tmp_path, serve_options={**options, "workers": 1}, **control)
        assert broken.returncode == 2
        assert "No module named 'no_such_module'" in broken.stdout
        assert server.status()["generation"] == 2


if PLAYBOOK is None and os.environ.get("CI") == "true":  # where a skipped test is a failure
    del test_the_playbook_is_well_formed, test_a_change_is_deployed_by_a_reload_and_broken_code_fails_the_play
