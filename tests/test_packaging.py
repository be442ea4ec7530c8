"""What is said about packages: the lock file fits pyproject.toml, and holds wherever packages come from."""

from __future__ import annotations

import fnmatch
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK = (ROOT / "requirements-dev.txt").read_text()
EXTRAS = ("test", "loadtest", "frameworks", "examples", "docs")


def test_the_lock_file_has_what_the_project_asks_for() -> None:
    locked: dict[str, list[Requirement]] = {}
    for line in re.findall(r"^([a-z].*?)(?: \\)?$", LOCK, re.MULTILINE):
        requirement = Requirement(line)
        locked.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    assert all(
        len(entry.specifier) == 1 and str(entry.specifier).startswith("==")
        for entries in locked.values()
        for entry in entries
    )
    wanted = [*PROJECT["project"]["dependencies"], *PROJECT["dependency-groups"]["build"]]
    for extra in EXTRAS:
        wanted += PROJECT["project"]["optional-dependencies"][extra]
    for text in wanted:
        requirement = Requirement(text)
        versions = [str(entry.specifier)[2:] for entry in locked.get(canonicalize_name(requirement.name), ())]
        assert versions, text
        assert all(requirement.specifier.contains(version, prereleases=True) for version in versions), text


def test_the_lock_file_names_no_place_and_hashes_everything() -> None:
    body = re.sub(r"^#.*$", "", LOCK, flags=re.MULTILINE)
    assert not re.search(r"://|--index|--find-links|(?<!\w)/", body)
    for block in re.split(r"\n(?=[a-z])", body.strip()):
        assert "--hash=sha256:" in block, block


def test_the_workflows_are_such_and_run_what_everybody_runs() -> None:
    workflows = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
    check = [
        sys.executable,
        "-m",
        "check_jsonschema",
        "--builtin-schema",
        "vendor.github-workflows",
        *map(str, workflows),
    ]
    checked = subprocess.run(check, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    tests = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text())["jobs"]["tests"]
    assert any("tests/run.py" in step.get("run", "") for step in tests["steps"])
    told = {text.rpartition(" ")[2] for text in PROJECT["project"]["classifiers"] if "Python :: 3." in text}
    assert told == set(tests["strategy"]["matrix"]["python"])
    assert tests["strategy"]["matrix"]["core"] == ["compiled", "pure"]
    assert tests["steps"][-1]["env"] == {"TEST_PYTHONS": "${{ matrix.python }}", "TEST_CORE": "${{ matrix.core }}"}
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert [hook["entry"] for hook in hooks] == ["python3 tests/run.py --checks"]


def test_wheels_are_built_for_every_version_and_platform_that_is_promised() -> None:
    wheels = PROJECT["tool"]["cibuildwheel"]
    told = {text.rpartition(" ")[2] for text in PROJECT["project"]["classifiers"] if "Python :: 3." in text}
    assert wheels["build"] == [f"cp{version.replace('.', '')}-*" for version in sorted(told)]
    assert wheels["environment"] == {"SERVE_ASGI_COMPILE": "always"}
    program = wheels["test-command"].split()[2].replace("{project}", str(ROOT))
    assert Path(program).is_file()

    release = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())["jobs"]
    assert release["wheels"]["strategy"]["matrix"] == {
        "platform": ["manylinux", "musllinux"],
        "machine": ["x86_64", "aarch64"],
    }
    (build,) = [step for step in release["wheels"]["steps"] if "cibuildwheel" in step.get("uses", "")]
    assert set(build["env"]) == {"CIBW_SKIP"}, "all else is in pyproject.toml"
    assert "wheels" in release["publish"]["needs"]
    uploaded = [step["with"]["name"] for step in release["wheels"]["steps"] if "upload" in step.get("uses", "")]
    (taken,) = [step["with"] for step in release["publish"]["steps"] if "download" in step.get("uses", "")]
    assert all(fnmatch.fnmatch(name, taken["pattern"]) for name in [*uploaded, "packages"])
    assert taken["merge-multiple"]


def test_a_build_that_cannot_compile_is_a_pure_wheel_and_one_line_says_why(tmp_path: Path) -> None:
    """`always` makes it a failure, and an editable install is not compiled at all."""
    for asked, kind, compiler in (("auto", "wheel", "false"), ("always", "wheel", "false"), ("always", "editable", "")):
        place = tmp_path / f"{asked}-{kind}"
        place.mkdir()
        build = f"from hatchling import build; print(build.build_{kind}({str(place)!r}))"
        environment = {**os.environ, "SERVE_ASGI_COMPILE": asked, "CC": compiler}
        done = subprocess.run(
            [sys.executable, "-c", build], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        made = [path.name.partition("-py3")[2] for path in place.glob("*.whl")]
        if (asked, kind) == ("always", "wheel"):
            assert (done.returncode, made) == (1, [])
            assert "CannotCompile: " in done.stderr
        else:
            assert (done.returncode, made) == (0, ["-none-any.whl"]), done.stderr
            told = done.stderr.splitlines()
            assert [line.partition(":")[0] for line in told] == (["serve-asgi"] if kind == "wheel" else [])


BUILD = """
import importlib.abc, sys

class Nothing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in {*sys.stdlib_module_names, "serve_asgi", *sys.argv[1:]}:
            raise ModuleNotFoundError(f"no module {name} at the build")

sys.meta_path.insert(0, Nothing())
from serve_asgi.cli.man_pages import pages
assert len(pages()) > 10
"""


def test_the_manual_pages_are_made_with_what_the_build_asks_for() -> None:
    """pip builds in an environment that has nothing else (PEP 517)."""
    asked = {re.split("[>=<]", each)[0] for each in PROJECT["build-system"]["requires"]}
    assert asked == {"hatchling", "click", "python-dotenv", "cython", "setuptools"}
    done = subprocess.run(
        [sys.executable, "-c", BUILD, "click", "dotenv"],
        cwd=ROOT / "server",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
