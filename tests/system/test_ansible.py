"""deploy/ansible: the role writes what the server and systemd read, and reloads; a playbook deploys releases.

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
from tests.system.deployed import DEPLOY, put_programs

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
        **variables,
    }
    return playbook(directory / "play.yml", directory, given, *arguments)


def playbook(path: Path, directory: Path, given: dict[str, Any], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a playbook with these variables, with what Ansible writes below `directory`."""
    environment = os.environ | {
        "ANSIBLE_ROLES_PATH": str(ANSIBLE / "roles"),
        "ANSIBLE_HOME": str(directory / ".ansible"),
        "ANSIBLE_LOCALHOST_WARNING": "False",
        "ANSIBLE_INVENTORY_UNPARSED_WARNING": "False",
        "LC_ALL": "C.UTF-8",
    }
    assert PLAYBOOK is not None
    variables = json.dumps({"ansible_python_interpreter": sys.executable, **given})
    command = [PLAYBOOK, str(path), "-e", variables, *arguments]
    return subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=False)


@NEEDED
def test_the_playbook_is_well_formed(tmp_path: Path) -> None:
    checked = playbook(ANSIBLE / "site.yml", tmp_path, {}, "--syntax-check", "-i", "web,")
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
    settings = (tmp_path / "serve.service.d" / "settings.conf").read_text()
    assert f"ExecStart={Path(sys.executable).parent}/python -m serve_asgi --config {config} " in settings
    assert (tmp_path / "serve.service").read_text() == (DEPLOY / "systemd" / "serve.service").read_text()

    with running("app:app", "--config", str(config), directory=tmp_path, bind="") as server:
        control = {"serve_control": str(server.control)}
        again = play(tmp_path, serve_options=options, **control)
        assert again.returncode == 0, again.stdout + again.stderr
        assert server.status()["generation"] == 2, "the reload of the first run has failed, and was made up for"

        same = play(tmp_path, serve_options=options, **control)
        assert "changed=0" in same.stdout, same.stdout + same.stderr
        assert server.status()["generation"] == 2

        (tmp_path / "app.py").write_text("import no_such_module\n")
        for _ in range(2):  # the second finds nothing to change, and yet does not call it a success
            broken = play(tmp_path, serve_options={**options, "workers": 2}, **control)
            assert broken.returncode == 2
            assert "No module named 'no_such_module'" in broken.stdout
            assert server.status()["generation"] == 2

        (tmp_path / "app.py").write_text(info())
        mended = play(tmp_path, serve_options={**options, "workers": 2}, **control)
        assert mended.returncode == 0, mended.stdout + mended.stderr
        assert (server.status()["generation"], server.status()["size"]) == (5, 2)


@NEEDED
def test_secrets_are_for_the_service_alone_and_a_linked_environment_is_not_made(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(info())
    (tmp_path / "etc").mkdir()
    play(
        tmp_path,
        serve_venv=str(tmp_path / "current" / "venv"),
        serve_user="app",
        serve_config_group="",
        serve_config_mode="0640",
        serve_environment={"SERVE_STATE": 'redis://:a"b\\c@cache/0'},
        serve_supplementary_groups=["adm", "www-data"],
        serve_logs_directory="serve",
        serve_unit_settings=["LimitNOFILE=1024"],
    )
    assert not (tmp_path / "current").exists()
    assert (tmp_path / "etc" / "serve.toml").stat().st_mode & 0o777 == 0o640
    secret = tmp_path / "etc" / "serve.env"
    assert secret.stat().st_mode & 0o777 == 0o600
    assert secret.read_text().splitlines()[-1] == r'SERVE_STATE="redis://:a\"b\\c@cache/0"'
    settings = (tmp_path / "serve.service.d" / "settings.conf").read_text().splitlines()
    assert settings[-6:] == [
        "DynamicUser=no",
        "User=app",
        "SupplementaryGroups=adm www-data",
        f"EnvironmentFile={secret}",
        "LogsDirectory=serve",
        "LimitNOFILE=1024",
    ]


@NEEDED
@pytest.mark.timeout(600)
def test_a_release_is_uploaded_and_deployed_and_a_bad_one_is_taken_back(tmp_path: Path) -> None:
    def deploy(release: str, code: str, control: Path) -> subprocess.CompletedProcess[str]:
        source = tmp_path / "build" / release
        put_programs(source / "venv" / "bin")
        (source / "app.py").write_text(code)
        archive = shutil.make_archive(str(source), "gztar", source)
        given = {"release": release, "archive": archive, "site": str(tmp_path / "site"), "control": str(control)}
        return playbook(ANSIBLE / "deploy.yml", tmp_path, given, "-i", "web,", "-c", "local")

    (tmp_path / "site" / "releases").mkdir(parents=True)
    current = tmp_path / "site" / "current"
    first = deploy("1", info(), tmp_path / "no-server.sock")
    assert first.returncode == 0, first.stdout + first.stderr
    assert os.readlink(current) == "releases/1"

    with running("app:app", "--chdir", str(current), directory=tmp_path) as server:
        second = deploy("2", info(), server.control)
        assert second.returncode == 0, second.stdout + second.stderr
        assert (server.status()["generation"], os.readlink(current)) == (2, "releases/2")

        third = deploy("3", "import no_such_module\n", server.control)
        assert third.returncode == 2
        assert "No module named 'no_such_module'" in third.stdout
        assert (server.status()["generation"], os.readlink(current)) == (2, "releases/2")


if PLAYBOOK is None and os.environ.get("CI") == "true":  # where a skipped test is a failure
    for _name in [each for each in globals() if each.startswith("test_")]:
        del globals()[_name]
